"""Command line: ``miniclip download | train | evaluate | embed | search | classify | demo``, or -m minicliplib."""

import argparse
import json
import signal
import sys
import threading
import time
import warnings
from itertools import chain
from pathlib import Path

import pandas as pd
from accelerate import PartialState

from .archives import ARCHIVES, download
from .config import PRESETS, preset
from .data import DATASETS, CaptionedImages, load_dataset, without_unreadable
from .images import image_files
from .labelled import load_labelled
from .metrics import classification
from .model import load
from .retrieval import Index, evaluate, path_of, stored_index
from .training import fit, run_folder
from .zeroshot import PHOTO_TEMPLATES, SCENE_TEMPLATES, ZeroShotClassifier, in_words


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a wrong input is one clear line on stderr and exit status 2."""
    options = _parser().parse_args(arguments)
    say = lambda message, *_: print(f"miniclip {options.command}: {message}", file=sys.stderr)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, on what it will rename
            warnings.showwarning = say  # a sentence, rather than a line of our code
            options.run(options)
    except (ValueError, FileNotFoundError) as error:
        say(error)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _download(options) -> None:
    print(download(options.dataset, options.root, options.mirrors))


def _train(options) -> None:
    changes = {"data.root": options.root} if options.root else {}
    for item in options.set:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, e.g. train.epochs=3, not {item!r}.")
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            changes[name] = value
    config = preset(options.preset).updated(**changes)
    run = fit(config, options.out or run_folder(config))
    if not PartialState().is_main_process:
        return
    columns = ["epoch", "loss", "log_batch", "logit_scale", "dev_mean_recall", "seconds"]
    print(run.history[columns].round(3).to_string(index=False))
    print(f"checkpoint, config and history: {run.folder}")


def _evaluate(options) -> None:
    on_bad = "skip" if options.data == "folder" else "raise"
    data = load_dataset(options.data, options.split or "test", options.root, options.limit, on_bad)
    report = evaluate(load(options.checkpoint), data, progress=True)
    print(f"\n{options.checkpoint} on {data.name} {data.split}: {table(report)}")
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


def table(report: dict) -> str:
    """Lay out what ``evaluate`` returns: recalls in percent with 95% intervals, and chance."""
    scores, rows = report["scores"], {}
    for way, label in (("image_to_text", "image->text"), ("text_to_image", "text->image")):
        rows[label] = {}
        for k, value in report["chance"][way].items():
            low, high = report["interval"][way][k]
            rows[label] |= {k: f"{scores[way][k]:.1%} [{low:.1%}, {high:.1%}]", f"{k} chance": f"{value:.1%}"}
    return f"{scores['images']:,} images, {scores['captions']:,} captions\n{pd.DataFrame(rows).T.to_string()}"


def _embed(options) -> None:
    paths, model, started = image_files(options.folder), load(options.checkpoint), time.monotonic()
    _refuse_another(options.out, Path(options.folder).resolve())
    index, faults = stored_index(model, paths, [], options.out, progress=True)
    for fault in faults:
        print(f"left out: {fault}", file=sys.stderr)
    print(f"{options.out}: {len(index):,} of {len(paths):,} images, in {time.monotonic() - started:.0f} s")


def _refuse_another(out: str, folder: Path) -> None:
    """Raise ValueError where an index of other images lies already: they would be lost from it."""
    try:
        images = Index.load(out).names["images"]
    except ValueError:  # there is none yet, or not a whole one
        return
    if strangers := [path for path in map(path_of, images) if not path.is_relative_to(folder)]:
        raise ValueError(f"{out} holds images of another folder ({strangers[0].parent}): name another --out.")


def _readable_files(folder: str) -> list[Path]:
    paths = image_files(folder)
    return without_unreadable(CaptionedImages("folder", "all", paths, [[] for _ in paths])).images


def _search(options) -> None:
    model = load(options.checkpoint)
    if options.index:
        index = Index.load(options.index, model)
        index.names["images"] = [path_of(name) for name in index.names["images"]]
    else:
        data = (options.data, options.split or ("all" if options.data == "folder" else "test"), options.root)
        images = _readable_files(options.images) if options.images else load_dataset(*data).images
        index = Index(model).add_images(images, progress=True)
    query = Path(options.query) if options.by_image else options.query
    for name, score in index.search(query, k=min(5, len(index)) if options.k is None else options.k):
        print(f"{score:.3f}  {name}")


def _classify(options) -> None:
    templates = options.template or (SCENE_TEMPLATES if options.images == ["sample"] else PHOTO_TEMPLATES)
    model = load(options.checkpoint)
    if not options.labels:
        return _classify_labelled(load_labelled(options.images[0], options.root), model, templates)
    classifier = ZeroShotClassifier(model, options.labels.split(","), templates)
    folders = (_readable_files(name) if Path(name).is_dir() else [name] for name in options.images)
    images = list(chain.from_iterable(folders))
    for image, found in zip(images, classifier.predict(images, options.k), strict=True):
        print(f"{image}: " + ", ".join(f"{label} {probability:.0%}" for label, probability in found))


def _classify_labelled(data, model, templates) -> None:
    classifier = ZeroShotClassifier(model, [in_words(name) for name in data.classes], templates)
    report = classification(classifier.scores(model.encode_image(data.images, progress=True)), data.labels)
    print(f"{data.name}: {len(data):,} images, {len(data.classes)} classes, {len(templates)} prompt templates")
    for k, (low, high) in report["interval"].items():
        print(f"{k} {report[k]:.1%} [{low:.1%}, {high:.1%}], chance {report['chance'][k]:.1%}")
    print(pd.Series(report["per_class"], data.classes, name="top1").sort_values().map("{:.0%}".format).to_string())


def _demo(options) -> None:
    try:
        from .demo import Demo, Server, collection
    except ModuleNotFoundError as error:
        raise ValueError(f"The demo needs {error.name}: pip install 'minicliplib[demo]'") from error
    name, root = ("folder", options.images) if options.images else (options.data, options.root)
    demo = Demo(load(options.checkpoint), collection(name, root=root), root or "", progress=True)
    for fault in demo.faults:
        print(f"left out: {fault}", file=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as cleanly as Ctrl-C
    with Server(demo, options.host, options.port) as server:
        print(f"{len(demo.index):,} images ({demo.data.name}). Open {server.url} (Ctrl-C stops it)", flush=True)
        threading.Event().wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="miniclip", description=__doc__.split(", or")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("--root", help="where the dataset lies (default: the data folder)")
        return sub

    def checkpoint(sub: argparse.ArgumentParser, default: str = "flickr8k") -> None:
        text = "a shipped name, folder or hub id (default: %(default)s)"
        sub.add_argument("--checkpoint", default=default, help=text)

    def model_and_split(sub: argparse.ArgumentParser) -> None:
        checkpoint(sub)
        sub.add_argument("--split", help="split of the dataset (default: test; search takes all of a folder)")

    sub = command("download", _download, "fetch, verify and unpack a dataset")
    sub.add_argument("dataset", help=", ".join(ARCHIVES))
    sub.add_argument("--from", dest="mirrors", action="append", metavar="MIRROR", help="a URL or folder with the zips")

    sub = command("train", _train, "train a model; run again to go on after an interruption")
    sub.add_argument("--preset", default="sample", help=f"start from: {', '.join(PRESETS)} (default: %(default)s)")
    sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting, e.g. train.epochs=3")
    sub.add_argument("--out", help="folder of the run (default: named after the settings)")

    sub = command("evaluate", _evaluate, "measure Recall@K both ways, with intervals and chance")
    sub.add_argument("--data", default="flickr8k", help=f"dataset: {', '.join(DATASETS)} (default: %(default)s)")
    sub.add_argument("--limit", type=int, help="use only the first so many images")
    sub.add_argument("--json", metavar="FILE", help="write the numbers there, too")
    model_and_split(sub)

    sub = command("embed", _embed, "keep the vectors of a folder's images; again for what is new, or to go on")
    sub.add_argument("folder", help="your images, subfolders too")
    sub.add_argument("--out", required=True, metavar="FOLDER", help="where the index lies, for search --index")
    checkpoint(sub)

    sub = command("search", _search, "rank images for a sentence, or for another image")
    sub.add_argument("query", help="a sentence; with --by-image the path of an image")
    sub.add_argument("--by-image", action="store_true", help="take the query as the path of an image")
    where = sub.add_mutually_exclusive_group()
    where.add_argument("--images", metavar="FOLDER", help="your own images")
    where.add_argument("--index", metavar="FOLDER", help="or an index of them, by embed")
    where.add_argument("--data", default="sample", help=f"or a dataset: {', '.join(DATASETS)} (default: %(default)s)")
    sub.add_argument("-k", type=int, help="how many results (default: 5, or all if there are fewer)")
    model_and_split(sub)

    sub = command("classify", _classify, "name what images show, from your own labels; or measure on class folders")
    sub.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="images or folders; without --labels one folder of class folders, or sample, cifar10 or caltech101",
    )
    sub.add_argument("--labels", metavar="A,B,...", help="the labels to choose from, e.g. cat,dog,bicycle")
    sub.add_argument("--template", action="append", metavar="TEXT", help="a prompt, e.g. 'a photo of a {}.'")
    checkpoint(sub)
    sub.add_argument("-k", type=int, default=3, help="how many labels an image (default: %(default)s)")

    sub = command("demo", _demo, "serve a page to play with: images for sentences, captions and names for images")
    sub.add_argument("--images", metavar="FOLDER", help="your own images, indexed once (the index goes to the cache)")
    text = "or a dataset, or several joined by + (default: flickr8k if it is there, else photos+sample)"
    sub.add_argument("--data", metavar="NAME", help=text)
    checkpoint(sub, "mixed")
    sub.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other computers in (default: %(default)s)")
    sub.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    return parser


if __name__ == "__main__":
    sys.exit(main())
