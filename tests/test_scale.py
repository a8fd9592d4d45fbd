"""The pieces beside the loop: chunks, averaged weights, soups, and several processes."""

import json
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from tower_files import READS

import minicliplib as mc
from minicliplib.datasets.base import Splits
from minicliplib.features import Features
from minicliplib.scale.processes import share_of_batch
from minicliplib.scale.runs import check_settings
from minicliplib.scale.text_side import TextSide
from minicliplib.scale.two_pass import two_pass_backward
from minicliplib.training import Trainer, epoch_batches

TUNED = mc.Config().updated(
    encoders={"image_trainable": 2, "text_trainable": 1},
    train={"batch_size": 8, "epochs": 2, "lr_heads": 2e-3},
)
MULTI_POSITIVE = {"loss": {"name": "multi_positive"}, "train": {"captions_per_image": 2}}


@pytest.fixture
def few(pairs) -> mc.CaptionedImages:
    return pairs.subset(range(16))


def gradients_of(model: mc.MiniCLIP) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


# ---- two passes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "soft"), [({}, 0.0), (MULTI_POSITIVE, 0.5), (MULTI_POSITIVE | READS, 0.5)]
)
def test_chunked_gradients_are_the_whole_batchs(changes, soft):
    data = mc.load_dataset("sample", "train", limit=10)
    config = TUNED.updated(**changes).updated(
        train={"batch_size": 10, "chunk_size": 4}, loss={"soft": soft}, heads={"dropout": 0.0}
    )
    model = mc.MiniCLIP(config)
    features = Features(model, data, cache=False)
    batch = next(epoch_batches(config, features, 0))
    hidden = (
        features.image_batch(batch.image_rows, batch.views),
        *features.text_batch(batch.caption_rows),
    )
    image_of_caption = torch.from_numpy(batch.image_of_caption)
    teacher = torch.from_numpy(features.teacher_text()[batch.caption_rows])

    whole = mc.contrastive_loss(config.loss.name, *model(*hidden), image_of_caption, teacher, soft)
    whole.backward()
    expected = gradients_of(model)
    model.zero_grad()
    chunked = two_pass_backward(config, model, hidden, image_of_caption, teacher)
    assert chunked.item() == pytest.approx(whole.item(), abs=1e-5)
    assert "logit_scale" in expected
    for name, gradient in gradients_of(model).items():
        assert torch.allclose(gradient, expected[name], atol=1e-5), name


def test_images_with_one_caption_and_with_five_go_through_chunks_too():
    data = one_or_five_captions(10)
    config = TUNED.updated(
        loss={"name": "multi_positive"},
        heads={"dropout": 0.0},
        train={"captions_per_image": 5, "batch_size": 10, "chunk_size": 3},
    )
    model = mc.MiniCLIP(config)
    features = Features(model, data, cache=False)
    batch = next(epoch_batches(config, features, 0))
    hidden = (features.image_batch(batch.image_rows), *features.text_batch(batch.caption_rows))
    image_of_caption = torch.from_numpy(batch.image_of_caption)
    assert len(image_of_caption) == 5 * 1 + 5 * 5

    mc.contrastive_loss("multi_positive", *model(*hidden), image_of_caption).backward()
    expected = gradients_of(model)
    model.zero_grad()
    two_pass_backward(config, model, hidden, image_of_caption)
    for name, gradient in gradients_of(model).items():
        assert torch.allclose(gradient, expected[name], atol=1e-5), name


def one_or_five_captions(count: int) -> mc.CaptionedImages:
    """Return scenes of which every second one has only its first caption."""
    data = mc.load_dataset("sample", "train", limit=count)
    captions = [own[: 5 if i % 2 else 1] for i, own in enumerate(data.captions)]
    return mc.CaptionedImages("mixed", "train", data.images, captions)


@pytest.mark.parametrize("changes", [{}, READS])
def test_chunks_draw_their_dropout_again(few, changes):
    """In the heads and in the text tower, as when their vectors were first computed."""
    config = TUNED.updated(**changes).updated(
        train={"chunk_size": 3},
        heads={"dropout": 0.5, "image_dropout": 0.2, "text_dropout": 0.2},
        encoders={"text_dropout": 0.3},
    )
    model = mc.MiniCLIP(config).train()
    features = Features(model, few, cache=False)
    rows = np.arange(8)
    image = features.image_batch(rows)
    text, mask = features.text_batch(rows)

    # With a graph, all chunks at once.
    torch.manual_seed(3)
    chunks = [slice(0, 3), slice(3, 6), slice(6, 8)]
    parts = [model(image.rows(chunk), text.rows(chunk), mask[chunk]) for chunk in chunks]
    images = torch.cat([part[0] for part in parts])
    texts = torch.cat([part[1] for part in parts])
    whole = mc.contrastive_loss("infonce", images, texts, model.scale())
    whole.backward()
    expected = gradients_of(model)
    model.zero_grad()

    torch.manual_seed(3)
    loss = two_pass_backward(config, model, (image, text, mask), torch.arange(8))
    assert loss.item() == pytest.approx(whole.item(), abs=1e-5)
    for name, gradient in gradients_of(model).items():
        assert torch.allclose(gradient, expected[name], atol=1e-5), name


# ---- averages -----------------------------------------------------------------------------------


def test_averaged_weights_are_put_in_and_taken_out(few):
    # A batch is all of the data, so that an epoch is one step.
    config = mc.Config().updated(train={"batch_size": len(few), "average": 0.5})
    model = mc.MiniCLIP(config)
    trainer = Trainer(config, model, Features(model, few), Accelerator())
    weight = model.get_parameter("image_head.project.bias")
    expected = weight.detach().clone()
    for step in (1, 2, 3):
        trainer.train_epoch(step - 1)
        expected.lerp_(weight.detach(), 1 - min(0.5, step / (9 + step)))
    current = weight.detach().clone()
    with trainer.average.put_into(model):
        assert torch.allclose(weight, expected)
        assert not torch.equal(weight, current)
    assert torch.equal(weight, current)


@pytest.mark.slow
def test_a_soup_is_the_mean_of_runs_from_one_start(few, tmp_path):
    config = TUNED.updated(train={"epochs": 1, "soup": 2})
    run = mc.fit(config, tmp_path, few, few)
    first, second = (mc.load(tmp_path / f"run{k}").learned_state() for k in (0, 1))
    soup = mc.load(tmp_path)
    assert soup.config == config
    for name, tensor in soup.learned_state().items():
        expected = (first[name] + second[name]) / 2
        assert torch.allclose(tensor, expected, rtol=2e-3, atol=1e-7), name  # in half precision
    weight = "image_head.project.weight"
    assert not torch.equal(first[weight], second[weight])
    assert len(run.history) == 1
    assert pd.read_csv(tmp_path / "history.csv")["run"].tolist() == [0, 1]

    # Rather than its checkpoint under another run's state.
    for soups, folder in ((2, "run0"), (1, "."), (3, ".")):
        with pytest.raises(ValueError, match="config"):
            mc.fit(config.updated(train={"soup": soups}), tmp_path / folder, few, few)


@pytest.mark.slow
def test_a_soup_finds_its_runs_where_they_lie_by_default(few):
    config = TUNED.updated(train={"epochs": 1, "soup": 2})
    one = mc.fit(config.updated(train={"soup": 1}), train=few, dev=few)
    seen = []
    mc.fit(config, train=few, dev=few, on_epoch=lambda history: seen.append(len(history)))
    assert seen == [1]  # only the second run was trained
    assert one.folder.exists()


# ---- half a model -------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, READS, {"encoders": {"text_reads": "layer1+layer3"}}])
def test_the_text_side_gives_the_vectors_of_the_whole_model(tmp_path, changes):
    mc.set_seed(0)
    model = mc.MiniCLIP(TUNED.updated(**changes).updated(heads={"text_dropout": 0.5}))
    folder = model.save(tmp_path, torch.float32)
    side = TextSide(folder)
    texts = ["a dog", "Two brown dogs run along a sunny beach, and a child looks on."]
    assert torch.equal(side.encode_text(texts), model.encode_text(texts))
    assert side.fingerprint() == model.fingerprint()


# ---- several processes --------------------------------------------------------------------------


def step_of(
    config: mc.Config, data: mc.CaptionedImages, processes: int = 1
) -> dict[str, torch.Tensor]:
    """Take one step on this process's share: its rows, the loss and every gradient."""
    mc.set_seed(0, threads=1)
    model = mc.MiniCLIP(config)
    trainer = Trainer(config, model, Features(model, data, cache=False), Accelerator(cpu=True))
    assert trainer.accelerator.num_processes == processes
    share = trainer._own_share(next(epoch_batches(config, trainer.features, 0)))
    loss = trainer.train_epoch(0)["loss"]  # one batch
    rows = torch.from_numpy(share.image_rows)
    return {"rows": rows, "loss": torch.tensor(loss)} | gradients_of(model)


def one_of_two(rank: int, port: int, folder, configs: list[mc.Config], data) -> None:
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2}
    meeting |= {"RANK": rank, "LOCAL_RANK": rank}
    os.environ |= {name: str(value) for name, value in meeting.items()}
    for i, config in enumerate(configs):
        torch.save(step_of(config, data, processes=2), folder / f"{i}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one_with_twice_the_batch(tmp_path):
    """Through the real towers and accelerate, whole and in chunks; no image is in two shares."""
    data = mc.load_dataset("sample", "train", limit=8)
    whole = TUNED.updated(**MULTI_POSITIVE).updated(
        heads={"dropout": 0.0}, train={"clip_norm": 1e9}, loss={"soft": 0.5}
    )
    configs = [whole, whole.updated(train={"chunk_size": 2})]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, (port, tmp_path, configs, data), nprocs=2)
    alone = step_of(whole, data)
    for i in range(len(configs)):
        first, second = (torch.load(tmp_path / f"{i}-{rank}.pt") for rank in (0, 1))
        assert torch.equal(torch.cat([first.pop("rows"), second.pop("rows")]), alone["rows"])
        assert len(alone["rows"].unique()) == 8
        for part in (first, second):
            assert part.keys() == alone.keys() - {"rows"} > {"logit_scale"}
            for name, tensor in part.items():
                assert torch.allclose(tensor, alone[name], atol=1e-5), name


def test_shares_are_counted_from_their_own_first_image(few):
    config = TUNED.updated(train={"batch_size": 8})
    features = Features(mc.MiniCLIP(config), few, cache=False)
    batch = next(epoch_batches(config, features, 0))
    shares = [share_of_batch(batch, 2, mine) for mine in (0, 1)]
    assert [share.image_of_caption.tolist() for share in shares] == [[0, 1, 2, 3]] * 2
    rows = np.concatenate([share.image_rows for share in shares])
    assert np.array_equal(rows, batch.image_rows)


def test_several_processes_refuse_images_with_too_few_captions():
    data = one_or_five_captions(8)
    config = TUNED.updated(**MULTI_POSITIVE)
    splits = Splits(data, data)
    several = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"train\.captions_per_image of at most 1"):
        check_settings(config, splits, several)
    one = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    check_settings(config, splits, one)
    check_settings(TUNED, splits, several)


@pytest.mark.slow
def test_two_processes_train_as_one_of_twice_the_batch(tmp_path):
    """``torchrun`` and all: the same losses, recalls and weights; one process reports."""
    config = mc.Config().updated(
        data={"limit": 32},
        encoders={"image_trainable": 1, "text_trainable": -1},
        heads={"dropout": 0.0},
        features={"cache_dtype": "float32"},
        train={"batch_size": 16, "epochs": 2, "average": 0.5},
    )
    settings = []
    for name, value in config.flat().items():
        if value is not None:
            settings.append(f"--set={name}={json.dumps(value)}")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    launch += ["--standalone", "--local_addr=127.0.0.1"]
    command = [*launch, "-m", "minicliplib", "train", *settings, "--out", str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    del environment["ACCELERATE_USE_CPU"]  # as on a user's machine
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr

    one = mc.fit(config, tmp_path / "one")
    two = pd.read_csv(tmp_path / "two" / "history.csv")
    for column, bound in (("loss", 1e-4), ("dev_mean_recall", 0.02), ("logit_scale", 1e-4)):
        assert two[column].tolist() == pytest.approx(one.history[column].tolist(), abs=bound)
    for name, tensor in mc.load(tmp_path / "two").learned_state().items():
        assert torch.allclose(tensor, one.model.learned_state()[name], atol=2e-3), name
    assert result.stdout.count("checkpoint, config and history") == 1
