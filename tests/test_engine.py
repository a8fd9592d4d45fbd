"""The index on LanceDB, embedded: the same answers as the exact one, on 100,000 vectors too."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from test_retrieval import PATHS, Named, StandIn, unit

from minicliplib.retrieval import Index
from minicliplib.scale.engine import EngineIndex
from minicliplib.scale.index_files import SearchIndex


@pytest.fixture(scope="module")
def vectors():
    """100,000 unit vectors around 500 centres: real collections, too, have many of a kind."""
    rng = np.random.default_rng(0)
    centres = unit(rng, 500, 256)
    near = centres[rng.integers(500, size=100_000)] + 0.05 * rng.standard_normal((100_000, 256))
    return (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)


def shared(found, truth):
    """Return the share of the true top k that was found, over all queries."""
    shares = []
    for names, right in zip(found, truth, strict=True):
        shares.append(len(set(names) & set(right)) / len(right))
    return np.mean(shares)


@pytest.mark.slow
def test_100_000_vectors_are_found_as_the_exact_index_finds_them(vectors, tmp_path):
    names = list(range(len(vectors)))
    EngineIndex(tmp_path / "photos.lance").add_vectors("images", vectors, names)
    engine = EngineIndex(tmp_path / "photos.lance")
    assert len(engine) == 100_000
    assert engine.names["images"] == names

    exact = Index().add_vectors("images", vectors, names)
    true_scores, truth = exact.search_vectors(vectors[:9], 10)
    scores, found = engine.search_vectors(vectors[:9], 10)
    assert np.allclose(scores, true_scores, atol=1e-5)
    assert found.tolist() == truth.tolist()

    # Clustered, it is fast and finds most.
    engine.approximate(num_partitions=64)
    _, found = engine.search_vectors(vectors[:9], 10)
    assert shared(found, truth) > 0.8

    # More than the nearest clusters hold.
    scores, found = engine.search_vectors(vectors[:1], 50_000)
    assert len(set(found[0])) == 50_000
    assert (np.diff(scores[0]) <= 0).all()


def test_an_engine_can_what_every_index_can(tmp_path):
    assert isinstance(EngineIndex(tmp_path), SearchIndex)


def test_clients_that_add_at_the_same_time_find_each_others(tmp_path):
    one = EngineIndex(tmp_path, StandIn())
    other = EngineIndex(tmp_path, StandIn())
    one.add_images(["a/dog.jpg", "a/cat.jpg"])
    other.add_images(["b/boat.jpg", "a/cat.jpg"])

    # Both send "y", as when both have looked for it before either has added it.
    vectors = unit(np.random.default_rng(0), 3)
    both = Barrier(2)

    def send(index, rows, names):
        both.wait()
        index._send("images", vectors[rows], names)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(send, one, [0, 1], ["x", "y"])
        second = pool.submit(send, other, [1, 2], ["y", "z"])
        first.result()
        second.result()

    expected = ["a/cat.jpg", "a/dog.jpg", "b/boat.jpg", "x", "y", "z"]
    for index in (one, other, EngineIndex(tmp_path, StandIn())):
        assert len(index) == 6
        assert sorted(map(str, index.names["images"])) == expected
        assert index.search("boat", 1)[0][0] == Path("b/boat.jpg")
        _, names = index.search_vectors(vectors, 1)
        assert names.ravel().tolist() == ["x", "y", "z"]


def test_two_clients_may_begin_one_index(tmp_path):
    clients = [EngineIndex(tmp_path) for _ in range(2)]
    vectors = unit(np.random.default_rng(0), 40)

    def send(index):
        index._send("images", vectors, list(range(40)))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(send, clients))
    assert len(clients[0]) == len(clients[1]) == 40


def test_an_index_of_another_model_is_refused(tmp_path):
    EngineIndex(tmp_path, Named("one")).add_images(PATHS)
    assert len(EngineIndex(tmp_path, Named("one"))) == 6
    assert len(EngineIndex(tmp_path)) == 6

    by_hand = unit(np.random.default_rng(0), 1)
    assert len(EngineIndex(tmp_path).add_vectors("images", by_hand, ["by hand"])) == 7
    with pytest.raises(ValueError, match="another model"):
        EngineIndex(tmp_path, Named("other"))


@pytest.mark.parametrize(
    ("query", "among"),
    [("kite", "images"), (PATHS[1], "captions"), (Path("photos/dog.jpg"), "images")],
)
def test_sentences_and_photos_find_what_they_find_in_an_index(tmp_path, query, among):
    engine = EngineIndex(tmp_path, StandIn())
    plain = Index(StandIn())
    for index in (engine, plain):
        index.add_images(PATHS[:4]).add_images(PATHS).add_captions(["dog", "cat", "a boat"])
    reopened = EngineIndex(tmp_path, StandIn())
    assert len(engine) == len(reopened) == len(plain) == 6

    names, scores = zip(*plain.search(query, 3, among), strict=True)
    for index in (engine, reopened):
        found_names, found_scores = zip(*index.search(query, 3, among), strict=True)
        assert found_names == names
        assert found_scores == pytest.approx(scores, abs=1e-5)
    assert len(reopened.add_images([*PATHS, "new.jpg"])) == 7


def test_mistakes_are_named_as_an_index_names_them(tmp_path):
    engine = EngineIndex(tmp_path, StandIn())
    with pytest.raises(ValueError, match="no images"):
        engine.search("dog")
    with pytest.raises(ValueError, match="cluster"):
        engine.approximate()

    engine.add_images(PATHS)
    with pytest.raises(ValueError, match="k must be from 1 to 6"):
        engine.search("dog", k=7)
    with pytest.raises(ValueError, match="query is empty"):
        engine.search(" ")
    with pytest.raises(ValueError, match="'videos'"):
        engine.search("dog", among="videos")
    with pytest.raises(ValueError, match="8 dimensions, but the index has 16"):
        engine.search_vectors(unit(np.random.default_rng(0), 1, 8), 1)
    with pytest.raises(ValueError, match="only once"):
        engine.add_vectors("images", unit(np.random.default_rng(0), 1), [PATHS[0]])
    with pytest.raises(ValueError, match="without a model"):
        EngineIndex(tmp_path).add_images(["new.jpg"])
