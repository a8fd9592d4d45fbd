"""Datasets from the web: zips taken from a mirror or a folder, verified, and safely unpacked."""

import os
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from ..paths import data_root, show_bars
from .images import DataError
from .labelled import LABELLED, fetch_with_torchvision, load_labelled
from .load import DATASETS, load_dataset

# The zips of each dataset. The last two hold class folders; torchvision has another form of them.
# COCO's zips/train2017.zip has 18 GB: who wants it gets it by hand.
ARCHIVES = {
    "flickr8k": ("Flickr8k_Dataset.zip", "Flickr8k_text.zip"),
    "coco": ("zips/val2017.zip", "annotations/annotations_trainval2017.zip"),
    "cifar10": ("cifar10_test.zip",),
    "caltech101": ("caltech101_subset.zip",),
}

# A zip with a part of the dataset, annotations included. It is taken instead where it lies.
PARTS = {"coco": "coco_val2017_subset.zip"}

# The public mirrors. What has none here comes from torchvision's.
MIRRORS = {
    "flickr8k": "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k/",
    "coco": "http://images.cocodataset.org/",
}


# ---- the whole download --------------------------------------------------------------------------


def download(
    name: str,
    root: str | Path | None = None,
    mirrors: str | Path | Sequence[str | Path] | None = None,
    progress: bool = True,
) -> Path:
    """Fetch, unpack and check a dataset unless ``root`` holds it already; return ``root``.

    Args:
        name: one of ``ARCHIVES``.
        root: where it shall lie; by default the folder of its name in the data folder. Zips that
            you put there by hand are used first.
        mirrors: the places that have the dataset's zips, tried in this order: URLs, file URLs or
            folders. By default ``$MINICLIP_MIRROR``, then the public mirror.
        progress: whether to show progress bars.

    Raises:
        DataError: no place has a zip that is whole, or what lies in ``root`` is not whole.

    """
    if name not in ARCHIVES:
        raise DataError(f"There is no download for {name!r}. Known: {', '.join(ARCHIVES)}.")
    root = Path(root).expanduser() if root else data_root() / name
    if _fault(name, root) is None:
        return root

    # Without a mirror and without a zip, torchvision is what is left.
    places = [root, *_mirrors(name, mirrors)]
    root.mkdir(parents=True, exist_ok=True)
    has_mirror = len(places) > 1
    has_zip = any((root / Path(archive).name).exists() for archive in ARCHIVES[name])
    if not has_mirror and not has_zip:
        _fetch_or_explain(name, root)
        return root

    for archive in _wanted_archives(name, places):
        target = root / Path(archive).stem
        if not target.exists():
            _from_any(places, archive, target, progress)

    fault = _fault(name, root)
    if fault:
        raise DataError(f"What lies in {root} is not whole: delete it and download again. {fault}")
    return root


def _fault(name: str, root: Path) -> DataError | None:
    """Return what keeps any split from loading, or None if all is well."""
    try:
        if name in LABELLED:
            load_labelled(name, root)
        else:
            for split in DATASETS[name].splits:
                load_dataset(name, split, root)
    except DataError as error:
        return error
    return None


def _mirrors(name: str, mirrors: str | Path | Sequence[str | Path] | None) -> list[str | Path]:
    """Return the mirrors to try: those given, or the environment's and the public one."""
    if isinstance(mirrors, str | Path):
        return [mirrors]
    if mirrors:
        return list(mirrors)
    defaults = [os.environ.get("MINICLIP_MIRROR"), MIRRORS.get(name)]
    return [mirror for mirror in defaults if mirror]


def _wanted_archives(name: str, places: Sequence[str | Path]) -> Sequence[str]:
    """Return the zips to get: the one with a part of the dataset where a folder has it, or all."""
    part = PARTS.get(name)
    if part and any((_as_folder(place) / part).exists() for place in places):
        return [part]
    return ARCHIVES[name]


def _as_folder(place: str | Path) -> Path:
    """Return the folder that a path or a file URL means."""
    return Path(str(place).removeprefix("file://")).expanduser()


def _fetch_or_explain(name: str, root: Path) -> None:
    """Let torchvision fetch a dataset; if it fails, say why, and what to do by hand."""
    try:
        fetch_with_torchvision(name, root)
    except (OSError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        zips = " and ".join(ARCHIVES[name])
        raise DataError(
            f"torchvision could not fetch {name} ({reason}). "
            f"By hand: put {zips}, or a folder of images per class, into {root}."
        ) from error


# ---- one zip -------------------------------------------------------------------------------------


def _from_any(places: Sequence[str | Path], archive: str, target: Path, progress: bool) -> None:
    """Unpack a zip from the first place that has it whole; if none has, tell each one's reason."""
    reasons = []
    for place in places:
        try:
            _from_one(str(place), archive, target, progress)
            return
        # What requests raises is an OSError, too.
        except (DataError, OSError) as error:
            reasons.append(f"\n  {place}: {error}")
    raise DataError(
        f"No mirror gave {archive}:{''.join(reasons)}\n"
        f"By hand: get the zip, put it into {target.parent} and run the download again; "
        "or give as a mirror any folder or URL that has it."
    )


def _from_one(place: str, archive: str, target: Path, progress: bool) -> None:
    """Unpack a zip from one place as the new folder ``target``."""
    file_name = Path(archive).name
    if not place.startswith(("http://", "https://")):
        unpack(_as_folder(place) / file_name, target, progress)
        return

    path = target.with_name(file_name)
    fetch(f"{place.rstrip('/')}/{archive}", path, progress)
    # A damaged zip goes as well, so that the next attempt does not begin with it.
    try:
        unpack(path, target, progress)
    finally:
        path.unlink()


def fetch(url: str, target: Path, progress: bool = True) -> None:
    """Download ``url`` to ``target``; a download that was cut off goes on from ``target.part``.

    Raises:
        DataError: the download was cut off.
        OSError: the server cannot be reached or refuses (requests' errors are of this class).

    """
    import requests

    # Ask for what is missing of the file, as it is on the server.
    part = target.with_name(target.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"

    with requests.get(url, headers=headers, stream=True, timeout=30) as response:
        # The part is as long as the whole, or longer: we cannot trust it, so we begin again.
        if have and response.status_code == 416:
            part.unlink()
            fetch(url, target, progress)
            return
        response.raise_for_status()

        # A server that cannot resume sends everything, with another status than 206.
        if response.status_code != 206:
            have = 0
        total = have + int(response.headers.get("Content-Length", 0))
        bar = tqdm(
            desc=target.name,
            total=total or None,
            initial=have,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            miniters=1,
            disable=not show_bars(progress),
        )
        with bar, part.open("ab" if have else "wb") as file:
            for block in response.iter_content(1 << 16):
                bar.update(file.write(block))

    # Older versions of urllib3 do not notice that the connection broke.
    if part.stat().st_size < total:
        raise DataError(f"{url} was cut off: run the download again, it goes on from there.")
    part.replace(target)


def unpack(archive: Path, target: Path, progress: bool = True) -> None:
    """Unpack a zip as the new folder ``target``, whole or not at all.

    If all lies in one folder inside the zip, ``target`` is that folder. The last step is one
    rename, so that a run killed half way never leaves what looks like the whole.

    Raises:
        DataError: the zip is damaged.

    """
    # Remove what a run that was killed has left.
    temporary = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        # This verifies checksums, and never writes outside the folder.
        with zipfile.ZipFile(archive) as zipped:
            names = [name for name in zipped.namelist() if not name.startswith("__MACOSX/")]
            for name in tqdm(names, desc=f"unpack {archive.name}", disable=not show_bars(progress)):
                zipped.extract(name, temporary)

        inside = list(temporary.iterdir())
        has_one_folder = len(inside) == 1 and inside[0].is_dir()
        whole = inside[0] if has_one_folder else temporary
        whole.rename(target)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{archive} is damaged or not a zip ({error}): get it again.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
