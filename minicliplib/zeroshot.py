"""Zero-shot classification: from class names to probabilities, without a labelled image.

    classifier = ZeroShotClassifier(model, ["cat", "dog", "bicycle"])
    classifier.predict(["street.jpg"], k=2)  # [[("bicycle", 0.81), ("dog", 0.12)]]

(CLIP, section 3.1.)
"""

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .encoders import ImageLike
from .model import MiniCLIP

# n images or one, or the unit vectors of n images: (n, dim)
Images = Sequence[ImageLike] | ImageLike | Tensor

# Our own, worded like the captions that the model learned from: people's captions of photos, and
# the captions of scenes, which a grammar makes.
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
        offset: (C,) what every cosine is lowered by; 0 without calibration.

    Raises:
        ValueError: a label is missing, empty or appears twice, or a template has no ``{}``.

    """

    def __init__(
        self,
        model: MiniCLIP,
        class_names: Sequence[str],
        templates: Sequence[str] = PHOTO_TEMPLATES,
    ) -> None:
        self.model = model
        self.class_names = _checked_class_names(class_names)
        self.templates = _checked_templates(templates)

        # Embed every class in every template, and average over the templates.
        prompts = [fill(template, name) for name in self.class_names for template in self.templates]
        vectors = model.encode_text(prompts)
        by_class = vectors.view(len(self.class_names), len(self.templates), -1)
        self.weights = F.normalize(by_class.mean(dim=1), dim=-1)
        self.offset = torch.zeros(len(self.class_names), device=self.weights.device)

    def calibrate(self, images: Images) -> "ZeroShotClassifier":
        """Lower each class by its mean cosine with these images, which need no labels.

        Some classes lie close to every image ("hubs": Dinu et al. 2015, "Improving Zero-Shot
        Learning by Mitigating the Hubness Problem"). What counts is how much closer an image is
        than images are on average.
        """
        vectors = self._embed(images)
        if len(vectors) == 0:
            raise ValueError("Calibration needs at least one image.")
        self.offset = (vectors @ self.weights.T).mean(dim=0)
        return self

    def scores(self, images: Images) -> Tensor:
        """Return the cosine of each image with each class, less the offset: (n, C) float32."""
        return self._embed(images) @ self.weights.T - self.offset

    def probabilities(self, images: Images) -> Tensor:
        """Return the softmax of the scores at the model's logit scale: (n, C), rows sum to 1."""
        with torch.inference_mode():
            return (self.model.scale() * self.scores(images)).softmax(dim=-1)

    def predict(self, images: Images, k: int = 5) -> list[list[tuple[str, float]]]:
        """Return for each image at most ``k`` ``(label, probability)``, the most probable first."""
        if k < 1:
            raise ValueError(f"k must be 1 or more, not {k}.")
        top = self.probabilities(images).topk(min(k, len(self.class_names)))
        predictions = []
        for classes, values in zip(top.indices.tolist(), top.values.tolist(), strict=True):
            labels = [self.class_names[number] for number in classes]
            predictions.append(list(zip(labels, values, strict=True)))
        return predictions

    def _embed(self, images: Images) -> Tensor:
        if isinstance(images, Tensor) and images.ndim == 2:
            return images.to(self.weights.device)
        return self.model.encode_image(images)


def fill(template: str, name: str) -> str:
    """Put a class name into a template, with the article that fits: "An owl." for "A {}."."""
    article = r"\1n {}" if name[:1].lower() in "aeiou" else r"\1 {}"
    return re.sub(r"\b([Aa]) \{\}", article, template).replace("{}", name)


def _checked_class_names(class_names: Sequence[str]) -> list[str]:
    """Return the labels without spaces around them; a single string is one label."""
    given = [class_names] if isinstance(class_names, str) else class_names
    names = [name.strip() for name in given]
    if not names or not all(names):
        raise ValueError("A class has no name: give one or more labels, none of them empty.")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"The label {min(twice)!r} appears twice: give each class once.")
    return names


def _checked_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return the templates; a single string is one template."""
    checked = (templates,) if isinstance(templates, str) else tuple(templates)
    if not checked or not all("{}" in template for template in checked):
        raise ValueError("Each prompt template needs {} for the class, as in 'a photo of a {}.'.")
    return checked
