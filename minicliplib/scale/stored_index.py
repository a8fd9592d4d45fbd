"""An index kept in a folder from call to call, so that only new and changed images are embedded."""

import re
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..datasets.images import DataError, identity, readable
from ..paths import show_bars
from ..retrieval import Index

SAVE_EVERY = 30  # seconds, while a stored index grows
SAVING = 0.05  # the share of the time that saving may take
AT_A_TIME = 256  # images: enough that decoding runs ahead of the image tower


def stored_index(
    model: Any,
    images: Sequence[Path | Image.Image],
    captions: Sequence[str],
    folder: str | Path,
    progress: bool = False,
    keep_others: bool = False,
    **options: Any,
) -> tuple[Index, list[str]]:
    """Index images and captions, and keep the index in ``folder``.

    What the folder holds already is not embedded again. The index is saved as it grows, so an
    interruption loses about half a minute. Of two calls for one folder the second waits, and finds
    what the first has embedded.

    In the folder an image goes by its place, size and time (``path_of`` leads back to the file), or
    by a hash of its pixels. In the index that is returned it goes by its position in ``images``.

    Args:
        model: what embeds, a ``MiniCLIP``.
        images: files, or images in memory.
        captions: sentences.
        folder: where the index is kept; it is made if it is not there.
        progress: show a progress bar.
        keep_others: keep in the folder also what it holds of other files, as long as these are
            there and have not changed. They are not in the index that is returned.
        options: for ``encode_image``.

    Returns:
        The index, and a sentence on each image that was left out because it cannot be read.

    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        position = {_stored_name(image): row for row, image in enumerate(images)}

        # Take over what is there and still wanted.
        old = _load_or_start(folder, model)
        others = _unchanged_others(old, position) if keep_others else set()
        index = _part_of(old, model, position.keys() | others, captions)

        # Embed the rest.
        index.add_captions(captions)
        known = set(index.names["images"])
        new = {name: images[row] for name, row in position.items() if name not in known}
        faults = _embed_images(index, new, folder, progress, **options)

        if index.names != old.names:
            index.save(folder)

    if others:
        index = _part_of(index, model, position, captions)
    index.names["images"] = [position[name] for name in index.names["images"]]
    return index, faults


def path_of(name: str | Path) -> Path:
    """Return the file behind an image's name in the folder of a stored index."""
    return Path(re.sub(r" \d+ \d+$", "", str(name)))  # without size and time


def _stored_name(image: Path | Image.Image) -> str:
    """Return what an image goes by in the folder: another one when the file has changed."""
    if isinstance(image, Path):
        return f"{image.parent.resolve()}/{identity(image)}"
    return identity(image)


def _is_unchanged(name: str) -> bool:
    """Return whether the file behind a stored name is still there, and the same."""
    path = path_of(name)
    return path.is_file() and _stored_name(path) == name


def _load_or_start(folder: Path, model: Any) -> Index:
    """Return the index in a folder; an empty one if there is none, or none of this model."""
    with suppress(ValueError):
        return Index.load(folder, model)
    return Index()


def _unchanged_others(old: Index, wanted: Collection[str]) -> set[str]:
    """Return the images of an index that are not wanted now, but are still there, and the same."""
    return {name for name in old.names["images"] if name not in wanted and _is_unchanged(name)}


def _part_of(whole: Index, model: Any, images: Collection[str], captions: Collection[str]) -> Index:
    """Return an index of those images and captions of another one whose names are wanted."""
    part = Index(model)
    _copy_wanted(whole, part, "images", images)
    _copy_wanted(whole, part, "captions", set(captions))
    return part


def _copy_wanted(old: Index, index: Index, kind: str, wanted: Collection[str]) -> None:
    """Add to an index those vectors of an old one whose names are wanted."""
    rows = []
    names = []
    for row, name in enumerate(old.names[kind]):
        if name in wanted:
            rows.append(row)
            names.append(name)
    if rows:
        index.add_vectors(kind, old.vectors[kind][rows], names)


def _embed_images(
    index: Index, new: dict[str, Path | Image.Image], folder: Path, progress: bool, **options: Any
) -> list[str]:
    """Embed images by name into an index, save it now and then, and return what cannot be read."""
    names = list(new)
    writer = _PacedWriter(index, folder)
    faults = []
    hidden = not names or not show_bars(progress)
    with tqdm(total=len(names), desc="images", unit="image", disable=hidden) as bar:
        for start in range(0, len(names), AT_A_TIME):
            batch = names[start : start + AT_A_TIME]
            images = [new[name] for name in batch]
            vectors, good, unreadable = _embed_readable(index.model, images, **options)
            faults += unreadable
            writer.add(vectors, [batch[row] for row in good])
            bar.update(len(batch))
    writer.add_waiting()
    return faults


def _embed_readable(
    model: Any, images: list[Path | Image.Image], **options: Any
) -> tuple[Tensor, Sequence[int], list[str]]:
    """Embed the images that can be read.

    Returns:
        Their vectors, their positions in ``images``, and a sentence on each of the others.

    """
    # Most images can be read. To look for bad ones first would decode every image twice.
    try:
        return model.encode_image(images, **options), range(len(images)), []
    except DataError:
        good, faults = readable(images)
        vectors = model.encode_image([images[row] for row in good], **options)
        return vectors, good, faults


class _PacedWriter:
    """Adds vectors to an index and saves it: often enough to lose little, and not all the time."""

    def __init__(self, index: Index, folder: Path) -> None:
        self.index = index
        self.folder = folder
        self.waiting: dict[str, Tensor] = {}
        self.saved_at = time.monotonic()
        self.cost = 0.0  # seconds that the last save took

    def add(self, vectors: Tensor, names: list[str]) -> None:
        """Take new vectors, and save if it is time."""
        self.waiting.update(zip(names, vectors.cpu(), strict=True))
        started = time.monotonic()
        if started - self.saved_at > SAVE_EVERY + self.cost / SAVING:
            self.add_waiting()
            self.index.save(self.folder)
            self.saved_at = time.monotonic()
            self.cost = self.saved_at - started

    def add_waiting(self) -> None:
        """Add what waits to the index, many at once, because each time copies the whole array."""
        if self.waiting:
            vectors = torch.stack(list(self.waiting.values()))
            self.index.add_vectors("images", vectors, self.waiting)
            self.waiting = {}
