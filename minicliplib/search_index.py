"""What every kind of search index shares: its protocol, what it refuses, and how it writes names.

``retrieval.Index`` and ``scale.engine.EngineIndex`` are such indexes.
"""

from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from PIL import Image
from torch import Tensor

from .encoders import ImageLike

KINDS = ("images", "captions")
Vectors = np.ndarray | Tensor
Found = list[tuple[Any, float]]  # (name, score), best first


class SearchIndex(Protocol):
    """What every index can do: ``Index`` in memory, ``scale.engine.EngineIndex`` on an engine.

    Vectors can be added and searched without a model. Bad input is a ``ValueError``.
    """
        ...

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


def new_images(images: Any, names: Any, known: list[Any]) -> dict[Any, ImageLike]:
    """Return by name the images whose names are not ``known``, each once."""
    images = _as_list(images)
    given = images if names is None else _as_list(names)
    _check_lengths("images", images, given)
    taken = set(known)
    new: dict[Any, ImageLike] = {}
    for image, name in zip(images, given, strict=True):
        if isinstance(name, Image.Image):
            name = f"image {len(known) + len(new)}"
        elif name is image:
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
