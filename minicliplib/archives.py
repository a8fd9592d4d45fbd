"""Datasets from the web: zips taken from a mirror or a folder, verified, and safely unpacked."""

import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from urllib.parse import urlsplit
from urllib.request import url2pathname

import requests
from tqdm.auto import tqdm

from .config import data_root, no_bar
from .data import DATASETS, DataError, load_dataset

ARCHIVES = {"flickr8k": ("Flickr8k_Dataset.zip", "Flickr8k_text.zip")}
MIRRORS = {"flickr8k": "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k/"}


def download(
    name: str,
    root: str | Path | None = None,
    mirrors: Sequence[str | Path] | None = None,
    progress: bool = True,
) -> Path:
    """Fetch, unpack and check a dataset unless ``root`` holds it already; return ``root``.

    A mirror is a URL, a file URL or a folder that holds the dataset's zips. Zips put into ``root`` by hand
    come first, then ``mirrors``; if none are given, ``$MINICLIP_MIRROR`` and the public one.
    """
    if name not in ARCHIVES:
        raise DataError(f"There is no download for {name!r}. Known: {', '.join(ARCHIVES)}.")
    root = Path(root).expanduser() if root else data_root() / name
    if _fault(name, root) is None:
        return root
    if isinstance(mirrors, str | Path):
        mirrors = [mirrors]
    mirrors = mirrors or [m for m in (os.environ.get("MINICLIP_MIRROR"), MIRRORS[name]) if m]
    root.mkdir(parents=True, exist_ok=True)
    for archive in ARCHIVES[name]:
        target = root / Path(archive).stem
        if not target.exists():
            _from_any(mirrors, archive, target, progress)
    if fault := _fault(name, root):
        raise DataError(f"What lies in {root} is not whole: delete it and download again. {fault}")
    return root


def _fault(name: str, root: Path) -> DataError | None:
    """Return what keeps any split from loading, or None if all is well."""
    try:
        for split in DATASETS[name].splits:
            load_dataset(name, split, root)
    except DataError as error:
        return error
    return None


def _from_any(mirrors: Sequence[str | Path], archive: str, target: Path, progress: bool) -> None:
    root, reasons = target.parent, []
    for mirror in [root, *mirrors] if (root / archive).exists() else mirrors:
        try:
            return _from_mirror(str(mirror), archive, target, progress)
        except (DataError, OSError) as error:  # what requests raises is an OSError, too
            reasons.append(f"\n  {mirror}: {error}")
    raise DataError(
        f"No mirror gave {archive}:{''.join(reasons)}\nBy hand: get the zip, put it into {root} and run the "
        "download again; or give as a mirror any folder or URL that has it."
    )


def _from_mirror(mirror: str, archive: str, target: Path, progress: bool) -> None:
    if mirror.startswith(("http://", "https://")):
        path = target.with_name(archive)
        fetch(f"{mirror.rstrip('/')}/{archive}", path, progress)
        try:
            unpack(path, target, progress)
        except DataError:
            path.unlink()  # damaged: the next attempt must not begin with it
            raise
        path.unlink()
    else:
        folder = url2pathname(urlsplit(mirror).path) if mirror.startswith("file:") else mirror
        unpack(Path(folder).expanduser() / archive, target, progress)


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
        bar = tqdm(
            desc=target.name,
            initial=have,
            total=total or None,
            unit="B",
            unit_scale=True,
            disable=no_bar(progress),
        )
        with bar, part.open("ab" if have else "wb") as file:
            for block in response.iter_content(1 << 16):
                file.write(block)
                bar.update(len(block))
    if part.stat().st_size < total:  # older versions of urllib3 do not notice
        raise DataError(f"{url} was cut off; a second attempt goes on from there")
    part.replace(target)


def unpack(archive: Path, target: Path, progress: bool = True) -> None:
    """Unpack a zip as the new folder ``target``, whole or not at all; a single top folder is dropped.

    All names are checked before anything is written, and each checksum as its file is read. The last step is
    one rename, so that a run killed half way never leaves what looks like the whole.
    """
    temporary = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a run that was killed
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = [member for member in zipped.infolist() if not _is_junk(member.filename)]
            for member in members:
                _refuse_unsafe(member, archive)
            temporary.mkdir()
            for member in tqdm(members, desc=f"unpack {archive.name}", disable=no_bar(progress)):
                zipped.extract(member, temporary)
        top = list(temporary.iterdir())
        (top[0] if len(top) == 1 and top[0].is_dir() else temporary).rename(target)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{archive} is damaged or not a zip ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_junk(name: str) -> bool:
    """Tell what a Mac adds to a zip."""
    return name.startswith("__MACOSX/") or Path(name).name.startswith("._") or name.endswith(".DS_Store")


def _refuse_unsafe(member: zipfile.ZipInfo, archive: Path) -> None:
    path = PureWindowsPath(member.filename)  # knows both kinds of slash, and drives
    if path.anchor or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16):
        raise DataError(f"{archive} holds {member.filename!r}, which could write outside the folder: refused")
