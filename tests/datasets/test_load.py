"""Datasets by name: known names, joined names, limits, and what loading them does not load."""

import re
import subprocess
import sys

import pytest
from dataset_files import write_half_an_image, write_image, write_lines

from minicliplib.datasets.captions import clean_caption
from minicliplib.datasets.images import DataError, load_image
from minicliplib.datasets.load import DATASETS, load_dataset


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "flickr9k"}, r"'flickr9k'.*sample, flickr8k, coco, folder"),
        ({"name": "flickr8k", "split": "val"}, r"'val'.*train, dev, test"),
        ({"name": "sample", "on_bad": "ignore"}, r"ignore"),
        ({"name": "sample", "limit": 0}, r"limit=0"),
        ({"name": "imagenet+sample"}, r"'imagenet'"),
    ],
)
def test_unknown_names_are_refused_with_the_known(arguments, message):
    with pytest.raises(DataError, match=message):
        load_dataset(**arguments)


def test_sample_needs_no_download():
    data = load_dataset("sample", "dev", limit=3)
    assert (len(data), data.name, data.split) == (3, "sample", "dev")
    for texts in data.captions:
        assert len(texts) == 5
        assert all(texts)
        assert [clean_caption(text) for text in texts] == texts
    assert load_image(data.images[2]).mode == "RGB"
    again = load_dataset("sample", "dev", limit=2)
    assert again.captions == data.captions[:2]
    assert DATASETS["sample"].splits == ("train", "dev", "test", "unseen")


def test_root_defaults_to_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINICLIP_HOME", str(tmp_path))
    write_image(tmp_path / "folder" / "a.png")
    assert load_dataset("folder").images == [tmp_path / "folder" / "a.png"]


def test_free_photos_come_with_captions():
    photos = load_dataset("photos")
    assert len(photos) == 6
    for path, captions in zip(photos.images, photos.captions, strict=True):
        assert load_image(path).width > 100
        assert len(captions) == 1


def test_datasets_are_joined_by_a_plus():
    joined = load_dataset("photos+sample", "test", limit=3)
    photos = load_dataset("photos", "test", limit=3)
    scenes = load_dataset("sample", "test", limit=3)
    assert joined.name == "photos+sample"
    assert joined.captions == photos.captions + scenes.captions
    assert joined.images[:3] == photos.images
    drawn = [image.tobytes() for image in joined.images[3:]]
    assert drawn == [image.tobytes() for image in scenes.images]


def test_joined_datasets_lie_side_by_side_in_the_root(tmp_path):
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "flickr8k"))):
        load_dataset("flickr8k+sample", root=tmp_path)


def test_a_corrupt_image_is_refused_when_used_or_skipped_by_option(tmp_path):
    for name in ("b.jpg", "a.png", "sub/c.jpg"):
        write_image(tmp_path / name)
    write_half_an_image(tmp_path / "cut.jpg")
    rows = ["cut.jpg,A cut .", "sub/c.jpg,A cat ."]
    write_lines(tmp_path / "captions.csv", "image,caption", *rows)

    data = load_dataset("folder", root=tmp_path)
    assert len(data) == 4
    with pytest.raises(DataError, match=r"cut.jpg"):
        load_image(data.images[2])

    with pytest.warns(UserWarning, match=r"1 of 4 images of 'folder':\n.*cut.jpg") as caught:
        data = load_dataset("folder", root=tmp_path, on_bad="skip")
    assert caught[0].filename == __file__
    assert [path.name for path in data.images] == ["a.png", "b.jpg", "c.jpg"]
    assert data.captions == [[], [], ["A cat."]]


# This runs in a process of its own, since the tests have loaded more.
LIST_WHAT_IS_LOADED = """
import sys
import minicliplib.datasets.download
print(*sys.modules)
"""


def test_loading_the_loaders_loads_nothing_heavy():
    command = [sys.executable, "-c", LIST_WHAT_IS_LOADED]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    loaded = set(printed.split())
    folder = "minicliplib.datasets."
    assert {folder + name for name in ("load", "labelled", "flickr8k", "photos")} <= loaded
    assert not loaded & {"torch", "torchvision", "pandas", "skimage", "requests"}
