"""Accuracy, the geometry of the space, and dev recalls, by hand and beside the user's numbers."""

import numpy as np
import pytest
import torch

import minicliplib as mc
from minicliplib.analysis.measures import (
    alignment,
    classification,
    dev_recalls,
    embed,
    modality_gap,
    recall_of_each_image,
    uniformity,
)
from minicliplib.features import Features


def test_classification_by_hand():
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7]])
    report = classification(scores, np.array([0, 2, 1, 2]), ks=(1, 2))
    assert report["top1"] == 0.5  # the third is a tie, which counts against us
    assert report["top2"] == 1.0
    assert report["per_class"] == [1.0, 0.0, 0.5]
    assert report["chance"] == {"top1": pytest.approx(1 / 3), "top2": pytest.approx(2 / 3)}
    low, high = report["interval"]["top1"]
    assert 0 <= low < 0.5 < high <= 1

    without_images = classification(scores, np.zeros(4, int))["per_class"][1]
    assert np.isnan(without_images)
    for labels in ([0, 1], [0, 1, 2, 3]):
        with pytest.raises(ValueError, match="label"):
            classification(scores, np.array(labels))


def test_a_collapsed_classifier_names_nothing():
    assert classification(np.ones((5, 4)), np.arange(5) % 4)["top1"] == 0


def test_geometry_by_hand():
    east = np.array([[1.0, 0], [1, 0]])
    north = np.array([[0.0, 1], [0, 1]])
    assert alignment(east, east) == 0
    assert alignment(east, north) == pytest.approx(2)
    assert modality_gap(east, north) == pytest.approx(2**0.5)
    assert uniformity(east) == pytest.approx(0)  # collapsed

    corners = np.concatenate([np.eye(3), -np.eye(3)])  # 12 pairs at squared distance 2, 3 at 4
    assert uniformity(corners) == pytest.approx(np.log((12 * np.exp(-4) + 3 * np.exp(-8)) / 15))
    assert uniformity(torch.tensor(corners)) == pytest.approx(uniformity(corners))


@pytest.fixture(scope="module")
def model() -> mc.MiniCLIP:
    mc.set_seed(0)
    config = mc.Config().updated(
        encoders={"image_trainable": 2, "text_trainable": 1}, features={"cache_dtype": "float32"}
    )
    return mc.MiniCLIP(config)


def test_the_recalls_of_the_images_average_to_the_mean_recall():
    image_of_caption = np.repeat(np.arange(40), 3)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(40, 8))
    captions = images[image_of_caption] + rng.normal(size=(120, 8))
    ranked = mc.ranks_from_embeddings(images, captions, image_of_caption)
    of_each = recall_of_each_image(ranked, image_of_caption)
    assert of_each.shape == (40,)
    assert of_each.mean() == pytest.approx(mc.summarise(ranked, 40)["mean_recall"])
    assert of_each.min() < of_each.max() <= 1


def test_an_image_is_judged_by_its_own_queries_alone():
    # The first image finds its caption and is found by it; the second is found by neither.
    ranked = {"image_to_text": np.array([0, 50]), "text_to_image": np.array([0, 50])}
    assert recall_of_each_image(ranked, np.array([0, 1])).tolist() == [1, 0]


def test_an_image_without_captions_is_left_out():
    # Of three images the second has no caption, so there are ranks for two.
    ranked = {"image_to_text": np.array([0, 0]), "text_to_image": np.array([0, 50])}
    assert recall_of_each_image(ranked, np.array([0, 2])).tolist() == [1, 0.5]


def test_dev_is_embedded_as_the_user_embeds(model, pairs):
    few = pairs.subset(range(16))
    images, captions = embed(model, Features(model, few), batch_size=5)
    assert torch.allclose(images, model.encode_image(few.images), atol=1e-4)
    assert torch.allclose(captions, model.encode_text(few.flat_captions), atol=1e-4)


@pytest.mark.slow
def test_dev_recalls_are_the_users_and_are_measured_beside_the_geometry(model):
    data = mc.load_dataset("sample", "dev", limit=12)
    row = dev_recalls(model, Features(model, data))
    scores = mc.evaluate(model, data)["scores"]
    assert row["dev_mean_recall"] == pytest.approx(scores["mean_recall"], abs=1e-6)
    assert row["dev_i2t_R@5"] == pytest.approx(scores["image_to_text"]["R@5"], abs=1e-6)
    assert row["dev_t2i_R@1"] == pytest.approx(scores["text_to_image"]["R@1"], abs=1e-6)
    images = model.encode_image(data.images)
    firsts = model.encode_text([captions[0] for captions in data.captions])
    assert row["alignment"] == pytest.approx(alignment(images, firsts), abs=1e-4)
    assert row["modality_gap"] == pytest.approx(modality_gap(images, firsts), abs=1e-4)
    assert row["uniformity_text"] == pytest.approx(uniformity(firsts), abs=1e-3)
