"""Image files: which ones a folder holds, what they show, and what tells one from another."""

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

EXTENSIONS = {".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"}

HEIC_EXTENSIONS = {".heic", ".heif"}  # as iPhones take photos; the extra "photos" reads them

# Pillow's names of these kinds. On any other kind it does not even try its rarer decoders.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")

# Folders that hold copies made by systems and programs, and what was thrown away.
SYSTEM_FOLDERS = {
    *("@eadir", "#recycle", "$recycle.bin", "system volume information"),
    *("__macosx", "lost+found", "node_modules", "__pycache__"),
}

# EXIF tells in this tag how the camera was held, and these steps turn the image upright again.
# ImageOps.exif_transpose rewrites all other tags too, and fails on odd ones.
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DataError(ValueError):
    """A dataset, caption file or image is missing or damaged.

    The message names it and says what to do.
    """


# ---- reading one image ---------------------------------------------------------------------------


def load_image(source: str | Path | Image.Image, hint: int | None = None) -> Image.Image:
    """Return an image in RGB, upright, on white where it was transparent.

    Args:
        source: a file, or an image in memory, which stays as it is.
        hint: the shorter side that you need, in pixels. A large JPEG is then decoded at a fraction
            of its size, which is several times faster; its shorter side stays at least this long.

    Raises:
        DataError: the image cannot be read.

    """
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(source)
        with Image.open(source, formats=_formats()) as image:
            if hint:
                image.draft("RGB", (hint, hint))
            return _to_rgb(image)
    # Pillow's decoders raise a dozen kinds of errors, from OSError to struct.error.
    except Exception as error:
        message = f"Cannot read the image {source} ({error}): replace it or leave it out."
        raise DataError(message) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return a copy in RGB, upright, on white."""
    # A TIFF is turned upright by loading it, and has no orientation afterwards.
    image.load()
    turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))  # 1 is upright
    if turn is not None:
        image = image.transpose(turn)

    # The modes "I", "I;16" and "F" have 16 or 32 bits a pixel.
    if image.mode[0] in "IF":
        image = _to_eight_bits(image)

    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale deep pixels to 0..255, where Pillow would clip them at 255."""
    values = np.nan_to_num(np.asarray(image, np.float32))
    brightest = max(values.max(), 1e-9)
    if image.mode.startswith("I;16"):
        brightest = 65535
    scaled = values * (255 / brightest)
    return Image.fromarray(scaled.clip(0, 255).astype(np.uint8))


# ---- many images ---------------------------------------------------------------------------------


def image_files(folder: str | Path, exclude: Sequence[str] = ()) -> list[Path]:
    """Return all image files in a folder and its subfolders, sorted.

    Hidden files and folders are left out, and so are folders of the system.

    Args:
        folder: the folder.
        exclude: patterns as a shell has them, such as ``"*.png"`` or ``"2019"``. What matches one
            is left out: a file or folder by its name, or by its path from ``folder`` on.

    Raises:
        DataError: there is no such folder, or no image in it.

    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}: name the folder that holds your images.")

    found = []
    unread = 0
    for path in _wanted_files(folder, exclude):
        extension = path.suffix.lower()
        if extension in extensions():
            found.append(path)
        elif extension in HEIC_EXTENSIONS:
            unread += 1

    if unread:
        warnings.warn(
            f"{unread:,} HEIC images are left out: pip install 'minicliplib[photos]' to read them.",
            stacklevel=2,
        )
    if not found:
        known = " ".join(sorted(extensions()))
        besides = " that is not excluded" if exclude else ""
        raise DataError(f"There is no image in {folder}{besides}. Known kinds: {known}.")
    return sorted(found)


def _wanted_files(folder: Path, exclude: Sequence[str]) -> Iterator[Path]:
    """Walk through a folder, but not into what is hidden, of the system, or excluded."""
    for place, folders, files in os.walk(folder):
        inside = Path(place).relative_to(folder)
        # The walk goes on into what is left in this list.
        folders[:] = [name for name in folders if _is_wanted(inside / name, exclude)]
        for name in files:
            if _is_wanted(inside / name, exclude):
                yield folder / inside / name


def _is_wanted(path: Path, exclude: Sequence[str]) -> bool:
    """Return whether to look at a file or folder, by its path from the searched folder on."""
    if path.name.startswith(".") or path.name.lower() in SYSTEM_FOLDERS:
        return False
    names = (path.name, path.as_posix())
    return not any(fnmatch(name, pattern.rstrip("/")) for pattern in exclude for name in names)


def extensions() -> set[str]:
    """Return the endings of the files that can be read here: those of HEIC need the extra."""
    return EXTENSIONS | HEIC_EXTENSIONS if _reads_heic() else EXTENSIONS


def _formats() -> tuple[str, ...]:
    return (*FORMATS, "HEIF") if _reads_heic() else FORMATS


@cache
def _reads_heic() -> bool:
    """Let Pillow read HEIC, if pillow-heif is installed, and return whether it can."""
    try:
        from pillow_heif import register_heif_opener
    except ModuleNotFoundError:
        return False
    register_heif_opener()
    return True


def readable(images: Sequence[Path | Image.Image]) -> tuple[list[int], list[str]]:
    """Decode images in threads, and find out which can be read.

    Returns:
        The positions of those that can be read, and a sentence on each of the others.

    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = list(pool.map(_fault, images))

    good = []
    sentences = []
    for position, fault in enumerate(faults):
        if fault is None:
            good.append(position)
        else:
            sentences.append(fault)
    return good, sentences


def _fault(image: Path | Image.Image) -> str | None:
    """Return why an image cannot be read, or None if it can."""
    # With this hint the whole file is read, but decoded as small as can be.
    try:
        load_image(image, hint=1)
    except DataError as error:
        return str(error)
    return None


def identity(item: str | Path | Image.Image) -> str:
    """Return what tells an image or a caption from another one, and from itself before a change.

    A file goes by its name, size and time, wherever it lies; an image in memory by a hash of its
    mode, size, palette and pixels; a caption is its own identity.
    """
    if isinstance(item, str):
        return item
    if isinstance(item, Path):
        status = item.stat()
        return f"{item.name} {status.st_size} {status.st_mtime_ns}"

    content = hashlib.sha256(f"{item.mode} {item.width}x{item.height}\n".encode())
    content.update(bytes(item.getpalette() or []))
    content.update(item.tobytes())
    return content.hexdigest()
