"""Images with classes, for zero-shot classification."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..paths import ASSETS, data_root
from .images import EXTENSIONS, DataError
from .scenes import SIZES, UNSEEN, make_scene

# The known datasets, and what torchvision calls each of them.
LABELLED = {"cifar10": "CIFAR10", "caltech101": "Caltech101"}
NO_CLASS = "BACKGROUND_Google"  # a folder of Caltech-101 with images of anything
BATCHES = "cifar-10-batches-py"  # the folder in which torchvision leaves CIFAR-10


@dataclass(frozen=True)
class LabelledImages:
    """Images that show one class each: ``images[i]`` shows ``classes[labels[i]]``."""

    name: str
    images: Sequence[Path | Image.Image]
    labels: np.ndarray  # (N,) int64
    classes: list[str]  # as the dataset spells them

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Sequence[int]) -> "LabelledImages":
        """Return the images at ``indices``, in that order, with all classes."""
        images = [self.images[i] for i in indices]
        return LabelledImages(self.name, images, self.labels[indices], self.classes)

    def first_of_each_class(self, count: int) -> np.ndarray:
        """Return a mask (N,) of the first ``count`` images of each class: a part to choose on."""
        chosen = np.zeros(len(self), dtype=bool)
        for label in range(len(self.classes)):
            chosen[np.flatnonzero(self.labels == label)[:count]] = True
        return chosen


def load_labelled(name: str | Path, root: str | Path | None = None) -> LabelledImages:
    """Load images with classes.

    Args:
        name: ``"sample"`` (the things in scenes that are never trained on), ``"cifar10"`` (its
            test images), ``"caltech101"``, or a folder of your own that holds a folder of images
            for each class.
        root: where CIFAR-10 or Caltech-101 lies, as torchvision leaves it or as class folders; by
            default the folder of its name in the data folder.

    Raises:
        DataError: no folder there holds class folders.

    """
    if name == "sample":
        return _load_unseen_scenes()

    default = data_root() / name if name in LABELLED else name
    folder = Path(root or default).expanduser()
    if (folder / BATCHES).is_dir():
        return _load_batches(name, folder)
    return _load_class_folders(name, folder)


def fetch_with_torchvision(name: str, root: Path) -> None:
    """Let torchvision download one of the ``LABELLED`` datasets into ``root``."""
    from torchvision import datasets

    dataset = getattr(datasets, LABELLED[name])
    dataset(root, download=True)


def _load_unseen_scenes() -> LabelledImages:
    """Draw the scenes of the split ``"unseen"``, each of which shows one thing."""
    classes = sorted(UNSEEN)
    images = []
    labels = []
    for index in range(SIZES["unseen"]):
        scene = make_scene("unseen", index)
        images.append(scene.render())
        labels.append(classes.index(scene.groups[0].name))
    return LabelledImages("sample", images, np.array(labels, dtype=np.int64), classes)


def _load_batches(name: str | Path, folder: Path) -> LabelledImages:
    """Load CIFAR-10's test images from torchvision's files, into memory."""
    from torchvision.datasets import CIFAR10

    found = CIFAR10(folder, train=False)
    images = [Image.fromarray(pixels) for pixels in found.data]
    labels = np.array(found.targets, dtype=np.int64)
    return LabelledImages(Path(name).name, images, labels, found.classes)


def _load_class_folders(name: str | Path, root: Path) -> LabelledImages:
    """Load the files of the first folder that holds class folders."""
    images_by_class = _find_classes(root)
    if not images_by_class:
        hint = f" Get it with: miniclip download {name}" if name in LABELLED else ""
        raise DataError(
            f"{root} holds no labelled images: it needs a folder of images for each class.{hint}"
        )

    images = []
    labels = []
    for label, paths in enumerate(images_by_class.values()):
        images.extend(paths)
        labels.extend([label] * len(paths))
    classes = list(images_by_class)
    return LabelledImages(Path(name).name, images, np.array(labels, dtype=np.int64), classes)


def _find_classes(root: Path) -> dict[str, list[Path]]:
    """Return the classes in ``root``, or else in the first folder up to two deeper that has any."""
    for folder in (root, *sorted(root.glob("*/")), *sorted(root.glob("*/*/"))):
        images_by_class = _images_by_class(folder)
        if len(images_by_class) > 1:
            return images_by_class
    return {}


def _images_by_class(folder: Path) -> dict[str, list[Path]]:
    """Return the sorted image files of each folder inside that holds any, by its name."""
    images_by_class = {}
    for place in sorted(folder.glob("[!._]*/")):
        images = []
        for path in sorted(place.iterdir()):
            if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."):
                images.append(path)
        if images and place.name != NO_CLASS:
            images_by_class[place.name] = images
    return images_by_class


def class_phrase(class_name: str) -> str:
    """Return what captions call a class: "car" for "car_side", "stop sign" for "Stop_Sign"."""
    return _class_words().get(class_name, class_name.replace("_", " ").lower())


@cache
def _class_words() -> dict[str, str]:
    """Return the class names that are no plain words, and what captions call them."""
    words = {}
    for line in (ASSETS / "class_words.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            class_name, phrase = line.split(": ")
            words[class_name] = phrase
    return words
