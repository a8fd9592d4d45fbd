"""Cached features are those of the frozen stages, and are computed again when these change."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import minicliplib as mc
from minicliplib import features as features_module
from minicliplib.features import Features
from minicliplib.paths import PACKAGE, data_root
from minicliplib.scale import cache

TUNED = mc.Config().updated(
    encoders={"image_trainable": 2, "text_trainable": 1, "max_tokens": 12},
    train={"batch_size": 4},
)


@pytest.fixture
def few(pairs) -> mc.CaptionedImages:
    return pairs.subset(range(8))


@pytest.mark.slow
@pytest.mark.parametrize("whole", ["image_trainable", "text_trainable"])
def test_a_tower_with_nothing_frozen_trains_from_the_cache_too(few, whole):
    model = mc.MiniCLIP(TUNED.updated(encoders={whole: -1}))
    model.requires_grad_(False)
    rows = np.arange(4)
    vectors = {}
    for cached in (True, False):
        features = Features(model, few.subset(rows), cache=cached)
        vectors[cached] = model(features.image_batch(rows), *features.text_batch(rows))
    assert torch.allclose(vectors[True][0], vectors[False][0], atol=0.01)
    assert torch.allclose(vectors[True][1], vectors[False][1], atol=0.01)
    of_user = model.encode_text(few.flat_captions[:4])
    assert torch.allclose(of_user, vectors[False][1], atol=1e-5)


READS = {"image_reads": "block5+block16+last", "text_reads": "layer2+layer4+last"}
CUTS = {
    "both parts": {"image_trainable": 2, "text_trainable": 2},
    "locked": {"image_trainable": 0, "text_trainable": 0},
    "free": {"image_trainable": -1, "text_trainable": -1},
}


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS)
def test_cached_features_with_several_reads_are_the_towers_own(few, cut):
    config = TUNED.updated(encoders=READS | CUTS[cut], features={"cache_dtype": "float32"})
    mc.set_seed(0)
    model = mc.MiniCLIP(config).requires_grad_(False)
    rows = np.array([5, 0, 3, 6])
    views = np.array([0, 2, 1, 2])
    given = {}
    for cached in (True, False):
        features = Features(model, few, views=3, cache=cached)
        given[cached] = (features.image_batch(rows, views), *features.text_batch(rows))
    image, text, mask = given[True]
    own_image, own_text, own_mask = given[False]
    assert torch.allclose(image.state, own_image.state, atol=1e-4)
    assert torch.allclose(image.pooled, own_image.pooled, atol=1e-5)
    assert torch.allclose(text.pooled, own_text.pooled, atol=1e-5)
    if cut != "locked":
        assert torch.equal(mask, own_mask)
        counts = mask.view(*mask.shape, *[1] * (text.state.ndim - 2))
        assert torch.allclose(text.state * counts, own_text.state * counts, atol=1e-5)

    # From both come the vectors that a user gets.
    for hidden in given.values():
        _, texts, _ = model(*hidden)
        of_user = model.encode_text([few.flat_captions[row] for row in rows])
        assert torch.allclose(texts, of_user, atol=1e-5)
    (plain,) = model.encode_image(few.images[5])
    assert torch.allclose(model(*given[True])[0][0], plain, atol=1e-5)


def test_how_much_is_read_of_the_frozen_stages(few):
    config = TUNED.updated(encoders=READS | CUTS["both parts"])
    features = Features(mc.MiniCLIP(config), few.subset(range(2)))
    # layer 4 of six is the last that is frozen, block 16 of sixteen the last of the image tower's
    assert features.text_batch(np.arange(2))[0].pooled.shape == (2, 2 * 384)
    image = features.image_batch(np.arange(2))
    assert image.state.shape == (2, 192, 7, 7)
    assert image.pooled.shape == (2, 40)


@pytest.mark.slow
def test_other_reads_are_other_features(few):
    keys = set()
    for reads in ("last", "layer2+last", "layer3+last"):
        model = mc.MiniCLIP(TUNED.updated(encoders={"text_reads": reads}))
        keys.add(key_of(model, "text_encoder", few.flat_captions))
    assert len(keys) == 3


def test_the_cache_is_reused_and_stays_on_disk_when_large(few, locked, monkeypatch):
    first = Features(locked, few)
    files = {path: path.stat().st_mtime_ns for path in cached_files("pairs")}
    monkeypatch.setattr(features_module, "IN_MEMORY", 0)
    second = Features(locked, few)
    assert {path: path.stat().st_mtime_ns for path in cached_files("pairs")} == files
    assert isinstance(second.images[0], np.memmap)
    assert not isinstance(first.images[0], np.memmap)
    assert np.array_equal(first.images[0], second.images[0])
    assert first.images[0].dtype == np.float16


def test_a_large_cache_of_a_tuned_tower_gives_the_same_batches(few, tuned, monkeypatch):
    rows = np.array([1, 4])
    hidden, mask = Features(tuned, few).text_batch(rows)
    monkeypatch.setattr(features_module, "IN_MEMORY", 0)
    on_disk = Features(tuned, few)
    assert isinstance(on_disk.tokens, np.memmap)
    same, same_mask = on_disk.text_batch(rows)
    assert torch.equal(same.state, hidden.state)
    assert same.pooled.shape == hidden.pooled.shape == (2, 0)
    assert torch.equal(same_mask, mask)


def cached_files(name: str) -> list[Path]:
    return sorted((data_root() / "cache").glob(f"{name}-*.npy"))


def key_of(model: mc.MiniCLIP, tower: str, items: list, whole: bool = False) -> str:
    return cache.feature_key(getattr(model, tower), items, np.dtype("float16"), whole)


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["image_encoder", "text_encoder"])
def test_other_weights_or_stages_are_other_features(few, locked, tower):
    items = few.images if tower == "image_encoder" else few.flat_captions
    key = key_of(locked, tower, items)
    assert key == key_of(mc.MiniCLIP(mc.Config()), tower, items)
    assert key != key_of(mc.MiniCLIP(TUNED.updated(encoders={"max_tokens": 40})), tower, items)
    assert key != key_of(locked, tower, items[:4])

    # As if the hub had served another revision.
    other = mc.MiniCLIP(mc.Config())
    with torch.no_grad():
        next(getattr(other, tower).parameters()).add_(1e-3)
    assert key != key_of(other, tower, items)


def test_trained_stages_do_not_change_the_frozen_ones_features(few):
    model = mc.MiniCLIP(TUNED)
    key = key_of(model, "text_encoder", few.flat_captions)
    teacher = key_of(model, "text_encoder", few.flat_captions, whole=True)
    with torch.no_grad():
        model.text_encoder.modules_from(model.text_encoder.frozen)[0].output.dense.bias.add_(1.0)
    assert key_of(model, "text_encoder", few.flat_captions) == key
    assert key_of(model, "text_encoder", few.flat_captions, whole=True) != teacher


def test_another_version_of_a_library_is_other_features(few, locked, monkeypatch):
    key = key_of(locked, "image_encoder", few.images)
    versions = {name: cache.version(name) for name in cache.LIBRARIES}
    for name in ("timm", "transformers", "pillow"):
        newer = versions | {name: "99.0"}
        monkeypatch.setattr(cache, "version", newer.get)
        assert key_of(locked, "image_encoder", few.images) != key


def test_another_input_size_or_layer_is_other_features(few):
    model = mc.MiniCLIP(TUNED)
    key = key_of(model, "image_encoder", few.images)
    model.image_encoder.size = 192
    smaller = key_of(model, "image_encoder", few.images)
    model.image_encoder.model.bn1.eps = 0.5
    assert len({key, smaller, key_of(model, "image_encoder", few.images)}) == 3


def test_a_change_of_the_code_measures_again(tmp_path, monkeypatch):
    before = cache.code_version()
    shutil.copytree(PACKAGE, tmp_path / "code", ignore=shutil.ignore_patterns("assets"))
    monkeypatch.setattr(cache, "PACKAGE", tmp_path / "code")
    assert cache.code_version() == before
    loss = tmp_path / "code" / "loss.py"
    loss.write_text(loss.read_text() + "\n# changed\n")
    assert cache.code_version() != before
    assert cache.code_version(cache.FEATURE_CODE) == cache.code_version(cache.FEATURE_CODE)


def test_the_code_that_computes_features_is_all_there():
    for name in cache.TRAINING_CODE:
        assert (PACKAGE / f"{name}.py").exists(), name
    assert len(set(cache.TRAINING_CODE)) == len(cache.TRAINING_CODE)


@pytest.mark.slow
def test_a_change_of_the_preprocessing_computes_features_again(tmp_path):
    """In a copy of the package that turns every image upside down."""
    package = tmp_path / "code" / "minicliplib"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("checkpoints", "__pycache__"))
    script = (
        "import minicliplib as mc\n"
        "from minicliplib.features import Features\n"
        "data = mc.load_dataset('sample', 'train', limit=4)\n"
        "print(float(Features(mc.MiniCLIP(), data).images[0].astype('float32').sum()))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(package.parent), "MINICLIP_HOME": str(tmp_path)}

    def total() -> float:
        command = [sys.executable, "-c", script]
        result = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True
        )
        return float(result.stdout.splitlines()[-1])

    before = total()
    assert total() == before
    views = package / "datasets" / "views.py"
    resized = "picture.resize((size, size), Image.Resampling.BICUBIC)"
    assert resized in views.read_text()
    views.write_text(views.read_text().replace(resized, f"{resized}.rotate(180)"))
    assert total() != before
