"""Measure how soon a recall is reached, from raw photos and an empty cache.

    python benchmarks/speedrun.py      writes report/results/benchmarks/speedrun.json

(``make bench-speedrun`` runs it.) The clock starts before the weights of the towers are loaded, and
runs while features are cached, while the model trains, and while dev is measured. It stops while we
measure the mean recall on Flickr8k's test split, one view an image, after each epoch. The recipes
were fixed before, and all of them are in the table.

Beside us stand the loops of transformers and open_clip from ``peers.py``. They have 20 minutes
each, and the learning rate that was the better of two on dev in short trials there. Their clock
starts when the weights are loaded. This compares recipes, not libraries: their image tower is
smaller than ours (EfficientNet-Lite0), all of their weights train, in float32, and their learning
rate is planned for the 20 minutes, so that their early marks are late by design. Ours may
use bfloat16, if the processor has it; the result says whether it did.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import peers
import torch

import minicliplib as mc
from minicliplib.analysis.measures import embed
from minicliplib.features import Features
from minicliplib.scale.runs import training_precision

PEERS_RESULT = Path(__file__).resolve().parents[1] / "report/results/benchmarks/peers.json"

# Our recipes.
ONE_RUN = mc.preset("flickr8k").updated(train={"soup": 1}, inference={"tta_views": 1})
LOCKED = ONE_RUN.with_locked_towers().updated(train={"average": 0.0})
RECIPES = {
    "one_tower": LOCKED.updated(
        encoders={"image": "efficientnet_lite2"}, features={"views": 1}, train={"epochs": 12}
    ),
    "two_towers": LOCKED.updated(features={"views": 1}, train={"epochs": 16}),
    "two_towers_two_views": LOCKED.updated(features={"views": 2}, train={"epochs": 20}),
    "tuned": ONE_RUN.updated(features={"views": 2}, train={"epochs": 12}),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", choices=RECIPES, help="run one only, and print it")
    parser.add_argument("--minutes", type=float, default=20, help="for each peer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="of the images of each split, for a quick try")
    options = parser.parse_args()
    if options.recipe:
        print(json.dumps(our_curve(RECIPES[options.recipe], options.limit)))
    else:
        measure_all(options)


def measure_all(options: argparse.Namespace) -> None:
    """Run all contenders one after the other, each in a process of its own, and save the result."""
    started = time.perf_counter()
    limit = ["--limit", str(options.limit)] if options.limit else []
    curves = {}
    for name in RECIPES:
        curves[name] = json.loads(peers.last_line([__file__, name, *limit], options.threads))
        print(name, curves[name][-1], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        peers.save_vision_tower(folder)
        for name in peers.PEERS:
            curves[name] = peer_curve(name, options, folder)
            print(name, curves[name][-1], flush=True)

    metrics = {
        "curves": curves,
        "recipes": {name: config.to_dict() for name, config in RECIPES.items()},
        "minutes": options.minutes,
        "limit": options.limit,
        "our_precision": training_precision(mc.preset("flickr8k")),
    }
    torch.set_num_threads(options.threads)
    seconds = time.perf_counter() - started
    topic = "speedrun_try" if options.limit else "speedrun"  # a quick try leaves the result alone
    mc.save_result("benchmarks", topic, metrics, mc.preset("flickr8k"), seconds)


# ---- one contender ------------------------------------------------------------------------------


def our_curve(config: mc.Config, limit: int | None) -> list[dict[str, float]]:
    """Train a recipe with an empty cache; return minutes and mean recall after each epoch."""
    curve = []
    off_the_clock = 0.0
    test_features = None
    train, dev, test = (peers.flickr8k(split, limit) for split in ("train", "dev", "test"))
    with peers.empty_home() as home:
        folder = Path(home) / "run"

        def measure(history: pd.DataFrame) -> None:
            nonlocal off_the_clock, test_features
            paused = time.perf_counter()
            minutes = (paused - started - off_the_clock) / 60

            # The features of the test split are cached before the first measurement.
            model = mc.load(folder, "cpu")
            if test_features is None:
                test_features = Features(model, test, progress=False)
            images, captions = embed(model, test_features)
            ranked = mc.ranks_from_embeddings(images, captions, test.image_of_caption)
            recall = mc.summarise(ranked, len(test))["mean_recall"]

            curve.append({"minutes": minutes, "mean_recall": recall})
            print(f"{minutes:.2f} min: {recall:.1%}", file=sys.stderr, flush=True)
            off_the_clock += time.perf_counter() - paused

        started = time.perf_counter()
        mc.fit(config, folder, train, dev, progress=False, on_epoch=measure)
    return curve


def peer_curve(name: str, options: argparse.Namespace, folder: str) -> list[dict[str, float]]:
    """Train a peer for its minutes, with the learning rate that it chose in ``peers.py``."""
    rate = json.loads(PEERS_RESULT.read_text())["metrics"]["contenders"][name]["learning_rate"]
    run = peers.TrainingRun(name, options.minutes, 40, "test", rate, options.threads, options.limit)
    result = peers.apart(run, folder, peers.all_inputs(options.limit))
    return [{key: mark[key] for key in ("minutes", "mean_recall")} for mark in result["curve"]]


if __name__ == "__main__":
    main()
