"""Charts draw what a result file holds, alone or beside what was recorded."""

import inspect
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import minicliplib as mc
from minicliplib.analysis import charts

RECALLS = {"R@1": 0.3, "R@5": 0.6, "R@10": 0.75}
SCORES = {"images": 10, "captions": 50, "image_to_text": RECALLS, "text_to_image": RECALLS}
ENDS = {key: [value - 0.1, value + 0.1] for key, value in RECALLS.items()}
ACCURACY = {
    "images": 100,
    "classes": 10,
    "top1": 0.5,
    "top5": 0.9,
    "chance": {"top1": 0.1, "top5": 0.5},
    "interval": {"top1": [0.4, 0.6], "top5": [0.8, 0.95]},
}
HISTORY = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "loss": [2.0, 1.5, 1.2],
        "log_batch": [2.1, 2.1, 2.1],
        "dev_mean_recall": [0.2, 0.4, 0.3],
        "logit_scale": [14.0, 15.0, 16.0],
    }
)
STUDY = {
    "title": "Loss",
    "rows": [
        {"label": "infonce", "mean_recall": [0.48, 0.5, 0.49]},
        {
            "label": "sigmoid",
            "mean_recall": [0.45, 0.46, 0.44],
            "lead": -0.04,
            "lead_interval": [-0.05, -0.03],
        },
    ],
}

OVERLAP = {"mean": 0.3, "percent": [5.0] * 20}
ZIPF = {"rank": [1, 10, 100], "times": [500, 60, 4], "covered": [10.0, 60.0, 100.0]}
TRAP = {str(b): {"expected": b / 9, "counted": b / 10, "spread": 1.0} for b in (16, 32, 64)}
DIAL = {"million_parameters": [0, 1, 2], "gflops": [0, 0.1, 0.5], "kilobytes": [2, 50, None]}
WEIGHT = {
    "parameters": {"tower": {"frozen": 10**6, "trainable": 10**5}, "all": 1_100_000},
    "gflops": {"an image": {"frozen": 0.5, "trainable": 0.1}},
}
PLACES = [[0.0, 0.0], [1.0, 2.0], [2.0, 1.0]]
MAP = {"images": PLACES, "captions": PLACES, "concept": ["dog", "other", "snow"]}
GEOMETRY = {
    name: [0.1, 0.2]
    for name in ("dev_mean_recall", "modality_gap", "alignment", "uniformity_image")
}
TWINS = {"words shuffled": {"true_wins": 0.7, "interval": [0.6, 0.8], "blind": 0.2}}
LAW = {
    "images": [500, 500, 5000],
    "misses": [0.8, 0.79, 0.5],
    "factor": 2.8,
    "exponent": -0.2,
    "predicted_mean_recall": {"COCO": 0.73},
}
RANKS = {
    "image_to_text": charts.rank_bins(np.arange(50), 50),
    "text_to_image": charts.rank_bins(np.arange(10), 10),
}

# One example of every public function that returns a figure.
EXAMPLES: dict[str, Callable[..., Figure]] = {
    "bars": lambda **k: charts.bars({"dog": 1200, "owl": 3}, "times", "Words", **k),
    "curves": lambda **k: charts.curves([1, 9], {"loss": {"good": [3, 2]}}, "scale", **k),
    "training_curves": lambda **k: charts.training_curves({"one": HISTORY}, **k),
    "overlap": lambda **k: charts.overlap({"one image": OVERLAP, "two images": OVERLAP}, **k),
    "lengths": lambda **k: charts.lengths({"words": {"5": 9}, "tokens": {"7": 9}}, 40, **k),
    "zipf": lambda **k: charts.zipf(ZIPF, **k),
    "false_negatives": lambda **k: charts.false_negatives(TRAP, **k),
    "weight_and_cost": lambda **k: charts.weight_and_cost(WEIGHT, **k),
    "freeze_dial": lambda **k: charts.freeze_dial({"image": DIAL, "text": DIAL}, **k),
    "speeds": lambda **k: charts.speeds({"lite": {"float32": 100.0}}, "images a second", **k),
    "recall_bars": lambda **k: charts.recall_bars(
        {"ours": SCORES, "theirs": SCORES}, {"image_to_text": ENDS, "text_to_image": ENDS}, **k
    ),
    "rank_histogram": lambda **k: charts.rank_histogram(RANKS, **k),
    "accuracy_bars": lambda **k: charts.accuracy_bars({"CIFAR-10": {"ours": ACCURACY}}, **k),
    "confusion": lambda **k: charts.confusion(np.eye(2), ["red", "blue"], **k),
    "templates_band": lambda **k: charts.templates_band({"1": [5, 4, 6], "2": [6, 5, 7]}, **k),
    "before_and_after": lambda **k: charts.before_and_after({"before": np.eye(3)}, **k),
    "map_of_space": lambda **k: charts.map_of_space({"after": MAP}, **k),
    "geometry": lambda **k: charts.geometry({"learned": GEOMETRY}, **k),
    "reading": lambda **k: charts.reading(TWINS, **k),
    "power_law": lambda **k: charts.power_law(LAW, **k),
    "study": lambda **k: charts.study(STUDY, **k),
}


@pytest.fixture(autouse=True)
def as_it_was():
    """Close what was drawn."""
    yield
    plt.close("all")


def test_there_is_an_example_of_every_chart():
    functions = inspect.getmembers(charts, inspect.isfunction)
    drawing = {
        name
        for name, function in functions
        if function.__module__ == charts.__name__
        and not name.startswith("_")
        and inspect.signature(function).return_annotation is Figure
    }
    assert drawing == {*EXAMPLES, "compare"}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_chart_is_drawn_alone_or_into_a_part_of_a_figure(name):
    before = dict(plt.rcParams)
    alone = EXAMPLES[name]()
    parts = plt.figure().subfigures(1, 2)
    EXAMPLES[name](figure=parts[0])
    assert len(parts[0].axes) == len(alone.axes) > 0
    assert not parts[1].axes
    assert dict(plt.rcParams) == before


def test_the_sample_stands_beside_the_record():
    measured = mc.recorded("sample", "04_retrieval")["metrics"]
    record = mc.recorded("flickr8k", "04_retrieval")

    def draw(metrics, figure):
        charts.recall_bars({"trained": metrics["trained"]}, figure=figure)

    figure = charts.compare(draw, measured, "sample", "04_retrieval")
    left, right = figure.subfigs
    assert left.get_suptitle() == "sample"
    assert right.get_suptitle() == f"Flickr8k, recorded {record['date']}"
    first_bar = left.axes[0].patches[0].get_height()
    assert first_bar == 100 * measured["trained"]["image_to_text"]["R@1"]
    first_bar = right.axes[0].patches[0].get_height()
    assert first_bar == 100 * record["metrics"]["trained"]["image_to_text"]["R@1"]

    alone = charts.compare(draw, record["metrics"], "flickr8k", "04_retrieval")
    assert len(alone.subfigs) == 1


def test_a_missing_record_says_how_to_get_it():
    with pytest.raises(FileNotFoundError, match="--dataset flickr8k --refresh --only 99"):
        mc.recorded("flickr8k", "99_nothing")


def test_the_intervals_are_those_of_the_first_model():
    fig = EXAMPLES["recall_bars"]()
    for ax in fig.axes:
        ours, theirs = ax.containers[1], ax.containers[2]
        assert ours.get_label() == "ours"
        assert theirs.get_label() == "theirs"
        assert ours.errorbar is not None
        assert theirs.errorbar is None


def test_training_marks_the_epoch_that_was_kept():
    _, recall, _ = EXAMPLES["training_curves"]().axes
    kept = next(line for line in recall.lines if line.get_label() == "kept")
    assert kept.get_xdata() == [2]
    assert kept.get_ydata() == [40]


def test_training_shows_the_loss_on_dev_if_there_is_one():
    history = HISTORY.assign(dev_loss=[2.1, 1.9, 2.0])
    loss, _, _ = charts.training_curves({"one": history}).axes
    labels = [line.get_label() for line in loss.lines]
    assert labels == ["one", "one, on dev", "ln(batch): no learning"]


def test_rank_bins_count_every_query_once():
    bins = charts.rank_bins(np.array([0, 0, 3, 9]), 10)
    assert sum(bins["percent"]) == pytest.approx(100)
    assert bins["edges"][0] == 1
    assert bins["edges"][-1] == 11
    assert bins["median"] == 2.5
