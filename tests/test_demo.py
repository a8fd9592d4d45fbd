"""What the demo does, with the shipped model and real files; then its server, without a browser."""

import copy
import os
import re
import shutil
import socket
from pathlib import Path

import pytest
import requests
from PIL import Image

import minicliplib as mc
from minicliplib import demo
from minicliplib.images import DataError

CAT, COFFEE = 2, 4  # rows of the free photos


@pytest.fixture(scope="module")
def model():
    return mc.load("mixed")


@pytest.fixture(scope="module")
def shown(model):
    return demo.Demo(model, mc.load_dataset("photos+sample", "test", limit=6))


@pytest.fixture
def folder(shown, tmp_path):
    for path in shown.data.images[:3]:
        shutil.copy(path, tmp_path)
    (tmp_path / "captions.csv").write_text("image,caption\nchelsea.png,Our cat.\ncamera.png,Our uncle.\n")
    return tmp_path


@pytest.fixture
def embedded(model, monkeypatch):
    """Count the images that the model is asked to embed."""
    counts, encode = [], model.encode_image

    def counting(images, *arguments, **options):
        counts.append(len(images) if isinstance(images, list) else 1)
        return encode(images, *arguments, **options)

    monkeypatch.setattr(model, "encode_image", counting)
    return counts


def opened(model, folder):
    return demo.Demo(model, mc.load_dataset("folder", root=folder), folder)


def test_images_are_ranked_as_the_vectors_say(model, shown):
    found, account = shown.find_images("A cat looks at the camera.", k=12)
    cosines = model.encode_text("A cat looks at the camera.") @ model.encode_image(shown.data.images, looks=1).T
    order = cosines[0].argsort(descending=True).tolist()
    assert [label.split("  ")[1] for _, label in found] == [shown.called(row) for row in order]
    assert [label.split("  ")[0] for _, label in found] == [f"{cosines[0, row]:.2f}" for row in order]
    assert found[0][1].endswith("chelsea.png")
    assert re.fullmatch(r"The best 12 of 12 images, in \d+\.\d\d s\.", account)
    assert len(shown.find_images("a cat", k=99)[0]) == 12
    assert len(shown.find_images("a cat", k=0)[0]) == 1


def test_why_lays_the_relevance_map_over_the_same_image(model, shown):
    plain, marked = (shown.find_images("A cat looks at the camera.", k=1, why=why)[0][0] for why in (False, True))
    assert plain[1] == marked[1]
    assert plain[0].size == marked[0].size
    assert max(plain[0].size) <= 512
    heat = mc.relevance_map(model, shown.data.images[CAT], "A cat looks at the camera.")
    expected = mc.explain.overlay(shown.data.images[CAT], heat, 512)
    expected.thumbnail((512, 512))
    assert marked[0].tobytes() == expected.tobytes()


def test_a_long_sentence_is_said_to_be_cut(shown):
    assert "only its first 40 word pieces" in shown.find_images("a dog and " * 3000 + "a cat")[1]
    assert "pieces" not in shown.find_images("a dog and a cat")[1]


def test_captions_are_ranked_and_the_true_ones_ticked(model, shown):
    captions = shown.index.names["captions"]
    table, picture, account = shown.find_captions(CAT, k=len(captions))
    cosines = model.encode_image(shown.data.images[CAT], looks=1) @ model.encode_text(captions).T
    assert [row[1] for row in table] == [captions[i] for i in cosines[0].argsort(descending=True).tolist()]
    assert {row[1] for row in table if row[2]} == set(shown.data.captions[CAT])
    assert picture is None
    assert account.startswith(f"The best {len(captions)} of {len(captions)} captions, in ")
    table, picture, _ = shown.find_captions(shown.data.images[CAT], k=3, why=True)  # as if uploaded: no truth is known
    assert len(table) == 3
    assert not any(row[2] for row in table)
    assert max(picture.size) == 451  # the photo's own width


def test_labels_get_probabilities(shown):
    guess, account = shown.name(CAT, "dog, cat\ncup of coffee,, ", "a photo of a {}.")
    assert next(iter(guess)) == "cat"
    assert list(guess.values()) == sorted(guess.values(), reverse=True)
    assert sum(guess.values()) == pytest.approx(1, abs=1e-5)
    assert account.startswith("The best 1 of 3 labels, in ")
    direct = mc.ZeroShotClassifier(shown.model, ["dog", "cat", "cup of coffee"], "a photo of a {}.")
    expected = direct.probabilities(shown.model.encode_image(shown.data.images[CAT], looks=1))[0].tolist()
    assert [guess[name] for name in direct.class_names] == pytest.approx(expected, abs=1e-5)
    assert len(shown.name(COFFEE, ",".join(f"thing {i}" for i in range(60)))[0]) == 60


def test_bad_input_is_a_sentence(shown, tmp_path):
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "words.png").write_text("words")
    (tmp_path / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    Image.new("1", (9500, 9500)).save(tmp_path / "wide.png")
    Image.new("1", (14000, 14000)).save(tmp_path / "bomb.png")
    cases = [
        (lambda: shown.find_images(" \n"), "The sentence is empty"),
        (lambda: shown.find_captions(None), "no image yet"),
        (lambda: shown.find_captions(tmp_path / "notes.txt"), "notes.txt is not an image of a known kind"),
        (lambda: shown.find_captions(tmp_path / "words.png"), "words.png cannot be read"),
        (lambda: shown.find_captions(tmp_path / "script.png"), "script.png cannot be read"),
        (lambda: shown.find_captions(tmp_path / "wide.png"), "wide.png has more than 89 million pixels"),
        (lambda: shown.find_captions(tmp_path / "bomb.png"), "bomb.png has more than 89 million pixels"),
        (lambda: shown.name(CAT, " , "), "give one or more labels"),
        (lambda: shown.name(CAT, "cat, dog, cat"), "'cat' stands twice"),
        (lambda: shown.name(CAT, "cat, dog", "a photo"), "needs {}"),
        (lambda: shown.name(CAT, "cat, dog", ""), "needs {}"),
        (lambda: shown.name(CAT, ",".join(map(str, range(300)))), "300 labels in 7 templates are over 2,000 prompts"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            call()
        assert str(tmp_path) not in str(caught.value)


def test_a_large_photo_is_fine(shown, tmp_path):
    Image.open(shown.data.images[CAT]).resize((8000, 6000)).save(tmp_path / "large.jpg", quality=30)
    assert max(shown.name(tmp_path / "large.jpg", "cat, rocket")[0].items(), key=lambda x: x[1])[0] == "cat"


def test_a_folder_is_embedded_once_and_then_only_what_changed(model, folder, embedded):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    first = opened(model, folder)
    assert embedded == [3]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before  # nothing of ours lies among theirs
    again = opened(model, folder)
    assert embedded == [3]
    assert [label for _, label in again.find_images("a cat")[0]] == [
        label for _, label in first.find_images("a cat")[0]
    ]

    Image.open(folder / "camera.png").rotate(180).save(folder / "camera.png")  # changed
    (folder / "astronaut.png").unlink()  # gone
    (folder / "below").mkdir()
    shutil.copy(folder / "chelsea.png", folder / "below")  # new, of a name that is there
    embedded.clear()
    changed = opened(model, folder)
    assert embedded == [2]
    assert sorted(map(changed.called, range(3))) == ["camera.png", "chelsea.png", "chelsea.png"]
    vectors = model.encode_image(changed.data.images, looks=1).numpy()
    assert changed.index.vectors["images"] == pytest.approx(vectors, abs=1e-5)


def test_an_index_of_another_model_is_not_taken(model, folder, embedded, monkeypatch):
    opened(model, folder)
    monkeypatch.setattr(demo, "LOOKS", 2)
    opened(model, folder)
    assert embedded == [3, 3]
    other = copy.deepcopy(model)
    assert other.fingerprint() == model.fingerprint()
    other.image_head.project.bias.data[0] += 1
    assert other.fingerprint() != model.fingerprint()


def test_an_interrupted_index_goes_on_where_it_was(model, tmp_path, embedded, monkeypatch):
    for i in range(40):
        Image.new("RGB", (8, 8), (5 * i, 0, 0)).save(tmp_path / f"{i:02}.png")
    for name, value in (("SAVE_EVERY", 0), ("AT_A_TIME", 32)):
        monkeypatch.setattr(mc.retrieval, name, value)
    counting = model.encode_image
    monkeypatch.setattr(
        model, "encode_image", lambda images, **options: counting(images, **options) if not embedded else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        opened(model, tmp_path)
    monkeypatch.setattr(model, "encode_image", counting)
    assert len(opened(model, tmp_path).index) == 40
    assert embedded == [32, 8]


def test_a_damaged_index_is_made_anew(model, folder, embedded):
    opened(model, folder)
    for file in (mc.config.data_root() / "cache").glob("index-folder-*/*.npy"):
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
    with pytest.raises(DataError, match=r"No image in .* can be read, of 4. The first: .*astronaut.png"):
        opened(model, folder)


def test_own_captions_are_the_ones_to_choose_from(model, folder):
    shown = opened(model, folder)
    assert sorted(shown.index.names["captions"]) == ["Our cat.", "Our uncle."]
    row = [shown.called(i) for i in range(3)].index("chelsea.png")
    assert [r[1:] for r in shown.find_captions(row)[0]] == [["Our cat.", "✓"], ["Our uncle.", ""]]
    (folder / "captions.csv").unlink()
    free = opened(model, folder).index.names["captions"]  # of the free pictures
    assert "A ginger cat with green eyes." in free


def test_flickr8k_is_shown_where_it_is_there(tmp_path, monkeypatch):
    assert demo.collection().name == "photos+sample"
    assert len(demo.collection()) == 6 + 120
    assert demo.collection("photos").name == "photos"
    monkeypatch.setattr(demo, "load_dataset", lambda name, *rest, **more: name)
    assert demo.collection() == "flickr8k"


# ---- the server --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(shown):
    with demo.Server(shown) as server:
        yield server


def call(server, name, *data):
    """Call a function of the page as its scripts do; returns what the server sent."""
    api = f"{server.url}gradio_api/call/{name}"
    event = requests.post(api, json={"data": data}, timeout=60).json()["event_id"]
    return requests.get(f"{api}/{event}", timeout=60).text


def test_it_listens_on_loopback_only(server):
    port = int(server.url.rstrip("/").rsplit(":")[-1])
    assert server.url == f"http://127.0.0.1:{port}/"
    with pytest.raises(ConnectionRefusedError):  # open if it listened everywhere
        socket.create_connection(("127.0.0.2", port), timeout=5)


@pytest.mark.parametrize("name", ["README.md", "pyproject.toml", "minicliplib/demo.py"])
def test_no_file_can_be_asked_for(server, name, monkeypatch):
    path = Path(__file__).resolve().parents[1] / name
    assert path.exists()
    for way in (path, os.path.relpath(path), f"{server._folder.name}/../..{path}"):
        answer = requests.get(f"{server.url}gradio_api/file={way}", timeout=20)
        assert answer.status_code in (403, 404), way
        assert path.read_text()[:20] not in answer.text
    upload = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
    assert "event: error" in call(server, "find_captions", upload, 3, False)


def test_no_address_is_fetched(server):
    upload = {"path": f"{server.url}logo.png", "meta": {"_type": "gradio.FileData"}}
    assert "none is fetched from an address" in call(server, "name", upload, "cat, dog", "a {}.")


def test_uploads_are_limited(server):
    big = {"files": ("big.png", b"0" * (demo.MOST_MEGABYTES * 2**20 + 1))}
    assert requests.post(f"{server.url}gradio_api/upload", files=big, timeout=60).status_code == 413
    words = {"files": ("words.txt", b"words")}
    (path,) = requests.post(f"{server.url}gradio_api/upload", files=words, timeout=60).json()
    upload = {"path": path, "meta": {"_type": "gradio.FileData"}}
    assert "words.txt is not an image of a known kind" in call(server, "find_captions", upload, 3, False)


def test_it_stops_cleanly_and_says_when_a_port_is_taken(shown):
    with demo.Server(shown) as server:
        folder, port = Path(server._folder.name), int(server.url.rstrip("/").rsplit(":")[-1])
        assert requests.get(server.url, timeout=20).status_code == 200
        assert any(folder.iterdir())
        with pytest.raises(ValueError, match=f"cannot be served on 127.0.0.1, port {port}"):
            demo.Server(shown, port=port)
    assert not folder.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
