"""Figures: every function takes plain data and returns a matplotlib ``Figure``; ``save`` writes it.

One style, and a palette that colour-blind readers can tell apart (Okabe & Ito 2008, as in seaborn).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from .config import data_root, output_root
from .explain import overlay
from .images import load_image

BLUE, ORANGE, GREEN, RED, PURPLE, BROWN, PINK, GREY = sns.color_palette("colorblind", 8)
RIGHT, WRONG = GREEN, RED  # frames of retrieved items
FREE_TO_SHOW = ("sample", "photos")  # datasets whose pictures may be published

STYLE = {"figure.dpi": 100, "savefig.dpi": 150, "savefig.bbox": "tight", "figure.constrained_layout.use": True}
sns.set_theme(context="paper", style="whitegrid", palette="colorblind", rc=STYLE)


def save(fig: Figure, name: str, dataset: str, photos: bool = False) -> Path:
    """Write a figure to ``figures/<dataset>/<name>.png`` and return the path.

    Photos of a dataset that may not be redistributed go to ``data_root()`` instead, which git ignores:
    no committed file shows one. A figure with pictures gets 160 colours, which halves its file.
    """
    root = data_root() if photos and dataset not in FREE_TO_SHOW else output_root()
    path = root / "figures" / dataset / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=100 if photos else 150)
    if photos:
        Image.open(path).convert("RGB").quantize(160).save(path, optimize=True)
    return path


def _show(ax, image, title: str = "", frame=None) -> None:
    ax.imshow(load_image(image, hint=224).resize((160, 160), Image.Resampling.BILINEAR))
    ax.set(xticks=[], yticks=[])
    ax.set_title(fill(title, 30), fontsize=8)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set(visible=frame is not None, color=frame, linewidth=4)


def pairs(images: Sequence, captions: Sequence[str], columns: int = 4) -> Figure:
    """Images with one caption each, in a grid."""
    rows = -(-len(images) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(2.2 * columns, 2.6 * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, caption in zip(axes.flat, images, captions, strict=False):
        ax.axis("on")
        _show(ax, image, caption)
    return fig


def captions_of(image, captions: Sequence[str], scores: Sequence[float] | None = None, right=None) -> Figure:
    """One image and a list of captions beside it, with scores, coloured by whether each is right."""
    fig, axes = plt.subplots(1, 2, figsize=(8, 2.6), width_ratios=[1, 2.2])
    _show(axes[0], image)
    axes[1].axis("off")
    for i, caption in enumerate(captions):
        colour = "black" if right is None else RIGHT if right[i] else WRONG
        mark = "" if right is None else "✓ " if right[i] else "✗ "
        text = f"{mark}{caption}" if scores is None else f"{scores[i]:.2f}  {mark}{caption}"
        y = 1 - (i + 0.5) / len(captions)
        axes[1].text(0, y, fill(text, 70), va="center", fontsize=9, color=colour)
    return fig


def bars(values: Mapping[str, float], xlabel: str, title: str = "", form: str = "{:,.0f}") -> Figure:
    """Horizontal bars with their values written at the end."""
    fig, ax = plt.subplots(figsize=(6, 0.8 + 0.28 * len(values)))
    sns.barplot(x=list(values.values()), y=list(values), ax=ax, color=BLUE)
    ax.bar_label(ax.containers[0], labels=[form.format(v) for v in values.values()], padding=3, fontsize=8)
    ax.set(xlabel=xlabel, title=title)
    ax.margins(x=0.18)
    return fig


def heatmap(ax, matrix, title: str, xlabel: str, ylabel: str, form: str = ".2f") -> None:
    """Draw a matrix with its values written in, into axes of a larger figure."""
    sns.heatmap(np.asarray(matrix), ax=ax, cmap="viridis", annot=True, fmt=form, cbar=False, square=True)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)


def curves(x: Sequence[float], series: Mapping[str, Sequence[float]], xlabel: str, log: bool = True) -> Figure:
    """Several quantities against one, each in its own panel."""
    fig, axes = plt.subplots(1, len(series), figsize=(3.3 * len(series), 2.7), squeeze=False)
    for ax, (name, values) in zip(axes.flat, series.items(), strict=True):
        ax.plot(x, values, color=BLUE)
        ax.set(xlabel=xlabel, title=name, ylim=(0, None), xscale="log" if log else "linear")
    return fig


def similarity(matrix, captions: Sequence[str], images: Sequence | None = None, title: str = "") -> Figure:
    """Heat map of (images, captions) cosine similarities, thumbnails of the images along the left."""
    matrix = np.asarray(matrix).round(2) + 0.0  # never "-0.00"
    n, m = matrix.shape
    fig, ax = plt.subplots(figsize=(2.8 + 0.55 * m, 2.2 + 0.5 * n))
    text, bar = {"annot": True, "fmt": ".2f", "annot_kws": {"size": 7}}, {"label": "cosine"}
    sns.heatmap(matrix, ax=ax, cmap="viridis", cbar_kws=bar, **text)
    ax.set(title=title, xlabel="caption", ylabel="image")
    ax.set_xticklabels([fill(c, 26) for c in captions], rotation=40, ha="right", fontsize=7)
    ax.set_yticklabels(range(n), rotation=0)
    for i, image in enumerate(images or []):
        ax.set_yticks([])
        corner = ax.inset_axes([-0.5 / m - 0.6 / m, 1 - (i + 0.95) / n, 0.9 / m, 0.9 / n])
        corner.imshow(load_image(image, hint=64).resize((64, 64)), aspect="auto")
        corner.axis("off")
        ax.yaxis.set_label_coords(-1.35 / m, 0.5)
    return fig


def training_curves(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Loss with the line of no learning, dev recall, and the logit scale, for one run or several."""
    fig, axes = plt.subplots(1, 3, figsize=(10, 3))
    for colour, (name, history) in zip(sns.color_palette("colorblind"), histories.items(), strict=False):
        for ax, column in zip(axes, ("loss", "dev_mean_recall", "logit_scale"), strict=True):
            scale = 100 if column == "dev_mean_recall" else 1
            ax.plot(history["epoch"], scale * history[column], "o-", ms=3, color=colour, label=name)
        best = history.loc[history["dev_mean_recall"].idxmax()]
        axes[1].plot(best["epoch"], 100 * best["dev_mean_recall"], "o", ms=9, mfc="none", color=colour, label="kept")
    for level in {history["log_batch"].iloc[0] for history in histories.values()}:
        axes[0].axhline(level, color=GREY, linestyle="--", label="ln(batch): no learning")
    axes[0].set(xlabel="epoch", ylabel="training loss (nats)", title="Loss", ylim=(0, None))
    axes[1].set(xlabel="epoch", ylabel="mean Recall@1/5/10 (%)", title="Dev recall, both ways", ylim=(0, None))
    axes[2].set(xlabel="epoch", ylabel="logit scale (1 / temperature)", title="Logit scale")
    if histories:
        axes[0].legend(fontsize=8)
        axes[1].legend(fontsize=8, loc="lower right")
    return fig


WAYS = {"image_to_text": "image → text", "text_to_image": "text → image"}


def recall_bars(scores: Mapping[str, dict], intervals: dict | None = None, ks=(1, 5, 10)) -> Figure:
    """Recall@K both ways for several models side by side; ``intervals`` are those of the first."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    pool = next(iter(scores.values()))
    for ax, (way, label) in zip(axes, WAYS.items(), strict=True):
        ends = [intervals and intervals[way]] + [None] * len(scores)
        rows = {name: (score[way], end) for (name, score), end in zip(scores.items(), ends, strict=False)}
        _grouped_bars(ax, rows, [f"R@{k}" for k in ks])
        ax.set_title(f"{label} ({pool['images']:,} images, {pool['captions']:,} captions)", fontsize=9)
    axes[0].set_ylabel("Recall (%)")
    axes[1].legend(loc="upper left", fontsize=8)
    return fig


def accuracy_bars(reports: Mapping[str, Mapping[str, dict]]) -> Figure:
    """Top-1 and top-5 accuracy with intervals and chance: a panel per set, its rows what ``classification`` gives."""
    fig, axes = plt.subplots(1, len(reports), figsize=(4.5 * len(reports), 3.2), squeeze=False)
    for ax, (name, rows) in zip(axes.flat, reports.items(), strict=True):
        report, keys = next(iter(rows.values())), ["top1", "top5"]
        _grouped_bars(ax, {label: (row, row["interval"]) for label, row in rows.items()}, keys)
        for x, key in enumerate(keys):
            label = None if x else "chance"
            ax.hlines(100 * report["chance"][key], x - 0.3, x + 0.7, color="black", linestyle="--", label=label)
        ax.set_title(f"{name}: {report['images']:,} images, {report['classes']} classes")
        ax.set_ylabel("accuracy (%)")
        ax.legend(fontsize=8, loc="upper left")
    return fig


def _grouped_bars(ax, rows: Mapping[str, tuple[dict, dict | None]], keys: Sequence[str]) -> None:
    """Draw a group of bars per key, a colour per row; a row is its values and their intervals, from 0 to 1."""
    width = 0.8 / len(rows)
    for i, (name, (values, ends)) in enumerate(rows.items()):
        heights = np.array([100 * values[key] for key in keys])
        error = np.abs(100 * np.array([ends[key] for key in keys]).T - heights) if ends else None
        drawn = ax.bar(np.arange(len(keys)) + i * width, heights, width, yerr=error, capsize=3, label=name)
        ax.bar_label(drawn, fmt="%.1f", fontsize=7, padding=2)
    ax.set_xticks(np.arange(len(keys)) + 0.4 - width / 2, keys)
    ax.set_ylim(0, 109)


def rank_histogram(ranks: Mapping[str, np.ndarray], pools: Mapping[str, int]) -> Figure:
    """How far down the list the right item stands, both ways, on logarithmic bins from rank 1 to the pool."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 3))
    for ax, (way, label) in zip(axes, WAYS.items(), strict=True):
        found = np.asarray(ranks[way]) + 1
        edges = np.unique(np.geomspace(1, pools[way] + 1, 16).round())
        ax.hist(found, bins=edges, weights=np.full(len(found), 100 / len(found)), color=BLUE, edgecolor="white")
        ax.axvline(np.median(found), color=ORANGE, linestyle="--", label=f"median {np.median(found):g}")
        xlabel = f"rank of the right item, of {pools[way]:,}"
        ax.set(xscale="log", title=label, xlabel=xlabel, ylabel="queries (%)")
        ax.legend()
    return fig


def image_gallery(queries: Sequence[str], results: Sequence[Sequence[tuple]], right: Sequence | None = None) -> Figure:
    """Text -> image: a row per query with its ``(image, score)`` results; true images framed and ticked."""
    rows, columns = len(queries), len(results[0]) + 1
    fig, axes = plt.subplots(rows, columns, figsize=(1.7 * columns, 1.85 * rows), squeeze=False)
    for row, (query, found) in enumerate(zip(queries, results, strict=True)):
        axes[row, 0].axis("off")
        axes[row, 0].text(0.5, 0.5, fill(f"“{query}”", 16), ha="center", va="center", fontsize=11)
        for column, (image, score) in enumerate(found):
            hit = right is not None and right[row][column]
            _show(axes[row, column + 1], image, f"{score:.2f}" + (" ✓" if hit else ""), RIGHT if hit else None)
    return fig


def predictions(images: Sequence, guesses: Sequence[Sequence[tuple[str, float]]]) -> Figure:
    """Images, each over bars of its most probable labels: what ``ZeroShotClassifier.predict`` gives."""
    fig, axes = plt.subplots(2, len(images), figsize=(1.9 * len(images), 3), height_ratios=[2, 1], squeeze=False)
    for (top, bottom), image, guess in zip(axes.T, images, guesses, strict=True):
        _show(top, image)
        names, values = zip(*guess[::-1], strict=True)
        bottom.barh(range(len(names)), [100 * value for value in values], color=BLUE, alpha=0.5)
        for y, (name, value) in enumerate(zip(names, values, strict=True)):
            bottom.text(2, y, f"{name} {value:.0%}", va="center", fontsize=8)
        bottom.set(xlim=(0, 100), yticks=[], xticks=[0, 50, 100], xlabel="probability (%)")
    return fig


def confusion(matrix, names: Sequence[str], chosen: Sequence[int]) -> Figure:
    """Heat map of a confusion matrix (true, guessed): the ``chosen`` classes, in percent of each row's images."""
    percent = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    few = [names[c] for c in chosen]
    fig, ax = plt.subplots(figsize=(2.5 + 0.45 * len(few), 1.8 + 0.38 * len(few)))
    sns.heatmap(
        percent[np.ix_(chosen, chosen)], ax=ax, cmap="viridis", annot=True, fmt=".0f", annot_kws={"size": 8},
        xticklabels=few, yticklabels=few, cbar_kws={"label": "% of the row's images"},
    )  # fmt: skip
    ax.set(xlabel="guessed class", ylabel="true class")
    ax.tick_params(axis="x", rotation=50)
    return fig


def relevance(images: Sequence, maps: Sequence[np.ndarray | None], titles: Sequence[str], columns: int = 4) -> Figure:
    """Pictures under their maps as in ``overlay``; where a map is None, the picture as it is."""
    rows = -(-len(images) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(2.1 * columns, 2.4 * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, heat, title in zip(axes.flat, images, maps, titles, strict=False):
        _show(ax, image if heat is None else overlay(image, heat), title)
    scale = plt.cm.ScalarMappable(plt.Normalize(0, 1), "inferno")
    fig.colorbar(scale, ax=axes, label="relevance (0 to 1)", fraction=0.03, shrink=0.8)
    return fig


def words(rows: Sequence[tuple[str, Sequence[tuple[str, float]], Sequence[tuple[str, float]]]]) -> Figure:
    """Panels of word shares: ``(title, word_relevance, leave_one_out)`` each, as bars side by side."""
    fig, axes = plt.subplots(1, len(rows), figsize=(3.6 * len(rows), 3.4), squeeze=False)
    for ax, (title, shares, drops) in zip(axes.flat, rows, strict=True):
        places = np.arange(len(shares))
        ax.barh(places - 0.2, [value for _, value in shares], 0.4, color=BLUE, label="gradient")
        ax.barh(places + 0.2, [value for _, value in drops], 0.4, color=ORANGE, label="left out")
        ax.set_yticks(places, [word for word, _ in shares])
        ax.invert_yaxis()
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set(title=fill(title, 34), xlabel="share in the cosine")
    axes[0, 0].legend(fontsize=8)
    return fig


def study(result: Mapping) -> Figure:
    """One study: what ``seed_dots`` draws, in a figure of its own; ``result`` has a title and rows."""
    fig, ax = plt.subplots(figsize=(6, 0.9 + 0.24 * len(result["rows"])))
    seed_dots(ax, result)
    ax.set_xlabel("mean recall on dev (%)")
    return fig


def seed_dots(ax, result: Mapping) -> None:
    """Draw a row per setting: a dot per seed, their mean, and its 95% interval (t, spread pooled over the settings)."""
    points = 100 * np.array([row["dev_mean_recall"] for row in result["rows"]])  # (settings, seeds)
    settings, seeds = points.shape
    spread = np.sqrt(points.var(1, ddof=1).mean() / seeds)
    half = stats.t.ppf(0.975, settings * (seeds - 1)) * spread
    for y, row in enumerate(points):
        ax.plot(row, [y] * seeds, "o", ms=4, color=BLUE, alpha=0.6)
        ax.errorbar(row.mean(), y, xerr=half, fmt="|", ms=11, mew=2, color=ORANGE, lw=1)
    ax.set_yticks(range(len(result["rows"])), [row["label"] for row in result["rows"]])
    ax.set(ylim=(len(result["rows"]) - 0.5, -0.5), title=result["title"])
