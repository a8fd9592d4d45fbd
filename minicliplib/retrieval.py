"""Exact search over unique images and captions: by sentence or by photo, in memory or straight from disk.

    index = Index(model).add_images(paths)
    index.search("two dogs playing", k=5)  # [(path, score), ...] best first

An index has one row per image, however many captions it has, or it would find the same photo five times.
Scores are cosine similarities: every vector has length 1.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Self
from uuid import uuid4

import numpy as np
import torch
from PIL import Image

from .metrics import bootstrap, chance, ranks_from_embeddings, summarise

KINDS = ("images", "captions")
SCORES_AT_A_TIME = 2**23
# Scores count in steps of 2**-30: finer than float32, coarser than the rounding of a sum of doubles, so that
# equal vectors tie exactly. Score and row then share one 64-bit key, and one order settles both.
STEPS = 2**30
ROW_BITS = 32
LAST_ROW = 2**ROW_BITS - 1


class Index:
    """Unit vectors of unique images and of captions, searched exactly.

    `names["images"]` and `names["captions"]` say what the rows of `vectors[...]`, (n, dim) or None, are;
    `owners` maps a caption to its images; `len(index)` counts images. A model needs `dim`, and
    `encode_image(list)` and `encode_text(list)`, both -> (n, dim); vectors can be added and searched without
    one. Bad input raises ValueError.
    """

    def __init__(self, model=None):
        self.model = model
        self.names = {kind: [] for kind in KINDS}
        self.vectors = dict.fromkeys(KINDS)
        self.owners = {}
        self._seen = {kind: set() for kind in KINDS}

    def __len__(self):
        return len(self.names["images"])

    def add_images(self, images, names=None, **options) -> Self:
        """Add paths or PIL images, each once; the options (`batch_size`, `progress`) go to `encode_image`.

        An image goes by its entry in `names`, else by its path, else by its row ("image 17"); one whose name
        is there already is skipped.
        """
        images = _as_list(images)
        names = [i if isinstance(i, str | Path) else None for i in images] if names is None else list(names)
        _same_length(images=images, names=names)
        new = self._unseen("images", names)
        if not new:
            return self
        vectors = self._model().encode_image([images[i] for i in new], **options)
        named = [f"image {row}" if names[i] is None else names[i] for row, i in enumerate(new, len(self))]
        return self.add_vectors("images", vectors, named)

    def add_captions(self, captions, owners=None) -> Self:
        """Add sentences, each once; `owners[j]`, if given, is the name of the image of caption j."""
        captions = _as_list(captions)
        if not all(caption.strip() for caption in captions):
            raise ValueError("a caption is empty")
        owners = [None] * len(captions) if owners is None else list(owners)
        _same_length(captions=captions, owners=owners)
        new = [captions[i] for i in self._unseen("captions", captions)]
        if new:
            self.add_vectors("captions", self._model().encode_text(new), new)
        for caption, owner in zip(captions, owners, strict=True):
            of_caption = self.owners.setdefault(caption, [])
            if owner is not None and owner not in of_caption:
                of_caption.append(owner)
        return self

    def add_vectors(self, kind: str, vectors, names) -> Self:
        """Add (n, dim) unit vectors under n new names to the "images" or the "captions"."""
        vectors, old = self._checked(vectors), self.vectors[_checked_kind(kind)]
        _same_length(vectors=vectors, names=names)
        if len(self._unseen(kind, names)) < len(names):
            raise ValueError(f"each name may stand among the {kind} only once")
        self.vectors[kind] = vectors if old is None else np.concatenate([old, vectors])
        self._register(kind, names)
        return self

    def search(self, query, k: int = 5, among: str = "images") -> list[tuple]:
        """Find the `k` best `(item, score)`, best first, for a sentence (any str) or an image (Path, PIL)."""
        if isinstance(query, str) and not query.strip():
            raise ValueError("the query is empty: give a sentence or an image")
        self._check_size(k, among)
        encode = self._model().encode_text if isinstance(query, str) else self._model().encode_image
        scores, rows = self.search_vectors(encode([query]), k, among)
        return [(self.names[among][row], float(score)) for row, score in zip(rows[0], scores[0], strict=True)]

    def search_vectors(self, vectors, k: int = 5, among: str = "images", block: int = 32768):
        """Find the exact top `k` of (q, dim) unit vectors: scores and rows, both (q, k).

        Ties go to the lower row. Reads at most `block` rows at a time and never sorts them all, so that
        memory does not grow with the index.
        """
        self._check_size(k, among)
        stored, queries = self.vectors[among], self._checked(vectors).astype(np.float64)  # doubles: see STEPS
        block = max(1, min(block, SCORES_AT_A_TIME // max(1, len(queries))))
        best = np.full((len(queries), k), np.iinfo(np.int64).min)
        for start in range(0, len(stored), block):
            rows = stored[start : start + block].astype(np.float64)
            best = _keep_best(best, queries @ rows.T, start)
        best = np.sort(best, axis=1)[:, ::-1]
        return ((best >> ROW_BITS) / STEPS).astype(np.float32), LAST_ROW - (best & LAST_ROW)

    def save(self, folder: str | Path, dtype=np.float32) -> None:
        """Write the index to `folder`; one cut short leaves the old index whole. `np.float16` halves it."""
        folder, token = Path(folder), uuid4().hex
        folder.mkdir(parents=True, exist_ok=True)
        saved = {"names": self.names, "owners": self.owners, "files": {}}
        for kind in (kind for kind in KINDS if self.vectors[kind] is not None):
            saved["files"][kind] = f"{kind}-{token}.index.npy"
            np.save(folder / saved["files"][kind], self.vectors[kind].astype(dtype, copy=False))
        draft = folder / f"{token}.tmp"
        draft.write_text(json.dumps(saved, default=_to_json), encoding="utf-8")
        os.replace(draft, folder / "index.json")  # from here on the new index counts
        for outdated in set(folder.glob("*.index.npy")) - {folder / file for file in saved["files"].values()}:
            with contextlib.suppress(OSError):  # Windows keeps a file that is still mapped
                outdated.unlink()

    @classmethod
    def load(cls, folder: str | Path, model=None) -> Self:
        """Open a saved index. Its vectors stay on disk, memory-mapped, and are read when a search needs them.

        Raises FileNotFoundError if there is none, ValueError if it is damaged or does not fit the model.
        """
        folder, index = Path(folder), cls(model)
        if not (folder / "index.json").is_file():
            raise FileNotFoundError(f"there is no index in {folder}: it has no index.json")
        try:
            index._read(folder)
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the index in {folder} is damaged: {error}") from error
        dim = getattr(model, "dim", None)
        if None not in (dim, index.dim) and dim != index.dim:
            raise ValueError(f"the index in {folder} has {index.dim} dimensions, but the model has {dim}")
        return index

    @property
    def dim(self) -> int | None:
        """Length of the vectors, None while there are none."""
        return next((vectors.shape[1] for vectors in self.vectors.values() if vectors is not None), None)

    def _read(self, folder):
        saved = json.loads((folder / "index.json").read_text(encoding="utf-8"), object_hook=_from_json)
        self.owners = saved["owners"]
        for kind in KINDS:
            self._register(kind, saved["names"][kind])
            if kind in saved["files"]:
                self.vectors[kind] = np.load(folder / saved["files"][kind], mmap_mode="r")
            _same_length(vectors=self.vectors[kind] if kind in saved["files"] else [], names=self.names[kind])

    def _register(self, kind, names):
        self.names[kind] += names
        self._seen[kind].update(_key(kind, name) for name in names)

    def _unseen(self, kind, names):
        """Positions of the names that are new here, each name once; None is always new."""
        seen, new = self._seen[kind].copy(), []
        for position, name in enumerate(names):
            key = _key(kind, name)
            if name is None or key not in seen:
                new.append(position)
            seen.add(key)
        return new

    def _model(self):
        if self.model is None:
            raise ValueError("this index cannot read sentences or images: it was made without a model")
        return self.model

    def _check_size(self, k, among):
        size = len(self.names[_checked_kind(among)])
        if size == 0:
            raise ValueError(f"the index holds no {among} yet")
        if not 1 <= k <= size:
            raise ValueError(f"k must be from 1 to {size}, the number of {among} in the index, not {k}")

    def _checked(self, vectors):
        """Tensor or array -> (n, dim) float32 array of unit vectors that fit the index."""
        vectors = vectors.detach().float().cpu() if isinstance(vectors, torch.Tensor) else vectors
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.ndim != 2:
            raise ValueError(f"vectors must be (n, dim), got shape {vectors.shape}")
        if self.dim not in (None, vectors.shape[1]):
            raise ValueError(f"the vectors have {vectors.shape[1]} dimensions, but the index has {self.dim}")
        lengths = np.linalg.norm(vectors, axis=1)
        # Half precision is off by up to 5e-4; written so that NaN is wrong too.
        wrong = np.flatnonzero(~(np.abs(lengths - 1) < 2e-3))
        if len(wrong):
            raise ValueError(f"vectors must have length 1, row {wrong[0]} has {lengths[wrong[0]]:.4g}")
        return vectors


def _keep_best(best, scores, first_row):
    """Merge the (q, k) best keys so far with (q, n) scores of the rows from `first_row` on; unordered."""
    rows = np.arange(first_row, first_row + scores.shape[1])
    keys = (np.rint(scores * STEPS).astype(np.int64) << ROW_BITS) + (LAST_ROW - rows)
    k = best.shape[1]
    return np.partition(np.concatenate([best, keys], axis=1), -k, axis=1)[:, -k:]


def _checked_kind(kind):
    if kind not in KINDS:
        raise ValueError(f"an index holds {' and '.join(KINDS)}, not {kind!r}")
    return kind


def _same_length(**lists):
    (one, first), (other, second) = lists.items()
    if len(first) != len(second):
        raise ValueError(f"{len(first)} {one} came with {len(second)} {other}")


def _as_list(items):
    return [items] if isinstance(items, str | Path | Image.Image) else list(items)


def _key(kind, name):
    """What makes a name the same: `a.jpg` and `./a.jpg` are one image."""
    return os.path.abspath(name) if kind == "images" and isinstance(name, str | Path) else name


def _to_json(value):
    return {"$path": str(value)} if isinstance(value, Path) else value.item()


def _from_json(value):
    return Path(value["$path"]) if value.keys() == {"$path"} else value


def evaluate(model, data, progress: bool = False) -> dict:
    """Measure retrieval both ways on a dataset, each image among all and each caption among all.

    Returns `scores`, `interval` and `chance`, as `summarise`, `bootstrap` and `chance` of metrics.py give them.
    """
    images = model.encode_image(data.images, progress=progress)
    captions = model.encode_text(data.flat_captions, progress=progress)
    ranked = ranks_from_embeddings(images, captions, data.owner)
    return {
        "scores": summarise(ranked, len(data)),
        "interval": bootstrap(ranked, data.owner),
        "chance": chance(data.owner, len(data)),
    }
