"""Image files: which ones a folder holds, what they show, and what tells one from another."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

EXTENSIONS = {".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"}

# Pillow's names of these kinds. On any other kind it does not even try its rarer decoders.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")

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
        with Image.open(source, formats=FORMATS) as image:
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


def image_files(folder: str | Path) -> list[Path]:
    """Return all image files in a folder and its subfolders, sorted; hidden ones are left out.

    Raises:
        DataError: there is no such folder, or no image in it.

    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}: name the folder that holds your images.")

    found = []
    for path in folder.rglob("*"):
        is_image = path.suffix.lower() in EXTENSIONS and path.is_file()
        if is_image and not _is_hidden(path.relative_to(folder)):
            found.append(path)

    if not found:
        known = " ".join(sorted(EXTENSIONS))
        raise DataError(f"There is no image in {folder}. Known kinds: {known}.")
    return sorted(found)


def _is_hidden(path: Path) -> bool:
    """Return whether a file, or a folder that it lies in, has a name that begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


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
