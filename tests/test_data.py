"""Loaders, caption cleaning and image reading; the download is tested in test_archives.py."""

import json
import os
import shutil
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minicliplib as mc
from minicliplib.datasets.base import ASSETS, DATASETS, CaptionedImages, clean_caption, load_dataset
from minicliplib.datasets.images import DataError, image_files, load_image
from minicliplib.datasets.scenes import make_scene

SPLITS = {"train": ["c.jpg", "a.jpg"], "dev": ["b.jpg"], "test": ["d.jpg", "e.jpg"]}
RAW = ["A dog .", 'A dog that says " woof " .', "A dog , running .", "dog", "The dog 's ball ."]
CLEAN = ["A dog.", 'A dog that says "woof".', "A dog, running.", "dog", "The dog's ball."]


def picture(path, color=(200, 100, 50), size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_lists(folder):
    for split, names in SPLITS.items():
        write(folder / f"Flickr_8k.{split}Images.txt", *names)


def token_lines():
    names = sorted(n for names in SPLITS.values() for n in names)
    # like the official file, with the key of a photo that no distribution holds
    return [
        f"{n}#{k}\t{n[0]} {RAW[k]}"
        for n in [*names, "2258277193_586949ec62.jpg.1"]
        for k in range(5)
    ]


def original(root, photos="Flicker8k_Dataset", texts="."):
    for name in "abcde":
        picture(root / photos / f"{name}.jpg")
    write(root / texts / "Flickr8k.token.txt", *token_lines())
    write_lists(root / texts)
    return root


def kaggle(root):
    for name in "abcde":
        picture(root / "Images" / f"{name}.jpg")
    rows = [line.split("#")[0] + "," + csv_field(line.split("\t")[1]) for line in token_lines()]
    write(root / "captions.txt", "image,caption", *rows)
    write_lists(root)
    return root


def csv_field(text):
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"') else text


# ---- captions and images in memory -----------------------------------------------------------------


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
        (
            "A lens ( almost fish eye ) of S.C.U.B.A. divers",
            "A lens (almost fish eye) of S.C.U.B.A. divers",
        ),
        ("A .22 rifle", "A .22 rifle"),
        ("Ein Café – draußen .", "Ein Café – draußen."),
        (' " ', ""),
    ],
)
def test_clean_caption(raw, clean):
    assert clean_caption(raw) == clean
    assert clean_caption(clean) == clean


def test_owner_and_flat_captions_follow_the_images():
    images = [Image.new("RGB", (2, 2), color) for color in ("red", "lime", "blue", "white")]
    data = CaptionedImages("mine", "all", images, [["a", "b"], [], ["c"], ["d", "e", "f"]])
    assert len(data) == 4
    assert data.flat_captions == ["a", "b", "c", "d", "e", "f"]
    assert data.image_of_caption.tolist() == [0, 0, 2, 3, 3, 3]
    assert data.image_of_caption.dtype == np.int64
    part = data.subset(np.array([3, 0]))
    assert part.captions == [["d", "e", "f"], ["a", "b"]]
    assert load_image(part.images[1]).getpixel((0, 0)) == (255, 0, 0)
    assert (part.name, part.split) == ("mine", "all")


def test_owner_without_captions_is_an_empty_array_of_integers():
    data = CaptionedImages("mine", "all", [Image.new("RGB", (2, 2))], [[]])
    assert data.image_of_caption.shape == (0,)
    assert data.image_of_caption.dtype == np.int64


# ---- load_image ------------------------------------------------------------------------------------


def test_transparency_becomes_white(tmp_path):
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    rgba.save(tmp_path / "rgba.png")
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=1)
    palette.save(tmp_path / "bytes.png", transparency=b"\xff\x00")
    for name in ("rgba.png", "p.png", "bytes.png"):
        image = load_image(tmp_path / name)
        assert image.mode == "RGB"
        assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)], name


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    image = load_image(tmp_path / "deep.png")
    assert [image.getpixel((x, 0)) for x in range(3)] == [
        (0, 0, 0),
        (100, 100, 100),
        (255, 255, 255),
    ]


def test_thirty_two_bits_are_scaled_by_the_brightest(tmp_path):
    for dtype in (np.int32, np.float32):
        Image.fromarray(np.array([[0, 100, 200]], dtype)).save(tmp_path / "deep.tif")
        assert [load_image(tmp_path / "deep.tif").getpixel((x, 0))[0] for x in range(3)] == [
            0,
            127,
            255,
        ]


@pytest.mark.parametrize(
    ("mode", "file"),
    [("RGB", "a.webp"), ("LA", "a.png"), ("PA", "a.tif"), ("I;16B", "a.tif"), ("CMYK", "a.tif")],
)
def test_rarer_kinds_show_what_they_hold(tmp_path, mode, file):
    grey = Image.new("L", (16, 16), 255)
    grey.paste(0, (0, 0, 8, 16))
    picture = (
        grey.convert("RGBA").convert(mode)
        if mode != "I;16B"
        else Image.fromarray(np.array(grey, ">u2") * 257)
    )
    if file == "a.webp":  # of an animation the first frame
        picture.save(
            tmp_path / file, save_all=True, append_images=[picture.rotate(180)], lossless=True
        )
    else:
        picture.save(tmp_path / file)
    image = load_image(tmp_path / file)
    assert (image.getpixel((2, 2)), image.getpixel((13, 13))) == ((0, 0, 0), (255, 255, 255))


@pytest.mark.parametrize(
    ("mode", "color", "file"), [("L", 90, "l.png"), ("1", 1, "1.png"), ("CMYK", 0, "c.jpg")]
)
def test_other_modes_become_rgb(tmp_path, mode, color, file):
    Image.new(mode, (8, 8), color).save(tmp_path / file)
    expected = {"L": (90, 90, 90), "1": (255, 255, 255), "CMYK": (255, 255, 255)}[mode]
    image = load_image(str(tmp_path / file))
    assert (image.mode, image.getpixel((4, 4))) == ("RGB", expected)


def test_first_frame_of_a_gif(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "two.gif").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("hint", [None, 20])
@pytest.mark.parametrize("file", ["turned.png", "turned.jpg", "turned.tif"])
def test_exif_rotation_is_applied(tmp_path, file, hint):
    image = Image.new("RGB", (200, 100), "white")
    image.paste("black", (0, 0, 100, 100))
    turn = struct.pack(
        "<HHIHH", 0x0112, 3, 1, 6, 0
    )  # clockwise: what is stored on the left belongs on top
    odd = struct.pack(
        "<HHI4s", 0x0100, 2, 4, b"big"
    )  # a width in words, on which ImageOps.exif_transpose fails
    tags = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + odd + turn + bytes(4)
    only_turned = Image.Exif()
    only_turned[0x0112] = 6
    image.save(tmp_path / file, exif=only_turned if file.endswith("tif") else tags)
    upright = load_image(tmp_path / file, hint)
    assert upright.size == ((25, 50) if hint and file.endswith("jpg") else (100, 200))
    assert (upright.getpixel((5, 2)), upright.getpixel((5, 47 * upright.height // 50))) == (
        (0,) * 3,
        (255,) * 3,
    )


def test_hint_decodes_a_large_jpeg_small_but_not_below(tmp_path):
    picture(tmp_path / "large.jpg", size=(1000, 600))
    assert load_image(tmp_path / "large.jpg").size == (1000, 600)
    assert load_image(tmp_path / "large.jpg", hint=224).size == (500, 300)
    assert load_image(tmp_path / "large.jpg", hint=301).size == (1000, 600)
    assert load_image(tmp_path / "large.jpg", hint=5000).size == (1000, 600)


def test_a_picture_in_memory_is_copied(tmp_path):
    image = Image.new("RGB", (2, 2), "red")
    load_image(image).putpixel((0, 0), (0, 0, 0))
    assert image.getpixel((0, 0)) == (255, 0, 0)


def test_images_load_in_threads(tmp_path):
    for i in range(40):
        picture(tmp_path / f"{i:02}.png", color=(i, 0, 0))
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(load_image, image_files(tmp_path)))
    assert [image.getpixel((0, 0))[0] for image in images] == list(range(40))


def truncated(path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("extension", ["jpg", "png", "gif", "webp"])
def test_a_truncated_image_is_refused_by_name(tmp_path, extension):
    path = truncated(tmp_path / f"cut.{extension}")
    with pytest.raises(DataError, match=f"cut.{extension}"):
        load_image(path)
    with pytest.raises(DataError, match=f"cut.{extension}"):
        load_image(path, hint=8)


def test_what_is_no_image_is_refused_by_name(tmp_path):
    write(tmp_path / "page.jpg", "<html>")
    (tmp_path / "empty.jpg").touch()
    for name in ("page.jpg", "empty.jpg", "absent.jpg", "."):
        with pytest.raises(DataError, match=name):
            load_image(tmp_path / name)


def test_image_files_are_sorted_and_searched_in_subfolders(tmp_path):
    for name in ("b.PNG", "sub/c.jpeg", "a.jpg", ".hidden/x.jpg", "._a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    write(tmp_path / "notes.txt", "no image")
    (tmp_path / "folder.jpg").mkdir()
    names = [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)]
    assert names == ["a.jpg", "b.PNG", "sub/c.jpeg"]


# ---- load_dataset ----------------------------------------------------------------------------------


def test_unknown_names_are_refused_with_the_known():
    with pytest.raises(DataError, match=r"'flickr9k'.*Known: sample, flickr8k, coco, folder"):
        load_dataset("flickr9k")
    with pytest.raises(DataError, match=r"'val'.*Known: train, dev, test"):
        load_dataset("flickr8k", "val")
    with pytest.raises(DataError, match="ignore"):
        load_dataset("sample", on_bad="ignore")
    with pytest.raises(DataError, match="limit=0"):
        load_dataset("sample", limit=0)


def test_sample_needs_no_download():
    data = load_dataset("sample", "dev", limit=3)
    assert (len(data), data.name, data.split) == (3, "sample", "dev")
    assert all(
        len(texts) == 5 and all(clean_caption(t) == t != "" for t in texts)
        for texts in data.captions
    )
    assert load_image(data.images[2]).mode == "RGB"
    again = load_dataset("sample", "dev", limit=2)
    assert again.captions == data.captions[:2]
    assert DATASETS["sample"][1] == ("train", "dev", "test", "unseen")


def test_root_defaults_to_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINICLIP_HOME", str(tmp_path))
    original(tmp_path / "flickr8k")
    assert len(load_dataset("flickr8k", "test")) == 2


LAYOUTS = {
    "original": original,
    "spelt right": lambda root: original(root, photos="Flickr8k_Dataset"),
    "two zips": lambda root: original(root, "Flickr8k_Dataset/Flicker8k_Dataset", "Flickr8k_text"),
    "one deeper": lambda root: original(root / "archive").parent,
    "kaggle": kaggle,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_flickr8k_layouts_give_the_same_captions_in_the_order_of_the_lists(tmp_path, layout):
    root = LAYOUTS[layout](tmp_path)
    for split, names in SPLITS.items():
        data = load_dataset("flickr8k", split, root)
        assert [path.name for path in data.images] == names
        assert data.captions == [[f"{name[0]} {text}" for text in CLEAN] for name in names]
        assert all(image.size == (12, 8) for image in map(load_image, data.images))
    assert [path.name for path in load_dataset("flickr8k", "test", root, limit=1).images] == [
        "d.jpg"
    ]


def official(split):
    return (ASSETS / "flickr8k" / f"Flickr_8k.{split}Images.txt").read_text().split()


def test_packaged_lists_are_the_official_splits():
    lists = [official(split) for split in ("train", "dev", "test")]
    assert [len(names) for names in lists] == [6000, 1000, 1000]
    assert len(set().union(*lists)) == 8000
    assert "2258277193_586949ec62.jpg" not in set().union(*lists)


def test_kaggle_without_lists_gets_the_official_ones(tmp_path):
    names = [name for split in ("train", "dev", "test") for name in official(split)]
    (tmp_path / "Images").mkdir()
    for name in names:
        (tmp_path / "Images" / name).touch()
    write(
        tmp_path / "captions.txt",
        "image,caption",
        *(f"{name},Text {k} ." for name in names for k in range(5)),
    )
    test = load_dataset("flickr8k", "test", tmp_path)
    assert [path.name for path in test.images] == official("test")
    assert test.captions[0] == [f"Text {k}." for k in range(5)]


def test_an_official_list_that_was_cut_off_is_refused(tmp_path):
    original(tmp_path)
    write(tmp_path / "Flickr_8k.testImages.txt", *official("test")[:400])
    with pytest.raises(DataError, match=r"Flickr_8k.testImages.txt .* is not .* 1000 photos"):
        load_dataset("flickr8k", "test", tmp_path)


def broken_flickr8k(root, what):
    if what in ("Images", "captions.txt"):
        kaggle(root)
    else:
        original(root)
    match what:
        case "Flicker8k_Dataset" | "Images":
            shutil.rmtree(root / what)
        case "Flickr8k.token.txt" | "captions.txt":
            (root / what).unlink()
        case "e.jpg":
            (root / "Flicker8k_Dataset" / what).unlink()
        case "4 captions":
            write(
                root / "Flickr8k.token.txt",
                *[line for line in token_lines() if "e.jpg#4" not in line],
            )
        case "Row 3":
            lines = token_lines()
            write(root / "Flickr8k.token.txt", *lines[:2], "d.jpg#0 no tab", *lines[2:])


@pytest.mark.parametrize(
    "what",
    [
        "Flicker8k_Dataset",
        "Images",
        "Flickr8k.token.txt",
        "captions.txt",
        "e.jpg",
        "4 captions",
        "Row 3",
    ],
)
def test_a_broken_flickr8k_is_refused_by_its_fault(tmp_path, what):
    broken_flickr8k(tmp_path, what)
    with pytest.raises(DataError, match=f"{what}.*miniclip download flickr8k"):
        load_dataset("flickr8k", "test", tmp_path)


def test_missing_flickr8k_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.*Flicker8k_Dataset.*miniclip download flickr8k"):
        load_dataset("flickr8k", "test", tmp_path / "nowhere")


# ---- the user's own folder -------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jpg", "a.png", "sub/c.jpg"):
        picture(tmp_path / name)
    return tmp_path


def test_folder_without_captions(folder):
    data = load_dataset("folder", root=folder)
    assert [path.name for path in data.images] == ["a.png", "b.jpg", "c.jpg"]
    assert data.captions == [[], [], []]
    assert (data.flat_captions, data.split) == ([], "all")


def test_folder_with_captions(folder):
    rows = ["sub/c.jpg,A cat .", 'a.png,"A dog, ""running"" ."', "sub/c.jpg, Two cats"]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *rows]), encoding="utf-8-sig")
    data = load_dataset("folder", "all", folder)
    assert data.captions == [['A dog, "running".'], [], ["A cat.", "Two cats"]]
    assert data.image_of_caption.tolist() == [0, 2, 2]
    assert load_dataset("folder", root=folder, limit=1).captions == [['A dog, "running".']]


def test_a_folder_with_captions_has_three_splits_that_share_nothing(tmp_path):
    for i in range(90):
        picture(tmp_path / f"{i:02}.png")
    write(tmp_path / "captions.csv", "image,caption", *(f"{i:02}.png,Thing {i}" for i in range(70)))
    load = lambda: {
        split: load_dataset("folder", split, tmp_path) for split in ("train", "dev", "test")
    }
    parts = load()
    assert (
        sum(map(len, parts.values()))
        == len({path for data in parts.values() for path in data.images})
        == 70
    )
    assert min(map(len, parts.values())) > 0
    for data in parts.values():
        assert data.captions == [[f"Thing {int(path.stem)}"] for path in data.images]
    assert len(load_dataset("folder", root=tmp_path)) == 90
    write(tmp_path / "captions.csv", "image,caption", *(f"{i:02}.png,Thing {i}" for i in range(90)))
    for split, data in load().items():  # an image keeps its split while the folder grows
        assert {*parts[split].images} <= {*data.images}
    write(tmp_path / "captions.csv", "image,caption", "01.png,Thing 1")
    with pytest.raises(
        DataError, match=r"1 images have captions in .*captions.csv: three splits need 6"
    ):
        load_dataset("folder", "train", tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["image,text", "b.jpg,A dog"],
            r"captions.csv has no column caption. Its first row: image, text",
        ),
        ([""], r"captions.csv has no column caption or image"),
        (["image,caption", "b.jpg,A dog", "x.jpg,A cat"], r"Row 3 of .*captions.csv .*'x.jpg'"),
        (["image,caption", "../b.jpg,A dog"], r"Row 2 of .*'../b.jpg'"),
        (["image,caption", "b.jpg,A dog", 'b.jpg," "'], r"Row 3 of .* empty caption"),
        (["image,caption", "b.jpg"], r"Row 2 of .* empty caption"),
        (["image,caption", "b.jpg,A dog, running"], r"Row 2 of .* too many columns"),
        (
            ["image,caption", "b.jpg,A dog", 'b.jpg,"A dog', "a.png,A cat"],
            r"Row 3 of .* not sound CSV",
        ),
    ],
)
def test_a_bad_captions_file_is_refused_by_row(folder, lines, message):
    write(folder / "captions.csv", *lines)
    with pytest.raises(DataError, match=message):
        load_dataset("folder", root=folder)


def test_captions_in_another_encoding_are_refused(folder):
    (folder / "captions.csv").write_bytes("image,caption\nb.jpg,Café".encode("latin-1"))
    with pytest.raises(DataError, match=r"captions.csv is not UTF-8"):
        load_dataset("folder", root=folder)


def test_a_folder_that_is_missing_or_holds_no_image_is_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        load_dataset("folder", root=tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"no image in {tmp_path}"):
        load_dataset("folder", root=tmp_path)


def test_a_corrupt_image_is_refused_when_used_or_skipped_by_option(folder):
    truncated(folder / "cut.jpg")
    write(folder / "captions.csv", "image,caption", "cut.jpg,A cut .", "sub/c.jpg,A cat .")
    data = load_dataset("folder", root=folder)
    assert len(data) == 4
    with pytest.raises(DataError, match=r"cut.jpg"):
        load_image(data.images[2])
    with pytest.warns(
        UserWarning, match=r"Left out 1 of 4 images of 'folder':\n.*cut.jpg"
    ) as caught:
        data = load_dataset("folder", root=folder, on_bad="skip")
    assert caught[0].filename == __file__
    assert [path.name for path in data.images] == ["a.png", "b.jpg", "c.jpg"]
    assert data.captions == [[], [], ["A cat."]]


# ---- the real captions -----------------------------------------------------------------------------


def test_every_real_caption_comes_out_clean():
    datasets = os.environ.get("MINICLIP_DATA") or Path(__file__).parents[2] / "shared" / "datasets"
    zipped = Path(datasets) / "flickr8k" / "Flickr8k_text.zip"
    if not zipped.exists():
        pytest.skip(
            f"no {zipped}: set MINICLIP_DATA to a folder that holds flickr8k/Flickr8k_text.zip"
        )
    lines = zipfile.ZipFile(zipped).read("Flickr8k.token.txt").decode().splitlines()
    captions = [clean_caption(line.split("\t")[1]) for line in lines]
    assert len(captions) == 40460
    assert all(captions)
    assert not [
        text
        for text in captions
        if "  " in text or " ." in text or " ," in text or text.count('"') % 2
    ]
    assert [clean_caption(text) for text in captions] == captions


# ---- images with classes, free photos, human judgements --------------------------------------------


@pytest.mark.parametrize("inside", ["", "test", "caltech101_subset/101_ObjectCategories"])
def test_class_folders_are_found_whatever_lies_round_them(tmp_path, pairs, inside):
    for name, count in (("cat", 2), ("stop_sign", 1), ("BACKGROUND_Google", 1)):
        (tmp_path / inside / name).mkdir(parents=True)
        for i in range(count):
            pairs.images[i].save(tmp_path / inside / name / f"{i}.png")
    (tmp_path / inside / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / inside / "empty").mkdir()
    data = mc.load_labelled(tmp_path)
    assert data.classes == ["cat", "stop_sign"]
    assert data.labels.tolist() == [0, 0, 1]
    assert [path.name for path in data.images] == ["0.png", "1.png", "0.png"]
    assert data.subset([2]).labels.tolist() == [1]


def test_labelled_scenes_show_what_their_label_says():
    data = mc.load_labelled("sample")
    assert (len(data), len(data.classes)) == (200, 40)
    scene = make_scene("unseen", 7)
    assert data.classes[data.labels[7]] == scene.groups[0].name
    assert np.bincount(data.labels).tolist() == [5] * 40


@pytest.mark.parametrize("name", ["cifar10", "caltech101", "nowhere"])
def test_missing_class_folders_are_named(tmp_path, name):
    with pytest.raises(mc.DataError, match="a folder of images for each class"):
        mc.load_labelled(name, tmp_path / "nothing" if name != "nowhere" else None)


def test_torchvisions_cifar10_is_read(tmp_path, monkeypatch):
    class Two:
        def __init__(self, root, train):
            self.data = np.zeros((2, 32, 32, 3), np.uint8)
            self.targets, self.classes = [1, 0], ["airplane", "automobile"]

    monkeypatch.setattr("minicliplib.datasets.labelled.CIFAR10", Two)
    (tmp_path / "cifar-10-batches-py").mkdir()
    data = mc.load_labelled("cifar10", tmp_path)
    assert data.labels.tolist() == [1, 0]
    assert data.images[0].size == (32, 32)


def test_free_photos_come_with_captions():
    photos = mc.load_dataset("photos")
    assert len(photos) == 6
    assert all(mc.load_image(path).size[0] > 100 for path in photos.images)
    assert all(len(captions) == 1 for captions in photos.captions)


def test_expert_judgements_leave_out_a_photos_own_captions(tmp_path):
    (tmp_path / "Images").mkdir()
    rows = [f"{name}.jpg#{i}\tcaption {i} of {name}" for name in "ab" for i in range(2)]
    (tmp_path / "Flickr8k.token.txt").write_text("\n".join(rows) + "\n")
    (tmp_path / "ExpertAnnotations.txt").write_text(
        "a.jpg\tb.jpg#1\t1\t2\t4\na.jpg\ta.jpg#0\t4\t4\t4\n"
    )
    (tmp_path / "CrowdFlowerAnnotations.txt").write_text(
        "b.jpg\ta.jpg#0\t0.25\t1\t3\nb.jpg\tb.jpg#0\t1.0\t3\t0\n"
    )
    expert, crowd = mc.load_judgements("expert", tmp_path), mc.load_judgements("crowd", tmp_path)
    assert expert["rating"].tolist() == [1, 2, 4]
    assert set(expert["caption"]) == {"caption 1 of b"}
    assert crowd["rating"].tolist() == [0.25, 1.0]
    assert crowd.iloc[0].to_dict() == {
        "image": tmp_path / "Images/b.jpg",
        "caption": "caption 0 of a",
        "rating": 0.25,
    }
    with pytest.raises(mc.DataError, match="Known: expert, crowd"):
        mc.load_judgements("friends", tmp_path)


def test_datasets_are_joined_by_a_plus(tmp_path):
    joined = load_dataset("photos+sample", "test", limit=3)
    parts = [load_dataset(name, "test", limit=3) for name in ("photos", "sample")]
    assert joined.name == "photos+sample"
    assert joined.captions == parts[0].captions + parts[1].captions
    assert joined.images[:3] == parts[0].images
    assert [i.tobytes() for i in joined.images[3:]] == [i.tobytes() for i in parts[1].images]
    with pytest.raises(DataError, match="Unknown dataset 'imagenet'"):
        load_dataset("imagenet+sample")
    with pytest.raises(DataError, match=str(tmp_path / "flickr8k")):
        load_dataset("flickr8k+sample", root=tmp_path)


# ---- MS COCO ---------------------------------------------------------------------------------------


def coco(root, part, ids, absent=()):
    """Make a part of COCO in its official form, its images empty files: two captions each, the second odd."""
    images = [{"id": i, "file_name": f"{i:012}.jpg", "license": 1} for i in ids]
    texts = [(i, text) for i in ids for text in (f"Thing {i}.", f"Thing {i}  again \n")]
    record = {
        "images": images[::-1],
        "annotations": [{"image_id": i, "caption": text} for i, text in texts],
    }
    (root / part).mkdir(parents=True)
    for image in images:
        if image["id"] not in absent:
            (root / part / image["file_name"]).touch()
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"captions_{part}.json").write_text(json.dumps(record))


def numbers(data):
    return [int(path.stem) for path in data.images]


def test_coco_val_alone_is_split_three_ways(tmp_path):
    coco(tmp_path / "deeper", "val2017", range(520))
    parts = {split: load_dataset("coco", split, tmp_path) for split in ("train", "dev", "test")}
    assert {split: len(data) for split, data in parts.items()} == {
        "train": 20,
        "dev": 250,
        "test": 250,
    }
    assert sorted(number for data in parts.values() for number in numbers(data)) == list(range(520))
    assert all(numbers(data) == sorted(numbers(data)) for data in parts.values())
    data = parts["dev"]
    assert data.captions == [[f"Thing {i}.", f"Thing {i} again"] for i in numbers(data)]
    assert numbers(load_dataset("coco", "dev", tmp_path, limit=3)) == numbers(data)[:3]


def test_coco_train_trains_and_val_is_halved(tmp_path):
    coco(tmp_path, "train2017", range(100, 130))
    coco(tmp_path, "val2017", range(11))
    assert numbers(load_dataset("coco", "train", tmp_path)) == list(range(100, 130))
    dev, test = (numbers(load_dataset("coco", split, tmp_path)) for split in ("dev", "test"))
    assert (len(dev), len(test)) == (5, 5)
    assert not set(dev) & set(test)


def test_coco_in_karpathys_splits(tmp_path):
    splits = {"train": [1, 2], "restval": [3], "val": [4], "test": [5]}
    entries = [
        {
            "filepath": "val2014",
            "filename": f"{i}.jpg",
            "cocoid": i,
            "split": split,
            "sentences": [{"raw": f"Thing {i}"}],
        }
        for split, ids in splits.items()
        for i in ids
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    (tmp_path / "val2014").mkdir()
    for i in range(1, 6):
        (tmp_path / "val2014" / f"{i}.jpg").touch()
    found = lambda: {
        split: numbers(load_dataset("coco", split, tmp_path)) for split in ("train", "dev", "test")
    }
    assert found() == {"train": [1, 2, 3], "dev": [4], "test": [5]}
    (tmp_path / "val2014").rename(
        tmp_path / "val2017"
    )  # a copy of 2017 holds the same photos under other names
    (tmp_path / "train2017").mkdir()
    with pytest.raises(
        DataError, match=r"None of 3 listed images is there, the first not as .*val2014/1.jpg"
    ):
        found()
    for i in range(1, 6):
        (tmp_path / "val2017" / f"{i}.jpg").rename(
            tmp_path / ("train2017", "val2017")[i % 2] / f"{i:012}.jpg"
        )
    assert found() == {"train": [1, 2, 3], "dev": [4], "test": [5]}


def test_coco_images_that_are_not_there_are_counted_and_left_out(tmp_path):
    coco(tmp_path, "train2017", range(1200), absent=range(0, 1200, 2))
    with pytest.warns(
        UserWarning, match="^600 of 1,200 listed images are not there and left out.$"
    ):
        data = load_dataset("coco", "train", tmp_path)
    assert numbers(data) == list(range(1, 1200, 2))


def test_coco_in_pieces_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"no folder val2017\. Get it with: miniclip download coco"):
        load_dataset("coco", "train", tmp_path)
    coco(tmp_path, "val2017", range(3))
    file = tmp_path / "annotations" / "captions_val2017.json"
    file.write_text("{")
    with pytest.raises(
        DataError, match=r"captions_val2017.json is not sound JSON .*: get it again"
    ):
        load_dataset("coco", "train", tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=r"no captions_val2017\.json\. Get it with"):
        load_dataset("coco", "train", tmp_path)
