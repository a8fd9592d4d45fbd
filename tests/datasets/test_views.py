"""Views of an image: plain, mirrored, random crops that repeat, and batches prepared ahead."""

import threading

import numpy as np
import pytest
from PIL import Image, ImageOps

from minicliplib.datasets.images import DataError
from minicliplib.datasets.views import prefetch, random_crop, square_view


def as_array(image):
    return np.asarray(image).astype(int)


# ---- one view ------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", [0, 1, 2, 9])
def test_every_view_is_an_rgb_square(photo, view):
    for image in (photo, photo.convert("L"), photo.rotate(90, expand=True)):
        square = square_view(image, 64, view)
        assert square.size == (64, 64)
        assert square.mode == "RGB"


def test_a_file_and_an_image_in_memory_give_the_same_view(photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    in_memory = square_view(photo, 64)
    assert square_view(tmp_path / "photo.png", 64) == in_memory
    assert square_view(str(tmp_path / "photo.png"), 64) == in_memory


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png"):
        square_view(tmp_path / "bad.png", 64)


def test_the_plain_view_holds_the_whole_image(photo):
    assert square_view(photo, 64) == photo.resize((64, 64), Image.Resampling.BICUBIC)


def test_the_mirrored_view_is_the_plain_view_of_the_mirrored_image(photo):
    assert square_view(photo, 64, view=1) == square_view(ImageOps.mirror(photo), 64)


def test_a_crop_follows_from_view_and_seed_alone(photo):
    crop = square_view(photo, 64, view=2, seed=7)
    assert square_view(photo, 64, view=2, seed=7) == crop
    assert square_view(photo, 64, view=3, seed=7) != crop
    assert square_view(photo, 64, view=2, seed=8) != crop
    assert square_view(photo, 64) != crop


# ---- random windows ------------------------------------------------------------------------------


@pytest.fixture
def map_of_places():
    """An image of 120 x 90 whose red channel holds a pixel's column, and its green one the row."""
    columns, rows = np.meshgrid(np.arange(120), np.arange(90))
    pixels = np.stack([columns, rows, np.zeros_like(rows)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def test_a_window_is_cut_from_the_image_in_one_piece(map_of_places):
    for seed in range(50):
        window = random_crop(map_of_places, np.random.default_rng(seed))
        pixels = as_array(window)
        columns = np.sort(pixels[0, :, 0])
        rows = pixels[:, 0, 1]
        assert np.array_equal(columns, np.arange(columns[0], columns[0] + window.width))
        assert np.array_equal(rows, np.arange(rows[0], rows[0] + window.height))


def test_a_window_has_half_of_the_area_or_more(map_of_places):
    shares = []
    for seed in range(300):
        window = random_crop(map_of_places, np.random.default_rng(seed))
        shares.append(window.width * window.height / (120 * 90))

        # At most 5/4 wider or taller than the image, but for the rounding to whole pixels.
        wider = (window.width / window.height) / (120 / 90)
        assert 0.8 - 0.02 < wider < 1.25 + 0.02
    assert min(shares) > 0.5 - 0.02
    assert max(shares) <= 1
    assert max(shares) - min(shares) > 0.4


def test_half_of_the_windows_are_mirrored(map_of_places):
    mirrored = 0
    for seed in range(300):
        first_row = as_array(random_crop(map_of_places, np.random.default_rng(seed)))[0]
        mirrored += first_row[0, 0] > first_row[-1, 0]
    assert 120 < mirrored < 180


# ---- tiny images ---------------------------------------------------------------------------------


def test_a_tiny_image_keeps_a_border_of_its_mean_colour():
    tiny = Image.new("RGB", (32, 32), (200, 100, 50))
    tiny.paste((0, 0, 0), (8, 8, 24, 24))
    mean = as_array(tiny).mean((0, 1))
    pixels = as_array(square_view(tiny, 224))
    assert pixels.shape == (224, 224, 3)
    # the border
    assert np.abs(pixels[0, 0] - mean).max() / 255 < 0.01
    # the middle, which is black
    assert pixels[112, 112].max() / 255 < 0.01


def test_a_larger_image_reaches_to_the_edge():
    large = Image.new("RGB", (64, 64), (200, 100, 50))
    large.paste((0, 0, 0), (16, 16, 48, 48))
    corner = as_array(square_view(large, 224))[0, 0]
    assert np.abs(corner - [200, 100, 50]).max() / 255 < 0.05


# ---- batches ahead -------------------------------------------------------------------------------


def test_prefetch_yields_everything_in_order():
    assert list(prefetch(iter(range(7)))) == list(range(7))
    assert list(prefetch(iter([]))) == []
    # None and False are items like any other
    assert list(prefetch(iter([None, False]))) == [None, False]


def test_the_next_item_is_prepared_in_another_thread_meanwhile():
    second_prepared = threading.Event()
    threads = set()

    def items():
        threads.add(threading.get_ident())
        yield "first"
        second_prepared.set()
        yield "second"

    ahead = prefetch(items())
    assert next(ahead) == "first"
    # nobody has asked for the second yet
    assert second_prepared.wait(timeout=10)
    assert next(ahead) == "second"
    assert threading.get_ident() not in threads


def test_an_error_comes_in_its_turn():
    def items():
        yield "first"
        raise DataError("bad.jpg")

    ahead = prefetch(items())
    assert next(ahead) == "first"
    with pytest.raises(DataError, match="bad"):
        next(ahead)
