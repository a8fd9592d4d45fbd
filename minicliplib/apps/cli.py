"""The command line: ``miniclip COMMAND``, or ``python -m minicliplib COMMAND``.

Each command has two functions side by side: ``_add_search`` declares what the command accepts, and
``_search`` runs it. What takes long to load (torch and all that builds on it) is imported inside
the function that needs it, so that ``miniclip --help`` answers at once.
"""

import argparse
import json
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..config import PRESETS, preset
from ..datasets.download import ARCHIVES
from ..datasets.load import DATASETS

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..datasets.base import CaptionedImages
    from ..datasets.labelled import LabelledImages
    from ..encoders import ImageLike
    from ..model import MiniCLIP
    from ..retrieval import Found, Index
    from ..scale.photo_folder import Photo, PhotoFolder

DESCRIPTION = "Train a miniature CLIP, search images with it, and name what they show."
HISTORY_COLUMNS = ["epoch", "loss", "log_batch", "logit_scale", "dev_mean_recall", "seconds"]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status.

    A wrong input gives one clear line on stderr and the status 2. Ctrl-C gives 130, as in a shell.

    Args:
        arguments: the words after ``miniclip``; ``None`` takes those of the process.

    """
    options = _parser().parse_args(arguments)

    def say(message: object, *_details: object) -> None:
        print(f"miniclip {options.command}: {message}", file=sys.stderr)

    try:
        with warnings.catch_warnings():
            # torch warns of what it will rename; a user cannot do anything about it
            warnings.simplefilter("ignore", FutureWarning)
            # show our own warnings as a sentence, without the line of code that they come from
            warnings.showwarning = say
            options.run(options)
    except (ValueError, FileNotFoundError) as error:
        say(error)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="miniclip", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_download(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_embed(commands)
    _add_search(commands)
    _add_duplicates(commands)
    _add_classify(commands)
    _add_demo(commands)
    return parser


# ---- download --------------------------------------------------------------------------------


def _add_download(commands: Commands) -> None:
    parser = _add_command(commands, "download", _download, "fetch, verify and unpack a dataset")
    parser.add_argument("dataset", help=", ".join(ARCHIVES))
    parser.add_argument(
        "--from",
        dest="mirrors",
        action="append",
        metavar="MIRROR",
        help="a URL or folder with the zips",
    )
    _add_root(parser)


def _download(options: argparse.Namespace) -> None:
    from ..datasets.download import download

    print(download(options.dataset, options.root, options.mirrors))


# ---- train -----------------------------------------------------------------------------------


def _add_train(commands: Commands) -> None:
    text = "train a model; run again to go on after an interruption"
    parser = _add_command(commands, "train", _train, text)
    parser.add_argument(
        "--preset",
        default="sample",
        help=f"start from: {', '.join(PRESETS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting, e.g. train.epochs=3",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="folder of the run (default: named after the settings and the data)",
    )
    _add_root(parser)


def _train(options: argparse.Namespace) -> None:
    from accelerate import PartialState

    from ..training import fit

    changes = {"data.root": options.root} if options.root else {}
    changes |= _settings(options.set)
    config = preset(options.preset).updated(**changes)
    run = fit(config, options.out)

    # of several processes, only the first one reports
    if PartialState().is_main_process:
        print(run.history[HISTORY_COLUMNS].round(3).to_string(index=False))
        print(f"checkpoint, config and history: {run.folder}")


def _settings(items: list[str]) -> dict[str, Any]:
    """Return settings by dotted name, read from ``NAME=VALUE`` each.

    A value is read as JSON, so that ``3``, ``0.5``, ``true`` and ``null`` are what they look like.
    What is not JSON is taken as text: ``sample``.
    """
    settings: dict[str, Any] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, e.g. train.epochs=3, not {item!r}.")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return settings


# ---- evaluate --------------------------------------------------------------------------------


def _add_evaluate(commands: Commands) -> None:
    text = "measure Recall@K both ways, with intervals and chance"
    parser = _add_command(commands, "evaluate", _evaluate, text)
    parser.add_argument(
        "--data",
        default="flickr8k",
        help=f"dataset: {', '.join(DATASETS)} (default: %(default)s)",
    )
    parser.add_argument("--split", help="split of the dataset (default: test)")
    parser.add_argument("--limit", type=int, help="use only the first so many images")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there, too")
    _add_checkpoint(parser, default="flickr8k")
    _add_root(parser)


def _evaluate(options: argparse.Namespace) -> None:
    from ..metrics import evaluate

    data = _load_data(options, folder_split="test", limit=options.limit)
    report = evaluate(_load_model(options.checkpoint), data, progress=True)

    print(f"\n{options.checkpoint} on {data.name} {data.split}: {_recall_table(report)}")
    if options.json:
        text = json.dumps(report, indent=1) + "\n"
        Path(options.json).write_text(text)


def _recall_table(report: dict[str, Any]) -> str:
    """Lay out what ``evaluate`` returns: recalls in percent with 95% intervals, and chance."""
    import pandas as pd

    from ..metrics import DIRECTIONS

    scores = report["scores"]
    rows: dict[str, dict[str, str]] = {}
    for direction in DIRECTIONS:
        row = {}
        for k, chance in report["chance"][direction].items():
            score = scores[direction][k]
            low, high = report["interval"][direction][k]
            row[k] = f"{score:.1%} [{low:.1%}, {high:.1%}]"
            row[f"{k} chance"] = f"{chance:.1%}"
        rows[direction.replace("_to_", "->")] = row

    table = pd.DataFrame.from_dict(rows, orient="index").to_string()
    sizes = f"{scores['images']:,} images, {scores['captions']:,} captions"
    return f"{sizes}\n{table}"


# ---- embed -----------------------------------------------------------------------------------


def _add_embed(commands: Commands) -> None:
    text = "keep the vectors of a folder's images; again for what is new, or to go on"
    parser = _add_command(commands, "embed", _embed, text)
    parser.add_argument("folder", help="your images, subfolders too")
    parser.add_argument(
        "--out",
        required=True,
        metavar="FOLDER",
        help="where the index lies, for search --index",
    )
    _add_exclude(parser)
    _add_checkpoint(parser)


def _embed(options: argparse.Namespace) -> None:
    from ..datasets.images import image_files
    from ..scale.stored_index import stored_index

    paths = image_files(options.folder, options.exclude or ())
    model = _load_model(options.checkpoint)
    _refuse_another(options.out, Path(options.folder).resolve())

    start = time.monotonic()
    index, faults = stored_index(model, paths, [], options.out, progress=True)
    seconds = time.monotonic() - start

    _report_faults(faults)
    print(f"{options.out}: {len(index):,} of {len(paths):,} images, in {seconds:.0f} s")


def _refuse_another(out: str, folder: Path) -> None:
    """Refuse an ``--out`` that holds an index of another folder: its images would be lost from it.

    Raises:
        ValueError: at least one image of the index in ``out`` lies outside ``folder``.

    """
    from ..retrieval import Index
    from ..scale.stored_index import path_of

    try:
        names = Index.load(out).names["images"]
    except ValueError:
        return  # there is no index yet, or it is not whole
    for path in map(path_of, names):
        if not path.is_relative_to(folder):
            raise ValueError(
                f"{out} holds images of another folder ({path.parent}): name another --out."
            )


# ---- search ----------------------------------------------------------------------------------


def _add_search(commands: Commands) -> None:
    text = "rank images for a sentence, or for another image"
    parser = _add_command(commands, "search", _search, text)
    parser.add_argument("query", help="a sentence; with --by-image the path of an image")
    parser.add_argument(
        "--by-image",
        action="store_true",
        help="take the query as the path of an image, and find others like it",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--images",
        metavar="FOLDER",
        help="your own images, indexed once (the index goes to the cache)",
    )
    where.add_argument("--index", metavar="FOLDER", help="or an index of them, by embed")
    where.add_argument(
        "--data",
        default="sample",
        help=f"or a dataset: {', '.join(DATASETS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--split",
        help="split of the dataset (default: test; of a folder, all)",
    )
    parser.add_argument(
        "-k",
        type=int,
        help="how many results (default: 5, or all if there are fewer)",
    )
    _add_exclude(parser)
    parser.add_argument("--since", metavar="DAY", type=_day, help="taken on 2024-07-31 or later")
    parser.add_argument("--until", metavar="DAY", type=_day, help="taken on that day or earlier")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--paths", action="store_true", help="print paths alone, one a line")
    form.add_argument("--json", action="store_true", help="print a list of objects as JSON")
    _add_checkpoint(parser)
    _add_root(parser)


def _search(options: argparse.Namespace) -> None:
    from ..retrieval import Index

    if options.images:
        _print_photos(_search_folder(options), options)
        return
    for name in ("exclude", "since", "until"):
        if getattr(options, name):
            raise ValueError(f"--{name} goes with --images FOLDER.")

    if options.index:
        index = _open_index(options)
    else:
        data = _load_data(options, folder_split="all")
        index = Index(_load_model(options.checkpoint)).add_images(data.images, progress=True)
    _print_found(index.search(*_query_and_k(options, len(index))), options)


def _search_folder(options: argparse.Namespace) -> "list[Photo]":
    """Search a folder through its stored index."""
    from ..retrieval import check_k

    photos = _open_folder(options.images, options)
    query, k = _query_and_k(options, len(photos.paths))
    check_k(k, "images", len(photos.paths))
    return photos.search(query, k, options.since, options.until)


def _query_and_k(options: argparse.Namespace, size: int) -> tuple[Path | str, int]:
    """Return what to search for among ``size`` images, and how many to find."""
    query = Path(options.query) if options.by_image else options.query
    k = min(5, size) if options.k is None else options.k
    return query, k


def _open_folder(folder: str, options: argparse.Namespace) -> "PhotoFolder":
    """Open a folder with its stored index, and embed what is new in it."""
    from ..scale.memory import keep_freed_memory
    from ..scale.photo_folder import PhotoFolder
    from ..scale.text_side import QuickModel

    keep_freed_memory()
    model = QuickModel(options.checkpoint)
    photos = PhotoFolder(model, folder, options.exclude or (), progress=True)
    _report_faults(photos.faults)
    return photos


def _print_photos(photos: "list[Photo]", options: argparse.Namespace) -> None:
    """Print photos of a folder: scores and paths, or in the form that was asked for."""
    if options.json:
        rows = []
        for photo in photos:
            row = {"path": str(photo.path), "score": round(photo.score, 4)}
            rows.append(row | {"day": photo.day.isoformat()})
        print(json.dumps(rows, indent=1))
    else:
        _print_found([(photo.path, photo.score) for photo in photos], options)


def _print_found(found: "Found", options: argparse.Namespace) -> None:
    """Print names with their scores, or in the form that was asked for."""
    if options.json:
        rows = [{"path": str(name), "score": round(score, 4)} for name, score in found]
        print(json.dumps(rows, indent=1))
        return
    for name, score in found:
        print(name if options.paths else f"{score:.3f}  {name}")


def _open_index(options: argparse.Namespace) -> "Index":
    """Open an index that ``embed`` has made; its images go by their paths.

    A sentence needs the text side of the model only, which loads in half the time.
    """
    from ..retrieval import Index
    from ..scale.stored_index import path_of
    from ..scale.text_side import TextSide

    by_image = options.by_image
    model = _load_model(options.checkpoint) if by_image else TextSide(options.checkpoint)
    index = Index.load(options.index, model)
    index.names["images"] = [path_of(name) for name in index.names["images"]]
    return index


def _day(text: str) -> date:
    """Read a day such as 2024-07-31."""
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"give a day as 2024-07-31, not {text!r}") from error


# ---- duplicates ------------------------------------------------------------------------------


def _add_duplicates(commands: Commands) -> None:
    text = "list groups of images that are nearly the same"
    parser = _add_command(commands, "duplicates", _duplicates, text)
    parser.add_argument("folder", help="your images, indexed once (the index goes to the cache)")
    parser.add_argument(
        "--above",
        type=float,
        default=0.95,
        metavar="COSINE",
        help="how alike they must be, up to 1 (default: %(default)s)",
    )
    _add_exclude(parser)
    parser.add_argument("--json", action="store_true", help="print a list of lists as JSON")
    _add_checkpoint(parser)


def _duplicates(options: argparse.Namespace) -> None:
    if not 0 < options.above <= 1:
        raise ValueError(f"--above must be a cosine between 0 and 1, not {options.above}.")
    photos = _open_folder(options.folder, options)
    groups = photos.duplicates(options.above)
    if options.json:
        print(json.dumps([[str(path) for path in group] for group in groups], indent=1))
        return
    for group in groups:
        print(*group, "", sep="\n")  # an empty line between groups
    count = sum(len(group) for group in groups)
    print(f"groups: {len(groups)}, with {count} of {len(photos.paths):,} images", file=sys.stderr)


# ---- classify --------------------------------------------------------------------------------


def _add_classify(commands: Commands) -> None:
    text = "name what images show, from your own labels; or measure on class folders"
    parser = _add_command(commands, "classify", _classify, text)
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="images or folders; without --labels one folder of class folders, "
        "or sample, cifar10 or caltech101",
    )
    parser.add_argument(
        "--labels",
        metavar="A,B,...",
        help="the labels to choose from, e.g. cat,dog,bicycle",
    )
    parser.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help="a prompt, e.g. 'a photo of a {}.'",
    )
    parser.add_argument(
        "-k",
        type=int,
        default=3,
        help="how many labels an image (default: %(default)s)",
    )
    _add_checkpoint(parser)
    _add_root(parser)


def _classify(options: argparse.Namespace) -> None:
    from ..datasets.labelled import load_labelled
    from ..zeroshot import PHOTO_TEMPLATES, SCENE_TEMPLATES

    # the scenes were trained with other words than photos
    templates = SCENE_TEMPLATES if options.images == ["sample"] else PHOTO_TEMPLATES
    templates = options.template or templates

    if not options.labels and len(options.images) > 1:
        raise ValueError("Without --labels, name one folder of class folders, or one dataset.")
    model = _load_model(options.checkpoint)
    if options.labels:
        _print_labels(model, options.images, options.labels.split(","), templates, options.k)
    else:
        _print_accuracy(model, load_labelled(options.images[0], options.root), templates)


def _print_labels(
    model: "MiniCLIP",
    places: list[str],
    labels: list[str],
    templates: Sequence[str],
    k: int,
) -> None:
    """Print the ``k`` most probable labels of each image of these files and folders."""
    from ..zeroshot import ZeroShotClassifier

    classifier = ZeroShotClassifier(model, labels, templates)
    images: list[ImageLike] = []
    for place in places:
        if Path(place).is_dir():
            images += _readable_files(place)
        else:
            images.append(place)

    for image, guesses in zip(images, classifier.predict(images, k), strict=True):
        words = [f"{label} {probability:.0%}" for label, probability in guesses]
        print(f"{image}: {', '.join(words)}")


def _print_accuracy(model: "MiniCLIP", data: "LabelledImages", templates: Sequence[str]) -> None:
    """Print the zero-shot accuracy on labelled images, with intervals and chance, and by class."""
    import pandas as pd

    from ..analysis.measures import classification
    from ..datasets.labelled import class_phrase
    from ..zeroshot import ZeroShotClassifier

    # compare each image with each class name
    phrases = [class_phrase(name) for name in data.classes]
    classifier = ZeroShotClassifier(model, phrases, templates)
    vectors = model.encode_image(data.images, progress=True)
    report = classification(classifier.scores(vectors), data.labels)

    sizes = f"{len(data):,} images, {len(data.classes)} classes"
    print(f"{data.name}: {sizes}, {len(templates)} prompt templates")
    for k, (low, high) in report["interval"].items():
        chance = report["chance"][k]
        print(f"{k} {report[k]:.1%} [{low:.1%}, {high:.1%}], chance {chance:.1%}")

    # the classes, worst first
    by_class = pd.Series(report["per_class"], data.classes, name="top1").sort_values()
    print(by_class.map("{:.0%}".format).to_string())


# ---- demo ------------------------------------------------------------------------------------


def _add_demo(commands: Commands) -> None:
    text = "serve a page to play with: images for sentences, captions and names for images"
    parser = _add_command(commands, "demo", _demo, text)
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help="your own images, indexed once (the index goes to the cache)",
    )
    parser.add_argument(
        "--data",
        metavar="NAME",
        help="or a dataset, or several joined by + "
        "(default: flickr8k if it is there, else photos+sample)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="0.0.0.0 lets other computers in (default: %(default)s)",
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    _add_checkpoint(parser)
    _add_root(parser)


def _demo(options: argparse.Namespace) -> None:
    try:
        from .demo import Demo, Server, collection
    except ModuleNotFoundError as error:
        raise ValueError(f"The demo needs {error.name}: pip install 'minicliplib[demo]'") from error

    name = options.data
    root = options.root
    if options.images:
        name = "folder"
        root = options.images
    model = _load_model(options.checkpoint)
    demo = Demo(model, collection(name, root=root), root or "", progress=True)
    _report_faults(demo.faults)

    # a request to terminate stops the page as cleanly as Ctrl-C does
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Server(demo, options.host, options.port) as server:
        images = f"{len(demo.index):,} images ({demo.data.name})"
        print(f"{images}. Open {server.url} (Ctrl-C stops it)", flush=True)
        threading.Event().wait()


# ---- what several commands share -------------------------------------------------------------


def _add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    """Add a command that ``run`` carries out, and return its parser, which has no option yet."""
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", help="where the dataset lies (default: the data folder)")


def _add_exclude(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--exclude",
        action="append",
        metavar="PATTERN",
        help="leave out what matches, e.g. '*.png' or 2019 (repeat for more)",
    )


def _add_checkpoint(parser: argparse.ArgumentParser, default: str = "everyday") -> None:
    parser.add_argument(
        "--checkpoint",
        default=default,
        help="a shipped name, folder or hub id (default: %(default)s)",
    )


def _load_model(checkpoint: str) -> "MiniCLIP":
    """Load a checkpoint in a process that serves it alone, and may keep the memory it has freed."""
    from ..model import load
    from ..scale.memory import keep_freed_memory

    keep_freed_memory()
    return load(checkpoint)


def _load_data(
    options: argparse.Namespace, folder_split: str, limit: int | None = None
) -> "CaptionedImages":
    """Load the dataset that ``--data``, ``--split`` and ``--root`` name.

    Without ``--split`` it is the test split, but of your own folder ``folder_split``. What cannot
    be read of your own folder is left out with a warning; a dataset has to be whole.
    """
    from ..datasets.load import load_dataset

    if options.data == "folder":
        split = options.split or folder_split
        return load_dataset("folder", split, options.root, limit, on_bad="skip")
    return load_dataset(options.data, options.split or "test", options.root, limit)


def _readable_files(folder: str) -> "list[Path | Image]":
    """Return the images of a folder; those that cannot be read are left out with a warning."""
    from ..datasets.base import CaptionedImages, without_unreadable
    from ..datasets.images import image_files

    paths = image_files(folder)
    no_captions: list[list[str]] = [[] for _ in paths]
    data = CaptionedImages("folder", "all", paths, no_captions)
    return list(without_unreadable(data).images)


def _report_faults(faults: list[str]) -> None:
    """Say on stderr which images were left out, and why."""
    for fault in faults:
        print(f"left out: {fault}", file=sys.stderr)
