"""Figures: every function takes plain data and returns a matplotlib ``Figure``; ``save`` writes it.

All figures share one theme, and a palette that colour-blind readers can tell apart (Okabe & Ito
2008, as seaborn has it). Importing this module changes no setting of matplotlib: each function
draws under the theme and then gives back the settings that it found. A notebook that wants its own
charts to look alike calls ``set_theme()``.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from textwrap import fill
from typing import Any, ParamSpec

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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
PURPLE = PALETTE[4]
BROWN = PALETTE[5]
PINK = PALETTE[6]
GREY = PALETTE[7]

WHISKERS = (0.1, 0.1, 0.1)  # a soft black

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
SHOWN_COLOURS = 160  # of a figure with photos

DIRECTION_LABELS = {"image_to_text": "image → text", "text_to_image": "text → image"}

# An item with its score: a caption's word and its share, or a label and its probability.
Scored = tuple[str, float]
# Bars of one colour: values from 0 to 1 by key, and their intervals (low, high), if there are any.
Row = tuple[Mapping[str, Any], Mapping[str, Any] | None]

Arguments = ParamSpec("Arguments")


def set_theme() -> None:
    """Make the theme of these figures that of all charts in this process.

    A notebook calls it once, for the charts that it draws itself.
    """
    plt.rcParams.update(THEME)
    sns.set_color_codes("colorblind")  # what "b" or "k" stand for


def _themed(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
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
    """Write a figure to ``figures/<dataset>/<name>.png`` and return the path.

    With ``photos`` the figure shows images of the dataset. Where these may not be redistributed, it
    goes to ``data_root()`` instead, which git ignores: no committed file shows one. A figure with
    images keeps 160 colours, which halves its file.
    """
    private = photos and dataset not in FREE_TO_SHOW
    root = data_root() if private else output_root()
    path = root / "figures" / dataset / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)

    with plt.rc_context(THEME):
        fig.savefig(path, dpi=100 if photos else 150)
    if photos:
        with Image.open(path) as drawn:
            few_colours = drawn.convert("RGB").quantize(SHOWN_COLOURS)
        few_colours.save(path, optimize=True)
    return path


# ---- images and captions -------------------------------------------------------------


@_themed
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


@_themed
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


@_themed
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


@_themed
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


# ---- bars and curves -----------------------------------------------------------------


@_themed
def bars(
    values: Mapping[str, float], xlabel: str, title: str = "", form: str = "{:,.0f}"
) -> Figure:
    """Draw horizontal bars with their values, written as ``form`` says, at their ends."""
    fig, ax = plt.subplots(figsize=(6, 0.8 + 0.28 * len(values)))
    sns.barplot(x=list(values.values()), y=list(values), ax=ax, color=BLUE)
    labels = [form.format(value) for value in values.values()]
    drawn: Any = ax.containers[0]
    ax.bar_label(drawn, labels=labels, padding=3, fontsize=8)
    ax.set(xlabel=xlabel, title=title)
    ax.margins(x=0.18)
    return fig


@_themed
def curves(
    x: Sequence[float], series: Mapping[str, Sequence[float]], xlabel: str, log: bool = True
) -> Figure:
    """Draw several quantities against one, each in its own panel."""
    fig, axes = plt.subplots(1, len(series), figsize=(3.3 * len(series), 2.7), squeeze=False)
    for ax, (name, values) in zip(axes.flat, series.items(), strict=True):
        ax.plot(x, values, color=BLUE)
        ax.set(xlabel=xlabel, title=name, ylim=(0, None), xscale="log" if log else "linear")
    return fig


@_themed
def training_curves(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw loss, dev recall and logit scale over the epochs, for one run or several.

    ``histories`` are what ``fit`` gives, by the name of the run. A dashed line shows the loss of a
    model that tells nothing apart, the logarithm of the batch; a circle marks the epoch kept.
    """
    fig, (loss, recall, scale) = plt.subplots(1, 3, figsize=(10, 3))
    for colour, (name, history) in zip(PALETTE, histories.items(), strict=False):
        style = {"ms": 3, "color": colour, "label": name}
        loss.plot(history["epoch"], history["loss"], "o-", **style)
        recall.plot(history["epoch"], 100 * history["dev_mean_recall"], "o-", **style)
        scale.plot(history["epoch"], history["logit_scale"], "o-", **style)

        best = history.loc[history["dev_mean_recall"].idxmax()]
        ring = {"ms": 9, "mfc": "none", "color": colour, "label": "kept"}
        recall.plot(best["epoch"], 100 * best["dev_mean_recall"], "o", **ring)

    for level in {history["log_batch"].iloc[0] for history in histories.values()}:
        loss.axhline(level, color=GREY, linestyle="--", label="ln(batch): no learning")

    loss.set(xlabel="epoch", ylabel="training loss (nats)", title="Loss", ylim=(0, None))
    recall.set(
        xlabel="epoch",
        ylabel="mean Recall@1/5/10 (%)",
        title="Dev recall, both ways",
        ylim=(0, None),
    )
    scale.set(xlabel="epoch", ylabel="logit scale (1 / temperature)", title="Logit scale")
    if histories:
        loss.legend(fontsize=8)
        recall.legend(fontsize=8, loc="lower right")
    return fig


@_themed
def recall_bars(
    scores: Mapping[str, Mapping[str, Any]],
    intervals: Mapping[str, Mapping[str, Any]] | None = None,
    ks: Sequence[int] = (1, 5, 10),
) -> Figure:
    """Draw Recall@K in both directions for several models side by side.

    ``scores`` are what ``summarise`` gives, by the name of the model. ``intervals`` are what
    ``bootstrap`` gives for the first model.
    """
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    first = next(iter(scores))
    pool = f"{scores[first]['images']:,} images, {scores[first]['captions']:,} captions"

    for ax, (direction, label) in zip(axes, DIRECTION_LABELS.items(), strict=True):
        rows: dict[str, Row] = {name: (score[direction], None) for name, score in scores.items()}
        if intervals is not None:
            rows[first] = (scores[first][direction], intervals[direction])
        _grouped_bars(ax, rows, [f"R@{k}" for k in ks])
        ax.set_title(f"{label} ({pool})", fontsize=9)

    axes[0].set_ylabel("Recall (%)")
    axes[1].legend(loc="upper left", fontsize=8)
    return fig


@_themed
def accuracy_bars(reports: Mapping[str, Mapping[str, dict[str, Any]]]) -> Figure:
    """Draw top-1 and top-5 accuracy with intervals and chance: a panel per labelled set.

    ``reports`` are what ``classification`` gives, by the name of the set and then of the model.
    """
    keys = ["top1", "top5"]
    fig, axes = plt.subplots(1, len(reports), figsize=(4.5 * len(reports), 3.2), squeeze=False)
    for ax, (name, by_model) in zip(axes.flat, reports.items(), strict=True):
        rows: dict[str, Row] = {}
        for model, report in by_model.items():
            rows[model] = (report, report["interval"])
        _grouped_bars(ax, rows, keys)

        # Chance depends on the set alone, so any model's report has it.
        report = next(iter(by_model.values()))
        for x, key in enumerate(keys):
            ax.hlines(
                100 * report["chance"][key],
                x - 0.3,
                x + 0.7,
                color="black",
                linestyle="--",
                label="chance" if x == 0 else None,
            )
        ax.set_title(f"{name}: {report['images']:,} images, {report['classes']} classes")
        ax.set_ylabel("accuracy (%)")
        ax.legend(fontsize=8, loc="upper left")
    return fig


def _grouped_bars(
    ax: Axes,
    rows: Mapping[str, Row],
    keys: Sequence[str],
) -> None:
    """Draw a group of bars per key, with a colour per row."""
    width = 0.8 / len(rows)
    for i, (name, (values, intervals)) in enumerate(rows.items()):
        heights = np.array([100 * values[key] for key in keys])
        whiskers = None
        if intervals:
            ends = 100 * np.array([intervals[key] for key in keys])  # (keys, 2)
            whiskers = np.abs(ends.T - heights)
        places = np.arange(len(keys)) + i * width
        drawn = ax.bar(
            places, heights, width, yerr=whiskers, ecolor=WHISKERS, capsize=3, label=name
        )
        ax.bar_label(drawn, fmt="%.1f", fontsize=7, padding=2)
    ax.set_xticks(np.arange(len(keys)) + 0.4 - width / 2, keys)
    ax.set_ylim(0, 109)


@_themed
def rank_histogram(ranks: Mapping[str, np.ndarray], pools: Mapping[str, int]) -> Figure:
    """Draw how far down the list the right item stands, in both directions.

    ``ranks`` count from 0, as ``ranks_from_embeddings`` gives them; ``pools`` say how many items
    are ranked. The bins grow by a constant factor from rank 1 to the pool.
    """
    fig, axes = plt.subplots(1, 2, figsize=(9, 3))
    for ax, (direction, label) in zip(axes, DIRECTION_LABELS.items(), strict=True):
        found = np.asarray(ranks[direction]) + 1
        pool = pools[direction]
        edges = np.unique(np.geomspace(1, pool + 1, 16).round())
        percent = np.full(len(found), 100 / len(found))
        ax.hist(found, bins=edges, weights=percent, color=BLUE, edgecolor="white")

        middle = np.median(found)
        ax.axvline(middle, color=ORANGE, linestyle="--", label=f"median {middle:g}")
        xlabel = f"rank of the right item, of {pool:,}"
        ax.set(xscale="log", title=label, xlabel=xlabel, ylabel="queries (%)")
        ax.legend()
    return fig


# ---- matrices ------------------------------------------------------------------------


def heatmap(
    ax: Axes, matrix: ArrayLike, title: str, xlabel: str, ylabel: str, form: str = ".2f"
) -> None:
    """Draw a matrix with its values written in, into axes of a larger figure."""
    sns.heatmap(
        np.asarray(matrix), ax=ax, cmap="viridis", annot=True, fmt=form, cbar=False, square=True
    )
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)


@_themed
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


@_themed
def confusion(matrix: np.ndarray, names: Sequence[str], chosen: Sequence[int]) -> Figure:
    """Draw the ``chosen`` classes of a confusion matrix (true, guessed) as a heat map.

    A cell is the percentage of the images of its row, over all classes.
    """
    images_of_class = matrix.sum(1, keepdims=True)
    percent = 100 * matrix / np.maximum(images_of_class, 1)
    chosen_names = [names[c] for c in chosen]
    n_chosen = len(chosen_names)

    fig, ax = plt.subplots(figsize=(2.5 + 0.45 * n_chosen, 1.8 + 0.38 * n_chosen))
    sns.heatmap(
        percent[np.ix_(chosen, chosen)],
        ax=ax,
        cmap="viridis",
        annot=True,
        fmt=".0f",
        annot_kws={"size": 8},
        xticklabels=chosen_names,
        yticklabels=chosen_names,
        cbar_kws={"label": "% of the row's images"},
    )
    ax.set(xlabel="guessed class", ylabel="true class")
    ax.tick_params(axis="x", rotation=50)
    return fig


# ---- explanations --------------------------------------------------------------------


@_themed
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


@_themed
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
    axes[0, 0].legend(fontsize=8)
    return fig


# ---- ablations -----------------------------------------------------------------------


@_themed
def study(result: Mapping[str, Any]) -> Figure:
    """Draw one study as ``seed_dots`` does, in a figure of its own.

    To its right stand the leads over one row, in points, with their intervals: rows may have a
    ``lead`` and a ``lead_interval``.
    """
    fig, ax = plt.subplots(figsize=(7, 0.9 + 0.24 * len(result["rows"])))
    seed_dots(ax, result)
    ax.set_xlabel("mean recall on held-out photos (%)")
    for y, row in enumerate(result["rows"]):
        if "lead" in row:
            low, high = row["lead_interval"]
            text = f"{100 * row['lead']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            ax.annotate(
                text, (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=7
            )
    return fig


def seed_dots(ax: Axes, result: Mapping[str, Any]) -> None:
    """Draw a study: a row per setting, with a dot per seed, their mean, and its 95% interval.

    ``result`` has a ``title`` and ``rows``; a row has a ``label`` and a ``mean_recall`` for
    each seed. The interval is Student's t, with the spread pooled over the settings.
    """
    from scipy import stats

    rows = result["rows"]
    points = 100 * np.array([row["mean_recall"] for row in rows])  # (settings, seeds)
    settings, seeds = points.shape
    spread = np.sqrt(points.var(1, ddof=1).mean() / seeds)
    half = stats.t.ppf(0.975, settings * (seeds - 1)) * spread

    for y, of_setting in enumerate(points):
        ax.plot(of_setting, [y] * seeds, "o", ms=4, color=BLUE, alpha=0.6)
        ax.errorbar(of_setting.mean(), y, xerr=half, fmt="|", ms=11, mew=2, color=ORANGE, lw=1)
    ax.set_yticks(range(settings), [row["label"] for row in rows])
    ax.set(ylim=(settings - 0.5, -0.5), title=result["title"])
