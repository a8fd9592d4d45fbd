"""Training with the real encoders on a few real pairs."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from filelock import FileLock

import minicliplib as mc
from minicliplib import features, training
from minicliplib.features import Features
from minicliplib.training import (
    Learner,
    augment,
    embed,
    epoch_batches,
    parameter_groups,
    two_pass_backward,
)

SMALL = {"train.batch_size": 32, "train.epochs": 2, "train.lr_heads": 2e-3}
TUNED = SMALL | {"encoders.image_trainable": 2, "encoders.text_trainable": 1, "train.batch_size": 8}


@pytest.fixture
def few(pairs):
    return pairs.subset(range(16))


def config(changes: dict) -> mc.Config:
    return mc.Config().updated(**changes)


def test_64_pairs_can_be_learned_by_heart(pairs, tmp_path):
    settings = config(
        {"train.batch_size": 64, "train.epochs": 40, "heads.dropout": 0.0, "train.patience": 40}
    )
    run = mc.fit(settings, tmp_path, pairs, pairs)
    scores = mc.evaluate(run.model, pairs)["scores"]
    assert scores["image_to_text"]["R@1"] > 0.95
    assert scores["text_to_image"]["R@1"] > 0.95
    assert run.history["loss"].iloc[0] > 3
    assert run.history["loss"].iloc[-1] < 0.2
    expected = {
        "epoch",
        "loss",
        "log_batch",
        "logit_scale",
        "seconds",
        "dev_mean_recall",
        "dev_t2i_R@1",
    }
    assert expected <= set(run.history.columns)
    assert {f.name for f in tmp_path.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "history.csv",
    }


def test_frozen_means_frozen(few, tmp_path):
    settings = config(TUNED)
    mc.set_seed(0)
    fresh = {n: t.clone() for n, t in mc.MiniCLIP(settings).state_dict().items()}
    run = mc.fit(settings, tmp_path, few, few)
    learned = run.model.learned_state()
    changed = {n for n, t in run.model.state_dict().items() if not torch.equal(t, fresh[n])}
    assert changed <= set(learned)  # neither a frozen weight nor a running mean has moved
    assert any(n.startswith("image_encoder") for n in changed)
    assert any(n.startswith("text_encoder") for n in changed)
    assert any("running_mean" in n for n in fresh)


def test_cached_and_uncached_training_agree(few):
    histories = {}
    for cache, dtype in ((True, "float32"), (False, "float32"), (True, "float16")):
        settings = config(
            TUNED | {"features.cache_dtype": dtype, "features.views": 3, "train.map_crop": 0.86}
        )
        mc.set_seed(0)
        model = mc.MiniCLIP(settings)
        learner = Learner(settings, model, Accelerator(), Features(model, few, 3, cache))
        rng, losses = np.random.default_rng(0), []
        model.train()
        for batch in epoch_batches(settings, learner.outputs, 0):
            torch.manual_seed(0)
            losses.append(learner.train_step(*batch, rng))
        histories[cache, dtype] = losses
    assert len(losses) == 2
    assert histories[True, "float32"] == pytest.approx(histories[False, "float32"], abs=1e-4)
    assert histories[True, "float16"] == pytest.approx(histories[False, "float32"], abs=0.02)


def test_mixed_precision_is_that_of_the_trunk_of_training_and_of_the_user(few, tmp_path):
    runs, trunks = {}, {}
    for precision in ("no", "bf16"):
        settings = config(
            TUNED | {"encoders.precision": precision, "features.cache_dtype": "float32"}
        )
        run = runs[precision] = mc.fit(settings, tmp_path / precision, few, few)
        trunks[precision] = Features(run.model, few).images[0]
        assert all(p.dtype == torch.float32 for p in run.model.parameters())
    assert runs["bf16"].history["loss"].tolist() == pytest.approx(
        runs["no"].history["loss"].tolist(), abs=0.1
    )
    assert (
        0 < np.abs(trunks["bf16"] - trunks["no"]).mean() < 0.1 * np.abs(trunks["no"]).mean()
    )  # 8 bits a number
    model = runs["bf16"].model
    half = model.encode_image(few.images), model.encode_text(few.flat_captions)
    model.image_encoder.precision = model.text_encoder.precision = None
    full = model.encode_image(few.images), model.encode_text(few.flat_captions)
    for one, other in zip(half, full, strict=True):
        assert one.dtype == torch.float32
        assert 0.98 < (one * other).sum(1).min() < 1 - 1e-6


@pytest.mark.parametrize(
    ("name", "per_image", "soft"), [("infonce", 1, 0.0), ("multi_positive", 2, 0.5)]
)
def test_chunked_gradients_are_the_whole_batchs(name, per_image, soft):
    data = mc.load_dataset("sample", "train", limit=10)
    settings = config(TUNED | {"train.batch_size": 10, "train.chunk_size": 4, "loss.name": name})
    settings = settings.updated(
        **{"train.captions_per_image": per_image, "loss.soft": soft, "heads.dropout": 0.0}
    )
    model = mc.MiniCLIP(settings)
    outputs = Features(model, data, cache=False)
    rows, views, captions, image_of_caption = next(epoch_batches(settings, outputs, 0))
    image_of_caption = torch.from_numpy(image_of_caption)
    batch = outputs.image_batch(rows, views), *outputs.text_batch(captions)
    teacher_text = torch.from_numpy(outputs.teacher_text()[captions])
    whole = mc.contrastive_loss(name, *model(*batch), image_of_caption, teacher_text, soft)
    whole.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    chunked = two_pass_backward(settings, model, *batch, image_of_caption, teacher_text)
    assert chunked.item() == pytest.approx(whole.item(), abs=1e-5)
    assert "logit_scale" in gradients
    for n, parameter in model.named_parameters():
        if n in gradients:
            assert torch.allclose(parameter.grad, gradients[n], atol=1e-5), n


def test_chunks_replay_their_dropout(few):
    """Each chunk draws again what it drew when the vectors were computed, in the heads and in the text tower."""
    settings = config(
        TUNED | {"train.chunk_size": 3, "heads.dropout": 0.5, "encoders.text_dropout": 0.3}
    )
    model = mc.MiniCLIP(settings).train()
    outputs = Features(model, few, cache=False)
    image, (text, mask), image_of_caption = (
        outputs.image_batch(np.arange(8)),
        outputs.text_batch(np.arange(8)),
        torch.arange(8),
    )
    torch.manual_seed(3)
    parts = [
        model(image[i : i + 3], text[i : i + 3], mask[i : i + 3])[:2] for i in (0, 3, 6)
    ]  # with a graph, at once
    whole = mc.contrastive_loss(
        "infonce", *(torch.cat(side) for side in zip(*parts, strict=True)), model.scale()
    )
    whole.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.manual_seed(3)
    assert two_pass_backward(
        settings, model, image, text, mask, image_of_caption
    ).item() == pytest.approx(whole.item(), abs=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(model.get_parameter(name).grad, gradient, atol=1e-5), name


def test_a_soup_is_the_mean_of_runs_from_one_start(few, tmp_path):
    settings = config(TUNED | {"train.epochs": 1, "train.soup": 2})
    run = mc.fit(settings, tmp_path, few, few)
    first, second = (mc.load(tmp_path / f"run{k}").learned_state() for k in (0, 1))
    soup = mc.load(tmp_path)
    assert soup.config == settings
    for name, tensor in soup.learned_state().items():
        expected = (first[name] + second[name]) / 2
        assert torch.allclose(tensor, expected, rtol=2e-3, atol=1e-7), (
            name
        )  # kept in half precision
    assert not torch.equal(first["image_head.project.weight"], second["image_head.project.weight"])
    assert len(run.history) == 1
    assert pd.read_csv(tmp_path / "history.csv")["run"].tolist() == [0, 1]
    for changes, folder in (({}, "run0"), ({"train.soup": 1}, "."), ({"train.soup": 3}, ".")):
        with pytest.raises(
            ValueError, match="another config"
        ):  # rather than its checkpoint under another's state
            mc.fit(settings.updated(**changes), tmp_path / folder, few, few)


def test_the_logit_scale_can_come_back_from_its_bound(few, tmp_path):
    settings = config(
        TUNED | {"heads.max_scale": 20.0, "heads.temperature": 0.01, "train.lr_heads": 1e-2}
    )
    assert mc.fit(settings, tmp_path, few, few).history["logit_scale"].max() <= 20.001
    model = mc.MiniCLIP(settings)
    model.logit_scale.data.fill_(10.0)  # above the bound it has no gradient
    model.bound_scale()
    model.scale().backward()
    assert model.scale().item() == pytest.approx(20)
    assert model.logit_scale.grad.item() == pytest.approx(20)


def test_a_bad_share_or_temperature_is_refused(few, tmp_path):
    for name, value in (
        ("loss.soft", 2.0),
        ("heads.temperature", 0.0),
        ("heads.max_scale", -1.0),
        ("train.soup", 0),
    ):
        with pytest.raises(ValueError, match=name):
            mc.fit(config(TUNED | {name: value}), tmp_path, few, few)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(pairs, tmp_path, average):
    settings = config(SMALL | {"train.epochs": 4, "train.average": average})
    whole = mc.fit(settings, tmp_path / "whole", pairs, pairs)

    def kill(history):
        if len(history) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mc.fit(settings, tmp_path / "cut", pairs, pairs, on_epoch=kill)
    seen = []
    resumed = mc.fit(
        settings, tmp_path / "cut", pairs, pairs, on_epoch=lambda history: seen.append(len(history))
    )
    assert seen == [3, 4]
    for column in ("loss", "logit_scale", "dev_mean_recall"):
        assert resumed.history[column].tolist() == pytest.approx(
            whole.history[column].tolist(), abs=1e-6
        )
    for name, tensor in whole.model.learned_state().items():
        assert torch.allclose(resumed.model.learned_state()[name], tensor, atol=1e-6)


def test_a_finished_run_is_loaded_and_another_one_refused(pairs, tmp_path):
    first = mc.fit(config(SMALL), tmp_path, pairs, pairs)
    again = mc.fit(
        config(SMALL), tmp_path, pairs, pairs, on_epoch=lambda history: pytest.fail("trained again")
    )
    assert again.history.equals(first.history)
    with pytest.raises(ValueError, match="another config"):
        mc.fit(config(SMALL | {"seed": 1}), tmp_path, pairs, pairs)


def test_the_best_dev_epoch_is_kept_and_patience_ends_a_run(pairs, tmp_path):
    run = mc.fit(config(SMALL | {"train.epochs": 50, "train.patience": 1}), tmp_path, pairs, pairs)
    recalls = run.history["dev_mean_recall"]
    assert len(run.history) < 50
    assert recalls.iloc[-1] <= recalls.max() == recalls.iloc[-2]
    kept = mc.evaluate(mc.load(tmp_path), pairs)["scores"]["mean_recall"]
    assert kept == pytest.approx(
        recalls.max(), abs=0.02
    )  # the cache and the checkpoint are in half precision


def test_batches_hold_an_image_once_with_captions_of_its_own():
    data = mc.load_dataset("sample", "train", limit=20)
    settings = config({"train.batch_size": 8, "features.views": 3, "train.captions_per_image": 2})
    outputs = Features(mc.MiniCLIP(settings), data, cache=False)
    batches = list(epoch_batches(settings, outputs, 0))
    assert len(batches) == 2  # the last four images wait for another epoch
    for rows, views, captions, image_of_caption in batches:
        assert len(set(rows)) == 8
        assert len(set(captions)) == 16
        assert (data.image_of_caption[captions] == rows[image_of_caption]).all()
        assert set(views) <= {0, 1, 2}
    repeated = list(epoch_batches(settings, outputs, 0))
    assert all((a == b).all() for a, b in zip(batches[0], repeated[0], strict=True))
    assert any(
        (a != b).any()
        for a, b in zip(batches[0], next(epoch_batches(settings, outputs, 1)), strict=True)
    )


def test_too_few_data_are_refused(few, tmp_path):
    for changes in ({"train.batch_size": 17}, {"train.batch_size": 1}):
        with pytest.raises(ValueError, match="must be 2 to 16"):
            mc.fit(config(changes), tmp_path, few, few)
    for per_image in (0, 2):
        with pytest.raises(
            ValueError, match=rf"has 1 captions; train.captions_per_image is {per_image}"
        ):
            mc.fit(
                config({"train.batch_size": 8, "train.captions_per_image": per_image}),
                tmp_path,
                few,
                few,
            )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, "must be 1 or more, not 0"),
        ("patience", 0, "must be 1 or more, not 0"),
        ("views", 0, "must be 1 or more, not 0"),
        ("cache_dtype", "float", "must be float16 or float32, not 'float'"),
    ],
)
def test_a_setting_out_of_range_is_refused(few, tmp_path, name, value, message):
    with pytest.raises(ValueError, match=f"train.{name} {message}"):
        mc.fit(config({f"train.{name}": value}), tmp_path, few, few)


def test_a_loss_that_cannot_be_computed_is_refused_before_the_trunk_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "MiniCLIP", lambda *_: pytest.fail("went on"))
    data = mc.load_dataset("sample", "train", limit=8)
    for changes, message in (
        ({"loss.name": "triplet"}, "Known: infonce"),
        ({"train.captions_per_image": 2}, "one caption"),
    ):
        with pytest.raises(ValueError, match=message):
            mc.fit(config(changes | {"train.batch_size": 8}), tmp_path, data, data)


def test_words_are_hidden_and_maps_are_cut():
    settings = config({"train.word_dropout": 0.5, "train.map_crop": 0.75})
    image, mask = torch.arange(2 * 16.0).view(1, 2, 4, 4), torch.ones(50, 8)
    cut, hidden = augment(settings, image, mask, np.random.default_rng(0))
    assert cut.shape == (1, 2, 3, 3)
    assert (hidden[:, 0] == 1).all()
    assert 0.3 < hidden[:, 1:].mean() < 0.7
    assert augment(config({}), image, mask, np.random.default_rng(0))[0] is image


def test_decay_and_rates_by_group():
    settings = config(
        {"encoders.image_trainable": 2, "encoders.text_trainable": 1, "train.lr_image": 3e-4}
    )
    model = mc.MiniCLIP(settings)
    groups = parameter_groups(settings, model)
    find = lambda parameter: next(g for g in groups if any(p is parameter for p in g["params"]))
    assert find(model.logit_scale)["weight_decay"] == 0
    assert find(model.image_head.project.bias)["weight_decay"] == 0
    assert find(model.image_head.project.weight)["weight_decay"] == settings.train.weight_decay
    assert find(model.image_encoder.model.conv_head.weight)["lr"] == 3e-4
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in model.parameters())


def test_the_cache_is_reused_and_stays_on_disk_when_large(few, locked, monkeypatch):
    first = Features(locked, few)
    files = {
        path: path.stat().st_mtime_ns
        for path in (features.data_root() / "cache").glob("pairs-*.npy")
    }
    monkeypatch.setattr(features, "IN_MEMORY", 0)
    second = Features(locked, few)
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    assert isinstance(second.images[0], np.memmap)
    assert not isinstance(first.images[0], np.memmap)
    assert np.array_equal(first.images[0], second.images[0])
    assert first.images[0].dtype == np.float16


def test_a_run_has_a_folder_of_its_own_and_is_trained_once(pairs):
    settings = config(SMALL | {"train.epochs": 1})
    run = mc.fit(settings, train=pairs, dev=pairs)
    assert run.folder == training.run_folder(settings)
    mc.fit(settings, on_epoch=lambda history: pytest.fail("trained again"))


def test_a_second_call_for_a_run_waits_for_the_first(pairs, tmp_path):
    mc.fit(config(SMALL | {"train.epochs": 1}), tmp_path, pairs, pairs)
    seconds = []

    def again():
        mc.fit(config(SMALL | {"train.epochs": 1}), tmp_path)
        seconds.append(time.monotonic())

    with FileLock(tmp_path / "lock"):
        thread = threading.Thread(target=again)
        thread.start()
        thread.join(1.5)
        assert not seconds
        released = time.monotonic()
    thread.join(60)
    assert seconds[0] > released


@pytest.mark.parametrize(
    "changes", [{"encoders.text_trainable": -1}, {"encoders.image_trainable": -1}]
)
def test_a_tower_with_nothing_frozen_trains_from_the_cache_too(few, changes):
    settings = config(TUNED | changes | {"train.batch_size": 4, "encoders.max_tokens": 12})
    model = mc.MiniCLIP(settings)
    model.requires_grad_(False)
    rows = np.arange(4)
    (image, (ids, mask)), (raw_image, raw_text) = (
        (outputs.image_batch(rows), outputs.text_batch(rows))
        for outputs in (Features(model, few.subset(rows), cache=cache) for cache in (True, False))
    )
    cached, uncached = model(image, ids, mask), model(raw_image, *raw_text)
    assert torch.allclose(cached[0], uncached[0], atol=0.01)
    assert torch.allclose(cached[1], uncached[1], atol=0.01)
    assert torch.allclose(model.encode_text(few.flat_captions[:4]), uncached[1], atol=1e-5)


def test_averaged_weights_are_put_in_and_taken_out(few):
    settings = config({"train.batch_size": 8, "train.average": 0.5})
    model = mc.MiniCLIP(settings)
    learner, name = (
        Learner(settings, model, Accelerator(), Features(model, few)),
        "image_head.project.bias",
    )
    expected, rng = model.get_parameter(name).detach().clone(), np.random.default_rng(0)
    for step, batch in enumerate(epoch_batches(settings, learner.outputs, 0), 1):
        learner.train_step(*batch, rng)
        expected.lerp_(model.get_parameter(name).detach(), 1 - min(0.5, step / (9 + step)))
    current = model.get_parameter(name).detach().clone()
    with learner.averaged_weights():
        assert torch.allclose(model.get_parameter(name), expected)
        assert not torch.equal(model.get_parameter(name), current)
    assert torch.equal(model.get_parameter(name), current)


def test_dev_is_embedded_as_the_user_embeds(few):
    model = mc.MiniCLIP(config(TUNED | {"features.cache_dtype": "float32"}))
    images, captions = embed(model, Features(model, few), batch_size=5)
    assert torch.allclose(images, model.encode_image(few.images), atol=1e-4)
    assert torch.allclose(captions, model.encode_text(few.flat_captions), atol=1e-4)


def step(settings, data, world: int = 1) -> dict[str, torch.Tensor]:
    """Take one step on this process's share of a batch: its rows, the loss and every gradient."""
    mc.set_seed(0, threads=1)
    model = mc.MiniCLIP(settings)
    learner = Learner(settings, model, Accelerator(cpu=True), Features(model, data, cache=False))
    learner.optimiser.zero_grad = lambda: None
    share = learner._share(*next(epoch_batches(settings, learner.outputs, 0)))
    loss = learner.train_step(*share, np.random.default_rng(0))
    assert learner.accelerator.num_processes == world
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"rows": torch.from_numpy(share[0]), "loss": torch.tensor(loss)} | gradients


def one_of_two(rank: int, port: int, folder, settings: list, data) -> None:
    meeting = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": 2,
        "RANK": rank,
        "LOCAL_RANK": rank,
    }
    os.environ |= {name: str(value) for name, value in meeting.items()}
    for i, one in enumerate(settings):
        torch.save(step(one, data, 2), folder / f"{i}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one_with_twice_the_batch(tmp_path):
    """Through the real towers and accelerate, whole and in chunks; no image is in two shares."""
    data = mc.load_dataset("sample", "train", limit=8)
    plain = {
        "heads.dropout": 0.0,
        "train.clip_norm": 1e9,
        "loss.name": "multi_positive",
        "train.captions_per_image": 2,
    }
    whole = config(TUNED | plain | {"loss.soft": 0.5})
    settings = [whole, whole.updated(**{"train.chunk_size": 2})]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, (port, tmp_path, settings, data), nprocs=2)
    alone = step(whole, data)
    for i in range(len(settings)):
        first, second = (torch.load(tmp_path / f"{i}-{rank}.pt") for rank in (0, 1))
        assert torch.equal(torch.cat([first.pop("rows"), second.pop("rows")]), alone["rows"])
        assert len(alone["rows"].unique()) == 8
        for part in (first, second):
            assert part.keys() == alone.keys() - {"rows"} > {"logit_scale"}
            for name, tensor in part.items():
                assert torch.allclose(tensor, alone[name], atol=1e-5), name


@pytest.mark.slow
def test_two_processes_train_as_one_of_twice_the_batch(pairs, tmp_path):
    """``torchrun`` and all: the same losses, dev recalls over the whole split, and weights; one process reports."""
    tuned = {"encoders.image_trainable": 1, "encoders.text_trainable": -1}
    plain = {
        "heads.dropout": 0.0,
        "features.cache_dtype": "float32",
        "train.batch_size": 16,
        "train.epochs": 2,
    }
    settings = mc.Config().updated(**tuned, **plain, **{"data.limit": 32, "train.average": 0.5})
    arguments = [
        f"--set={name}={json.dumps(value)}"
        for name, value in settings.flat().items()
        if value is not None
    ]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--standalone",
        "--local_addr=127.0.0.1",
    ]
    command = [*launch, "-m", "minicliplib", "train", *arguments, "--out", str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    del environment["ACCELERATE_USE_CPU"]  # as on a user's machine
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    one = mc.fit(settings, tmp_path / "one")
    two = pd.read_csv(tmp_path / "two" / "history.csv")
    assert two["loss"].tolist() == pytest.approx(one.history["loss"].tolist(), abs=1e-4)
    assert two["dev_mean_recall"].tolist() == pytest.approx(
        one.history["dev_mean_recall"].tolist(), abs=0.02
    )
    assert two["logit_scale"].tolist() == pytest.approx(
        one.history["logit_scale"].tolist(), abs=1e-4
    )
    for name, tensor in mc.load(tmp_path / "two").learned_state().items():
        assert torch.allclose(tensor, one.model.learned_state()[name], atol=2e-3), name
    assert result.stdout.count("checkpoint, config and history") == 1
