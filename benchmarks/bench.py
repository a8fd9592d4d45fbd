"""Print what Mini-CLIP costs and reaches on this machine: ``make bench``.

Three parts: the sample from nothing (drawing, embedding, training, testing), an epoch with and without the cached
trunk, and the shipped checkpoint on Flickr8k's test split (left out where Flickr8k is not on this machine). The
cost of training on Flickr8k is read from its committed results.
"""

import json
import os
import resource
import tempfile
import time
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

import minicliplib as mc
from minicliplib.datasets.images import DataError
from minicliplib.features import Features
from minicliplib.training import Learner


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    try:
        flickr8k = mc.load_dataset("flickr8k", "train")
    except DataError as error:
        print(f"Without Flickr8k: {error}")
        flickr8k = None
    with tempfile.TemporaryDirectory() as folder:  # nothing cached from earlier runs
        os.environ["MINICLIP_HOME"], home = folder, os.environ.get("MINICLIP_HOME")
        sample()
        print("\nOne epoch, trunk cached against not cached, same process")
        epoch_cost(mc.preset("sample"), mc.load_dataset("sample", "train"))
        if flickr8k:
            for name, changes in {
                "flickr8k, tuned top (the preset)": {},
                "flickr8k, locked towers": {
                    "encoders.image_trainable": 0,
                    "encoders.text_trainable": 0,
                },
            }.items():
                config = mc.preset("flickr8k").updated(**changes, **{"features.views": 1})
                epoch_cost(config, flickr8k.subset(range(2048)), name)
        os.environ.pop("MINICLIP_HOME")
        if home:
            os.environ["MINICLIP_HOME"] = home
    if flickr8k:
        shipped()
    print(f"\npeak memory of this process: {peak_gib():.1f} GiB")


def sample() -> None:
    started = time.perf_counter()
    run = mc.fit(mc.preset("sample"))
    scores = mc.evaluate(run.model, mc.load_dataset("sample", "test"))["scores"]
    print(
        f"\nsample from nothing: {time.perf_counter() - started:.0f} s, {len(run.history)} epochs"
    )
    print_scores(scores)


def epoch_cost(
    config: mc.Config, data: mc.CaptionedImages, name: str = "sample (the preset)"
) -> None:
    model, seconds = mc.MiniCLIP(config), {}
    for cache in (True, False):
        learner = Learner(
            config, model, Accelerator(), Features(model, data, config.features.views, cache)
        )
        seconds[cache] = learner.train_epoch(0, tqdm(), 0)["seconds"]
    print(
        f"  {name}: {seconds[True]:.1f} s against {seconds[False]:.1f} s for {len(data):,} images, "
        f"ratio {seconds[True] / seconds[False]:.3f}"
    )


def shipped() -> None:
    started = time.perf_counter()
    scores = mc.evaluate(mc.load("flickr8k"), mc.load_dataset("flickr8k", "test"))["scores"]
    print(f"\nshipped checkpoint on Flickr8k test, in {time.perf_counter() - started:.0f} s")
    print_scores(scores)
    path = Path(__file__).parents[1] / "report" / "results" / "flickr8k" / "03_training.json"
    if path.exists():
        print(
            f"  training, as committed: {json.dumps(json.loads(path.read_text())['metrics'].get('cost', {}))}"
        )


def print_scores(scores: dict) -> None:
    for way in ("image_to_text", "text_to_image"):
        recalls = "  ".join(f"R@{k} {100 * scores[way][f'R@{k}']:5.1f}%" for k in (1, 5, 10))
        print(
            f"  {way.replace('_', ' '):14} {recalls}   ({scores['images']:,} x {scores['captions']:,})"
        )


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
