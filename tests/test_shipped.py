"""The checkpoints that come with the package: they load, and repeat their committed numbers."""

import json
import os
from pathlib import Path

import pytest
import torch

import minicliplib as mc
from minicliplib.datasets.download import ARCHIVES, unpack

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "minicliplib" / "assets" / "checkpoints"
ZIPS = Path(os.environ.get("MINICLIP_DATA", ROOT.parent / "shared" / "datasets")) / "flickr8k"


@pytest.fixture(scope="module")
def model() -> mc.MiniCLIP:
    return mc.load("flickr8k")


@pytest.mark.parametrize("name", ["flickr8k", "mixed"])
def test_it_is_small_and_says_what_made_it(name):
    assert sum(f.stat().st_size for f in (SHIPPED / name).iterdir()) < 25e6
    assert mc.load(name).config == mc.preset(name)


def test_the_committed_numbers_are_of_its_config(model):
    committed = json.loads(
        (ROOT / "report" / "results" / "flickr8k" / "04_retrieval.json").read_text()
    )
    assert committed["config"]["digest"] == model.config.digest()


def test_the_mixed_one_finds_scenes():
    model, scenes = mc.load("mixed"), mc.load_dataset("sample", "test", limit=50)
    scores = (
        model.encode_text([c[1] for c in scenes.captions])
        @ model.encode_image(scenes.images, tta_views=1).T
    )
    assert (scores.argmax(1) == torch.arange(50)).float().mean() > 0.8  # chance is 0.02


def test_it_knows_a_scene_it_has_never_seen(model):
    scenes = mc.load_dataset("sample", "test", limit=50)
    image, text = (
        model.encode_image(scenes.images, tta_views=1),
        model.encode_text([c[1] for c in scenes.captions]),
    )
    assert image.shape == (50, model.dim)
    assert torch.allclose(image.norm(dim=1), torch.ones(50), atol=1e-5)
    scores = image @ text.T
    ranks = (scores > scores.diagonal()).sum(0).float()
    assert (
        ranks.mean() < 21
    )  # 24.5 is chance; these are drawings, and it was trained on photos only


@pytest.mark.slow
@pytest.mark.skipif(
    not ZIPS.is_dir(),
    reason=f"Flickr8k's zips are not in {ZIPS}; MINICLIP_DATA names another place",
)
def test_it_repeats_the_committed_numbers(model, tmp_path):
    for archive in ARCHIVES["flickr8k"]:
        unpack(ZIPS / archive, tmp_path / Path(archive).stem, progress=False)
    scores = mc.evaluate(model, mc.load_dataset("flickr8k", "test", root=tmp_path))["scores"]
    committed = json.loads(
        (ROOT / "report" / "results" / "flickr8k" / "04_retrieval.json").read_text()
    )
    for way in ("image_to_text", "text_to_image"):
        for k in ("R@1", "R@5", "R@10"):
            assert scores[way][k] == pytest.approx(
                committed["metrics"]["trained"][way][k], abs=0.001
            )
    assert (scores["images"], scores["captions"]) == (1000, 5000)
