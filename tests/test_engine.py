"""The index on LanceDB, embedded: the same answers as the exact one, on 100,000 vectors and from disk."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from test_retrieval import PATHS, StandIn, unit

from minicliplib.retrieval import Index
from minicliplib.scale.engine import EngineIndex


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    centres = unit(rng, 500, 256)  # as real collections do, these have many of a kind
    near = centres[rng.integers(500, size=100_000)] + 0.05 * rng.standard_normal((100_000, 256))
    return (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.slow
def test_100_000_vectors_are_found_as_the_exact_index_finds_them(vectors, tmp_path):
    names = list(range(len(vectors)))
    EngineIndex(tmp_path / "photos.lance").add_vectors("images", vectors, names)
    engine = EngineIndex(tmp_path / "photos.lance")
    assert len(engine) == 100_000
    assert engine.names["images"] == names
    exact = Index().add_vectors("images", vectors, names)
    for one, other in zip(
        engine.search_vectors(vectors[:9], 10), exact.search_vectors(vectors[:9], 10), strict=True
    ):
        assert np.allclose(one.astype(float), other, atol=1e-5)
    engine.approximate(num_partitions=64)
    found, truth = (
        engine.search_vectors(vectors[:9], 10)[1],
        exact.search_vectors(vectors[:9], 10)[1],
    )
    assert np.mean([len({*a} & {*b}) / 10 for a, b in zip(found, truth, strict=True)]) > 0.8
    scores, many = engine.search_vectors(vectors[:1], 50_000)  # more than the nearest clusters hold
    assert len({*many[0]}) == 50_000
    assert (np.diff(scores[0]) <= 0).all()


def test_clients_that_add_at_the_same_time_find_each_others(tmp_path):
    one, other = EngineIndex(tmp_path, StandIn()), EngineIndex(tmp_path, StandIn())
    one.add_images(["a/dog.jpg", "a/cat.jpg"])
    other.add_images(["b/boat.jpg", "a/cat.jpg"])
    vectors, both = unit(np.random.default_rng(0), 3), Barrier(2)

    def add(index, rows, names):
        both.wait()
        index._append(
            "images", vectors[rows], names
        )  # as when both have looked before either has added

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(add, (one, other), ([0, 1], [1, 2]), (["x", "y"], ["y", "z"])))
    for index in (one, other, EngineIndex(tmp_path, StandIn())):
        assert len(index) == 6
        assert sorted(map(str, index.names["images"])) == [
            "a/cat.jpg",
            "a/dog.jpg",
            "b/boat.jpg",
            "x",
            "y",
            "z",
        ]
        assert index.search("boat", 1)[0][0] == Path("b/boat.jpg")
        assert index.search_vectors(vectors, 1)[1].ravel().tolist() == ["x", "y", "z"]


def test_two_clients_may_begin_one_index(tmp_path):
    clients, vectors = [EngineIndex(tmp_path) for _ in range(2)], unit(np.random.default_rng(0), 40)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda index: index._append("images", vectors, list(range(40))), clients))
    assert len(clients[0]) == len(clients[1]) == 40


def test_an_index_of_another_model_is_refused(tmp_path):
    one, other = StandIn(), StandIn()
    one.fingerprint, other.fingerprint = lambda: "one", lambda: "other"
    EngineIndex(tmp_path, one).add_images(PATHS)
    assert len(EngineIndex(tmp_path, one)) == len(EngineIndex(tmp_path)) == 6
    assert (
        len(
            EngineIndex(tmp_path).add_vectors(
                "images", unit(np.random.default_rng(0), 1), ["by hand"]
            )
        )
        == 7
    )
    with pytest.raises(ValueError, match="was made with another model"):
        EngineIndex(tmp_path, other)


def test_sentences_and_photos_find_what_they_find_in_an_index(tmp_path):
    engine, plain = EngineIndex(tmp_path, StandIn()), Index(StandIn())
    for index in (engine, plain):
        index.add_images(PATHS[:4]).add_images(PATHS).add_captions(["dog", "cat", "a boat"])
    reopened = EngineIndex(tmp_path, StandIn())
    assert len(engine) == len(reopened) == len(plain) == 6
    for query, among in (
        ("kite", "images"),
        (PATHS[1], "captions"),
        (Path("photos/dog.jpg"), "images"),
    ):
        found = plain.search(query, 3, among)
        for index in (engine, reopened):
            assert [name for name, _ in index.search(query, 3, among)] == [
                name for name, _ in found
            ]
            assert [s for _, s in index.search(query, 3, among)] == pytest.approx(
                [s for _, s in found], abs=1e-5
            )
    assert len(reopened.add_images([*PATHS, "new.jpg"])) == 7


def test_mistakes_are_named_as_an_index_names_them(tmp_path):
    engine = EngineIndex(tmp_path, StandIn()).add_images(PATHS)
    with pytest.raises(ValueError, match="k must be from 1 to 6"):
        engine.search("dog", k=7)
    with pytest.raises(ValueError, match="the vectors have 8 dimensions, but the index has 16"):
        engine.search_vectors(unit(np.random.default_rng(0), 1, 8), 1)
    with pytest.raises(ValueError, match="only once"):
        engine.add_vectors("images", unit(np.random.default_rng(0), 1), [PATHS[0]])
    with pytest.raises(TypeError, match="opens what is there"):
        EngineIndex.load(tmp_path)
