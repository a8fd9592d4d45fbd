"""Figures that show images, and what all figures share: theme, palette, and ``save``.

Every function takes plain data and returns a matplotlib ``Figure``. Charts are in ``charts``.

All figures share one theme, and a palette that colour-blind readers can tell apart (Okabe & Ito
2008, as seaborn has it). Importing this module changes no setting of matplotlib: each function
draws under the theme and then gives back the settings that it found. A notebook that wants its own
charts to look alike calls ``set_theme()``.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from textwrap import fill
from typing import Any, ParamSpec

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from PIL import Image

from ..datasets.images import load_image
from ..encoders import ImageLike
from ..paths import data_root, output_root
from .relevance import overlay

PALETTE = sns.color_palette("colorblind")
BLUE = PALETTE[0]
ORANGE = PALETTE[1]
GREEN = PALETTE[2]
RED = PALETTE[3]
GREY = PALETTE[7]

# Frames of retrieved items.
RIGHT = GREEN
WRONG = RED

# Matplotlib's settings for all figures, by their names in ``plt.rcParams``.
THEME: dict[Any, Any] = {
    **sns.plotting_context("paper"),
    **sns.axes_style("whitegrid"),
    "axes.prop_cycle": plt.cycler("color", PALETTE),
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
    "savefig.bbox": "tight",
}

FREE_TO_SHOW = ("sample", "photos")  # datasets whose images may be published
JPEG_QUALITY = 90  # of a figure with images

# An item with its score: a caption's word and its share, or a label and its probability.
Scored = tuple[str, float]

Arguments = ParamSpec("Arguments")


def set_theme() -> None:
    """Make the theme of these figures that of all charts in this process.

    A notebook calls it once, for the charts that it draws itself.
    """
    plt.rcParams.update(THEME)
    sns.set_color_codes("colorblind")  # what "b" or "k" stand for


def themed(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Let a function draw under the theme, whatever the caller's settings are."""

    @wraps(draw)
    def draw_under_theme(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with plt.rc_context(THEME):
            fig = draw(*args, **kwargs)
            # Matplotlib makes ticks when it needs the first one, with the settings of that moment.
            for ax in fig.axes:
                for axis in (ax.xaxis, ax.yaxis):
                    axis.get_major_ticks(1)
                    axis.get_minor_ticks(1)
        return fig

    return draw_under_theme


def save(fig: Figure, name: str, dataset: str, photos: bool = False) -> Path:
    """Write a figure to ``figures/<dataset>/<name>`` and return the path.

    A chart is written as PNG. With ``photos`` the figure shows images of the dataset, and is
    written as JPEG. Where these images may not be redistributed, it goes to ``data_root()``
    instead, which git ignores: no committed file shows one.
    """
    private = photos and dataset not in FREE_TO_SHOW
    root = data_root() if private else output_root()
    path = root / "figures" / dataset / f"{name}{'.jpg' if photos else '.png'}"
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"dpi": 150}
    if photos:
        options = {"dpi": 110, "pil_kwargs": {"quality": JPEG_QUALITY, "subsampling": 0}}
    with plt.rc_context(THEME):
        fig.savefig(path, **options)
    return path


# ---- images and captions -------------------------------------------------------------


@themed
def pairs(images: Sequence[ImageLike], captions: Sequence[str], columns: int = 4) -> Figure:
    """Draw images with one caption each, in a grid."""
    rows = _rows_needed(len(images), columns)
    fig, axes = plt.subplots(rows, columns, figsize=(2.2 * columns, 2.6 * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, caption in zip(axes.flat, images, captions, strict=False):
        ax.axis("on")
        _draw_image(ax, image, caption)
    return fig


@themed
def captions_of(
    image: ImageLike,
    captions: Sequence[str],
    scores: Sequence[float] | None = None,
    right: Sequence[bool] | None = None,
) -> Figure:
    """Draw one image and a list of captions beside it.

    Each caption stands after its score, if there are any, and in the colour of whether it is
    ``right``, if that is known.
    """
    fig, (left, beside) = plt.subplots(1, 2, figsize=(8, 2.6), width_ratios=[1, 2.2])
    _draw_image(left, image)
    beside.axis("off")

    for i, caption in enumerate(captions):
        text = caption
        colour = "black"
        if right is not None:
            text = f"✓ {text}" if right[i] else f"✗ {text}"
            colour = RIGHT if right[i] else WRONG
        if scores is not None:
            text = f"{scores[i]:.2f}  {text}"
        y = 1 - (i + 0.5) / len(captions)
        beside.text(0, y, fill(text, 70), va="center", fontsize=9, color=colour)
    return fig


@themed
def image_gallery(
    queries: Sequence[str],
    results: Sequence[Sequence[tuple[ImageLike, float]]],
    right: Sequence[Sequence[bool]] | None = None,
) -> Figure:
    """Draw a row per query with its ``(image, score)`` results; right ones are ticked."""
    rows = len(queries)
    columns = len(results[0]) + 1
    fig, axes = plt.subplots(rows, columns, figsize=(1.7 * columns, 1.85 * rows), squeeze=False)

    for row, (query, found) in enumerate(zip(queries, results, strict=True)):
        query_cell, *result_cells = axes[row]
        query_cell.axis("off")
        query_cell.text(0.5, 0.5, fill(f"“{query}”", 16), ha="center", va="center", fontsize=11)

        for column, (image, score) in enumerate(found):
            title = f"{score:.2f}"
            frame = None
            if right is not None and right[row][column]:
                title = f"{title} ✓"
                frame = RIGHT
            _draw_image(result_cells[column], image, title, frame)
    return fig


@themed
def predictions(images: Sequence[ImageLike], guesses: Sequence[Sequence[Scored]]) -> Figure:
    """Draw each image over bars of its most probable labels.

    ``guesses`` are what ``ZeroShotClassifier.predict`` gives: for each image its labels with their
    probabilities, the most probable first.
    """
    fig, axes = plt.subplots(
        2, len(images), figsize=(1.9 * len(images), 3), height_ratios=[2, 1], squeeze=False
    )
    for (top, bottom), image, guess in zip(axes.T, images, guesses, strict=True):
        _draw_image(top, image)
        # Bars grow from below, so the most probable label comes last.
        for y, (name, probability) in enumerate(reversed(guess)):
            bottom.barh(y, 100 * probability, color=BLUE, alpha=0.5)
            bottom.text(2, y, f"{name} {probability:.0%}", va="center", fontsize=8)
        bottom.set(xlim=(0, 100), yticks=[], xticks=[0, 50, 100], xlabel="probability (%)")
    return fig


@themed
def thumbnails(places: ArrayLike, images: Sequence[ImageLike]) -> Figure:
    """Draw small images at their places (N, 2) in a plane."""
    fig, ax = plt.subplots(figsize=(9, 7))
    x, y = np.asarray(places).T
    ax.scatter(x, y, s=0)
    for place, image in zip(zip(x, y, strict=True), images, strict=True):
        small = load_image(image, hint=64).resize((56, 56), Image.Resampling.LANCZOS)
        frame = {"edgecolor": "0.6", "facecolor": "white"}
        picture = OffsetImage(np.asarray(small), zoom=0.45)
        box = AnnotationBbox(picture, place, pad=0.1, bboxprops=frame)
        ax.add_artist(box)
    ax.set(xticks=[], yticks=[])
    return fig


def _draw_image(
    ax: Axes, image: ImageLike, title: str = "", frame: tuple[float, ...] | None = None
) -> None:
    """Draw an image as a square, with a title above and a coloured frame around it."""
    square = load_image(image, hint=224).resize((160, 160), Image.Resampling.BILINEAR)
    ax.imshow(square)
    ax.set(xticks=[], yticks=[])
    ax.set_title(fill(title, 30), fontsize=8)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set(visible=frame is not None, color=frame, linewidth=4)


def _rows_needed(items: int, columns: int) -> int:
    """Return how many rows a grid needs for so many items."""
    full_rows, rest = divmod(items, columns)
    return full_rows + (1 if rest else 0)


@themed
def similarity(
    matrix: ArrayLike,
    captions: Sequence[str],
    images: Sequence[ImageLike] | None = None,
    title: str = "",
) -> Figure:
    """Draw (images, captions) cosines as a heat map, with small images along its left."""
    matrix = np.asarray(matrix).round(2) + 0.0  # adding 0 turns "-0.00" into "0.00"
    n_images, n_captions = matrix.shape
    fig, ax = plt.subplots(figsize=(2.8 + 0.55 * n_captions, 2.2 + 0.5 * n_images))
    sns.heatmap(
        matrix,
        ax=ax,
        cmap="viridis",
        cbar_kws={"label": "cosine"},
        annot=True,
        fmt=".2f",
        annot_kws={"size": 7},
    )
    ax.set(title=title, xlabel="caption", ylabel="image")
    labels = [fill(caption, 26) for caption in captions]
    ax.set_xticklabels(labels, rotation=40, ha="right", fontsize=7)
    ax.set_yticklabels([str(i) for i in range(n_images)], rotation=0)

    if images:
        # The images stand where the row numbers would be, so the axis needs room for them.
        ax.set_yticks([])
        ax.yaxis.set_label_coords(-1.35 / n_captions, 0.5)
    for i, image in enumerate(images or []):
        left = -1.1 / n_captions
        bottom = 1 - (i + 0.95) / n_images
        corner = ax.inset_axes((left, bottom, 0.9 / n_captions, 0.9 / n_images))
        corner.imshow(load_image(image, hint=64).resize((64, 64)), aspect="auto")
        corner.axis("off")
    return fig


# ---- explanations --------------------------------------------------------------------


@themed
def relevance(
    images: Sequence[ImageLike],
    maps: Sequence[np.ndarray | None],
    titles: Sequence[str],
    columns: int = 4,
) -> Figure:
    """Draw images under their maps, as ``overlay`` does; without a map, the image as it is."""
    rows = _rows_needed(len(images), columns)
    fig, axes = plt.subplots(rows, columns, figsize=(2.1 * columns, 2.4 * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, heat, title in zip(axes.flat, images, maps, titles, strict=False):
        shown = image if heat is None else overlay(image, heat)
        _draw_image(ax, shown, title)

    scale = plt.cm.ScalarMappable(plt.Normalize(0, 1), "inferno")
    fig.colorbar(scale, ax=axes, label="relevance (0 to 1)", fraction=0.03, shrink=0.8)
    return fig


@themed
def words(rows: Sequence[tuple[str, Sequence[Scored], Sequence[Scored]]]) -> Figure:
    """Draw panels of words' shares in a cosine, by two ways to measure them, as bars side by side.

    A panel is its title and what ``word_relevance`` and ``leave_one_out`` give for its caption.
    """
    fig, axes = plt.subplots(1, len(rows), figsize=(3.6 * len(rows), 3.4), squeeze=False)
    for ax, (title, by_gradient, by_removal) in zip(axes.flat, rows, strict=True):
        names = [word for word, _ in by_gradient]
        gradient_shares = [share for _, share in by_gradient]
        removal_shares = [share for _, share in by_removal]

        places = np.arange(len(names))
        ax.barh(places - 0.2, gradient_shares, 0.4, color=BLUE, label="gradient")
        ax.barh(places + 0.2, removal_shares, 0.4, color=ORANGE, label="left out")
        ax.set_yticks(places, names)
        ax.invert_yaxis()
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set(title=fill(title, 34), xlabel="share in the cosine")
        ax.xaxis.set_major_locator(MaxNLocator(4))
    axes[0, 0].legend(fontsize=8)
    return fig
