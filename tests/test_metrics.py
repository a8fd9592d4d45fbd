"""Recall@K, its interval and chance, against loops written out here and numbers worked by hand."""

import itertools
import json
import random

import numpy as np
import pytest
import torch

from minicliplib.analysis.measures import classification
from minicliplib.metrics import (
    DIRECTIONS,
    bootstrap,
    bootstrap_mean,
    chance,
    ranks,
    ranks_from_embeddings,
    recall_at_k,
    summarise,
)

FIVE_EACH = np.repeat(np.arange(200), 5)


def ranks_by_definition(similarity, image_of_caption):
    """How many wrong items are at least as good as the best right one? In plain loops."""
    n_images = len(similarity)
    n_captions = len(image_of_caption)

    image_to_text = []
    for i in range(n_images):
        own = [similarity[i][j] for j in range(n_captions) if image_of_caption[j] == i]
        wrong = [similarity[i][j] for j in range(n_captions) if image_of_caption[j] != i]
        if own:
            image_to_text.append(sum(score >= max(own) for score in wrong))

    text_to_image = []
    for j in range(n_captions):
        right = similarity[image_of_caption[j]][j]
        wrong = [similarity[i][j] for i in range(n_images) if i != image_of_caption[j]]
        text_to_image.append(sum(score >= right for score in wrong))

    return image_to_text, text_to_image


def assert_ranks(ranked, expected):
    image_to_text, text_to_image = expected
    assert ranked["image_to_text"].tolist() == list(image_to_text)
    assert ranked["text_to_image"].tolist() == list(text_to_image)


def unit(rng, *shape):
    vectors = rng.standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


# With 3 different scores nearly everything ties, with 1000 nearly nothing does.
@pytest.mark.parametrize("levels", [3, 1000])
@pytest.mark.parametrize("counts", [[1] * 9, [5] * 7, [1, 4, 2, 7, 1, 3], [2, 0, 3, 0, 1]])
def test_ranks_follow_their_definition(levels, counts):
    draw = random.Random(f"{levels} {counts}")
    image_of_caption = [image for image, count in enumerate(counts) for _ in range(count)]
    draw.shuffle(image_of_caption)
    similarity = [[draw.randrange(levels) / levels for _ in image_of_caption] for _ in counts]

    expected = ranks_by_definition(similarity, image_of_caption)
    for block in (1, 2, 1024):
        ranked = ranks(np.array(similarity), np.array(image_of_caption), block=block)
        assert_ranks(ranked, expected)

    # Tensors are in single precision, where other scores may tie.
    ranked = ranks(torch.tensor(similarity), torch.tensor(image_of_caption))
    assert_ranks(ranked, ranks_by_definition(np.float32(similarity), image_of_caption))


@pytest.mark.parametrize("block", [1, 7, 16, 1000])
def test_blockwise_ranks_equal_the_whole_matrix(block):
    # Whole numbers multiply exactly and tie often; 40 images and 130 captions span several blocks.
    rng = np.random.default_rng(0)
    images = rng.integers(-2, 3, (40, 4))
    texts = rng.integers(-2, 3, (130, 4))
    image_of_caption = rng.permutation(np.r_[np.arange(40), rng.integers(0, 40, 90)])

    expected = ranks_by_definition((images @ texts.T).tolist(), image_of_caption.tolist())
    assert_ranks(ranks_from_embeddings(images, texts, image_of_caption, block=block), expected)

    ranked = ranks_from_embeddings(
        torch.tensor(images).bfloat16(),
        torch.tensor(texts).half(),
        torch.tensor(image_of_caption),
        block=block,
    )
    assert_ranks(ranked, expected)


def test_duplicate_embeddings_tie_whatever_the_block():
    # An odd number of images, so that single precision would round twins differently.
    rng = np.random.default_rng(1)
    once = unit(rng, 31, 64)
    image_of_caption = np.repeat(np.arange(31), 8)
    texts = once[image_of_caption] + unit(rng, len(image_of_caption), 64)

    # Each image has a twin, which must always count against us.
    images = np.r_[once, once]
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
)
RANKS_OF_IMAGES = [0, 2, 6, 1]
# By column, the wrong images at or above the own score. The 3 and the last two 2s hold a tie.
RANKS_OF_CAPTIONS = [0, 3, 1, 2, 0, 2, 2, 0]


def test_recall_by_hand():
    image_of_caption = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    assert_ranks(ranks(BY_HAND, image_of_caption), (RANKS_OF_IMAGES, RANKS_OF_CAPTIONS))

    result = recall_at_k(BY_HAND, image_of_caption, ks=(1, 2, 3))
    assert result == {
        "image_to_text": {"R@1": 1 / 4, "R@2": 2 / 4, "R@3": 3 / 4, "median_rank": 2.5},
        "text_to_image": {"R@1": 3 / 8, "R@2": 4 / 8, "R@3": 7 / 8, "median_rank": 2.5},
        "mean_recall": pytest.approx((1 / 4 + 2 / 4 + 3 / 4 + 3 / 8 + 4 / 8 + 7 / 8) / 6),
        "images": 4,
        "captions": 8,
    }
    assert json.loads(json.dumps(result)) == result

    tensors = (torch.tensor(BY_HAND), torch.tensor(image_of_caption))
    assert recall_at_k(*tensors, ks=(1, 2, 3)) == result


def test_perfect_match_finds_everything():
    embeddings = np.eye(200)
    ranked = ranks_from_embeddings(embeddings, embeddings[FIVE_EACH], FIVE_EACH)
    result = summarise(ranked, 200)
    assert result["mean_recall"] == 1.0
    assert result["image_to_text"]["median_rank"] == 1.0
    assert result["text_to_image"]["median_rank"] == 1.0


@pytest.mark.parametrize("block", [17, 1024])
def test_collapsed_embeddings_are_at_most_chance(block):
    same = unit(np.random.default_rng(2), 1, 64)
    images = same.repeat(200, axis=0)
    texts = same.repeat(1000, axis=0)
    result = summarise(ranks_from_embeddings(images, texts, FIVE_EACH, block=block), 200)
    lucky = chance(FIVE_EACH, 200)
    for direction in DIRECTIONS:
        for name, value in lucky[direction].items():
            assert 0 < value < 0.1
            assert result[direction][name] <= value
    assert recall_at_k(np.zeros((200, 1000)), FIVE_EACH)["mean_recall"] == 0


def test_permuting_the_pairs_permutes_the_ranks():
    rng = np.random.default_rng(3)
    similarity = rng.standard_normal((12, 30))
    image_of_caption = np.r_[np.arange(12), rng.integers(0, 12, 18)]
    images = rng.permutation(12)
    captions = rng.permutation(30)

    new_number = np.argsort(images)
    before = ranks(similarity, image_of_caption)
    after = ranks(similarity[images][:, captions], new_number[image_of_caption][captions])
    assert_ranks(after, (before["image_to_text"][images], before["text_to_image"][captions]))
    assert len(set(before["text_to_image"].tolist())) > 3


def test_bootstrap_holds_the_estimate_and_narrows_with_more_images():
    widths = []
    for n_images in (60, 600):
        # Recalls in the middle of the range: half of the queries succeed, the other half fail.
        ranked = {
            "image_to_text": np.arange(n_images) % 20,
            "text_to_image": np.arange(5 * n_images) // 5 % 20,
        }
        point = summarise(ranked, n_images)
        interval = bootstrap(ranked, np.repeat(np.arange(n_images), 5))
        assert list(interval) == ["image_to_text", "text_to_image", "mean_recall"]
        assert list(interval["image_to_text"]) == ["R@1", "R@5", "R@10"]

        low, high = interval["mean_recall"]
        assert low < point["mean_recall"] < high
        for direction in DIRECTIONS:
            for name, (low, high) in interval[direction].items():
                assert low < point[direction][name] < high

        # A share of 1/2 among n has the standard error sqrt(1/4 / n); 95% is 1.96 of them each way.
        low, high = interval["image_to_text"]["R@10"]
        assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / n_images), rel=0.1)
        widths.append(high - low)
    assert widths[1] < widths[0] / 2.5


def test_bootstrap_draws_images_with_their_captions():
    image_of_caption = np.repeat(np.arange(100), 5)
    ranks_of_images = np.zeros(100, int)

    # Half of the images are found with all five captions: 100 independent draws, not 500.
    together = np.where(image_of_caption < 50, 0, 50)
    ranked = {"image_to_text": ranks_of_images, "text_to_image": together}
    low, high = bootstrap(ranked, image_of_caption)["text_to_image"]["R@1"]
    wide = high - low
    assert wide == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 100), rel=0.1)

    # Every image is found with about half of its captions.
    apart = np.where(np.arange(500) % 2, 0, 50)
    ranked = {"image_to_text": ranks_of_images, "text_to_image": apart}
    low, high = bootstrap(ranked, image_of_caption)["text_to_image"]["R@1"]
    assert high - low < wide / 3


def test_bootstrap_repeats_by_seed_and_takes_uneven_captions():
    image_of_caption = np.array([4, 0, 0, 2, 2, 2])  # images 1 and 3 have no caption, 4 comes first
    ranked = ranks(np.random.default_rng(4).standard_normal((5, 6)), image_of_caption)
    first = bootstrap(ranked, image_of_caption, ks=(1, 2), n=50, seed=0)
    again = bootstrap(ranked, image_of_caption, ks=(1, 2), n=50, seed=0)
    other = bootstrap(ranked, image_of_caption, ks=(1, 2), n=50, seed=1)
    assert first == again
    assert first != other

    # Each single image can make up a whole resample of three, so recalls from 0 to 1 are reached.
    certain = {"image_to_text": np.zeros(3, int), "text_to_image": np.array([0, 9, 9, 9, 9, 9])}
    low, high = bootstrap(certain, image_of_caption, ks=(1,), n=4000)["text_to_image"]["R@1"]
    assert (low, high) == (0.0, 1.0)

    with pytest.raises(ValueError, match="ranks"):
        bootstrap(ranked, image_of_caption[:-1])


def test_one_resampling_gives_all_intervals():
    """Each interval is that of the mean over the same draws of images, written out here."""
    rng = np.random.default_rng(6)
    found = rng.random((40, 2)) < 0.4
    means = [
        found[draw].mean(axis=0) for draw in np.random.default_rng(7).integers(40, size=(300, 40))
    ]
    expected = np.percentile(means, [2.5, 97.5], axis=0).T.tolist()
    assert bootstrap_mean(found, n=300, seed=7) == expected
    assert bootstrap_mean(torch.tensor(found[:, 0]), n=300, seed=7) == expected[0]

    # One caption an image: both directions draw the same images, and no image weighs more.
    ranked = {
        "image_to_text": np.where(found[:, 0], 0, 9),
        "text_to_image": np.where(found[:, 1], 0, 9),
    }
    interval = bootstrap(ranked, np.arange(40), ks=(1,), n=300, seed=7)
    assert interval["image_to_text"]["R@1"] == expected[0]
    assert interval["text_to_image"]["R@1"] == expected[1]

    # Scores of two classes that put the right one first where it was found.
    scores = np.where(found[:, :1], [1.0, 0.0], [0.0, 1.0])
    report = classification(scores, np.zeros(40, int), ks=(1,), n=300, seed=7)
    assert report["interval"]["top1"] == expected[0]


def test_chance_agrees_with_a_simulation_and_with_counting():
    # Image 4 has no caption, so six images are in the pool.
    image_of_caption = np.array([0, 0, 0, 0, 1, 2, 2, 3, 3, 3, 5, 5])
    expected = chance(image_of_caption, 6, ks=(1, 3, 8))
    assert (expected["images"], expected["captions"]) == (6, 12)

    rng = np.random.default_rng(5)
    drawn = [recall_at_k(rng.random((6, 12)), image_of_caption, ks=(1, 3, 8)) for _ in range(4000)]
    for direction in DIRECTIONS:
        for name, value in expected[direction].items():
            simulated = np.mean([one[direction][name] for one in drawn])
            assert simulated == pytest.approx(min(value, 1.0), abs=0.015)
    simulated = np.mean([one["mean_recall"] for one in drawn])
    assert simulated == pytest.approx(expected["mean_recall"], abs=0.01)

    # All 3-subsets of 12 captions that hold at least one of an image's 4, 1, 2, 3 and 2.
    subsets = list(itertools.combinations(image_of_caption, 3))
    hits = []
    for image in (0, 1, 2, 3, 5):
        hits.append(sum(image in subset for subset in subsets) / len(subsets))
    assert expected["image_to_text"]["R@3"] == pytest.approx(np.mean(hits))


def test_chance_on_the_flickr8k_pools():
    expected = chance(np.repeat(np.arange(1000), 5), 1000)
    assert expected["text_to_image"] == {"R@1": 0.001, "R@5": 0.005, "R@10": 0.01}
    assert expected["image_to_text"]["R@1"] == pytest.approx(0.001)
    assert expected["image_to_text"]["R@10"] == pytest.approx(1 - (4995 / 5000) ** 10, rel=0.01)


def test_k_beyond_the_pool_is_certain():
    expected = chance([0, 1], 2)
    assert expected["image_to_text"] == {"R@1": 0.5, "R@5": 1.0, "R@10": 1.0}
    assert recall_at_k(np.eye(2)[::-1], [0, 1])["text_to_image"]["R@5"] == 1.0


@pytest.mark.parametrize(
    ("similarity", "image_of_caption", "message"),
    [
        ([[1.0, float("nan")]], [0, 0], "NaN"),
        ([[1.0, float("inf")]], [0, 0], "NaN or infinity"),
        ([[1.0, -float("inf")]], [0, 0], "NaN or infinity"),
        ([[1.0, 2.0]], [0, 1], "from 0 to 0"),
        ([[1.0, 2.0]], [0, -1], "from 0 to 0"),
        ([[1.0, 2.0]], [0.0, 0.0], "whole numbers"),
        ([[1.0, 2.0]], [0], "2 captions"),
        ([[1.0, 2.0]], [[0, 0]], "2 captions"),
        ([1.0, 2.0], [0, 0], "matrix"),
        ([[], []], [], "0 captions"),
    ],
)
def test_bad_input_is_named(similarity, image_of_caption, message):
    with pytest.raises(ValueError, match=message):
        recall_at_k(np.array(similarity), np.array(image_of_caption))
    with pytest.raises(ValueError, match=message):
        recall_at_k(torch.tensor(similarity), torch.tensor(image_of_caption))


def test_bad_embeddings_and_ks_are_named():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        ranks_from_embeddings(np.ones((2, 3)), np.ones((2, 4)), [0, 1])
    with pytest.raises(ValueError, match="NaN"):
        ranks_from_embeddings(np.full((2, 3), np.nan), np.ones((2, 3)), [0, 1])
    for ks in ((), (0, 1)):
        with pytest.raises(ValueError, match="ks"):
            recall_at_k(np.eye(2), [0, 1], ks=ks)
        with pytest.raises(ValueError, match="ks"):
            chance([0, 1], 2, ks=ks)
