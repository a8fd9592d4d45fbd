"""Downloads from real local servers and folders: verified, resumed, safely unpacked, and done only once."""

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

import minicliplib as mc
from minicliplib.datasets.base import load_dataset
from minicliplib.datasets.download import download, fetch, unpack
from minicliplib.datasets.images import DataError, load_image
from minicliplib.datasets.labelled import LABELLED

PHOTOS = {"train": "a.jpg", "dev": "b.jpg", "test": "c.jpg"}
PHOTO_ZIP, TEXT_ZIP = "Flickr8k_Dataset.zip", "Flickr8k_text.zip"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def make_zip(path, files):
    with zipfile.ZipFile(path, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return path


@pytest.fixture
def mirror(tmp_path):
    """A folder with both zips of a tiny Flickr8k, packed on a Mac."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    photos = {f"Flicker8k_Dataset/{name}": os.urandom(100_000) for name in PHOTOS.values()}
    make_zip(folder / PHOTO_ZIP, photos | {"__MACOSX/Flicker8k_Dataset/._a.jpg": b""})
    tokens = "".join(f"{name}#{k}\tCaption {k} .\n" for name in PHOTOS.values() for k in range(5))
    lists = {f"Flickr_8k.{split}Images.txt": name for split, name in PHOTOS.items()}
    make_zip(folder / TEXT_ZIP, lists | {"Flickr8k.token.txt": tokens})
    return folder


@contextmanager
def serve(folder, ranges=True, cut_at=None):
    """Serve a folder over HTTP; yield the URL and the list of requests as (path, Range header)."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            requests.append((self.path, wanted))
            file = folder / self.path.lstrip("/")
            if not file.is_file():
                return self.send_error(404)
            body = file.read_bytes()
            start = int(re.search(r"\d+", wanted)[0]) if wanted and ranges else 0
            if start >= len(body):
                return self.send_error(416)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start : None if start else cut_at])

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


@pytest.mark.parametrize("kind", ["folder", "file URL", "path"])
def test_download_from_a_folder(mirror, tmp_path, kind):
    place = {"folder": str(mirror), "file URL": mirror.as_uri(), "path": mirror}[kind]
    root = download(
        "flickr8k", tmp_path / "data", [place] if kind == "path" else place, progress=False
    )
    assert root == tmp_path / "data"
    assert_whole(root)
    assert contents(root) == ["Flickr8k_Dataset", "Flickr8k_text"]
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
    assert contents(root) == ["Flickr8k_Dataset", "Flickr8k_text"]
    assert PHOTO_ZIP in capsys.readouterr().err  # the progress bar


def test_coco_comes_from_its_two_official_places(tmp_path):
    mirror, root = tmp_path / "mirror", tmp_path / "coco"
    for name in ("zips", "annotations"):
        (mirror / name).mkdir(parents=True)
    with zipfile.ZipFile(mirror / "zips" / "val2017.zip", "w") as file:
        for i in range(501):
            file.writestr(f"val2017/{i}.jpg", b"")
    record = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(501)],
        "annotations": [{"image_id": i, "caption": "A thing."} for i in range(501)],
    }
    with zipfile.ZipFile(mirror / "annotations" / "annotations_trainval2017.zip", "w") as file:
        file.writestr("annotations/captions_val2017.json", json.dumps(record))
    with serve(mirror) as (url, requests):
        assert download("coco", root, url, progress=False) == root
        assert [path for path, _ in requests] == [
            "/zips/val2017.zip",
            "/annotations/annotations_trainval2017.zip",
        ]
    assert contents(root) == ["annotations_trainval2017", "val2017"]
    assert len(load_dataset("coco", "train", root)) == 1


def test_a_part_of_coco_is_taken_where_it_lies(tmp_path):
    datasets = os.environ.get("MINICLIP_DATA") or Path(__file__).parents[2] / "shared" / "datasets"
    zips = Path(datasets) / "coco"
    if not (zips / "coco_val2017_subset.zip").exists():
        pytest.skip(
            f"no {zips / 'coco_val2017_subset.zip'}: set MINICLIP_DATA to a folder that holds coco/"
        )
    root = mc.download("coco", tmp_path / "coco", [zips], progress=False)
    data = {split: load_dataset("coco", split, root) for split in ("train", "dev", "test")}
    assert {split: len(part) for split, part in data.items()} == {
        "train": 1378,
        "dev": 250,
        "test": 250,
    }
    assert sum(len(part.flat_captions) for part in data.values()) == 9393
    assert mc.download("coco", root, progress=False) == root  # nothing left to do


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
    assert contents(root) == ["Flickr8k_Dataset", "Flickr8k_text"]


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


def test_the_next_mirror_is_tried(mirror, tmp_path):
    (tmp_path / "damaged").mkdir()
    content = bytearray((mirror / PHOTO_ZIP).read_bytes())
    content[1000] ^= 255  # one bit pattern inside a photo: only the checksum tells
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
    with pytest.raises(DataError, match=r"no download for 'sample'. Known: flickr8k"):
        download("sample")


def test_a_half_dataset_in_the_root_is_named_and_left_alone(mirror, tmp_path):
    root = get(tmp_path / "data", mirror)
    (root / "Flickr8k_Dataset" / "c.jpg").unlink()
    with pytest.raises(DataError, match=r"data is not whole: delete it.*c.jpg is missing"):
        get(root, mirror)
    assert contents(root / "Flickr8k_Dataset") == ["a.jpg", "b.jpg"]


def test_what_a_killed_run_left_is_replaced(mirror, tmp_path):
    left = tmp_path / "data" / ".Flickr8k_Dataset.unpacking" / "Flicker8k_Dataset"
    left.mkdir(parents=True)
    (left / "old.jpg").touch()
    with pytest.raises(DataError, match="Flickr8k is not complete"):
        load_dataset("flickr8k", "test", tmp_path / "data")
    get(tmp_path / "data", mirror)
    assert contents(tmp_path / "data") == ["Flickr8k_Dataset", "Flickr8k_text"]
    assert contents(tmp_path / "data" / "Flickr8k_Dataset") == ["a.jpg", "b.jpg", "c.jpg"]


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
    archive = make_zip(tmp_path / "bad.zip", {"good.txt": "good", entry: "/etc"})
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
    with pytest.raises(DataError, match=r"cut.zip is damaged"):
        unpack(cut, tmp_path / "target", progress=False)
    assert contents(tmp_path) == ["cut.zip", "mirror"]


def test_the_real_zips_give_the_official_splits(tmp_path):
    datasets = os.environ.get("MINICLIP_DATA") or Path(__file__).parents[2] / "shared" / "datasets"
    zips = Path(datasets) / "flickr8k"
    if not (zips / PHOTO_ZIP).exists():
        pytest.skip(
            f"no {zips / PHOTO_ZIP}: set MINICLIP_DATA to a folder that holds flickr8k/{PHOTO_ZIP}"
        )
    root = get(tmp_path / "flickr8k", zips)
    assert len(list((root / "Flickr8k_Dataset").iterdir())) == 8091
    assert len(load_dataset("flickr8k", "train", root)) == 6000  # download has checked all three
    test = load_dataset("flickr8k", "test", root)
    assert (len(test), len(test.flat_captions)) == (1000, 5000)
    assert (test.images[0].name, test.captions[0][0]) == (
        "3385593926_d3e9c21170.jpg",
        "The dogs are in the snow in front of a fence.",
    )
    assert load_image(test.images[0]).mode == "RGB"


def test_a_zip_of_class_folders_is_unpacked_and_found(tmp_path, pairs):
    with zipfile.ZipFile(tmp_path / "cifar10_test.zip", "w") as zipped:
        for name in ("cat", "dog"):
            pairs.images[0].save(tmp_path / "0.png")
            zipped.write(tmp_path / "0.png", f"test/{name}/0.png")
    root = mc.download("cifar10", tmp_path / "here", [tmp_path], progress=False)
    assert mc.load_labelled("cifar10", root).classes == ["cat", "dog"]
    assert mc.download("cifar10", root, progress=False) == root  # nothing left to do


def test_torchvisions_failure_is_one_sentence(tmp_path, monkeypatch):
    def refuse(root, download):
        raise OSError("no network\nand a long story")

    monkeypatch.setitem(LABELLED, "cifar10", refuse)
    monkeypatch.delenv("MINICLIP_MIRROR", raising=False)
    with pytest.raises(mc.DataError, match=r"could not fetch cifar10 \(no network\)"):
        mc.download("cifar10", tmp_path)
