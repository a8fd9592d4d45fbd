"""Captions: they come out clean, and a damaged file is refused by its row."""

import zipfile

import pytest
from dataset_files import write_lines

from minicliplib.datasets.captions import clean_caption, csv_rows, find_below
from minicliplib.datasets.images import DataError


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("A dog runs .", "A dog runs."),
        ("  A   dog\truns\n", "A dog runs"),
        ("A dog , a cat ; and a cow !", "A dog, a cat; and a cow!"),
        ('"A dog runs ."', "A dog runs."),
        ('""A dog runs .""', "A dog runs."),
        ('A dog runs ."', "A dog runs."),
        ('A shirt with " ADHD " on it', 'A shirt with "ADHD" on it'),
        ('A shirt with "" ADHD "" on it', 'A shirt with "ADHD" on it'),
        ('A sign that says , " Red Light . "', 'A sign that says, "Red Light."'),
        ("A dog 's ball that does n't roll", "A dog's ball that doesn't roll"),
        ("A sign with ' free hugs ' .", "A sign with free hugs."),
        ("A slip 'n' slide at five o'clock", "A slip 'n' slide at five o'clock"),
        ("A lens ( almost fish eye ) of divers", "A lens (almost fish eye) of divers"),
        ("A group of S.C.U.B.A. divers", "A group of S.C.U.B.A. divers"),
        ("A .22 rifle", "A .22 rifle"),
        ("Ein Café – draußen .", "Ein Café – draußen."),
        (' " ', ""),
    ],
)
def test_clean_caption(raw, clean):
    assert clean_caption(raw) == clean
    assert clean_caption(clean) == clean


def test_every_real_caption_comes_out_clean(real_data):
    with zipfile.ZipFile(real_data("flickr8k/Flickr8k_text.zip")) as zipped:
        lines = zipped.read("Flickr8k.token.txt").decode().splitlines()
    captions = [clean_caption(line.split("\t")[1]) for line in lines]
    assert len(captions) == 40460
    assert all(captions)
    for caption in captions:
        assert not any(mark in caption for mark in ("  ", " .", " ,")), caption
        assert caption.count('"') % 2 == 0, caption
        assert clean_caption(caption) == caption


# ---- CSV -----------------------------------------------------------------------------------------


def test_csv_rows_say_where_they_stand(tmp_path):
    path = tmp_path / "captions.csv"
    write_lines(path, "caption,image,more", '"A dog , ""running"" .", a.jpg ,x', "A cat,b.jpg,y")
    rows = list(csv_rows(path))
    assert [row.image for row in rows] == ["a.jpg", "b.jpg"]
    assert [row.caption for row in rows] == ['A dog, "running".', "A cat"]
    assert [row.where for row in rows] == [f"Row 2 of {path}", f"Row 3 of {path}"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image,text", "b.jpg,A dog"], r"column caption\. .*image, text"),
        ([""], r"column caption or image"),
        (["image,caption", "b.jpg,A dog", 'b.jpg," "'], r"Row 3 .*empty"),
        (["image,caption", "b.jpg"], r"Row 2 .*empty"),
        (["image,caption", "b.jpg,A dog, running"], r"Row 2 .*too many columns"),
        (["image,caption", "b.jpg,A dog", 'b.jpg,"A dog', "a.png,A cat"], r"Row 3 .*CSV"),
    ],
)
def test_a_bad_csv_is_refused_by_row(tmp_path, lines, message):
    write_lines(tmp_path / "captions.csv", *lines)
    with pytest.raises(DataError, match=message) as error:
        list(csv_rows(tmp_path / "captions.csv"))
    assert str(tmp_path / "captions.csv") in str(error.value)


def test_captions_in_another_encoding_are_refused(tmp_path):
    (tmp_path / "captions.csv").write_bytes("image,caption\nb.jpg,Café".encode("latin-1"))
    with pytest.raises(DataError, match=r"captions.csv .*UTF-8"):
        list(csv_rows(tmp_path / "captions.csv"))


# ---- finding files -------------------------------------------------------------------------------


def test_files_are_found_up_to_two_folders_deeper(tmp_path):
    for folder in (".hidden", "a/b/c", "a/b", "a", "."):
        assert (find_below(tmp_path, "x.txt") is None) == (folder in (".hidden", "a/b/c", "a/b"))
        write_lines(tmp_path / folder / "x.txt", "found")
    assert find_below(tmp_path, "x.txt") == tmp_path / "x.txt"
