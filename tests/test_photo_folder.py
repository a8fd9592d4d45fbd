"""A folder of photos: indexed once, then searched by sentence, by photo and by date."""

import os
import shutil
from datetime import date, datetime

import numpy as np
import pytest
from PIL import Image

import minicliplib as mc
from minicliplib.datasets.images import DataError, load_image
from minicliplib.scale.photo_folder import EXIF_PART, TAKEN, PhotoFolder, day_taken


@pytest.fixture
def folder(tmp_path, pairs):
    """Eight scenes in two subfolders, and the first of them twice."""
    for i in range(8):
        place = tmp_path / ("2023" if i < 4 else "2024")
        place.mkdir(exist_ok=True)
        pairs.images[i].save(place / f"{i}.png")
    pairs.images[0].resize((200, 200)).save(tmp_path / "2024" / "again.jpg", quality=90)
    return tmp_path


@pytest.fixture
def counted(locked, monkeypatch):
    """The model, and how many images it embedded in each call."""
    calls = []
    encode = mc.MiniCLIP.encode_image

    def count_and_encode(model, images, **options):
        calls.append(len(images))
        return encode(model, images, **options)

    monkeypatch.setattr(mc.MiniCLIP, "encode_image", count_and_encode)
    return locked, calls


def photo_of(day: str, path) -> None:
    """Write a small photo that says when it was taken."""
    image = Image.new("RGB", (32, 32), "green")
    exif = image.getexif()
    exif.get_ifd(EXIF_PART)[TAKEN] = f"{day.replace('-', ':')} 12:00:00"
    image.save(path, exif=exif)


def test_a_folder_is_embedded_once(counted, folder):
    model, calls = counted
    photos = PhotoFolder(model, folder)
    assert sum(calls) == len(photos.paths) == 9
    calls.clear()

    again = PhotoFolder(model, folder)
    assert calls == []
    assert again.paths == photos.paths
    assert again.search("a dog", 3) == photos.search("a dog", 3)

    # what is excluded for once is not forgotten
    part = PhotoFolder(model, folder, exclude=["2023"])
    assert len(part.paths) == 5
    assert len(PhotoFolder(model, folder).paths) == 9
    assert calls == []


def test_photos_are_ranked_by_cosine(locked, folder):
    photos = PhotoFolder(locked, folder)
    found = photos.search("three cyclists on a street", k=9)
    vectors = locked.encode_image(photos.paths)
    cosines = (vectors @ locked.encode_text("three cyclists on a street").T)[:, 0].numpy()
    assert [photo.score for photo in found] == pytest.approx(sorted(cosines)[::-1], abs=1e-5)
    assert found[0].path == photos.paths[int(np.argmax(cosines))]


def test_a_photo_finds_others_like_it_and_not_itself(locked, folder):
    photos = PhotoFolder(locked, folder)
    first = folder / "2023" / "0.png"
    found = photos.search(first, k=20)
    assert len(found) == 8
    assert found[0].path == folder / "2024" / "again.jpg"
    assert first not in [photo.path for photo in found]


def test_near_duplicates_form_groups(locked, tmp_path):
    for path in mc.load_dataset("photos").images:
        shutil.copy(path, tmp_path)
    cat = load_image(tmp_path / "chelsea.png")
    cat.resize((220, 150)).save(tmp_path / "small.jpg", quality=80)
    cat.crop((20, 15, 430, 290)).save(tmp_path / "cut.jpg", quality=90)

    photos = PhotoFolder(locked, tmp_path)
    group = [tmp_path / name for name in ("chelsea.png", "cut.jpg", "small.jpg")]
    assert photos.duplicates(above=0.9) == [group]
    assert photos.duplicates(above=1.0) == []


def test_photos_are_found_by_their_day(locked, tmp_path):
    for day in ("2022-05-01", "2023-05-01", "2024-05-01"):
        photo_of(day, tmp_path / f"{day}.jpg")
    photos = PhotoFolder(locked, tmp_path)
    found = photos.search("grass", 5, since=date(2023, 1, 1), until=date(2023, 12, 31))
    assert [photo.path.stem for photo in found] == ["2023-05-01"]
    assert found[0].day == date(2023, 5, 1)
    later = photos.search("grass", 5, since=date(2023, 5, 1))
    assert {photo.path.stem for photo in later} == {"2023-05-01", "2024-05-01"}

    # a photo that changes has its day read again
    photo_of("2030-01-01", tmp_path / "2022-05-01.jpg")
    changed = PhotoFolder(locked, tmp_path).search("grass", 5, since=date(2029, 1, 1))
    assert [photo.path.stem for photo in changed] == ["2022-05-01"]


def test_without_exif_the_day_is_that_of_the_file(tmp_path):
    path = tmp_path / "drawn.png"
    Image.new("RGB", (8, 8)).save(path)
    noon = datetime(2021, 3, 4, 12).timestamp()
    os.utime(path, (noon, noon))
    assert day_taken(path) == date(2021, 3, 4)
    photo_of("0000-00-00", tmp_path / "odd.jpg")
    os.utime(tmp_path / "odd.jpg", (noon, noon))
    assert day_taken(tmp_path / "odd.jpg") == date(2021, 3, 4)


def test_a_folder_without_a_readable_photo_is_refused(locked, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    with pytest.raises(DataError, match=r"No image in .* can be read, of 1\. The first: Cannot"):
        PhotoFolder(locked, tmp_path)


def test_an_empty_query_is_refused(locked, folder):
    with pytest.raises(ValueError, match="The query is empty"):
        PhotoFolder(locked, folder).search("  ")
