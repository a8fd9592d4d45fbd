"""Downloads from real servers and folders: verified, resumed, safely unpacked, done only once."""

import json
import os
import re
import stat
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torchvision
from dataset_files import write_image, write_zip

from minicliplib.datasets.download import download, fetch, unpack
from minicliplib.datasets.images import DataError, load_image
from minicliplib.datasets.labelled import load_labelled
from minicliplib.datasets.load import load_dataset

PHOTOS = {"train": "a.jpg", "dev": "b.jpg", "test": "c.jpg"}
PHOTO_ZIP = "Flickr8k_Dataset.zip"
TEXT_ZIP = "Flickr8k_text.zip"
FOLDERS = ["Flickr8k_Dataset", "Flickr8k_text"]  # what the zips become


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def mirror(tmp_path):
    """A folder with both zips of a tiny Flickr8k, packed on a Mac."""
    photos = {"__MACOSX/Flicker8k_Dataset/._a.jpg": b""}
    texts = {}
    tokens = []
    for split, name in PHOTOS.items():
        photos[f"Flicker8k_Dataset/{name}"] = os.urandom(100_000)
        texts[f"Flickr_8k.{split}Images.txt"] = name
        tokens.extend(f"{name}#{k}\tCaption {k} .\n" for k in range(5))
    texts["Flickr8k.token.txt"] = "".join(tokens)
    write_zip(tmp_path / "mirror" / PHOTO_ZIP, photos)
    write_zip(tmp_path / "mirror" / TEXT_ZIP, texts)
    return tmp_path / "mirror"


@contextmanager
def serve(folder, ranges=True, cut_at=None):
    """Serve a folder over HTTP; yield the URL and the list of requests as (path, Range header).

    Without ``ranges`` the server cannot resume. A whole file is cut off after ``cut_at`` bytes.
    """
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            requests.append((self.path, wanted))
            file = folder / self.path.lstrip("/")
            if not file.is_file():
                self.send_error(404)
                return

            body = file.read_bytes()
            start = 0
            if wanted and ranges:
                start = int(re.search(r"\d+", wanted)[0])
            if start >= len(body):
                self.send_error(416)
                return

            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            end = None if start else cut_at
            self.wfile.write(body[start:end])

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def assert_whole(root):
    for split, name in PHOTOS.items():
        data = load_dataset("flickr8k", split, root)
        assert [path.name for path in data.images] == [name]
        assert data.captions == [[f"Caption {k}." for k in range(5)]]


def get(root, *mirrors):
    return download("flickr8k", root, mirrors, progress=False)


def contents(root):
    return sorted(path.name for path in root.iterdir())


# ---- places --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "file URL", "list of paths"])
def test_download_from_a_folder(mirror, tmp_path, kind):
    places = {"folder": str(mirror), "file URL": mirror.as_uri(), "list of paths": [mirror]}
    root = download("flickr8k", tmp_path / "data", places[kind], progress=False)
    assert root == tmp_path / "data"
    assert_whole(root)
    assert contents(root) == FOLDERS
    assert contents(mirror) == [PHOTO_ZIP, TEXT_ZIP]
    assert not list(root.rglob("._*"))


def test_download_from_a_server_once(mirror, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    root = tmp_path / "data"
    with serve(mirror) as (url, requests):
        download("flickr8k", root, url)
        assert_whole(root)
        assert requests == [("/" + PHOTO_ZIP, None), ("/" + TEXT_ZIP, None)]
        download("flickr8k", root, url)
        assert len(requests) == 2
    assert contents(root) == FOLDERS
    # the progress bar
    assert PHOTO_ZIP in capsys.readouterr().err


def test_the_environment_names_a_mirror(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("MINICLIP_MIRROR", str(mirror))
    monkeypatch.setenv("MINICLIP_HOME", str(tmp_path / "home"))
    assert download("flickr8k", progress=False) == tmp_path / "home" / "flickr8k"
    assert_whole(tmp_path / "home" / "flickr8k")


def test_zips_put_into_the_root_by_hand_are_used_and_kept(mirror, tmp_path):
    with serve(tmp_path) as (url, requests):
        get(mirror, url)
        assert requests == []
    assert_whole(mirror)
    assert PHOTO_ZIP in contents(mirror)


def test_coco_comes_from_its_two_official_places(tmp_path):
    ids = range(501)
    photos = {f"val2017/{i}.jpg": b"" for i in ids}
    record = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in ids],
        "annotations": [{"image_id": i, "caption": "A thing."} for i in ids],
    }
    texts = {"annotations/captions_val2017.json": json.dumps(record)}
    mirror = tmp_path / "mirror"
    write_zip(mirror / "zips" / "val2017.zip", photos)
    write_zip(mirror / "annotations" / "annotations_trainval2017.zip", texts)

    root = tmp_path / "coco"
    with serve(mirror) as (url, requests):
        assert download("coco", root, url, progress=False) == root
    assert [path for path, _ in requests] == [
        "/zips/val2017.zip",
        "/annotations/annotations_trainval2017.zip",
    ]
    assert contents(root) == ["annotations_trainval2017", "val2017"]
    assert len(load_dataset("coco", "train", root)) == 1


def test_a_zip_of_class_folders_is_unpacked_and_found(tmp_path):
    write_image(tmp_path / "0.png")
    pixels = (tmp_path / "0.png").read_bytes()
    files = {"test/cat/0.png": pixels, "test/dog/0.png": pixels}
    write_zip(tmp_path / "cifar10_test.zip", files)
    root = download("cifar10", tmp_path / "here", [tmp_path], progress=False)
    assert load_labelled("cifar10", root).classes == ["cat", "dog"]
    # There is nothing left to do.
    assert download("cifar10", root, progress=False) == root


# ---- resuming ------------------------------------------------------------------------------------


def test_a_cut_off_download_is_resumed(mirror, tmp_path):
    root = tmp_path / "data"
    size = (mirror / PHOTO_ZIP).stat().st_size
    with serve(mirror, cut_at=200_000) as (url, requests):
        with pytest.raises(DataError, match=PHOTO_ZIP):
            get(root, url)
        have = (root / f"{PHOTO_ZIP}.part").stat().st_size
        assert 100_000 < have <= 200_000 < size
        assert contents(root) == [f"{PHOTO_ZIP}.part"]
        get(root, url)
        assert requests[1] == (f"/{PHOTO_ZIP}", f"bytes={have}-")
    assert_whole(root)
    assert contents(root) == FOLDERS


def test_a_server_that_cannot_resume_sends_all_again(mirror, tmp_path):
    target = tmp_path / PHOTO_ZIP
    (tmp_path / f"{PHOTO_ZIP}.part").write_bytes(b"x" * 1000)
    with serve(mirror, ranges=False) as (url, requests):
        fetch(url + PHOTO_ZIP, target, progress=False)
    assert requests == [(f"/{PHOTO_ZIP}", "bytes=1000-")]
    assert target.read_bytes() == (mirror / PHOTO_ZIP).read_bytes()


def test_a_part_longer_than_the_file_is_thrown_away(mirror, tmp_path):
    target = tmp_path / TEXT_ZIP
    (tmp_path / f"{TEXT_ZIP}.part").write_bytes(b"x" * 100_000)
    with serve(mirror) as (url, requests):
        fetch(url + TEXT_ZIP, target, progress=False)
    assert [wanted for _, wanted in requests] == ["bytes=100000-", None]
    assert target.read_bytes() == (mirror / TEXT_ZIP).read_bytes()


def test_a_part_of_another_file_is_found_out_and_forgotten(mirror, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    (root / f"{PHOTO_ZIP}.part").write_bytes(b"x" * 150_000)
    with serve(mirror) as (url, _):
        with pytest.raises(DataError, match="damaged"):
            get(root, url)
        assert contents(root) == []
        get(root, url)
    assert_whole(root)


# ---- failures ------------------------------------------------------------------------------------


def test_the_next_mirror_is_tried(mirror, tmp_path):
    # One byte inside a photo is wrong: only the checksum tells.
    content = bytearray((mirror / PHOTO_ZIP).read_bytes())
    content[1000] ^= 255
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / PHOTO_ZIP).write_bytes(content)
    with serve(mirror) as (url, requests):
        get(tmp_path / "data", tmp_path / "damaged", url)
    assert len(requests) == 2
    assert_whole(tmp_path / "data")


def test_when_all_mirrors_fail_each_reason_and_the_manual_way_are_told(tmp_path):
    (tmp_path / "html").mkdir()
    (tmp_path / "html" / PHOTO_ZIP).write_text("<html>Please log in</html>")
    with serve(tmp_path / "nothing") as (url, _), pytest.raises(DataError) as error:
        get(tmp_path / "data", tmp_path / "absent", tmp_path / "html", url, "http://127.0.0.1:9/")
    message = str(error.value)
    assert re.search(r"absent: .*No such file", message)
    assert re.search(r"html: .*not a zip", message)
    assert re.search(re.escape(url) + ": 404", message)
    assert re.search(r"127.0.0.1:9/: .*refused", message)
    assert f"put it into {tmp_path / 'data'}" in message
    assert contents(tmp_path / "data") == []


def test_only_what_can_be_downloaded_is():
    with pytest.raises(DataError, match=r"'sample'.*flickr8k"):
        download("sample")


def test_torchvisions_failure_is_told_without_its_long_story(tmp_path, monkeypatch):
    def refuse(root, download):
        raise OSError("no network\nand a long story")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", refuse)
    monkeypatch.delenv("MINICLIP_MIRROR", raising=False)
    with pytest.raises(DataError, match=r"cifar10 \(no network\).*cifar10_test.zip"):
        download("cifar10", tmp_path)


def test_a_half_dataset_in_the_root_is_named_and_left_alone(mirror, tmp_path):
    root = get(tmp_path / "data", mirror)
    (root / "Flickr8k_Dataset" / "c.jpg").unlink()
    with pytest.raises(DataError, match=r"not whole.*c.jpg"):
        get(root, mirror)
    assert contents(root / "Flickr8k_Dataset") == ["a.jpg", "b.jpg"]


def test_what_a_killed_run_left_is_replaced(mirror, tmp_path):
    root = tmp_path / "data"
    left = root / ".Flickr8k_Dataset.unpacking" / "Flicker8k_Dataset"
    left.mkdir(parents=True)
    (left / "old.jpg").touch()
    with pytest.raises(DataError, match="not complete"):
        load_dataset("flickr8k", "test", root)
    get(root, mirror)
    assert contents(root) == FOLDERS
    assert contents(root / "Flickr8k_Dataset") == ["a.jpg", "b.jpg", "c.jpg"]


# ---- unpacking -----------------------------------------------------------------------------------


def symlink(name):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        "../evil.txt",
        "a/../../evil.txt",
        "/tmp/evil.txt",
        "..\\evil.txt",
        "C:\\evil.txt",
        symlink("link"),
    ],
)
def test_a_zip_cannot_write_outside_its_folder(tmp_path, entry):
    archive = write_zip(tmp_path / "bad.zip", {"good.txt": "good", entry: "/etc"})
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    unpack(archive, inside / "target", progress=False)
    assert (inside / "target" / "good.txt").read_text() == "good"
    assert not any(path.is_symlink() for path in inside.rglob("*"))
    assert contents(inside) == ["target"]
    assert contents(tmp_path) == ["a", "bad.zip"]
    assert contents(tmp_path / "a") == ["b"]
    assert not Path("/tmp/evil.txt").exists()


def test_a_zip_cut_short_leaves_nothing(mirror, tmp_path):
    cut = tmp_path / "cut.zip"
    cut.write_bytes((mirror / PHOTO_ZIP).read_bytes()[:150_000])
    with pytest.raises(DataError, match=r"cut.zip .*damaged"):
        unpack(cut, tmp_path / "target", progress=False)
    assert contents(tmp_path) == ["cut.zip", "mirror"]


# ---- the real zips -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_flickr8k_gives_the_official_splits(tmp_path, real_data):
    zips = real_data(f"flickr8k/{PHOTO_ZIP}").parent
    root = get(tmp_path / "flickr8k", zips)
    assert len(list((root / "Flickr8k_Dataset").iterdir())) == 8091
    # download has checked all three splits
    assert len(load_dataset("flickr8k", "train", root)) == 6000
    test = load_dataset("flickr8k", "test", root)
    assert (len(test), len(test.flat_captions)) == (1000, 5000)
    assert test.images[0].name == "3385593926_d3e9c21170.jpg"
    assert test.captions[0][0] == "The dogs are in the snow in front of a fence."
    assert load_image(test.images[0]).mode == "RGB"


def test_a_part_of_coco_is_taken_where_it_lies(tmp_path, real_data):
    zips = real_data("coco/coco_val2017_subset.zip").parent
    root = download("coco", tmp_path / "coco", [zips], progress=False)
    images = {}
    captions = 0
    for split in ("train", "dev", "test"):
        data = load_dataset("coco", split, root)
        images[split] = len(data)
        captions += len(data.flat_captions)
    assert images == {"train": 1378, "dev": 250, "test": 250}
    assert captions == 9393
    # There is nothing left to do.
    assert download("coco", root, progress=False) == root
