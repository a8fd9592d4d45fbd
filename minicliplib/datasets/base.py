"""Captioned images: what every loader of this package returns."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from ..paths import short_hash
from .images import DataError, identity, readable


@dataclass(frozen=True)
class CaptionedImages:
    """Images, each with any number of captions: ``captions[i]`` describe ``images[i]``."""

    name: str
    split: str
    images: Sequence[Path | Image.Image]  # files, or images already in memory
    captions: list[list[str]]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.captions):
            raise DataError(
                f"{self.name!r} has {len(self.images)} images, but captions for "
                f"{len(self.captions)}: give each image a list of captions."
            )
        for image in self.images:
            if isinstance(image, str):
                raise DataError(f"Give the image {image!r} as a Path: a string may be a caption.")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def flat_captions(self) -> list[str]:
        """All captions in one list, image by image."""
        return list(chain.from_iterable(self.captions))

    @property
    def image_of_caption(self) -> np.ndarray:
        """For each of the M flat captions the position of its image: (M,) int64."""
        positions = []
        for position, texts in enumerate(self.captions):
            positions.extend([position] * len(texts))
        return np.array(positions, dtype=np.int64)

    def subset(self, indices: Sequence[int]) -> "CaptionedImages":
        """Return the images at ``indices``, in that order, with their captions."""
        images = [self.images[i] for i in indices]
        captions = [self.captions[i] for i in indices]
        return CaptionedImages(self.name, self.split, images, captions)

    def fingerprint(self) -> str:
        """Return 12 hex digits that tell these data from others.

        They are a hash of the name, the split, every caption and every image's ``identity``: the
        name, size and time of a file, the pixels of an image in memory. The folder that the files
        lie in does not matter.
        """
        # As JSON, so that it is clear where a caption ends and which image it belongs to.
        rows = []
        for image, texts in zip(self.images, self.captions, strict=True):
            rows.append([identity(image), texts])
        return short_hash(json.dumps([self.name, self.split, rows]))


@dataclass(frozen=True)
class Splits:
    """The data of a run: what it learns from, and what chooses its best epoch."""

    train: CaptionedImages
    dev: CaptionedImages

    @cached_property
    def fingerprint(self) -> str:
        """Eight hex digits that tell these data from others, as they were when first asked."""
        return short_hash(self.train.fingerprint(), self.dev.fingerprint(), digits=8)


def without_unreadable(data: CaptionedImages) -> CaptionedImages:
    """Leave out the images that cannot be read, with a warning that names and counts them.

    Raises:
        DataError: not one image can be read.

    """
    if len(data) == 0:
        raise DataError(f"{data.name!r} holds no images.")
    good, faults = readable(data.images)
    if not good:
        raise DataError(
            f"None of the {len(data)} images of {data.name!r} can be read. The first: {faults[0]}"
        )
    if faults:
        summary = f"Left out {len(faults)} of {len(data)} images of {data.name!r}:"
        # The warning names the line that called the caller of this function.
        warnings.warn("\n  ".join([summary, *faults]), stacklevel=3)
    return data.subset(good)
