"""Pictures and their captions: to add a dataset, write its loader and give it a line in ``DATASETS``."""

import csv
import hashlib
import io
import json
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from .config import data_root
from .images import DataError, image_files, readable
from .scenes import SIZES, make_scene

GET_FLICKR8K = "Get a whole copy with: miniclip download flickr8k"
GET_COCO = "Get it with: miniclip download coco"
ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class CaptionedImages:
    """Images, each with any number of captions: ``captions[i]`` belong to ``images[i]``."""

    name: str
    split: str
    images: list[Path | Image.Image]  # files, or pictures already in memory
    captions: list[list[str]]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def flat_captions(self) -> list[str]:
        """All captions in one list, image by image."""
        return list(chain.from_iterable(self.captions))

    @property
    def owner(self) -> np.ndarray:
        """Which image each flat caption belongs to: (captions,) int64."""
        return np.array([i for i, texts in enumerate(self.captions) for _ in texts], dtype=np.int64)

    def subset(self, indices: Sequence[int]) -> "CaptionedImages":
        """Return the images at ``indices``, in that order, with their captions."""
        images, captions = [self.images[i] for i in indices], [self.captions[i] for i in indices]
        return CaptionedImages(self.name, self.split, images, captions)


def load_dataset(
    name: str, split: str | None = None, root: str | Path | None = None, limit: int | None = None, on_bad: str = "raise"
) -> CaptionedImages:
    """Load a split (default: train; of a folder, all) from ``root`` or the data folder, at most ``limit`` images.

    An unreadable image raises a ``DataError`` when it is used. With ``on_bad="skip"`` each image is decoded
    now, which takes time, and unreadable ones are left out with a warning that names them.

    Names joined by ``+`` give the datasets one after another, at most ``limit`` images of each, as ``root/name``.
    """
    if "+" in name:
        places = {part: Path(root) / part if root else None for part in name.split("+")}
        parts = [load_dataset(part, split, place, limit, on_bad) for part, place in places.items()]
        images, captions = [i for part in parts for i in part.images], [c for part in parts for c in part.captions]
        return CaptionedImages(name, parts[0].split, images, captions)
    if name not in DATASETS:
        raise DataError(f"Unknown dataset {name!r}. Known: {', '.join(DATASETS)}.")
    load, splits = DATASETS[name]
    split = split or splits[0]
    if split not in splits and splits != ("all",):
        raise DataError(f"{name!r} has no split {split!r}. Known: {', '.join(splits)}.")
    if on_bad not in ("raise", "skip"):
        raise DataError(f"on_bad={on_bad!r} is not a choice. Known: raise, skip.")
    if limit is not None and limit < 1:
        raise DataError(f"limit={limit} leaves no image: give 1 or more, or None for all.")
    root = Path(root).expanduser() if root else data_root() / name
    data = load(root, split, limit)
    return without_unreadable(data) if on_bad == "skip" else data


# ---- captions --------------------------------------------------------------------------------------


def clean_caption(text: str) -> str:
    """Undo the tokeniser's and the CSV's marks: ``'A dog " runs " .'`` becomes ``'A dog "runs".'``."""
    text = " ".join(text.replace('""', '"').split())
    if text.count('"') % 2 or re.fullmatch(r'"[^"]*"', text):  # one is stray, or they wrap the whole caption
        text = " ".join(text.replace('"', " ").split())
    text = re.sub(r'" ?(.*?) ?"', r'"\1"', text)
    text = re.sub(r"(?<!\S)' | '(?!\S)", "", text)  # single quotes that stand alone
    text = re.sub(r" ('s|n't)\b", r"\1", text)
    return re.sub(r" ([.,;:!?)]+)(?!\w)", r"\1", text).replace("( ", "(")


def _caption(text: str | None, where: str) -> str:
    cleaned = clean_caption(text or "")
    if not cleaned:
        raise DataError(f"{where} has an empty caption: write one or delete the row.")
    return cleaned


def without_unreadable(data: CaptionedImages) -> CaptionedImages:
    """Leave out, with a warning that names and counts them, the images that cannot be read."""
    good, faults = readable(data.images)
    if not good:
        raise DataError(f"No image of {data.name!r} can be read, of {len(data)}. The first: {faults[0]}")
    if faults:
        message = "\n  ".join([f"Left out {len(faults)} of {len(data)} images of {data.name!r}:", *faults])
        warnings.warn(message, stacklevel=3)
    return data.subset(good)


# ---- the datasets ----------------------------------------------------------------------------------


def _load_sample(root: Path, split: str, limit: int | None) -> CaptionedImages:
    scenes = [make_scene(split, index) for index in range(SIZES[split])[:limit]]
    pictures, captions = [scene.render() for scene in scenes], [list(scene.captions) for scene in scenes]
    return CaptionedImages("sample", split, pictures, captions)


# Free photos that come with scikit-image, with captions of our own: CC0, or public domain (NASA, SpaceX).
PHOTOS = {
    "astronaut.png": "A smiling astronaut in an orange suit before a flag.",
    "camera.png": "A man in a coat looks through a camera on a tripod.",
    "chelsea.png": "A ginger cat with green eyes.",
    "clock_motion.png": "A round clock on a wall.",
    "coffee.png": "A cup of coffee on a wooden table.",
    "rocket.jpg": "A rocket launches in a cloud of smoke.",
}


def _load_photos(root: Path, split: str, limit: int | None) -> CaptionedImages:
    folder = Path(str(files("skimage") / "data"))
    images, captions = [folder / name for name in PHOTOS], [[caption] for caption in PHOTOS.values()]
    return CaptionedImages("photos", "all", images[:limit], captions[:limit])


def _load_folder(root: Path, split: str, limit: int | None) -> CaptionedImages:
    """All images; or of those with captions a tenth each for dev and test, by their names, and the rest for train."""
    images = image_files(root)
    captions, table = {image.relative_to(root).as_posix(): [] for image in images}, root / "captions.csv"
    for where, name, text in _csv_rows(table) if table.exists() else ():
        if name not in captions:
            raise DataError(f"{where} names an image that is not there: {name!r}.")
        captions[name].append(text)
    pairs = list(zip(images, captions.values(), strict=True))
    if split != "all":
        pairs = [(image, texts) for image, texts in pairs if texts]
        if len(pairs) < 6:
            raise DataError(f"{len(pairs)} images have captions in {table}: three splits need 6 or more.")
        pairs = _drawn_by_name(pairs, split)
    images, texts = ([pair[part] for pair in pairs[:limit]] for part in (0, 1))
    return CaptionedImages("folder", split, images, texts)


def _drawn_by_name(pairs: list, split: str) -> list:
    """By a number from its name an image is for test (lowest tenth), dev (highest) or train, however a folder grows."""
    number = lambda pair: int(hashlib.sha256(pair[0].name.encode()).hexdigest()[:8], 16) / 2**32
    ordered, numbers = sorted(pairs, key=number), [number(pair) for pair in pairs]
    low, high = max(2, sum(n < 0.1 for n in numbers)), max(2, sum(n > 0.9 for n in numbers))
    return sorted({"test": ordered[:low], "dev": ordered[-high:], "train": ordered[low:-high]}[split])


def _load_flickr8k(root: Path, split: str, limit: int | None) -> CaptionedImages:
    photos = _find(root, "Flicker8k_Dataset", "Flickr8k_Dataset", "Images")
    texts = _find(root, "Flickr8k.token.txt", "captions.txt")
    captions = defaultdict(list)
    for _, name, text in _token_rows(texts) if texts.name == "Flickr8k.token.txt" else _csv_rows(texts):
        captions[name].append(text)
    present, names = set(os.listdir(photos)), _split_list(root, split)
    for name in names:
        if name not in present:
            raise DataError(f"The {split} photo {name} is missing from {photos}. {GET_FLICKR8K}")
        if len(captions[name]) != 5:
            raise DataError(f"{texts} has {len(captions[name])} captions for {name}, not 5. {GET_FLICKR8K}")
    names = names[:limit]
    return CaptionedImages("flickr8k", split, [photos / n for n in names], [captions[n] for n in names])


def _load_coco(root: Path, split: str, limit: int | None) -> CaptionedImages:
    """Karpathy's splits where his file lies there; else train2017 trains, and val2017 is halved into dev and test.

    Of val2017 alone 250 images each are for dev and test, drawn by a fixed seed, and the rest trains.
    """
    karpathy, (train, val) = _below(root, "dataset_coco.json"), (_below(root, f"{p}2017") for p in ("train", "val"))
    if karpathy:
        wanted = {"train": ("train", "restval"), "dev": ("val",), "test": ("test",)}[split]
        entries = [entry for entry in _json(karpathy)["images"] if entry["split"] in wanted]
        texts = [[sentence["raw"] for sentence in entry["sentences"]] for entry in entries]
        paths = [root / entry["filepath"] / entry["filename"] for entry in entries]
        if train or val:  # the same photos as they are called since 2017
            there = {name: folder / name for folder in (train, val) if folder for name in os.listdir(folder)}
            paths = [there.get(f"{entry['cocoid']:012}.jpg", path) for entry, path in zip(entries, paths, strict=True)]
        pairs = _present(list(zip(paths, texts, strict=True)))
    elif split == "train" and train:
        pairs = _present(_official_pairs(root, train))
    elif val:
        pairs = _present(_official_pairs(root, val))
        order, size = np.random.default_rng(0).permutation(len(pairs)), len(pairs) // 2 if train else 250
        rows = {"test": order[:size], "dev": order[size : 2 * size], "train": order[2 * size :]}[split]
        pairs = [pairs[row] for row in sorted(rows)]
    else:
        raise DataError(f"MS COCO is not complete in {root}: no folder val2017. {GET_COCO}")
    pairs = pairs[:limit]
    captions = [[_caption(text, f"The annotation of {path.name} in {root}") for text in texts] for path, texts in pairs]
    return CaptionedImages("coco", split, [path for path, _ in pairs], captions)


def _official_pairs(root: Path, folder: Path) -> list[tuple[Path, list[str]]]:
    annotations = _below(root, f"captions_{folder.name}.json")
    if not annotations:
        raise DataError(f"MS COCO is not complete in {root}: no captions_{folder.name}.json. {GET_COCO}")
    record, captions = _json(annotations), defaultdict(list)
    for annotation in record["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
    images = sorted(record["images"], key=lambda image: image["id"])
    return [(folder / image["file_name"], captions[image["id"]]) for image in images if image["id"] in captions]


def _present(pairs: list[tuple[Path, list[str]]]) -> list[tuple[Path, list[str]]]:
    """Leave out, with a warning, images that are listed but not there: a copy may be a part of the whole."""
    there = {folder: set(os.listdir(folder)) for folder in {path.parent for path, _ in pairs} if folder.is_dir()}
    found = [(path, texts) for path, texts in pairs if path.name in there.get(path.parent, ())]
    if not found:
        first = f", the first not as {pairs[0][0]}" if pairs else ""
        raise DataError(f"None of {len(pairs):,} listed images is there{first}. {GET_COCO}")
    if missing := len(pairs) - len(found):
        warnings.warn(f"{missing:,} of {len(pairs):,} listed images are not there and left out.", stacklevel=4)
    return found


def _below(root: Path, name: str) -> Path | None:
    """Return ``name`` in ``root`` or up to two folders deeper, or None: copies in the wild differ."""
    return next((found for up in ("", "[!.]*/", "[!.]*/[!.]*/") for found in sorted(root.glob(up + name))), None)


def _json(path: Path) -> dict:
    try:
        return json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not sound JSON ({error}): get it again.") from error


def load_judgements(kind: str, root: str | Path | None = None) -> pd.DataFrame:
    """Load how well people found captions to fit test photos of Flickr8k: columns image, caption, rating.

    ``expert`` has three ratings a pair, 1 to 4, each a row of its own; a photo's own captions are left out: 3 x 5,664
    rows. ``crowd`` has the share of yes votes on all 47,830 pairs. Both as in the code of Hessel et al. 2021.
    """
    files = {"expert": "ExpertAnnotations.txt", "crowd": "CrowdFlowerAnnotations.txt"}
    if kind not in files:
        raise DataError(f"Unknown judgements {kind!r}. Known: {', '.join(files)}.")
    root = Path(root).expanduser() if root else data_root() / "flickr8k"
    photos, captions = _find(root, "Flicker8k_Dataset", "Flickr8k_Dataset", "Images"), defaultdict(list)
    for _, name, text in _token_rows(_find(root, "Flickr8k.token.txt")):
        captions[name].append(text)
    table = pd.read_csv(_find(root, files[kind]), sep="\t", header=None)
    if kind == "expert":
        table = table[table[0] != table[1].str.split("#").str[0]]
    rated = table.melt([0, 1], [2, 3, 4] if kind == "expert" else [2], value_name="rating")
    texts = [captions[name][int(number)] for name, number in rated[1].str.split("#")]
    return pd.DataFrame({"image": [photos / name for name in rated[0]], "caption": texts, "rating": rated["rating"]})


def _find(root: Path, *names: str) -> Path:
    for name in names:
        if found := _below(root, name):
            return found
    raise DataError(f"Flickr8k is not complete in {root}: no {' or '.join(names)}. {GET_FLICKR8K}")


def _split_list(root: Path, split: str) -> list[str]:
    """Return the photo names of a split, from ``root`` or this package; of official photos only the official list."""
    file = f"Flickr_8k.{split}Images.txt"
    official = _read(ASSETS / "flickr8k" / file).split()
    try:
        names = _read(_find(root, file)).split()
    except DataError:  # Kaggle's layout has no lists
        return official
    if set(names) & set(official) and sorted(names) != sorted(official):
        raise DataError(f"{file} in {root} is not the official list of {len(official)} photos. {GET_FLICKR8K}")
    return names


def _token_rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (where, image, caption) from the authors' lines ``photo.jpg#0<tab>caption``."""
    for number, line in enumerate(_read(path).splitlines(), 1):
        where = f"Row {number} of {path}"
        key, tab, text = line.partition("\t")
        if not tab:
            raise DataError(f"{where} is not 'photo.jpg#0<tab>caption': {line[:60]!r}. {GET_FLICKR8K}")
        name = key.partition("#")[0].removesuffix(".1")  # one official key ends in ".jpg.1"
        yield where, name, _caption(text, where)


def _csv_rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (where, image, caption) from a CSV with at least the columns image and caption."""
    reader = csv.DictReader(io.StringIO(_read(path), newline=""), strict=True)
    try:
        columns = reader.fieldnames or []
        if missing := sorted({"image", "caption"} - set(columns)):
            raise DataError(f"{path} has no column {' or '.join(missing)}. Its first row: {', '.join(columns)}.")
        for row in reader:
            where = f"Row {reader.line_num} of {path}"
            if None in row:
                raise DataError(f"{where} has too many columns: put quotes round a caption with a comma.")
            yield where, (row["image"] or "").strip(), _caption(row["caption"], where)
    except csv.Error as error:  # in the row after the last one read, though a quote may run on to the end
        raise DataError(f"Row {reader.line_num + 1} of {path} is not sound CSV: {error}.") from error


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # Excel begins its UTF-8 with a mark
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: save it as 'CSV UTF-8'.") from error


# By name: the loader, and the splits, the default first; "all" alone: there are none.
DATASETS: dict[str, tuple[Callable[[Path, str, int | None], CaptionedImages], tuple[str, ...]]] = {
    "sample": (_load_sample, tuple(SIZES)),
    "flickr8k": (_load_flickr8k, ("train", "dev", "test")),
    "coco": (_load_coco, ("train", "dev", "test")),
    "folder": (_load_folder, ("all", "train", "dev", "test")),
    "photos": (_load_photos, ("all",)),
}
