"""Image files: which there are, what they show, and what tells one from another."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

EXTENSIONS = {".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"}
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")  # Pillow's names: it shall try no rarer decoder on a file
# What turns a picture upright, by EXIF's orientation. ImageOps.exif_transpose rewrites all tags, and fails on odd ones.
UPRIGHT = dict(zip(range(2, 9), (Image.Transpose(i) for i in (0, 3, 1, 5, 4, 6, 2)), strict=True))


class DataError(ValueError):
    """A dataset, caption file or image is missing or damaged; the message names it and says what to do."""


def load_image(source: str | Path | Image.Image, hint: int | None = None) -> Image.Image:
    """Return an image file or a picture in RGB, upright, on white where it was transparent.

    With ``hint`` a large JPEG is decoded at a fraction of its size, several times faster; its shorter side
    stays at least ``hint`` pixels.
    """
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(source)
        with Image.open(source, formats=FORMATS) as image:
            if hint:
                image.draft("RGB", (hint, hint))
            return _to_rgb(image)
    except Exception as error:  # Pillow's decoders raise a dozen kinds, from OSError to struct.error
        raise DataError(f"Cannot read the image {source} ({error}): replace it or leave it out.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()  # which turns a TIFF
    if (turn := UPRIGHT.get(image.getexif().get(0x0112))) is not None:
        image = image.transpose(turn)
    if image.mode[0] in "IF":  # 16 or 32 bits a pixel, which Pillow would clip at 255, not scale
        values = np.nan_to_num(np.asarray(image, np.float32))
        most = 65535 if image.mode.startswith("I;16") else max(values.max(), 1e-9)
        image = Image.fromarray((values * (255 / most)).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")  # a copy in any case


def image_files(folder: str | Path) -> list[Path]:
    """Return all image files in a folder and its subfolders, sorted; hidden ones are left out."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}: name the folder that holds your images.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    shown = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not shown:
        raise DataError(f"There is no image in {folder}. Known kinds: {' '.join(sorted(EXTENSIONS))}.")
    return shown


def identity(item: str | Path | Image.Image) -> str:
    """Return what tells an image or caption from another, and a file from itself before it was changed."""
    if isinstance(item, Path):
        return f"{item.name} {item.stat().st_size} {item.stat().st_mtime_ns}"
    return item if isinstance(item, str) else hashlib.sha256(item.tobytes()).hexdigest()


def readable(images: Sequence[Path | Image.Image]) -> tuple[list[int], list[str]]:
    """Decode images and return which can be read, and a sentence on each of the others."""

    def fault(image: Path | Image.Image) -> str | None:
        try:
            load_image(image, hint=1)  # the whole file is read, but decoded small
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = list(pool.map(fault, images))
    return [i for i, found in enumerate(faults) if not found], [found for found in faults if found]
