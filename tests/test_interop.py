"""The triple gives our vectors, and clip_benchmark, unmodified, gives our numbers on it."""

import importlib.util
from pathlib import Path

import pytest
import torch

import minicliplib as mc

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("peers", ROOT / "benchmarks" / "peers.py")
peers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(peers)


@pytest.fixture(scope="module")
def model() -> mc.MiniCLIP:
    return mc.load("mixed", "cpu")


def test_the_triple_gives_our_vectors(model, pairs):
    wrapped, transform, tokenizer = mc.as_open_clip(model)
    images, texts = pairs.images[:5], ["a dog", *pairs.flat_captions[:4], "the " * 60]
    pixels, tokens = torch.stack([transform(image) for image in images]), tokenizer(texts)

    assert torch.equal(pixels, model.image_encoder.prepare(images))
    assert tokens.shape == (6, 40)
    assert tokens.dtype == torch.long
    assert torch.equal(tokenizer("a dog"), tokens[:1])
    assert torch.allclose(
        wrapped.encode_image(pixels), model.encode_image(images), atol=1e-5
    )  # four looks
    assert torch.allclose(wrapped.encode_text(tokens), model.encode_text(texts), atol=1e-5)
    assert torch.equal(wrapped.encode_text(tokens, normalize=True), wrapped.encode_text(tokens))
    image_vectors, text_vectors, scale = wrapped(pixels, tokens)
    assert torch.equal(image_vectors, wrapped.encode_image(pixels))
    assert torch.equal(text_vectors, wrapped.encode_text(tokens))
    assert scale == wrapped.logit_scale.exp() == model.scale()


def test_a_text_without_a_word_is_refused(model):
    with pytest.raises(ValueError, match="Text 1 is empty"):
        mc.as_open_clip(model)[2](["a dog", " "])


@pytest.mark.slow
def test_retrieval_by_clip_benchmark(model):
    pytest.importorskip("clip_benchmark")
    found = peers.retrieval(model, mc.load_dataset("sample", "test", limit=48))
    assert 0.5 < found["ours"]["image_retrieval_recall@1"] < 1
    assert found["clip_benchmark"] == pytest.approx(found["ours"], abs=1e-6)


@pytest.mark.slow
def test_classification_by_clip_benchmark(model):
    pytest.importorskip("clip_benchmark")
    data = mc.load_labelled("sample").subset(range(0, 200, 3))
    found = peers.classification(model, data, data.classes, mc.SCENE_TEMPLATES)
    assert found["ours"]["acc1"] > 0.1
    assert found["clip_benchmark"] == pytest.approx(found["ours"], abs=1e-6)
