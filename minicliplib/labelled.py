"""Images with classes, for zero-shot classification."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10, Caltech101

from .config import data_root
from .images import EXTENSIONS, DataError
from .scenes import SIZES, UNSEEN, make_scene


@dataclass(frozen=True)
class LabelledImages:
    """Images that show one class each: ``images[i]`` shows ``classes[labels[i]]``."""

    name: str
    images: list[Path | Image.Image]
    labels: np.ndarray  # (n,) int64
    classes: list[str]  # as the dataset spells them

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Sequence[int]) -> "LabelledImages":
        """Return the images at ``indices``, in that order, with all classes."""
        return LabelledImages(self.name, [self.images[i] for i in indices], self.labels[indices], self.classes)


LABELLED = {"cifar10": CIFAR10, "caltech101": Caltech101}


def load_labelled(name: str | Path, root: str | Path | None = None) -> LabelledImages:
    """Load ``sample`` (its never-trained things), ``cifar10`` (test), ``caltech101``, or the folder ``name/<class>/*``.

    The two datasets lie in ``root`` (default: the data folder), as torchvision leaves them or as class folders.
    """
    if name == "sample":
        scenes = [make_scene("unseen", index) for index in range(SIZES["unseen"])]
        labels = np.array([sorted(UNSEEN).index(scene.groups[0].name) for scene in scenes])
        return LabelledImages("sample", [scene.render() for scene in scenes], labels, sorted(UNSEEN))
    root = Path(root or (data_root() / name if name in LABELLED else name)).expanduser()
    if (root / "cifar-10-batches-py").is_dir():
        found = CIFAR10(root, train=False)
        return LabelledImages(name, [Image.fromarray(x) for x in found.data], np.array(found.targets), found.classes)
    for folder in (root, *sorted(root.glob("*/")), *sorted(root.glob("*/*/"))):  # test/ or the like round the classes
        inside = {path.name: _images_in(path) for path in sorted(folder.glob("[!._]*/"))}
        classes = [name for name, images in inside.items() if images and name != "BACKGROUND_Google"]
        if len(classes) > 1:
            break
    else:
        hint = f" Get it with: miniclip download {name}" if name in LABELLED else ""
        raise DataError(f"{root} holds no labelled images: it needs a folder of images for each class.{hint}")
    labels = np.repeat(np.arange(len(classes)), [len(inside[name]) for name in classes])
    return LabelledImages(Path(name).name, list(chain.from_iterable(map(inside.get, classes))), labels, classes)


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and path.name[0] != ".")
