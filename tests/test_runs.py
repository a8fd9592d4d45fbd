"""A run is what made it: its config and its data. Cut off, it goes on; finished, it is loaded."""

import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from filelock import FileLock
from PIL import Image

import minicliplib as mc
from minicliplib.datasets.base import Splits
from minicliplib.scale import memory, runs
from minicliplib.scale.runs import run_folder

SMALL = mc.Config().updated(train={"batch_size": 32, "epochs": 2, "lr_heads": 2e-3})
ONE_EPOCH = SMALL.updated(train={"epochs": 1})
# Both towers train on top, and the heads read frozen stages and others.
READS = {
    "image_trainable": 2,
    "image_reads": "block9+block16+last",
    "text_trainable": 1,
    "text_reads": "layer2+last",
}


def trained_again(history: pd.DataFrame) -> None:
    pytest.fail("trained again")


# ---- which run it is ----------------------------------------------------------------------------


def test_other_data_are_another_run(pairs):
    fewer = pairs.subset(range(32))
    first = mc.fit(ONE_EPOCH, train=pairs, dev=pairs)
    second = mc.fit(ONE_EPOCH, train=fewer, dev=pairs)
    assert first.folder != second.folder
    weights = [run.model.image_head.project.weight for run in (first, second)]
    assert not torch.equal(*weights)
    assert run_folder(ONE_EPOCH, Splits(pairs, pairs)) == first.folder
    assert run_folder(ONE_EPOCH, Splits(pairs, fewer)) not in (first.folder, second.folder)


def test_the_same_data_are_the_same_run(pairs):
    mc.fit(ONE_EPOCH, train=pairs, dev=pairs)
    copy = mc.CaptionedImages("pairs", "train", list(pairs.images), list(pairs.captions))
    again = mc.fit(ONE_EPOCH, train=copy, dev=copy, on_epoch=trained_again)
    assert again.folder == run_folder(ONE_EPOCH, Splits(pairs, pairs))


@pytest.mark.slow
def test_data_by_name_are_the_data_handed_over():
    config = ONE_EPOCH.updated(data={"limit": 32})
    by_name = mc.fit(config)
    train = mc.load_dataset("sample", "train", limit=32)
    dev = mc.load_dataset("sample", "dev", limit=32)
    handed_over = mc.fit(config, train=train, dev=dev, on_epoch=trained_again)
    assert handed_over.folder == by_name.folder


@pytest.fixture
def photos(tmp_path, pairs):
    """A folder of the user's own, with captions."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = ["image,caption"]
    for i in range(40):
        pairs.images[i].save(folder / f"{i}.png")
        rows.append(f"{i}.png,{pairs.captions[i][0].replace(',', '')}")
    (folder / "captions.csv").write_text("\n".join(rows))
    return folder


@pytest.mark.slow
def test_a_changed_caption_or_photo_is_another_run_wherever_you_stand(
    photos, tmp_path, monkeypatch
):
    config = ONE_EPOCH.updated(data={"name": "folder", "root": photos}, train={"batch_size": 8})

    def folder_now():
        parts = [mc.load_dataset("folder", split, photos) for split in ("train", "dev")]
        return run_folder(config, Splits(*parts))

    first = mc.fit(config).folder
    assert first == folder_now()
    monkeypatch.chdir(tmp_path)
    assert folder_now() == first

    table = photos / "captions.csv"
    table.write_text(table.read_text().replace("0.png,", "0.png,Truly "))
    second = mc.fit(config).folder
    assert second != first

    picture = next(photos.glob("*.png"))
    Image.new("RGB", (64, 64), "red").save(picture)
    assert folder_now() not in (first, second)


@pytest.mark.slow
def test_a_folder_with_another_run_is_refused(pairs, tmp_path):
    mc.fit(ONE_EPOCH, tmp_path, pairs, pairs)
    kept = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="config"):
        mc.fit(ONE_EPOCH.updated(seed=1), tmp_path, pairs, pairs)
    with pytest.raises(ValueError, match="data"):
        mc.fit(ONE_EPOCH, tmp_path, pairs.subset(range(32)), pairs)
    assert (tmp_path / "model.safetensors").read_bytes() == kept


def test_a_folder_with_half_a_run_is_refused(pairs, tmp_path):
    mc.fit(ONE_EPOCH, tmp_path, pairs, pairs)
    (tmp_path / "config.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match="whole run"):
        mc.fit(ONE_EPOCH, tmp_path, pairs, pairs)


def test_a_run_named_like_a_shipped_checkpoint_is_the_run(pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = mc.fit(ONE_EPOCH, "everyday", pairs, pairs)
    assert run.model.config == ONE_EPOCH
    assert mc.load(Path("everyday")).config == ONE_EPOCH
    assert mc.load("everyday").config == mc.preset("everyday")


@pytest.mark.parametrize("name", ["photos", "sample+photos"])
def test_data_without_splits_are_not_trained_on(name, tmp_path):
    with pytest.raises(ValueError, match="'photos' has no split"):
        mc.fit(ONE_EPOCH.updated(data={"name": name}), tmp_path)


def test_empty_data_are_not_replaced_by_others(pairs, tmp_path):
    for train, dev in ((pairs, pairs.subset([])), (pairs.subset([]), pairs)):
        with pytest.raises(ValueError, match="image"):
            mc.fit(ONE_EPOCH, tmp_path, train, dev)


@pytest.mark.slow
def test_only_fit_changes_what_the_allocator_keeps(pairs, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: calls.append("kept"))
    mc.MiniCLIP(ONE_EPOCH)
    assert not calls
    mc.fit(ONE_EPOCH, tmp_path, pairs, pairs)
    assert calls == ["kept"]


# ---- resuming -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"train": {"average": 0.9}}, {"encoders": READS, "heads": {"text_dropout": 0.2}}],
    ids=["locked", "average", "reads"],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(pairs, tmp_path, changes):
    config = SMALL.updated(train={"epochs": 4}).updated(**changes)
    whole = mc.fit(config, tmp_path / "whole", pairs, pairs)

    def kill(history: pd.DataFrame) -> None:
        if len(history) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mc.fit(config, tmp_path / "cut", pairs, pairs, on_epoch=kill)
    seen = []
    resumed = mc.fit(
        config, tmp_path / "cut", pairs, pairs, on_epoch=lambda history: seen.append(len(history))
    )
    assert seen == [3, 4]
    for column in ("loss", "logit_scale", "dev_mean_recall"):
        assert resumed.history[column].tolist() == whole.history[column].tolist()
    for name, tensor in whole.model.learned_state().items():
        assert torch.equal(resumed.model.learned_state()[name], tensor)


def test_a_finished_run_is_loaded(pairs, tmp_path):
    first = mc.fit(SMALL, tmp_path, pairs, pairs)
    again = mc.fit(SMALL, tmp_path, pairs, pairs, on_epoch=trained_again)
    assert again.history.equals(first.history)


@pytest.mark.slow
def test_a_second_call_for_a_run_waits_for_the_first(pairs, tmp_path):
    mc.fit(ONE_EPOCH, tmp_path, pairs, pairs)
    seconds = []

    def again() -> None:
        mc.fit(ONE_EPOCH, tmp_path, pairs, pairs)
        seconds.append(time.monotonic())

    with FileLock(tmp_path / "lock"):
        thread = threading.Thread(target=again)
        thread.start()
        thread.join(1.5)
        assert not seconds
        released = time.monotonic()
    thread.join(60)
    assert seconds[0] > released


def test_what_a_run_learned_from_stands_in_its_card(pairs, tmp_path):
    run = mc.fit(ONE_EPOCH, tmp_path, pairs, pairs)
    assert run.model.facts["trained_on"] == {"name": "pairs", "images": 64, "captions": 64}
    (result,) = run.model.facts["results"]
    best = run.history["dev_mean_recall"].max()
    assert result["metrics"]["mean recall"] == pytest.approx(best)
    assert f"{100 * best:.1f}" in (tmp_path / "README.md").read_text()


def test_a_run_goes_on_only_in_the_precision_that_it_was_begun_in(pairs, tmp_path, monkeypatch):
    config = SMALL.updated(train={"mixed_precision": "auto", "epochs": 2})
    monkeypatch.setattr(runs, "has_fast_bf16", lambda: False)

    def kill(history: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mc.fit(config, tmp_path, pairs, pairs, on_epoch=kill)
    monkeypatch.setattr(runs, "has_fast_bf16", lambda: True)
    with pytest.raises(ValueError, match="begun in precision 'no', and would go on in 'bf16'"):
        mc.fit(config, tmp_path, pairs, pairs)
