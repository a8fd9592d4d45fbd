"""The report's vector figures, each drawn from results by a function of its name.

The files must be the same on every machine, and the last digits of a computed number are not. So
every figure has fixed places for its panels, in inches, where a layout engine would solve for them,
and ``write`` rounds what is drawn.
"""

import re
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from tables import CONTENDERS, PUBLISHED, config_of, measured

from minicliplib.analysis import charts
from minicliplib.analysis import figures as viz

# Fills of the boxes in the diagram of both towers.
FROZEN = "#dde3ea"
TRAINED = "#fde3c4"
VECTOR = "#cfe8dc"

# Geometry of that diagram, in the units of its axes.
BOX_HEIGHT = 11
IMAGE_ROW = 29.5
TEXT_ROW = 6.5
COSINE_ROW = 18


# ---- the diagram of both towers ------------------------------------------------------------------


def towers() -> Figure:
    """Draw both towers, with what each part weighs and which parts train."""
    record = measured("flickr8k", "02_model")
    fig, ax = plt.subplots()
    _place_panels(fig, 7.52, 2.62, left=0.1, right=0.1, bottom=0.1, top=0.1)
    ax.set(xlim=(8, 97), ylim=(0, 36))
    ax.axis("off")

    # A row per tower. An arrow leads from its vector to where both meet.
    _tower(ax, record, "image", "image", IMAGE_ROW)
    _arrow(ax, (88.5, IMAGE_ROW - BOX_HEIGHT / 2), (88.5, COSINE_ROW + 2))
    _tower(ax, record, "text", "caption", TEXT_ROW)
    _arrow(ax, (88.5, TEXT_ROW + BOX_HEIGHT / 2), (88.5, COSINE_ROW - 2))
    meeting = {"ha": "right", "va": "center", "fontsize": 7.5, "weight": "bold"}
    ax.text(96, COSINE_ROW, "cosine × scale → InfoNCE", **meeting)

    # A dashed line parts what runs once from what runs in every step.
    ax.axvline(43.5, 0.03, 0.97, color="0.35", ls="--", lw=0.8)
    note = {"va": "center", "fontsize": 7.5, "style": "italic"}
    ax.text(42.5, COSINE_ROW, "runs once, is cached", ha="right", **note)
    ax.text(44.5, COSINE_ROW, "runs in every step", ha="left", **note)
    return fig


def _tower(ax: Axes, record: dict[str, Any], kind: str, source: str, y: float) -> None:
    """Draw one tower as a row of boxes, from its ``source`` to its vector."""
    config = config_of(record)
    name = getattr(config.encoders, kind)
    all_stages = measured("benchmarks", "towers")["metrics"]["towers"][name]["stages"]
    tuned_stages = getattr(config.encoders, f"{kind}_trainable")
    parameters = record["metrics"]["parameters"]
    frozen = _millions(parameters[f"{kind} tower"]["frozen"])
    tuned = _millions(parameters[f"{kind} tower"]["trainable"])
    head = _millions(parameters[f"{kind} head"]["trainable"])

    # A box is its left end, its width, its fill and its text.
    shown_name = name.replace("+", " +\n")  # towers side by side, one under the other
    frozen_text = f"{shown_name}\nstages 1 to {all_stages - tuned_stages}\n{frozen}, frozen"
    boxes = (
        (9, 11, "white", source),
        (23, 19, FROZEN, frozen_text),
        (45, 17, TRAINED, f"last {tuned_stages} stages\n{tuned}, trained"),
        (65, 14, TRAINED, f"{kind} head\n{head}, trained"),
        (82, 13, VECTOR, f"vector\nof length 1\n({config.heads.dim})"),
    )
    end_of_last = None
    for left, width, fill, text in boxes:
        if end_of_last is not None:
            _arrow(ax, (end_of_last, y), (left, y))
        end_of_last = left + width
        box = FancyBboxPatch(
            (left, y - BOX_HEIGHT / 2),
            width,
            BOX_HEIGHT,
            boxstyle="round,pad=0,rounding_size=1",
            fc=fill,
            ec="0.35",
        )
        ax.add_patch(box)
        middle = left + width / 2
        ax.text(middle, y, text, ha="center", va="center", fontsize=7.5, linespacing=1.35)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw an arrow from one point to another."""
    style = {"arrowstyle": "-|>", "color": "0.35", "shrinkA": 1, "shrinkB": 1, "lw": 1}
    ax.annotate("", end, start, arrowprops=style)


def _millions(count: int) -> str:
    """Return a number of parameters in millions: ``3.4 M``."""
    return f"{count / 1e6:.1f} M"


# ---- training and recall -------------------------------------------------------------------------


def training() -> Figure:
    """Draw loss, dev recall and logit scale of the Flickr8k run."""
    history = measured("flickr8k", "03_training")["metrics"]["history"]
    fig = charts.training_curves({"Flickr8k": pd.DataFrame(history)})
    _place_panels(fig, 9.62, 3.02, left=0.48, right=0.1, bottom=0.53, top=0.28, gap=0.68)
    return fig


def recall() -> Figure:
    """Draw recall on Flickr8k's test split beside what was published."""
    metrics = measured("flickr8k")["metrics"]
    scores = {"Mini-CLIP": metrics["trained"]}
    for name, percentages in PUBLISHED.items():
        short_name = name.split(" (")[0]
        scores[short_name] = {
            "image_to_text": _recalls(percentages[:3]),
            "text_to_image": _recalls(percentages[3:]),
        }
    fig = charts.recall_bars(scores, metrics["interval"])

    # Only our bars carry their numbers; the table beside the figure has the rest.
    for ax in fig.axes:
        for text in ax.texts[3:]:
            text.remove()
    _place_panels(fig, 9.52, 3.32, left=0.64, right=1.75, bottom=0.34, top=0.28, gap=0.1)
    return fig


def _recalls(percentages: tuple[float | None, ...]) -> dict[str, float]:
    """Return R@1, R@5 and R@10 from 0 to 1; what was not published is NaN."""
    recalls = {}
    for key, value in zip(("R@1", "R@5", "R@10"), percentages, strict=True):
        recalls[key] = float("nan") if value is None else value / 100
    return recalls


def peers() -> Figure:
    """Draw mean recall against minutes of training, for us and for others on the same towers."""
    contenders = measured("benchmarks", "peers")["metrics"]["contenders"]
    fig, ax = plt.subplots()
    for name, label in CONTENDERS.items():
        curve = contenders[name]["curve"]
        minutes = [point["minutes"] for point in curve]
        recalls = [100 * point["mean_recall"] for point in curve]
        plain_label = re.sub("[*`]", "", label)
        ax.plot(minutes, recalls, "o-", ms=3, label=plain_label)
    ax.set(xlabel="minutes of training", ylabel="mean recall on test (%)")
    ax.set(xlim=(0, None), ylim=(0, None))
    ax.legend(fontsize=8, loc="lower right")
    _place_panels(fig, 6.12, 2.82, left=0.56, right=0.1, bottom=0.53, top=0.1)
    return fig


# ---- what the model reads and names --------------------------------------------------------------


def zero_shot() -> Figure:
    """Draw zero-shot accuracy on both labelled sets."""
    metrics = measured("flickr8k", "05_zero_shot")["metrics"]
    reports = {}
    for key, name in (("cifar10", "CIFAR-10"), ("caltech101", "Caltech-101")):
        reports[name] = {"as it is": metrics[key], "calibrated": metrics[key]["calibrated"]}
    fig = charts.accuracy_bars(reports)
    _place_panels(fig, 8.12, 3.02, left=0.64, right=0.1, bottom=0.34, top=0.28, gap=0.62)
    return fig


def by_mentions() -> Figure:
    """Draw accuracy of Caltech-101's classes by how often Flickr8k's captions name them."""
    groups = measured("flickr8k", "05_zero_shot")["metrics"]["top1_by_mentions"]
    values = {f"{label} ({classes} classes)": top1 for label, (classes, top1) in groups.items()}
    fig = charts.bars(values, "zero-shot top-1 (%)", form="{:.1f}")
    _place_panels(fig, 5.12, 1.92, left=1.7, right=0.1, bottom=0.53, top=0.1)
    return fig


def reading() -> Figure:
    """Draw how often a caption beats its false twin, with the image and without it."""
    twins = measured("flickr8k", "06_embedding")["metrics"]["reading"]
    fig = charts.reading(twins)
    _place_panels(fig, 5.12, 2.62, left=1.57, right=0.15, bottom=0.93, top=0.1)
    return fig


# ---- ablations -----------------------------------------------------------------------------------


def ablations() -> Figure:
    """Draw a panel per study: each setting's mean recall, a dot per seed and their mean.

    The setting that the others are held against, the base, is bold.
    """
    studies = list(measured("flickr8k", "08_ablations")["metrics"]["studies"].values())
    base = studies[0]["rows"][-1]["mean_recall"]
    fig = plt.figure(figsize=(8.72, 7.32), layout="none")
    left_panels = _panel_column(fig, studies[::2], left=2.01, width=2.15)
    right_panels = _panel_column(fig, studies[1::2], left=6.3, width=2.3)

    for ax, study in [*left_panels, *right_panels]:
        charts.seed_dots(ax, study)
        ax.tick_params(labelsize=7)
        ax.set_title(study["title"], fontsize=8)
        for label, row in zip(ax.get_yticklabels(), study["rows"], strict=True):
            is_base = row["mean_recall"] == base
            label.set_fontweight("bold" if is_base else "normal")
    return fig


def _panel_column(
    fig: Figure, studies: list[dict[str, Any]], left: float, width: float
) -> list[tuple[Axes, dict[str, Any]]]:
    """Add a column of panels to a figure, one per study and as high as its rows need, in inches."""
    bottom_margin = 0.31
    top_margin = 0.27
    gap = 0.464  # holds the title of a panel and the numbers under the one above
    figure_width, figure_height = fig.get_size_inches()

    # A panel is higher by its number of rows, and by the same margin for all.
    shares = [1.6 + len(study["rows"]) for study in studies]
    gaps = gap * (len(studies) - 1)
    height_per_share = (figure_height - bottom_margin - top_margin - gaps) / sum(shares)

    panels = []
    top = figure_height - top_margin
    for study, share in zip(studies, shares, strict=True):
        height = share * height_per_share
        place = (
            left / figure_width,
            (top - height) / figure_height,
            width / figure_width,
            height / figure_height,
        )
        panels.append((fig.add_axes(place), study))
        top -= height + gap
    return panels


FIGURES = {
    "towers": towers,
    "training": training,
    "recall": recall,
    "peers": peers,
    "zero_shot": zero_shot,
    "by_mentions": by_mentions,
    "reading": reading,
    "ablations": ablations,
}


# ---- places --------------------------------------------------------------------------------------


def _place_panels(
    fig: Figure,
    width: float,
    height: float,
    *,
    left: float,
    right: float,
    bottom: float,
    top: float,
    gap: float = 0.0,
) -> None:
    """Size a figure and place its panels side by side, all alike: margins and gap in inches."""
    fig.set_layout_engine("none")
    fig.set_size_inches(width, height)
    panels = fig.axes
    panel_width = (width - left - right - gap * (len(panels) - 1)) / len(panels)
    panel_height = height - bottom - top
    for i, ax in enumerate(panels):
        x = left + i * (panel_width + gap)
        ax.set_position((x / width, bottom / height, panel_width / width, panel_height / height))


# ---- files ---------------------------------------------------------------------------------------

SVG_SETTINGS: dict[Any, Any] = {"savefig.bbox": "standard", "svg.fonttype": "path"}


def write(name: str, path: Path) -> None:
    """Draw one of ``FIGURES`` and write it as SVG, the same on every machine."""
    text = StringIO()
    with matplotlib.rc_context(viz.THEME | SVG_SETTINGS):
        fig = FIGURES[name]()
        fig.savefig(text, format="svg", metadata={"Creator": None, "Date": None})
        plt.close(fig)
    path.write_text(_with_plain_ids(_rounded(text.getvalue())), encoding="utf-8")


def _rounded(svg: str) -> str:
    """Return an SVG with its lengths rounded to hundredths of a point.

    Matplotlib writes six digits behind the point. Scales are left as they are: they follow from
    the sizes of letters, not from a computation, and a hundredth of one would be seen.
    """

    def rounded(match: re.Match[str]) -> str:
        text = match[0]
        if text.startswith("scale"):
            return text
        shorter = f"{float(text):.2f}".rstrip("0").rstrip(".")
        return "0" if shorter == "-0" else shorter

    return re.sub(r"scale\([^)]*\)|-?\d+\.\d{3,}", rounded, svg)


def _with_plain_ids(svg: str) -> str:
    """Return an SVG whose shapes have numbers for names, in the order of the text.

    Matplotlib names a clipping area by a hash of its corners in full precision. There the last
    digit of a corner changes the whole name, though no eye and no rounded number shows it.
    """
    numbers: dict[str, int] = {}

    def renamed(match: re.Match[str]) -> str:
        number = numbers.setdefault(match[0], len(numbers) + 1)
        return f"shape{number}"

    return re.sub(r"(?<=[\"#])\w*[0-9a-f]{10}(?=[\")])", renamed, svg)
