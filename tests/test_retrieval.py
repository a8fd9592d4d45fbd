"""The index against a full sort, its file format, and each way to use it wrongly."""

import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from minicliplib.retrieval import Index, _better, path_of, stored_index

DIM = 16
PATHS = [Path(f"photos/{name}.jpg") for name in ("dog", "cat", "boat", "tree", "house", "kite")]


class StandIn:
    """Reads a sentence and the photo `photos/<sentence>.jpg` as the same vector; counts what it was shown."""

    dim = DIM

    def __init__(self):
        self.shown = []

    def encode_text(self, texts):
        self.shown += texts
        return torch.stack([self._vector(text) for text in texts])

    def encode_image(self, images):
        self.shown += images
        seen = [f"{i.size}" if isinstance(i, Image.Image) else Path(i).stem for i in images]
        return torch.stack([self._vector(word) for word in seen])

    def _vector(self, word):
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4])
        return torch.nn.functional.normalize(
            torch.randn(self.dim, generator=torch.Generator().manual_seed(seed)), dim=0
        )


@pytest.fixture
def index():
    return Index(StandIn()).add_images(PATHS).add_captions(["dog", "cat", "a boat"])


def unit(rng, n, dim=DIM):
    vectors = rng.standard_normal((n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def of_vectors(vectors, kind="images"):
    return Index().add_vectors(kind, vectors, [str(row) for row in range(len(vectors))])


def full_sort(queries, stored, k):
    """Best first, ties to the lower row, in plain Python."""
    top = []
    for query in queries.astype(np.float64):
        scores = [round(float(query @ row), 9) for row in stored.astype(np.float64)]
        top.append(sorted(range(len(stored)), key=lambda row: (-scores[row], row))[:k])
    return top


@pytest.mark.parametrize("block", [1, 3, 64, 32768])
@pytest.mark.parametrize("k", [1, 10, 250])
def test_top_k_equals_a_full_sort(block, k):
    rng = np.random.default_rng(0)
    stored, queries = unit(rng, 250), unit(rng, 7)
    scores, rows = of_vectors(stored).search_vectors(queries, k, block=block)
    assert rows.tolist() == full_sort(queries, stored, k)
    assert scores == pytest.approx(np.take_along_axis(queries @ stored.T, rows, axis=1), abs=1e-6)
    assert scores.shape == rows.shape == (7, k)


@pytest.mark.parametrize("block", [1, 7, 40, 32768])
def test_ties_go_to_the_lower_row_whatever_the_block(block):
    rng = np.random.default_rng(1)
    few = unit(rng, 4, 100)
    stored, queries = few[rng.integers(0, 4, 150)], unit(rng, 5, 100)
    _, rows = of_vectors(stored).search_vectors(queries, 60, block=block)
    assert rows.tolist() == full_sort(queries, stored, 60)
    _, one_by_one = of_vectors(stored).search_vectors(queries[3:4], 60, block=block)
    assert one_by_one[0].tolist() == rows[3].tolist()


def test_many_queries_are_searched_within_a_budget_of_scores(monkeypatch):
    rng = np.random.default_rng(2)
    stored, queries = unit(rng, 90), unit(rng, 33)
    whole = of_vectors(stored).search_vectors(queries, 5)
    sizes = []

    def better(scores, rows, query, part, start, rough, k):
        sizes.append(len(rough))
        return _better(scores, rows, query, part, start, rough, k)

    monkeypatch.setattr("minicliplib.retrieval.SCORES_AT_A_TIME", 100)
    monkeypatch.setattr("minicliplib.retrieval._better", better)
    for one, other in zip(whole, of_vectors(stored).search_vectors(queries, 5), strict=True):
        assert np.array_equal(one, other)
    assert sizes == [3] * 33 * 30


def test_search_by_sentence_and_by_photo(index):
    best = index.search("cat", k=2)
    assert best[0] == (Path("photos/cat.jpg"), pytest.approx(1.0))
    assert best[1][1] < best[0][1]
    assert index.search(PATHS[0], k=1) == [(PATHS[0], pytest.approx(1.0))]
    assert index.search(Path("new/dog.jpg"), k=1, among="captions")[0][0] == "dog"
    assert len(index.search("boat", k=6)) == len(index) == 6
    assert (
        index.search("photos/dog.jpg", k=1)[0][1] < 0.999
    )  # a string is a sentence, even if it looks like a path


def test_each_image_and_caption_is_in_once(index):
    index.add_images([PATHS[0], "./photos/dog.jpg", "photos/new.jpg", Path("photos/new.jpg")])
    index.add_captions(["cat", "new", "new"]).add_captions("dog")
    assert index.names["images"] == [*PATHS, Path("photos/new.jpg")]
    assert index.names["captions"] == ["dog", "cat", "a boat", "new"]
    assert index.model.shown == [
        *PATHS,
        "dog",
        "cat",
        "a boat",
        "photos/new.jpg",
        "new",
    ]  # none read in vain
    found = [name for name, _ in index.search("dog", k=7)]
    assert len(set(found)) == 7
    assert len(index.vectors["images"]) == 7


def test_no_query_finds_nothing():
    scores, rows = of_vectors(unit(np.random.default_rng(4), 9)).search_vectors(
        np.empty((0, DIM)), 3
    )
    assert scores.shape == rows.shape == (0, 3)


def test_images_without_a_path_go_by_name_or_row():
    pictures = [Image.new("RGB", (size, 8)) for size in (5, 6, 7)]
    index = Index(StandIn()).add_images(["a.jpg", "a.jpg", pictures[0]]).add_images(pictures[1])
    index.add_images(pictures[2], names=["scene"]).add_images([pictures[2]], names=["scene"])
    assert index.names["images"] == [Path("a.jpg"), "image 1", "image 2", "scene"]
    assert index.search(pictures[1], k=1)[0][0] == "image 2"


def test_a_loaded_index_is_mapped_and_equal(index, tmp_path):
    index.add_images(["as a string.jpg"]).add_images([PATHS[0]], names=["by name"]).add_captions(
        ["kite"]
    )
    index.save(tmp_path / "index")
    loaded = Index.load(tmp_path / "index", StandIn())
    assert all(isinstance(loaded.vectors[kind], np.memmap) for kind in ("images", "captions"))
    assert (loaded.names, len(loaded)) == (index.names, 8)
    for query, among in (("kite", "images"), (PATHS[1], "captions")):
        assert loaded.search(query, k=3, among=among) == index.search(query, k=3, among=among)
    loaded.add_images(PATHS)
    assert len(loaded) == 8


def test_half_precision_halves_the_file_and_keeps_the_order(tmp_path):
    stored = unit(np.random.default_rng(3), 500)
    index = of_vectors(stored)
    index.save(tmp_path / "half", dtype=np.float16)
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

    monkeypatch.setattr("minicliplib.retrieval.write_atomically", power_cut)
    with pytest.raises(KeyboardInterrupt):
        loaded.add_images(["newer.jpg"]).save(tmp_path)
    assert len(Index.load(tmp_path)) == 7


def test_an_index_without_a_model_takes_and_finds_vectors(tmp_path):
    index = of_vectors(np.eye(3), "captions")
    index.save(tmp_path)
    scores, rows = Index.load(tmp_path).search_vectors(torch.eye(3)[2:], 2, among="captions")
    assert (scores.tolist(), rows.tolist()) == ([[1.0, 0.0]], [[2, 0]])
    with pytest.raises(ValueError, match="without a model"):
        index.search("dog", k=1, among="captions")
    with pytest.raises(ValueError, match="without a model"):
        Index().add_images(PATHS)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda i: i.search("dog", k=7),
            "k must be from 1 to 6, the number of images in the index, not 7",
        ),
        (lambda i: i.search("dog", k=4, among="captions"), "from 1 to 3, the number of captions"),
        (lambda i: i.search("dog", k=0), "not 0"),
        (lambda i: i.search("  \n"), "query is empty"),
        (lambda i: i.search("dog", among="videos"), "images and captions, not 'videos'"),
        (lambda i: Index(StandIn()).search("dog"), "from 1 to 0, the number of images"),
        (lambda i: i.search_vectors(np.eye(3), 1), "have 3 dimensions, but the index has 16"),
        (lambda i: i.search_vectors(np.ones(DIM), 1), r"\(n, dim\)"),
        (lambda i: i.search_vectors(np.ones((1, DIM)), 1), "length 1, row 0 has 4"),
        (lambda i: i.add_vectors("images", np.eye(DIM)[:2] * 1.01, ["x", "y"]), "length 1"),
        (lambda i: i.add_vectors("images", np.full((1, DIM), np.nan), ["x"]), "row 0 has nan"),
        (lambda i: i.add_vectors("images", np.eye(3), ["x", "y", "z"]), "have 3 dimensions"),
        (lambda i: i.add_vectors("images", np.eye(DIM)[:2], ["x"]), "2 vectors came with 1 names"),
        (lambda i: i.add_vectors("images", np.eye(DIM)[:2], ["x", "x"]), "only once"),
        (lambda i: i.add_vectors("images", np.eye(DIM)[:1], PATHS[:1]), "only once"),
        (lambda i: i.add_vectors("videos", np.eye(DIM)[:1], ["x"]), "not 'videos'"),
        (lambda i: i.add_images(["x.jpg"], names=["x", "y"]), "1 images came with 2 names"),
    ],
)
def test_each_mistake_is_named_and_changes_nothing(index, ask, message):
    with pytest.raises(ValueError, match=message):
        ask(index)
    assert (len(index), len(index.names["captions"]), len(index.vectors["images"])) == (6, 3, 6)


def test_missing_damaged_and_foreign_indexes_are_named(index, tmp_path):
    with pytest.raises(ValueError, match=r"no whole index in .*nowhere: .*No such file"):
        Index.load(tmp_path / "nowhere")
    index.save(tmp_path)
    other = StandIn()
    other.dim = 8
    with pytest.raises(ValueError, match="have 8 dimensions, but the index has 16"):
        Index.load(tmp_path, other).search("dog", k=1)
    listing = tmp_path / "index.json"
    text = listing.read_text()
    vectors = tmp_path / json.loads(text)["files"]["images"]
    whole = vectors.read_bytes()
    for content in (whole[:-40], whole[:50], b"", None):
        vectors.unlink() if content is None else vectors.write_bytes(content)
        with pytest.raises(ValueError, match="no whole index"):
            Index.load(tmp_path)
    vectors.write_bytes(whole)
    for content in (text[:30], "[]", "{}"):
        listing.write_text(content)
        with pytest.raises(ValueError, match="no whole index"):
            Index.load(tmp_path)


def test_an_index_of_another_model_is_refused(index, tmp_path):
    one, other = StandIn(), StandIn()
    one.fingerprint, other.fingerprint = lambda: "one", lambda: "other"
    Index(one).add_images(PATHS).save(tmp_path)
    assert (
        len(Index.load(tmp_path, one))
        == len(Index.load(tmp_path))
        == len(Index.load(tmp_path, StandIn()))
        == 6
    )
    with pytest.raises(ValueError, match="was made with another model"):
        Index.load(tmp_path, other)


def test_a_stored_index_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    files = [tmp_path / f"{name}.png" for name in range(100)]
    for i, path in enumerate(files):
        Image.new("RGB", (i + 1, 4)).save(path)
    model, encode = StandIn(), StandIn.encode_image

    def cut_off(self, images):
        if len(self.shown) > 60:
            raise KeyboardInterrupt
        return encode(self, images)

    for name, value in (("SAVE_EVERY", 0), ("SAVING", np.inf), ("AT_A_TIME", 32)):
        monkeypatch.setattr(f"minicliplib.retrieval.{name}", value)
    monkeypatch.setattr(StandIn, "encode_image", cut_off)
    with pytest.raises(KeyboardInterrupt):
        stored_index(model, files, [], tmp_path / "index")
    monkeypatch.setattr(StandIn, "encode_image", encode)
    again = StandIn()
    index, faults = stored_index(again, files, [], tmp_path / "index")
    assert (len(index), faults) == (100, [])
    assert again.shown == files[64:]  # two batches of 32 were kept
    names = Index.load(tmp_path / "index").names["images"]
    assert [path_of(name) for name in names] == [path.resolve() for path in files]


def test_of_two_stored_indexes_in_one_folder_the_second_waits(tmp_path):
    picture = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(picture)
    (tmp_path / "index").mkdir()
    found = []
    with FileLock(tmp_path / "index" / "lock"):
        work = lambda: found.append(stored_index(StandIn(), [picture], [], tmp_path / "index"))
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(0.5)
        assert not found
    thread.join(60)
    assert len(found[0][0]) == 1
