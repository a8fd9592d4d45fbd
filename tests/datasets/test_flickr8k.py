"""Flickr8k: its layouts, its official splits, its faults, and people's judgements."""

import pytest
from dataset_files import write_image, write_lines

from minicliplib.datasets.flickr8k import load_judgements
from minicliplib.datasets.images import DataError, load_image
from minicliplib.datasets.load import load_dataset
from minicliplib.paths import ASSETS

SPLITS = {"train": ["c.jpg", "a.jpg"], "dev": ["b.jpg"], "test": ["d.jpg", "e.jpg"]}
RAW = ["A dog .", 'A dog that says " woof " .', "A dog , running .", "dog", "The dog 's ball ."]
CLEAN = ["A dog.", 'A dog that says "woof".', "A dog, running.", "dog", "The dog's ball."]

# A key of the official file, of a photo that no distribution holds.
ODD_KEY = "2258277193_586949ec62.jpg.1"


# ---- small copies --------------------------------------------------------------------------------


def token_rows() -> list[tuple[str, int, str]]:
    """Return (photo, number, caption) of all captions, those of each photo after its letter."""
    photos = sorted(name for names in SPLITS.values() for name in names)
    rows = []
    for photo in [*photos, ODD_KEY]:
        for number, caption in enumerate(RAW):
            rows.append((photo, number, f"{photo[0]} {caption}"))
    return rows


def token_lines() -> list[str]:
    return [f"{photo}#{number}\t{caption}" for photo, number, caption in token_rows()]


def write_photos_and_lists(photos, lists):
    for name in "abcde":
        write_image(photos / f"{name}.jpg")
    for split, names in SPLITS.items():
        write_lines(lists / f"Flickr_8k.{split}Images.txt", *names)


def write_original(root, photos="Flicker8k_Dataset", texts="."):
    write_photos_and_lists(root / photos, root / texts)
    write_lines(root / texts / "Flickr8k.token.txt", *token_lines())


def write_kaggle(root):
    write_photos_and_lists(root / "Images", root)
    lines = []
    for photo, _, caption in token_rows():
        quoted = caption.replace('"', '""')
        lines.append(f'{photo},"{quoted}"')
    write_lines(root / "captions.txt", "image,caption", *lines)


def write_spelt_right(root):
    write_original(root, photos="Flickr8k_Dataset")


def write_two_zips(root):
    write_original(root, "Flickr8k_Dataset/Flicker8k_Dataset", "Flickr8k_text")


def write_one_deeper(root):
    write_original(root / "archive")


LAYOUTS = [write_original, write_spelt_right, write_two_zips, write_one_deeper, write_kaggle]


# ---- layouts and splits --------------------------------------------------------------------------


@pytest.mark.parametrize("write_layout", LAYOUTS)
def test_layouts_give_the_same_captions_in_the_order_of_the_lists(tmp_path, write_layout):
    write_layout(tmp_path)
    for split, names in SPLITS.items():
        data = load_dataset("flickr8k", split, tmp_path)
        assert [path.name for path in data.images] == names
        for path, captions in zip(data.images, data.captions, strict=True):
            assert captions == [f"{path.name[0]} {text}" for text in CLEAN]
            assert load_image(path).size == (12, 8)
    first = load_dataset("flickr8k", "test", tmp_path, limit=1)
    assert [path.name for path in first.images] == ["d.jpg"]


def official(split):
    return (ASSETS / "flickr8k" / f"Flickr_8k.{split}Images.txt").read_text().split()


def test_packaged_lists_are_the_official_splits():
    lists = [official(split) for split in ("train", "dev", "test")]
    assert [len(names) for names in lists] == [6000, 1000, 1000]
    assert len(set().union(*lists)) == 8000
    assert ODD_KEY.removesuffix(".1") not in set().union(*lists)


def test_kaggle_without_lists_gets_the_official_ones(tmp_path):
    (tmp_path / "Images").mkdir()
    for name in official("test"):
        (tmp_path / "Images" / name).touch()
    rows = []
    for split in ("train", "dev", "test"):
        for name in official(split):
            rows.extend(f"{name},Text {k} ." for k in range(5))
    write_lines(tmp_path / "captions.txt", "image,caption", *rows)

    test = load_dataset("flickr8k", "test", tmp_path)
    assert [path.name for path in test.images] == official("test")
    assert test.captions[0] == [f"Text {k}." for k in range(5)]


def test_an_official_list_that_was_cut_off_is_refused(tmp_path):
    write_original(tmp_path)
    write_lines(tmp_path / "Flickr_8k.testImages.txt", *official("test")[:400])
    with pytest.raises(DataError, match=r"Flickr_8k.testImages.txt .*1000 photos"):
        load_dataset("flickr8k", "test", tmp_path)


# ---- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Flicker8k_Dataset", "Flickr8k.token.txt"])
def test_what_the_original_lacks_is_named(tmp_path, name):
    write_original(tmp_path)
    (tmp_path / name).rename(tmp_path / "away")
    with pytest.raises(DataError, match=f"{name}.*miniclip download flickr8k"):
        load_dataset("flickr8k", "test", tmp_path)


@pytest.mark.parametrize("name", ["Images", "captions.txt"])
def test_what_kaggles_copy_lacks_is_named(tmp_path, name):
    write_kaggle(tmp_path)
    (tmp_path / name).rename(tmp_path / "away")
    with pytest.raises(DataError, match=f"{name}.*miniclip download flickr8k"):
        load_dataset("flickr8k", "test", tmp_path)


def test_a_missing_photo_is_named(tmp_path):
    write_original(tmp_path)
    (tmp_path / "Flicker8k_Dataset" / "e.jpg").unlink()
    with pytest.raises(DataError, match=r"e\.jpg.*miniclip download flickr8k"):
        load_dataset("flickr8k", "test", tmp_path)


def test_a_missing_caption_is_counted(tmp_path):
    write_original(tmp_path)
    lines = [line for line in token_lines() if "e.jpg#4" not in line]
    write_lines(tmp_path / "Flickr8k.token.txt", *lines)
    with pytest.raises(DataError, match=r"4 captions.*miniclip download flickr8k"):
        load_dataset("flickr8k", "test", tmp_path)


def test_a_bad_row_is_named(tmp_path):
    write_original(tmp_path)
    lines = token_lines()
    lines.insert(2, "d.jpg#0 no tab")
    write_lines(tmp_path / "Flickr8k.token.txt", *lines)
    with pytest.raises(DataError, match=r"Row 3.*miniclip download flickr8k"):
        load_dataset("flickr8k", "test", tmp_path)


def test_a_missing_root_says_how_to_get_the_dataset(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.*Flicker8k_Dataset.*miniclip download flickr8k"):
        load_dataset("flickr8k", "test", tmp_path / "nowhere")


def test_a_split_is_checked_whole_whatever_the_limit(tmp_path):
    write_original(tmp_path)
    (tmp_path / "Flicker8k_Dataset" / "e.jpg").unlink()
    with pytest.raises(DataError, match=r"e\.jpg"):
        load_dataset("flickr8k", "test", tmp_path, limit=1)


# ---- judgements ----------------------------------------------------------------------------------


@pytest.fixture
def judged(tmp_path):
    """Two photos with two captions each, of which experts and the crowd have judged some."""
    (tmp_path / "Images").mkdir()
    tokens = [f"{name}.jpg#{i}\tcaption {i} of {name}" for name in "ab" for i in range(2)]
    write_lines(tmp_path / "Flickr8k.token.txt", *tokens)
    write_lines(
        tmp_path / "ExpertAnnotations.txt",
        "a.jpg\tb.jpg#1\t1\t2\t4",
        "a.jpg\ta.jpg#0\t4\t4\t4",
    )
    write_lines(
        tmp_path / "CrowdFlowerAnnotations.txt",
        "b.jpg\ta.jpg#0\t0.25\t1\t3",
        "b.jpg\tb.jpg#0\t1.0\t3\t0",
    )
    return tmp_path


def test_expert_judgements_leave_out_a_photos_own_captions(judged):
    expert = load_judgements("expert", judged)
    assert expert["rating"].tolist() == [1, 2, 4]
    assert set(expert["caption"]) == {"caption 1 of b"}


def test_the_crowds_judgements_are_shares_of_yes(judged):
    crowd = load_judgements("crowd", judged)
    assert crowd["rating"].tolist() == [0.25, 1.0]
    assert crowd.iloc[0].to_dict() == {
        "image": judged / "Images" / "b.jpg",
        "caption": "caption 0 of a",
        "rating": 0.25,
    }


def test_unknown_judgements_are_refused_with_the_known(judged):
    with pytest.raises(DataError, match="expert, crowd"):
        load_judgements("friends", judged)
