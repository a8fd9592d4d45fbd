"""Runs: the folder of each, its state, and what makes a run that was cut off go on.

A run is identified by its config and its data. Both are in the name of its folder and in what the
folder holds, so a run is never taken for another.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..config import Config
from ..datasets.base import CaptionedImages, Splits, without_unreadable
from ..datasets.load import DATASETS, load_dataset
from ..loss import contrastive_loss
from ..model import PRECISIONS, MiniCLIP, best_device, precision_of
from ..paths import data_root, write_atomically

if TYPE_CHECKING:
    from ..training import Trainer

STATE = "state.safetensors"  # all that the next epoch needs
History = list[dict[str, Any]]


# ---- the folder ---------------------------------------------------------------------------------


def run_folder(config: Config, data: Splits) -> Path:
    """Return where a run lies: ``data_root()/runs/<dataset>-<digest of config>-<of data>``."""
    name = f"{data.train.name}-{config.digest()}-{data.fingerprint}"
    return data_root() / "runs" / name


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Make a run's folder and hold it, so that a second call for the run waits for the first."""
    folder.mkdir(parents=True, exist_ok=True)
    # The processes of one run share its folder, and must not wait for each other.
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    with FileLock(folder / "lock") if alone else nullcontext():
        yield


def read_history(folder: Path, config: Config, data: Splits) -> History:
    """Return the epochs so far; a folder that holds another run is a ``ValueError``."""
    checkpoint = folder / "config.json"
    if not checkpoint.exists():
        return []
    advice = "name another folder, or delete this one."
    record = None
    try:
        made_with = Config.from_dict(json.loads(checkpoint.read_text())["config"])
        if (folder / STATE).exists():
            record = safe_open(folder / STATE, "pt").metadata()
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no whole run ({error}): {advice}") from error

    if made_with.to_dict() != config.to_dict():
        raise ValueError(f"{folder} holds a run of another config: {advice}")
    if record is None:
        return []
    if record.get("config") != config.digest():
        raise ValueError(f"{folder} holds a run of another config or version: {advice}")
    if record.get("data") != data.fingerprint:
        raise ValueError(f"{folder} holds a run of this config on other data: {advice}")
    return json.loads(record["history"])


def best_row(history: History) -> int:
    """Return the index of the row with the best dev mean recall."""
    return int(np.argmax([row["dev_mean_recall"] for row in history]))


def is_finished(history: History, config: Config) -> bool:
    """Return whether all epochs are done, or too many went by without a better dev recall."""
    if not history:
        return False
    without_gain = len(history) - 1 - best_row(history)
    return len(history) >= config.train.epochs or without_gain >= config.train.patience


# ---- its files ----------------------------------------------------------------------------------


def save_best(model: MiniCLIP, folder: Path, row: dict[str, Any], data: Splits) -> None:
    """Save the model as the run's best one, with its dev recalls for the model card."""
    recalls = {}
    for name, value in row.items():
        if name.startswith("dev_"):
            label = name.removeprefix("dev_").replace("_", " ")
            recalls[label.replace("i2t", "image → text").replace("t2i", "text → image")] = value
    place = {"dataset": data.dev.name, "split": data.dev.split}
    result = place | sizes(data.dev) | {"metrics": recalls}
    trained_on = {"name": data.train.name} | sizes(data.train)
    model.facts = {"trained_on": trained_on, "results": [result]}
    model.save(folder)


def sizes(data: CaptionedImages) -> dict[str, int]:
    """Return how many images and captions there are."""
    return {"images": len(data), "captions": len(data.flat_captions)}


def save_state(trainer: "Trainer", folder: Path, history: History, data: Splits) -> None:
    """Write all that the next epoch needs, in full precision, and the history as a table.

    That is the weights, their averages, Adam's moments, and the history.
    """
    tensors = {f"model.{name}": t for name, t in trainer.model.learned_state().items()}
    if trainer.average:
        tensors |= {f"average.{name}": t for name, t in trainer.average.weights.items()}
    for index, moments in trainer.optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": moment for name, moment in moments.items()}
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    record = {
        "config": trainer.config.digest(),
        "data": data.fingerprint,
        "precision": training_precision(trainer.config),
        "history": json.dumps(history),
    }
    write_atomically(folder / STATE, lambda part: save_file(tensors, part, metadata=record))
    pd.DataFrame(history).to_csv(folder / "history.csv", index=False)


def load_state(trainer: "Trainer", folder: Path, epochs: int) -> None:
    """Take up what ``save_state`` wrote after so many epochs.

    Raises:
        ValueError: it was trained in another precision, which "auto" may give on another machine.

    """
    begun_in = safe_open(folder / STATE, "pt").metadata().get("precision")
    precision = training_precision(trainer.config)
    if begun_in not in (None, precision):
        raise ValueError(
            f"{folder} was begun in precision {begun_in!r}, and would go on in {precision!r}: set "
            "train.mixed_precision, and start a run in another folder."
        )
    model_state = {}
    optimiser_state = trainer.optimiser.state_dict()
    for full_name, tensor in load_file(folder / STATE).items():
        part, name = full_name.split(".", 1)
        if part == "model":
            model_state[name] = tensor
        elif part == "average" and trainer.average:
            trainer.average.weights[name].copy_(tensor)
        elif part == "adam":
            index, moment = name.split(".")
            optimiser_state["state"].setdefault(int(index), {})[moment] = tensor
    trainer.model.load_learned_state(model_state)
    trainer.optimiser.load_state_dict(optimiser_state)
    trainer.steps_done = epochs * trainer.steps_per_epoch


# ---- before the first epoch ---------------------------------------------------------------------


def start_accelerator(config: Config) -> Accelerator:
    """Return what runs the steps on one or several processes and devices."""
    AcceleratorState._reset_state()  # or a run of another precision would be refused
    return Accelerator(mixed_precision=training_precision(config), cpu=best_device() == "cpu")


def model_to_train(config: Config) -> MiniCLIP:
    """Return a model as it is before training, in the precision that it trains in."""
    model = MiniCLIP(config)
    model.run_in(precision_of(training_precision(config)))
    return model


def training_precision(config: Config) -> str:
    """Return the mixed precision to train in, by name."""
    wanted = config.train.mixed_precision
    if wanted == "as_used":
        return config.encoders.precision
    if wanted == "auto":
        return "bf16" if has_fast_bf16() else "no"
    if wanted not in PRECISIONS:
        known = ", ".join(["as_used", "auto", *PRECISIONS])
        raise ValueError(f"train.mixed_precision must be one of {known}, not {wanted!r}.")
    return wanted


def has_fast_bf16() -> bool:
    """Return whether the best device here computes in bfloat16 itself; elsewhere it is slower."""
    device = best_device()
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    built_in = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device == "cpu" and built_in is not None and built_in()


def load_split(config: Config, split: str) -> CaptionedImages:
    """Load the split "train" or "dev" of the config's dataset.

    Raises:
        ValueError: the dataset has no splits, so that its dev images would be its training images.

    """
    for name in config.data.name.split("+"):
        if name in DATASETS and split not in DATASETS[name].splits:
            raise ValueError(f"{name!r} has no split {split!r}, so no run can be trained on it.")
    return load_dataset(split=split, **asdict(config.data))


def leave_out_unreadable(data: Splits) -> Splits:
    """Leave out the images of the user's own folder that cannot be read, with a warning."""
    parts = []
    for part in (data.train, data.dev):
        is_own = "folder" in part.name.split("+")
        parts.append(without_unreadable(part) if is_own else part)
    return Splits(*parts)


def check_settings(config: Config, data: Splits, accelerator: Accelerator) -> None:
    """Refuse now, in one sentence, what would fail after minutes."""
    _check_numbers(config)
    settings = config.train
    train = data.train
    if settings.chunk_size and training_precision(config) == "fp16":
        raise ValueError("train.chunk_size cannot be used with fp16, which scales gradients.")

    # Batches: of enough images, shared evenly, with enough captions.
    size = settings.batch_size
    if not 2 <= size <= len(train):
        raise ValueError(
            f"train.batch_size must be 2 to {len(train)}, the number of training images, "
            f"not {size}."
        )
    if size % accelerator.num_processes:
        count = accelerator.num_processes
        raise ValueError(
            f"train.batch_size must be a multiple of the {count} processes, not {size}."
        )
    fewest = min(map(len, train.captions))
    if fewest == 0:
        raise ValueError(f"An image of {train.name!r} has no caption: leave it out to train.")
    if fewest < settings.captions_per_image and accelerator.num_processes > 1:
        raise ValueError(
            f"An image of {train.name!r} has {fewest} captions: several processes, which take "
            f"equal shares of a batch, need train.captions_per_image of at most {fewest}."
        )
    if len(data.dev) == 0 or min(map(len, data.dev.captions)) == 0:
        raise ValueError("The dev split needs one image or more, each with a caption.")

    # A trial of the loss.
    two = torch.eye(2, device=accelerator.device)
    rows = torch.arange(2, device=two.device).repeat_interleave(settings.captions_per_image)
    contrastive_loss(config.loss.name, two, two[rows], two[0, 0], rows)


def _check_numbers(config: Config) -> None:
    """Refuse settings out of their range."""
    settings = config.train
    at_least_one = {
        "train.epochs": settings.epochs,
        "train.patience": settings.patience,
        "train.soup": settings.soup,
        "train.captions_per_image": settings.captions_per_image,
        "features.views": config.features.views,
    }
    if settings.chunk_size is not None:
        at_least_one["train.chunk_size"] = settings.chunk_size
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, not {value}.")
    above_zero = {
        "heads.temperature": config.heads.temperature,
        "heads.max_scale": config.heads.max_scale,
        "loss.soft_temperature": config.loss.soft_temperature,
        "train.clip_norm": settings.clip_norm,
        "train.map_crop": settings.map_crop,
    }
    for name, value in above_zero.items():
        if value <= 0:
            raise ValueError(f"{name} must be above 0, not {value}.")
    shares = {
        "loss.soft": config.loss.soft,
        "train.map_crop": settings.map_crop,
        "train.word_dropout": settings.word_dropout,
        "train.average": settings.average,
        "train.warmup": settings.warmup,
    }
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is a share, from 0 to 1, not {value}.")
    if settings.shuffle < 0:
        raise ValueError(f"train.shuffle must be 0 or more, not {settings.shuffle}.")
    if config.features.cache_dtype not in ("float16", "float32"):
        kind = config.features.cache_dtype
        raise ValueError(f"features.cache_dtype must be float16 or float32, not {kind!r}.")
