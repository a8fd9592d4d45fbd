"""Measures beside Recall@K: accuracy, the geometry of the space, and how a run stands on dev."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..features import Features
from ..metrics import (
    KS,
    Ranks,
    Report,
    Values,
    bootstrap_mean,
    rank_queries,
    ranks_from_embeddings,
    summarise,
    to_numpy,
)
from ..model import MiniCLIP, eval_mode


def classification(
    scores: Values, labels: Values, ks: Sequence[int] = (1, 5), n: int = 1000, seed: int = 0
) -> Report:
    """Return the accuracy of (N, C) class scores against (N,) labels: ``{"top1": .., "top5": ..}``.

    A label counts among the first K if fewer than K other classes score at least as high: ties
    count against us. ``"interval"`` and ``"chance"`` have the same keys; the interval is a 95%
    bootstrap over images. ``"per_class"`` is the top-1 accuracy of each class, NaN for a class
    without images; ``"images"`` and ``"classes"`` are N and C.
    """
    class_scores = to_numpy(scores)
    truth = to_numpy(labels)
    if class_scores.ndim != 2 or truth.shape != (len(class_scores),):
        shapes = f"{class_scores.shape} and {truth.shape}"
        raise ValueError(f"Scores must be (images, classes) with a label each, not {shapes}.")
    classes = np.arange(class_scores.shape[1])
    if not np.isin(truth, classes).all():
        raise ValueError(f"Each label must be a class, a number from 0 to {len(classes) - 1}.")
    # The right "item" of an image is the class of its label.
    ranked = rank_queries(lambda rows: class_scores[rows], truth, classes)
    hits = np.stack([ranked < k for k in ks], axis=1)  # (N, ks)

    per_class = []
    for label in classes:
        own = hits[truth == label, 0]
        per_class.append(float(own.mean()) if len(own) else float("nan"))

    names = [f"top{k}" for k in ks]
    return {
        **dict(zip(names, hits.mean(axis=0).tolist(), strict=True)),
        "interval": dict(zip(names, bootstrap_mean(hits, n, seed), strict=True)),
        "chance": {f"top{k}": min(1.0, k / len(classes)) for k in ks},
        "per_class": per_class,
        "images": len(class_scores),
        "classes": len(classes),
    }


def alignment(image_emb: Values, text_emb: Values) -> float:
    """Return the mean squared distance of N matching unit vectors (Wang & Isola 2020, eq. 1)."""
    differences = to_numpy(image_emb) - to_numpy(text_emb)
    return float(np.mean(np.sum(differences**2, axis=1)))


def uniformity(emb: Values) -> float:
    """Return the log of the mean Gaussian potential (t = 2) of all pairs of (N, dim) unit vectors.

    0 is collapsed; evenly spread vectors of many dimensions come near -4, the lowest value there.
    Wang & Isola 2020, eq. 2.
    """
    vectors = to_numpy(emb).astype(np.float64)
    cosines = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    squared_distances = 2 - 2 * cosines
    return float(np.log(np.mean(np.exp(-2 * squared_distances))))


def modality_gap(image_emb: Values, text_emb: Values) -> float:
    """Return the distance between the mean image and text vectors (Liang et al. 2022, sec. 2.1)."""
    difference = to_numpy(image_emb).mean(0) - to_numpy(text_emb).mean(0)
    return float(np.linalg.norm(difference))


def recall_of_each_image(
    ranked: Ranks, image_of_caption: Values, ks: Sequence[int] = KS
) -> np.ndarray:
    """Return the mean of the six recalls for each of the N images that have captions: (N,).

    From text to image it is the share of the image's captions that find it. Where all images have
    equally many captions, the mean of these is ``mean_recall``. For two models on the same images,
    ``bootstrap_mean`` gives a paired interval of the difference.
    """
    # Number the images that have captions from 0, as the ranks of images are numbered.
    _, row_of_caption = np.unique(to_numpy(image_of_caption), return_inverse=True)
    captions_of_image = np.bincount(row_of_caption)
    recalls = []
    for k in ks:
        recalls.append(ranked["image_to_text"] < k)
        found_by = np.bincount(row_of_caption, ranked["text_to_image"] < k)
        recalls.append(found_by / captions_of_image)
    return np.mean(recalls, axis=0)


@torch.inference_mode()
def embed(model: MiniCLIP, features: Features, batch_size: int = 200) -> tuple[Tensor, Tensor]:
    """Embed a dataset from its features, plain view: unit vectors (N, E) and (M, E)."""
    images = []
    captions = []
    with eval_mode(model):
        for rows in _in_batches(len(features.data), batch_size):
            images.append(model.project_image(features.image_batch(rows)))
        for rows in _in_batches(len(features.captions), batch_size):
            captions.append(model.project_text(*features.text_batch(rows)))
    return torch.cat(images), torch.cat(captions)


def _in_batches(count: int, size: int) -> list[np.ndarray]:
    return np.array_split(np.arange(count), math.ceil(count / size))


def dev_recalls(model: MiniCLIP, features: Features) -> dict[str, float]:
    """Return ``dev_mean_recall``, the six recalls that it averages, and the space's geometry.

    Geometry is alignment, uniformity and modality gap of the images and the first caption of each.
    """
    image_of_caption = features.data.image_of_caption
    images, captions = embed(model, features)
    ranked = ranks_from_embeddings(images, captions, image_of_caption)
    scores = summarise(ranked, len(features.data))
    row = {"dev_mean_recall": scores["mean_recall"]}
    for direction, short in (("image_to_text", "i2t"), ("text_to_image", "t2i")):
        for name, value in scores[direction].items():
            if name.startswith("R@"):
                row[f"dev_{short}_{name}"] = value
    first_captions = captions[features.first_caption[:-1]]
    row["alignment"] = alignment(images, first_captions)
    row["modality_gap"] = modality_gap(images, first_captions)
    row["uniformity_image"] = uniformity(images)
    row["uniformity_text"] = uniformity(first_captions)
    return row
