"""The tables of README, report and slides, from ``report/results``: no number there is typed by hand.

python report/tables.py            renew README.md
"""

import json
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- results", "<!-- /results -->"
RECALLS = [(way, k) for way in ("image_to_text", "text_to_image") for k in ("R@1", "R@5", "R@10")]
WAYS = " | ".join(f"{way} R@{k}" for way in ("image → text", "text → image") for k in (1, 5, 10))
HEAD = f"| {{title}} | {WAYS} |\n|---|---|---|---|---|---|---|\n"
# Published single dual encoders on the same protocol: 1,000 images x 5,000 captions, any hit counts. The papers of MFM
# and NAA were not at hand.
PUBLISHED = {
    "FV GMM+HGLMM (CVPR 2015)": (31.0, 59.3, 73.7, 21.2, 50.0, 64.8),
    "MFM, VGG (at second hand)": (35.6, 67.0, 78.6, 28.4, 58.5, 72.3),
    "NAA, ResNet (at second hand)": (37.2, 68.1, 79.1, 27.7, 59.6, 71.8),
    "2WayNet (CVPR 2017)": (43.4, 63.2, None, 29.3, 49.7, None),
}
# Correlation with human judgements as quoted by Hessel et al. (EMNLP 2021): Expert tau-c, CF tau-b, times 100.
JUDGED = {"CIDEr, with 5 reference captions": (43.9, 24.6), "CLIP-S (CLIP ViT-B/32)": (51.2, 34.4)}


def main() -> None:
    """Put the tables between the two markers of README.md."""
    path = ROOT / "README.md"
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")


def renewed(readme: str) -> str:
    """Return the README with its results as they are now."""
    before, rest = readme.split(START)
    marker, after = rest.split("-->", 1)[0], rest.split(END)[1]
    return f"{before}{START}{marker}-->\n{tables()}{END}{after}"


def tables() -> str:
    """Return a retrieval table per dataset that has results, Flickr8k first, and then what else was measured."""
    parts = [table(dataset) for dataset in ("flickr8k", "coco", "sample") if source(dataset).exists()]
    more = (cross, source("benchmarks", "cross")), (zero_shot, source("flickr8k", "05_zero_shot"))
    more += (human, source("flickr8k", "06_embedding")), (towers, source("benchmarks", "towers"))
    more += (scale, source("benchmarks", "scale")), (peers, source("benchmarks", "peers"))
    more += (open_clip, source("benchmarks", "open_clip")), (embedding, source("benchmarks", "embedding"))
    return "\n".join([*parts, *(part() for part, path in more if path.exists())])


def source(dataset: str, topic: str = "04_retrieval") -> Path:
    """Return the file of a dataset's results."""
    return ROOT / "report" / "results" / dataset / f"{topic}.json"


def measured(dataset: str, topic: str = "04_retrieval") -> dict:
    """Return a record of results; where it, or what is asked of it, is missing, the program ends naming the remedy."""
    path = source(dataset, topic)
    if not path.exists():
        raise SystemExit(f"{path.relative_to(ROOT)} is missing. {remedy(dataset, topic)}")

    class Measured(dict):
        def __missing__(self, key):
            raise SystemExit(f"{path.relative_to(ROOT)} has no {key!r}. {remedy(dataset, topic)}")

    return json.loads(path.read_text(encoding="utf-8"), object_hook=Measured)


def remedy(dataset: str, topic: str) -> str:
    """Return which notebook or command writes a result or a figure."""
    if dataset == "benchmarks":
        return f"Run: make bench-{ {'open_clip': 'peers', 'scale_memory': 'scale'}.get(topic, topic) }"
    if dataset == "demo":
        return "Run: make screenshots"
    number = topic[:2]
    notebook = next((path.name for path in (ROOT / "notebooks").glob(f"{number}_*.ipynb")), f"{topic}.ipynb")
    data = "sample" if dataset == "photos" else dataset
    return f"Run notebooks/{notebook}: python notebooks/run.py --dataset {data} --only {number} --refresh"


def zero_shot() -> str:
    """Return top-1 and top-5 of each labelled set: the part on which nothing was chosen, then all images."""
    lines = ["| zero-shot, no label trained on | model | images | classes | top-1 | top-5 | chance |", "|---" * 7 + "|"]
    for dataset in ("flickr8k", "sample"):
        metrics = measured(dataset, "05_zero_shot")["metrics"]
        for name in [key for key in ("cifar10", "caltech101", "sample") if key in metrics]:
            title = {"sample": "unseen things of the sample", "cifar10": "CIFAR-10", "caltech101": "Caltech-101"}[name]
            model = "trained on the sample" if dataset == "sample" else "`flickr8k`"
            for part, report in (("test part", metrics[name]), ("all", metrics[name]["all_images"])):
                cells = [f"**{100 * report[k]:.1f}** {interval(report['interval'][k])}" for k in ("top1", "top5")]
                chance = " / ".join(f"{100 * report['chance'][k]:.1f}" for k in ("top1", "top5"))
                where = f"{report['images']:,} ({part}) | {report['classes']}"
                lines.append(f"| {title} | {model} | {where} | {' | '.join(cells)} | {chance} |")
    return "\n".join(lines) + f"\n\n{link('flickr8k', '05_zero_shot')}, {link('sample', '05_zero_shot')}\n"


def human() -> str:
    """Return the correlation with people's ratings beside what Hessel et al. (2021) report."""
    ours = measured("flickr8k", "06_embedding")["metrics"]["human"]
    return (
        "| agreement with people on Flickr8k | Expert, Kendall tau-c × 100 | CF, tau-b × 100 |\n|---|---|---|\n"
        f"| **Mini-CLIP** | **{100 * ours['expert']['tau']:.1f}** | **{100 * ours['crowd']['tau']:.1f}** |\n"
        + "".join(f"| {name} | {expert} | {crowd} |\n" for name, (expert, crowd) in JUDGED.items())
        + f"\n{link('flickr8k', '06_embedding')}\n"
    )


def cross() -> str:
    """Return mean recall, the average of six, of each training set's model on each dataset."""
    metrics = measured("benchmarks", "cross")["metrics"]
    heads = [("flickr8k", "dev"), ("flickr8k", "test"), ("coco", "test")]
    lines = ["| mean recall, trained on | " + " | ".join(f"{d} {s}" for d, s in heads) + " |", "|---" * 4 + "|"]
    for trained_on, reports in metrics["models"].items():
        cells = [f"{100 * reports[d][s]['scores']['mean_recall']:.1f}" for d, s in heads]
        lines.append(f"| {trained_on} | {' | '.join(cells)} |")
    gain, low, high = (100 * value for value in (metrics["gain"]["mean"], *metrics["gain"]["interval"]))
    verdict = "It does" if low > 0 else "It does harm" if high < 0 else "Too little to tell"
    lines += [
        "",
        "Six recalls averaged, both ways; one run each, with the recipe of `flickr8k` less its soup or, on COCO alone, "
        f"that of `coco`. Does COCO's part help Flickr8k? {verdict}: on the same dev images {gain:+.1f} points "
        f"[{low:+.1f}, {high:+.1f}].",
    ]
    return "\n".join(lines) + f"\n\n{link('benchmarks', 'cross')}\n"


def towers() -> str:
    """Return what each tower weighs, costs and is worth in speed."""
    record = measured("benchmarks", "towers")
    kinds = {"float32": "items a second", "bfloat16": "in bfloat16"}
    if record["metrics"]["gpu"]:
        kinds |= {"gpu": "on the GPU", "gpu_bfloat16": "there in bfloat16"}
    heads = ["tower", "parameters (million)", "GFLOPs an item", *kinds.values(), "memory (MiB)", "weights", "licence"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in record["metrics"]["towers"].items():
        speed = " | ".join(f"{row['items_per_second'][kind]:,.0f}" for kind in kinds)
        numbers = f"{row['parameters'] / 1e6:.1f} | {row['gflops']:.2f} | {speed} | {row['peak_mib']:,.0f}"
        lines.append(f"| `{name}` | {numbers} | {row['weights']} | {row['licence']} |")
    where = f"torch {record['versions']['torch']}, {record['machine']['threads']} threads"
    gpu = record["metrics"]["gpu"] or "none was at hand"
    lines += [
        "",
        f"Towers alone, without the projection heads and ImageNet's classifier, on a CPU ({where}), "
        "in batches of 32 pictures or 128 captions of 14 tokens; memory is what the process takes "
        f"more at its peak. GPU: {gpu}.",
    ]
    return "\n".join(lines) + f"\n\n{link('benchmarks', 'towers')}\n"


def scale() -> str:
    """Return the time of an exact search beside NumPy's and FAISS's, and the memory of a step in two passes."""
    metrics = measured("benchmarks", "scale")["metrics"]
    found = metrics["search"]
    memory = f"resident {found['ours']['resident_mib']:,.0f} MiB, file {found['file_mib']:,.0f} MiB"
    names = {
        "ours": f"`Index`, half precision, memory-mapped ({memory}); recall {found['ours']['recall']:.3f}",
        "numpy": "NumPy, product and argpartition, single precision in memory",
        "faiss": "FAISS IndexFlatIP, single precision in memory",
    }
    title = f"exact top 10 of {found['rows']:,} × {found['dim']}"
    lines = [f"| {title} | ms a query, alone | in a batch of 20 |", "|---|---|---|"]
    for key, name in names.items():
        if key in found:
            lines.append(f"| {name} | {1e3 * found[key]['alone_s']:.0f} | {1e3 * found[key]['in_batch_s']:.0f} |")
    steps = {}
    for point in metrics["batch"]:
        steps.setdefault(point["batch"], {})[bool(point["chunk"])] = f"{point['mib'] / 1024:.1f}"
    lines += ["", "| peak memory of a training step (GiB), batch of | " + " | ".join(map(str, steps)) + " |"]
    lines += ["|---" * (len(steps) + 1) + "|"]
    for chunked, name in ((False, "at once"), (True, "in two passes, `train.chunk_size=64`")):
        lines.append(f"| {name} | " + " | ".join(step[chunked] for step in steps.values()) + " |")
    lines += ["", f"Training data: {metrics['bytes_per_record'] / 1024:.1f} KB of memory an image with five captions."]
    return "\n".join(lines) + f"\n\n{link('benchmarks', 'scale')}\n"


def datasets() -> str:
    """Return what was used, as a table."""
    rows = ["| dataset | pictures: train, dev, test | captions each | words a caption | licence |", "|---" * 5 + "|"]
    photos = measured("coco", "01_data")["metrics"]["licences"]
    closed = sum(count for name, count in photos.items() if "NonCommercial" in name) / sum(photos.values())
    shared = f"captions CC BY 4.0; {len(photos)} for the photos, {closed:.0%} of them not for commerce"
    for name, dataset, licence in (
        ("Flickr8k", "flickr8k", "research and education only; the photos are their photographers'"),
        ("COCO, subset", "coco", shared),
        ("sample", "sample", "glyphs OpenMoji, CC BY-SA 4.0"),
    ):
        metrics = measured(dataset, "01_data")["metrics"]
        sizes = ", ".join(f"{metrics['splits'][split]['images']:,}" for split in ("train", "dev", "test"))
        each = metrics["splits"]["train"]["captions"] / metrics["splits"]["train"]["images"]
        rows.append(f"| {name} | {sizes} | {each:.0f} | {metrics['median_words']:.0f} | {licence} |")
    for name, key in (("CIFAR-10", "cifar10"), ("Caltech-101", "caltech101")):
        found = measured("flickr8k", "05_zero_shot")["metrics"][key]["all_images"]
        kind = f"{found['images']:,}, of {found['classes']} classes"
        rows.append(f"| {name} | {kind} | labels | - | collected from the web; not handed on here |")
    return "\n".join(rows)


def recipe(config: dict) -> str:
    """Return the settings of a run that matter most, three a line."""
    train, loss, heads, encoders = (config[key] for key in ("train", "loss", "heads", "encoders"))
    cells = [
        ("loss", loss["name"].replace("_", "-")), ("captions a picture", loss["captions_per_image"]),
        ("batch size", train["batch_size"]), ("epochs", train["epochs"]),
        ("learning rate, heads", f"{train['lr_heads']:g}"), ("learning rate, towers", f"{train['lr_image']:g}"),
        ("weight decay", train["weight_decay"]), ("dropout in the heads", f"{heads['dropout']:.0%}"),
        ("words hidden", f"{train['word_dropout']:.0%}"), ("dropout, text tower", f"{train['tower_dropout']:.0%}"),
        ("cached views a picture", train["views"]), ("average of weights, decay", train["average"]),
        ("targets softened", f"{loss['soft']:.0%}"), ("image features dropped", f"{heads['image_dropout']:.0%}"),
        ("temperature at the start", loss["temperature"]), ("runs averaged", train["soup"]),
        ("tuned stages, image", encoders["image_trainable"]), ("tuned stages, text", encoders["text_trainable"]),
    ]  # fmt: skip
    lines = [" | ".join(f"{name} | {value}" for name, value in cells[i : i + 3]) for i in range(0, len(cells), 3)]
    return "\n".join(["| setting | value " * 3 + "|", "|---" * 6 + "|", *(f"| {line} |" for line in lines)])


def temperatures(runs: dict) -> str:
    """Return what each temperature does to recall and to the space, as a table."""
    lines = ["| temperature | mean recall on dev (%) | alignment | gap |", "|---" * 4 + "|"]
    for name, row in runs.items():
        numbers = f"{100 * row['dev_mean_recall']:.1f} | {row['alignment']:.2f} | {row['modality_gap']:.2f}"
        lines.append(f"| {name} | {numbers} |")
    return "\n".join(lines)


def ideas() -> str:
    """Return mean recall on dev over seeds as the base is built up, an idea more in each row."""
    lines = [
        f"| {row['label'].replace('+ ', 'and ')} | {100 * mean(row['dev_mean_recall']):.1f} |"
        for row in settings("ideas")
    ]
    return "\n".join(["| idea by idea | mean recall (%) |", "|---|---|", *lines])


def settings(study: str) -> list[dict]:
    """Return the rows of a study on Flickr8k: a label and mean recall on dev over seeds."""
    return measured("flickr8k", "08_ablations")["metrics"]["studies"][study]["rows"]


def dev(study: str, setting: str | int) -> float:
    """Return mean recall on dev, over seeds, of a setting of a study: by its label, or by its place."""
    rows = settings(study)
    if isinstance(setting, str):
        setting = [row["label"] for row in rows].index(setting)
    return mean(rows[setting]["dev_mean_recall"])


# What stands beside ours in benchmarks/peers.py and benchmarks/embedding.py.
CONTENDERS = {
    "mini_clip": "**Mini-CLIP**",
    "locked": "**Mini-CLIP with locked towers**",
    "hugging_face": "transformers: `VisionTextDualEncoderModel`, its example",
    "open_clip": "open_clip: its towers and `ClipLoss`",
}


def peers() -> str:
    """Return test recall after equal minutes of training, what each contender needs, and minutes at equal recall."""
    record = measured("benchmarks", "peers")
    contenders, minutes = (record["metrics"][key] for key in ("contenders", "minutes"))
    marks = [minutes * quarters / 4 for quarters in (1, 2, 3, 4)]
    heads = ["mean recall on Flickr8k's test split after", *(f"{mark:g} min" for mark in marks)]
    heads += ["pictures trained on a second", "peak GiB", "lines of user code"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, title in CONTENDERS.items():
        row = contenders[name]
        cells = [f"{100 * value:.1f}" if (value := reached(row, mark, marks[0])) else "-" for mark in marks]
        cells += [f"{row['images_per_second']:.0f}", f"{row['peak_gib']:.1f}", str(row["lines_of_user_code"])]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    where = f"{record['machine']['threads']} threads of a CPU, torch {record['versions']['torch']}"
    lines += [
        "",
        *(f"- {sentence}" for sentence in cheaper()),
        "",
        f"Training only ({where}), each contender in a process of its own, ours from an empty cache "
        "and with two thirds of the minutes; same data, towers and weights.",
    ]
    return "\n".join(lines) + f"\n\n{link('benchmarks', 'peers')}\n"


def reached(contender: dict, minutes: float, between: float) -> float:
    """Return the last mean recall by so many minutes, 0 before the first and after the end of training.

    A step may end a little after its mark, and the last epoch a little before the time is up.
    """
    if contender["curve"][-1]["minutes"] < minutes - between:
        return 0.0
    return next((p["mean_recall"] for p in contender["curve"][::-1] if p["minutes"] <= minutes + between / 5), 0.0)


def cheaper() -> list[str]:
    """Return a sentence for each of ours beside each other: the minutes to what the other reached at its best."""
    contenders, sentences = measured("benchmarks", "peers")["metrics"]["contenders"], []
    for peer in ("hugging_face", "open_clip"):
        best = max(contenders[peer]["curve"], key=lambda p: p["mean_recall"])
        name = CONTENDERS[peer].split(":")[0]
        parts = []
        for ours in ("mini_clip", "locked"):
            curve, title = contenders[ours]["curve"], CONTENDERS[ours].replace("**", "")
            first = next((p["minutes"] for p in curve if p["mean_recall"] >= best["mean_recall"]), None)
            there = f"was there after {first:.1f} ({best['minutes'] / first:.1f} times sooner)" if first else "was not"
            parts.append(f"{title} {there}")
        start = f"{name} reached its best mean recall, {100 * best['mean_recall']:.1f}%, after"
        sentences.append(f"{start} {best['minutes']:.1f} minutes; {', '.join(parts)}.")
    return sentences


def open_clip() -> str:
    """Return what clip_benchmark's code finds on the triple of ``as_open_clip``, beside our numbers."""
    metrics = measured("benchmarks", "open_clip")["metrics"]
    pairs, labels = (metrics[name] for name in ("flickr8k", "cifar10"))
    columns = {f"{way} R@{k}": ("flickr8k", f"{found}_retrieval_recall@{k}")
               for way, found in (("image → text", "text"), ("text → image", "image")) for k in (1, 5, 10)}  # fmt: skip
    columns |= {"CIFAR-10 top-1": ("cifar10", "acc1"), "top-5": ("cifar10", "acc5")}
    columns |= {"mean of classes": ("cifar10", "mean_per_class_recall")}
    lines = [f"| measured by | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for code, title in (("clip_benchmark", "`clip_benchmark`"), ("ours", "Mini-CLIP")):
        cells = [f"{100 * metrics[name][code][key]:.2f}" for name, key in columns.values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    where = f"Flickr8k's test split ({pairs['images']:,} images) and CIFAR-10 ({labels['images']:,})"
    lines += ["", f"The shipped checkpoint behind `mc.as_open_clip`, on {where}."]
    return "\n".join(lines) + f"\n\n{link('benchmarks', 'open_clip')}\n"


def embedding() -> str:
    """Return items a second of the pair, by us, by the peers and at most, and where our time goes."""
    record = measured("benchmarks", "embedding")
    metrics = record["metrics"]
    lines = ["| embedded a second | images, 224×224 | images, 500×375 | captions |", "|---|---|---|---|"]
    titles = {"ours": "**Mini-CLIP**", "hugging_face": "transformers", "open_clip": "open_clip"}
    for name, title in titles.items():
        speeds = [metrics[name][part]["items_per_second"] for part in ("224x224", "500x375", "captions")]
        lines.append(f"| {title} | {' | '.join(f'{speed:,.0f}' for speed in speeds)} |")
    most = metrics["limit"]["items_per_second"]
    rate, images = f"{metrics['limit']['matrix_product_gflops']:.0f} GFLOPS", f"{most['images']:,.0f}"
    lines.append(f"| limit: a matrix product's {rate} | {images} | {images} | {most['captions']:,.0f} |")
    parts = [
        f"{size.replace('x', '×')}: "
        + ", ".join(f"{part} {ms:.1f}" for part, ms in metrics["ours"][size]["ms"].items())
        for size in ("224x224", "500x375", "captions")
    ]
    where = f"{record['machine']['threads']} threads of a CPU, torch {record['versions']['torch']}"
    lines += [
        "",
        f"Same towers and weights, {where}. Milliseconds of ours an item, each part alone: {'; '.join(parts)}.",
    ]
    return "\n".join(lines) + f"\n\n{link('benchmarks', 'embedding')}\n"


def interval(ends: list[float]) -> str:
    """Return a 95% interval in percent."""
    return f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"


def link(dataset: str, topic: str) -> str:
    """Return a link to a results file."""
    path = source(dataset, topic).relative_to(ROOT)
    return f"[{path}]({path})"


def table(dataset: str) -> str:
    """Return one dataset's rows: trained with intervals, its runs in other ways, untrained, chance, published."""
    metrics, after = measured(dataset)["metrics"], ""
    pool = f"**{dataset}** test, {metrics['chance']['images']:,} images × {metrics['chance']['captions']:,} captions"
    rows = [row("**Mini-CLIP**", metrics["trained"], metrics["interval"])]
    if dataset == "flickr8k":
        final = measured(dataset, "08_ablations")["metrics"]["final"]
        rows += [spread(f"one run: mean ± deviation of {len(final['runs'])}", final["runs"])]
        rows += [row(f"ensemble of the {len(final['runs'])} runs", final["ensemble"])]
        both = measured("benchmarks", "cross")["metrics"]["models"]["flickr8k+coco"]["flickr8k"]["test"]["scores"]
        rows += [row("one run, trained on COCO's part, too", both)]
    if dataset == "coco":
        images = measured(dataset, "01_data")["metrics"]["splits"]["train"]["images"]
        after = f"Trained on {images:,} images: a subset of val2017, mostly with people.\n\n"
    rows += [row("under untrained heads", metrics["untrained"]), row("chance", metrics["chance"])]
    for name, values in PUBLISHED.items() if dataset == "flickr8k" else ():
        rows.append(f"| {name} | " + " | ".join("-" if v is None else f"{v:.1f}" for v in values) + " |")
    return HEAD.format(title=pool) + "\n".join(rows) + f"\n\n{after}{link(dataset, '04_retrieval')}\n"


def spread(name: str, runs: list[dict]) -> str:
    """Return a line of six recalls in percent, the mean of several runs and their standard deviation."""
    columns = [[100 * run[way][k] for run in runs] for way, k in RECALLS]
    cells = [f"{mean(values):.1f} ± {stdev(values):.1f}" for values in columns]
    return f"| {name} | " + " | ".join(cells) + " |"


def row(name: str, scores: dict, intervals: dict | None = None) -> str:
    """Return a line of six recalls in percent."""
    cells = []
    for way, k in RECALLS:
        text = f"{100 * scores[way][k]:.1f}"
        if intervals:
            text = f"**{text}** {interval(intervals[way][k])}"
        cells.append(text)
    return f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
