"""The same search on an engine, for more vectors than one machine searches: LanceDB.

    index = EngineIndex("photos.lance", model).add_images(paths)
    index.search("two dogs playing", k=5)

The address is a folder, or "s3://bucket/photos", or "db://..." of a cluster. Until ``approximate``
is called, the engine compares a query with every vector, as ``retrieval.Index`` does.
"""

import json
from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import IvfFlat

from ..encoders import ImageLike
from ..retrieval import (
    KINDS,
    Found,
    Vectors,
    check_k,
    check_kind,
    checked_names,
    checked_vectors,
    embed_query,
    new_captions,
    new_images,
    required,
)
from .index_files import check_maker, from_json, made_by, to_json


class EngineIndex:
    """Vectors and names in an engine's tables, one for images and one for captions.

    It is a ``SearchIndex``. The engine keeps what is added, so nothing needs saving. Any number of
    clients may add and search at once, and each sees what the others have added.
    """

    def __init__(self, uri: str | Path, model: Any = None, **options: Any) -> None:
        """Open the index at ``uri``, or start one there.

        Args:
            uri: a folder or an address.
            model: what embeds; without one, vectors can be added and searched.
            options: for ``lancedb.connect``, such as keys and a region.

        Raises:
            ValueError: the index was made with another model.

        """
        self.model = model
        self._opened: dict[str, Any] = {}
        # Always look whether another client has added something.
        options.setdefault("read_consistency_interval", timedelta(0))
        self.engine = lancedb.connect(str(uri), **options)

        for kind in KINDS:
            table = self._table(kind)
            if table is not None:
                notes = table.schema.metadata or {}
                maker = notes.get(b"model", b"").decode()
                check_maker(uri, model, maker or None)

    def __len__(self) -> int:
        return self._size("images")

    @property
    def names(self) -> dict[str, list[Any]]:
        """All names, read from the engine."""
        names = {}
        for kind in KINDS:
            table = self._table(kind)
            names[kind] = []
            if table is not None:
                stored = table.search().select(["name"]).limit(table.count_rows()).to_arrow()
                names[kind] = _read_names(stored)
        return names

    def add_images(self, images: Any, names: Any = None, **options: Any) -> Self:
        """Embed and add images, each once, as ``Index.add_images`` does."""
        new = new_images(images, names, self.names["images"])
        if new:
            vectors = required(self.model).encode_image(list(new.values()), **options)
            self.add_vectors("images", vectors, new)
        return self

    def add_captions(self, captions: Sequence[str] | str) -> Self:
        """Embed and add sentences, each once."""
        new = new_captions(captions, self.names["captions"])
        if new:
            self.add_vectors("captions", required(self.model).encode_text(new), new)
        return self

    def add_vectors(self, kind: str, vectors: Vectors, names: Iterable[Hashable]) -> Self:
        """Add (n, dim) unit vectors under n new names to the "images" or to the "captions"."""
        check_kind(kind)
        added = checked_vectors(vectors, self._dim())
        names = checked_names(kind, names, len(added), self.names[kind])
        self._send(kind, added, names)
        return self

    def search(self, query: ImageLike, k: int = 5, among: str = "images") -> Found:
        """Return the ``k`` best ``(name, score)``, best first.

        A string is always a sentence; give an image as a ``Path`` or a PIL image.
        """
        check_k(k, among, self._size(among))
        scores, names = self.search_vectors(embed_query(self.model, query), k, among)
        return list(zip(names[0].tolist(), scores[0].tolist(), strict=True))

    def search_vectors(
        self, vectors: Vectors, k: int = 5, among: str = "images"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the top ``k`` of (q, dim) unit vectors: scores and names, both (q, k)."""
        check_k(k, among, self._size(among))
        queries = checked_vectors(vectors, self._dim())
        table = self._table(among)
        scores = np.empty((len(queries), k), np.float32)
        names = np.empty((len(queries), k), object)
        for row, query in enumerate(queries):
            # 0 is no limit: the engine reads as many clusters as it takes to find k.
            request = table.search(query).distance_type("dot").maximum_nprobes(0)
            found = request.limit(k).select(["name", "_distance"]).to_arrow()
            scores[row] = 1 - found["_distance"].to_numpy()
            names[row] = _read_names(found)
        return scores, names

    def approximate(self, kind: str = "images", **options: Any) -> None:
        """Cluster the vectors, so that a search reads only the nearest clusters.

        The options go to LanceDB's ``IvfFlat``.

        Raises:
            ValueError: there are no vectors of this kind.

        """
        table = self._table(kind)
        if table is None:
            raise ValueError(f"There are no {kind} in the index to cluster: add some first.")
        clusters = IvfFlat(distance_type="dot", **options)
        table.create_index("vector", config=clusters, replace=True)

    def _table(self, kind: str) -> Any:
        """Return LanceDB's table of a kind, which is opened once, or None while there is none."""
        if kind not in self._opened:
            with suppress(ValueError):
                self._opened[kind] = self.engine.open_table(kind)
        return self._opened.get(kind)

    def _size(self, kind: str) -> int:
        check_kind(kind)
        table = self._table(kind)
        return 0 if table is None else table.count_rows()

    def _dim(self) -> int | None:
        """Return the width of the vectors, or None while there are none."""
        for kind in KINDS:
            table = self._table(kind)
            if table is not None:
                return table.schema.field("vector").type.list_size
        return None

    def _send(self, kind: str, vectors: np.ndarray, names: list[Any]) -> None:
        """Send vectors to the engine. A name that two clients send at the same time is in once."""
        rows = _to_rows(vectors, names, made_by(self.model))
        if self._table(kind) is None:
            with suppress(ValueError):  # another client was quicker
                self.engine.create_table(kind, schema=rows.schema)
        self._table(kind).merge_insert("name").when_not_matched_insert_all().execute(rows)


def _to_rows(vectors: np.ndarray, names: list[Any], maker: str | None) -> pa.Table:
    """Return n names and (n, dim) vectors as the rows of an engine's table."""
    dim = vectors.shape[1]
    # The key makes the engine look, while it inserts, whether a name is there already.
    key = {"lance-schema:unenforced-primary-key": "true"}
    schema = pa.schema(
        [
            pa.field("name", pa.string(), nullable=False, metadata=key),
            pa.field("vector", pa.list_(pa.float32(), dim)),
        ],
        metadata={"model": maker or ""},
    )
    texts = [json.dumps(name, default=to_json) for name in names]
    columns = [
        pa.array(texts),
        pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim),
    ]
    return pa.table(columns, schema)


def _read_names(rows: pa.Table) -> list[Any]:
    """Return the names in an engine's rows."""
    return [json.loads(name, object_hook=from_json) for name in rows["name"].to_pylist()]
