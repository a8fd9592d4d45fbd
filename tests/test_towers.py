"""Every tower of the proposal in its true architecture, loaded from the hub's own cache, without a network."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from accelerate import Accelerator
from huggingface_hub import constants
from torch import nn
from transformers import BertConfig, BertForPreTraining, DistilBertConfig, DistilBertForMaskedLM

import minicliplib as mc
from minicliplib import encoders
from minicliplib.encoders import IMAGE_ENCODERS, TEXT_ENCODERS, ImageEncoder, TextEncoder
from minicliplib.features import Features
from minicliplib.training import Learner, epoch_batches

TEXTS = [
    "a dog.",
    "two brown dogs run along a sunny beach, and a child looks on.",
    "a red kite in the snow",
]
# Of the whole encoder as published, an image encoder's 1,000 ImageNet classes included.
PARAMETERS = {
    "efficientnet_lite0": 4_652_008,
    "resnet50": 25_557_032,
    "vit_small": 22_050_664,
    "minilm": 22_713_216,
    "distilbert": 66_362_880,
    "bert_tiny": 4_385_920,
}


def snapshot(repository: str) -> Path:
    """Make the folder in which the hub's cache keeps a repository's newest revision."""
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return folder / "snapshots" / ("0" * 40)


def vocabulary() -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz,."
    return [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{x}" for x in letters),
        "dog",
    ]


@pytest.fixture(scope="module", autouse=True)
def hub():
    """A hub cache as a user's machine holds it after one download, but with random weights."""
    torch.manual_seed(0)
    for name in ("resnet50", "vit_small"):
        model = timm.create_model(IMAGE_ENCODERS[name])
        folder = snapshot(f"timm/{IMAGE_ENCODERS[name]}")
        timm.models.save_for_hf(model, folder, safe_serialization=True)
        assert count(model) == PARAMETERS[name]
    folder = snapshot(TEXT_ENCODERS["distilbert"])
    DistilBertForMaskedLM(DistilBertConfig()).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    # Google's small BERTs are of the older kind: a pickle, no model type, a bare vocabulary.
    folder, config = (
        snapshot(TEXT_ENCODERS["bert_tiny"]),
        BertConfig(
            hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
        ),
    )
    torch.save(BertForPreTraining(config).state_dict(), folder / "pytorch_model.bin")
    old = {key: value for key, value in config.to_diff_dict().items() if key != "model_type"}
    (folder / "config.json").write_text(json.dumps(old))
    (folder / "vocab.txt").write_text("\n".join(vocabulary()))
    yield
    shutil.rmtree(constants.HF_HUB_CACHE)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def once(monkeypatch, loader: str) -> None:
    """Load each encoder only once, for a test that cuts it at every depth."""
    load, loaded = getattr(encoders, loader), {}
    monkeypatch.setattr(
        encoders, loader, lambda *key: loaded.get(key) or loaded.setdefault(key, load(*key))
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGE_ENCODERS)
def test_an_image_tower_cut_anywhere_is_the_whole_one(name, monkeypatch):
    once(monkeypatch, "_load_image_model")
    encoder = ImageEncoder(name)
    assert count(encoder) == PARAMETERS[name] - 1000 * (encoder.dim + 1)
    batch = torch.randn(2, 3, encoder.size, encoder.size)
    with torch.no_grad():
        whole = encoder.model.forward_head(encoder.model.forward_features(batch), pre_logits=True)
    for trainable in range(-1, len(encoder.stages) + 1):
        cut = ImageEncoder(name, trainable)
        with torch.no_grad():
            assert torch.equal(cut.top(cut.trunk(batch)), whole)
        trains(cut)


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT_ENCODERS)
def test_a_text_tower_cut_anywhere_is_the_whole_one(name, monkeypatch):
    once(monkeypatch, "_load_text_model")
    encoder = TextEncoder(name)
    assert count(encoder) == PARAMETERS[name]
    ids, mask = encoder.prepare(TEXTS)
    with torch.no_grad():
        states = encoder.run(ids, mask)
        own = encoder.model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.allclose(states * mask[..., None], own * mask[..., None], atol=1e-5)
    for trainable in range(-1, len(encoder.stages) + 1):
        cut = TextEncoder(name, trainable)
        with torch.no_grad():
            assert torch.equal(
                cut.run(cut.run(ids, mask, stop=cut.frozen), mask, cut.frozen), states
            )
            assert torch.allclose(cut(ids, mask), encoder.pool(states, mask), atol=1e-5)
            one = ids[1:2], mask[1:2]  # alone a caption is in one bucket, with the same padding
            assert torch.equal(cut(*one), encoder.pool(encoder.run(*one), one[1]))
        trains(cut)


def trains(encoder) -> None:
    """Check that exactly the stages above the cut have a gradient to come."""
    for i, (_, steps) in enumerate(encoder.stages):
        parameters = [p for step in steps if isinstance(step, nn.Module) for p in step.parameters()]
        assert all(p.requires_grad == (i >= encoder.frozen) for p in parameters)


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXT_ENCODERS)
@pytest.mark.parametrize("image", IMAGE_ENCODERS)
def test_a_pair_takes_steps_and_comes_back_from_disk(image, text, pairs, tmp_path):
    settings = mc.Config().updated(
        **{
            "encoders.image": image,
            "encoders.text": text,
            "encoders.image_trainable": 2,
            "encoders.text_trainable": 1,
        },
        **{"train.batch_size": 8, "features.cache_dtype": "float32"},
    )
    losses, data = [], pairs.subset(range(8))
    for cache in (True, False):
        mc.set_seed(0)
        model = mc.MiniCLIP(settings)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        learner = Learner(settings, model, Accelerator(), Features(model, data, cache=cache))
        model.train()
        torch.manual_seed(0)
        batches = [next(epoch_batches(settings, learner.outputs, epoch)) for epoch in range(3)]
        losses.append([learner.train_step(*batch, np.random.default_rng(0)) for batch in batches])
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-5)
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0][2] < losses[0][0]
    moved = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moved <= learned  # neither a frozen weight nor a batch norm's statistic
    for part in ("image_encoder", "text_encoder", "image_head", "text_head", "logit_scale"):
        assert any(name.startswith(part) for name in moved)
    model.eval()
    same = mc.load(model.save(tmp_path, torch.float32))
    assert torch.equal(same.encode_image(data.images[:2]), model.encode_image(data.images[:2]))
    assert torch.equal(same.encode_text(TEXTS), model.encode_text(TEXTS))
