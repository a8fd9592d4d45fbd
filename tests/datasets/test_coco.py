"""MS COCO: its three layouts, and copies that are a part of the whole."""

import json

import pytest

from minicliplib.datasets.coco import count_licences
from minicliplib.datasets.images import DataError
from minicliplib.datasets.load import load_dataset

SPLITS = ("train", "dev", "test")


def write_part(root, part, ids, absent=()):
    """Write a part of COCO in its official form: two captions an image, the second badly spaced.

    The images are empty files; those that are ``absent`` are listed only.
    """
    (root / part).mkdir(parents=True)
    images = []
    annotations = []
    for i in ids:
        file_name = f"{i:012}.jpg"
        images.append({"id": i, "file_name": file_name, "license": 1})
        annotations.append({"image_id": i, "caption": f"Thing {i}."})
        annotations.append({"image_id": i, "caption": f"Thing {i}  again \n"})
        if i not in absent:
            (root / part / file_name).touch()

    # The official lists are not in the order of the numbers.
    record = {"images": images[::-1], "annotations": annotations}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"captions_{part}.json").write_text(json.dumps(record))


def numbers(data):
    return [int(path.stem) for path in data.images]


def load_splits(root):
    return {split: load_dataset("coco", split, root) for split in SPLITS}


# ---- val2017 alone, and beside train2017 ---------------------------------------------------------


def test_val_alone_is_split_three_ways(tmp_path):
    write_part(tmp_path / "deeper", "val2017", range(520))
    parts = load_splits(tmp_path)
    assert {split: len(data) for split, data in parts.items()} == {
        "train": 20,
        "dev": 250,
        "test": 250,
    }
    all_numbers = [number for data in parts.values() for number in numbers(data)]
    assert sorted(all_numbers) == list(range(520))
    for data in parts.values():
        assert numbers(data) == sorted(numbers(data))
        assert data.captions == [[f"Thing {i}.", f"Thing {i} again"] for i in numbers(data)]
    first = load_dataset("coco", "dev", tmp_path, limit=3)
    assert numbers(first) == numbers(parts["dev"])[:3]


def test_train_trains_and_val_is_halved(tmp_path):
    write_part(tmp_path, "train2017", range(100, 130))
    write_part(tmp_path, "val2017", range(11))
    parts = load_splits(tmp_path)
    dev = numbers(parts["dev"])
    test = numbers(parts["test"])
    assert numbers(parts["train"]) == list(range(100, 130))
    assert (len(dev), len(test)) == (5, 5)
    assert not set(dev) & set(test)


# ---- Karpathy's splits ---------------------------------------------------------------------------

EXPECTED = {"train": [1, 2, 3], "dev": [4], "test": [5]}


@pytest.fixture
def karpathy(tmp_path):
    """Five photos in Karpathy's splits, under their names of 2014."""
    entries = []
    (tmp_path / "val2014").mkdir()
    for i, split in enumerate(["train", "train", "restval", "val", "test"], start=1):
        entry = {"filepath": "val2014", "filename": f"{i}.jpg", "cocoid": i, "split": split}
        entries.append(entry | {"sentences": [{"raw": f"Thing {i}"}]})
        (tmp_path / "val2014" / f"{i}.jpg").touch()
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    return tmp_path


def test_karpathys_splits_under_the_names_of_2014(karpathy):
    parts = load_splits(karpathy)
    assert {split: numbers(data) for split, data in parts.items()} == EXPECTED
    assert parts["dev"].captions == [["Thing 4"]]


def test_karpathys_splits_in_a_copy_of_2017(karpathy):
    (karpathy / "train2017").mkdir()
    (karpathy / "val2017").mkdir()
    for i in range(1, 6):
        folder = "val2017" if i % 2 else "train2017"
        (karpathy / "val2014" / f"{i}.jpg").rename(karpathy / folder / f"{i:012}.jpg")
    parts = load_splits(karpathy)
    assert {split: numbers(data) for split, data in parts.items()} == EXPECTED


def test_karpathys_photos_under_other_names_are_missed(karpathy):
    (karpathy / "val2014").rename(karpathy / "val2017")
    with pytest.raises(DataError, match=r"3 listed .*val2014.1\.jpg"):
        load_dataset("coco", "train", karpathy)


# ---- incomplete copies ---------------------------------------------------------------------------


def test_images_that_are_not_there_are_counted_and_left_out(tmp_path):
    write_part(tmp_path, "train2017", range(1200), absent=range(0, 1200, 2))
    with pytest.warns(UserWarning, match=r"^600 of 1,200 listed images") as caught:
        data = load_dataset("coco", "train", tmp_path)
    assert caught[0].filename == __file__
    assert numbers(data) == list(range(1, 1200, 2))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"val2017.*miniclip download coco"):
        load_dataset("coco", "train", tmp_path)


def test_a_missing_val_beside_train_is_named(tmp_path):
    write_part(tmp_path, "train2017", range(3))
    assert len(load_dataset("coco", "train", tmp_path)) == 3
    with pytest.raises(DataError, match=r"val2017.*miniclip download coco"):
        load_dataset("coco", "dev", tmp_path)


def test_damaged_and_missing_annotations_are_named(tmp_path):
    write_part(tmp_path, "val2017", range(3))
    file = tmp_path / "annotations" / "captions_val2017.json"
    file.write_text("{")
    with pytest.raises(DataError, match=r"captions_val2017.json .*JSON"):
        load_dataset("coco", "train", tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=r"captions_val2017\.json.*miniclip download coco"):
        load_dataset("coco", "train", tmp_path)


def test_licences_are_counted_photo_by_photo(tmp_path):
    write_part(tmp_path, "val2017", range(520))
    file = tmp_path / "annotations" / "captions_val2017.json"
    record = json.loads(file.read_text())
    record["licenses"] = [{"id": 1, "name": "Attribution"}, {"id": 2, "name": "NonCommercial"}]
    for image in record["images"]:
        image["license"] = 2 if image["id"] < 100 else 1
    file.write_text(json.dumps(record))

    images = [path for data in load_splits(tmp_path).values() for path in data.images]
    assert count_licences(images) == {"Attribution": 420, "NonCommercial": 100}
