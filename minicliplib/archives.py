"""Datasets from the web: zips taken from a mirror or a folder, verified, and safely unpacked."""

import os
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import requests
from tqdm.auto import tqdm

from .config import data_root, no_bar
from .data import DATASETS, load_dataset
from .images import DataError
from .labelled import LABELLED, load_labelled

ARCHIVES = {
    "flickr8k": ("Flickr8k_Dataset.zip", "Flickr8k_text.zip"),
    "coco": ("zips/val2017.zip", "annotations/annotations_trainval2017.zip"),  # zips/train2017.zip is 18 GB: by hand
    "cifar10": ("cifar10_test.zip",),  # test/<class>/*; without a mirror torchvision fetches the original
    "caltech101": ("caltech101_subset.zip",),  # 101_ObjectCategories/<class>/*; as above
}
PARTS = {"coco": "coco_val2017_subset.zip"}  # taken instead where it lies: annotations/ and val2017/ with some photos
MIRRORS = {
    "flickr8k": "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k/",
    "coco": "http://images.cocodataset.org/",
}


def download(
    name: str, root: str | Path | None = None, mirrors: Sequence[str | Path] | None = None, progress: bool = True
) -> Path:
    """Fetch, unpack and check a dataset unless ``root`` holds it already; return ``root``.

    A mirror is a URL, a file URL or a folder that holds the dataset's zips. Zips put into ``root`` by hand
    come first, then ``mirrors``; if none are given, ``$MINICLIP_MIRROR`` and the public one, which for
    ``cifar10`` and ``caltech101`` is torchvision's.
    """
    if name not in ARCHIVES:
        raise DataError(f"There is no download for {name!r}. Known: {', '.join(ARCHIVES)}.")
    root = Path(root).expanduser() if root else data_root() / name
    if _fault(name, root) is None:
        return root
    mirrors = [mirrors] if isinstance(mirrors, str | Path) else mirrors
    mirrors = mirrors or [m for m in (os.environ.get("MINICLIP_MIRROR"), MIRRORS.get(name)) if m]
    root.mkdir(parents=True, exist_ok=True)
    if not mirrors and not any((root / Path(archive).name).exists() for archive in ARCHIVES[name]):
        return _from_torchvision(name, root)
    folders = [Path(str(place).removeprefix("file://")).expanduser() for place in (root, *mirrors)]
    part = [PARTS[name]] if name in PARTS and any((folder / PARTS[name]).exists() for folder in folders) else None
    for archive in part or ARCHIVES[name]:
        target = root / Path(archive).stem
        if not target.exists():
            _from_any([root, *mirrors], archive, target, progress)
    if fault := _fault(name, root):
        raise DataError(f"What lies in {root} is not whole: delete it and download again. {fault}")
    return root


def _fault(name: str, root: Path) -> DataError | None:
    """Return what keeps any split from loading, or None if all is well."""
    try:
        if name in LABELLED:
            load_labelled(name, root)
        else:
            for split in DATASETS[name][1]:
                load_dataset(name, split, root)
    except DataError as error:
        return error
    return None


def _from_torchvision(name: str, root: Path) -> Path:
    try:
        LABELLED[name](root, download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(
            f"torchvision could not fetch {name} ({reason}). By hand: put {' and '.join(ARCHIVES[name])}, or a folder "
            f"of images per class, into {root}."
        ) from error
    return root


def _from_any(mirrors: Sequence[str | Path], archive: str, target: Path, progress: bool) -> None:
    reasons = []
    for mirror in map(str, mirrors):
        try:
            if not mirror.startswith(("http://", "https://")):
                folder = Path(mirror.removeprefix("file://")).expanduser()
                return unpack(folder / Path(archive).name, target, progress)
            path = target.with_name(Path(archive).name)
            fetch(f"{mirror.rstrip('/')}/{archive}", path, progress)
            try:
                return unpack(path, target, progress)
            finally:
                path.unlink()  # if damaged, the next attempt must not begin with it
        except (DataError, OSError) as error:  # what requests raises is an OSError, too
            reasons.append(f"\n  {mirror}: {error}")
    raise DataError(
        f"No mirror gave {archive}:{''.join(reasons)}\nBy hand: get the zip, put it into {target.parent} and run the "
        "download again; or give as a mirror any folder or URL that has it."
    )


def fetch(url: str, target: Path, progress: bool = True) -> None:
    """Download ``url`` to ``target``; a download that was cut off goes on from ``target.part``."""
    part = target.with_name(target.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=30) as response:
        if have and response.status_code == 416:  # the part is as long as the whole, or longer: not to be trusted
            part.unlink()
            return fetch(url, target, progress)
        response.raise_for_status()
        if response.status_code != 206:  # the server cannot resume and sends everything
            have = 0
        total = have + int(response.headers.get("Content-Length", 0))
        bar = {"desc": target.name, "initial": have, "disable": no_bar(progress)}
        with part.open("ab" if have else "wb") as file, tqdm.wrapattr(file, "write", total or None, **bar) as counted:
            for block in response.iter_content(1 << 16):
                counted.write(block)
    if part.stat().st_size < total:  # older versions of urllib3 do not notice
        raise DataError(f"{url} was cut off; a second attempt goes on from there")
    part.replace(target)


def unpack(archive: Path, target: Path, progress: bool = True) -> None:
    """Unpack a zip as the new folder ``target``, whole or not at all; a single top folder is dropped.

    The last step is one rename, so that a run killed half way never leaves what looks like the whole.
    """
    temporary = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a run that was killed
    try:
        with zipfile.ZipFile(archive) as zipped:  # which verifies checksums, and never writes outside the folder
            names = [name for name in zipped.namelist() if not name.startswith("__MACOSX/")]
            for name in tqdm(names, desc=f"unpack {archive.name}", disable=no_bar(progress)):
                zipped.extract(name, temporary)
        top = list(temporary.iterdir())
        (top[0] if len(top) == 1 and top[0].is_dir() else temporary).rename(target)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{archive} is damaged or not a zip ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
