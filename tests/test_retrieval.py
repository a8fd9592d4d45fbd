"""The index against a full sort, its file format, and each way to use it wrongly."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minicliplib import retrieval
from minicliplib.retrieval import Index
from minicliplib.scale import index_files
from minicliplib.scale.index_files import SearchIndex

DIM = 16
PATHS = [Path(f"photos/{name}.jpg") for name in ("dog", "cat", "boat", "tree", "house", "kite")]


class StandIn:
    """A model for which a sentence and the file `photos/<sentence>.jpg` have the same vector.

    It notes what it was shown.
    """

    dim = DIM

    def __init__(self):
        self.shown = []

    def encode_text(self, texts):
        self.shown += texts
        return torch.stack([self._vector(text) for text in texts])

    def encode_image(self, images):
        self.shown += images
        return torch.stack([self._vector(self._word(image)) for image in images])

    def _word(self, image):
        """Return the stem of a file's name, or the size of an image in memory."""
        return str(image.size) if isinstance(image, Image.Image) else Path(image).stem

    def _vector(self, word):
        """Return a random unit vector that depends on the word alone."""
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4])
        vector = torch.randn(self.dim, generator=torch.Generator().manual_seed(seed))
        return torch.nn.functional.normalize(vector, dim=0)


class Named(StandIn):
    """A stand-in that can tell itself from others."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def fingerprint(self):
        return self.name


@pytest.fixture
def index():
    return Index(StandIn()).add_images(PATHS).add_captions(["dog", "cat", "a boat"])


def unit(rng, n, dim=DIM):
    vectors = rng.standard_normal((n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def index_of(vectors, kind="images"):
    return Index().add_vectors(kind, vectors, [str(row) for row in range(len(vectors))])


def full_sort(queries, stored, k):
    """Best first, ties to the lower row, in plain Python."""
    top = []
    for query in queries.astype(np.float64):
        scores = [round(float(query @ row), 9) for row in stored.astype(np.float64)]
        order = sorted(range(len(stored)), key=lambda row: (-scores[row], row))
        top.append(order[:k])
    return top


def test_an_index_can_what_every_index_can(index):
    assert isinstance(index, SearchIndex)


@pytest.mark.parametrize("block", [1, 3, 64, 32768])
@pytest.mark.parametrize("k", [1, 10, 250])
def test_top_k_equals_a_full_sort(block, k):
    rng = np.random.default_rng(0)
    stored = unit(rng, 250)
    queries = unit(rng, 7)
    scores, rows = index_of(stored).search_vectors(queries, k, block=block)
    assert scores.shape == rows.shape == (7, k)
    assert rows.tolist() == full_sort(queries, stored, k)
    assert scores == pytest.approx(np.take_along_axis(queries @ stored.T, rows, axis=1), abs=1e-6)


@pytest.mark.parametrize("block", [1, 7, 40, 32768])
def test_ties_go_to_the_lower_row_whatever_the_block(block):
    # 150 vectors, of which only four differ.
    rng = np.random.default_rng(1)
    stored = unit(rng, 4, 100)[rng.integers(0, 4, 150)]
    queries = unit(rng, 5, 100)
    index = index_of(stored)

    _, rows = index.search_vectors(queries, 60, block=block)
    assert rows.tolist() == full_sort(queries, stored, 60)

    _, alone = index.search_vectors(queries[3:4], 60, block=block)
    assert alone[0].tolist() == rows[3].tolist()


def test_many_queries_are_searched_within_a_budget_of_scores(monkeypatch):
    rng = np.random.default_rng(2)
    index = index_of(unit(rng, 90))
    queries = unit(rng, 33)
    scores, rows = index.search_vectors(queries, 5)

    merge = retrieval.merge_block
    sizes = []

    def note_size(*arguments):
        sizes.append(len(arguments[-1]))
        return merge(*arguments)

    monkeypatch.setattr(retrieval, "merge_block", note_size)
    monkeypatch.setattr(retrieval, "SCORES_AT_A_TIME", 100)
    scores_in_parts, rows_in_parts = index.search_vectors(queries, 5)
    assert np.array_equal(scores_in_parts, scores)
    assert np.array_equal(rows_in_parts, rows)

    # 33 queries leave room for 3 of the 90 rows at a time.
    assert sizes == [3] * 33 * 30


def test_search_by_sentence_and_by_photo(index):
    best, second = index.search("cat", k=2)
    assert best == (Path("photos/cat.jpg"), pytest.approx(1.0))
    assert second[1] < best[1]
    assert index.search(PATHS[0], k=1) == [(PATHS[0], pytest.approx(1.0))]
    assert index.search(Path("new/dog.jpg"), k=1, among="captions")[0][0] == "dog"
    assert len(index.search("boat", k=6)) == len(index) == 6

    # A string is a sentence, even if it looks like a path.
    assert index.search("photos/dog.jpg", k=1)[0][1] < 0.999


def test_each_image_and_caption_is_in_once(index):
    index.add_images([PATHS[0], "./photos/dog.jpg", "photos/new.jpg", Path("photos/new.jpg")])
    index.add_captions(["cat", "new", "new"]).add_captions("dog")
    assert index.names["images"] == [*PATHS, Path("photos/new.jpg")]
    assert index.names["captions"] == ["dog", "cat", "a boat", "new"]
    assert len(index.vectors["images"]) == 7

    found = [name for name, _ in index.search("dog", k=7)]
    assert len(set(found)) == 7

    # The model was shown nothing twice, but for the query.
    sentences = ["dog", "cat", "a boat"]
    assert index.model.shown == [*PATHS, *sentences, "photos/new.jpg", "new", "dog"]


def test_no_query_finds_nothing():
    index = index_of(unit(np.random.default_rng(4), 9))
    scores, rows = index.search_vectors(np.empty((0, DIM)), 3)
    assert scores.shape == rows.shape == (0, 3)


def test_images_without_a_path_go_by_name_or_row():
    images = [Image.new("RGB", (size, 8)) for size in (5, 6, 7)]
    index = Index(StandIn()).add_images(["a.jpg", "a.jpg", images[0]]).add_images(images[1])
    index.add_images(images[2], names=["scene"]).add_images([images[2]], names=["scene"])
    assert index.names["images"] == [Path("a.jpg"), "image 1", "image 2", "scene"]
    assert index.search(images[1], k=1)[0][0] == "image 2"


def test_a_loaded_index_is_mapped_and_equal(index, tmp_path):
    index.add_images(["as a string.jpg"]).add_images([PATHS[0]], names=["by name"])
    index.add_captions(["kite"])
    index.save(tmp_path / "index")

    loaded = Index.load(tmp_path / "index", StandIn())
    assert isinstance(loaded.vectors["images"], np.memmap)
    assert isinstance(loaded.vectors["captions"], np.memmap)
    assert loaded.names == index.names
    assert len(loaded) == 8
    for query, among in (("kite", "images"), (PATHS[1], "captions")):
        assert loaded.search(query, 3, among) == index.search(query, 3, among)

    loaded.add_images(PATHS)
    assert len(loaded) == 8


def test_half_precision_halves_the_file_and_keeps_the_order(tmp_path):
    stored = unit(np.random.default_rng(3), 500)
    index_of(stored).save(tmp_path / "half", dtype=np.float16)
    half = Index.load(tmp_path / "half")
    assert half.vectors["images"].nbytes * 2 == stored.nbytes
    scores, rows = half.search_vectors(stored[:20], 1)
    assert rows[:, 0].tolist() == list(range(20))
    assert scores == pytest.approx(np.ones((20, 1)), abs=2e-3)


def test_saving_over_the_mapped_index_replaces_it_in_one_step(index, tmp_path, monkeypatch):
    index.save(tmp_path)
    keep = tmp_path / "holiday.npy"
    keep.write_bytes(b"not ours")

    loaded = Index.load(tmp_path, StandIn()).add_images(["new.jpg"])
    loaded.save(tmp_path)
    assert len(Index.load(tmp_path)) == 7
    assert len(list(tmp_path.iterdir())) == 4  # two arrays, one list, and the stranger
    assert keep.read_bytes() == b"not ours"

    def power_cut(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(index_files, "write_atomically", power_cut)
    with pytest.raises(KeyboardInterrupt):
        loaded.add_images(["newer.jpg"]).save(tmp_path)
    assert len(Index.load(tmp_path)) == 7


def test_an_index_without_a_model_takes_and_finds_vectors(tmp_path):
    index = index_of(np.eye(3), "captions")
    index.save(tmp_path)
    scores, rows = Index.load(tmp_path).search_vectors(torch.eye(3)[2:], 2, among="captions")
    assert scores.tolist() == [[1.0, 0.0]]
    assert rows.tolist() == [[2, 0]]
    with pytest.raises(ValueError, match="without a model"):
        index.search("dog", k=1, among="captions")
    with pytest.raises(ValueError, match="without a model"):
        Index().add_images(PATHS)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda i: i.search("dog", k=7), "from 1 to 6, the number of images in the index, not 7"),
        (lambda i: i.search("dog", k=4, among="captions"), "from 1 to 3, the number of captions"),
        (lambda i: i.search("dog", k=0), "not 0"),
        (lambda i: i.search("  \n"), "query is empty"),
        (lambda i: i.search("dog", among="videos"), "'videos'"),
        (lambda i: Index(StandIn()).search("dog"), "no images"),
        (lambda i: i.search_vectors(np.eye(3), 1), "3 dimensions, but the index has 16"),
        (lambda i: i.search_vectors(np.ones(DIM), 1), r"\(n, dim\)"),
        (lambda i: i.search_vectors(np.ones((1, DIM)), 1), "row 0 has 4"),
        (lambda i: i.add_vectors("images", np.eye(DIM)[:2] * 1.01, ["x", "y"]), "length 1"),
        (lambda i: i.add_vectors("images", np.full((1, DIM), np.nan), ["x"]), "row 0 has nan"),
        (lambda i: i.add_vectors("images", np.eye(3), ["x", "y", "z"]), "3 dimensions"),
        (lambda i: i.add_vectors("images", np.eye(DIM)[:2], ["x"]), "2 vectors .* 1 names"),
        (lambda i: i.add_vectors("images", np.eye(DIM)[:2], ["x", "x"]), "only once"),
        (lambda i: i.add_vectors("images", np.eye(DIM)[:1], PATHS[:1]), "only once"),
        (lambda i: i.add_vectors("videos", np.eye(DIM)[:1], ["x"]), "'videos'"),
        (lambda i: i.add_images(["x.jpg"], names=["x", "y"]), "1 images .* 2 names"),
    ],
)
def test_each_mistake_is_named_and_changes_nothing(index, ask, message):
    with pytest.raises(ValueError, match=message):
        ask(index)
    assert len(index) == 6
    assert len(index.names["captions"]) == 3
    assert len(index.vectors["images"]) == 6


def test_missing_damaged_and_foreign_indexes_are_named(index, tmp_path):
    with pytest.raises(ValueError, match=r"no whole index in .*nowhere: .*No such file"):
        Index.load(tmp_path / "nowhere")

    index.save(tmp_path)
    other = StandIn()
    other.dim = 8
    with pytest.raises(ValueError, match="8 dimensions, but the index has 16"):
        Index.load(tmp_path, other).search("dog", k=1)

    # Damage the vectors, then the list.
    listing = tmp_path / "index.json"
    text = listing.read_text()
    vectors = tmp_path / json.loads(text)["files"]["images"]
    whole = vectors.read_bytes()
    for content in (whole[:-40], whole[:50], b""):
        vectors.write_bytes(content)
        with pytest.raises(ValueError, match="no whole index"):
            Index.load(tmp_path)
    vectors.unlink()
    with pytest.raises(ValueError, match="no whole index"):
        Index.load(tmp_path)
    vectors.write_bytes(whole)
    for content in (text[:30], "[]", "{}"):
        listing.write_text(content)
        with pytest.raises(ValueError, match="no whole index"):
            Index.load(tmp_path)


def test_an_index_of_another_model_is_refused(tmp_path):
    Index(Named("one")).add_images(PATHS).save(tmp_path)
    for model in (Named("one"), StandIn(), None):
        assert len(Index.load(tmp_path, model)) == 6
    with pytest.raises(ValueError, match="another model"):
        Index.load(tmp_path, Named("other"))
