"""Print what Mini-CLIP costs and reaches on this machine: ``make bench``.

It has three parts:

- the sample from nothing: images are drawn and embedded, a model is trained and tested;
- one epoch with the frozen stages cached, and the same epoch without the cache;
- the shipped checkpoint on Flickr8k's test split.

Where Flickr8k is not on this machine, what needs it is left out. The cost of training on all of
Flickr8k is read from its committed results.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from peers import empty_home

import minicliplib as mc
from minicliplib.features import Features
from minicliplib.metrics import DIRECTIONS
from minicliplib.model import best_device
from minicliplib.scale.memory import keep_freed_memory, peak_gib
from minicliplib.scale.runs import model_to_train, start_accelerator
from minicliplib.training import Trainer

COMMITTED = Path(__file__).parents[1] / "report" / "results" / "flickr8k" / "03_training.json"
FLICKR8K_IMAGES = 2048  # of the training split, for one epoch


def main() -> None:
    keep_freed_memory()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    try:
        flickr8k = mc.load_dataset("flickr8k", "train")
    except mc.DataError as error:
        print(f"Without Flickr8k: {error}")
        flickr8k = None

    # Nothing may be cached from earlier runs.
    with empty_home():
        sample()
        epochs(flickr8k)
    if flickr8k:
        shipped()
    print(f"\npeak memory of this process: {peak_gib():.1f} GiB")


def sample() -> None:
    """Train and test on the sample, from nothing."""
    started = time.perf_counter()
    run = mc.fit(mc.preset("sample"), progress=False)
    scores = mc.evaluate(run.model, mc.load_dataset("sample", "test"))["scores"]
    seconds = time.perf_counter() - started
    print(f"\nsample from nothing: {seconds:.0f} s, {len(run.history)} epochs")
    print_scores(scores)


def epochs(flickr8k: mc.CaptionedImages | None) -> None:
    """Time one epoch with the cache and without it, on the sample and on a part of Flickr8k."""
    print("\nOne epoch, trunk cached against not cached, same process")
    epoch_cost("sample (the preset)", mc.preset("sample"), mc.load_dataset("sample", "train"))
    if flickr8k:
        part = flickr8k.subset(range(FLICKR8K_IMAGES))
        tuned = mc.preset("flickr8k").updated(features={"views": 1})
        epoch_cost("flickr8k, tuned top (the preset)", tuned, part)
        epoch_cost("flickr8k, locked towers", tuned.with_locked_towers(), part)


def epoch_cost(name: str, config: mc.Config, data: mc.CaptionedImages) -> None:
    model = model_to_train(config).to(best_device())
    cached = epoch_seconds(config, model, data, cache=True)
    uncached = epoch_seconds(config, model, data, cache=False)
    print(
        f"  {name}: {cached:.1f} s against {uncached:.1f} s for {len(data):,} images, "
        f"ratio {cached / uncached:.3f}"
    )


def epoch_seconds(
    config: mc.Config, model: mc.MiniCLIP, data: mc.CaptionedImages, cache: bool
) -> float:
    """Train one epoch and return how long its steps took; filling the cache is not counted."""
    features = Features(model, data, config.features.views, cache, progress=False)
    trainer = Trainer(config, model, features, start_accelerator(config))
    return trainer.train_epoch(0)["seconds"]


def shipped() -> None:
    """Test the shipped checkpoint, and print what its training cost."""
    started = time.perf_counter()
    scores = mc.evaluate(mc.load("flickr8k"), mc.load_dataset("flickr8k", "test"))["scores"]
    seconds = time.perf_counter() - started
    print(f"\nshipped checkpoint on Flickr8k test, in {seconds:.0f} s")
    print_scores(scores)
    if COMMITTED.exists():
        metrics = json.loads(COMMITTED.read_text())["metrics"]
        print(f"  training, as committed: {json.dumps(metrics.get('cost', {}))}")


def print_scores(scores: dict[str, Any]) -> None:
    pools = f"({scores['images']:,} x {scores['captions']:,})"
    for direction in DIRECTIONS:
        recalls = []
        for k in (1, 5, 10):
            recalls.append(f"R@{k} {100 * scores[direction][f'R@{k}']:5.1f}%")
        print(f"  {direction.replace('_', ' '):14} {'  '.join(recalls)}   {pools}")


if __name__ == "__main__":
    main()
