"""From similarities to numbers: Recall@K in both directions, its confidence interval, and chance.

The protocol is that of Hodosh et al. (2013), as Karpathy & Fei-Fei (2015) and the CLIP papers use
it. An image counts as found when *any* of its captions is among the first K ("any-hit"). *True*
recall would be the share of its captions among the first K. It is never higher, so compare any-hit
only with any-hit. From text to image there is one right answer, and the two are the same.

Ties count against us: an item that scores the same as the right one stands before it. So a
collapsed model, which likes everything equally, finds nothing.

Everywhere: N images, M captions, ``image_of_caption[j]`` is the image of caption j, and recalls go
from 0 to 1. All functions take tensors or arrays, and raise ``ValueError`` for what does not fit.

    Hodosh, Young, Hockenmaier: Framing Image Description as a Ranking Task. JAIR 47, 2013.
    Karpathy, Fei-Fei: Deep Visual-Semantic Alignments for Generating Image Descriptions. CVPR 2015.
"""

from collections.abc import Callable, Sequence
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from .datasets.base import CaptionedImages
    from .model import MiniCLIP

DIRECTIONS = ("image_to_text", "text_to_image")
KS = (1, 5, 10)

Values = ArrayLike | torch.Tensor
Ranks = dict[str, np.ndarray]  # by direction, a rank for each query
Report = dict[str, Any]  # ready for JSON


def ranks(similarity: Values, image_of_caption: Values, block: int = 1024) -> Ranks:
    """Return the rank of the best right answer to every query, from (N, M) similarities.

    A rank is the number of wrong items that score at least as high as the best right one, so the
    first place is rank 0. ``"image_to_text"`` has one for each image with captions, in ascending
    order of the images. An image without captions is no query, but captions are still ranked
    against it. ``"text_to_image"`` is (M,). ``block`` queries are ranked at a time.
    """
    scores = to_numpy(similarity)
    if scores.ndim != 2:
        raise ValueError(f"Similarities must be an (images, captions) matrix, not {scores.shape}.")
    image_of_caption = _checked_image_of_caption(image_of_caption, *scores.shape)
    images = np.arange(len(scores))
    query_images = np.unique(image_of_caption)
    to_text = rank_queries(
        lambda rows: scores[query_images[rows]], query_images, image_of_caption, block
    )
    to_image = rank_queries(lambda rows: scores[:, rows].T, image_of_caption, images, block)
    return {"image_to_text": to_text, "text_to_image": to_image}


def ranks_from_embeddings(
    image_emb: Values, text_emb: Values, image_of_caption: Values, block: int = 1024
) -> Ranks:
    """Return ``ranks`` from (N, dim) and (M, dim) embeddings, holding ``block`` rows of scores."""
    images = to_numpy(image_emb).astype(np.float64)
    texts = to_numpy(text_emb).astype(np.float64)
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
        raise ValueError(f"Embeddings must be of one width, not {images.shape} and {texts.shape}.")
    image_of_caption = _checked_image_of_caption(image_of_caption, len(images), len(texts))
    query_images = np.unique(image_of_caption)

    # Scores are summed in double precision and rounded once. Equal embeddings then get equal
    # scores, whatever the size of the block.
    def image_scores(rows: slice) -> np.ndarray:
        return (images[query_images[rows]] @ texts.T).astype(np.float32)

    def caption_scores(rows: slice) -> np.ndarray:
        return (texts[rows] @ images.T).astype(np.float32)

    to_text = rank_queries(image_scores, query_images, image_of_caption, block)
    to_image = rank_queries(caption_scores, image_of_caption, np.arange(len(images)), block)
    return {"image_to_text": to_text, "text_to_image": to_image}


def rank_queries(
    score_rows: Callable[[slice], np.ndarray],
    image_of_query: np.ndarray,
    image_of_item: np.ndarray,
    block: int = 1024,
) -> np.ndarray:
    """Count for each query the wrong items at or above the best right one, a block at a time.

    ``score_rows(rows)`` gives the scores of those queries with all items, (queries, items). An item
    is right for a query if both belong to the same image.
    """
    ranked = []
    for start in range(0, len(image_of_query), block):
        rows = slice(start, start + block)
        scores = score_rows(rows)
        if not np.isfinite(scores).all():
            raise ValueError("The similarities hold NaN or infinity: such items have no rank.")
        right = image_of_query[rows, None] == image_of_item
        best_right = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        ranked.append(((scores >= best_right) & ~right).sum(axis=1))
    return np.concatenate(ranked)


def recall_at_k(similarity: Values, image_of_caption: Values, ks: Sequence[int] = KS) -> Report:
    """Return what ``summarise`` does, from (N, M) similarities."""
    scores = to_numpy(similarity)
    return summarise(ranks(scores, image_of_caption), len(scores), ks)


def summarise(ranked: Ranks, n_images: int, ks: Sequence[int] = KS) -> Report:
    """Turn ``ranks`` into recalls: ``{direction: {"R@1": .., "median_rank": ..}, ..}``.

    The report also holds ``"mean_recall"`` and the sizes of the two pools, ``"images"`` and
    ``"captions"``. The median rank counts from 1.
    """
    _check_ks(ks)
    recalls = {}
    for direction in DIRECTIONS:
        recalls[direction] = {f"R@{k}": float(np.mean(ranked[direction] < k)) for k in ks}
    result = _with_mean_and_pools(recalls, n_images, len(ranked["text_to_image"]))
    for direction in DIRECTIONS:
        result[direction]["median_rank"] = float(np.median(ranked[direction]) + 1)
    return result


def bootstrap(
    ranked: Ranks, image_of_caption: Values, ks: Sequence[int] = KS, n: int = 1000, seed: int = 0
) -> Report:
    """Return 95% intervals: ``{direction: {"R@1": [low, high], ..}, .., "mean_recall": [..]}``.

    Each of ``n`` resamples draws images with replacement, and takes all captions of each, because
    they succeed and fail together. A rank stays the one against the whole pool.
    """
    _check_ks(ks)
    # Number the images that have captions from 0, as the ranks of images are numbered.
    _, row_of_caption = np.unique(to_numpy(image_of_caption), return_inverse=True)
    captions_of_image = np.bincount(row_of_caption)
    named = (len(captions_of_image), len(row_of_caption))
    if named != (len(ranked["image_to_text"]), len(ranked["text_to_image"])):
        raise ValueError(
            "image_of_caption does not belong to these ranks: it names other numbers of images or "
            f"captions, {named}."
        )

    # For each image and K: whether it finds a caption, and how many of its captions find it.
    finds = np.stack([ranked["image_to_text"] < k for k in ks], axis=1)
    found_by = [np.bincount(row_of_caption, ranked["text_to_image"] < k) for k in ks]

    # The same seed draws the same images in both directions.
    image_recalls = _resampled_means(finds, n, seed)
    caption_recalls = _resampled_means(np.stack(found_by, axis=1), n, seed, captions_of_image)
    recalls = np.stack([image_recalls, caption_recalls], axis=1)  # (n, directions, ks)

    result: Report = {}
    for direction, intervals in zip(DIRECTIONS, _interval(recalls), strict=True):
        result[direction] = {f"R@{k}": pair for k, pair in zip(ks, intervals, strict=True)}
    return result | {"mean_recall": _interval(recalls.mean(axis=(1, 2)))}


def bootstrap_mean(values: Values, n: int = 1000, seed: int = 0) -> list[Any]:
    """Return the 95% interval of the mean over N images, ``[low, high]``; k of them for (N, k).

    Two models on the same images are compared in pairs: give the difference between both for each
    image, and see whether the interval holds 0.
    """
    return _interval(_resampled_means(to_numpy(values), n, seed))


def _resampled_means(
    values: np.ndarray, n: int, seed: int, sizes: np.ndarray | None = None
) -> np.ndarray:
    """Return the mean of each of ``n`` resamples of the images: (n,) or (n, k).

    ``values``, (N,) or (N, k), are an image's own, or sums over its captions; ``sizes``, (N,), then
    says over how many. (Efron & Tibshirani 1993, chapter 13.)
    """
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(n):
        drawn = rng.integers(len(values), size=len(values))
        size = len(drawn) if sizes is None else sizes[drawn].sum()
        means.append(values[drawn].sum(axis=0) / size)
    return np.array(means)


def _interval(draws: np.ndarray) -> list[Any]:
    """Return where the middle 95% of n draws lie: ``[low, high]`` for (n,), nested for more."""
    return np.moveaxis(np.percentile(draws, [2.5, 97.5], axis=0), 0, -1).tolist()


def chance(image_of_caption: Values, n_images: int, ks: Sequence[int] = KS) -> Report:
    """Return the exact expected recalls of a random order; keys as ``summarise``, less medians.

    K random captions of M miss all m of an image with probability C(M - m, K) / C(M, K).
    """
    _check_ks(ks)
    total = len(to_numpy(image_of_caption))
    image_of_caption = _checked_image_of_caption(image_of_caption, n_images, total)

    # Images with equally many captions have the same chance: compute it once for each number.
    _, captions_of_image = np.unique(image_of_caption, return_counts=True)
    numbers, images_with = np.unique(captions_of_image, return_counts=True)

    image_to_text = {}
    for k in ks:
        subsets = comb(total, min(k, total))
        misses = [comb(total - own, min(k, total)) for own in numbers.tolist()]
        hit_rates = [(subsets - missing) / subsets for missing in misses]
        image_to_text[f"R@{k}"] = float(np.average(hit_rates, weights=images_with))
    text_to_image = {f"R@{k}": min(k, n_images) / n_images for k in ks}
    recalls = {"image_to_text": image_to_text, "text_to_image": text_to_image}
    return _with_mean_and_pools(recalls, n_images, total)


def evaluate(model: "MiniCLIP", data: "CaptionedImages", progress: bool = False) -> Report:
    """Measure retrieval in both directions: ``summarise``, ``bootstrap`` and ``chance`` by name.

    Each image is ranked among all images, and each caption among all captions.
    """
    images = model.encode_image(data.images, progress=progress)
    captions = model.encode_text(data.flat_captions, progress=progress)
    ranked = ranks_from_embeddings(images, captions, data.image_of_caption)
    return {
        "scores": summarise(ranked, len(data)),
        "interval": bootstrap(ranked, data.image_of_caption),
        "chance": chance(data.image_of_caption, len(data)),
    }


def _with_mean_and_pools(recalls: Report, n_images: int, n_captions: int) -> Report:
    """Return the recalls of both directions, their mean, and the sizes of the pools."""
    mean = float(np.mean([list(recalls[direction].values()) for direction in DIRECTIONS]))
    return recalls | {"mean_recall": mean, "images": n_images, "captions": n_captions}


def _check_ks(ks: Sequence[int]) -> None:
    """Refuse no K at all, and a K below 1."""
    if len(ks) == 0 or min(ks) < 1:
        raise ValueError(f"The ks must be one or more numbers from 1 up, not {ks}.")


def _checked_image_of_caption(values: Values, n_images: int, n_captions: int) -> np.ndarray:
    """Return (M,) whole numbers, each that of an image."""
    numbers = to_numpy(values)
    if numbers.shape != (n_captions,) or n_captions == 0:
        raise ValueError(
            f"image_of_caption must name an image for each of {n_captions} captions; "
            f"its shape is {numbers.shape}."
        )
    if numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() >= n_images:
        raise ValueError(f"image_of_caption must hold whole numbers from 0 to {n_images - 1}.")
    return numbers


def to_numpy(values: Values) -> np.ndarray:
    """Return a tensor, or anything like an array, as an array."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        if values.dtype == torch.bfloat16:  # which NumPy does not have
            values = values.float()
    return np.asarray(values)
