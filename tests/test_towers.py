"""Every named tower in its true architecture, loaded from the hub's own cache without a network."""

import json
import shutil
from itertools import product

import pytest
import timm
import torch
from accelerate import Accelerator
from huggingface_hub import constants
from torch import nn
from tower_files import hub_snapshot, load_only_once, write_tokenizer, write_vocabulary
from transformers import BertConfig, BertForPreTraining, DistilBertConfig, DistilBertForMaskedLM

import minicliplib as mc
from minicliplib.encoders import Encoder, ImageEncoder, TextEncoder
from minicliplib.features import Features
from minicliplib.interop.pretrained import IMAGE_ENCODERS, TEXT_ENCODERS
from minicliplib.training import Trainer

TEXTS = [
    "a dog.",
    "two brown dogs run along a sunny beach, and a child looks on.",
    "a red kite in the snow",
]
SIDE_BY_SIDE = "efficientnet_lite1+efficientnet_lite2"
# Of the whole encoder as published, with an image encoder's 1,000 ImageNet classes.
PARAMETERS = {
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
    "resnet50": 25_557_032,
    "vit_small": 22_050_664,
    "minilm": 22_713_216,
    "distilbert": 66_362_880,
    "bert_tiny": 4_385_920,
}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ---- the hub's cache -----------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def hub():
    """A hub cache as a user's machine holds it after one download, but with random weights."""
    torch.manual_seed(0)
    for name in ("resnet50", "vit_small"):
        put_image_tower_on_hub(name)
    put_distilbert_on_hub()
    put_bert_tiny_on_hub()
    yield
    shutil.rmtree(constants.HF_HUB_CACHE)


def put_image_tower_on_hub(name: str) -> None:
    model = timm.create_model(IMAGE_ENCODERS[name])
    assert count(model) == PARAMETERS[name]
    folder = hub_snapshot(f"timm/{IMAGE_ENCODERS[name]}")
    timm.models.save_for_hf(model, folder, safe_serialization=True)


def put_distilbert_on_hub() -> None:
    folder = hub_snapshot(TEXT_ENCODERS["distilbert"])
    DistilBertForMaskedLM(DistilBertConfig()).save_pretrained(folder)
    write_tokenizer(folder)


def put_bert_tiny_on_hub() -> None:
    """Google's small BERTs are of the older kind: a pickle, no model type, a bare vocabulary."""
    folder = hub_snapshot(TEXT_ENCODERS["bert_tiny"])
    config = BertConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
    )
    torch.save(BertForPreTraining(config).state_dict(), folder / "pytorch_model.bin")
    settings = config.to_diff_dict()
    settings.pop("model_type", None)
    (folder / "config.json").write_text(json.dumps(settings))
    write_vocabulary(folder)


# ---- towers --------------------------------------------------------------------------------------


def assert_only_the_top_trains(encoder: Encoder) -> None:
    """Check that exactly the stages above the cut have a gradient to come."""
    for i, (_, steps) in enumerate(encoder.stages):
        for step in steps:
            if isinstance(step, nn.Module):
                trains = [parameter.requires_grad for parameter in step.parameters()]
                assert trains == [i >= encoder.frozen] * len(trains)


def assert_every_cut_gives(
    expected: torch.Tensor, encoder: ImageEncoder, name: str, reads: str, batch: torch.Tensor
) -> None:
    """Cut an image tower behind every stage: it gives the same, and only its top trains."""
    for trainable in range(-1, len(encoder.stages) + 1):
        cut = ImageEncoder(name, trainable, reads)
        with torch.no_grad():
            assert torch.equal(cut.top(cut.trunk(batch)), expected)
        assert_only_the_top_trains(cut)


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGE_ENCODERS)
def test_an_image_tower_cut_anywhere_is_the_whole_one(name, monkeypatch):
    load_only_once(monkeypatch, "load_image_model")
    encoder = ImageEncoder(name)
    assert count(encoder) == PARAMETERS[name] - 1000 * (encoder.dim + 1)
    batch = torch.randn(2, 3, encoder.size, encoder.size)
    with torch.no_grad():
        whole = encoder.model.forward_head(encoder.model.forward_features(batch), pre_logits=True)

    assert_every_cut_gives(whole, encoder, name, "last", batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT_ENCODERS)
def test_a_text_tower_cut_anywhere_is_the_whole_one(name, monkeypatch):
    load_only_once(monkeypatch, "load_text_model")
    encoder = TextEncoder(name)
    assert count(encoder) == PARAMETERS[name]
    ids, mask = encoder.prepare(TEXTS)
    # Alone a caption is in one bucket, with the same padding.
    one_ids = ids[1:2]
    one_mask = mask[1:2]
    with torch.no_grad():
        states = encoder.run(ids, mask)
        pooled = encoder.pool(states, mask)
        one_pooled = encoder.pool(encoder.run(one_ids, one_mask), one_mask)
        own = encoder.model(input_ids=ids, attention_mask=mask).last_hidden_state
    counts = mask[..., None]
    assert torch.allclose(states * counts, own * counts, atol=1e-5)

    for trainable in range(-1, len(encoder.stages) + 1):
        cut = TextEncoder(name, trainable)
        with torch.no_grad():
            hidden = cut.run(ids, mask, stop=cut.frozen)
            assert torch.equal(cut.run(hidden, mask, cut.frozen), states)
            assert torch.allclose(cut(ids, mask), pooled, atol=1e-5)
            assert torch.equal(cut(one_ids, one_mask), one_pooled)
        assert_only_the_top_trains(cut)


IMAGE_READS = {
    "efficientnet_lite0": "block5+block11+last",
    "efficientnet_lite1": "stem+block20+head",
    "efficientnet_lite2": "block7+block21+head",
    "resnet50": "block3+block13+last",
    "vit_small": "stem+block6+block12",
}
TEXT_READS = {
    "minilm": "layer1+layer4+last",
    "distilbert": "embeddings+layer3+layer5",
    "bert_tiny": "embeddings+layer1+layer2",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGE_ENCODERS)
def test_an_image_tower_cut_anywhere_reads_the_same_stages(name, monkeypatch):
    load_only_once(monkeypatch, "load_image_model")
    reads = IMAGE_READS[name]
    encoder = ImageEncoder(name, reads=reads)
    batch = torch.randn(2, 3, encoder.size, encoder.size)
    with torch.no_grad():
        maps = [encoder.run(batch, None, 0, stage + 1) for stage in encoder.reads]
        expected = torch.cat([encoder.model.forward_head(x, pre_logits=True) for x in maps], 1)
    assert encoder.dim == expected.shape[1]

    assert_every_cut_gives(expected, encoder, name, reads, batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT_ENCODERS)
def test_a_text_tower_cut_anywhere_reads_the_same_stages(name, monkeypatch):
    load_only_once(monkeypatch, "load_text_model")
    reads = TEXT_READS[name]
    encoder = TextEncoder(name, reads=reads)
    ids, mask = encoder.prepare(TEXTS)
    with torch.no_grad():
        # As transformers itself gives the states after each layer, embeddings first.
        own = encoder.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    counts = mask[..., None]
    pooled = [(own.hidden_states[i] * counts).sum(1) / counts.sum(1) for i in encoder.reads]
    expected = torch.cat(pooled, 1)
    assert encoder.dim == expected.shape[1]

    for trainable in range(-1, len(encoder.stages) + 1):
        cut = TextEncoder(name, trainable, reads)
        with torch.no_grad():
            assert torch.allclose(cut(ids, mask), expected, atol=1e-5)
        assert_only_the_top_trains(cut)


# ---- pairs of towers -----------------------------------------------------------------------------


def three_steps(config: mc.Config, data: mc.CaptionedImages, cache: bool):
    """Train a new model for three epochs of one step.

    Return it, its weights before the first step, and the three losses.
    """
    mc.set_seed(0)
    model = mc.MiniCLIP(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = Trainer(config, model, Features(model, data, cache=cache), Accelerator())
    assert trainer.steps_per_epoch == 1
    losses = [trainer.train_epoch(epoch)["loss"] for epoch in range(3)]
    return model, before, losses


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "text"), [*product(IMAGE_ENCODERS, TEXT_ENCODERS), (SIDE_BY_SIDE, "minilm")]
)
def test_a_pair_takes_steps_and_comes_back_from_disk(image, text, pairs, tmp_path):
    config = mc.Config().updated(
        encoders={"image": image, "text": text, "image_trainable": 2, "text_trainable": 1},
        features={"cache_dtype": "float32"},
        train={"batch_size": 8},
    )
    data = pairs.subset(range(8))
    _, _, cached = three_steps(config, data, cache=True)
    model, before, uncached = three_steps(config, data, cache=False)
    assert cached[0] == pytest.approx(uncached[0], abs=1e-5)
    assert cached == pytest.approx(uncached, abs=1e-4)
    assert cached[2] < cached[0]

    # Every part has learned, but no frozen weight and no statistic of a batch norm has changed.
    changed = set()
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, before[name]):
            changed.add(name)
    assert changed <= {name for name, p in model.named_parameters() if p.requires_grad}
    for part in ("image_encoder", "text_encoder", "image_head", "text_head", "logit_scale"):
        assert any(name.startswith(part) for name in changed)

    same = mc.load(model.save(tmp_path, torch.float32))
    images = data.images[:2]
    assert torch.equal(same.encode_image(images), model.encode_image(images))
    assert torch.equal(same.encode_text(TEXTS), model.encode_text(TEXTS))
