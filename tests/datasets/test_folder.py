"""The user's own folder: with captions or without, and the splits of one that grows."""

import re

import pytest
from dataset_files import write_image, write_lines

from minicliplib.datasets.images import DataError
from minicliplib.datasets.load import load_dataset

SPLITS = ("train", "dev", "test")


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jpg", "a.png", "sub/c.jpg"):
        write_image(tmp_path / name)
    return tmp_path


def test_without_captions(folder):
    data = load_dataset("folder", root=folder)
    assert [path.name for path in data.images] == ["a.png", "b.jpg", "c.jpg"]
    assert data.captions == [[], [], []]
    assert data.flat_captions == []
    assert data.split == "all"


def test_with_captions_in_a_file_from_excel(folder):
    rows = ["sub/c.jpg,A cat .", 'a.png,"A dog, ""running"" ."', "sub/c.jpg, Two cats"]
    table = "\n".join(["image,caption", *rows])
    (folder / "captions.csv").write_text(table, encoding="utf-8-sig")
    data = load_dataset("folder", "all", folder)
    assert data.captions == [['A dog, "running".'], [], ["A cat.", "Two cats"]]
    assert data.image_of_caption.tolist() == [0, 2, 2]
    assert load_dataset("folder", root=folder, limit=1).captions == [['A dog, "running".']]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image,caption", "b.jpg,A dog", "x.jpg,A cat"], r"Row 3 of .*captions.csv .*'x.jpg'"),
        (["image,caption", "../b.jpg,A dog"], r"Row 2 of .*'../b.jpg'"),
        (["image,caption", "b.jpg,A dog, running"], r"Row 2 of .*captions.csv .*columns"),
    ],
)
def test_a_bad_captions_file_is_refused_by_row(folder, lines, message):
    write_lines(folder / "captions.csv", *lines)
    with pytest.raises(DataError, match=message):
        load_dataset("folder", root=folder)


def test_a_folder_that_is_missing_or_holds_no_image_is_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        load_dataset("folder", root=tmp_path / "nowhere")
    with pytest.raises(DataError, match=re.escape(f"no image in {tmp_path}")):
        load_dataset("folder", root=tmp_path)


# ---- splits --------------------------------------------------------------------------------------


def write_captions(folder, count):
    rows = [f"{i:02}.png,Thing {i}" for i in range(count)]
    write_lines(folder / "captions.csv", "image,caption", *rows)


@pytest.fixture
def ninety(tmp_path):
    """Ninety images, seventy of which have a caption."""
    for i in range(90):
        write_image(tmp_path / f"{i:02}.png")
    write_captions(tmp_path, 70)
    return tmp_path


def load_splits(root):
    return {split: load_dataset("folder", split, root) for split in SPLITS}


def test_three_splits_share_out_the_images_with_captions(ninety):
    parts = load_splits(ninety)
    images = [path for data in parts.values() for path in data.images]
    assert len(images) == len(set(images)) == 70
    for data in parts.values():
        assert len(data) > 0
        assert data.captions == [[f"Thing {int(path.stem)}"] for path in data.images]
    assert len(load_dataset("folder", root=ninety)) == 90


def test_an_image_keeps_its_split_while_the_folder_grows(ninety):
    before = load_splits(ninety)
    write_captions(ninety, 90)
    after = load_splits(ninety)
    assert sum(map(len, after.values())) == 90
    for split in SPLITS:
        assert set(before[split].images) <= set(after[split].images)


def test_too_few_captions_for_three_splits(ninety):
    write_captions(ninety, 1)
    with pytest.raises(DataError, match=r"1 images .*captions.csv"):
        load_dataset("folder", "train", ninety)
