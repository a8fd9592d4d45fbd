"""Captions: cleaning them, and finding and reading the files that hold them."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .images import DataError


class CaptionRow(NamedTuple):
    """One caption of a file, with the place where it stands, for messages."""

    where: str  # such as "Row 3 of captions.csv"
    image: str  # the image's file name
    caption: str


# ---- one caption ---------------------------------------------------------------------------------


def clean_caption(text: str) -> str:
    """Undo the marks of a tokeniser and of CSV: ``'A dog " runs " .'`` becomes ``'A dog "runs".'``.

    A clean caption stays as it is.
    """
    # CSV doubles its quotes. Of several spaces one is enough.
    text = " ".join(text.replace('""', '"').split())

    # A quote without a partner says nothing, and neither do two round the whole caption.
    has_stray_quote = text.count('"') % 2 == 1
    is_quoted_whole = re.fullmatch(r'"[^"]*"', text) is not None
    if has_stray_quote or is_quoted_whole:
        text = " ".join(text.replace('"', " ").split())

    # Quotes stand close to what they hold, and single quotes do not stand alone.
    text = re.sub(r'" ?(.*?) ?"', r'"\1"', text)
    text = re.sub(r"(?<!\S)' | '(?!\S)", "", text)

    # No space before a word's ending, before a punctuation mark, or after a bracket opens.
    text = re.sub(r" ('s|n't)\b", r"\1", text)
    text = re.sub(r" ([.,;:!?)]+)(?!\w)", r"\1", text)
    return text.replace("( ", "(")


def checked_caption(text: str | None, where: str) -> str:
    """Return a caption cleaned; raise ``DataError`` with its place if nothing is left of it."""
    cleaned = clean_caption(text or "")
    if not cleaned:
        raise DataError(f"{where} has an empty caption: write one or delete the row.")
    return cleaned


# ---- files of captions ---------------------------------------------------------------------------


def find_below(root: Path, name: str) -> Path | None:
    """Return the file or folder ``name`` in ``root`` or up to two folders deeper, or None.

    People unpack the same dataset in different ways, so we look a little deeper. Hidden folders
    are left out.
    """
    for folders in ("", "[!.]*/", "[!.]*/[!.]*/"):
        for found in sorted(root.glob(folders + name)):
            return found
    return None


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, and raise ``DataError`` if it has another encoding."""
    # Excel begins its UTF-8 files with a mark, which "utf-8-sig" leaves out.
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: save it as 'CSV UTF-8'.") from error


def read_json(path: Path) -> Any:
    """Return what a JSON file holds, and raise ``DataError`` if it is damaged."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not sound JSON ({error}): get it again.") from error


def csv_rows(path: Path) -> Iterator[CaptionRow]:
    """Yield the rows of a CSV file that has at least the columns ``image`` and ``caption``.

    Raises:
        DataError: a column is missing, or a row is damaged; the message names the row.

    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        _check_columns(path, reader.fieldnames or [])
        for row in reader:
            where = f"Row {reader.line_num} of {path}"
            # What stands beyond the last column goes by the name None.
            if None in row:
                raise DataError(
                    f"{where} has too many columns: put quotes round a caption with a comma."
                )
            image = (row["image"] or "").strip()
            yield CaptionRow(where, image, checked_caption(row["caption"], where))
    except csv.Error as error:
        # The fault begins in the row after the last one read. An open quote runs on to the end.
        where = f"Row {reader.line_num + 1} of {path}"
        raise DataError(f"{where} is not sound CSV: {error}.") from error


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    missing = sorted({"image", "caption"} - set(columns))
    if missing:
        names = " or ".join(missing)
        first_row = ", ".join(columns)
        raise DataError(f"{path} has no column {names}. Its first row: {first_row}.")
