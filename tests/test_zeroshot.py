"""Zero-shot: weights against their definition, predictions against a loop, and clear refusals."""

import pytest
import torch
import torch.nn.functional as F

import minicliplib as mc
from minicliplib.datasets.labelled import class_phrase
from minicliplib.zeroshot import fill


@pytest.fixture(scope="module")
def shipped() -> mc.MiniCLIP:
    return mc.load("flickr8k")


@pytest.fixture(scope="module")
def classifier(shipped) -> mc.ZeroShotClassifier:
    names = ["cat", "owl", "man with a camera"]
    return mc.ZeroShotClassifier(shipped, names, ["A {}.", "a photo of a {}."])


def test_weights_are_the_mean_of_the_prompts_and_of_unit_length(shipped, classifier):
    assert classifier.weights.shape == (3, shipped.dim)
    by_hand = shipped.encode_text(["An owl.", "a photo of an owl."]).mean(0)
    assert torch.allclose(classifier.weights[1], F.normalize(by_hand, dim=0), atol=1e-5)
    assert torch.allclose(classifier.weights.norm(dim=1), torch.ones(3), atol=1e-5)


def test_it_names_free_photos(classifier):
    photos = {path.name: path for path in mc.load_dataset("photos").images}
    guesses = classifier.predict([photos["chelsea.png"], photos["camera.png"]], k=2)
    assert [guess[0][0] for guess in guesses] == ["cat", "man with a camera"]
    for guess in guesses:
        assert len(guess) == 2
        assert guess[0][1] > guess[1][1] > 0


def test_probabilities_are_the_softmax_of_scaled_cosines(shipped, classifier):
    vectors = shipped.encode_image(mc.load_dataset("photos", limit=2).images)
    powers = (shipped.scale().item() * vectors @ classifier.weights.T).exp()
    expected = powers / powers.sum(1, keepdim=True)
    assert torch.allclose(classifier.probabilities(vectors), expected, atol=1e-5)

    # Never more labels than there are classes.
    assert [len(row) for row in classifier.predict(vectors, k=50)] == [3, 3]


def test_calibration_takes_away_what_every_image_has(shipped):
    vectors = shipped.encode_image(mc.load_dataset("photos").images)
    calibrated = mc.ZeroShotClassifier(shipped, ["cat", "dog"]).calibrate(vectors)
    assert calibrated.scores(vectors).mean(0).abs().max() < 1e-6
    plain = mc.ZeroShotClassifier(shipped, ["cat", "dog"])
    assert torch.equal(plain.scores(vectors), vectors @ plain.weights.T)


def test_nothing_to_calibrate_with_and_no_label_are_refused(classifier):
    with pytest.raises(ValueError, match="image"):
        classifier.calibrate(torch.zeros(0, classifier.weights.shape[1]))
    with pytest.raises(ValueError, match="k must"):
        classifier.predict(classifier.weights[:1], k=0)


def test_words():
    assert fill("A {} on a {}.", "owl") == "An owl on an owl."
    assert fill("the {}", "umbrella") == "the umbrella"
    assert class_phrase("Stop_Sign") == "stop sign"
    assert class_phrase("stop_sign") == "stop sign"
    assert class_phrase("car_side") == "car"


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], ["{}"], "one or more labels"),
        (["cat", " "], ["{}"], "none of them empty"),
        (["cat", "cat"], ["{}"], "'cat' appears twice"),
        (["cat"], ["a photo"], "needs {}"),
        (["cat"], [], "needs {}"),
    ],
)
def test_bad_words_are_refused(shipped, names, templates, message):
    with pytest.raises(ValueError, match=message):
        mc.ZeroShotClassifier(shipped, names, templates)
