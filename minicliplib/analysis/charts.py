"""Charts of what was measured: every function takes plain data, as a result file holds it.

Each draws a figure of its own, or into the ``figure`` that it is given. So :func:`compare` can set
two of the same chart side by side: the one that a notebook has just measured on the sample, and the
one that was recorded on Flickr8k.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from .figures import BLUE, GREY, ORANGE, PALETTE, RED, THEME, themed
from .recorded import recorded

WHISKERS = (0.1, 0.1, 0.1)  # a soft black

DIRECTION_LABELS = {"image_to_text": "image → text", "text_to_image": "text → image"}

# Bars of one colour: values from 0 to 1 by key, and their intervals (low, high), if there are any.
Row = tuple[Mapping[str, Any], Mapping[str, Any] | None]
# Draws the chart of some metrics into a figure.
Draw = Callable[[dict[str, Any], FigureBase], object]


def compare(
    draw: Draw,
    metrics: dict[str, Any],
    dataset: str,
    topic: str,
    size: tuple[float, float] = (4.8, 3),
    stacked: bool = False,
) -> Figure:
    """Draw a chart of what was just measured; for the sample, beside the same of Flickr8k.

    Args:
        draw: draws the chart of metrics into a figure.
        metrics: what was measured, under the names that the result file has.
        dataset: what it was measured on.
        topic: the result file, of which the record of Flickr8k is taken.
        size: width and height of each chart in inches.
        stacked: put the second chart below the first.

    """
    cases = {dataset: metrics}
    if dataset == "sample":
        record = recorded("flickr8k", topic)
        cases[f"Flickr8k, recorded {record['date']}"] = record["metrics"]

    width, height = size
    rows = len(cases) if stacked else 1
    columns = len(cases) // rows
    with plt.rc_context(THEME):
        fig = plt.figure(figsize=(width * columns, height * rows))
        parts = fig.subfigures(rows, columns, squeeze=False)
        for part, (title, of_case) in zip(parts.flat, cases.items(), strict=True):
            draw(of_case, part)
            part.suptitle(title, fontsize=9, fontweight="bold")
    return fig


def _figure(given: FigureBase | None, width: float, height: float) -> Any:
    """Return the figure to draw into: the given one, or a new one of so many inches."""
    return plt.figure(figsize=(width, height)) if given is None else given


# ---- bars and curves -----------------------------------------------------------------


@themed
def bars(
    values: Mapping[str, float],
    xlabel: str,
    title: str = "",
    form: str = "{:,.0f}",
    figure: FigureBase | None = None,
) -> Figure:
    """Draw horizontal bars with their values, written as ``form`` says, at their ends."""
    fig = _figure(figure, 6, 0.8 + 0.28 * len(values))
    ax = fig.subplots()
    sns.barplot(x=list(values.values()), y=list(values), ax=ax, color=BLUE)
    labels = [form.format(value) for value in values.values()]
    drawn: Any = ax.containers[0]
    ax.bar_label(drawn, labels=labels, padding=3, fontsize=8)
    ax.set(xlabel=xlabel, title=title)
    ax.margins(x=0.18)
    return fig


@themed
def curves(
    x: Sequence[float],
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    xlabel: str,
    figure: FigureBase | None = None,
) -> Figure:
    """Draw several quantities against one, each in its own panel: for each, lines by name."""
    fig = _figure(figure, 3.3 * len(panels), 2.7)
    axes = fig.subplots(1, len(panels), squeeze=False)
    for ax, (title, lines) in zip(axes.flat, panels.items(), strict=True):
        for name, values in lines.items():
            ax.plot(x, values, label=name)
        ax.set(xlabel=xlabel, title=title, ylim=(0, None), xscale="log")
    axes[0, 0].legend(fontsize=8)
    return fig


@themed
def training_curves(
    histories: Mapping[str, pd.DataFrame], figure: FigureBase | None = None
) -> Figure:
    """Draw loss, dev recall and logit scale over the epochs, for one run or several.

    ``histories`` are what ``fit`` gives, by the name of the run. A dotted line shows the loss of a
    model that tells nothing apart, the logarithm of the batch; a circle marks the epoch kept. Where
    a history has a ``dev_loss``, it is drawn as a dashed line beside the training loss.
    """
    fig = _figure(figure, 10, 3)
    loss, recall, scale = fig.subplots(1, 3)
    kept = "kept"  # one entry of the legend is enough
    for colour, (name, history) in zip(PALETTE, histories.items(), strict=False):
        style = {"ms": 3, "color": colour, "label": name}
        loss.plot(history["epoch"], history["loss"], "o-", **style)
        recall.plot(history["epoch"], 100 * history["dev_mean_recall"], "o-", **style)
        scale.plot(history["epoch"], history["logit_scale"], "o-", **style)
        if "dev_loss" in history:
            thin = {"color": colour, "lw": 1, "label": f"{name}, on dev"}
            loss.plot(history["epoch"], history["dev_loss"], "--", **thin)

        best = history.loc[history["dev_mean_recall"].idxmax()]
        ring = {"ms": 9, "mfc": "none", "color": colour, "label": kept}
        recall.plot(best["epoch"], 100 * best["dev_mean_recall"], "o", **ring)
        kept = "_nolegend_"

    for level in {history["log_batch"].iloc[0] for history in histories.values()}:
        loss.axhline(level, color=GREY, linestyle=":", label="ln(batch): no learning")

    loss.set(xlabel="epoch", ylabel="loss (nats)", title="Loss", ylim=(0, None))
    recall.set(xlabel="epoch", ylabel="mean recall (%)", title="Dev recall", ylim=(0, None))
    scale.set(xlabel="epoch", ylabel="1 / temperature", title="Logit scale")
    for ax in (loss, recall, scale):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if histories:
        loss.legend(fontsize=7)
        recall.legend(fontsize=7, loc="lower right")
    return fig


# ---- the pairs -----------------------------------------------------------------------


@themed
def overlap(shares: Mapping[str, Any], figure: FigureBase | None = None) -> Figure:
    """Draw how many words two captions share: of one image, and of two images.

    ``shares`` has the ``mean`` and the ``percent`` in twenty bins from 0 to 1 for each of both.
    """
    fig = _figure(figure, 4.8, 3)
    ax = fig.subplots()
    edges = np.linspace(0, 1, 21)
    for kind, colour in (("two images", ORANGE), ("one image", BLUE)):
        label = f"{kind}, mean {shares[kind]['mean']:.2f}"
        ax.stairs(shares[kind]["percent"], edges, fill=True, color=colour, alpha=0.6, label=label)
    ax.set(xlabel="content words in common (Jaccard)", ylabel="pairs of captions (%)", xlim=(0, 1))
    ax.legend(fontsize=8)
    return fig


@themed
def lengths(
    counts: Mapping[str, Mapping[str, int]], cut: int, figure: FigureBase | None = None
) -> Figure:
    """Draw how long captions are: how many have each number of words, and of tokens.

    Args:
        counts: for "words" and for "tokens", the number of captions by length.
        cut: the largest number of tokens that a caption keeps.
        figure: where to draw.

    """
    fig = _figure(figure, 8.5, 2.6)
    axes = fig.subplots(1, 2, sharey=True)
    for ax, (unit, by_length) in zip(axes, counts.items(), strict=True):
        in_order = sorted((int(length), count) for length, count in by_length.items())
        values, number = np.array(in_order).T
        middle = np.repeat(values, number)[number.sum() // 2]
        ax.bar(values, 100 * number / number.sum(), width=0.9, color=BLUE)
        ax.axvline(middle, color=ORANGE, ls="--", label=f"median {middle}")
        ax.set(xlabel=f"{unit} in a caption", xlim=(0, None))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1].axvline(cut, color=RED, label=f"cut at {cut}")
    axes[0].set_ylabel("captions (%)")
    for ax in axes:
        ax.legend(fontsize=8)
    return fig


@themed
def zipf(words: Mapping[str, Any], figure: FigureBase | None = None) -> Figure:
    """Draw how often words occur by their rank, and how much of the text the first ones cover.

    ``words`` has lists of the same length: ``rank``, ``times`` and ``covered`` (in percent).
    """
    fig = _figure(figure, 8.5, 2.6)
    left, right = fig.subplots(1, 2)
    rank = np.array(words["rank"])
    left.loglog(rank, words["times"], "o", ms=3, color=BLUE, label="training captions")
    left.loglog(rank, words["times"][0] / rank, "--", color=GREY, label="Zipf: first / rank")
    left.set(xlabel="rank of the word", ylabel="times seen", ylim=(0.7, None))
    left.legend(fontsize=8)
    right.semilogx(rank, words["covered"], color=BLUE)
    right.set(xlabel="number of most frequent words", ylabel="share of the text (%)")
    right.set_ylim(0, 102)
    return fig


@themed
def false_negatives(
    pairs: Mapping[str, Mapping[str, float]], figure: FigureBase | None = None
) -> Figure:
    """Draw how many pairs of captions of one image a batch holds, by the size of the batch.

    ``pairs`` has for each size what is ``expected`` and what was ``counted``, with its ``spread``.
    """
    fig = _figure(figure, 4.8, 3)
    ax = fig.subplots()
    sizes = [int(size) for size in pairs]
    expected = [row["expected"] for row in pairs.values()]
    counted = [row["counted"] for row in pairs.values()]
    spread = [row["spread"] for row in pairs.values()]
    ax.plot(sizes, expected, color=GREY, label="drawn from captions, expected")
    bars_of = {"fmt": "o", "color": ORANGE, "capsize": 3, "label": "drawn from captions, counted"}
    ax.errorbar(sizes, counted, spread, **bars_of)
    ax.plot(sizes, np.zeros(len(sizes)), "s-", color=BLUE, label="drawn from images")
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.set(xlabel="size of the batch", ylabel="pairs of captions of one image")
    ax.legend(fontsize=8)
    return fig


# ---- the towers ----------------------------------------------------------------------


@themed
def weight_and_cost(model: Mapping[str, Any], figure: FigureBase | None = None) -> Figure:
    """Draw where the parameters are and where the arithmetic is, frozen and trained.

    ``model`` has ``parameters`` and ``gflops``: of each part, what is ``frozen`` and ``trainable``.
    """
    fig = _figure(figure, 9, 2.3)
    parts = {name: row for name, row in model["parameters"].items() if isinstance(row, dict)}
    millions = {name: [row[k] / 1e6 for k in row] for name, row in parts.items()}
    costs = {name: list(row.values()) for name, row in model["gflops"].items()}
    panels = {"million parameters": millions, "GFLOPs": costs}
    for ax, (unit, table) in zip(fig.subplots(1, 2), panels.items(), strict=True):
        left = np.zeros(len(table))
        for i, (state, colour) in enumerate((("frozen", GREY), ("trained", BLUE))):
            width = np.array([row[i] for row in table.values()])
            ax.barh(list(table), width, left=left, color=colour, label=state)
            left += width
        ax.bar_label(ax.containers[-1], [f"{value:.2f}" for value in left], padding=3, fontsize=8)
        ax.set(xlabel=unit, xlim=(0, 1.2 * left.max()))
        ax.invert_yaxis()
        ax.grid(False, axis="y")
        ax.legend(fontsize=8)
    return fig


@themed
def freeze_dial(
    dial: Mapping[str, Mapping[str, Sequence[float]]], figure: FigureBase | None = None
) -> Figure:
    """Draw what each number of trainable stages trains, costs and stores, for both towers.

    ``dial`` has for "image" and for "text" lists by the number of stages that train, from 0 on:
    ``million_parameters``, ``gflops`` of a training step, and cached ``kilobytes``.
    """
    fig = _figure(figure, 10, 2.7)
    titles = {
        "million_parameters": "million trainable parameters",
        "gflops": "GFLOPs of a training step",
        "kilobytes": "cached for each input (KB)",
    }
    axes = fig.subplots(1, 3)
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        for tower, colour, marker in (("image", BLUE, "o"), ("text", ORANGE, "s")):
            values = [np.nan if value is None else value for value in dial[tower][key]]
            stages = range(len(values))
            ax.plot(stages, values, marker, ls="-", ms=4, color=colour, label=f"{tower} tower")
        ax.set(xlabel="trainable stages, from the top", title=title)
    axes[2].set_yscale("log")
    axes[0].legend(fontsize=8)
    return fig


@themed
def speeds(
    by_setting: Mapping[str, Mapping[str, float]], unit: str, figure: FigureBase | None = None
) -> Figure:
    """Draw items a second for each tower, with a bar for each setting that was measured."""
    fig = _figure(figure, 4.8, 3)
    ax = fig.subplots()
    table = pd.DataFrame(by_setting).T.astype(float)
    table.plot.barh(ax=ax, width=0.8, color=[BLUE, ORANGE, GREY, RED][: table.shape[1]])
    for drawn in ax.containers:
        values = [f"{value:,.0f}" if value > 0 else "" for value in drawn.datavalues]
        ax.bar_label(drawn, values, padding=2, fontsize=7)
    ax.set(xlabel=unit)
    ax.margins(x=0.14)
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.legend(fontsize=8)
    return fig


# ---- retrieval -----------------------------------------------------------------------


@themed
def recall_bars(
    scores: Mapping[str, Mapping[str, Any]],
    intervals: Mapping[str, Mapping[str, Any]] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    figure: FigureBase | None = None,
) -> Figure:
    """Draw Recall@K in both directions for several models side by side.

    ``scores`` are what ``summarise`` gives, by the name of the model. ``intervals`` are what
    ``bootstrap`` gives for the first model.
    """
    fig = _figure(figure, 9, 3.2)
    axes = fig.subplots(1, 2, sharey=True)
    first = next(iter(scores))
    pool = f"{scores[first]['images']:,} images, {scores[first]['captions']:,} captions"

    for ax, (direction, label) in zip(axes, DIRECTION_LABELS.items(), strict=True):
        rows: dict[str, Row] = {name: (score[direction], None) for name, score in scores.items()}
        if intervals is not None:
            rows[first] = (scores[first][direction], intervals[direction])
        _grouped_bars(ax, rows, [f"R@{k}" for k in ks])
        ax.set_title(f"{label} ({pool})", fontsize=9)

    axes[0].set_ylabel("Recall (%)")
    axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    return fig


@themed
def rank_histogram(
    ranks: Mapping[str, Mapping[str, Any]], figure: FigureBase | None = None
) -> Figure:
    """Draw how far down the list the right item stands, in both directions.

    ``ranks`` are what :func:`rank_bins` gives for each direction.
    """
    fig = _figure(figure, 9, 2.8)
    for ax, (direction, label) in zip(fig.subplots(1, 2), DIRECTION_LABELS.items(), strict=True):
        found = ranks[direction]
        ax.stairs(found["percent"], found["edges"], fill=True, color=BLUE, ec="white")
        middle = found["median"]
        ax.axvline(middle, color=ORANGE, linestyle="--", label=f"median {middle:g}")
        xlabel = f"rank of the right item, of {found['pool']:,}"
        ax.set(xscale="log", title=label, xlabel=xlabel, ylabel="queries (%)")
        ax.legend(fontsize=8)
    return fig


def rank_bins(ranks: np.ndarray, pool: int) -> dict[str, Any]:
    """Count ranks (from 0) of the right item among ``pool``, in bins that grow from rank 1 on."""
    found = np.asarray(ranks) + 1
    edges = np.unique(np.geomspace(1, pool + 1, 16).round())
    counts, _ = np.histogram(found, edges)
    percent = (100 * counts / len(found)).round(3)
    return {
        "edges": edges.tolist(),
        "percent": percent.tolist(),
        "median": float(np.median(found)),
        "pool": pool,
    }


# ---- zero-shot -----------------------------------------------------------------------


@themed
def accuracy_bars(
    reports: Mapping[str, Mapping[str, dict[str, Any]]], figure: FigureBase | None = None
) -> Figure:
    """Draw top-1 and top-5 accuracy with intervals and chance: a panel per labelled set.

    ``reports`` are what ``classification`` gives, by the name of the set and then of the model.
    """
    keys = ["top1", "top5"]
    fig = _figure(figure, 4.5 * len(reports), 3.2)
    axes = fig.subplots(1, len(reports), squeeze=False)
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
        ax.set_title(
            f"{name}: {report['images']:,} images, {report['classes']} classes", fontsize=9
        )
        ax.set_ylabel("accuracy (%)")
        ax.legend(fontsize=8, loc="upper left")
    return fig


def _grouped_bars(ax: Axes, rows: Mapping[str, Row], keys: Sequence[str]) -> None:
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
        # Numbers over many narrow bars would run into each other.
        digits = "%.1f" if len(rows) <= 3 else "%.0f"
        ax.bar_label(drawn, fmt=digits, fontsize=7, padding=2)
    ax.set_xticks(np.arange(len(keys)) + 0.4 - width / 2, keys)
    ax.set_ylim(0, 109)


@themed
def confusion(
    share_of_row: ArrayLike, classes: Sequence[str], figure: FigureBase | None = None
) -> Figure:
    """Draw a confusion matrix as a heat map: rows are true classes, columns what was guessed.

    A cell is a share of the images of its row, from 0 to 1, and drawn in percent.
    """
    count = len(classes)
    fig = _figure(figure, 2.5 + 0.45 * count, 1.8 + 0.38 * count)
    ax = fig.subplots()
    sns.heatmap(
        100 * np.asarray(share_of_row),
        ax=ax,
        cmap="viridis",
        annot=True,
        fmt=".0f",
        annot_kws={"size": 7},
        xticklabels=list(classes),
        yticklabels=list(classes),
        cbar_kws={"label": "% of the row's images"},
    )
    ax.set(xlabel="guessed class", ylabel="true class")
    ax.tick_params(axis="x", rotation=50)
    ax.tick_params(axis="y", rotation=0)
    return fig


@themed
def templates_band(
    by_count: Mapping[str, Sequence[float]], figure: FigureBase | None = None
) -> Figure:
    """Draw accuracy by how many templates are averaged: the mean, and from worst to best.

    ``by_count`` has for each number of templates the mean, the lowest and the highest accuracy in
    percent over random choices of them.
    """
    fig = _figure(figure, 4.8, 3)
    ax = fig.subplots()
    counts = [int(count) for count in by_count]
    mean, worst, best = np.array(list(by_count.values())).T
    ax.plot(counts, mean, "o-", color=BLUE, label="mean of random choices")
    ax.fill_between(counts, worst, best, alpha=0.2, color=BLUE, label="worst to best")
    ax.set(xlabel="number of templates averaged", ylabel="top-1 accuracy on dev (%)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=8)
    return fig


# ---- the shared space ----------------------------------------------------------------


def heatmap(ax: Axes, matrix: ArrayLike, title: str, xlabel: str, ylabel: str) -> None:
    """Draw a matrix with its values written in, into axes of a larger figure."""
    sns.heatmap(
        np.asarray(matrix), ax=ax, cmap="viridis", annot=True, fmt=".2f", cbar=False, square=True
    )
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)


@themed
def before_and_after(cosines: Mapping[str, ArrayLike], figure: FigureBase | None = None) -> Figure:
    """Draw the cosines (images, captions) of some pairs, before training and after."""
    fig = _figure(figure, 8, 3.4)
    axes = fig.subplots(1, len(cosines), squeeze=False)
    for ax, (title, matrix) in zip(axes.flat, cosines.items(), strict=True):
        sns.heatmap(np.asarray(matrix), ax=ax, cmap="viridis", square=True)
        ax.set(title=title, xlabel="caption", ylabel="image")
        ax.tick_params(labelsize=6)
    return fig


@themed
def map_of_space(maps: Mapping[str, Mapping[str, Any]], figure: FigureBase | None = None) -> Figure:
    """Draw maps of images and captions, coloured by what their captions speak of.

    Args:
        maps: by title: the places of ``images`` and of ``captions``, (N, 2) each, and the
            ``concept`` of each pair.
        figure: where to draw.

    """
    fig = _figure(figure, 5 * len(maps), 4.4)
    axes = fig.subplots(1, len(maps), squeeze=False)[0]
    concepts = list(dict.fromkeys(name for one in maps.values() for name in one["concept"]))
    concepts.sort(key=lambda name: (name == "other", name))
    colours = dict(zip(concepts, PALETTE, strict=False)) | {"other": "lightgrey"}
    for ax, (title, one) in zip(axes, maps.items(), strict=True):
        images = np.array(one["images"])
        captions = np.array(one["captions"])
        for start, end in zip(images, captions, strict=True):
            ax.plot(*zip(start, end, strict=True), color=GREY, linewidth=0.3, zorder=0)
        for concept in concepts:
            own = np.array(one["concept"]) == concept
            ax.scatter(*images[own].T, s=13, color=colours[concept], label=concept)
            ax.scatter(*captions[own].T, s=13, color=colours[concept], marker="^")
        ax.set(title=title, xticks=[], yticks=[], xlabel="● images, ▲ captions")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right upper", fontsize=8)
    return fig


@themed
def geometry(
    histories: Mapping[str, Mapping[str, Sequence[float]]], figure: FigureBase | None = None
) -> Figure:
    """Draw recall, modality gap, alignment and uniformity over the epochs of several runs."""
    fig = _figure(figure, 11, 2.7)
    titles = {
        "dev_mean_recall": "dev mean recall (0 to 1)",
        "modality_gap": "modality gap",
        "alignment": "alignment (low: close pairs)",
        "uniformity_image": "uniformity, images (low: even)",
    }
    axes = fig.subplots(1, len(titles))
    for colour, (name, history) in zip(PALETTE, histories.items(), strict=False):
        for ax, column in zip(axes, titles, strict=True):
            values = history[column]
            epochs = range(1, len(values) + 1)
            ax.plot(epochs, values, "o-", ms=3, color=colour, label=name)
    for ax, title in zip(axes, titles.values(), strict=True):
        ax.set(xlabel="epoch")
        ax.set_title(title, fontsize=9)
    axes[0].legend(title="temperature", fontsize=7)
    return fig


@themed
def reading(twins: Mapping[str, Mapping[str, Any]], figure: FigureBase | None = None) -> Figure:
    """Draw how often a caption beats its false twin, with the image (bar) and without it (dot).

    ``twins`` has for each kind of change the share of ``true_wins``, its ``interval``, and the
    share that wins ``blind``.
    """
    fig = _figure(figure, 5, 3)
    ax = fig.subplots()
    wins = 100 * np.array([row["true_wins"] for row in twins.values()])
    ends = 100 * np.array([row["interval"] for row in twins.values()]).T
    ax.barh(list(twins), wins, xerr=np.abs(ends - wins), color=BLUE, alpha=0.8, capsize=3)
    blind = [100 * row["blind"] for row in twins.values()]
    ax.plot(blind, list(twins), "o", color=ORANGE, mec="white", ms=7, label="without the image")
    ax.axvline(50, color="black", linestyle="--", label="a coin")
    ax.invert_yaxis()
    ax.set(xlim=(0, 100), xlabel="true caption beats its false twin (%)")
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return fig


# ---- more data -----------------------------------------------------------------------


@themed
def power_law(law: Mapping[str, Any], figure: FigureBase | None = None) -> Figure:
    """Draw the share of misses against the number of training images, and the line through it.

    ``law`` has lists of the same length, ``images`` and ``misses``; the ``factor`` and ``exponent``
    of the line; and the ``predicted_mean_recall`` of larger datasets, by their name.
    """
    fig = _figure(figure, 4.8, 3)
    ax = fig.subplots()
    images = np.array(law["images"])
    ax.plot(images, 100 * np.array(law["misses"]), "o", color=BLUE, label="a dot for each seed")

    # The line is drawn on to the largest dataset that is predicted.
    marks = {}
    for name, recall in law["predicted_mean_recall"].items():
        marks[name] = ((1 - recall) / law["factor"]) ** (1 / law["exponent"])
    x = np.geomspace(images.min(), max([images.max(), *marks.values()]), 50)
    label = f"misses ∝ images^{law['exponent']:.2f}"
    ax.plot(x, 100 * law["factor"] * x ** law["exponent"], "--", color=ORANGE, label=label)
    for name, n in marks.items():
        y = 100 * law["factor"] * n ** law["exponent"]
        ax.plot(n, y, "|", color=ORANGE, ms=10)
        above = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center", "fontsize": 8}
        ax.annotate(name, (n, y), **above)

    ax.set(xscale="log", yscale="log", xlabel="training images", ylabel="misses: 100 - recall (%)")
    ax.yaxis.set_major_formatter("{x:.0f}")
    ax.yaxis.set_minor_formatter("{x:.0f}")
    ax.tick_params(axis="y", which="minor", labelsize=7)
    ax.legend(fontsize=8, loc="lower left")
    return fig


# ---- ablations -----------------------------------------------------------------------


@themed
def study(result: Mapping[str, Any], figure: FigureBase | None = None) -> Figure:
    """Draw one study as ``seed_dots`` does, in a figure of its own.

    To its right stand the leads over one row, in points, with their intervals: rows may have a
    ``lead`` and a ``lead_interval``.
    """
    fig = _figure(figure, 7, 0.9 + 0.24 * len(result["rows"]))
    ax = fig.subplots()
    seed_dots(ax, result)
    ax.set_xlabel("mean recall on held-out images (%)")
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
