"""Indexes in general: what each kind can do, which model made it, and how it is kept in files."""

import json
import time
from collections.abc import Hashable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import DTypeLike

from ..encoders import ImageLike
from ..paths import write_atomically
from ..retrieval import Found, Index, Vectors

Names = dict[str, list[Any]]
Arrays = dict[str, np.ndarray]


@runtime_checkable
class SearchIndex(Protocol):
    """What every index can do: ``Index`` in memory, ``scale.engine.EngineIndex`` on an engine.

    Vectors can be added and searched without a model. Bad input is a ``ValueError``.
    """

    @property
    def names(self) -> dict[str, list[Any]]:
        """What is in the index, under "images" and under "captions"."""
        ...

    def __len__(self) -> int:
        """Count the images."""
        ...

    def add_images(self, images: Any, names: Any = None, **options: Any) -> Self:
        """Embed and add images, each once."""
        ...

    def add_captions(self, captions: Any) -> Self:
        """Embed and add sentences, each once."""
        ...

    def add_vectors(self, kind: str, vectors: Vectors, names: Iterable[Hashable]) -> Self:
        """Add (n, dim) unit vectors under n new names."""
        ...

    def search(self, query: ImageLike, k: int = 5, among: str = "images") -> Found:
        """Return the ``k`` best ``(name, score)``, best first."""
        ...

    def search_vectors(
        self, vectors: Vectors, k: int = 5, among: str = "images"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the top ``k`` of (q, dim) unit vectors: scores and items, both (q, k)."""
        ...


def write_index(index: Index, folder: Path, dtype: DTypeLike) -> None:
    """Write an index to ``folder``; an interruption leaves the old one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    outdated = list(folder.glob("*.index.npy"))

    # The new arrays stand beside the old ones until the list names them.
    files = {}
    for kind, vectors in index.vectors.items():
        files[kind] = f"{kind}-{time.time_ns()}.index.npy"
        np.save(folder / files[kind], vectors.astype(dtype, copy=False))
    record = {"names": index.names, "files": files, "model": made_by(index.model)}
    text = json.dumps(record, default=to_json)
    write_atomically(folder / "index.json", lambda part: part.write_text(text, encoding="utf-8"))
    for file in outdated:
        with suppress(OSError):  # Windows keeps a file that is still mapped
            file.unlink()


def read_index(folder: Path, model: Any) -> tuple[Names, Arrays]:
    """Return the names and the vectors, memory-mapped, of the index in ``folder``."""
    vectors = {}
    try:
        text = (folder / "index.json").read_text(encoding="utf-8")
        saved = json.loads(text, object_hook=from_json)
        names = saved["names"]
        for kind, file in saved["files"].items():
            vectors[kind] = np.load(folder / file, mmap_mode="c")
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"There is no whole index in {folder}: {error}.") from error
    check_maker(folder, model, saved.get("model"))
    return names, vectors


def to_json(value: Any) -> Any:
    """Return a name that JSON does not know, a path or NumPy's number, in a form that it does."""
    return {"$path": str(value)} if isinstance(value, Path) else value.item()


def from_json(value: dict[str, Any]) -> Any:
    """Return the name that ``to_json`` was given."""
    return Path(value["$path"]) if value.keys() == {"$path"} else value


def made_by(model: Any) -> str | None:
    """Return what tells a model from others; None for no model, or one that cannot say."""
    return model.fingerprint() if hasattr(model, "fingerprint") else None


def check_maker(place: str | Path, model: Any, maker: str | None) -> None:
    """Refuse an index that another model has made: their vectors do not share a space."""
    made = made_by(model)
    if made is not None and maker is not None and made != maker:
        raise ValueError(
            f"The index in {place} was made with another model: name it, or embed again."
        )
