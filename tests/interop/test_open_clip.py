"""The triple gives our vectors, and clip_benchmark, unmodified, gives our numbers on it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

import minicliplib as mc

PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "peers.py"


def test_the_transform_makes_the_pixels_that_the_tower_wants(everyday, pairs):
    _, transform, _ = mc.as_open_clip(everyday)
    images = pairs.images[:5]
    pixels = torch.stack([transform(image) for image in images])
    assert torch.equal(pixels, everyday.image_encoder.prepare(images))


def test_the_tokenizer_pads_and_cuts_to_one_length(everyday):
    _, _, tokenizer = mc.as_open_clip(everyday)
    tokens = tokenizer(["a dog", "the " * 60])
    assert tokens.shape == (2, 40)
    assert tokens.dtype == torch.long
    assert torch.equal(tokenizer("a dog"), tokens[:1])


@pytest.fixture(scope="module")
def reader() -> mc.MiniCLIP:
    """A model whose heads read a frozen stage of each tower, and others."""
    mc.set_seed(0)
    reads = {"image_reads": "block9+block16+last", "text_reads": "layer2+layer5+last"}
    cuts = {"image_trainable": 2, "text_trainable": 2}
    return mc.MiniCLIP(mc.Config().updated(encoders=reads | cuts, inference={"tta_views": 4}))


@pytest.mark.slow
@pytest.mark.parametrize("which", ["everyday", "reader"])
def test_the_triple_gives_our_vectors(which, pairs, request):
    model = request.getfixturevalue(which)
    wrapped, transform, tokenizer = mc.as_open_clip(model)
    images = pairs.images[:5]
    texts = ["a dog", *pairs.flat_captions[:4], "the " * 60]
    pixels = torch.stack([transform(image) for image in images])
    tokens = tokenizer(texts)

    # The images' are averaged over the four views of the config.
    of_images = wrapped.encode_image(pixels)
    of_texts = wrapped.encode_text(tokens)
    assert torch.allclose(of_images, model.encode_image(images), atol=1e-5)
    assert torch.allclose(of_texts, model.encode_text(texts), atol=1e-5)
    assert torch.equal(wrapped.encode_image(pixels, normalize=True), of_images)
    assert torch.equal(wrapped.encode_text(tokens, normalize=True), of_texts)

    image_vectors, text_vectors, scale = wrapped(pixels, tokens)
    assert torch.equal(image_vectors, of_images)
    assert torch.equal(text_vectors, of_texts)
    assert scale == wrapped.logit_scale.exp() == model.scale()


def test_a_text_without_a_word_is_refused(everyday):
    _, _, tokenizer = mc.as_open_clip(everyday)
    with pytest.raises(ValueError, match="Text 1"):
        tokenizer(["a dog", " "])


# ---- clip_benchmark ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    """The benchmark that calls clip_benchmark."""
    pytest.importorskip("clip_benchmark")
    spec = importlib.util.spec_from_file_location("peers", PEERS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_retrieval_by_clip_benchmark(peers, everyday):
    found = peers.retrieval(everyday, mc.load_dataset("sample", "test", limit=48))
    assert 0.5 < found["ours"]["image_retrieval_recall@1"] < 1
    assert found["clip_benchmark"] == pytest.approx(found["ours"], abs=1e-6)


@pytest.mark.slow
def test_classification_by_clip_benchmark(peers, everyday):
    data = mc.load_labelled("sample").subset(range(0, 200, 3))
    found = peers.classification(everyday, data, data.classes, mc.SCENE_TEMPLATES)
    assert found["ours"]["acc1"] > 0.1
    assert found["clip_benchmark"] == pytest.approx(found["ours"], abs=1e-6)
