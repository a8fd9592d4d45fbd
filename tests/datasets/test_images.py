"""Image files: whatever kind they are, they show what they hold, and damaged ones are named."""

import os
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from dataset_files import write_half_an_image, write_image, write_lines
from PIL import Image

from minicliplib.datasets import images
from minicliplib.datasets.images import DataError, identity, image_files, load_image, readable

BLACK = (0, 0, 0)
WHITE = (255, 255, 255)
RED = (255, 0, 0)


def first_row(image):
    return [image.getpixel((x, 0)) for x in range(image.width)]


# ---- kinds of images -----------------------------------------------------------------------------


@pytest.fixture
def transparent_files(tmp_path):
    """Three files of a red pixel and a transparent one, each transparent in its own way."""
    rgba = Image.new("RGBA", (2, 1), (*RED, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    rgba.save(tmp_path / "rgba.png")

    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *BLACK])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "number.png", transparency=1)
    palette.save(tmp_path / "bytes.png", transparency=b"\xff\x00")
    return [tmp_path / name for name in ("rgba.png", "number.png", "bytes.png")]


def test_transparency_becomes_white(transparent_files):
    for path in transparent_files:
        image = load_image(path)
        assert image.mode == "RGB"
        assert first_row(image) == [RED, WHITE], path


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert first_row(load_image(tmp_path / "deep.png")) == [BLACK, (100, 100, 100), WHITE]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_thirty_two_bits_are_scaled_by_the_brightest(tmp_path, dtype):
    Image.fromarray(np.array([[0, 100, 200]], dtype)).save(tmp_path / "deep.tif")
    assert first_row(load_image(tmp_path / "deep.tif")) == [BLACK, (127, 127, 127), WHITE]


@pytest.fixture
def black_and_white():
    """An image whose left half is black, and its right half white."""
    image = Image.new("L", (16, 16), 255)
    image.paste(0, (0, 0, 8, 16))
    return image


@pytest.mark.parametrize(("mode", "file"), [("LA", "a.png"), ("PA", "a.tif"), ("CMYK", "a.tif")])
def test_rarer_modes_show_what_they_hold(tmp_path, black_and_white, mode, file):
    black_and_white.convert("RGBA").convert(mode).save(tmp_path / file)
    assert first_row(load_image(tmp_path / file)) == [BLACK] * 8 + [WHITE] * 8


def test_sixteen_bits_in_the_other_byte_order(tmp_path, black_and_white):
    Image.fromarray(np.array(black_and_white, ">u2") * 257).save(tmp_path / "a.tif")
    assert first_row(load_image(tmp_path / "a.tif")) == [BLACK] * 8 + [WHITE] * 8


def test_first_frame_of_a_moving_webp(tmp_path, black_and_white):
    image = black_and_white.convert("RGB")
    turned = image.rotate(180)
    image.save(tmp_path / "a.webp", save_all=True, append_images=[turned], lossless=True)
    assert first_row(load_image(tmp_path / "a.webp")) == [BLACK] * 8 + [WHITE] * 8


def test_first_frame_of_a_gif(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "two.gif").getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    ("mode", "value", "file", "expected"),
    [
        ("L", 90, "l.png", (90, 90, 90)),
        ("1", 1, "1.png", WHITE),
        ("CMYK", 0, "c.jpg", WHITE),
    ],
)
def test_other_modes_become_rgb(tmp_path, mode, value, file, expected):
    Image.new(mode, (8, 8), value).save(tmp_path / file)
    image = load_image(str(tmp_path / file))
    assert image.mode == "RGB"
    assert image.getpixel((4, 4)) == expected


# ---- orientation, size, copies -------------------------------------------------------------------


def odd_exif() -> bytes:
    """Return EXIF that turns an image, beside a tag on which ``ImageOps.exif_transpose`` fails."""
    # clockwise: what is stored on the left belongs on top
    turn = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    # a width in words
    odd = struct.pack("<HHI4s", 0x0100, 2, 4, b"big")
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + odd + turn + bytes(4)


@pytest.mark.parametrize("hint", [None, 20])
@pytest.mark.parametrize("file", ["turned.png", "turned.jpg", "turned.tif"])
def test_exif_rotation_is_applied(tmp_path, file, hint):
    exif = odd_exif()
    if file.endswith("tif"):
        exif = Image.Exif()
        exif[0x0112] = 6
    image = Image.new("RGB", (200, 100), "white")
    image.paste("black", (0, 0, 100, 100))
    image.save(tmp_path / file, exif=exif)

    upright = load_image(tmp_path / file, hint)
    is_small = hint is not None and file.endswith("jpg")
    assert upright.size == ((25, 50) if is_small else (100, 200))
    assert upright.getpixel((5, 2)) == BLACK
    assert upright.getpixel((5, 47 * upright.height // 50)) == WHITE


def test_hint_decodes_a_large_jpeg_small_but_not_below(tmp_path):
    path = tmp_path / "large.jpg"
    write_image(path, size=(1000, 600))
    assert load_image(path).size == (1000, 600)
    assert load_image(path, hint=224).size == (500, 300)
    assert load_image(path, hint=301).size == (1000, 600)
    assert load_image(path, hint=5000).size == (1000, 600)


def test_an_image_in_memory_is_copied():
    image = Image.new("RGB", (2, 2), "red")
    load_image(image).putpixel((0, 0), BLACK)
    assert image.getpixel((0, 0)) == RED


def test_images_load_in_threads(tmp_path):
    for i in range(40):
        write_image(tmp_path / f"{i:02}.png", color=(i, 0, 0))
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(load_image, image_files(tmp_path)))
    assert [image.getpixel((0, 0))[0] for image in images] == list(range(40))


# ---- damaged files -------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", ["jpg", "png", "gif", "webp"])
@pytest.mark.parametrize("hint", [None, 8])
def test_a_truncated_image_is_refused_by_name(tmp_path, extension, hint):
    path = tmp_path / f"cut.{extension}"
    write_half_an_image(path)
    with pytest.raises(DataError, match=path.name):
        load_image(path, hint)


@pytest.mark.parametrize("name", ["page.jpg", "empty.jpg", "absent.jpg", "."])
def test_what_is_no_image_is_refused_by_name(tmp_path, name):
    write_lines(tmp_path / "page.jpg", "<html>")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(DataError, match=name):
        load_image(tmp_path / name)


def test_readable_tells_good_from_bad(tmp_path):
    write_image(tmp_path / "good.png")
    write_half_an_image(tmp_path / "cut.png")
    good, faults = readable(
        [tmp_path / "cut.png", tmp_path / "good.png", Image.new("L", (1, 1)), tmp_path / "none.png"]
    )
    assert good == [1, 2]
    assert len(faults) == 2
    assert "cut.png" in faults[0]
    assert "none.png" in faults[1]


# ---- a folder's files ----------------------------------------------------------------------------


def test_image_files_are_sorted_and_searched_in_subfolders(tmp_path):
    for name in ("b.PNG", "sub/c.jpeg", "a.jpg", ".hidden/x.jpg", "._a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    write_lines(tmp_path / "notes.txt", "no image")
    (tmp_path / "folder.jpg").mkdir()
    names = [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)]
    assert names == ["a.jpg", "b.PNG", "sub/c.jpeg"]


# ---- identity ------------------------------------------------------------------------------------


def test_a_file_goes_by_its_name_size_and_time(tmp_path):
    path = tmp_path / "one" / "a.png"
    write_image(path)
    os.utime(path, ns=(0, 5_000_000_000))
    assert identity(path) == f"a.png {path.stat().st_size} 5000000000"


def test_a_caption_is_its_own_identity():
    assert identity("A dog.") == "A dog."


def test_images_of_the_same_bytes_differ_in_mode_size_or_palette():
    grey = Image.new("L", (6, 1), 7)
    tall = Image.new("L", (1, 6), 7)
    coloured = Image.new("RGB", (2, 1), (7, 7, 7))
    red = Image.new("P", (6, 1), 7)
    red.putpalette(RED * 8)
    blue = Image.new("P", (6, 1), 7)
    blue.putpalette((0, 0, 255) * 8)

    images = [grey, tall, coloured, red, blue]
    assert len({image.tobytes() for image in images}) == 1
    assert len({identity(image) for image in images}) == len(images)
    assert identity(grey.copy()) == identity(grey)


def test_hidden_and_system_folders_and_what_is_excluded_are_left_out(tmp_path):
    names = (
        *("a.png", "b.jpg", "2019/c.png", "2019/deep/d.png", "trip/e.png", "trip/f.jpg"),
        *(".thumbs/g.png", "@eaDir/h.png", "trip/__MACOSX/i.png", ".hidden.png"),
    )
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def found(*exclude):
        return [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path, exclude)]

    assert found() == [
        "2019/c.png",
        "2019/deep/d.png",
        "a.png",
        "b.jpg",
        "trip/e.png",
        "trip/f.jpg",
    ]
    assert found("2019") == ["a.png", "b.jpg", "trip/e.png", "trip/f.jpg"]
    assert found("*.png") == ["b.jpg", "trip/f.jpg"]
    assert found("deep/", "trip/f*") == ["2019/c.png", "a.png", "b.jpg", "trip/e.png"]
    with pytest.raises(DataError, match="that is not excluded"):
        found("*")


def test_heic_photos_are_read_where_the_extra_is_installed(tmp_path, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.HEIC")
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "b.png")

    assert [path.name for path in image_files(tmp_path)] == ["a.HEIC", "b.png"]
    image = load_image(tmp_path / "a.HEIC")
    assert image.size == (40, 30)
    red, green, blue = np.asarray(image)[15, 20].tolist()
    assert red > 200
    assert max(green, blue) < 60

    # Without the extra one sentence says what was left out, and how to read it.
    monkeypatch.setattr(images, "_reads_heic", lambda: False)
    with pytest.warns(UserWarning, match=r"1 HEIC images are left out: pip install .*photos"):
        assert [path.name for path in image_files(tmp_path)] == ["b.png"]
