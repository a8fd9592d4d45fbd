"""Zero-shot classification: class names in, probabilities out, no label ever trained on (CLIP, section 3.1).

classifier = ZeroShotClassifier(model, ["cat", "dog", "bicycle"])
classifier.predict(["street.jpg"], k=2)  # [[("bicycle", 0.81), ("dog", 0.12)]]
"""

import re
from collections.abc import Sequence
from importlib.resources import files

import torch
import torch.nn.functional as F
from torch import Tensor

from .encoders import ImageLike
from .model import MiniCLIP

# Our own, worded like the captions that the model was trained on: photos by people, scenes by a grammar.
PHOTO_TEMPLATES = (
    "a photo of a {}.",
    "a blurry photo of a {}.",
    "a small picture of a {}.",
    "a close up of a {}.",
    "A {} is in the picture.",
    "There is a {}.",
    "A {} outside.",
)
SCENE_TEMPLATES = (
    "A picture of a {}.",
    "A {} on a beach.",
    "A {} in the snow.",
    "A {} in a meadow.",
    "A {} on a street.",
    "A {} under a night sky.",
    "A {} in a room.",
)


class ZeroShotClassifier:
    """Classes as vectors: the mean over prompt templates of each class's text embeddings.

    Attributes:
        class_names: the C labels.
        weights: (C, dim) float32, unit length.
        offset: (C,) what every cosine is lowered by, 0 without calibration.

    """

    def __init__(
        self,
        model: MiniCLIP,
        class_names: Sequence[str],
        templates: Sequence[str] = PHOTO_TEMPLATES,
    ):
        self.model, self.class_names, self.templates = (
            model,
            _checked_names(class_names),
            _checked(templates),
        )
        prompts = [fill(template, name) for name in self.class_names for template in self.templates]
        vectors = model.encode_text(prompts).view(
            len(self.class_names), len(self.templates), -1
        )  # (C, P, E)
        self.weights = F.normalize(vectors.mean(1), dim=-1)
        self.offset = torch.zeros(len(self.class_names), device=self.weights.device)

    def calibrate(self, images: Sequence[ImageLike] | Tensor) -> "ZeroShotClassifier":
        """Lower each class by its mean cosine with these images, which need no labels.

        Some classes lie close to every image (hubs; Dinu et al. 2015, "Improving Zero-Shot Learning by Mitigating
        the Hubness Problem"): what counts is how much closer an image is than images are on average.
        """
        self.offset = (self._embed(images) @ self.weights.T).mean(0)
        return self

    def scores(self, images: Sequence[ImageLike] | ImageLike | Tensor) -> Tensor:
        """n images, or their unit vectors (n, dim) -> cosines with each class, less the offset: (n, C) float32."""
        return self._embed(images) @ self.weights.T - self.offset

    def probabilities(self, images: Sequence[ImageLike] | ImageLike | Tensor) -> Tensor:
        """n images, or their unit vectors (n, dim) -> (n, C), rows sum to 1: softmax at the model's logit scale."""
        with torch.inference_mode():
            return (self.model.scale() * self.scores(images)).softmax(-1)

    def predict(
        self, images: Sequence[ImageLike] | ImageLike | Tensor, k: int = 5
    ) -> list[list[tuple[str, float]]]:
        """For each image its k most probable labels, or all, best first: ``[[(label, probability), ...], ...]``."""
        top = self.probabilities(images).topk(min(k, len(self.class_names)))
        return [
            [(self.class_names[c], p) for c, p in zip(classes, values, strict=True)]
            for classes, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]

    def _embed(self, images) -> Tensor:
        if isinstance(images, Tensor) and images.ndim == 2:
            return images.to(self.weights.device)
        return self.model.encode_image(images)


def fill(template: str, name: str) -> str:
    """Put a class name into a template, with the right article: ``fill("A {}.", "owl")`` is ``"An owl."``."""
    article = r"\1n {}" if name[:1].lower() in "aeiou" else r"\1 {}"
    return re.sub(r"\b([Aa]) \{\}", article, template).replace("{}", name)


def class_phrase(class_name: str) -> str:
    """Say what a class is called in captions: ``"car_side"`` is ``"car"``, ``"Stop_Sign"`` is ``"stop sign"``."""
    lines = (
        (files("minicliplib") / "assets/class_words.txt").read_text(encoding="utf-8").splitlines()
    )
    called = dict(line.split(": ") for line in lines if line[0] != "#")
    return called.get(class_name, class_name.replace("_", " ").lower())


def _checked_names(names: Sequence[str]) -> list[str]:
    names = [name.strip() for name in ([names] if isinstance(names, str) else names)]
    if not names or not all(names):
        raise ValueError("A class has no name: give one or more labels, none of them empty.")
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"The label {min(twice)!r} stands twice: give each class once.")
    return names


def _checked(templates: Sequence[str]) -> tuple[str, ...]:
    templates = (templates,) if isinstance(templates, str) else tuple(templates)
    if not templates or not all("{}" in template for template in templates):
        raise ValueError(
            "Each prompt template needs {} where the class name goes, as in 'a photo of a {}.'."
        )
    return templates
