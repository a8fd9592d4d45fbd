"""Figures look the same wherever they are drawn, and change no setting of matplotlib."""

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

from minicliplib.analysis import figures
from minicliplib.analysis.relevance import overlay
from minicliplib.datasets.images import load_image

IMAGES = [Image.new("RGB", (80, 60), colour) for colour in ("red", "green", "blue")]
CAPTIONS = ["a red wall", "a green wall", "a blue wall"]
MAP = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
SHARES = [("good", 0.2), ("bad", -0.1)]
DROPS = [("good", 0.1), ("bad", 0.3)]
# One example of every public function that returns a figure.
EXAMPLES: dict[str, Callable[[], Figure]] = {
    "pairs": lambda: figures.pairs(IMAGES, CAPTIONS, columns=2),
    "captions_of": lambda: figures.captions_of(IMAGES[0], CAPTIONS, [0.3, 0.2, 0.1], [True, 0, 0]),
    "image_gallery": lambda: figures.image_gallery(["red"], [[(IMAGES[0], 0.3)]], [[True]]),
    "predictions": lambda: figures.predictions(IMAGES, [[("red", 0.8), ("blue", 0.2)]] * 3),
    "thumbnails": lambda: figures.thumbnails([[0, 0], [1, 2], [2, 1]], IMAGES),
    "similarity": lambda: figures.similarity(np.eye(3), CAPTIONS, IMAGES),
    "relevance": lambda: figures.relevance(IMAGES[:2], [MAP, None], ["a", "b"], columns=2),
    "words": lambda: figures.words([("right", SHARES, DROPS)]),
}


@pytest.fixture(autouse=True)
def as_it_was():
    """Give back matplotlib's settings, and close what was drawn."""
    with plt.rc_context():
        yield
    sns.set_color_codes("reset")
    plt.close("all")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# ---- settings --------------------------------------------------------------------------


@pytest.mark.slow
def test_an_import_changes_no_setting():
    code = """
import matplotlib, matplotlib.colors
settings = dict(matplotlib.rcParams)
codes = dict(matplotlib.colors.get_named_colors_mapping())
import minicliplib.analysis.figures
assert dict(matplotlib.rcParams) == settings
assert dict(matplotlib.colors.get_named_colors_mapping()) == codes
"""
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"MPLBACKEND": "agg"}, check=True)


def test_there_is_an_example_of_every_figure():
    functions = inspect.getmembers(figures, inspect.isfunction)
    drawing = {
        name
        for name, function in functions
        if not name.startswith("_") and inspect.signature(function).return_annotation is Figure
    }
    assert drawing == set(EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_drawing_changes_no_setting_and_needs_none(name):
    before = dict(plt.rcParams)
    drawn = EXAMPLES[name]()
    assert dict(plt.rcParams) == before
    bare = figures.save(drawn, f"{name}_bare", "sample")
    assert dict(plt.rcParams) == before

    figures.set_theme()
    themed = figures.save(EXAMPLES[name](), f"{name}_themed", "sample")
    assert np.array_equal(pixels(bare), pixels(themed))


def test_an_error_leaves_the_settings_as_they_were():
    before = dict(plt.rcParams)
    with pytest.raises(ValueError, match="zip"):
        figures.image_gallery(["one", "two"], [[(IMAGES[0], 0.3)]])
    assert dict(plt.rcParams) == before


def test_the_theme_is_for_charts_of_your_own():
    figures.set_theme()
    assert plt.rcParams["figure.constrained_layout.use"]
    assert plt.rcParams["axes.grid"]
    assert plt.rcParams["axes.prop_cycle"].by_key()["color"][0] == figures.BLUE


# ---- files -----------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["sample", "photos", "flickr8k"])
def test_photos_that_may_not_be_shown_stay_with_the_data(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("MINICLIP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MINICLIP_OUT", str(tmp_path / "out"))
    chart = figures.save(EXAMPLES["words"](), "words", dataset)
    photos = figures.save(EXAMPLES["pairs"](), "pairs", dataset, photos=True)

    assert chart == tmp_path / "out" / "figures" / dataset / "words.png"
    place = "home" if dataset == "flickr8k" else "out"
    assert photos == tmp_path / place / "figures" / dataset / "pairs.jpg"
    with Image.open(photos) as image:
        assert image.format == "JPEG"


# ---- what is drawn ---------------------------------------------------------------------


def test_relevance_shows_each_image_under_its_map_or_as_it_is():
    fig = EXAMPLES["relevance"]()
    first, second, scale = fig.axes
    assert scale.get_ylabel() == "relevance (0 to 1)"
    shown = ((first, overlay(IMAGES[0], MAP)), (second, load_image(IMAGES[1])))
    for ax, image in shown:
        expected = image.resize((160, 160), Image.Resampling.BILINEAR)
        (drawn,) = ax.images
        assert np.array_equal(drawn.get_array(), np.asarray(expected))


def test_words_have_a_bar_for_each_measure():
    (ax,) = EXAMPLES["words"]().axes
    assert [bar.get_width() for bar in ax.patches] == [0.2, -0.1, 0.1, 0.3]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["good", "bad"]


def test_similarity_writes_no_minus_zero():
    fig = figures.similarity(np.array([[-0.001, 0.5]]), ["a", "b"])
    assert [text.get_text() for text in fig.axes[0].texts] == ["0.00", "0.50"]
