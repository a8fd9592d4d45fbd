"""Shared by all tests: nothing is written into the checkout, one torch thread, a few real pairs."""

import os
from tempfile import mkdtemp

os.environ |= {
    "TQDM_DISABLE": "1",
    "ACCELERATE_USE_CPU": "1",
    "HF_HUB_OFFLINE": "1",
}  # read when libraries load
os.environ["HF_HUB_CACHE"] = mkdtemp()  # empty, but for what a test puts there

import pytest
import torch

import minicliplib as mc


@pytest.fixture(autouse=True, scope="session")
def elsewhere(tmp_path_factory):
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setenv("MINICLIP_HOME", str(tmp_path_factory.mktemp("home")))
    patch.setenv("MINICLIP_OUT", str(tmp_path_factory.mktemp("out")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def pairs() -> mc.CaptionedImages:
    """64 scenes, each with the one caption that names everything: pairs that can be told apart."""
    scenes = mc.load_dataset("sample", "train", limit=64)
    return mc.CaptionedImages("pairs", "train", scenes.images, [[c[1]] for c in scenes.captions])


@pytest.fixture(scope="session")
def locked() -> mc.MiniCLIP:
    """Pretrained towers, all frozen, under untrained heads."""
    mc.set_seed(0)
    return mc.MiniCLIP(mc.Config())
