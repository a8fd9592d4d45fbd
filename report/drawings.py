"""The report's vector figures, each drawn from results: a function per figure, named as the report calls it."""

import re

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator
from tables import CONTENDERS, PUBLISHED, measured

from minicliplib.analysis import figures as viz

FROZEN, TRAINED, VECTOR = "#dde3ea", "#fde3c4", "#cfe8dc"


def towers() -> Figure:
    """Draw both towers, with what each part weighs and which parts train."""
    record = measured("flickr8k", "02_model")
    parameters, encoders = record["metrics"]["parameters"], record["config"]["encoders"]
    stages = {
        name: row["stages"]
        for name, row in measured("benchmarks", "towers")["metrics"]["towers"].items()
    }
    fig, ax = plt.subplots(figsize=(7.4, 2.5))
    ax.set(xlim=(8, 97), ylim=(0, 36))
    ax.axis("off")
    for kind, source, y in (("image", "picture", 29.5), ("text", "caption", 6.5)):
        name, tuned = encoders[kind], encoders[f"{kind}_trainable"]
        tower, head = parameters[f"{kind} tower"], parameters[f"{kind} head"]["trainable"]
        boxes = (
            (9, 11, "white", source),
            (
                23,
                19,
                FROZEN,
                f"{name}\nstages 1 to {stages[name] - tuned}\n{tower['frozen'] / 1e6:.1f} M, frozen",
            ),
            (45, 17, TRAINED, f"last {tuned} stages\n{tower['trainable'] / 1e6:.1f} M, trained"),
            (65, 14, TRAINED, f"{kind} head\n{head / 1e6:.1f} M, trained"),
            (82, 13, VECTOR, f"vector\nof length 1\n({record['config']['heads']['dim']})"),
        )
        for (left, width, colour, text), after in zip(boxes, (*boxes[1:], None), strict=True):
            box = FancyBboxPatch(
                (left, y - 5.5),
                width,
                11,
                boxstyle="round,pad=0,rounding_size=1",
                fc=colour,
                ec="0.35",
            )
            ax.add_patch(box)
            ax.text(
                left + width / 2, y, text, ha="center", va="center", fontsize=7.5, linespacing=1.35
            )
            if after:
                _arrow(ax, (left + width, y), (after[0], y))
        _arrow(
            ax,
            (88.5, y - 5.5 if kind == "image" else y + 5.5),
            (88.5, 20 if kind == "image" else 16),
        )
    ax.text(
        96, 18, "cosine × scale → InfoNCE", ha="right", va="center", fontsize=7.5, weight="bold"
    )
    ax.axvline(43.5, 0.03, 0.97, color="0.35", ls="--", lw=0.8)
    for x, side, text in (
        (42.5, "right", "runs once, is cached"),
        (44.5, "left", "runs in every step"),
    ):
        ax.text(x, 18, text, ha=side, va="center", fontsize=7.5, style="italic")
    return fig


def _arrow(ax, start: tuple, end: tuple) -> None:
    ax.annotate(
        "",
        end,
        start,
        arrowprops={"arrowstyle": "-|>", "color": "0.35", "shrinkA": 1, "shrinkB": 1, "lw": 1},
    )


def training() -> Figure:
    """Draw loss, dev recall and logit scale of the Flickr8k run."""
    history = measured("flickr8k", "03_training")["metrics"]["history"]
    fig = viz.training_curves({"Flickr8k": pd.DataFrame(history)})
    fig.get_layout_engine().set(wspace=0.05)
    for ax in fig.axes:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _sized(fig, 9.5, 2.9)


def recall() -> Figure:
    """Draw recall on Flickr8k's test split beside what was published."""
    metrics = measured("flickr8k")["metrics"]
    published = {}
    for name, values in PUBLISHED.items():
        numbers = [float("nan") if value is None else value / 100 for value in values]
        keys = ("R@1", "R@5", "R@10")
        published[name.split(" (")[0]] = {
            "image_to_text": dict(zip(keys, numbers[:3], strict=True)),
            "text_to_image": dict(zip(keys, numbers[3:], strict=True)),
        }
    fig = viz.recall_bars({"Mini-CLIP": metrics["trained"], **published}, metrics["interval"])
    for ax in fig.axes:
        for text in ax.texts[3:]:  # only ours: the table beside it has the rest
            text.remove()
    return _sized(fig, 9.4, 3.2)


def zero_shot() -> Figure:
    """Draw zero-shot accuracy on both labelled sets."""
    metrics = measured("flickr8k", "05_zero_shot")["metrics"]
    names = {"cifar10": "CIFAR-10", "caltech101": "Caltech-101"}
    rows = {
        name: {"as it is": metrics[key], "calibrated": metrics[key]["calibrated"]}
        for key, name in names.items()
    }
    return _sized(viz.accuracy_bars(rows), 8, 2.9)


def by_mentions() -> Figure:
    """Draw accuracy of Caltech-101's classes by how often Flickr8k's captions name them."""
    groups = measured("flickr8k", "05_zero_shot")["metrics"]["top1_by_mentions"]
    values = {f"{label} ({classes} classes)": top1 for label, (classes, top1) in groups.items()}
    return _sized(viz.bars(values, "zero-shot top-1 (%)", form="{:.1f}"), 5, 1.8)


def reading() -> Figure:
    """Draw how often a caption beats its false twin, with the image and without it."""
    twins = measured("flickr8k", "06_embedding")["metrics"]["reading"]
    fig = viz.bars(
        {name: 100 * row["true_wins"] for name, row in twins.items()},
        "the true caption wins (%)",
        form="",
    )
    (ax,) = fig.axes
    for y, row in enumerate(twins.values()):
        ax.hlines(y, *(100 * end for end in row["interval"]), color="black")
        ax.plot(
            100 * row["blind"], y, "o", color=viz.ORANGE, label=None if y else "without the image"
        )
    ax.axvline(50, color="black", ls="--", label="a coin")
    ax.set_xlim(0, 100)
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return _sized(fig, 6.4, 2.1)


def ablations() -> Figure:
    """Draw a panel per study: each setting's mean recall on dev, a dot per seed and their mean; the base is bold."""
    studies = list(measured("flickr8k", "08_ablations")["metrics"]["studies"].values())
    halves, base = (studies[::2], studies[1::2]), studies[0]["rows"][-1]["dev_mean_recall"]
    fig = plt.figure(figsize=(8.6, 7.2))
    for column, half in zip(fig.subfigures(1, 2), halves, strict=True):
        sizes = [1.6 + len(study["rows"]) for study in half]
        for ax, study in zip(
            column.subplots(len(half), 1, squeeze=False, height_ratios=sizes).flat,
            half,
            strict=True,
        ):
            viz.seed_dots(ax, study)
            ax.tick_params(labelsize=7)
            ax.set_title(study["title"], fontsize=8)
            for label, row in zip(ax.get_yticklabels(), study["rows"], strict=True):
                label.set_fontweight("bold" if row["dev_mean_recall"] == base else "normal")
    return fig


def peers() -> Figure:
    """Draw mean recall against minutes of training, for us and for others on the same towers."""
    fig, ax = plt.subplots(figsize=(6, 2.7))
    for name, label in CONTENDERS.items():
        curve = measured("benchmarks", "peers")["metrics"]["contenders"][name]["curve"]
        ax.plot(
            [p["minutes"] for p in curve],
            [100 * p["mean_recall"] for p in curve],
            "o-",
            ms=3,
            label=re.sub("[*`]", "", label),
        )
    ax.set(
        xlabel="minutes of training",
        ylabel="mean recall on test (%)",
        xlim=(0, None),
        ylim=(0, None),
    )
    ax.legend(fontsize=8)
    return fig


def _sized(fig: Figure, width: float, height: float) -> Figure:
    fig.set_size_inches(width, height)
    return fig
