"""The same index on a search engine, where one machine's exact search is not enough: LanceDB, embedded or served.

    index = EngineIndex("photos.lance", model).add_images(paths)  # or "s3://bucket/photos", or "db://..." of a cluster
    index.search("two dogs playing", k=5)

Until `approximate` is called, the engine, too, compares a query with every vector.
"""

import json
from contextlib import suppress
from datetime import timedelta
from types import SimpleNamespace

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import IvfFlat

from ..retrieval import KINDS, Index, check_maker, from_json, made_by, to_json


class EngineIndex(Index):
    """An `Index` whose vectors and names lie in an engine's tables, one for images and one for captions.

    Each add is kept; any number of clients may add and search at once, and each sees what the others have added.
    """

    def __init__(self, uri, model=None, **options):
        """Open or start the index at `uri`, a folder or an address; the options (keys, region) go to LanceDB."""
        self.model, self._opened = model, {}
        self.engine = lancedb.connect(
            str(uri), **{"read_consistency_interval": timedelta(0)} | options
        )
        for table in self._tables().values():
            check_maker(
                uri, model, (table.schema.metadata or {}).get(b"model", b"").decode() or None
            )

    def _tables(self):
        """The tables that are there, opened once; each answers with what all clients have added."""
        for kind in KINDS:
            if kind not in self._opened:
                with suppress(ValueError):  # there is none yet
                    self._opened[kind] = self.engine.open_table(kind)
        return self._opened

    @property
    def names(self):
        """All names, read from the engine."""
        names = {kind: [] for kind in KINDS}
        for kind, table in self._tables().items():
            stored = table.search().select(["name"]).limit(table.count_rows()).to_arrow()
            names[kind] = [
                json.loads(name, object_hook=from_json) for name in stored["name"].to_pylist()
            ]
        return names

    @property
    def vectors(self):
        """The shapes of the vectors, which stay with the engine."""
        width = lambda table: table.schema.field("vector").type.list_size
        return {
            kind: SimpleNamespace(shape=(t.count_rows(), width(t)))
            for kind, t in self._tables().items()
        }

    def _size(self, kind):
        return self._tables()[kind].count_rows() if kind in self._tables() else 0

    def _append(self, kind, vectors, names):
        """Send (n, dim) vectors to the engine; a name that another client adds at the same time is in once."""
        key = pa.field(
            "name",
            pa.string(),
            nullable=False,
            metadata={"lance-schema:unenforced-primary-key": "true"},
        )
        fields = [key, pa.field("vector", pa.list_(pa.float32(), vectors.shape[1]))]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        rows = [pa.array([json.dumps(name, default=to_json) for name in names]), vectors]
        rows = pa.table(rows, pa.schema(fields, {"model": made_by(self.model) or ""}))
        if kind not in self._tables():
            with suppress(ValueError):  # another client was quicker
                self.engine.create_table(kind, schema=rows.schema)
        self._tables()[kind].merge_insert("name").when_not_matched_insert_all().execute(rows)

    def search_vectors(self, vectors, k=5, among="images"):
        """Find the top `k` of (q, dim) unit vectors: scores and names, both (q, k)."""
        self._check(among, k)
        scores, names = np.empty((len(vectors), k), np.float32), np.empty((len(vectors), k), object)
        table = self._tables()[among]
        for i, query in enumerate(self._checked(vectors)):
            nearest = (
                table.search(query).distance_type("dot").maximum_nprobes(0)
            )  # as many clusters as k takes
            found = nearest.limit(k).select(["name", "_distance"]).to_arrow()
            scores[i] = 1 - found["_distance"].to_numpy()
            names[i] = [
                json.loads(name, object_hook=from_json) for name in found["name"].to_pylist()
            ]
        return scores, names

    def _name(self, kind, found):
        return found

    def approximate(self, kind="images", **options):
        """Cluster the vectors (LanceDB's IvfFlat, which takes the options): a search then reads the nearest only."""
        index = IvfFlat(distance_type="dot", **options)
        self._tables()[kind].create_index("vector", config=index, replace=True)

    def save(self, *_):
        """Do nothing: the engine has kept every vector since it was added."""

    def load(self, *_):
        """Refuse: `EngineIndex(uri)` opens an index that is there."""
        raise TypeError("EngineIndex(uri) opens what is there already")
