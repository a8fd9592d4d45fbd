"""Training with the real encoders on a few real pairs."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tower_files import READS

import minicliplib as mc
from minicliplib.encoders import Hidden
from minicliplib.features import Features
from minicliplib.scale import runs
from minicliplib.training import (
    Trainer,
    augment,
    epoch_batches,
    learning_rate_share,
    parameter_groups,
)

SMALL = mc.Config().updated(train={"batch_size": 32, "epochs": 2, "lr_heads": 2e-3})
TUNED = SMALL.updated(encoders={"image_trainable": 2, "text_trainable": 1}, train={"batch_size": 8})


@pytest.fixture
def few(pairs) -> mc.CaptionedImages:
    return pairs.subset(range(16))


def trainer_on(config: mc.Config, data: mc.CaptionedImages, cache: bool = True) -> Trainer:
    mc.set_seed(0)
    model = mc.MiniCLIP(config)
    features = Features(model, data, config.features.views, cache)
    return Trainer(config, model, features, Accelerator())


def test_64_pairs_can_be_learned_by_heart(pairs, tmp_path):
    config = SMALL.updated(
        train={"batch_size": 64, "epochs": 40, "patience": 40}, heads={"dropout": 0.0}
    )
    run = mc.fit(config, tmp_path, pairs, pairs)
    scores = mc.evaluate(run.model, pairs)["scores"]
    assert scores["image_to_text"]["R@1"] > 0.95
    assert scores["text_to_image"]["R@1"] > 0.95
    assert run.history["loss"].iloc[0] > 3
    assert run.history["loss"].iloc[-1] < 0.2
    columns = {"epoch", "loss", "log_batch", "logit_scale", "seconds", "dev_mean_recall"}
    assert columns | {"dev_t2i_R@1"} <= set(run.history.columns)
    files = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "history.csv"} <= files


@pytest.mark.slow
def test_frozen_means_frozen(few, tmp_path):
    mc.set_seed(0)
    fresh = {name: t.clone() for name, t in mc.MiniCLIP(TUNED).state_dict().items()}
    run = mc.fit(TUNED, tmp_path, few, few)
    trained = run.model.state_dict()
    changed = {name for name, t in trained.items() if not torch.equal(t, fresh[name])}
    # Neither a frozen weight nor a running mean has moved.
    assert changed <= set(run.model.learned_state())
    assert any(name.startswith("image_encoder") for name in changed)
    assert any(name.startswith("text_encoder") for name in changed)
    assert any("running_mean" in name for name in fresh)


@pytest.mark.slow
def test_frozen_means_frozen_with_several_reads_too(few, tmp_path):
    mc.set_seed(0)
    config = TUNED.updated(**READS)
    fresh = {name: t.clone() for name, t in mc.MiniCLIP(config).state_dict().items()}
    trained = mc.fit(config, tmp_path, few, few).model.state_dict()
    changed = {name for name, t in trained.items() if not torch.equal(t, fresh[name])}
    towers = {".".join(name.split(".")[1:5]) for name in changed if "_encoder" in name}
    image = {place for place in towers if not place.startswith("model.encoder")}
    # the last block and the head, and the last two layers
    assert {place.split(".")[1] for place in image} == {"blocks", "conv_head", "bn2"}
    assert {place.split(".")[2] for place in image if "blocks" in place} == {"6"}
    assert towers - image == {f"model.encoder.layer.{i}" for i in (4, 5)}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, READS])
def test_cached_and_uncached_training_agree(few, changes):
    # A batch is all of the data, so that an epoch is one step and its loss the loss of that step.
    losses = {}
    for cache, dtype in ((True, "float32"), (False, "float32"), (True, "float16")):
        config = TUNED.updated(**changes).updated(
            features={"cache_dtype": dtype, "views": 3},
            train={"map_crop": 0.86, "batch_size": len(few)},
        )
        trainer = trainer_on(config, few, cache)
        losses[cache, dtype] = [trainer.train_epoch(epoch)["loss"] for epoch in range(2)]
    assert losses[True, "float32"] == pytest.approx(losses[False, "float32"], abs=1e-4)
    assert losses[True, "float16"] == pytest.approx(losses[False, "float32"], abs=0.02)


def test_bf16_is_taken_by_itself_only_where_the_processor_has_it(monkeypatch):
    config = mc.Config().updated(train={"mixed_precision": "auto"})
    for built_in, precision in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(runs, "has_fast_bf16", lambda answer=built_in: answer)
        assert runs.training_precision(config) == precision
    assert runs.training_precision(mc.Config().updated(encoders={"precision": "fp16"})) == "fp16"
    with pytest.raises(ValueError, match=r"train.mixed_precision must be .*, not 'bf8'"):
        runs.training_precision(mc.Config().updated(train={"mixed_precision": "bf8"}))


@pytest.mark.slow
def test_mixed_precision_holds_for_the_trunk_for_training_and_for_the_user(few, tmp_path):
    trained = {}
    trunks = {}
    for precision in ("no", "bf16"):
        config = TUNED.updated(
            encoders={"precision": precision}, features={"cache_dtype": "float32"}
        )
        trained[precision] = mc.fit(config, tmp_path / precision, few, few)
        trunks[precision] = Features(trained[precision].model, few).images[0]
        assert all(p.dtype == torch.float32 for p in trained[precision].model.parameters())
    plain_losses = trained["no"].history["loss"].tolist()
    assert trained["bf16"].history["loss"].tolist() == pytest.approx(plain_losses, abs=0.1)
    error = np.abs(trunks["bf16"] - trunks["no"]).mean()
    assert 0 < error < 0.1 * np.abs(trunks["no"]).mean()  # 8 bits a number

    # A run can also be trained in another precision than its model is used in.
    config = TUNED.updated(features={"cache_dtype": "float32"}, train={"mixed_precision": "bf16"})
    other = mc.fit(config, tmp_path / "other", few, few)
    assert other.model.image_encoder.precision is None
    assert other.history["loss"].tolist() == trained["bf16"].history["loss"].tolist()

    model = trained["bf16"].model
    half = [model.encode_image(few.images), model.encode_text(few.flat_captions)]
    model.image_encoder.precision = None
    model.text_encoder.precision = None
    full = [model.encode_image(few.images), model.encode_text(few.flat_captions)]
    for one, other in zip(half, full, strict=True):
        assert one.dtype == torch.float32
        assert 0.98 < (one * other).sum(1).min() < 1 - 1e-6


@pytest.mark.slow
def test_the_logit_scale_can_come_back_from_its_bound(few, tmp_path):
    config = TUNED.updated(heads={"max_scale": 20.0, "temperature": 0.01}, train={"lr_heads": 1e-2})
    assert mc.fit(config, tmp_path, few, few).history["logit_scale"].max() <= 20.001
    model = mc.MiniCLIP(config)
    model.logit_scale.data.fill_(10.0)  # above the bound it has no gradient
    model.bound_scale()
    model.scale().backward()
    assert model.scale().item() == pytest.approx(20)
    assert model.logit_scale.grad.item() == pytest.approx(20)


@pytest.mark.slow
def test_the_best_dev_epoch_is_kept_and_patience_ends_a_run(pairs, tmp_path):
    config = SMALL.updated(train={"epochs": 50, "patience": 1})
    run = mc.fit(config, tmp_path, pairs, pairs)
    recalls = run.history["dev_mean_recall"]
    assert len(run.history) < 50
    assert recalls.iloc[-1] <= recalls.max() == recalls.iloc[-2]
    kept = mc.evaluate(mc.load(tmp_path), pairs)["scores"]["mean_recall"]
    assert kept == pytest.approx(recalls.max(), abs=0.02)  # cache and checkpoint are half precision


# ---- what the loop is made of -------------------------------------------------------------------


def test_batches_hold_an_image_once_with_captions_of_its_own():
    data = mc.load_dataset("sample", "train", limit=20)
    config = SMALL.updated(train={"batch_size": 8, "captions_per_image": 2}, features={"views": 3})
    features = Features(mc.MiniCLIP(config), data, cache=False)
    batches = list(epoch_batches(config, features, epoch=0))
    assert len(batches) == 2  # the last four images wait for another epoch
    for batch in batches:
        assert len(set(batch.image_rows)) == 8
        assert len(set(batch.caption_rows)) == 16
        images = batch.image_rows[batch.image_of_caption]
        assert (data.image_of_caption[batch.caption_rows] == images).all()
        assert set(batch.views) <= {0, 1, 2}


def test_images_with_one_caption_train_beside_images_with_five(tmp_path):
    scenes = mc.load_dataset("sample", "train", limit=16)
    captions = [own[: 5 if i % 2 else 1] for i, own in enumerate(scenes.captions)]
    data = mc.CaptionedImages("mixed", "train", scenes.images, captions)
    config = SMALL.updated(
        train={"batch_size": 8, "captions_per_image": 3}, loss={"name": "multi_positive"}
    )
    features = Features(mc.MiniCLIP(config), data, cache=False)
    for batch in epoch_batches(config, features, epoch=0):
        images = batch.image_rows[batch.image_of_caption]
        assert (data.image_of_caption[batch.caption_rows] == images).all()
        assert len(set(batch.caption_rows)) == len(batch.caption_rows)
        # one caption, or as many of the five as may be in a batch
        counts = np.bincount(batch.image_of_caption, minlength=8)
        assert counts.tolist() == [3 if row % 2 else 1 for row in batch.image_rows]

    run = mc.fit(config, tmp_path, data, data)
    assert len(run.history) == 2
    assert run.history["loss"].iloc[1] < run.history["loss"].iloc[0]


def test_an_image_without_a_caption_is_refused(few, tmp_path):
    captions = [[], *few.captions[1:]]
    data = mc.CaptionedImages("gap", "train", few.images, captions)
    with pytest.raises(ValueError, match="'gap' has no caption"):
        mc.fit(TUNED, tmp_path, data, few)


def test_an_epoch_draws_the_same_batches_again_and_another_epoch_others(few):
    config = SMALL.updated(train={"batch_size": 8})
    features = Features(mc.MiniCLIP(config), few, cache=False)
    first, again, other = (next(epoch_batches(config, features, epoch)) for epoch in (0, 0, 1))
    shuffled = next(epoch_batches(config.updated(train={"shuffle": 1}), features, 0))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.image_rows, other.image_rows)
    assert not np.array_equal(first.image_rows, shuffled.image_rows)


def test_words_are_hidden_and_maps_are_cut():
    config = SMALL.updated(train={"word_dropout": 0.5, "map_crop": 0.75})
    maps = torch.arange(2 * 16.0).view(1, 2, 4, 4)
    image = Hidden(maps, torch.ones(1, 5))
    mask = torch.ones(50, 8)
    cut, kept = augment(config, image, mask, np.random.default_rng(0))
    assert cut.state.shape == (1, 2, 3, 3)
    assert set(cut.state.unique().tolist()) < set(maps.unique().tolist())
    assert cut.pooled is image.pooled
    assert (kept[:, 0] == 1).all()
    assert 0.3 < kept[:, 1:].mean() < 0.7
    assert augment(SMALL, image, mask, np.random.default_rng(0))[0] is image
    locked = Hidden(torch.zeros(1, 0), torch.ones(1, 5))
    assert augment(config, locked, mask, np.random.default_rng(0))[0] is locked


def test_decay_and_rates_by_group():
    config = TUNED.updated(train={"lr_image": 3e-4})
    model = mc.MiniCLIP(config)
    groups = parameter_groups(config, model)

    def group_of(parameter: torch.Tensor) -> dict:
        return next(g for g in groups if any(p is parameter for p in g["params"]))

    assert group_of(model.logit_scale)["weight_decay"] == 0
    assert group_of(model.image_head.project.bias)["weight_decay"] == 0
    weight = model.image_head.project.weight
    assert group_of(weight)["weight_decay"] == config.train.weight_decay
    assert group_of(model.image_encoder.model.conv_head.weight)["lr"] == 3e-4
    trained = sum(p.requires_grad for p in model.parameters())
    assert sum(len(group["params"]) for group in groups) == trained


def test_the_learning_rate_rises_and_then_falls_to_the_end_that_is_written_down():
    shares = [learning_rate_share(step, total=1000, warmup=0.1) for step in range(1000)]
    assert shares[0] == 1 / 100
    assert max(shares) == shares[99] == shares[100] == 1
    assert np.all(np.diff(shares[:100]) > 0)
    assert np.all(np.diff(shares[100:]) < 0)
    assert shares[-1] == pytest.approx(0.024, abs=0.001)  # as the docstring says
    assert learning_rate_share(0, total=3, warmup=0.0) == 1  # one step of warm-up is none


def test_a_step_takes_the_learning_rate_of_its_place(few):
    trainer = trainer_on(SMALL.updated(train={"batch_size": 4, "epochs": 10, "warmup": 0.5}), few)
    trainer.train_epoch(0)
    rates = {group["lr"] / group["peak"] for group in trainer.optimiser.param_groups}
    assert trainer.steps_done == 4
    assert rates == {learning_rate_share(3, 40, 0.5)}


# ---- bad settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("train", "epochs", 0),
        ("train", "patience", 0),
        ("train", "soup", 0),
        ("train", "batch_size", 1),
        ("train", "batch_size", 17),
        ("train", "captions_per_image", 0),
        ("train", "captions_per_image", -1),
        ("train", "chunk_size", 0),
        ("train", "map_crop", 0.0),
        ("train", "word_dropout", 1.5),
        ("train", "average", -0.5),
        ("train", "shuffle", -1),
        ("features", "views", 0),
        ("features", "cache_dtype", "float"),
        ("heads", "temperature", 0.0),
        ("heads", "max_scale", -1.0),
        ("loss", "soft", 2.0),
    ],
)
def test_a_setting_out_of_range_is_refused(few, tmp_path, part, name, value):
    with pytest.raises(ValueError, match=rf"{part}\.{name}.*{value}"):
        mc.fit(TUNED.updated(**{part: {name: value}}), tmp_path, few, few)


@pytest.mark.parametrize(
    ("changes", "noun"),
    [
        ({"loss": {"name": "triplet"}}, "infonce"),
        ({"train": {"captions_per_image": 2}}, "caption"),
    ],
)
def test_a_loss_that_cannot_be_computed_is_refused_before_the_trunk_runs(
    tmp_path, monkeypatch, changes, noun
):
    monkeypatch.setattr(mc.training, "MiniCLIP", lambda *_: pytest.fail("went on"))
    data = mc.load_dataset("sample", "train", limit=8)
    with pytest.raises(ValueError, match=noun):
        mc.fit(SMALL.updated(train={"batch_size": 8}).updated(**changes), tmp_path, data, data)
