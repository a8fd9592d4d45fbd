"""Measure what grows and what does not: search among a million vectors, memory against batch size and dataset size.

python benchmarks/scale.py         writes report/results/benchmarks/scale.json, figures/benchmarks (make bench-scale)

Vectors, captions and cached states are synthetic: neither time nor memory depends on what they say. Each point of the
memory curves is a process of its own. FAISS joins in where it is installed: pip install -e '.[bench]'.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

os.environ["TQDM_DISABLE"] = "1"

import matplotlib.pyplot as plt
import numpy as np
import torch

import minicliplib as mc
from minicliplib import training
from minicliplib.analysis import figures as viz
from minicliplib.features import Features
from minicliplib.retrieval import Index
from minicliplib.training import epoch_batches

ROWS, DIM = 1_000_000, 256
BATCHES, CHUNK = (64, 128, 256, 512), 64
RECORDS = (25_000, 50_000, 100_000, 200_000)


def main() -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        metrics = {"search": apart("search", folder)}
    print(json.dumps(metrics), flush=True)
    metrics["batch"] = [apart("batch", size, chunk) for size in BATCHES for chunk in (0, CHUNK)]
    print(json.dumps(metrics["batch"]), flush=True)
    metrics["records"] = [apart("records", n) for n in RECORDS]
    print(json.dumps(metrics["records"]), flush=True)
    slope = np.polyfit(
        [r["records"] for r in metrics["records"]], [r["mib"] for r in metrics["records"]], 1
    )[0]
    metrics["bytes_per_record"] = slope * 2**20
    mc.save_result("benchmarks", "scale", metrics, seconds=time.perf_counter() - started)
    viz.save(figure(metrics), "scale_memory", "benchmarks")


def apart(what: str, *arguments) -> dict:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, what, *map(str, arguments)]
    return json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[
            -1
        ]
    )


def search(folder: str, k: int = 10, queries: int = 20) -> dict:
    """Time the exact top 10 of a million half-precision vectors on disk, against NumPy and FAISS in memory."""
    rng = np.random.default_rng(0)
    index = Index().add_vectors("images", unit(rng, ROWS), range(ROWS))
    index.save(folder, np.float16)
    del index
    loaded = Index.load(folder)
    before = memory("VmRSS"), memory("RssAnon")
    asked = unit(rng, queries)
    ours, (_, rows) = timed(lambda q: loaded.search_vectors(q, k), asked)
    resident = {
        "resident_mib": memory("VmRSS") - before[0],
        "of_which_private_mib": memory("RssAnon") - before[1],
    }
    stored = np.array(loaded.vectors["images"]).astype(np.float32)

    def numpy(q):
        scores = q @ stored.T
        best = np.argpartition(-scores, k, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
        return None, np.take_along_axis(best, order, 1)

    seconds, (_, truth) = timed(numpy, asked)
    metrics = {
        "rows": ROWS,
        "dim": DIM,
        "file_mib": loaded.vectors["images"].nbytes / 2**20,
        "ours": ours | resident,
    }
    metrics["numpy"] = seconds
    metrics["ours"]["recall"] = float(
        np.mean([len({*a} & {*b}) / k for a, b in zip(rows, truth, strict=True)])
    )
    try:
        import faiss
    except ModuleNotFoundError:
        return metrics
    flat = faiss.IndexFlatIP(DIM)
    flat.add(stored)
    metrics["faiss"], _ = timed(lambda q: flat.search(q, k), asked)
    return metrics


def timed(find, asked: np.ndarray) -> tuple[dict, tuple]:
    """Return seconds a query, one at a time (median) and all at once, and what was found at once."""
    find(asked[:1])  # the file's pages are read, threads are up
    alone = []
    for query in asked:
        started = time.perf_counter()
        find(query[None])
        alone.append(time.perf_counter() - started)
    started = time.perf_counter()
    found = find(asked)
    return {
        "alone_s": float(np.median(alone)),
        "in_batch_s": (time.perf_counter() - started) / len(asked),
    }, found


def unit(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return n random unit vectors."""
    vectors = rng.standard_normal((n, DIM), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def batch(size: str, chunk: str) -> dict:
    """Return the peak memory of one training step of the Flickr8k preset, whole or in chunks (two-pass)."""
    size, chunk = int(size), int(chunk)
    config = mc.preset("flickr8k").updated(
        **{"train.batch_size": size, "train.chunk_size": chunk or None}
    )
    model = mc.MiniCLIP(config).train()
    with torch.no_grad():
        pixels = torch.zeros(1, 3, 224, 224)
        image = torch.randn(size, *model.image_encoder.trunk(pixels).shape[1:])
        ids = torch.randint(1000, 20000, (2 * size, 14))
        mask = torch.ones_like(ids)
        text = torch.cat(
            [
                model.text_encoder.trunk(i, m)
                for i, m in zip(ids.split(64), mask.split(64), strict=True)
            ]
        )
    image_of_caption, before = torch.arange(size).repeat_interleave(2), memory("VmRSS")
    if chunk:
        training.two_pass_backward(config, model, image, text, mask, image_of_caption)
    else:
        mc.contrastive_loss(
            config.loss.name, *model(image, text, mask), image_of_caption
        ).backward()
    return {"batch": size, "chunk": chunk, "mib": memory("VmHWM") - before}


def records(n: str, steps: int = 3) -> dict:
    """Return the memory held after a few steps' reading on n synthetic images of five captions, states on disk."""
    n, before = int(n), memory("RssAnon")
    text = "a child in a red coat flies a kite with a long tail over the wide and sunny beach"
    captions = [[f"{text[: 40 + 10 * c]} {i}" for c in range(5)] for i in range(n)]
    paths = [Path(f"/data/coco/train2017/{i:012}.jpg") for i in range(n)]
    data = mc.CaptionedImages("synthetic", "train", paths, captions)
    with tempfile.TemporaryDirectory() as folder:

        def stored(self, kind, items, *_):
            """Make an array of the size that the trunks would fill, as holes of a file."""
            if kind == "starts":
                return np.arange(len(items) + 1) * 14
            shape = (len(items), 112, 14, 14) if kind.startswith("view") else (len(items) * 14, 384)
            np.lib.format.open_memmap(f"{folder}/{kind}.npy", "w+", np.float16, shape)
            return np.load(f"{folder}/{kind}.npy", mmap_mode="r")

        config = mc.preset("flickr8k")
        model = mc.MiniCLIP(config)
        weights = memory("RssAnon")
        with mock.patch.object(Features, "_stored", stored):
            outputs = Features(model, data, config.features.views)
        for step, (rows, views, texts, _) in enumerate(epoch_batches(config, outputs, 0)):
            outputs.image_batch(rows, views)
            outputs.text_batch(texts)
            if step == steps:
                break
        held = memory("RssAnon")
    return {"records": n, "mib": held - before, "mib_before_reading": weights - before}


def memory(field: str) -> float:
    """Return a line of /proc/self/status in MiB: VmRSS (resident), RssAnon (of it not a file's), VmHWM (the peak)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 2**10


def figure(metrics: dict):
    """Draw both memory curves."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    for chunk, label, colour in (
        (0, "whole batch", viz.ORANGE),
        (CHUNK, f"two passes, chunks of {CHUNK}", viz.BLUE),
    ):
        points = [(p["batch"], p["mib"] / 1024) for p in metrics["batch"] if p["chunk"] == chunk]
        left.plot(*zip(*points, strict=True), "o-", color=colour, label=label)
    left.set_xscale("log", base=2)
    left.set_xticks(BATCHES, BATCHES)
    left.set(xlabel="images in a batch", ylabel="peak memory of a step (GiB)", ylim=(0, None))
    left.legend()
    points = [(p["records"] / 1000, p["mib"] / 1024) for p in metrics["records"]]
    right.plot(*zip(*points, strict=True), "o-", color=viz.BLUE)
    right.set(
        xlabel="thousand images, five captions each",
        ylabel="memory of the process (GiB)",
        ylim=(0, None),
    )
    right.axvline(118.287, color=viz.GREY, ls="--", label="COCO train2017")
    right.legend(loc="lower right")
    return fig


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(
            json.dumps(
                {"search": search, "batch": batch, "records": records}[sys.argv[1]](*sys.argv[2:])
            )
        )
    else:
        main()
