"""The same index on a search engine, where one machine's exact search is not enough: LanceDB, embedded or served.

    index = EngineIndex("photos.lance", model).add_images(paths)  # or "s3://bucket/photos", or "db://..." of a cluster
    index.search("two dogs playing", k=5)

Until `approximate` is called, the engine, too, compares a query with every vector.
"""

import json
from types import SimpleNamespace

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import IvfFlat

from .retrieval import Index, from_json, to_json


class EngineIndex(Index):
    """An `Index` whose vectors lie in an engine's tables, one for images and one for captions; each add is kept."""

    def __init__(self, uri, model=None, **options):
        """Open or start the index at `uri`, a folder or an address; the options (keys, region) go to LanceDB."""
        super().__init__(model)
        self.engine = lancedb.connect(str(uri), **options)
        self.tables = {kind: self.engine.open_table(kind) for kind in self.names if kind in self._kept()}
        for kind, table in self.tables.items():
            stored = table.search().select(["row", "name"]).limit(table.count_rows()).to_arrow().sort_by("row")
            self.names[kind] = [json.loads(name, object_hook=from_json) for name in stored["name"].to_pylist()]
            self._shape(kind)

    def _kept(self):
        return self.engine.list_tables().tables

    def _shape(self, kind):
        dim = self.tables[kind].schema.field("vector").type.list_size
        self.vectors[kind] = SimpleNamespace(shape=(len(self.names[kind]), dim))

    def _append(self, kind, vectors, names):
        """Send (n, dim) vectors to the engine, which holds them from then on."""
        start = len(self.names[kind])
        rows = pa.table(
            {
                "row": pa.array(range(start, start + len(names))),
                "name": [json.dumps(name, default=to_json) for name in names],
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
            }
        )
        if kind in self.tables:
            self.tables[kind].add(rows)
        else:
            self.tables[kind] = self.engine.create_table(kind, rows)
        self.names[kind] += names
        self._shape(kind)

    def search_vectors(self, vectors, k=5, among="images"):
        """Find the top `k` of (q, dim) unit vectors: scores and rows, both (q, k), as :meth:`Index.search_vectors`."""
        self._check(among, k)
        scores, rows = [], []
        for query in self._checked(vectors):
            found = self.tables[among].search(query).distance_type("dot").limit(k).select(["row", "_distance"])
            found = found.to_arrow().sort_by([("_distance", "ascending"), ("row", "ascending")])
            scores.append(1 - found["_distance"].to_numpy())
            rows.append(found["row"].to_numpy())
        return np.array(scores, np.float32), np.array(rows)

    def approximate(self, kind="images", **options):
        """Cluster the vectors (LanceDB's IvfFlat, which takes the options): a search then reads the nearest only."""
        self.tables[kind].create_index("vector", config=IvfFlat(distance_type="dot", **options), replace=True)

    def save(self, *_):
        """Do nothing: the engine has kept every vector since it was added."""

    def load(self, *_):
        """Refuse: `EngineIndex(uri)` opens an index that is there."""
        raise TypeError("EngineIndex(uri) opens what is there already")
