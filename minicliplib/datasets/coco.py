"""MS COCO's captions: 123,000 photos with five captions each, or any part of them.

Lin et al. 2014. Three layouts are known, and each has a function here: the splits of Karpathy and
Fei-Fei 2015, train2017 beside val2017, and val2017 alone.
"""

import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .base import CaptionedImages
from .captions import checked_caption, find_below, read_json
from .images import DataError

GET_COCO = "Get it with: miniclip download coco"
KARPATHY_FILE = "dataset_coco.json"
KARPATHY_SPLITS = {"train": ("train", "restval"), "dev": ("val",), "test": ("test",)}
TRAIN = "train2017"
VAL = "val2017"
HELD_OUT = 250  # images for dev, and as many for test, where val2017 is all there is

# An image and its captions.
Pair = tuple[Path, list[str]]


def load_coco(root: Path, split: str, limit: int | None) -> CaptionedImages:
    """Return the images of one split that are there, with their captions.

    A copy may be a part of the whole: images that are listed but not there are left out, with a
    warning that counts them.

    Raises:
        DataError: a folder or file is missing or damaged, or not one listed image is there.

    """
    read_pairs = _choose_layout(root)
    images = []
    captions = []
    for path, texts in read_pairs(root, split)[:limit]:
        where = f"The annotation of {path.name} in {root}"
        images.append(path)
        captions.append([checked_caption(text, where) for text in texts])
    return CaptionedImages("coco", split, images, captions)


def count_licences(images: Sequence[Path]) -> dict[str, int]:
    """Count the licences of photos that ``load_coco`` found, the most frequent first.

    They stand in the official annotations, ``captions_*.json``, of the folder with the photos.
    """
    licence_of = {}
    for file in images[0].parents[1].rglob("captions_*.json"):
        record = read_json(file)
        names = {licence["id"]: licence["name"] for licence in record["licenses"]}
        for image in record["images"]:
            licence_of[image["file_name"]] = names[image["license"]]
    return dict(Counter(licence_of[path.name] for path in images).most_common())


def _choose_layout(root: Path) -> Callable[[Path, str], list[Pair]]:
    """Return the function that reads the layout which lies in ``root``."""
    if find_below(root, KARPATHY_FILE):
        return _karpathy_pairs
    if find_below(root, TRAIN):
        return _train_and_val_pairs
    return _val_alone_pairs


# ---- the three layouts ---------------------------------------------------------------------------


def _karpathy_pairs(root: Path, split: str) -> list[Pair]:
    """Read a split of Karpathy's file, which names the photos as they were called in 2014."""
    record = read_json(_find(root, KARPATHY_FILE, "file"))
    photos_of_2017 = _photos_of_2017(root)
    pairs = []
    for entry in record["images"]:
        if entry["split"] in KARPATHY_SPLITS[split]:
            path = root / entry["filepath"] / entry["filename"]
            # A copy of 2017 holds the same photos under other names.
            if photos_of_2017:
                path = photos_of_2017.get(f"{entry['cocoid']:012}.jpg", path)
            texts = [sentence["raw"] for sentence in entry["sentences"]]
            pairs.append((path, texts))
    return _present(pairs)


def _train_and_val_pairs(root: Path, split: str) -> list[Pair]:
    """Train on train2017, and halve val2017 into dev and test."""
    if split == "train":
        return _present(_official_pairs(root, TRAIN))
    pairs = _present(_official_pairs(root, VAL))
    return _draw_split(pairs, split, held_out=len(pairs) // 2)


def _val_alone_pairs(root: Path, split: str) -> list[Pair]:
    """Hold out two parts of val2017 for dev and test, and train on the rest."""
    pairs = _present(_official_pairs(root, VAL))
    return _draw_split(pairs, split, held_out=HELD_OUT)


# ---- their parts ---------------------------------------------------------------------------------


def _find(root: Path, name: str, kind: str) -> Path:
    """Return a folder or file, or raise a ``DataError`` that calls it by its kind and name."""
    found = find_below(root, name)
    if found is None:
        raise DataError(f"MS COCO is not complete in {root}: no {kind} {name}. {GET_COCO}")
    return found


def _official_pairs(root: Path, part: str) -> list[Pair]:
    """Return the listed images of ``train2017`` or ``val2017`` by number, with their captions."""
    folder = _find(root, part, "folder")
    record = read_json(_find(root, f"captions_{part}.json", "file"))
    captions = defaultdict(list)
    for annotation in record["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])

    pairs = []
    for image in sorted(record["images"], key=lambda image: image["id"]):
        if image["id"] in captions:
            pairs.append((folder / image["file_name"], captions[image["id"]]))
    return pairs


def _photos_of_2017(root: Path) -> dict[str, Path]:
    """Return all files of train2017 and val2017 that are there, by name."""
    paths = {}
    for part in (TRAIN, VAL):
        folder = find_below(root, part)
        if folder:
            for name in os.listdir(folder):
                paths[name] = folder / name
    return paths


def _draw_split(pairs: list[Pair], split: str, held_out: int) -> list[Pair]:
    """Draw so many pairs each for test and dev, the same in every call; the rest is for train."""
    order = np.random.default_rng(0).permutation(len(pairs))
    if split == "test":
        rows = order[:held_out]
    elif split == "dev":
        rows = order[held_out : 2 * held_out]
    else:
        rows = order[2 * held_out :]
    return [pairs[row] for row in sorted(rows)]


def _present(pairs: list[Pair]) -> list[Pair]:
    """Leave out images that are listed but not there, with a warning that counts them."""
    # To list a folder once is much faster than to ask for each of its files.
    names_in = {}
    for folder in {path.parent for path, _ in pairs}:
        names_in[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
    found = [(path, texts) for path, texts in pairs if path.name in names_in[path.parent]]

    if not found:
        first = f", the first not as {pairs[0][0]}" if pairs else ""
        raise DataError(f"None of {len(pairs):,} listed images is there{first}. {GET_COCO}")
    missing = len(pairs) - len(found)
    if missing:
        # The warning names the line that called load_dataset, four calls up from here.
        warnings.warn(
            f"{missing:,} of {len(pairs):,} listed images are not there and left out.",
            stacklevel=5,
        )
    return found
