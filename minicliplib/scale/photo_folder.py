"""A folder of photos that is indexed once, and then searched: by sentence, by photo and by date.

The index lies in the cache, never in the folder. When the folder is opened again, only new and
changed photos are embedded.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..datasets.images import DataError, identity, image_files
from ..paths import data_root, short_hash, write_atomically
from .stored_index import stored_index

# EXIF keeps the time at which a photo was taken in this tag of this part, and as text of this form.
EXIF_PART = 0x8769
TAKEN = 0x9003
TAKEN_FORM = "%Y:%m:%d %H:%M:%S"

BLOCK = 2048  # photos that are compared with all others at once


@dataclass(frozen=True)
class Photo:
    """A photo that was found: its file, its cosine with the query, and the day it was taken."""

    path: Path
    score: float
    day: date


class PhotoFolder:
    """A folder of photos with its index.

    Args:
        model: what embeds. Its ``encode_image`` is only called where there are new photos.
        folder: the folder.
        exclude: patterns of what to leave out, as ``image_files`` has them.
        progress: show a progress bar while photos are embedded.
        options: for ``encode_image``.

    Attributes:
        paths: the photos that can be read.
        index: their vectors; row i is ``paths[i]``.
        faults: a sentence on each photo that cannot be read.

    Raises:
        DataError: there is no such folder, or no photo in it can be read.

    """

    def __init__(
        self,
        model: Any,
        folder: str | Path,
        exclude: Sequence[str] = (),
        progress: bool = False,
        **options: Any,
    ):
        self.folder = Path(folder)
        files = image_files(folder, exclude)
        self.store = folder_store(model, self.folder, **options)
        self.index, self.faults = stored_index(
            model, files, [], self.store, progress, keep_others=True, **options
        )
        if not len(self.index):
            raise DataError(
                f"No image in {folder} can be read, of {len(files)}. The first: {self.faults[0]}"
            )
        self.paths = [files[row] for row in self.index.names["images"]]
        self._days: list[date] | None = None

    def search(
        self, query: str | Path, k: int = 5, since: date | None = None, until: date | None = None
    ) -> list[Photo]:
        """Return the ``k`` best photos for a sentence (any string) or for a photo (a ``Path``).

        A photo is not found by itself. With ``since`` or ``until`` only photos of these days, and
        of those between them, are found.
        """
        scores = self._scores(query)
        wanted = np.ones(len(self.paths), dtype=bool)
        if since or until:
            wanted &= [(since or date.min) <= day <= (until or date.max) for day in self.days()]
        if isinstance(query, Path):
            own = query.resolve()
            wanted &= [path.resolve() != own for path in self.paths]

        rows = np.flatnonzero(wanted)
        best_first = rows[np.argsort(-scores[rows], kind="stable")]
        found = []
        for row in best_first[:k]:
            path = self.paths[row]
            found.append(Photo(path, float(scores[row]), day_taken(path)))
        return found

    def duplicates(self, above: float) -> list[list[Path]]:
        """Return groups of photos whose cosines reach ``above``, the largest group first.

        A photo belongs to a group if it is that close to at least one other photo in it.
        """
        vectors = np.asarray(self.index.vectors["images"], dtype=np.float32)
        group_of = list(range(len(vectors)))

        def root(row: int) -> int:
            while group_of[row] != row:
                group_of[row] = group_of[group_of[row]]  # halves the way for the next one
                row = group_of[row]
            return row

        for start in range(0, len(vectors), BLOCK):
            cosines = vectors[start : start + BLOCK] @ vectors.T
            for first, second in np.argwhere(cosines >= above):
                if start + first < second:
                    group_of[root(int(second))] = root(int(start + first))

        groups: dict[int, list[Path]] = {}
        for row, path in enumerate(self.paths):
            groups.setdefault(root(row), []).append(path)
        several = [group for group in groups.values() if len(group) > 1]
        return sorted(several, key=len, reverse=True)

    def days(self) -> list[date]:
        """Return the day of each photo; the first call reads the head of every new file."""
        if self._days is None:
            self._days = days_of(self.paths, self.store / "days.json")
        return self._days

    def _scores(self, query: str | Path) -> np.ndarray:
        """Return the cosine of each photo with the query: (n,)."""
        if isinstance(query, Path):
            vector: Tensor = self.index.model.encode_image([query])
        elif query.strip():
            vector = self.index.model.encode_text([query])
        else:
            raise ValueError("The query is empty: give a sentence or an image.")
        return np.asarray(self.index.vectors["images"] @ vector[0].cpu().numpy(), dtype=np.float32)


def folder_store(model: Any, folder: str | Path, **options: Any) -> Path:
    """Return where the index of a folder by this model lies; other options are another index."""
    key = short_hash(f"{Path(folder).resolve()} {model.fingerprint()} {sorted(options.items())}")
    return data_root() / "cache" / f"index-folder-{key}"


def days_of(paths: Sequence[Path], file: Path) -> list[date]:
    """Return the day of each photo; what was read before is kept in ``file``."""
    known: dict[str, str] = {}
    with suppress(OSError, ValueError):
        known = json.loads(file.read_text(encoding="utf-8"))
    names = [identity(path) for path in paths]
    days = {}
    for path, name in zip(paths, names, strict=True):
        days[name] = known.get(name) or day_taken(path).isoformat()
    if days != known:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda part: part.write_text(json.dumps(days), encoding="utf-8"))
    return [date.fromisoformat(days[name]) for name in names]


def day_taken(path: Path) -> date:
    """Return the day on which a photo was taken, by its EXIF, or else the day of its file."""
    # A damaged EXIF raises many kinds of errors.
    with suppress(Exception):
        with Image.open(path) as image:
            text = image.getexif().get_ifd(EXIF_PART).get(TAKEN)
        return datetime.strptime(str(text).strip(), TAKEN_FORM).date()
    return date.fromtimestamp(path.stat().st_mtime)
