"""The user's own folder of images, with a file ``captions.csv`` or without."""

import hashlib
from pathlib import Path

from .base import CaptionedImages
from .captions import csv_rows
from .images import DataError, image_files

CAPTIONS_FILE = "captions.csv"
FEWEST_IMAGES = 6  # with captions, to make three splits of them
SHARE = 0.1  # of the images for test, and as many for dev
AT_LEAST = 2  # images for test, and for dev

# An image and its captions.
Pair = tuple[Path, list[str]]


def load_folder(root: Path, split: str, limit: int | None) -> CaptionedImages:
    """Return all images of a folder and its subfolders, or one of three splits.

    The split ``"all"`` has every image, with captions or without. The splits ``"train"``,
    ``"dev"`` and ``"test"`` share out those that have captions: a tenth each for dev and test.

    Raises:
        DataError: there are no images, ``captions.csv`` is damaged or names an image that is not
            there, or too few images have captions for three splits.

    """
    pairs = _all_pairs(root)
    if split != "all":
        pairs = [(image, texts) for image, texts in pairs if texts]
        if len(pairs) < FEWEST_IMAGES:
            raise DataError(
                f"{len(pairs)} images have captions in {root / CAPTIONS_FILE}: "
                f"three splits need {FEWEST_IMAGES} or more."
            )
        pairs = _pairs_of_split(pairs, split)

    images = [image for image, _ in pairs[:limit]]
    captions = [texts for _, texts in pairs[:limit]]
    return CaptionedImages("folder", split, images, captions)


def _all_pairs(root: Path) -> list[Pair]:
    """Return every image with its captions, sorted by its path."""
    images = image_files(root)
    captions = {image.relative_to(root).as_posix(): [] for image in images}

    table = root / CAPTIONS_FILE
    if table.exists():
        for row in csv_rows(table):
            if row.image not in captions:
                raise DataError(f"{row.where} names an image that is not there: {row.image!r}.")
            captions[row.image].append(row.caption)
    return list(zip(images, captions.values(), strict=True))


def _pairs_of_split(pairs: list[Pair], split: str) -> list[Pair]:
    """Return the pairs of one split, sorted by their paths.

    A hash of its file name decides which split an image belongs to, so that it stays there when
    the folder grows: the lowest tenth is for test, the highest for dev, the rest for train.
    """
    ordered = sorted(pairs, key=_number)
    numbers = [_number(pair) for pair in pairs]
    for_test = max(AT_LEAST, sum(number < SHARE for number in numbers))
    for_dev = max(AT_LEAST, sum(number > 1 - SHARE for number in numbers))

    if split == "test":
        chosen = ordered[:for_test]
    elif split == "dev":
        chosen = ordered[-for_dev:]
    else:
        chosen = ordered[for_test:-for_dev]
    return sorted(chosen)


def _number(pair: Pair) -> float:
    """Return a number between 0 and 1 that follows from the image's file name."""
    image, _ = pair
    digits = hashlib.sha256(image.name.encode()).hexdigest()[:8]
    return int(digits, 16) / 2**32
