"""The tables of README, RESULTS.md, report and slides, made from ``report/results``.

``python report/tables.py`` renews the table of README.md and the whole of report/RESULTS.md.

No result of ours is typed here, except the recalls of earlier recipes, which no results file holds
any more. The numbers of other people's papers are typed, with their source.
"""

import json
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NoReturn

from minicliplib.config import Config

ROOT = Path(__file__).resolve().parents[1]
README_START = "<!-- results: written by `python report/tables.py`, do not edit -->\n"
README_END = "<!-- /results -->"

DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image"}
CUTOFFS = ("R@1", "R@5", "R@10")
# The six recalls of a retrieval table: image to text first, then text to image.
RECALLS = [(direction, cutoff) for direction in DIRECTIONS for cutoff in CUTOFFS]
RECALL_HEADS = [f"{DIRECTIONS[direction]} {cutoff}" for direction, cutoff in RECALLS]

# Published single dual encoders on the same protocol: 1,000 images and 5,000 captions, where any
# of an image's captions counts. We did not have the papers of MFM, NAA and ITMeetsAL.
PUBLISHED = {
    "FV GMM+HGLMM (CVPR 2015)": (31.0, 59.3, 73.7, 21.2, 50.0, 64.8),
    "MFM, VGG (at second hand)": (35.6, 67.0, 78.6, 28.4, 58.5, 72.3),
    "NAA, ResNet (at second hand)": (37.2, 68.1, 79.1, 27.7, 59.6, 71.8),
    # arXiv 2104.04991. We know no numbers of theirs for text -> image.
    "ITMeetsAL, ResNet (at second hand)": (40.1, 67.8, 79.2, None, None, None),
    "2WayNet (CVPR 2017)": (43.4, 63.2, None, 29.3, 49.7, None),
}
# Correlation with human judgements, as quoted by Hessel et al. (EMNLP 2021), times 100:
# Kendall's tau-c on Expert, tau-b on CF.
JUDGED = {"CIDEr, with 5 reference captions": (43.9, 24.6), "CLIP-S (CLIP ViT-B/32)": (51.2, 34.4)}
# What earlier recipes for Flickr8k reached on test, each looked at once: when, and the six recalls.
EARLIER = {
    "two views of an image": ("2026-11-23", (35.8, 63.7, 74.5, 26.5, 58.0, 70.6)),
    "four views": ("2026-11-23", (36.9, 65.2, 75.9, 28.3, 59.3, 71.5)),
    "soft targets, a soup of three runs": ("2026-11-25", (36.5, 66.8, 78.9, 30.1, 61.8, 73.9)),
    "wider heads, a soup of four runs": ("2026-11-25", (35.9, 66.4, 79.1, 30.4, 61.4, 74.7)),
}

# The rows of Flickr8k's table that README shows.
README_ROWS = (
    "**Mini-CLIP**",
    "with untrained heads",
    "chance",
    "NAA, ResNet (at second hand)",
    "2WayNet (CVPR 2017)",
)
# The sizes of the image files in benchmarks/embedding.py.
IMAGE_SIZES = ("224x224", "500x375", "4000x3000")
# Who trains in benchmarks/peers.py, as tables and figures call them.
CONTENDERS = {
    "mini_clip": "**Mini-CLIP**",
    "locked": "**Mini-CLIP with locked towers**",
    "hugging_face": "transformers: `VisionTextDualEncoderModel`, its example",
    "open_clip": "open_clip: its towers and `ClipLoss`",
}
PEERS = ("hugging_face", "open_clip")  # the libraries among them, and in the race

# The mean recalls that benchmarks/speedrun.py is a race to, and who runs there.
RACE_TARGETS = (0.50, 0.55, 0.58, 0.60)
SPEED_RUNNERS = {
    "one_tower": "EfficientNet-Lite2, locked",
    "two_towers": "Lite1 and Lite2, locked",
    "two_towers_two_views": "the same, two cached views, more epochs",
    "tuned": "the recipe of `flickr8k`, shorter, one run",
    "hugging_face": CONTENDERS["hugging_face"],
    "open_clip": CONTENDERS["open_clip"],
}

# The runs of benchmarks/gpu.py.
GPU_TRAININGS = {
    "recipe, run 1": "the recipe of `flickr8k`, run 1",
    "recipe, run 2": "run 2",
    "recipe, run 3": "run 3",
    "all trained, 5e-5": "all stages of both towers, batches of 512, their learning rate 5e-5",
    "all trained, 2e-4": "the same, 2e-4",
}


def main() -> None:
    """Renew the table of README.md, and report/RESULTS.md."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(renewed(text), encoding="utf-8")
    (ROOT / "report" / "RESULTS.md").write_text(results_page(), encoding="utf-8")


# ---- the results files -----------------------------------------------------------------------


class Record(dict):
    """Results in which a missing key ends the program and names what to run."""

    def __init__(self, values: dict[str, Any], dataset: str, topic: str):
        super().__init__(values)
        self._dataset = dataset
        self._topic = topic

    def __missing__(self, key: str) -> NoReturn:
        """Say which file lacks the key, and what writes that file."""
        path = source(self._dataset, self._topic).relative_to(ROOT)
        raise SystemExit(f"{path} has no {key!r}. {remedy(self._dataset, self._topic)}")


def source(dataset: str, topic: str = "04_retrieval") -> Path:
    """Return the file of a dataset's results."""
    return ROOT / "report" / "results" / dataset / f"{topic}.json"


def measured(dataset: str, topic: str = "04_retrieval") -> Record:
    """Return what a results file holds.

    Raises:
        SystemExit: the file is missing; the message says what to run. So does a missing key.

    """
    path = source(dataset, topic)
    if not path.exists():
        raise SystemExit(f"{path.relative_to(ROOT)} is missing. {remedy(dataset, topic)}")
    as_record = partial(Record, dataset=dataset, topic=topic)
    return json.loads(path.read_text(encoding="utf-8"), object_hook=as_record)


def config_of(record: dict[str, Any]) -> Config:
    """Return the settings of a results file, whichever version of the package wrote it."""
    settings = {name: value for name, value in record["config"].items() if name != "digest"}
    return Config.from_dict(settings)


def remedy(dataset: str, topic: str) -> str:
    """Return which notebook or command writes a result or a figure."""
    if dataset == "checkpoints":
        return "Run: python report/checkpoints.py measure"
    if dataset == "benchmarks":
        writers = {"open_clip": "peers", "scale_memory": "scale"}
        return f"Run: make bench-{writers.get(topic, topic)}"
    if dataset == "demo":
        return "Run: make screenshots"

    # A topic begins with the number of the notebook that writes it.
    number = topic[:2]
    notebooks = sorted((ROOT / "notebooks").glob(f"{number}_*.ipynb"))
    notebook = notebooks[0].name if notebooks else f"{topic}.ipynb"
    data = "sample" if dataset == "photos" else dataset
    command = f"python notebooks/run.py --dataset {data} --only {number} --refresh"
    return f"Run notebooks/{notebook}: {command}"


# ---- pieces of Markdown ----------------------------------------------------------------------


def markdown_table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def percent(value: float) -> str:
    """Return a share in percent with one decimal."""
    return f"{100 * value:.1f}"


def with_interval(value: float, ends: list[float]) -> str:
    """Return a share in percent in bold, and its 95% interval in brackets."""
    low, high = ends
    return f"**{percent(value)}** [{percent(low)}, {percent(high)}]"


def published_cell(value: float | None) -> str:
    """Return a number as a paper gives it, or a dash where it gives none."""
    return "-" if value is None else f"{value:.1f}"


def machine(record: dict[str, Any]) -> str:
    """Return on what a benchmark ran."""
    threads = record["machine"]["threads"]
    unit = "thread" if threads == 1 else "threads"
    return f"{threads} {unit} of a CPU, torch {record['versions']['torch']}"


# ---- retrieval -------------------------------------------------------------------------------


def recall_row(name: str, scores: dict[str, Any]) -> list[str]:
    """Return a row of six recalls in percent."""
    return [name, *(percent(scores[direction][cutoff]) for direction, cutoff in RECALLS)]


def our_row(metrics: dict[str, Any]) -> list[str]:
    """Return the row of the trained model, with its 95% intervals."""
    cells = []
    for direction, cutoff in RECALLS:
        value = metrics["trained"][direction][cutoff]
        cells.append(with_interval(value, metrics["interval"][direction][cutoff]))
    return ["**Mini-CLIP**", *cells]


def spread_row(name: str, runs: list[dict[str, Any]]) -> list[str]:
    """Return a row of six means over several runs, with their standard deviations."""
    cells = []
    for direction, cutoff in RECALLS:
        values = [100 * run[direction][cutoff] for run in runs]
        cells.append(f"{mean(values):.1f} ± {stdev(values):.1f}")
    return [name, *cells]


def retrieval_rows(dataset: str) -> list[list[str]]:
    """Return the rows of a dataset's retrieval table.

    Ours comes first, with intervals. For Flickr8k its single runs, their ensemble, and the
    correction for hubs follow. Then come, for photos, the checkpoint that saw more of them;
    untrained heads and chance; and what others published.
    """
    metrics = measured(dataset)["metrics"]
    rows = [our_row(metrics)]

    if dataset == "flickr8k":
        final = measured(dataset, "08_ablations")["metrics"]["final"]
        runs = final["runs"]
        rows.append(spread_row(f"one run: mean ± deviation of {len(runs)}", runs))
        rows.append(recall_row(f"ensemble of the {len(runs)} runs", final["ensemble"]))
        rows.append(recall_row("corrected for hubs (QB-Norm)", metrics["hub_corrected"]))
    if dataset != "sample":
        everyday = measured("checkpoints", "everyday")["metrics"]["retrieval"][dataset]
        rows.append(recall_row("`everyday`, trained on both and on more of COCO", everyday))
    rows.append(recall_row("with untrained heads", metrics["untrained"]))
    rows.append(recall_row("chance", metrics["chance"]))
    if dataset == "flickr8k":
        for name, values in PUBLISHED.items():
            rows.append([name, *map(published_cell, values)])
    return rows


def retrieval_heads(dataset: str) -> list[str]:
    """Return the heads of a retrieval table; the first one names the pool."""
    pool = measured(dataset)["metrics"]["chance"]
    size = f"{pool['images']:,} images × {pool['captions']:,} captions"
    return [f"**{dataset}** test, {size}", *RECALL_HEADS]


def retrieval(dataset: str) -> str:
    """Return a dataset's whole retrieval table."""
    return markdown_table(retrieval_heads(dataset), retrieval_rows(dataset))


def coco_note() -> str:
    """Return how much of COCO was trained on."""
    images = measured("coco", "01_data")["metrics"]["splits"]["train"]["images"]
    return f"We trained on {images:,} images: a subset of val2017, mostly with people."


def cross() -> str:
    """Return mean recall of each training set's model on each dataset."""
    tested_on = [("flickr8k", "dev"), ("flickr8k", "test"), ("coco", "test")]
    heads = ["mean recall, trained on", *(f"{dataset} {split}" for dataset, split in tested_on)]
    rows = []
    for trained_on, reports in measured("benchmarks", "cross")["metrics"]["models"].items():
        row = [trained_on]
        for dataset, split in tested_on:
            row.append(percent(reports[dataset][split]["scores"]["mean_recall"]))
        rows.append(row)
    return markdown_table(heads, rows)


def cross_note() -> str:
    """Return how the runs across datasets were made, and whether COCO helps on Flickr8k."""
    gain = measured("benchmarks", "cross")["metrics"]["gain"]
    low, high = gain["interval"]
    if low > 0:
        verdict = "Yes"
    elif high < 0:
        verdict = "No, it does harm"
    else:
        verdict = "We cannot tell"
    difference = f"{100 * gain['mean']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
    return (
        "Mean recall is the mean of the six recalls, with one view of each image. There is one run "
        "each of the heads on locked towers, with the settings of `flickr8k`; COCO alone got more "
        "epochs of smaller batches. "
        f"Does the COCO subset help on Flickr8k? {verdict}: "
        f"on the same dev images the difference is {difference}."
    )


def earlier() -> str:
    """Return every recipe for Flickr8k that was measured on test, in order of time."""
    rows = []
    for name, (day, values) in EARLIER.items():
        rows.append([name, day, *map(published_cell, values)])
    record = measured("flickr8k")
    name, *recalls = recall_row("two towers, several stages read", record["metrics"]["trained"])
    rows.append([name, record["date"], *recalls])
    return markdown_table(["recipe", "looked at test on", *RECALL_HEADS], rows)


# ---- zero-shot, and agreement with people ----------------------------------------------------


def zero_shot() -> str:
    """Return top-1 and top-5 on each labelled set: where nothing was chosen, then on all images."""
    heads = [
        *("zero-shot: no label was trained on", "model", "images", "classes"),
        *("top-1", "top-5", "chance"),
    ]
    sets = (
        ("flickr8k", "cifar10", "CIFAR-10", "`flickr8k`"),
        ("flickr8k", "caltech101", "Caltech-101", "`flickr8k`"),
        ("sample", "sample", "unseen things of the sample", "trained on the sample"),
    )
    of_everyday = measured("checkpoints", "everyday")["metrics"]["zero_shot"]
    rows = []
    for dataset, key, title, model in sets:
        report = measured(dataset, "05_zero_shot")["metrics"][key]
        rows.append([title, model, *accuracy_cells(report, "test part")])
        rows.append([title, model, *accuracy_cells(report["all_images"], "all")])
        if key in of_everyday:
            rows.append([title, "`everyday`", *accuracy_cells(of_everyday[key], "test part")])
    return markdown_table(heads, rows)


def accuracy_cells(report: dict[str, Any], part: str) -> list[str]:
    """Return images, classes, top-1, top-5 and chance of one row."""
    chance = report["chance"]
    return [
        f"{report['images']:,} ({part})",
        str(report["classes"]),
        with_interval(report["top1"], report["interval"]["top1"]),
        with_interval(report["top5"], report["interval"]["top5"]),
        f"{percent(chance['top1'])} / {percent(chance['top5'])}",
    ]


def human() -> str:
    """Return the correlation with people's ratings beside what Hessel et al. (2021) report."""
    ours = measured("flickr8k", "06_embedding")["metrics"]["human"]
    expert = percent(ours["expert"]["tau"])
    crowd = percent(ours["crowd"]["tau"])
    rows = [["**Mini-CLIP**", f"**{expert}**", f"**{crowd}**"]]
    for name, taus in JUDGED.items():
        rows.append([name, *map(str, taus)])
    heads = ["agreement with people on Flickr8k", "Expert, Kendall tau-c × 100", "CF, tau-b × 100"]
    return markdown_table(heads, rows)


# ---- speed and memory ------------------------------------------------------------------------


def towers() -> str:
    """Return what each tower weighs and costs, its speed, and whether its weights are right."""
    metrics = measured("benchmarks", "towers")["metrics"]
    gpu_speeds = measured("benchmarks", "gpu")["metrics"]["towers"]
    speeds = {"float32": "items per second", "bfloat16": "in bfloat16"}
    heads = [
        *("tower", "parameters (million)", "GFLOPs per item", *speeds.values()),
        *(f"GPU, {title}" for title in speeds.values()),
        *("memory (MiB)", "ImageNet's classes on Caltech-101, top-1 / top-5"),
        *("weights", "licence"),
    ]
    rows = []
    for name, tower in metrics["towers"].items():
        title = f"`{name}`"
        if "input_size" in tower:
            title += f", {tower['input_size']}×{tower['input_size']}"
        row = [title, f"{tower['parameters'] / 1e6:.1f}", f"{tower['gflops']:.2f}"]
        for kind in speeds:
            row.append(f"{tower['items_per_second'][kind]:,.0f}")
        for kind in speeds:
            row.append(f"{gpu_speeds[name][kind]:,.0f}")
        row += [f"{tower['peak_mib']:,.0f}", imagenet_cell(tower)]
        rows.append([*row, tower["weights"], tower["licence"]])
    return markdown_table(heads, rows)


def imagenet_cell(tower: dict[str, Any]) -> str:
    """Return a tower's accuracies on ImageNet's classes, or a dash where they were not measured."""
    if "imagenet" not in tower:
        return "-"
    return f"{percent(tower['imagenet']['top1'])} / {percent(tower['imagenet']['top5'])}"


def towers_note() -> str:
    """Return how the towers were measured."""
    record = measured("benchmarks", "towers")
    gpu = measured("benchmarks", "gpu")["metrics"]
    sentences = [
        f"Each tower ran alone ({machine(record)}), without the projection head and without "
        "ImageNet's classifier, in batches of 32 images or of 128 captions of 14 tokens.",
        "Memory is what the process needs in addition at its peak.",
        f"The GPU, one {gpu['gpu']}, took {gpu['batches']['images']} images or "
        f"{gpu['batches']['captions']:,} captions at a time.",
    ]
    if "imagenet" in record["metrics"]:
        check = record["metrics"]["imagenet"]
        sentences.append(
            "The column on Caltech-101 checks weights and pixels, where we have the weights: "
            "we give a tower the classifier that it was trained with on ImageNet, "
            f"and show it {check['images']:,} images of Caltech-101, of the "
            f"{len(check['classes'])} classes that ImageNet has under the same name. "
            "The number is the share in which the class comes first among all 1,000, and the share "
            "in which it is one of the first five. Towers side by side get the mean of their "
            "classifiers' scores. Some of these classes have close neighbours in ImageNet, "
            "and some of these images are drawings, so even right weights stay below 100."
        )
    return " ".join(sentences)


def search() -> str:
    """Return the time of an exact search beside NumPy's and FAISS's."""
    found = measured("benchmarks", "scale")["metrics"]["search"]
    ours = found["ours"]
    memory = f"resident {ours['resident_mib']:,.0f} MiB, file {found['file_mib']:,.0f} MiB"
    about_ours = f"half precision, memory-mapped ({memory}); recall {ours['recall']:.3f}"
    names = {
        "ours": f"`Index`, {about_ours}",
        "numpy": "NumPy, product and argpartition, single precision in memory",
        "faiss": "FAISS IndexFlatIP, single precision in memory",
    }
    title = f"exact top 10 of {found['rows']:,} × {found['dim']}"
    rows = []
    for key, name in names.items():
        # FAISS is measured only where it is installed.
        if key in found:
            alone = 1000 * found[key]["alone_s"]
            in_batch = 1000 * found[key]["in_batch_s"]
            rows.append([name, f"{alone:.0f}", f"{in_batch:.0f}"])
    return markdown_table([title, "ms per query, alone", "in a batch of 20"], rows)


def under_load() -> str:
    """Return what many visitors of the page got, and how long they waited."""
    load = measured("benchmarks", "robustness")["metrics"]["load"]
    before, after = load["mebibytes_before"], load["mebibytes_after"]
    rows = [
        ["visitors at once, for so many seconds", f"{load['visitors']}, {load['seconds']:.0f}"],
        ["answers, of which broken", f"{load['answers']:,}, {load['broken']:,}"],
        ["wait for an answer: median (s)", f"{load['median_seconds']:.1f}"],
        ["95th percentile (s)", f"{load['percentile_95_seconds']:.1f}"],
        ["memory before and after (MiB)", f"{before:,.0f}, {after:,.0f}"],
    ]
    return markdown_table(["the page under load", ""], rows)


def step_memory() -> str:
    """Return the peak memory of a training step, at once and in two passes."""
    heads = ["peak memory of a training step (GiB), batch of"]
    at_once = ["at once"]
    in_two_passes = ["in two passes, `train.chunk_size=64`"]
    for point in measured("benchmarks", "scale")["metrics"]["batch"]:
        gib = f"{point['mib'] / 1024:.1f}"
        if point["chunk"]:
            in_two_passes.append(gib)
        else:
            heads.append(str(point["batch"]))
            at_once.append(gib)
    return markdown_table(heads, [at_once, in_two_passes])


def step_memory_note() -> str:
    """Return what an image of the training data costs in memory."""
    kib = measured("benchmarks", "scale")["metrics"]["bytes_per_record"] / 1024
    return f"The training data need {kib:.1f} KB of memory per image with five captions."


def embedding() -> str:
    """Return items per second of the pair, by us and by the peers, and what is possible."""
    metrics = measured("benchmarks", "embedding")["metrics"]
    images = [f"images, {size.replace('x', '×')}" for size in IMAGE_SIZES]
    heads = ["embedded per second", *images, "captions"]
    titles = {
        "ours": "**Mini-CLIP**",
        "ours_lite0": "Mini-CLIP with the towers of the next two",
        "hugging_face": "transformers",
        "open_clip": "open_clip",
    }
    rows = []
    for name, title in titles.items():
        row = [title]
        for part in (*IMAGE_SIZES, "captions"):
            row.append(f"{metrics[name][part]['items_per_second']:,.0f}")
        rows.append(row)

    limit = metrics["limit"]
    any_image = f"{limit['items_per_second']['images']:,.0f}"
    captions = f"{limit['items_per_second']['captions']:,.0f}"
    title = f"limit of our towers: a matrix product's {limit['matrix_product_gflops']:.0f} GFLOPS"
    rows.append([title, *[any_image] * len(IMAGE_SIZES), captions])
    return markdown_table(heads, rows)


def embedding_note() -> str:
    """Return how embedding was measured, and where our time goes."""
    record = measured("benchmarks", "embedding")
    tower_size = record["metrics"]["limit"]["image_size"]
    sizes = []
    for size in (*IMAGE_SIZES, "captions"):
        costs = record["metrics"]["ours"][size]["ms"]
        parts = ", ".join(f"{part} {milliseconds:.1f}" for part, milliseconds in costs.items())
        sizes.append(f"{size.replace('x', '×')}: {parts}")
    return (
        f"The first row is the shipped model, which sees {tower_size}×{tower_size} pixels. "
        "The next three rows have the same towers and weights: EfficientNet-Lite0, which sees "
        f"224×224 pixels, and MiniLM ({machine(record)}). "
        "Photos of 4000×3000 pixels are what phones take: ours were enlarged, "
        "and given grain so that their files are as large. "
        "The limit does not count decoding and resizing. "
        "This is where the shipped model's time goes, in milliseconds per item, "
        f"each part measured alone. {'; '.join(sizes)}."
    )


# ---- beside other libraries ------------------------------------------------------------------


def peers() -> str:
    """Return test recall after equal minutes of training, and what each contender needs."""
    metrics = measured("benchmarks", "peers")["metrics"]
    quarter = metrics["minutes"] / 4
    marks = [quarter, 2 * quarter, 3 * quarter, 4 * quarter]
    heads = [
        "mean recall on Flickr8k's test split after",
        *(f"{mark:g} min" for mark in marks),
        *("training images per second", "peak GiB"),
    ]
    rows = []
    for name, title in CONTENDERS.items():
        contender = metrics["contenders"][name]
        row = [title]
        for mark in marks:
            recall = recall_after(contender, mark, quarter)
            row.append("-" if recall is None else percent(recall))
        rate = f"{contender['images_per_second']:.0f}"
        rows.append([*row, rate, f"{contender['peak_gib']:.1f}"])
    return markdown_table(heads, rows)


def recall_after(contender: dict[str, Any], minutes: float, between: float) -> float | None:
    """Return a contender's last mean recall by so many minutes.

    Nothing is returned before its first measurement, and long after its training has ended.
    ``between`` are the minutes from one mark to the next: a step may end a little after its mark,
    and the last epoch a little before the time is up.
    """
    curve = contender["curve"]
    if curve[-1]["minutes"] < minutes - between:
        return None
    recall = None
    for point in curve:
        if point["minutes"] <= minutes + between / 5:
            recall = point["mean_recall"]
    return recall


def cheaper() -> list[str]:
    """Return a sentence per peer: when ours reached what the peer reached at its best."""
    contenders = measured("benchmarks", "peers")["metrics"]["contenders"]
    sentences = []
    for peer in PEERS:
        best = best_of(contenders[peer]["curve"])
        parts = []
        for ours in ("mini_clip", "locked"):
            title = CONTENDERS[ours].replace("**", "")
            minutes = minutes_to(contenders[ours]["curve"], best["mean_recall"])
            if minutes is None:
                parts.append(f"{title} did not reach it")
            else:
                times = best["minutes"] / minutes
                parts.append(f"{title} needed {minutes:.1f} ({times:.1f} times faster)")
        name = CONTENDERS[peer].split(":")[0]
        reached = f"{percent(best['mean_recall'])}%, after {best['minutes']:.1f} minutes"
        sentences.append(f"{name} reached its best mean recall, {reached}; {', '.join(parts)}.")
    return sentences


def best_of(curve: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the first point of a curve with its highest mean recall."""
    return max(curve, key=lambda point: point["mean_recall"])


def minutes_to(curve: list[dict[str, Any]], recall: float) -> float | None:
    """Return after how many minutes a curve first reached a mean recall."""
    for point in curve:
        if point["mean_recall"] >= recall:
            return point["minutes"]
    return None


def speedrun() -> str:
    """Return the minutes that each contender takes from raw photos to a mean recall on test."""
    curves = measured("benchmarks", "speedrun")["metrics"]["curves"]
    rows = []
    for name, title in SPEED_RUNNERS.items():
        row = [title]
        for target in RACE_TARGETS:
            minutes = minutes_to(curves[name], target)
            row.append("-" if minutes is None else f"{minutes:.1f}")
        best = best_of(curves[name])
        rows.append([*row, f"{percent(best['mean_recall'])} after {best['minutes']:.1f}"])
    goals = [f"mean recall of {target:.0%}" for target in RACE_TARGETS]
    return markdown_table(["minutes from raw photos to a", *goals, "best"], rows)


def sooner() -> list[str]:
    """Return a sentence per peer: how much sooner our quickest recipe has its best recall."""
    curves = measured("benchmarks", "speedrun")["metrics"]["curves"]
    recipes = [runner for runner in SPEED_RUNNERS if runner not in PEERS]
    sentences = []
    for peer in PEERS:
        best = best_of(curves[peer])
        name = CONTENDERS[peer].split(":")[0]
        reached = f"{percent(best['mean_recall'])}%, after {best['minutes']:.1f} minutes"

        # Our quickest recipe is the first that has as much.
        times = [minutes_to(curves[recipe], best["mean_recall"]) for recipe in recipes]
        quickest = min((minutes for minutes in times if minutes is not None), default=None)
        if quickest is None:
            ours = "ours did not reach it"
        else:
            share = best["minutes"] / quickest
            ours = f"ours has as much after {quickest:.1f}, and that is {share:.1f} times as fast"
        sentences.append(f"{name} reached its best mean recall, {reached}; {ours}.")
    return sentences


def speedrun_note() -> str:
    """Return whose clock counts what."""
    record = measured("benchmarks", "speedrun")
    precision = record["metrics"]["our_precision"]
    return (
        "Mean recall is that on Flickr8k's test split, with one view of each image "
        f"({machine(record)}, ours in {precision}). Our clock starts before the weights of the "
        "towers are loaded, and counts the cache of features, training, and dev after each epoch. "
        f"The others trained for {record['metrics']['minutes']:g} minutes, with a smaller image "
        "tower and all weights; their clock starts when the weights are loaded, and their learning "
        "rate is planned for the whole time, so they are late by design. This compares recipes, "
        "not libraries."
    )


def pooling() -> str:
    """Return what a learned pooling gives beside the mean."""
    return compared("pooling", {"mean": "mean over places", "attention": "attention, learned"})


def from_many() -> str:
    """Return what several runs give in one model."""
    return compared("one_from_many", {})


def compared(question: str, titles: dict[str, str]) -> str:
    """Return a table of candidates with their leads over the first one, in pairs over photos."""
    metrics = measured("benchmarks", "ideas")["metrics"]
    found = metrics[question]
    rows = []
    for name, row in found["rows"].items():
        lead = "-"
        if name != found["reference"]:
            low, high = (100 * end for end in row["interval"])
            lead = f"{100 * row['lead']:+.1f} [{low:+.1f}, {high:+.1f}]"
        rows.append([titles.get(name, name), percent(row["mean_recall"]), lead])
    photos = metrics["photos"]["judged_on"]
    heads = [f"mean recall on {photos:,} held-out training photos (%)", "lead in points"]
    return markdown_table(["", *heads], rows)


def ideas_note() -> str:
    """Return on what the ideas were tried."""
    metrics = measured("benchmarks", "ideas")["metrics"]
    photos = metrics["photos"]
    return (
        f"Only heads were trained, for {metrics['epochs']} epochs on cached features of locked "
        f"towers, with {photos['learned_from']:,} of Flickr8k's training photos. A lead is that on "
        "the same photos; its 95% interval covers the choice of photos, not the luck of a run."
    )


def peers_note() -> str:
    """Return how the contenders were trained."""
    where = machine(measured("benchmarks", "peers"))
    return (
        f"Only training is timed ({where}). Each contender ran in a process of its own. "
        "Ours started from an empty cache and got two thirds of the minutes. "
        "Data, towers and weights are the same for all."
    )


def open_clip() -> str:
    """Return what clip_benchmark's code finds with ``as_open_clip``, beside our numbers."""
    metrics = measured("benchmarks", "open_clip")["metrics"]
    # clip_benchmark names a retrieval after what is found, not after what is asked.
    found = {"image_to_text": "text", "text_to_image": "image"}
    keys = []
    for direction, cutoff in RECALLS:
        k = cutoff.removeprefix("R@")
        keys.append(("flickr8k", f"{found[direction]}_retrieval_recall@{k}"))
    keys += [("cifar10", "acc1"), ("cifar10", "acc5"), ("cifar10", "mean_per_class_recall")]

    heads = ["measured by", *RECALL_HEADS, "CIFAR-10 top-1", "top-5", "mean of classes"]
    rows = []
    for code, title in (("clip_benchmark", "`clip_benchmark`"), ("ours", "Mini-CLIP")):
        row = [title]
        for dataset, key in keys:
            row.append(f"{100 * metrics[dataset][code][key]:.2f}")
        rows.append(row)
    return markdown_table(heads, rows)


def open_clip_note() -> str:
    """Return what was measured by both codes."""
    metrics = measured("benchmarks", "open_clip")["metrics"]
    photos = f"Flickr8k's test split ({metrics['flickr8k']['images']:,} images)"
    labelled = f"CIFAR-10 ({metrics['cifar10']['images']:,} images)"
    return f"The shipped checkpoint behind `mc.as_open_clip`, on {photos} and on {labelled}."


def on_gpu() -> str:
    """Return what a GPU makes of our recipe, and what training all stages gives there."""
    trainings = measured("benchmarks", "gpu")["metrics"]["trainings"]
    rows = []
    for name, title in GPU_TRAININGS.items():
        if name not in trainings:
            continue
        run = trainings[name]
        recall = percent(run["dev_mean_recall"])
        speed = f"{run['images_per_second']:,.0f}"
        gib = f"{run['peak_gpu_gib']:.0f}"
        rows.append([title, recall, f"{run['minutes']:.1f}", speed, gib])
    heads = [
        "mean recall on dev, one view (%)",
        "minutes, with the cache where it was first filled",
        "images a second",
    ]
    return markdown_table(["training", *heads, "memory of the GPU (GiB)"], rows)


def on_gpu_note() -> str:
    """Return how the GPU's runs were made, and what the same recipe gave on a CPU."""
    record = measured("benchmarks", "gpu")
    metrics = record["metrics"]
    ablations = measured("flickr8k", "08_ablations")
    final = ablations["metrics"]["final"]
    recalls = final["dev_mean_recall_one_look"]
    on_cpu = ", ".join(percent(recalls[name]) for name in recalls if name.startswith("run "))
    minutes = mean(final["minutes"])
    missing = len(GPU_TRAININGS) - len(metrics["trainings"])
    left_out = f"{missing} further runs did not fit into the time. " if missing else ""
    return (
        f"One {metrics['gpu']}, torch {record['versions']['torch']}, {metrics['precision']}. "
        f"{metrics['note'] or ''} "
        f"{left_out}On a CPU ({machine(ablations)}), runs of the recipe gave {on_cpu}, in "
        f"{minutes:.0f} minutes each."
    )


# ---- tables that only the report and the slides show -----------------------------------------


def datasets() -> str:
    """Return which datasets were used."""
    licences = measured("coco", "01_data")["metrics"]["licences"]
    closed = sum(count for name, count in licences.items() if "NonCommercial" in name)
    share = closed / sum(licences.values())
    of_coco = f"captions CC BY 4.0; photos {len(licences)} licences, {share:.0%} non-commercial"
    captioned = (
        (
            "Flickr8k",
            "flickr8k",
            "research and education only; photos belong to their photographers",
        ),
        ("COCO, subset", "coco", of_coco),
        ("sample", "sample", "glyphs OpenMoji, CC BY-SA 4.0"),
    )
    rows = []
    for name, dataset, licence in captioned:
        metrics = measured(dataset, "01_data")["metrics"]
        splits = metrics["splits"]
        sizes = ", ".join(f"{splits[split]['images']:,}" for split in ("train", "dev", "test"))
        each = splits["train"]["captions"] / splits["train"]["images"]
        rows.append([name, sizes, f"{each:.0f}", f"{metrics['median_words']:.0f}", licence])

    for name, key in (("CIFAR-10", "cifar10"), ("Caltech-101", "caltech101")):
        found = measured("flickr8k", "05_zero_shot")["metrics"][key]["all_images"]
        size = f"{found['images']:,}, of {found['classes']} classes"
        rows.append([name, size, "labels", "-", "collected from the web; not redistributed here"])

    heads = ["dataset", "images: train, dev, test", "captions per image", "words per caption"]
    return markdown_table([*heads, "licence"], rows)


def recipe(config: Config) -> str:
    """Return the settings of a run that matter most, three a line."""
    train = config.train
    heads = config.heads
    settings = [
        ("loss", config.loss.name.replace("_", "-")),
        ("captions per image", train.captions_per_image),
        ("batch size", train.batch_size),
        ("epochs", train.epochs),
        ("learning rate, heads", f"{train.lr_heads:g}"),
        ("learning rate, towers", f"{train.lr_image:g}"),
        ("weight decay", train.weight_decay),
        ("dropout in the heads", f"{heads.dropout:.0%}"),
        ("words hidden", f"{train.word_dropout:.0%}"),
        ("dropout, text tower", f"{config.encoders.text_dropout:.0%}"),
        ("cached views per image", config.features.views),
        ("average of weights, decay", train.average),
        ("targets softened", f"{config.loss.soft:.0%}"),
        ("image features dropped", f"{heads.image_dropout:.0%}"),
        ("text features dropped", f"{heads.text_dropout:.0%}"),
        ("temperature at the start", heads.temperature),
        ("runs averaged", train.soup),
        ("tuned stages, image", config.encoders.image_trainable),
        ("tuned stages, text", config.encoders.text_trainable),
        ("stages read, image", config.encoders.image_reads.replace("+", ", ")),
        ("stages read, text", config.encoders.text_reads.replace("+", ", ")),
    ]
    rows = []
    for start in range(0, len(settings), 3):
        row = []
        for name, value in settings[start : start + 3]:
            row += [name, str(value)]
        rows.append(row)
    return markdown_table(["setting", "value"] * 3, rows)


def temperatures(runs: dict[str, Any]) -> str:
    """Return what each temperature does to recall and to the space by the last epoch."""
    rows = []
    for name, history in runs.items():
        recall = percent(history["dev_mean_recall"][-1])
        alignment = history["alignment"][-1]
        gap = history["modality_gap"][-1]
        rows.append([name, recall, f"{alignment:.2f}", f"{gap:.2f}"])
    return markdown_table(["temperature", "mean recall on dev (%)", "alignment", "gap"], rows)


def ideas() -> str:
    """Return mean recall over seeds as the base is built up, one idea more in each row."""
    rows = []
    for setting in study("ideas"):
        label = setting["label"].replace("+ ", "and ")
        rows.append([label, percent(mean(setting["mean_recall"]))])
    return markdown_table(["idea by idea", "mean recall (%)"], rows)


def study(name: str) -> list[dict[str, Any]]:
    """Return the settings of a study on Flickr8k: each a label, and the recall of each seed."""
    return measured("flickr8k", "08_ablations")["metrics"]["studies"][name]["rows"]


def studied(name: str, setting: str | int) -> float:
    """Return mean recall, over seeds, of a study's setting: by its label or its place."""
    rows = study(name)
    if isinstance(setting, str):
        setting = [row["label"] for row in rows].index(setting)
    return mean(rows[setting]["mean_recall"])


# ---- README.md and RESULTS.md ----------------------------------------------------------------


def readme_table() -> str:
    """Return the rows of Flickr8k's table that README shows."""
    rows = {row[0]: row for row in retrieval_rows("flickr8k")}
    return markdown_table(retrieval_heads("flickr8k"), [rows[name] for name in README_ROWS])


def renewed(readme: str) -> str:
    """Return the README with its table as the results are now."""
    before, rest = readme.split(README_START)
    after = rest.split(README_END)[1]
    return f"{before}{README_START}{readme_table()}\n{README_END}{after}"


RESULTS_INTRO = """\
<!-- written by `python report/tables.py` from report/results, do not edit -->

# Results

These are all tables of the project. Every number comes from the files that are named under its
table. The [report](report.pdf) explains what was done, and why.

*R@K* is Recall@K in percent: how often a right answer is among the first K. Brackets hold the 95%
bootstrap interval over images. Please read [the notes](#notes) before you compare.
"""

RESULTS_NOTES = """\
**The text tower may have read the test captions.** MiniLM was trained on caption pairs that include
those of Flickr30k and COCO (its model card and `data_config.json` say so), and Flickr8k is a part
of Flickr30k. So it may have seen captions of test images as text, above all those of COCO. It never
saw them with an image.

**The image towers know ImageNet's labels.** EfficientNet was trained on them. They include many
kinds of what CIFAR-10 and Caltech-101 show.

**The vector of an image is a mean over four views.** On Flickr8k and COCO we average the whole
image and its middle, each also mirrored (`inference.tta_views`). Earlier work averages ten crops in
the same spirit. `everyday` looks only once at an image.

**Corrected for hubs.** Some items stand near the top of too many lists. A bank of 1,000 training
photos and captions shows how near each item is to queries in general, and that is taken away from
its cosines. This belongs to the bank and to the pool, not to the model.

**We measured five recipes on test.** Each time, the recipe had first done better on photos held out
for choosing. For the first four these were dev, for the last a part of the training photos:

{earlier}

The fourth gained one point on dev and nothing on test: a dev split wears out when many choices are
made on it. That is why the fifth was chosen on others. The checkpoint `everyday`, the single runs,
the runs across datasets and all the races were measured on test as well, but nothing was chosen by
them.

**The published rows.** We quote the rows of MFM, NAA and ITMeetsAL at second hand, because we did
not have the papers. Recall falls as the pool grows. So please compare only rows with 1,000 images
and 5,000 captions, where *any* of an image's five captions counts.

**Zero-shot.** We chose prompts and wording on the images that the *test part* leaves out.

**Agreement with people.** We follow the code of Hessel et al. (2021): a photo's own captions are
left out of *Expert*, but not of *CF*. We quote CIDEr's row and did not check it.
"""


def results_page() -> str:
    """Return the whole of report/RESULTS.md."""
    faster = "\n".join(f"- {sentence}" for sentence in cheaper())
    sections = {
        "Retrieval on Flickr8k": [
            retrieval("flickr8k"),
            links("flickr8k/04_retrieval", "flickr8k/08_ablations", "checkpoints/everyday"),
        ],
        "Retrieval on COCO": [
            retrieval("coco"),
            coco_note(),
            links("coco/04_retrieval", "checkpoints/everyday"),
        ],
        "Retrieval on the sample": [retrieval("sample"), links("sample/04_retrieval")],
        "Across datasets": [cross(), cross_note(), links("benchmarks/cross")],
        "Zero-shot classification": [
            zero_shot(),
            links("flickr8k/05_zero_shot", "sample/05_zero_shot", "checkpoints/everyday"),
        ],
        "Agreement with people": [human(), links("flickr8k/06_embedding")],
        "A race from raw photos": [
            speedrun(),
            "\n".join(f"- {sentence}" for sentence in sooner()),
            speedrun_note(),
            links("benchmarks/speedrun"),
        ],
        "One model from many": [from_many(), ideas_note(), links("benchmarks/ideas")],
        "Pooling": [pooling(), ideas_note(), links("benchmarks/ideas")],
        "Beside other libraries": [peers(), faster, peers_note(), links("benchmarks/peers")],
        "Measured by other code": [open_clip(), open_clip_note(), links("benchmarks/open_clip")],
        "Speed of embedding": [embedding(), embedding_note(), links("benchmarks/embedding")],
        "The towers": [towers(), towers_note(), links("benchmarks/towers")],
        "On a GPU": [on_gpu(), on_gpu_note(), links("benchmarks/gpu")],
        "Search among a million": [search(), links("benchmarks/scale")],
        "The page under load": [under_load(), links("benchmarks/robustness")],
        "Memory of training": [step_memory(), step_memory_note(), links("benchmarks/scale")],
        "Notes": [RESULTS_NOTES.format(earlier=earlier()).strip()],
    }
    contents = "\n".join(f"- [{title}](#{anchor(title)})" for title in sections)
    parts = [RESULTS_INTRO.strip(), contents]
    for title, paragraphs in sections.items():
        parts += [f"## {title}", *paragraphs]
    return "\n\n".join(parts) + "\n"


def links(*names: str) -> str:
    """Return where a table's numbers come from, as links in RESULTS.md."""
    files = ", ".join(f"[results/{name}.json](results/{name}.json)" for name in names)
    return f"Source: {files}"


def anchor(title: str) -> str:
    """Return what GitHub calls a heading in links."""
    return title.lower().replace(" ", "-")


if __name__ == "__main__":
    main()
