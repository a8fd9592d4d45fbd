"""Exact search over unique images and captions: by sentence or by photo, in memory or straight from disk.

    index = Index(model).add_images(paths)
    index.search("two dogs playing", k=5)  # [(path, score), ...] best first

An index has one row per image, however many captions it has, or it would find the same photo five times.
Scores are cosine similarities: every vector has length 1.
"""

import contextlib
import json
import re
import time
from pathlib import Path
from typing import Self

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from tqdm.auto import tqdm

from .config import no_bar, write_atomically
from .images import DataError, identity, readable
from .metrics import bootstrap, chance, ranks_from_embeddings, summarise

KINDS = ("images", "captions")
SCORES_AT_A_TIME = 2**23
ROUGH = 1e-4  # more than a product of unit vectors in single precision is ever off
SAVE_EVERY, SAVING = 30, 0.05  # seconds, while a stored index grows; the share of the time that may go into it
AT_A_TIME = 256  # images: enough that decoding runs ahead of the tower


class Index:
    """Unit vectors of unique images and of captions, searched exactly.

    `names["images"]` and `names["captions"]` say what the rows of `vectors[...]`, (n, dim), are; `len(index)`
    counts images. A model needs `encode_image(list)` and `encode_text(list)`, both -> (n, dim); vectors can be
    added and searched without one. Bad input raises ValueError.
    """

    def __init__(self, model=None):
        self.model = model
        self.names = {kind: [] for kind in KINDS}
        self.vectors = {}  # of the kinds that are there

    def __len__(self):
        return self._size("images")

    def _size(self, kind):
        return len(self.names[kind])

    def _name(self, kind, row):
        return self.names[kind][row]

    def add_images(self, images, names=None, **options) -> Self:
        """Add paths or PIL images, each once; the options (`batch_size`, `progress`) go to `encode_image`.

        An image goes by its entry in `names`, else by its path, else by its row ("image 17"); one whose name
        is there already is skipped.
        """
        images = _as_list(images)
        names = images if names is None else _as_list(names)
        _check_lengths("images", images, names)
        known, new = set(self.names["images"]), {}
        for image, name in zip(images, names, strict=True):
            if isinstance(name, Image.Image):
                name = f"image {len(self) + len(new)}"
            elif name is image:
                name = Path(image)
            if name not in known:
                new.setdefault(name, image)
        if new:
            self.add_vectors("images", self._model().encode_image(list(new.values()), **options), new)
        return self

    def add_captions(self, captions) -> Self:
        """Add sentences, each once."""
        known = set(self.names["captions"])
        new = list(dict.fromkeys(caption for caption in _as_list(captions) if caption not in known))
        return self.add_vectors("captions", self._model().encode_text(new), new) if new else self

    def add_vectors(self, kind: str, vectors, names) -> Self:
        """Add (n, dim) unit vectors under n new names to the "images" or the "captions"."""
        self._check(kind)
        vectors, names = self._checked(vectors), list(names)
        _check_lengths("vectors", vectors, names)
        if len({*(known := self.names[kind]), *names}) < len(known) + len(names):
            raise ValueError(f"each name may stand among the {kind} only once")
        self._append(kind, vectors, names)
        return self

    def _append(self, kind, vectors, names):
        self.vectors[kind] = np.concatenate([self.vectors[kind], vectors]) if kind in self.vectors else vectors
        self.names[kind] += names

    def search(self, query, k: int = 5, among: str = "images") -> list[tuple]:
        """Find the `k` best `(item, score)`, best first, for a sentence (any str) or an image (Path, PIL)."""
        if isinstance(query, str) and not query.strip():
            raise ValueError("the query is empty: give a sentence or an image")
        self._check(among, k)
        encode = self._model().encode_text if isinstance(query, str) else self._model().encode_image
        scores, rows = self.search_vectors(encode([query]), k, among)
        return [(self._name(among, row), float(score)) for row, score in zip(rows[0], scores[0], strict=True)]

    def search_vectors(self, vectors, k: int = 5, among: str = "images", block: int = 32768):
        """Find the exact top `k` of (q, dim) unit vectors: scores and rows, both (q, k).

        Ties go to the lower row. Reads at most `block` rows at a time and never sorts them all, so that
        memory does not grow with the index.
        """
        self._check(among, k)
        stored, queries = self.vectors[among], self._checked(vectors)
        block = max(1, min(block, SCORES_AT_A_TIME // max(1, len(queries))))
        found = [(np.empty(0, np.float32), np.empty(0, np.int64))] * len(queries)
        single = torch.empty(min(block, len(stored)), stored.shape[1])  # a block in single precision
        for start in range(0, len(stored), block):
            part = stored[start : start + block]
            rough = (torch.from_numpy(queries) @ single[: len(part)].copy_(torch.from_numpy(part)).T).numpy()
            for i, query in enumerate(queries.astype(np.float64)):
                found[i] = _better(*found[i], query, part, start, rough[i], k)
        shape = (len(queries), k)
        return np.reshape([s for s, _ in found], shape), np.reshape([rows for _, rows in found], shape)

    def save(self, folder: str | Path, dtype=np.float32) -> None:
        """Write the index to `folder`; one cut short leaves the old index whole. `np.float16` halves it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        outdated = list(folder.glob("*.index.npy"))
        files = {kind: f"{kind}-{time.time_ns()}.index.npy" for kind in self.vectors}
        for kind, file in files.items():
            np.save(folder / file, self.vectors[kind].astype(dtype, copy=False))
        record = json.dumps({"names": self.names, "files": files, "model": made_by(self.model)}, default=to_json)
        write_atomically(folder / "index.json", lambda part: part.write_text(record, encoding="utf-8"))
        for file in outdated:
            with contextlib.suppress(OSError):  # Windows keeps a file that is still mapped
                file.unlink()

    @classmethod
    def load(cls, folder: str | Path, model=None) -> Self:
        """Open a saved index; its vectors stay on disk, memory-mapped, and are read when a search needs them.

        With a model, one of another model is refused: their vectors do not share a space.
        """
        folder, index = Path(folder), cls(model)
        try:
            saved = json.loads((folder / "index.json").read_text(encoding="utf-8"), object_hook=from_json)
            index.names = saved["names"]
            index.vectors = {kind: np.load(folder / file, mmap_mode="c") for kind, file in saved["files"].items()}
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"there is no whole index in {folder}: {error}") from error
        check_maker(folder, model, saved.get("model"))
        return index

    def _model(self):
        if self.model is None:
            raise ValueError("this index cannot read sentences or images: it was made without a model")
        return self.model

    def _check(self, kind, k=None):
        if kind not in KINDS:
            raise ValueError(f"an index holds images and captions, not {kind!r}")
        size = self._size(kind)
        if k is not None and not 1 <= k <= size:
            raise ValueError(f"k must be from 1 to {size}, the number of {kind} in the index, not {k}")

    def _checked(self, vectors):
        """Tensor or array -> (n, dim) float32 array of unit vectors that fit the index."""
        vectors = vectors.detach().float().cpu() if isinstance(vectors, torch.Tensor) else vectors
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.ndim != 2:
            raise ValueError(f"vectors must be (n, dim), got shape {vectors.shape}")
        for stored in self.vectors.values():
            if stored.shape[1] != vectors.shape[1]:
                raise ValueError(f"the vectors have {vectors.shape[1]} dimensions, but the index has {stored.shape[1]}")
        lengths = np.linalg.norm(vectors, axis=1)
        # Half precision is off by up to 5e-4; written so that NaN is wrong too.
        wrong = np.flatnonzero(~(np.abs(lengths - 1) < 2e-3))
        if len(wrong):
            raise ValueError(f"vectors must have length 1, row {wrong[0]} has {lengths[wrong[0]]:.4g}")
        return vectors


def _top(scores, k):
    """Positions of the `k` highest of (n,) scores, best first, ties to the lower; sorts only what may be among them."""
    candidates = np.arange(len(scores))
    if k < len(scores):
        candidates = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]


def _better(scores, rows, query, part, start, rough, k):
    """Renew a query's top `k`, `scores` of `rows`, with those of a block's rows whose `rough` scores may reach it."""
    at_least = scores[-1] if len(scores) == k else -np.inf
    if k < len(rough):
        at_least = max(at_least, np.partition(rough, -k)[-k])
    near = np.flatnonzero(rough >= at_least - ROUGH)
    # Summed in double, rounded once: equal vectors get equal scores whatever the shape of the block.
    scores = np.concatenate([scores, (part[near].astype(np.float64) @ query).astype(np.float32)])
    best = _top(scores, k)
    return scores[best], np.concatenate([rows, start + near])[best]


def _check_lengths(what, items, names):
    if len(items) != len(names):
        raise ValueError(f"{len(items)} {what} came with {len(names)} names")


def _as_list(items):
    return [items] if isinstance(items, str | Path | Image.Image) else list(items)


def to_json(value):
    """Return a name that JSON does not know, a path or NumPy's number, in a form that it does."""
    return {"$path": str(value)} if isinstance(value, Path) else value.item()


def from_json(value):
    """Return the name that :func:`to_json` was given."""
    return Path(value["$path"]) if value.keys() == {"$path"} else value


def made_by(model):
    """Return what tells a model from others, or None where there is no model or it cannot say."""
    return model.fingerprint() if hasattr(model, "fingerprint") else None


def check_maker(place, model, maker):
    """Refuse an index that another model has made: their vectors do not share a space."""
    if None not in (made := made_by(model), maker) and made != maker:
        raise ValueError(f"the index in {place} was made with another model: name that one, or embed again")


def stored_index(model, images, captions, folder: str | Path, progress=False, **options) -> tuple[Index, list[str]]:
    """Index images and captions, kept in `folder` from call to call: only what is new or changed is embedded.

    In the index an image goes by its position in `images`, and one that cannot be read is left out: a sentence on each
    of those is returned, too. In the folder it goes by what `identity` tells of it (`path_of` leads back to the file).
    The options go to `encode_image`. Saves as it goes: an interruption loses about half a minute. Of two calls for one
    folder the second waits, and finds what the first has embedded.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with FileLock(Path(folder) / "lock"):
        place = lambda image: f"{image.parent.resolve()}/" if isinstance(image, Path) else ""
        position = {place(image) + identity(image): i for i, image in enumerate(images)}
        old, index, faults = Index(), Index(model), []
        with contextlib.suppress(ValueError):  # there is none yet, or not a whole one, or one of another model
            old = Index.load(folder, model)
        for kind, wanted in (("images", position), ("captions", dict.fromkeys(captions))):
            rows = [row for row, name in enumerate(old.names[kind]) if name in wanted]
            if rows:
                index.add_vectors(kind, old.vectors[kind][rows], [old.names[kind][row] for row in rows])
        index.add_captions(captions)
        known, saved, cost, waiting = set(index.names["images"]), time.monotonic(), 0, {}
        new = [name for name in position if name not in known]
        pictures = lambda names: [images[position[name]] for name in names]
        with tqdm(total=len(new), desc="images", unit="image", disable=no_bar(progress) or not new) as bar:
            for start in range(0, len(new), AT_A_TIME):
                batch = new[start : start + AT_A_TIME]
                try:
                    vectors = model.encode_image(pictures(batch), **options)
                except DataError:
                    good, bad = readable(pictures(batch))
                    batch, faults = [batch[i] for i in good], faults + bad
                    vectors = model.encode_image(pictures(batch), **options)
                waiting |= zip(batch, vectors.cpu(), strict=True)
                due = (now := time.monotonic()) - saved > SAVE_EVERY + cost / SAVING
                if waiting and (due or start + AT_A_TIME >= len(new)):  # many at once: adding copies the array
                    index.add_vectors("images", torch.stack([*waiting.values()]), waiting)
                    waiting.clear()
                if due:
                    index.save(folder)
                    saved, cost = time.monotonic(), time.monotonic() - now
                bar.update(min(AT_A_TIME, len(new) - start))
        if index.names != old.names:
            index.save(folder)
        index.names["images"] = [position[name] for name in index.names["images"]]
        return index, faults


def path_of(name: str | Path) -> Path:
    """Return the file behind the name of an image in a stored index; in the folder of one: path, size and time."""
    return Path(re.sub(r" \d+ \d+$", "", str(name)))


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
