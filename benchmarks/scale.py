"""Measure what grows with the data and what does not: search and memory.

    python benchmarks/scale.py         writes report/results/benchmarks/scale.json
                                       and figures/benchmarks/scale_memory.png

(``make bench-scale`` runs it.) It measures exact search among a million vectors, the memory of a
training step against the batch's size, and the memory of the training data against their number.

Vectors, captions and cached states are synthetic: neither time nor memory depends on what they say.
Each measurement is a process of its own. FAISS is measured too where it is installed:
pip install -e '.[bench]'.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import minicliplib as mc
from minicliplib.analysis import figures as viz
from minicliplib.encoders import Encoder, Hidden, ImageEncoder
from minicliplib.features import Features
from minicliplib.retrieval import Index
from minicliplib.scale.memory import keep_freed_memory
from minicliplib.scale.two_pass import two_pass_backward
from minicliplib.training import epoch_batches

ROWS = 1_000_000
DIM = 256
QUERIES = 20
K = 10
BATCHES = (64, 128, 256, 512)
CHUNK = 64
RECORDS = (25_000, 50_000, 100_000, 200_000)
COCO_TRAIN = 118_287  # images of train2017
TOKENS = 14  # of a caption

# Vectors (q, dim) -> scores and rows of the best K, both (q, K).
Find = Callable[[np.ndarray], tuple[Any, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=("search", "batch", "records"))
    parser.add_argument("numbers", nargs="*", type=int, help="of batch: size, chunk (0: whole)")
    options = parser.parse_args()
    if options.part is None:
        measure_all()
    else:
        parts = {"search": search, "batch": batch, "records": records}
        print(json.dumps(parts[options.part](*options.numbers)))


def measure_all() -> None:
    """Measure everything, save the result and draw the figure."""
    started = time.perf_counter()
    metrics: dict[str, Any] = {"search": apart("search")}
    print(json.dumps(metrics), flush=True)

    metrics["batch"] = []
    for size in BATCHES:
        for chunk in (0, CHUNK):
            metrics["batch"].append(apart("batch", size, chunk))
    print(json.dumps(metrics["batch"]), flush=True)

    metrics["records"] = [apart("records", count) for count in RECORDS]
    print(json.dumps(metrics["records"]), flush=True)
    counts = [point["records"] for point in metrics["records"]]
    mib = [point["mib"] for point in metrics["records"]]
    slope, _ = np.polyfit(counts, mib, 1)
    metrics["bytes_per_record"] = slope * 2**20

    mc.save_result("benchmarks", "scale", metrics, seconds=time.perf_counter() - started)
    viz.save(figure(metrics), "scale_memory", "benchmarks")


def apart(part: str, *numbers: int) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, part, *map(str, numbers)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


# ---- search -------------------------------------------------------------------------------------


def search() -> dict[str, Any]:
    """Time the exact top 10 of a million vectors: ours on disk, NumPy and FAISS in memory."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        write_index(folder, rng)
        index = Index.load(folder)
        asked = unit_vectors(rng, QUERIES)

        # Ours reads half precision from disk. Pages of a file that are in memory are not private.
        resident = memory("VmRSS")
        private = memory("RssAnon")
        ours, (_, rows) = timed(lambda queries: index.search_vectors(queries, K), asked)
        ours["resident_mib"] = memory("VmRSS") - resident
        ours["of_which_private_mib"] = memory("RssAnon") - private

        file_mib = index.vectors["images"].nbytes / 2**20
        stored = np.array(index.vectors["images"]).astype(np.float32)

    numpy, (_, truth) = timed(lambda queries: numpy_search(stored, queries), asked)
    ours["recall"] = share_found(rows, truth)
    metrics = {"rows": ROWS, "dim": DIM, "file_mib": file_mib, "ours": ours, "numpy": numpy}

    try:
        faiss = import_module("faiss")
    except ModuleNotFoundError:
        return metrics
    flat = faiss.IndexFlatIP(DIM)
    flat.add(stored)
    metrics["faiss"], _ = timed(lambda queries: flat.search(queries, K), asked)
    return metrics


def write_index(folder: str, rng: np.random.Generator) -> None:
    """Save an index of random vectors in half precision; nothing of it stays in memory."""
    index = Index().add_vectors("images", unit_vectors(rng, ROWS), range(ROWS))
    index.save(folder, np.float16)


def unit_vectors(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return random vectors of length 1: (count, dim) float32."""
    vectors = rng.standard_normal((count, DIM), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def numpy_search(stored: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the top K as one would write it in NumPy: scores and rows, both (q, K)."""
    scores = queries @ stored.T
    best = np.argpartition(-scores, K, axis=1)[:, :K]
    best_scores = np.take_along_axis(scores, best, 1)
    order = np.argsort(-best_scores, axis=1, kind="stable")
    return np.take_along_axis(best_scores, order, 1), np.take_along_axis(best, order, 1)


def share_found(rows: np.ndarray, truth: np.ndarray) -> float:
    """Return which share of the true rows (q, K) was found, over all queries."""
    shares = []
    for found, wanted in zip(rows, truth, strict=True):
        shares.append(len(set(found) & set(wanted)) / K)
    return float(np.mean(shares))


def timed(find: Find, asked: np.ndarray) -> tuple[dict[str, float], tuple[Any, Any]]:
    """Return seconds a query, one by one (the median) and all at once, and what was found."""
    find(asked[:1])  # reads the file's pages, and starts the threads
    alone = []
    for query in asked:
        started = time.perf_counter()
        find(query[None])
        alone.append(time.perf_counter() - started)
    started = time.perf_counter()
    found = find(asked)
    at_once = time.perf_counter() - started
    return {"alone_s": float(np.median(alone)), "in_batch_s": at_once / len(asked)}, found


# ---- memory -------------------------------------------------------------------------------------


def batch(size: int, chunk: int) -> dict[str, Any]:
    """Return the peak memory of one training step of the Flickr8k preset.

    The batch runs whole, or in chunks of so many images (two-pass gradients).
    """
    keep_freed_memory()
    train = {"batch_size": size, "chunk_size": chunk or None}
    config = mc.preset("flickr8k").updated(train=train)
    model = mc.MiniCLIP(config).train()
    image, text, mask = hidden_states(model, size)
    image_of_caption = torch.arange(size).repeat_interleave(2)

    before = memory("VmRSS")
    if chunk:
        two_pass_backward(config, model, (image, text, mask), image_of_caption)
    else:
        image_vectors, text_vectors, scale = model(image, text, mask)
        loss = mc.contrastive_loss(
            config.loss.name, image_vectors, text_vectors, scale, image_of_caption
        )
        loss.backward()
    return {"batch": size, "chunk": chunk, "mib": memory("VmHWM") - before}


@torch.no_grad()
def hidden_states(model: mc.MiniCLIP, size: int) -> tuple[Hidden, Hidden, Tensor]:
    """Return trunk outputs of a batch of images, and of two captions each, with their mask."""
    one = trunk_output(model.image_encoder)
    image = Hidden(*(torch.randn(size, *part.shape[1:]) for part in one))
    ids = torch.randint(1000, 20000, (2 * size, TOKENS))
    mask = torch.ones_like(ids)
    parts = []
    for some_ids, some_mask in zip(ids.split(64), mask.split(64), strict=True):
        parts.append(model.text_encoder.trunk(some_ids, some_mask))
    text = Hidden(*(torch.cat(same) for same in zip(*parts, strict=True)))
    return image, text, mask


def trunk_output(encoder: ImageEncoder) -> Hidden:
    """Return what the trunk gives for an empty image."""
    return encoder.trunk(torch.zeros(1, 3, encoder.size, encoder.size))


class HollowFeatures(Features):
    """Features of synthetic data: files of the true size, but full of holes; nothing is computed.

    Args:
        folder: where the files lie.
        model: tells what is cached.
        data: images that do not exist, and their captions.
        views: how many views an image has.

    """

    def __init__(self, folder: str, model: mc.MiniCLIP, data: mc.CaptionedImages, views: int):
        self.folder = folder
        super().__init__(model, data, views)

    def _key(self, encoder: Encoder, items: Sequence, whole: bool = False) -> str:
        return "synthetic"

    def _stored(
        self, kind: str, key: str, write: Callable[[Path], None], arrays: int = 1
    ) -> np.ndarray:
        """Return an array of the size that the trunks would fill."""
        captions = len(self.captions)
        if kind == "starts":
            return np.arange(captions + 1) * TOKENS
        text = self.model.text_encoder
        if kind == "tokens":
            shape = (captions * TOKENS, text.model.config.hidden_size)
        elif kind == "pooled":
            frozen_reads = sum(stage < text.frozen for stage in text.reads)
            shape = (captions, frozen_reads * text.model.config.hidden_size)
        else:
            one = trunk_output(self.model.image_encoder)
            shape = (len(self.data), one.state.numel() + one.pooled.numel())
        path = Path(self.folder) / f"{kind}.npy"
        np.lib.format.open_memmap(path, "w+", np.float16, shape)
        return np.load(path, mmap_mode="r")


def records(count: int, steps: int = 3) -> dict[str, Any]:
    """Return the memory that so many synthetic images with five captions hold, states on disk.

    It is measured after the reading for a few steps.
    """
    # A tower loads its library when it is built. Load both now, so that they are not counted.
    for library in ("timm", "transformers.models.auto"):
        import_module(library)
    keep_freed_memory()
    before = memory("RssAnon")
    data = synthetic_data(count)
    config = mc.preset("flickr8k")
    model = mc.MiniCLIP(config)
    before_reading = memory("RssAnon")

    with tempfile.TemporaryDirectory() as folder:
        features = HollowFeatures(folder, model, data, config.features.views)
        for step, read in enumerate(epoch_batches(config, features, 0)):
            features.image_batch(read.image_rows, read.views)
            features.text_batch(read.caption_rows)
            if step == steps:
                break
        held = memory("RssAnon")
    return {
        "records": count,
        "mib": held - before,
        "mib_before_reading": before_reading - before,
    }


def synthetic_data(count: int) -> mc.CaptionedImages:
    """Return images that do not exist, with five captions each, all of them different."""
    text = "a child in a red coat flies a kite with a long tail over the wide and sunny beach"
    captions = []
    for i in range(count):
        captions.append([f"{text[: 40 + 10 * c]} {i}" for c in range(5)])
    paths: list[Path | Image.Image] = []
    for i in range(count):
        paths.append(Path(f"/data/coco/train2017/{i:012}.jpg"))
    return mc.CaptionedImages("synthetic", "train", paths, captions)


def memory(field: str) -> float:
    """Return a line of /proc/self/status in MiB.

    VmRSS is what is in memory now, RssAnon the part of it that belongs to no file, and VmHWM the
    highest VmRSS so far.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 2**10


# ---- the figure ---------------------------------------------------------------------------------


def figure(metrics: dict[str, Any]) -> Figure:
    """Draw both memory curves."""
    viz.set_theme()
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    draw_batches(left, metrics["batch"])
    draw_records(right, metrics["records"])
    return fig


def draw_batches(ax: Axes, points: list[dict[str, Any]]) -> None:
    """Draw the memory of a step against the batch's size, whole and in chunks."""
    curves = (
        (0, "whole batch", viz.ORANGE),
        (CHUNK, f"two passes, chunks of {CHUNK}", viz.BLUE),
    )
    for chunk, label, colour in curves:
        own = [point for point in points if point["chunk"] == chunk]
        sizes = [point["batch"] for point in own]
        gib = [point["mib"] / 1024 for point in own]
        ax.plot(sizes, gib, "o-", color=colour, label=label)
    ax.set_xscale("log", base=2)
    ax.set_xticks(BATCHES, [str(size) for size in BATCHES])
    ax.set(xlabel="images in a batch", ylabel="peak memory of a step (GiB)", ylim=(0, None))
    ax.legend()


def draw_records(ax: Axes, points: list[dict[str, Any]]) -> None:
    """Draw the memory of the training data against the number of images."""
    thousands = [point["records"] / 1000 for point in points]
    gib = [point["mib"] / 1024 for point in points]
    ax.plot(thousands, gib, "o-", color=viz.BLUE)
    ax.set(
        xlabel="thousand images, five captions each",
        ylabel="memory of the process (GiB)",
        ylim=(0, None),
    )
    ax.axvline(COCO_TRAIN / 1000, color=viz.GREY, ls="--", label="COCO train2017")
    ax.legend(loc="lower right")


if __name__ == "__main__":
    main()
