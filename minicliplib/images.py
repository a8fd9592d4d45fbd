"""Image files: which there are, what they show, and what tells one from another."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

EXTENSIONS = {".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"}
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")  # Pillow's names: it shall try no rarer decoder on a file


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
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip at 255, not scale
        image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


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
    good, faults = [], []
    for i, image in enumerate(images):
        try:
            load_image(image, hint=1)  # the whole file is read, but decoded small
            good.append(i)
        except DataError as error:
            faults.append(str(error))
    return good, faults
