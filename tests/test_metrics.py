"""Recall@K, its interval and chance, against loops written out here and numbers worked by hand."""

import itertools
import json
import random

import numpy as np
import pytest
import torch

from minicliplib.metrics import (
    alignment,
    bootstrap,
    chance,
    classification,
    modality_gap,
    ranks,
    ranks_from_embeddings,
    recall_at_k,
    summarise,
    uniformity,
)

FIVE_EACH = np.repeat(np.arange(200), 5)


def oracle(similarity, image_of_caption):
    """The definition, in loops: how many wrong items are at least as good as the best right one?"""
    n_images, n_captions = len(similarity), len(image_of_caption)
    image_to_text, text_to_image = [], []
    for i in range(n_images):
        own = [similarity[i][j] for j in range(n_captions) if image_of_caption[j] == i]
        if own:
            wrong = [similarity[i][j] for j in range(n_captions) if image_of_caption[j] != i]
            image_to_text.append(sum(1 for score in wrong if score >= max(own)))
    for j in range(n_captions):
        right = similarity[image_of_caption[j]][j]
        text_to_image.append(
            sum(
                1 for i in range(n_images) if i != image_of_caption[j] and similarity[i][j] >= right
            )
        )
    return image_to_text, text_to_image


def assert_ranks(ranked, expected):
    assert ranked["image_to_text"].tolist() == list(expected[0])
    assert ranked["text_to_image"].tolist() == list(expected[1])


def unit(rng, *shape):
    vectors = rng.standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    "levels", [3, 1000]
)  # 3 scores: nearly everything ties; 1000: nearly nothing
@pytest.mark.parametrize("counts", [[1] * 9, [5] * 7, [1, 4, 2, 7, 1, 3], [2, 0, 3, 0, 1]])
def test_ranks_equal_the_oracle(levels, counts):
    draw = random.Random(f"{levels} {counts}")
    image_of_caption = [image for image, count in enumerate(counts) for _ in range(count)]
    draw.shuffle(image_of_caption)
    similarity = [[draw.randrange(levels) / levels for _ in image_of_caption] for _ in counts]
    expected = oracle(similarity, image_of_caption)
    for block in (1, 2, 1024):
        assert_ranks(ranks(np.array(similarity), np.array(image_of_caption), block=block), expected)
    assert_ranks(
        ranks(torch.tensor(similarity), torch.tensor(image_of_caption)),
        oracle(np.float32(similarity), image_of_caption),
    )


@pytest.mark.parametrize("block", [1, 7, 16, 1000])
def test_blockwise_ranks_equal_the_whole_matrix(block):
    rng = np.random.default_rng(0)
    # Whole numbers multiply exactly and tie often; 40 images and 130 captions span several blocks.
    images, texts = rng.integers(-2, 3, (40, 4)), rng.integers(-2, 3, (130, 4))
    image_of_caption = rng.permutation(np.r_[np.arange(40), rng.integers(0, 40, 90)])
    expected = oracle((images @ texts.T).tolist(), image_of_caption.tolist())
    assert_ranks(ranks_from_embeddings(images, texts, image_of_caption, block=block), expected)
    tensors = (
        torch.tensor(images).bfloat16(),
        torch.tensor(texts).half(),
        torch.tensor(image_of_caption),
    )
    assert_ranks(ranks_from_embeddings(*tensors, block=block), expected)


def test_duplicate_embeddings_tie_whatever_the_block():
    rng = np.random.default_rng(1)
    once = unit(
        rng, 31, 64
    )  # an odd number, so that single precision would round twins differently
    images = np.r_[once, once]  # each image has a twin, which must always count against us
    image_of_caption = np.repeat(np.arange(31), 8)
    texts = once[image_of_caption] + unit(rng, len(image_of_caption), 64)
    for block in (1, 5, 13, 60):
        ranked = ranks_from_embeddings(images, texts, image_of_caption, block=block)
        assert ranked["text_to_image"].tolist() == [1] * len(image_of_caption)


# Four images with two captions each: captions 0 and 1 belong to image 0, and so on.
BY_HAND = np.array(
    [
        [0.9, 0.1, 0.2, 0.3, 0.0, 0.0, 0.0, 0.0],  # best own 0.9, nothing above: rank 0
        [0.5, 0.4, 0.3, 0.4, 0.1, 0.1, 0.1, 0.1],  # best own 0.4; 0.5 and a tie of 0.4: rank 2
        [0.8, 0.7, 0.6, 0.6, 0.5, 0.1, 0.6, 0.6],  # best own 0.5; all six others above: rank 6
        [0.1, 0.1, 0.1, 0.9, 0.2, 0.3, 0.1, 0.8],  # best own 0.8; 0.9 above: rank 1
    ]
)  # by column, wrong images at or above the own score: 0, 3 (one a tie), 1, 2, 0, 2 (a tie), 2 (a tie), 0


def test_recall_by_hand():
    image_of_caption = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    assert_ranks(ranks(BY_HAND, image_of_caption), ([0, 2, 6, 1], [0, 3, 1, 2, 0, 2, 2, 0]))
    result = recall_at_k(BY_HAND, image_of_caption, ks=(1, 2, 3))
    assert result == {
        "image_to_text": {"R@1": 1 / 4, "R@2": 2 / 4, "R@3": 3 / 4, "median_rank": 2.5},
        "text_to_image": {"R@1": 3 / 8, "R@2": 4 / 8, "R@3": 7 / 8, "median_rank": 2.5},
        "mean_recall": pytest.approx((1 / 4 + 2 / 4 + 3 / 4 + 3 / 8 + 4 / 8 + 7 / 8) / 6),
        "images": 4,
        "captions": 8,
    }
    assert json.loads(json.dumps(result)) == result
    assert (
        recall_at_k(torch.tensor(BY_HAND), torch.tensor(image_of_caption), ks=(1, 2, 3)) == result
    )


def test_perfect_match_finds_everything():
    embeddings = np.eye(200)
    ranked = ranks_from_embeddings(embeddings, embeddings[FIVE_EACH], FIVE_EACH)
    result = summarise(ranked, 200)
    assert result["mean_recall"] == 1.0
    assert result["image_to_text"]["median_rank"] == result["text_to_image"]["median_rank"] == 1.0


@pytest.mark.parametrize("block", [17, 1024])
def test_collapsed_embeddings_are_at_most_chance(block):
    same = unit(np.random.default_rng(2), 1, 64)
    ranked = ranks_from_embeddings(
        same.repeat(200, 0), same.repeat(1000, 0), FIVE_EACH, block=block
    )
    result, lucky = summarise(ranked, 200), chance(FIVE_EACH, 200)
    for direction in ("image_to_text", "text_to_image"):
        for name, value in lucky[direction].items():
            assert 0 < value < 0.1
            assert result[direction][name] <= value
    assert recall_at_k(np.zeros((200, 1000)), FIVE_EACH)["mean_recall"] == 0


def test_permuting_the_pairs_permutes_the_ranks():
    rng = np.random.default_rng(3)
    similarity, image_of_caption = (
        rng.standard_normal((12, 30)),
        np.r_[np.arange(12), rng.integers(0, 12, 18)],
    )
    images, captions = rng.permutation(12), rng.permutation(30)
    moved = ranks(similarity[images][:, captions], np.argsort(images)[image_of_caption][captions])
    still = ranks(similarity, image_of_caption)
    assert_ranks(moved, (still["image_to_text"][images], still["text_to_image"][captions]))
    assert len(set(still["text_to_image"].tolist())) > 3


def noisy_ranks(n_images, seed):
    """Ranks of a middling model with five captions an image, and their owners."""
    rng, image_of_caption = np.random.default_rng(seed), np.repeat(np.arange(n_images), 5)
    image_emb = unit(rng, n_images, 16)
    return ranks_from_embeddings(
        image_emb,
        unit(rng, n_images, 16)[image_of_caption] * 0.3 + image_emb[image_of_caption],
        image_of_caption,
    ), image_of_caption


def leaves(tree):
    return [
        x
        for value in tree.values()
        for x in (leaves(value) if isinstance(value, dict) else [value])
    ]


def test_bootstrap_holds_the_estimate_and_narrows_with_more_images():
    widths = []
    for n_images in (60, 600):
        # Recalls in the middle of the range: half of the queries succeed, the other half fail.
        ranked = {
            "image_to_text": np.arange(n_images) % 20,
            "text_to_image": np.arange(5 * n_images) // 5 % 20,
        }
        image_of_caption = np.repeat(np.arange(n_images), 5)
        point, interval = summarise(ranked, n_images), bootstrap(ranked, image_of_caption)
        assert interval.keys() == {"image_to_text", "text_to_image", "mean_recall"}
        assert interval["image_to_text"].keys() == {"R@1", "R@5", "R@10"}
        low, high = interval["mean_recall"]
        assert low < point["mean_recall"] < high
        for direction in ("image_to_text", "text_to_image"):
            for name, (low, high) in interval[direction].items():
                assert low < point[direction][name] < high
        low, high = interval["image_to_text"]["R@10"]
        # A share of 1/2 among n has the standard error sqrt(1/4 / n); 95% is 1.96 of them each way.
        assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / n_images), rel=0.1)
        widths.append(high - low)
    assert widths[1] < widths[0] / 2.5


def test_bootstrap_draws_images_with_their_captions():
    image_of_caption = np.repeat(np.arange(100), 5)
    together = {
        "image_to_text": np.zeros(100, int),
        "text_to_image": np.where(image_of_caption < 50, 0, 50),
    }
    apart = together | {"text_to_image": np.where(np.arange(500) % 2, 0, 50)}
    wide, narrow = (
        np.diff(bootstrap(r, image_of_caption)["text_to_image"]["R@1"])[0]
        for r in (together, apart)
    )
    # Half of the images found with all five captions: 100 independent draws, not 500.
    assert wide == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 100), rel=0.1)
    assert narrow < wide / 3


def test_bootstrap_repeats_by_seed_and_takes_uneven_captions():
    image_of_caption = np.array([4, 0, 0, 2, 2, 2])  # images 1 and 3 have no caption, 4 comes first
    ranked = ranks(np.random.default_rng(4).standard_normal((5, 6)), image_of_caption)
    first, again, other = (
        bootstrap(ranked, image_of_caption, ks=(1, 2), n=50, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    # Each single image can make up a whole resample of three, so the range of the recalls is reached: 0 or 1.
    certain = {"image_to_text": np.zeros(3, int), "text_to_image": np.array([0, 9, 9, 9, 9, 9])}
    low, high = bootstrap(certain, image_of_caption, ks=(1,), n=4000)["text_to_image"]["R@1"]
    assert (low, high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="does not belong to these ranks"):
        bootstrap(ranked, image_of_caption[:-1])


def test_chance_agrees_with_a_simulation_and_with_counting():
    image_of_caption = np.array(
        [0, 0, 0, 0, 1, 2, 2, 3, 3, 3, 5, 5]
    )  # image 4 has no caption: six images in the pool
    rng = np.random.default_rng(5)
    drawn = [recall_at_k(rng.random((6, 12)), image_of_caption, ks=(1, 3, 8)) for _ in range(4000)]
    expected = chance(image_of_caption, 6, ks=(1, 3, 8))
    for direction in ("image_to_text", "text_to_image"):
        for name, value in expected[direction].items():
            assert np.mean([d[direction][name] for d in drawn]) == pytest.approx(
                min(value, 1.0), abs=0.015
            )
    assert np.mean([d["mean_recall"] for d in drawn]) == pytest.approx(
        expected["mean_recall"], abs=0.01
    )
    # All 3-subsets of 12 captions that hold at least one of an image's 4, 1, 2, 3 and 2.
    subsets = list(itertools.combinations(image_of_caption, 3))
    hits = [sum(image in subset for subset in subsets) / len(subsets) for image in (0, 1, 2, 3, 5)]
    assert expected["image_to_text"]["R@3"] == pytest.approx(np.mean(hits))
    assert (expected["images"], expected["captions"]) == (6, 12)


def test_chance_on_the_flickr8k_pools():
    expected = chance(np.repeat(np.arange(1000), 5), 1000)
    assert expected["text_to_image"] == {"R@1": 0.001, "R@5": 0.005, "R@10": 0.01}
    assert expected["image_to_text"]["R@1"] == pytest.approx(0.001)
    assert expected["image_to_text"]["R@10"] == pytest.approx(1 - (4995 / 5000) ** 10, rel=0.01)


def test_k_beyond_the_pool_is_certain():
    assert leaves(chance([0, 1], 2))[1:3] == [1.0, 1.0]
    assert recall_at_k(np.eye(2)[::-1], [0, 1])["text_to_image"]["R@5"] == 1.0


@pytest.mark.parametrize(
    ("similarity", "image_of_caption", "message"),
    [
        ([[1.0, float("nan")]], [0, 0], "NaN or infinity"),
        ([[1.0, float("inf")]], [0, 0], "NaN or infinity"),
        ([[1.0, -float("inf")]], [0, 0], "NaN or infinity"),
        ([[1.0, 2.0]], [0, 1], "from 0 to 0"),
        ([[1.0, 2.0]], [0, -1], "from 0 to 0"),
        ([[1.0, 2.0]], [0.0, 0.0], "whole numbers"),
        ([[1.0, 2.0]], [0], "for each of 2 captions"),
        ([[1.0, 2.0]], [[0, 0]], "for each of 2 captions"),
        ([1.0, 2.0], [0, 0], "matrix"),
        ([[], []], [], "each of 0 captions"),
    ],
)
def test_bad_input_is_named(similarity, image_of_caption, message):
    with pytest.raises(ValueError, match=message):
        recall_at_k(np.array(similarity), np.array(image_of_caption))
    with pytest.raises(ValueError, match=message):
        recall_at_k(torch.tensor(similarity), torch.tensor(image_of_caption))


def test_bad_embeddings_and_ks_are_named():
    with pytest.raises(ValueError, match=r"one dim, got \(2, 3\) and \(2, 4\)"):
        ranks_from_embeddings(np.ones((2, 3)), np.ones((2, 4)), [0, 1])
    with pytest.raises(ValueError, match="NaN or infinity"):
        ranks_from_embeddings(np.full((2, 3), np.nan), np.ones((2, 3)), [0, 1])
    for ks in ((), (0, 1)):
        with pytest.raises(ValueError, match="ks must be"):
            recall_at_k(np.eye(2), [0, 1], ks=ks)
        with pytest.raises(ValueError, match="ks must be"):
            chance([0, 1], 2, ks=ks)


def test_classification_by_hand():
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7]])
    report = classification(scores, np.array([0, 2, 1, 2]), ks=(1, 2))
    assert report["top1"] == 0.5  # the third is a tie, which counts against us
    assert report["top2"] == 1.0
    assert report["per_class"] == [1.0, 0.0, 0.5]
    assert report["chance"] == {"top1": pytest.approx(1 / 3), "top2": pytest.approx(2 / 3)}
    low, high = report["interval"]["top1"]
    assert 0 <= low < 0.5 < high <= 1
    assert np.isnan(
        classification(scores, np.zeros(4, int))["per_class"][1]
    )  # a class without images
    with pytest.raises(ValueError, match="a label each"):
        classification(scores, np.array([0, 1]))


def test_a_collapsed_classifier_names_nothing():
    assert classification(np.ones((5, 4)), np.arange(5) % 4)["top1"] == 0


def test_geometry_by_hand():
    east, north = np.array([[1.0, 0], [1, 0]]), np.array([[0.0, 1], [0, 1]])
    assert alignment(east, east) == 0
    assert alignment(east, north) == pytest.approx(2)
    assert modality_gap(east, north) == pytest.approx(2**0.5)
    assert uniformity(east) == pytest.approx(0)  # collapsed
    corners = np.concatenate([np.eye(3), -np.eye(3)])  # 12 pairs at squared distance 2, 3 at 4
    assert uniformity(corners) == pytest.approx(np.log((12 * np.exp(-4) + 3 * np.exp(-8)) / 15))
    assert uniformity(torch.tensor(corners)) == pytest.approx(uniformity(corners))
