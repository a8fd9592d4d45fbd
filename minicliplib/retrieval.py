"""Exact search among images or captions, by sentence or by image, in memory or from disk.

    index = Index(model).add_images(paths)
    index.search("two dogs playing", k=5)  # [(path, score), ...] best first

An index has one row for each image, however many captions the image has. With one row for each
caption it would find the same image five times. Scores are cosine similarities, because every
vector has length 1.
"""

from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import DTypeLike
from PIL import Image
from torch import Tensor

from .encoders import ImageLike

KINDS = ("images", "captions")
Vectors = np.ndarray | Tensor
Found = list[tuple[Any, float]]  # (name, score), best first

SCORES_AT_A_TIME = 2**23  # in memory during a search, whatever the numbers of queries and rows
ROUGH_ERROR = 1e-4  # more than single precision is ever off in a product of unit vectors


class Index:
    """Unit vectors of images and of captions, searched exactly; a ``SearchIndex``.

    ``vectors[kind]``, (n, dim), has a row for each of ``names[kind]``, once there are any. A model
    needs ``encode_image`` and ``encode_text``, as ``MiniCLIP`` has them.
    """

    def __init__(self, model: Any = None) -> None:
        self.model = model
        self.names: dict[str, list[Any]] = {kind: [] for kind in KINDS}
        self.vectors: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return self._size("images")

    def add_images(self, images: Any, names: Any = None, **options: Any) -> Self:
        """Add paths or PIL images, each once; ``encode_image`` takes the options.

        An image goes by its entry in ``names``. Without names it goes by its path, or by its row if
        it has no path: "image 17". An image whose name is there already is skipped.
        """
        new = new_images(images, names, self.names["images"])
        if new:
            vectors = required(self.model).encode_image(list(new.values()), **options)
            self.add_vectors("images", vectors, new)
        return self

    def add_captions(self, captions: Sequence[str] | str) -> Self:
        """Add sentences, each once."""
        new = new_captions(captions, self.names["captions"])
        if new:
            self.add_vectors("captions", required(self.model).encode_text(new), new)
        return self

    def add_vectors(self, kind: str, vectors: Vectors, names: Iterable[Hashable]) -> Self:
        """Add (n, dim) unit vectors under n new names to the "images" or to the "captions"."""
        check_kind(kind)
        added = checked_vectors(vectors, self._dim())
        names = checked_names(kind, names, len(added), self.names[kind])
        if kind in self.vectors:
            added = np.concatenate([self.vectors[kind], added])
        self.vectors[kind] = added
        self.names[kind] += names
        return self

    def search(self, query: ImageLike, k: int = 5, among: str = "images") -> Found:
        """Return the ``k`` best ``(name, score)``, best first.

        A string is always a sentence; give an image as a ``Path`` or a PIL image.
        """
        check_k(k, among, self._size(among))
        scores, rows = self.search_vectors(embed_query(self.model, query), k, among)
        names = [self.names[among][row] for row in rows[0]]
        return list(zip(names, scores[0].tolist(), strict=True))

    def search_vectors(
        self, vectors: Vectors, k: int = 5, among: str = "images", block: int = 32768
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the exact top ``k`` of (q, dim) unit vectors: scores and rows, both (q, k).

        Ties go to the lower row. At most ``block`` rows are read at a time and they are never all
        sorted, so memory does not grow with the index.
        """
        check_k(k, among, self._size(among))
        queries = checked_vectors(vectors, self._dim())
        stored = self.vectors[among]

        # The scores of all queries with one block must fit the budget.
        block = min(block, SCORES_AT_A_TIME // max(1, len(queries)))
        block = max(1, block)
        buffer = torch.empty(min(block, len(stored)), stored.shape[1])

        # The best so far. There are at least k rows, so all of this is overwritten.
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.zeros((len(queries), k), np.int64)

        for start in range(0, len(stored), block):
            part = stored[start : start + block]
            single = buffer[: len(part)].copy_(torch.from_numpy(part))
            rough = (torch.from_numpy(queries) @ single.T).numpy()
            for i, query in enumerate(queries.astype(np.float64)):
                scores[i], rows[i] = merge_block(scores[i], rows[i], query, part, start, rough[i])
        return scores, rows

    def save(self, folder: str | Path, dtype: DTypeLike = np.float32) -> None:
        """Write the index to ``folder``; ``np.float16`` halves it.

        An interruption leaves the old index whole.
        """
        from .scale.index_files import write_index

        write_index(self, Path(folder), dtype)

    @classmethod
    def load(cls, folder: str | Path, model: Any = None) -> Self:
        """Open a saved index. Its vectors stay on disk, and are read when a search needs them.

        Raises:
            ValueError: there is no whole index, or another model has made it.

        """
        from .scale.index_files import read_index

        index = cls(model)
        index.names, index.vectors = read_index(Path(folder), model)
        return index

    def _size(self, kind: str) -> int:
        check_kind(kind)
        return len(self.names[kind])

    def _dim(self) -> int | None:
        """Return the width of the vectors, which all kinds share, or None while there are none."""
        for vectors in self.vectors.values():
            return vectors.shape[1]
        return None


def merge_block(
    scores: np.ndarray,
    rows: np.ndarray,
    query: np.ndarray,
    part: np.ndarray,
    start: int,
    rough: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a query's top k, ``scores`` of ``rows`` so far, after one more block of the index.

    ``part``, (block, dim), begins at row ``start``. ``rough``, (block,), are its scores in single
    precision: only rows that may reach the top k by them are worth an exact score.
    """
    k = len(scores)
    threshold = scores[-1]
    if k < len(rough):
        threshold = max(threshold, np.partition(rough, -k)[-k])
    near = np.flatnonzero(rough >= threshold - ROUGH_ERROR)

    # Sum in double precision and round once. Equal vectors then get equal scores, whatever the
    # size of the block.
    exact = (part[near].astype(np.float64) @ query).astype(np.float32)
    scores = np.concatenate([scores, exact])
    rows = np.concatenate([rows, start + near])

    # The sort is stable and the earlier rows stand first, so ties go to the lower row.
    best = np.argsort(-scores, kind="stable")[:k]
    return scores[best], rows[best]


# ---- what every kind of index checks ------------------------------------------------------------


def new_images(images: Any, names: Any, known: list[Any]) -> dict[Any, ImageLike]:
    """Return by name the images whose names are not ``known``, each once.

    Without names an image goes by its path, or by its row if it has none: "image 17".
    """
    images = _as_list(images)
    given = [None] * len(images) if names is None else _as_list(names)
    _check_lengths("images", images, given)
    taken = set(known)
    new: dict[Any, ImageLike] = {}
    for image, name in zip(images, given, strict=True):
        if name is None and isinstance(image, Image.Image):
            name = f"image {len(known) + len(new)}"
        elif name is None:
            name = Path(image)
        if name not in taken:
            new.setdefault(name, image)
    return new


def new_captions(captions: Sequence[str] | str, known: list[str]) -> list[str]:
    """Return the sentences that are not ``known``, each once."""
    taken = set(known)
    return [caption for caption in dict.fromkeys(_as_list(captions)) if caption not in taken]


def embed_query(model: Any, query: ImageLike) -> Tensor:
    """Return the vector of a sentence (any string) or of an image: (1, dim)."""
    if not isinstance(query, str):
        return required(model).encode_image([query])
    if not query.strip():
        raise ValueError("The query is empty: give a sentence or an image.")
    return required(model).encode_text([query])


def required(model: Any) -> Any:
    """Return the model; without one, refuse what needs it."""
    if model is None:
        raise ValueError("This index cannot read sentences or images: it was made without a model.")
    return model


def check_kind(kind: str) -> None:
    """Refuse what is neither "images" nor "captions"."""
    if kind not in KINDS:
        raise ValueError(f"An index holds images and captions, not {kind!r}.")


def check_k(k: int, kind: str, size: int) -> None:
    """Refuse to search for nothing, and for more than there is."""
    if size == 0:
        raise ValueError(f"The index holds no {kind} yet.")
    if not 1 <= k <= size:
        raise ValueError(f"k must be from 1 to {size}, the number of {kind} in the index, not {k}.")


def checked_vectors(vectors: Vectors, dim: int | None) -> np.ndarray:
    """Return (n, dim) unit vectors as a float32 array; ``dim`` is None where any width will do."""
    if isinstance(vectors, Tensor):
        vectors = vectors.detach().float().cpu().numpy()
    array = np.asarray(vectors, dtype=np.float32)
    if array.ndim != 2:
        raise ValueError(f"Vectors must be (n, dim), not of shape {array.shape}.")
    width = array.shape[1]
    if dim is not None and width != dim:
        raise ValueError(f"The vectors have {width} dimensions, but the index has {dim}.")
    # Half precision is off by up to 5e-4. "Not within" also finds NaN.
    lengths = np.linalg.norm(array, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) < 2e-3))
    if len(wrong):
        length = lengths[wrong[0]]
        raise ValueError(f"Vectors must have length 1, but row {wrong[0]} has {length:.4g}.")
    return array


def checked_names(kind: str, names: Iterable[Any], n_vectors: int, known: list[Any]) -> list[Any]:
    """Return one name for each vector, none of them ``known`` or twice."""
    names = list(names)
    _check_lengths("vectors", range(n_vectors), names)
    if len({*known, *names}) < len(known) + len(names):
        raise ValueError(f"Each name may stand among the {kind} only once.")
    return names


def _check_lengths(what: str, items: Sequence[Any], names: Sequence[Any]) -> None:
    if len(items) != len(names):
        raise ValueError(f"{len(items)} {what} came with {len(names)} names.")


def _as_list(items: Any) -> list[Any]:
    return [items] if isinstance(items, ImageLike) else list(items)
