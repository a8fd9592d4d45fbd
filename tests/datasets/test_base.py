"""Captioned images: which caption belongs to which image, and what tells data from other data."""

import os
import re

import numpy as np
import pytest
from dataset_files import write_half_an_image, write_image
from PIL import Image

from minicliplib.datasets.base import CaptionedImages, without_unreadable
from minicliplib.datasets.images import DataError, load_image


def one_pixel(color):
    return Image.new("RGB", (1, 1), color)


@pytest.fixture
def colours():
    images = [one_pixel(color) for color in ("red", "lime", "blue", "white")]
    return CaptionedImages("mine", "all", images, [["a", "b"], [], ["c"], ["d", "e", "f"]])


def test_flat_captions_and_their_images(colours):
    assert len(colours) == 4
    assert colours.flat_captions == ["a", "b", "c", "d", "e", "f"]
    assert colours.image_of_caption.tolist() == [0, 0, 2, 3, 3, 3]
    assert colours.image_of_caption.dtype == np.int64


def test_a_subset_keeps_order_captions_and_name(colours):
    part = colours.subset(np.array([3, 0]))
    assert part.captions == [["d", "e", "f"], ["a", "b"]]
    assert load_image(part.images[1]).getpixel((0, 0)) == (255, 0, 0)
    assert (part.name, part.split) == ("mine", "all")


def test_without_captions_there_is_an_empty_array_of_integers():
    data = CaptionedImages("mine", "all", [one_pixel("red")], [[]])
    assert data.image_of_caption.shape == (0,)
    assert data.image_of_caption.dtype == np.int64


# ---- fingerprint ---------------------------------------------------------------------------------


@pytest.fixture
def in_folder(tmp_path):
    """Two images as files in a folder of their own."""
    paths = [tmp_path / "first" / "a.png", tmp_path / "first" / "b.png"]
    for path in paths:
        write_image(path)
    return CaptionedImages("mine", "train", paths, [["A dog."], ["A cat.", "Two cats."]])


def with_captions(data, captions):
    return CaptionedImages(data.name, data.split, data.images, captions)


def test_a_fingerprint_is_twelve_digits_that_repeat(in_folder, colours):
    for data in (in_folder, colours):
        assert re.fullmatch("[0-9a-f]{12}", data.fingerprint())
        assert data.subset(range(len(data))).fingerprint() == data.fingerprint()
    assert in_folder.fingerprint() != colours.fingerprint()


def test_a_fingerprint_says_nothing_of_the_folder(in_folder, tmp_path):
    before = in_folder.fingerprint()
    (tmp_path / "first").rename(tmp_path / "second")
    moved = [tmp_path / "second" / path.name for path in in_folder.images]
    assert CaptionedImages("mine", "train", moved, in_folder.captions).fingerprint() == before


def test_a_fingerprint_changes_with_name_split_and_captions(in_folder):
    images = in_folder.images
    captions = in_folder.captions
    others = [
        CaptionedImages("yours", "train", images, captions),
        CaptionedImages("mine", "dev", images, captions),
        in_folder.subset([0]),
        in_folder.subset([1, 0]),
        with_captions(in_folder, [["A dog!"], ["A cat.", "Two cats."]]),
        with_captions(in_folder, [["A dog."], ["Two cats.", "A cat."]]),
        # the same flat captions, of other images
        with_captions(in_folder, [["A dog.", "A cat."], ["Two cats."]]),
        with_captions(in_folder, [["A dog."], ["A cat.\nTwo cats."]]),
    ]
    fingerprints = {data.fingerprint() for data in [in_folder, *others]}
    assert len(fingerprints) == 1 + len(others)


def test_a_fingerprint_changes_with_the_size_and_time_of_a_file(in_folder):
    path = in_folder.images[1]
    status = path.stat()
    seen = {in_folder.fingerprint()}

    path.write_bytes(path.read_bytes() + b"more")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    seen.add(in_folder.fingerprint())

    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    seen.add(in_folder.fingerprint())
    assert len(seen) == 3


def test_a_fingerprint_changes_with_an_image_in_memory(colours):
    before = colours.fingerprint()
    colours.images[2].putpixel((0, 0), (0, 0, 254))
    assert colours.fingerprint() != before


# ---- images that cannot be read ------------------------------------------------------------------


def test_unreadable_images_are_left_out_with_a_warning(in_folder, tmp_path):
    write_half_an_image(tmp_path / "cut.jpg")
    images = [in_folder.images[0], tmp_path / "cut.jpg", in_folder.images[1]]
    data = CaptionedImages("mine", "all", images, [["a"], ["b"], ["c"]])
    with pytest.warns(UserWarning, match=r"1 of 3 images of 'mine':\n.*cut.jpg"):
        good = without_unreadable(data)
    assert good.images == in_folder.images
    assert good.captions == [["a"], ["c"]]


def test_data_without_a_readable_image_are_refused(tmp_path):
    write_half_an_image(tmp_path / "cut.jpg")
    data = CaptionedImages("mine", "all", [tmp_path / "cut.jpg"], [["a"]])
    with pytest.raises(DataError, match=r"cut.jpg"):
        without_unreadable(data)
