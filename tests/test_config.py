"""Settings survive a round trip, refuse what they do not know, and places follow the environment."""

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch

import minicliplib as mc
from minicliplib import paths as places

CHANGED = mc.Config().updated(**{"train.epochs": 3, "encoders.image": "resnet50", "loss.name": "sigmoid", "seed": 7})


@pytest.mark.parametrize("config", [mc.Config(), CHANGED, *mc.PRESETS.values()])
def test_a_config_survives_json(config):
    again = mc.Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.digest() == config.digest()


def test_a_part_of_a_config_fills_up_with_defaults():
    assert (
        mc.Config.from_dict({"train": {"epochs": 3}, "seed": 7}).updated(
            **{"encoders.image": "resnet50", "loss.name": "sigmoid"}
        )
        == CHANGED
    )


def test_updated_changes_a_copy_by_dotted_name():
    config = mc.Config()
    assert config.updated(**{"train.epochs": 3}).train.epochs == 3
    assert config.updated(seed=4).seed == 4
    assert config.train.epochs == mc.Config().train.epochs
    with pytest.raises(FrozenInstanceError):
        config.train.epochs = 5
    assert {"data.name", "train.lr_heads", "seed"} <= config.flat().keys()


@pytest.mark.parametrize("wrong", ["train.epoch", "trian.epochs", "epochs", "train"])
def test_an_unknown_setting_is_named_beside_the_known(wrong):
    with pytest.raises(ValueError, match=rf"no setting '{wrong}'. Known: data.name, .*train.epochs, .*seed"):
        mc.Config().updated(**{wrong: 3})


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [("train.epochs", "many", "int"), ("train.lr_heads", None, "float"), ("data.limit", 0.5, r"int \| None")],
)
def test_a_value_of_another_kind_is_an_error(name, value, kind):
    with pytest.raises(ValueError, match=rf"{name} takes {kind}, not {value!r}"):
        mc.Config().updated(**{name: value})
    accepted = mc.Config().updated(**{"train.clip_norm": 1, "data.root": Path("photos"), "data.limit": 3})
    assert accepted.train.clip_norm == 1  # a whole number is a float, too


def test_an_unknown_setting_in_a_record_is_an_error():
    with pytest.raises(ValueError, match=r"no setting 'train.momentum'"):
        mc.Config.from_dict({"train": {"momentum": 0.9}})
    with pytest.raises(ValueError, match=r"no setting 'optimiser.lr'"):
        mc.Config.from_dict({"optimiser": {"lr": 1}})


def test_the_digest_names_the_settings_and_not_the_place():
    config = mc.Config()
    assert config.digest() == mc.Config().digest()
    assert config.digest() == config.updated(**{"data.root": "/photos"}).digest()
    assert "/photos" not in json.dumps(config.updated(**{"data.root": "/photos"}).to_dict())
    one_each = [mc.Config().updated(**{name: value}) for name, value in [("seed", 1), ("train.epochs", 2)]]
    assert len({c.digest() for c in (config, *one_each, mc.preset("flickr8k"))}) == 4
    assert len(config.digest()) == 8


def test_presets():
    assert {name: mc.preset(name).data.name for name in mc.PRESETS} == {
        "sample": "sample",
        "flickr8k": "flickr8k",
        "coco": "coco",
        "mixed": "flickr8k+sample",
    }
    with pytest.raises(ValueError, match=r"Unknown preset 'imagenet'. Known: sample, flickr8k"):
        mc.preset("imagenet")


def test_a_seed_repeats_all_draws():
    draws = []
    for _ in range(2):
        mc.set_seed(3, threads=1)
        draws.append((torch.rand(3).tolist(), np.random.rand(3).tolist()))
    assert draws[0] == draws[1]
    assert torch.get_num_threads() == 1


def test_a_result_says_what_made_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MINICLIP_OUT", str(tmp_path))
    path = mc.save_result("sample", "03_training", {"loss": 1.5}, CHANGED, seconds=12.345)
    assert path == tmp_path / "report" / "results" / "sample" / "03_training.json"
    record = json.loads(path.read_text())
    assert (record["topic"], record["dataset"], record["metrics"]) == ("03_training", "sample", {"loss": 1.5})
    assert record["config"].pop("digest") == CHANGED.digest()
    assert mc.Config.from_dict(record["config"]) == CHANGED
    assert record["seconds"] == 12.3
    assert {"torch", "timm", "transformers", "minicliplib"} <= record["versions"].keys()
    assert mc.save_result("sample", "01_data", {}).exists()  # some results have no config


def test_places_follow_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MINICLIP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MINICLIP_OUT", str(tmp_path / "out"))
    assert (places.data_root(), mc.output_root()) == (tmp_path / "home", tmp_path / "out")
    monkeypatch.delenv("MINICLIP_HOME")
    monkeypatch.delenv("MINICLIP_OUT")
    monkeypatch.setattr(places, "IN_CHECKOUT", True)
    assert (places.data_root(), mc.output_root()) == (places.CHECKOUT / "data", places.CHECKOUT)
    monkeypatch.setattr(places, "IN_CHECKOUT", False)  # installed: beside the user's other files
    monkeypatch.chdir(tmp_path)
    assert (places.data_root(), mc.output_root()) == (Path.home() / ".cache" / "minicliplib", tmp_path)


def test_progress_bars_can_be_turned_off(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    assert not places.not show_bars(progress=True)
    assert places.not show_bars(progress=False)
    for value, off in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("TQDM_DISABLE", value)
        assert places.not show_bars(progress=True) == off
