"""Similarities in, numbers out: Recall@K both ways, its bootstrap interval, and chance.

The protocol is that of Hodosh et al. (2013) as Karpathy & Fei-Fei (2015) and the CLIP papers use it: an
image counts as found when *any* of its captions is among the first K ("any-hit"). *True* recall would be
the share of its captions among the first K, which is never higher: compare any-hit with any-hit only. From
text to image there is one right answer, and the two are the same. Ties are broken against us: an item that
scores the same as the right one stands before it, so a collapsed model that likes everything equally finds
nothing.

Everywhere: N images, M captions, `owner[j]` the image of caption j, recalls from 0 to 1; tensors or arrays.

    Hodosh, Young, Hockenmaier: Framing Image Description as a Ranking Task. JAIR 47, 2013.
    Karpathy, Fei-Fei: Deep Visual-Semantic Alignments for Generating Image Descriptions. CVPR 2015.
"""

from math import comb

import numpy as np
import torch

DIRECTIONS = ("image_to_text", "text_to_image")


def ranks(similarity, owner, block=1024):
    """Rank of the best right answer to every query, 0 = first, from (N, M) similarities.

    A rank is the number of wrong items that score at least as high as the best right one. `image_to_text`
    has an entry for each image with captions, in ascending order: an image without any asks nothing, but
    stays in the pool that captions search. `text_to_image` is (M,). ValueError for NaN, infinity, an owner
    that does not fit.
    """
    similarity = _numpy(similarity)
    if similarity.ndim != 2:
        raise ValueError(f"similarity must be an (images, captions) matrix, got shape {similarity.shape}")
    return _both_ways(lambda i: similarity[i], lambda j: similarity[:, j].T, similarity.shape, owner, block)


def ranks_from_embeddings(image_emb, text_emb, owner, block=1024):
    """Rank like `ranks`, from (N, dim) and (M, dim) embeddings, holding `block` rows of scores at a time."""
    images, texts = _numpy(image_emb).astype(np.float64), _numpy(text_emb).astype(np.float64)
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
        raise ValueError(f"embeddings must be (n, dim) with one dim, got {images.shape} and {texts.shape}")
    # Summed in double, rounded once: equal embeddings get equal scores whatever the shape of the block.
    scores = lambda queries, items: (queries @ items.T).astype(np.float32)
    shape = len(images), len(texts)
    return _both_ways(lambda i: scores(images[i], texts), lambda j: scores(texts[j], images), shape, owner, block)


def recall_at_k(similarity, owner, ks=(1, 5, 10)):
    """Recall@K and median rank both ways from (N, M) similarities; the keys are those of `summarise`."""
    return summarise(ranks(similarity, owner), len(similarity), ks)


def summarise(ranked, n_images, ks=(1, 5, 10)):
    """Turn `ranks` into `{direction: {"R@1": .., "median_rank": ..}, "mean_recall", "images", "captions"}`.

    The median rank counts from 1; `images` and `captions` are the sizes of the two pools.
    """
    recalls = {d: {f"R@{k}": float(np.mean(ranked[d] < k)) for k in _checked(ks)} for d in DIRECTIONS}
    result = _with_mean_and_pools(recalls, n_images, len(ranked["text_to_image"]))
    for direction in DIRECTIONS:
        result[direction]["median_rank"] = float(np.median(ranked[direction]) + 1)
    return result


def bootstrap(ranked, owner, ks=(1, 5, 10), n=1000, seed=0):
    """95% percentile intervals of the recalls: `{direction: {"R@1": [low, high]}, "mean_recall": [..]}`.

    Each of `n` resamples draws images with replacement, and with an image all its captions, since these
    succeed and fail together. Ranks stay those against the whole pool. (Efron & Tibshirani 1993, chapter 13.)
    """
    _, image_of = np.unique(_numpy(owner), return_inverse=True)
    captions = np.bincount(image_of)
    images, rng = len(captions), np.random.default_rng(seed)
    if (images, len(image_of)) != tuple(len(ranked[d]) for d in DIRECTIONS):
        raise ValueError("owner does not belong to these ranks: it names other numbers of images or captions")
    images_found = np.stack([ranked["image_to_text"] < k for k in _checked(ks)], axis=1)
    texts_found = np.stack([np.bincount(image_of, ranked["text_to_image"] < k) for k in ks], axis=1)

    draws = []  # (n, directions, ks)
    for _ in range(n):
        times = np.bincount(rng.integers(images, size=images), minlength=images)
        draws.append((times @ images_found / images, times @ texts_found / (times @ captions)))
    draws = np.array(draws)
    interval = lambda values: np.percentile(values, [2.5, 97.5]).tolist()
    result = {
        direction: {f"R@{k}": interval(draws[:, way, column]) for column, k in enumerate(ks)}
        for way, direction in enumerate(DIRECTIONS)
    }
    return result | {"mean_recall": interval(draws.mean(axis=(1, 2)))}


def chance(owner, n_images, ks=(1, 5, 10)):
    """Exact expected recalls of a random order of the same pools; the keys of `summarise`, less the medians.

    K random captions out of M miss all m captions of an image with probability C(M - m, K) / C(M, K).
    """
    owner = _checked_owner(owner, n_images, len(owner))
    total = len(owner)
    own, times = np.unique(np.unique(owner, return_counts=True)[1], return_counts=True)

    def any_hit(k):
        hits = [(comb(total, k) - comb(total - m, k)) / comb(total, k) for m in own]
        return float(np.average(hits, weights=times))

    recalls = {
        "image_to_text": {f"R@{k}": any_hit(min(k, total)) for k in _checked(ks)},
        "text_to_image": {f"R@{k}": min(k, n_images) / n_images for k in ks},
    }
    return _with_mean_and_pools(recalls, n_images, total)


def classification(scores, labels, ks=(1, 5), n=1000, seed=0):
    """Accuracy of (N, C) class scores against N labels: `{"top1", "top5", "interval", "chance", "per_class", ...}`.

    A label counts among the first K if fewer than K other classes score at least as high: ties count against
    us. `per_class` is top-1 by class, (C,), NaN for a class without images; intervals are 95% bootstraps over images.
    """
    scores, labels = _numpy(scores), _numpy(labels)
    if scores.ndim != 2 or labels.shape != (len(scores),):
        raise ValueError(f"scores must be (images, classes) with a label each, got {scores.shape} and {labels.shape}")
    classes = scores.shape[1]
    rank = _ranks(scores, labels[:, None] == np.arange(classes))
    hits = np.stack([rank < k for k in ks], axis=1)  # (N, ks)
    draws = np.random.default_rng(seed).integers(len(hits), size=(n, len(hits)))
    low, high = np.percentile([hits[draw].mean(axis=0) for draw in draws], [2.5, 97.5], axis=0)
    return {
        **{f"top{k}": float(value) for k, value in zip(ks, hits.mean(axis=0), strict=True)},
        "interval": {f"top{k}": [float(a), float(b)] for k, a, b in zip(ks, low, high, strict=True)},
        "chance": {f"top{k}": min(1.0, k / classes) for k in ks},
        "per_class": [
            float(hits[labels == c, 0].mean()) if (labels == c).any() else float("nan") for c in range(classes)
        ],
        "images": len(scores),
        "classes": classes,
    }


def alignment(image_emb, text_emb):
    """Mean squared distance of matching pairs, (N, dim) unit vectors each: 0 is perfect (Wang & Isola 2020, eq. 1)."""
    return float(np.mean(np.sum((_numpy(image_emb) - _numpy(text_emb)) ** 2, axis=1)))


def uniformity(emb):
    """Log mean Gaussian potential of all pairs of (N, dim) unit vectors, t = 2: 0 is collapsed, -4 evenly spread.

    Wang & Isola 2020, eq. 2; for many dimensions the lowest value is near -4.
    """
    emb = _numpy(emb).astype(np.float64)
    squared = 2 - 2 * (emb @ emb.T)[np.triu_indices(len(emb), 1)]
    return float(np.log(np.mean(np.exp(-2 * squared))))


def modality_gap(image_emb, text_emb):
    """Distance between the mean image and the mean text vector, 0 to 2 (Liang et al. 2022, section 2.1)."""
    return float(np.linalg.norm(_numpy(image_emb).mean(0) - _numpy(text_emb).mean(0)))


def _both_ways(image_scores, caption_scores, shape, owner, block):
    """Ranks of all queries, from functions that give the score rows of some images and of some captions."""
    owner = _checked_owner(owner, *shape)
    asking = np.unique(owner)
    blocks = lambda ids: np.split(ids, range(block, len(ids), block))
    image_ranks = [_ranks(image_scores(i), i[:, None] == owner) for i in blocks(asking)]
    images, captions = np.arange(shape[0]), np.arange(shape[1])
    caption_ranks = [_ranks(caption_scores(j), owner[j, None] == images) for j in blocks(captions)]
    return {"image_to_text": np.concatenate(image_ranks), "text_to_image": np.concatenate(caption_ranks)}


def _ranks(scores, right):
    """Wrong items at or above the best right one: scores and truth, both (queries, items) -> (queries,)."""
    if not np.isfinite(scores).all():
        raise ValueError("the similarities hold NaN or infinity, and such items have no rank")
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    return ((scores >= best) & ~right).sum(axis=1)


def _with_mean_and_pools(recalls, n_images, n_captions):
    mean = float(np.mean([list(recalls[direction].values()) for direction in DIRECTIONS]))
    return recalls | {"mean_recall": mean, "images": n_images, "captions": n_captions}


def _checked(ks):
    if len(ks) == 0 or min(ks) < 1:
        raise ValueError(f"ks must be one or more numbers from 1 up, got {ks}")
    return ks


def _checked_owner(owner, n_images, n_captions):
    owner = _numpy(owner)
    if owner.shape != (n_captions,) or n_captions == 0:
        raise ValueError(f"owner must name an image for each of {n_captions} captions, got shape {owner.shape}")
    if owner.dtype.kind not in "iu" or owner.min() < 0 or owner.max() >= n_images:
        raise ValueError(f"owner must hold whole numbers from 0 to {n_images - 1}, one of the images each")
    return owner


def _numpy(values):
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values  # NumPy has no bfloat16
    return np.asarray(values)
