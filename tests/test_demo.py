"""What the demo does, with the shipped model and real files; then its server, without a browser."""

import copy
import io
import json
import os
import re
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from PIL import Image

import minicliplib as mc
from minicliplib.analysis.relevance import overlay
from minicliplib.apps import demo
from minicliplib.datasets.images import DataError
from minicliplib.scale import stored_index

ROOT = Path(__file__).resolve().parents[1]
CAT = 2  # rows of the free photos
COFFEE = 4
QUERY = "A cat looks at the camera."


@pytest.fixture(scope="module")
def model():
    return mc.load("everyday")


@pytest.fixture(scope="module")
def shown(model):
    """A demo of six photos and six scenes."""
    return demo.Demo(model, mc.load_dataset("photos+sample", "test", limit=6))


@pytest.fixture
def folder(shown, tmp_path):
    """A folder of three photos, two of them with captions."""
    for path in shown.data.images[:3]:
        shutil.copy(path, tmp_path)
    captions = "image,caption\nchelsea.png,Our cat.\ncamera.png,Our uncle.\n"
    (tmp_path / "captions.csv").write_text(captions)
    return tmp_path


@pytest.fixture
def embedded(model, monkeypatch):
    """How many images the model was asked to embed, call by call."""
    counts = []
    encode = model.encode_image

    def counting(images, *arguments, **options):
        counts.append(len(images) if isinstance(images, list) else 1)
        return encode(images, *arguments, **options)

    monkeypatch.setattr(model, "encode_image", counting)
    return counts


def opened(model, folder):
    return demo.Demo(model, mc.load_dataset("folder", root=folder), folder)


# ---- the three methods -----------------------------------------------------------------------


def test_images_are_ranked_as_the_vectors_say(model, shown):
    found, summary = shown.find_images(QUERY, k=12)
    vectors = model.encode_image(shown.data.images, tta_views=1)
    cosines = (model.encode_text(QUERY) @ vectors.T)[0]
    best_first = cosines.argsort(descending=True).tolist()
    expected = [f"{cosines[row]:.2f}  {shown.name_of(row)}" for row in best_first]
    assert [label for _, label in found] == expected
    assert found[0][1].endswith("chelsea.png")
    assert re.fullmatch(r"The best 12 of 12 images, in \d+\.\d\d s\.", summary)


def test_a_number_of_results_out_of_range_becomes_the_nearest_one(shown):
    assert len(shown.find_images("a cat", k=99)[0]) == 12
    assert len(shown.find_images("a cat", k=0)[0]) == 1


def test_why_lays_the_relevance_map_over_the_same_image(model, shown):
    [(plain, plain_label)] = shown.find_images(QUERY, k=1, why=False)[0]
    [(marked, marked_label)] = shown.find_images(QUERY, k=1, why=True)[0]
    assert plain_label == marked_label
    assert plain.size == marked.size
    assert max(plain.size) <= 512

    image = shown.data.images[CAT]
    expected = overlay(image, mc.relevance_map(model, image, QUERY), 512)
    expected.thumbnail((512, 512))
    assert marked.tobytes() == expected.tobytes()


def test_a_long_sentence_is_said_to_be_cut(shown):
    _, summary = shown.find_images("a dog and " * 3000 + "a cat")
    assert "only its first 40 word pieces" in summary
    _, summary = shown.find_images("a dog and a cat")
    assert "pieces" not in summary


def test_captions_are_ranked_and_the_true_ones_ticked(model, shown):
    captions = shown.index.names["captions"]
    table, under_map, summary = shown.find_captions(CAT, k=len(captions))
    vector = model.encode_image(shown.data.images[CAT], tta_views=1)
    cosines = (vector @ model.encode_text(captions).T)[0]
    best_first = cosines.argsort(descending=True).tolist()
    assert [caption for _, caption, _ in table] == [captions[i] for i in best_first]
    ticked = {caption for _, caption, tick in table if tick}
    assert ticked == set(shown.data.captions[CAT])
    assert under_map is None
    assert summary.startswith(f"The best {len(captions)} of {len(captions)} captions, in ")


def test_of_an_upload_no_caption_is_known_to_be_true(shown):
    table, under_map, _ = shown.find_captions(shown.data.images[CAT], k=3, why=True)
    assert len(table) == 3
    assert not any(tick for _, _, tick in table)
    assert max(under_map.size) == 451  # the photo's own width


def test_labels_get_probabilities(shown):
    guesses, summary = shown.name(CAT, "dog, cat\ncup of coffee,, ", "a photo of a {}.")
    assert next(iter(guesses)) == "cat"
    assert list(guesses.values()) == sorted(guesses.values(), reverse=True)
    assert sum(guesses.values()) == pytest.approx(1, abs=1e-5)
    assert summary.startswith("The best 1 of 3 labels, in ")

    # the classifier says the same
    direct = mc.ZeroShotClassifier(shown.model, ["dog", "cat", "cup of coffee"], "a photo of a {}.")
    vector = shown.model.encode_image(shown.data.images[CAT], tta_views=1)
    expected = direct.probabilities(vector)[0].tolist()
    assert [guesses[name] for name in direct.class_names] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_there_can_be_many_labels(shown):
    labels = ",".join(f"thing {i}" for i in range(60))
    guesses, _ = shown.name(COFFEE, labels)
    assert len(guesses) == 60


def test_a_large_photo_is_fine(shown, tmp_path):
    with Image.open(shown.data.images[CAT]) as photo:
        photo.resize((8000, 6000)).save(tmp_path / "large.jpg", quality=30)
    guesses, _ = shown.name(tmp_path / "large.jpg", "cat, rocket")
    assert next(iter(guesses)) == "cat"


# ---- bad input is a sentence -----------------------------------------------------------------


def test_no_sentence_and_no_image(shown):
    with pytest.raises(ValueError, match="The sentence is empty"):
        shown.find_images(" \n")
    with pytest.raises(ValueError, match="no image yet"):
        shown.find_captions(None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("notes.txt", "is not an image of a known kind"),
        ("words.png", "cannot be read"),
        ("script.png", "cannot be read"),
        ("wide.png", "has more than 89 million pixels"),
        ("bomb.png", "has more than 89 million pixels"),
    ],
)
def test_a_bad_upload(shown, tmp_path, name, message):
    path = tmp_path / name
    if name == "wide.png":
        Image.new("1", (9500, 9500)).save(path)
    elif name == "bomb.png":
        Image.new("1", (14000, 14000)).save(path)
    elif name == "script.png":
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    else:
        path.write_text("words")
    with pytest.raises(ValueError, match=f"{name} {message}") as caught:
        shown.find_captions(path)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [
        (" , ", "a {}.", "give one or more labels"),
        ("cat, dog, cat", "a {}.", "'cat' appears twice"),
        ("cat, dog", "a photo", "needs {}"),
        ("cat, dog", "", "needs {}"),
        (
            ",".join(map(str, range(300))),
            "\n".join(mc.PHOTO_TEMPLATES),
            "300 labels in 7 templates are over 2,000 prompts",
        ),
    ],
)
def test_bad_labels(shown, labels, templates, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        shown.name(CAT, labels, templates)


# ---- the index is kept -----------------------------------------------------------------------


def test_a_folder_is_embedded_once_and_then_only_what_changed(model, folder, embedded):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    first = opened(model, folder)
    assert embedded == [3]

    # nothing of ours lies among their files
    after = {path: path.read_bytes() for path in folder.iterdir()}
    assert after == before

    # the next time nothing is embedded, and the answers are the same
    again = opened(model, folder)
    assert embedded == [3]
    labels = [label for _, label in again.find_images("a cat")[0]]
    assert labels == [label for _, label in first.find_images("a cat")[0]]

    # one file changes, one goes, and one comes, with a name that is there already
    with Image.open(folder / "camera.png") as photo:
        turned = photo.rotate(180)
    turned.save(folder / "camera.png")
    (folder / "astronaut.png").unlink()
    (folder / "below").mkdir()
    shutil.copy(folder / "chelsea.png", folder / "below")
    embedded.clear()
    changed = opened(model, folder)
    assert embedded == [2]
    names = sorted(changed.name_of(row) for row in range(3))
    assert names == ["camera.png", "chelsea.png", "chelsea.png"]
    vectors = model.encode_image(changed.data.images, tta_views=1).numpy()
    assert changed.index.vectors["images"] == pytest.approx(vectors, abs=1e-5)


def test_an_index_of_other_views_or_another_model_is_not_taken(
    model, folder, embedded, monkeypatch
):
    opened(model, folder)
    monkeypatch.setattr(demo, "TTA_VIEWS", 2)
    opened(model, folder)
    assert embedded == [3, 3]

    other = copy.deepcopy(model)
    assert other.fingerprint() == model.fingerprint()
    other.image_head.project.bias.data[0] += 1
    assert other.fingerprint() != model.fingerprint()


@pytest.mark.slow
def test_an_interrupted_index_goes_on_where_it_was(model, tmp_path, embedded, monkeypatch):
    for i in range(40):
        Image.new("RGB", (8, 8), (5 * i, 0, 0)).save(tmp_path / f"{i:02}.png")
    monkeypatch.setattr(stored_index, "SAVE_EVERY", 0)
    monkeypatch.setattr(stored_index, "AT_A_TIME", 32)
    counting = model.encode_image

    def breaking(images, **options):
        if embedded:
            raise ZeroDivisionError
        return counting(images, **options)

    # the second part breaks off, and only that is left to do
    monkeypatch.setattr(model, "encode_image", breaking)
    with pytest.raises(ZeroDivisionError):
        opened(model, tmp_path)
    monkeypatch.setattr(model, "encode_image", counting)
    assert len(opened(model, tmp_path).index) == 40
    assert embedded == [32, 8]


def test_a_damaged_index_is_made_anew(model, folder, embedded):
    opened(model, folder)
    for file in (mc.paths.data_root() / "cache").glob("index-folder-*/*.npy"):
        file.write_bytes(b"half")
    opened(model, folder)
    assert embedded == [3, 3]


def test_unreadable_files_are_named_and_left_out(model, folder):
    (folder / "broken.jpg").write_bytes(b"no image")
    shown = opened(model, folder)
    assert len(shown.index) == 3
    assert len(shown.faults) == 1
    assert "broken.jpg" in shown.faults[0]

    for path in folder.glob("*.png"):
        path.write_bytes(b"")
    message = r"No image in .* can be read, of 4. The first: .*astronaut.png"
    with pytest.raises(DataError, match=message):
        opened(model, folder)


# ---- the collection --------------------------------------------------------------------------


@pytest.mark.slow
def test_own_captions_are_the_ones_to_choose_from(model, folder):
    shown = opened(model, folder)
    assert sorted(shown.index.names["captions"]) == ["Our cat.", "Our uncle."]
    names = [shown.name_of(row) for row in range(3)]
    table, _, _ = shown.find_captions(names.index("chelsea.png"))
    assert [row[1:] for row in table] == [["Our cat.", "✓"], ["Our uncle.", ""]]

    # without any, those of the free images are
    (folder / "captions.csv").unlink()
    captions = opened(model, folder).index.names["captions"]
    assert "A ginger cat with green eyes." in captions


def test_flickr8k_is_shown_where_it_is_there(monkeypatch):
    assert demo.collection().name == "photos+sample"
    assert len(demo.collection()) == 6 + 120
    assert demo.collection("photos").name == "photos"

    def load_name(name, *options, **more_options):
        return name

    monkeypatch.setattr(demo, "load_dataset", load_name)
    assert demo.collection() == "flickr8k"


# ---- the server ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(shown):
    with demo.Server(shown) as server:
        yield server


def port_of(server):
    return int(server.url.rstrip("/").rsplit(":")[-1])


def call(server, name, *data):
    """Call a function of the page as its scripts do; returns what the server sent."""
    api = f"{server.url}gradio_api/call/{name}"
    event = requests.post(api, json={"data": data}, timeout=60).json()["event_id"]
    return requests.get(f"{api}/{event}", timeout=60).text


def file_at(path):
    """Return how the page's scripts name a file."""
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def test_it_listens_on_loopback_only(server):
    port = port_of(server)
    assert server.url == f"http://127.0.0.1:{port}/"
    # this address would answer, too, if it listened everywhere
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)


@pytest.mark.parametrize("name", ["README.md", "pyproject.toml", "minicliplib/apps/demo.py"])
def test_no_file_can_be_asked_for(server, name):
    path = ROOT / name
    assert path.exists()
    for spelling in (path, os.path.relpath(path), f"{server.folder}/../..{path}"):
        answer = requests.get(f"{server.url}gradio_api/file={spelling}", timeout=20)
        assert answer.status_code in (403, 404), spelling
        assert path.read_text()[:20] not in answer.text
    assert "event: error" in call(server, "find_captions", file_at(path), 3, False)


def test_no_address_is_fetched(server):
    upload = file_at(f"{server.url}logo.png")
    assert "none is fetched from an address" in call(server, "name", upload, "cat, dog", "a {}.")


@pytest.mark.parametrize("path", ["", "config", "gradio_api/info"])
def test_it_answers_to_its_own_names_only(server, path):
    port = port_of(server)
    for name in (f"127.0.0.1:{port}", f"localhost:{port}"):
        answer = requests.get(server.url + path, headers={"Host": name}, timeout=20)
        assert answer.status_code == 200
    answer = requests.get(server.url + path, headers={"Host": "evil.example"}, timeout=20)
    assert answer.status_code == 400
    assert "Mini-CLIP" not in answer.text


def test_a_page_of_another_site_cannot_read_the_answers(server):
    answer = requests.get(server.url, headers={"Origin": "http://evil.example"}, timeout=20)
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_many_visitors_get_whole_pictures(server):
    def ask(_):
        answer = call(server, "find_images", "a cat", 6, False)
        found = json.loads(answer.partition("data: ")[2])[0]
        for item in found:
            picture = requests.get(item["image"]["url"], timeout=60)
            Image.open(io.BytesIO(picture.content)).load()  # fails if it is cut off
        return len(found)

    with ThreadPoolExecutor(20) as visitors:
        assert list(visitors.map(ask, range(60))) == [6] * 60


def test_uploads_are_limited(server):
    url = f"{server.url}gradio_api/upload"
    big = {"files": ("big.png", b"0" * (demo.MOST_MEGABYTES * 2**20 + 1))}
    assert requests.post(url, files=big, timeout=60).status_code == 413

    words = {"files": ("words.txt", b"words")}
    [path] = requests.post(url, files=words, timeout=60).json()
    answer = call(server, "find_captions", file_at(path), 3, False)
    assert "words.txt is not an image of a known kind" in answer


def test_it_stops_cleanly_and_says_when_a_port_is_taken(shown):
    environment = dict(os.environ)
    with demo.Server(shown) as server:
        port = port_of(server)
        assert requests.get(server.url, timeout=20).status_code == 200
        assert any(server.folder.iterdir())
        while_serving = dict(os.environ)
        with pytest.raises(ValueError, match=f"127.0.0.1, port {port}"):
            demo.Server(shown, port=port)
        assert dict(os.environ) == while_serving

    # all is as it was before
    assert not server.folder.exists()
    assert dict(os.environ) == environment
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
