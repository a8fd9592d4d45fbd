"""The model from the user's side: unit vectors out, and checkpoints that come back as they were."""

import json
import math
import shutil

import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from PIL import Image
from safetensors.torch import load_file, save_file

import minicliplib as mc
from minicliplib.config import HeadConfig
from minicliplib.model import ProjectionHead

TEXTS = [
    "a dog",
    "Two brown dogs run along a sunny beach, and a child looks on.",
    "a kite in the snow",
    "a red car",
]


@pytest.fixture(scope="module")
def pictures(pairs) -> list[Image.Image]:
    return pairs.images[:5]


@pytest.fixture(scope="module")
def tuned() -> mc.MiniCLIP:
    """Partly trainable towers."""
    mc.set_seed(1)
    return mc.MiniCLIP(
        mc.Config().updated(**{"encoders.image_trainable": 2, "encoders.text_trainable": 1})
    )


@pytest.fixture(scope="module")
def saved(tuned, tmp_path_factory):
    return tuned.save(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


# ---- vectors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["locked", "tuned"])
def test_vectors_have_length_one(which, request, pictures):
    model = request.getfixturevalue(which)
    for vectors, n in ((model.encode_image(pictures), 5), (model.encode_text(TEXTS), 4)):
        assert vectors.shape == (n, model.dim) == (n, 256)
        assert vectors.dtype == torch.float32
        assert vectors.device == model.device
        assert torch.allclose(vectors.norm(dim=1), torch.ones(n), atol=1e-5)


@pytest.mark.parametrize("which", ["locked", "tuned"])
def test_the_size_of_a_batch_and_the_order_do_not_matter(which, request, pictures):
    model = request.getfixturevalue(which)
    images, texts = model.encode_image(pictures), model.encode_text(TEXTS)
    assert torch.allclose(model.encode_image(pictures, batch_size=2), images, atol=1e-5)
    assert torch.allclose(model.encode_text(TEXTS, batch_size=3), texts, atol=1e-5)
    assert torch.allclose(model.encode_text(TEXTS[::-1]), texts.flip(0), atol=1e-5)
    assert torch.allclose(torch.cat([model.encode_text(t) for t in TEXTS]), texts, atol=1e-5)
    assert torch.allclose(torch.cat([model.encode_image(p) for p in pictures]), images, atol=1e-5)


def test_paths_pictures_and_pixels_are_the_same_image(locked, pictures, tmp_path):
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    expected = locked.encode_image(pictures)
    assert torch.equal(locked.encode_image([tmp_path / f"{i}.png" for i in range(5)]), expected)
    assert torch.equal(
        locked.encode_image(str(tmp_path / "0.png"))[0], locked.encode_image(pictures[0])[0]
    )
    assert torch.equal(locked.encode_image(locked.image_encoder.prepare(pictures)), expected)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_vector_is_the_mean_over_the_looks(pictures, count):
    mc.set_seed(0)
    plain = mc.MiniCLIP(mc.Config())
    mc.set_seed(0)
    model = mc.MiniCLIP(mc.Config().updated(**{"inference.tta_views": count}))
    pixels = model.image_encoder.prepare(pictures[:2])
    middle = torch.nn.functional.interpolate(
        pixels[..., 17:207, 17:207], (224, 224), mode="bicubic"
    )
    looks = [pixels, pixels.flip(-1), middle, middle.flip(-1)][:count]
    mean = sum(plain.encode_image(look) for look in looks)
    assert torch.allclose(
        model.encode_image(pictures[:2]), mean / mean.norm(dim=1, keepdim=True), atol=1e-5
    )
    if count > 1:  # a mirrored picture is the same to it
        assert torch.allclose(
            model.encode_image(pixels.flip(-1)), model.encode_image(pixels), atol=1e-4
        )


def test_an_unknown_number_of_looks_is_refused():
    with pytest.raises(ValueError, match="must be 1, 2 or 4, not 3"):
        mc.MiniCLIP(mc.Config().updated(**{"inference.tta_views": 3}))


def test_encoding_leaves_no_trace(tuned, pictures):
    tuned.train()
    images, texts = tuned.encode_image(pictures), tuned.encode_text(TEXTS)
    assert tuned.training
    tuned.eval()
    assert torch.equal(images, tuned.encode_image(pictures))  # no dropout, whatever the mode
    assert torch.equal(texts, tuned.encode_text(TEXTS))
    assert not images.requires_grad


def test_nothing_in_gives_nothing_out_and_an_empty_text_is_an_error(locked):
    assert locked.encode_image([]).shape == locked.encode_text([]).shape == (0, 256)
    for bad in ("", " ", ["a dog", ""]):
        locked.train()
        with pytest.raises(ValueError, match="empty"):
            locked.encode_text(bad)
        assert locked.training
        locked.eval()


def test_an_unreadable_image_is_named(locked, pictures, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(mc.DataError, match=r"bad\.jpg"):
        locked.encode_image([tmp_path / "bad.jpg"])
    with pytest.raises(mc.DataError, match=r"bad\.jpg"):
        locked.encode_image(
            [*pictures, tmp_path / "bad.jpg"], batch_size=2
        )  # read while another is embedded


# ---- parts -----------------------------------------------------------------------------------------


def test_the_scale_starts_at_the_inverse_temperature_and_ends_at_100(locked):
    assert locked.scale().item() == pytest.approx(1 / 0.07)
    model = mc.MiniCLIP(
        mc.Config().updated(**{"heads.temperature": 0.5, "heads.learn_temperature": False})
    )
    assert model.scale().item() == pytest.approx(2)
    assert not model.logit_scale.requires_grad
    with torch.no_grad():
        model.logit_scale.fill_(math.log(1000))
    assert model.scale().item() == pytest.approx(100)


def test_heads():
    mlp, linear = (
        ProjectionHead(12, HeadConfig(kind, 8, dropout=0.0)) for kind in ("mlp", "linear")
    )
    x = torch.randn(3, 12)
    assert torch.equal(linear(x), x @ linear.project.weight.T + linear.project.bias)
    inner = mlp.project(x)
    assert torch.allclose(mlp(x), mlp.norm(inner + mlp.residual(inner)))
    assert mlp(x).mean(1).abs().max() < 1e-5  # LayerNorm is last
    with pytest.raises(ValueError, match=r"Unknown projection head 'conv'. Known: linear, mlp"):
        ProjectionHead(12, HeadConfig("conv"))


# ---- checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0), (torch.float16, 2e-3)])
def test_a_saved_and_loaded_model_gives_equal_vectors(tuned, pictures, tmp_path, dtype, tolerance):
    with torch.no_grad():
        tuned.logit_scale.fill_(3.0)
    model = mc.load(tuned.save(tmp_path / "new" / "folder", dtype))
    assert model.config == tuned.config
    assert not model.training
    assert model.scale().item() == pytest.approx(math.exp(3), rel=1e-3)
    assert torch.allclose(
        model.encode_image(pictures), tuned.encode_image(pictures), atol=tolerance, rtol=0
    )
    assert torch.allclose(
        model.encode_text(TEXTS), tuned.encode_text(TEXTS), atol=tolerance, rtol=0
    )


def test_a_checkpoint_holds_what_was_learned_and_its_settings(tuned, saved):
    assert {path.name for path in saved.iterdir()} == {"config.json", "model.safetensors"}
    tensors = load_file(saved / "model.safetensors")
    assert tensors.keys() == {n for n, p in tuned.named_parameters() if p.requires_grad}
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values())
    assert not any("conv_stem" in name or "embeddings" in name for name in tensors)
    assert (
        mc.Config.from_dict(json.loads((saved / "config.json").read_text())["config"])
        == tuned.config
    )


def test_a_fixed_temperature_is_kept_in_a_checkpoint(tmp_path):
    config = mc.Config().updated(**{"heads.temperature": 0.2, "heads.learn_temperature": False})
    assert mc.load(mc.MiniCLIP(config).save(tmp_path)).scale().item() == pytest.approx(5, rel=1e-3)


def test_the_hubs_own_calls_read_and_write_the_same_folder(tuned, pictures, tmp_path):
    assert issubclass(mc.MiniCLIP, PyTorchModelHubMixin)
    tuned.save_pretrained(tmp_path)
    model = mc.MiniCLIP.from_pretrained(str(tmp_path))
    assert model.config == tuned.config
    assert torch.allclose(model.encode_image(pictures), tuned.encode_image(pictures), atol=2e-3)


def rewrite(folder, **changes):
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | changes))


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def no_config(folder):
    (folder / "config.json").unlink()


def truncated(folder):
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


def other_kind(folder):
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
    ("damage", "message"),
    [
        (no_weights, "not a whole checkpoint"),
        (no_config, "not a whole checkpoint"),
        (truncated, "not a whole checkpoint"),
        (no_json, "not a whole checkpoint"),
        (no_record, "not a whole checkpoint"),
        (no_settings, "not a whole checkpoint"),
        (other_format, "format 99, this version of minicliplib reads format 1"),
        (unknown_setting, "no setting 'heads.shape'"),
        (other_kind, "heads.dim takes int, not 'wide'"),
        (other_shape, r"'image_head.* is \(256\D*, the model wants \(128"),
        (other_stages, "has no partner"),
        (missing_tensor, "'logit_scale' has no partner"),
    ],
)
def test_a_damaged_checkpoint_is_one_clear_error(copy, damage, message):
    damage(copy)
    with pytest.raises(mc.CheckpointError, match=message):
        mc.load(copy)


def test_a_checkpoint_that_is_not_there(tmp_path):
    for name in (tmp_path / "nothing", "nothing"):
        with pytest.raises(mc.CheckpointError, match=r"no checkpoint .*shipped.*hub id"):
            mc.load(name)
    with pytest.raises(mc.CheckpointError, match="'nobody/nothing' is neither a folder here nor"):
        mc.load("nobody/nothing")  # the tests run with HF_HUB_OFFLINE


def test_a_kill_while_saving_leaves_the_old_checkpoint(tuned, copy, monkeypatch):
    before = (copy / "model.safetensors").read_bytes()

    def killed(tensors, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("minicliplib.model.save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        tuned.save(copy)
    assert (copy / "model.safetensors").read_bytes() == before
    mc.load(copy)


@pytest.mark.parametrize(
    ("cuda", "mps", "best"), [(1, 1, "cuda"), (1, 0, "cuda"), (0, 1, "mps"), (0, 0, "cpu")]
)
def test_the_best_device_is_found(monkeypatch, cuda, mps, best):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert mc.model.best_device() == best
