"""All datasets by name. To add one, write its loader and give it a line in ``DATASETS``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..paths import data_root
from .base import CaptionedImages, without_unreadable
from .coco import load_coco
from .flickr8k import load_flickr8k
from .folder import load_folder
from .images import DataError
from .photos import load_photos
from .scenes import SIZES, load_sample

# A loader takes the folder of the dataset, a split, and how many images to load at most.
Loader = Callable[[Path, str, int | None], CaptionedImages]


class Dataset(NamedTuple):
    """How to load a dataset, and its splits: the default first, or ``"all"`` if it has none."""

    load: Loader
    splits: tuple[str, ...]


DATASETS = {
    "sample": Dataset(load_sample, tuple(SIZES)),
    "flickr8k": Dataset(load_flickr8k, ("train", "dev", "test")),
    "coco": Dataset(load_coco, ("train", "dev", "test")),
    "folder": Dataset(load_folder, ("all", "train", "dev", "test")),
    "photos": Dataset(load_photos, ("all",)),
}


def load_dataset(
    name: str,
    split: str | None = None,
    root: str | Path | None = None,
    limit: int | None = None,
    on_bad: str = "raise",
) -> CaptionedImages:
    """Load one split of a dataset.

    Args:
        name: one of ``DATASETS``, or several joined by ``+``, which follow one another.
        split: by default ``"train"``; of a folder ``"all"``.
        root: the folder that holds the dataset; by default the one of its name in the data folder.
            For joined datasets, each one is in ``root/name``.
        limit: load only so many images; for joined datasets, so many images of each.
        on_bad: with ``"raise"`` an unreadable image raises a ``DataError`` when it is used. With
            ``"skip"`` every image is decoded now, which takes time, and unreadable ones are left
            out with a warning that names them.

    Raises:
        DataError: an argument is not valid, or the dataset is missing or damaged.

    """
    if "+" in name:
        return _load_joined(name, split, root, limit, on_bad)

    split = _check_arguments(name, split, limit, on_bad)
    folder = Path(root).expanduser() if root else data_root() / name
    data = DATASETS[name].load(folder, split, limit)
    if on_bad == "skip":
        return without_unreadable(data)
    return data


def _load_joined(
    names: str, split: str | None, root: str | Path | None, limit: int | None, on_bad: str
) -> CaptionedImages:
    """Load the datasets of ``"one+other"`` one after another."""
    parts = []
    # A dictionary keeps the order, and a name that stands there twice counts once.
    for name in dict.fromkeys(names.split("+")):
        folder = Path(root) / name if root else None
        parts.append(load_dataset(name, split, folder, limit, on_bad))

    return joined(names, parts)


def joined(name: str, parts: Sequence[CaptionedImages]) -> CaptionedImages:
    """Return datasets one after another, under a name and the split of the first."""
    images = []
    captions = []
    for part in parts:
        images.extend(part.images)
        captions.extend(part.captions)
    return CaptionedImages(name, parts[0].split, images, captions)


def _check_arguments(name: str, split: str | None, limit: int | None, on_bad: str) -> str:
    """Return the split that is meant, or raise a ``DataError`` that lists what is known."""
    if name not in DATASETS:
        raise DataError(f"Unknown dataset {name!r}. Known: {', '.join(DATASETS)}.")

    # A dataset without splits gives all it has, whichever split is asked for.
    splits = DATASETS[name].splits
    split = split or splits[0]
    if split not in splits and splits != ("all",):
        raise DataError(f"{name!r} has no split {split!r}. Known: {', '.join(splits)}.")

    if on_bad not in ("raise", "skip"):
        raise DataError(f"on_bad={on_bad!r} is not a choice. Known: raise, skip.")
    if limit is not None and limit < 1:
        raise DataError(f"limit={limit} leaves no image: give 1 or more, or None for all.")
    return split
