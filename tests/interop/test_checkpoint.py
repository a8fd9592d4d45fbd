"""Checkpoints: they come back as they were, from any place, and a damaged one is named."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_file, save_file
from tower_files import hub_snapshot

import minicliplib as mc
from minicliplib.interop.checkpoint import read_checkpoint
from minicliplib.model import fingerprint_of

TEXTS = ["a dog", "Two brown dogs run along a sunny beach, and a child looks on."]


@pytest.fixture(scope="module")
def images(pairs):
    return pairs.images[:3]


@pytest.fixture(scope="module")
def saved(tuned, tmp_path_factory) -> Path:
    return tuned.save(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


# ---- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0), (torch.float16, 2e-3)])
def test_a_loaded_model_gives_the_vectors_of_the_saved_one(
    tuned, images, tmp_path, monkeypatch, dtype, tolerance
):
    monkeypatch.setattr(tuned.logit_scale, "data", torch.tensor(3.0))
    model = mc.load(tuned.save(tmp_path / "new" / "folder", dtype))
    assert model.config == tuned.config
    assert not model.training
    assert model.scale().item() == pytest.approx(math.exp(3), rel=1e-3)
    there = tuned.encode_image(images)
    assert torch.allclose(model.encode_image(images), there, atol=tolerance, rtol=0)
    there = tuned.encode_text(TEXTS)
    assert torch.allclose(model.encode_text(TEXTS), there, atol=tolerance, rtol=0)


def test_a_checkpoint_holds_what_was_learned_and_its_settings(tuned, saved):
    names = {path.name for path in saved.iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}
    tensors = load_file(saved / "model.safetensors")
    assert tensors.keys() == {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values())
    assert not any("conv_stem" in name or "embeddings" in name for name in tensors)
    record = json.loads((saved / "config.json").read_text())
    assert mc.Config.from_dict(record["config"]) == tuned.config


def test_a_fixed_temperature_is_kept(tmp_path):
    config = mc.Config().updated(heads={"temperature": 0.2, "learn_temperature": False})
    model = mc.load(mc.MiniCLIP(config).save(tmp_path))
    assert model.scale().item() == pytest.approx(5, rel=1e-3)


def test_facts_are_kept(copy):
    facts = {"trained_on": {"name": "pairs", "images": 64, "captions": 64}}
    rewrite(copy, facts=facts)
    assert read_checkpoint(str(copy))[2] == facts
    model = mc.load(copy)
    assert model.facts == facts
    assert mc.load(model.save(copy.parent / "again")).facts == facts


def test_a_checkpoint_of_before_there_were_facts_loads(copy):
    record = json.loads((copy / "config.json").read_text())
    del record["facts"]
    (copy / "config.json").write_text(json.dumps(record))
    assert mc.load(copy).facts == {}


def test_the_fingerprint_is_known_without_building_the_model(saved):
    config, tensors, _ = read_checkpoint(str(saved))
    assert fingerprint_of(config, tensors) == mc.load(saved).fingerprint()


# ---- the hub -------------------------------------------------------------------------------------


def test_the_hubs_own_calls_read_and_write_the_same_folder(tuned, images, tmp_path):
    assert issubclass(mc.MiniCLIP, PyTorchModelHubMixin)
    tuned.save_pretrained(tmp_path)
    model = mc.MiniCLIP.from_pretrained(str(tmp_path))
    assert model.config == tuned.config
    assert torch.allclose(model.encode_image(images), tuned.encode_image(images), atol=2e-3)


@pytest.fixture
def on_hub(saved):
    """The name of a checkpoint that the hub's cache holds."""
    snapshot = hub_snapshot("someone/mini-clip")
    shutil.copytree(saved, snapshot, dirs_exist_ok=True)
    yield "someone/mini-clip"
    shutil.rmtree(snapshot.parents[1])


def test_a_checkpoint_of_the_hub_is_found_by_its_id(tuned, on_hub):
    expected = tuned.encode_text(TEXTS)
    for model in (mc.load(on_hub), mc.MiniCLIP.from_pretrained(on_hub)):
        assert model.config == tuned.config
        assert torch.allclose(model.encode_text(TEXTS), expected, atol=2e-3)


# ---- damage --------------------------------------------------------------------------------------


def rewrite(folder: Path, **changes) -> None:
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | changes))


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def no_config(folder):
    (folder / "config.json").unlink()


def half_of_the_weights(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def no_json(folder):
    (folder / "config.json").write_text("{")


def no_record(folder):
    (folder / "config.json").write_text("[1]")


def no_settings(folder):
    rewrite(folder, config=[1])


def other_format(folder):
    rewrite(folder, format=99)


def unknown_setting(folder):
    rewrite(folder, config={"heads": {"shape": "round"}})


def other_kind_of_value(folder):
    rewrite(folder, config={"heads": {"dim": "wide"}})


def other_shape(folder):
    config = json.loads((folder / "config.json").read_text())["config"]
    rewrite(folder, config=config | {"heads": config["heads"] | {"dim": 128}})


def other_stages(folder):
    config = json.loads((folder / "config.json").read_text())["config"]
    rewrite(folder, config=config | {"encoders": config["encoders"] | {"text_trainable": 0}})


def missing_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["logit_scale"]
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "noun"),
    [
        (no_weights, "whole checkpoint"),
        (no_config, "whole checkpoint"),
        (half_of_the_weights, "whole checkpoint"),
        (no_json, "whole checkpoint"),
        (no_record, "whole checkpoint"),
        (no_settings, "whole checkpoint"),
        (other_format, "format 99"),
        (unknown_setting, "'heads.shape'"),
        (other_kind_of_value, "heads.dim"),
        (other_shape, r"'image_head.*\(256.*\(128"),
        (other_stages, "'text_encoder"),
        (missing_tensor, "'logit_scale'"),
    ],
)
def test_a_damaged_checkpoint_is_one_clear_error(copy, damage, noun):
    damage(copy)
    with pytest.raises(mc.CheckpointError, match=noun):
        mc.load(copy)


def test_a_checkpoint_that_is_not_there(tmp_path):
    for name in (tmp_path / "nothing", "nothing"):
        with pytest.raises(mc.CheckpointError, match=r"nothing'.*flickr8k"):
            mc.load(name)
    # The tests run with HF_HUB_OFFLINE.
    with pytest.raises(mc.CheckpointError, match="'nobody/nothing'"):
        mc.load("nobody/nothing")


def test_a_kill_while_saving_leaves_the_old_checkpoint(tuned, copy, monkeypatch):
    before = (copy / "model.safetensors").read_bytes()

    def killed(tensors, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("minicliplib.interop.checkpoint.save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        tuned.save(copy)
    assert (copy / "model.safetensors").read_bytes() == before
    mc.load(copy)
