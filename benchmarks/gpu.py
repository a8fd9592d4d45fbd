"""Measure on a GPU what the other benchmarks measure on a CPU: towers, recipe, and all of it tuned.

    python benchmarks/gpu.py       writes report/results/benchmarks/gpu.json

(``make bench-gpu`` runs it; it takes about ten minutes on an H100, and Flickr8k must be in the data
folder.)

1. Images and captions a second for every tower, in batches that are large enough for a GPU.
2. The recipe of the ``flickr8k`` checkpoint, run by run as its soup has them, in bfloat16.
   Notebook 8 has the dev recalls that a CPU gave.
3. The upper end of the freeze dial: the same recipe with every stage of both towers trained, in
   batches of 512 images, at two learning rates of the towers.

Only dev is looked at. The result is saved after each part, so that a run that is cut off leaves
what it has measured. After ``--minutes`` no further training starts.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peers
import torch
import towers

import minicliplib as mc
from minicliplib.scale.runs import training_precision

IMAGES_AT_A_TIME = 256
CAPTIONS_AT_A_TIME = 2048

ONE_RUN = mc.preset("flickr8k").updated(train={"soup": 1})
ALL_TRAINED = ONE_RUN.updated(
    encoders={"image_trainable": -1, "text_trainable": -1},
    features={"views": 1},  # pixels, from which each batch cuts its own windows
    train={"batch_size": 512},
)
# In this order, so that the most telling ones are done first.
TRAININGS = {
    "recipe, run 1": ONE_RUN,
    "all trained, 5e-5": ALL_TRAINED.updated(train={"lr_image": 5e-5, "lr_text": 5e-5}),
    "all trained, 2e-4": ALL_TRAINED.updated(train={"lr_image": 2e-4, "lr_text": 2e-4}),
    "recipe, run 2": ONE_RUN.updated(train={"shuffle": 1}),
    "recipe, run 3": ONE_RUN.updated(train={"shuffle": 2}),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9, help="start no training after these")
    parser.add_argument("--limit", type=int, help="of the images of each split, for a quick try")
    parser.add_argument("--note", help="what was special about this run, kept with it")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("This benchmark needs a GPU that torch can use, and found none.")

    started = time.perf_counter()
    metrics: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "precision": training_precision(ONE_RUN),
        "limit": options.limit,
        "note": options.note,
        "batches": {"images": IMAGES_AT_A_TIME, "captions": CAPTIONS_AT_A_TIME},
        "towers": {},
        "trainings": {},
    }
    for name in towers.WEIGHTS:
        metrics["towers"][name] = tower_speeds(name)
        print(name, metrics["towers"][name], flush=True)
    save(metrics, started)

    train = peers.flickr8k("train", options.limit)
    dev = peers.flickr8k("dev", options.limit)
    with peers.empty_home() as home:
        for name, config in TRAININGS.items():
            if time.perf_counter() - started > 60 * options.minutes:
                print(f"No time is left for: {name}", flush=True)
                continue
            folder = Path(home) / name.replace(" ", "_")
            metrics["trainings"][name] = training(config, folder, train, dev)
            print(name, metrics["trainings"][name], flush=True)
            save(metrics, started)


def save(metrics: dict[str, Any], started: float) -> None:
    """Write what has been measured so far."""
    seconds = time.perf_counter() - started
    topic = "gpu_try" if metrics["limit"] else "gpu"  # a quick try leaves the result alone
    mc.save_result("benchmarks", topic, metrics, ONE_RUN, seconds)


def tower_speeds(name: str) -> dict[str, float]:
    """Return a tower's items per second, in float32 and in bfloat16."""
    with tempfile.TemporaryDirectory() as folder:
        if name in towers.CONFIGS:
            towers.write_random_model(name, folder)
        tower = towers.build(name, folder).cuda()
    on_cpu = towers.inputs_for(tower, IMAGES_AT_A_TIME, CAPTIONS_AT_A_TIME)
    inputs = [tensor.cuda() for tensor in on_cpu]

    speeds = {"float32": towers.speed(tower, inputs)}
    with torch.autocast("cuda", torch.bfloat16):
        speeds["bfloat16"] = towers.speed(tower, inputs)
    return speeds


def training(
    config: mc.Config, folder: Path, train: mc.CaptionedImages, dev: mc.CaptionedImages
) -> dict[str, float]:
    """Train a recipe; return its best dev recall, its minutes and its speed.

    The first run of a recipe fills the cache, and ``minutes`` counts that; the next ones find it.
    ``images_per_second`` is of the steps alone.
    """
    torch.cuda.reset_peak_memory_stats()
    if len(train) < config.train.batch_size:  # in a quick try
        config = config.updated(train={"batch_size": len(train)})
    started = time.perf_counter()
    history = mc.fit(config, folder, train, dev, progress=False).history
    seen = len(train) // config.train.batch_size * config.train.batch_size * len(history)
    dev_recalls = history["dev_mean_recall"].to_numpy(float)
    seconds = history["seconds"].to_numpy(float)
    return {
        "dev_mean_recall": float(dev_recalls.max()),
        "minutes": (time.perf_counter() - started) / 60,
        "images_per_second": seen / float(seconds.sum()),
        "peak_gpu_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


if __name__ == "__main__":
    main()
