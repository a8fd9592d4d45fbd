"""Settings: they survive a round trip, refuse what they do not know, and depend on nothing else."""

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch

import minicliplib as mc
from minicliplib.analysis.settings import explained
from minicliplib.config import MOVED

CHANGED = mc.Config().updated(
    train={"epochs": 3}, encoders={"image": "resnet50"}, loss={"name": "sigmoid"}, seed=7
)


@pytest.mark.parametrize("config", [mc.Config(), CHANGED, *mc.PRESETS.values()])
def test_a_config_survives_json(config):
    again = mc.Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.digest() == config.digest()


def test_a_part_of_a_config_fills_up_with_defaults():
    part = mc.Config.from_dict({"train": {"epochs": 3}, "seed": 7})
    assert part == mc.Config().updated(train={"epochs": 3}, seed=7)


def test_locked_towers_leave_the_heads_as_they_are():
    config = mc.preset("flickr8k")
    locked = config.with_locked_towers()
    assert locked.encoders.image_trainable == locked.encoders.text_trainable == 0
    assert locked.heads == config.heads
    model = mc.MiniCLIP(locked)
    assert model.image_encoder.locked
    assert model.text_encoder.locked
    assert (locked.train.map_crop, locked.train.word_dropout) == (1.0, 0.0)


def test_updated_changes_a_copy_part_by_part_or_by_dotted_name():
    config = mc.Config()
    by_part = config.updated(train={"epochs": 3, "batch_size": 16}, seed=4)
    by_name = config.updated(**{"train.epochs": 3, "train.batch_size": 16, "seed": 4})
    assert by_part == by_name
    assert by_part.train.epochs == 3
    assert by_part.train.lr_heads == config.train.lr_heads
    assert config.train.epochs == mc.Config().train.epochs
    with pytest.raises(FrozenInstanceError):
        config.train.epochs = 5
    assert {"data.name", "train.lr_heads", "seed"} <= config.flat().keys()


@pytest.mark.parametrize("wrong", ["train.epoch", "trian.epochs", "epochs", "train"])
def test_an_unknown_setting_is_named_beside_the_known(wrong):
    with pytest.raises(ValueError, match=rf"'{wrong}'.*data.name, .*train.epochs, .*seed"):
        mc.Config().updated(**{wrong: 3})


def test_an_unknown_setting_of_a_part_is_an_error():
    for changes in ({"train": {"momentum": 0.9}}, {"optimiser": {"lr": 1}}):
        (part,) = changes
        for make in (mc.Config.from_dict, lambda values: mc.Config().updated(**values)):
            with pytest.raises(ValueError, match=f"'{part}"):
                make(changes)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("train.epochs", "many", "int"),
        ("train.lr_heads", None, "float"),
        ("data.limit", 0.5, r"int \| None"),
    ],
)
def test_a_value_of_another_kind_is_an_error(name, value, kind):
    with pytest.raises(ValueError, match=f"{name} takes {kind}"):
        mc.Config().updated(**{name: value})


def test_a_whole_number_is_a_float_too():
    config = mc.Config().updated(train={"clip_norm": 1}, data={"root": Path("photos"), "limit": 3})
    assert config.train.clip_norm == 1
    assert (
        config.digest() == mc.Config().updated(train={"clip_norm": 1.0}, data={"limit": 3}).digest()
    )


def test_a_setting_that_has_moved_says_where_it_is():
    known = mc.Config().flat()
    for old, new in MOVED.items():
        assert old not in known
        assert new in known
        with pytest.raises(ValueError, match=f"'{old}'.*'{new}'"):
            mc.Config().updated(**{old: known[new]})


def test_a_record_of_the_earlier_layout_is_read():
    old = {
        "encoders": {"image": "resnet50", "looks": 4},
        "loss": {"name": "multi_positive", "captions_per_image": 2, "temperature": 0.04},
        "train": {"views": 6, "tower_dropout": 0.1, "precision": "bf16"},
        "seed": 3,
    }
    expected = mc.Config().updated(
        encoders={"image": "resnet50", "text_dropout": 0.1, "precision": "bf16"},
        inference={"tta_views": 4},
        heads={"temperature": 0.04},
        loss={"name": "multi_positive"},
        features={"views": 6},
        train={"captions_per_image": 2},
        seed=3,
    )
    assert mc.Config.from_dict(old) == expected


def test_the_digest_names_the_settings_and_not_the_place():
    config = mc.Config()
    assert config.digest() == mc.Config().digest()
    assert config.digest() == config.updated(data={"root": "/photos"}).digest()
    assert "/photos" not in json.dumps(config.updated(data={"root": "/photos"}).to_dict())
    others = [config.updated(seed=1), config.updated(train={"epochs": 2}), mc.preset("flickr8k")]
    assert len({c.digest() for c in (config, *others)}) == 4
    assert len(config.digest()) == 8


@pytest.mark.parametrize("name", ["folder", "sample+folder"])
def test_the_digest_reads_no_file_and_knows_no_folder(name, tmp_path, monkeypatch):
    config = mc.Config().updated(data={"name": name})
    before = config.digest()
    (tmp_path / "captions.csv").write_text("image,caption\na.png,A dog.\n")
    monkeypatch.chdir(tmp_path)
    assert config.digest() == before
    assert config.updated(data={"root": tmp_path}).digest() == before


def test_presets():
    assert {name: mc.preset(name).data.name for name in mc.PRESETS} == {
        "sample": "sample",
        "flickr8k": "flickr8k",
        "everyday": "flickr8k+coco+folder+sample",
        "coco": "coco",
    }
    with pytest.raises(ValueError, match=r"'imagenet'.*sample, flickr8k"):
        mc.preset("imagenet")


def test_a_seed_repeats_all_draws():
    draws = []
    for _ in range(2):
        mc.set_seed(3, threads=1)
        draws.append((torch.rand(3).tolist(), np.random.rand(3).tolist()))
    assert draws[0] == draws[1]
    assert torch.get_num_threads() == 1


def test_every_setting_is_explained():
    table = explained(mc.preset("flickr8k"))
    assert list(table.index) == list(mc.Config().flat())
    assert table.loc["train.epochs", "value"] == "16"
    assert table["why"].str.len().min() > 10
