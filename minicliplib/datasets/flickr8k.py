"""Flickr8k: 8,000 photos with five captions each, and human judgements of captions.

Hodosh, Young and Hockenmaier 2013. Two layouts are known: the authors' own, and Kaggle's.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..paths import ASSETS, data_root
from .base import CaptionedImages
from .captions import CaptionRow, checked_caption, csv_rows, find_below, read_text
from .images import DataError

if TYPE_CHECKING:
    import pandas as pd

GET_FLICKR8K = "Get a whole copy with: miniclip download flickr8k"
PHOTO_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images")  # the first is the authors'
TOKEN_FILE = "Flickr8k.token.txt"  # the authors' captions
CSV_FILE = "captions.txt"  # Kaggle's
CAPTIONS_EACH = 5


def load_flickr8k(root: Path, split: str, limit: int | None) -> CaptionedImages:
    """Return the photos of an official split, in the order of its list, with their captions.

    Raises:
        DataError: something is missing or damaged, in the whole split, whatever the limit.

    """
    photos = _find(root, *PHOTO_FOLDERS)
    captions_file = _find(root, TOKEN_FILE, CSV_FILE)
    is_original = captions_file.name == TOKEN_FILE
    rows = _token_rows(captions_file) if is_original else csv_rows(captions_file)
    captions = _by_photo(rows)

    # Check the whole split, so that a damaged copy is noticed at once.
    names = _split_list(root, split)
    present = set(os.listdir(photos))
    for name in names:
        if name not in present:
            raise DataError(f"The {split} photo {name} is missing from {photos}. {GET_FLICKR8K}")
        count = len(captions[name])
        if count != CAPTIONS_EACH:
            raise DataError(
                f"{captions_file} has {count} captions for {name}, not {CAPTIONS_EACH}. "
                f"{GET_FLICKR8K}"
            )

    names = names[:limit]
    images = [photos / name for name in names]
    return CaptionedImages("flickr8k", split, images, [captions[name] for name in names])


def _find(root: Path, *names: str) -> Path:
    """Return the first of these files or folders that is there."""
    for name in names:
        found = find_below(root, name)
        if found:
            return found
    raise DataError(f"Flickr8k is not complete in {root}: no {' or '.join(names)}. {GET_FLICKR8K}")


def _split_list(root: Path, split: str) -> list[str]:
    """Return the names of a split's photos, from the dataset's list or from this package's.

    A list of official photos must be the official list; a list of other photos is taken as it is.
    """
    file = f"Flickr_8k.{split}Images.txt"
    official = read_text(ASSETS / "flickr8k" / file).split()

    # Kaggle's layout has no lists.
    place = find_below(root, file)
    if place is None:
        return official

    names = read_text(place).split()
    shared = set(names) & set(official)
    if shared and sorted(names) != sorted(official):
        raise DataError(
            f"{file} in {root} is not the official list of {len(official)} photos. {GET_FLICKR8K}"
        )
    return names


def _token_rows(path: Path) -> Iterator[CaptionRow]:
    """Yield the captions of the authors' file, whose lines are ``photo.jpg#0<tab>caption``."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        where = f"Row {number} of {path}"
        key, tab, text = line.partition("\t")
        if not tab:
            raise DataError(
                f"{where} is not 'photo.jpg#0<tab>caption': {line[:60]!r}. {GET_FLICKR8K}"
            )
        # One official key ends in ".jpg.1".
        photo = key.partition("#")[0].removesuffix(".1")
        yield CaptionRow(where, photo, checked_caption(text, where))


def _by_photo(rows: Iterable[CaptionRow]) -> defaultdict[str, list[str]]:
    """Return each photo's captions in the order of the rows; of a photo without, an empty list."""
    captions = defaultdict(list)
    for row in rows:
        captions[row.image].append(row.caption)
    return captions


# ---- what people think of captions ---------------------------------------------------------------

JUDGEMENT_FILES = {"expert": "ExpertAnnotations.txt", "crowd": "CrowdFlowerAnnotations.txt"}
JUDGEMENT_COLUMNS = {
    "expert": ["photo", "caption_key", "first", "second", "third"],
    "crowd": ["photo", "caption_key", "share_of_yes", "yes", "no"],
}
RATINGS = {"expert": ["first", "second", "third"], "crowd": ["share_of_yes"]}


def load_judgements(kind: str, root: str | Path | None = None) -> "pd.DataFrame":
    """Load how well people found captions to fit test photos, one rating in each row.

    Both kinds are taken as in the code of Hessel et al. 2021 (CLIPScore).

    Args:
        kind: ``"expert"`` has three ratings from 1 to 4 of each pair, without the pairs of a photo
            and its own caption: 3 x 5,664 rows. ``"crowd"`` has the share of yes votes on each of
            47,830 pairs.
        root: the folder that holds Flickr8k; by default ``flickr8k`` in the data folder.

    Returns:
        A table with the columns ``image`` (a path), ``caption`` and ``rating``.

    Raises:
        DataError: the kind is unknown, or a file is missing.

    """
    import pandas as pd

    if kind not in JUDGEMENT_FILES:
        raise DataError(f"Unknown judgements {kind!r}. Known: {', '.join(JUDGEMENT_FILES)}.")
    root = Path(root).expanduser() if root else data_root() / "flickr8k"
    photos = _find(root, *PHOTO_FOLDERS)
    captions = _by_photo(_token_rows(_find(root, TOKEN_FILE)))

    file = _find(root, JUDGEMENT_FILES[kind])
    table = pd.read_csv(file, sep="\t", header=None, names=JUDGEMENT_COLUMNS[kind])
    if kind == "expert":
        photo_of_caption = table["caption_key"].str.split("#").str[0]
        table = table[table["photo"] != photo_of_caption]

    # Make a row of each rating: first all of the first people, then all of the second.
    rated = table.melt(["photo", "caption_key"], RATINGS[kind], value_name="rating")

    # A key such as "photo.jpg#2" stands for one caption of that photo.
    texts = []
    for key in rated["caption_key"]:
        photo, number = key.split("#")
        texts.append(captions[photo][int(number)])
    images = [photos / photo for photo in rated["photo"]]
    return pd.DataFrame({"image": images, "caption": texts, "rating": rated["rating"]})
