"""Shared by all tests: nothing is written into the checkout, one torch thread, a few real pairs."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

os.environ |= {
    "TQDM_DISABLE": "1",
    "ACCELERATE_USE_CPU": "1",
    "HF_HUB_OFFLINE": "1",
}  # read when libraries load
os.environ["HF_HUB_CACHE"] = mkdtemp()  # empty, but for what a test puts there

import numpy as np
import pytest
import torch
from PIL import Image

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


@pytest.fixture(scope="session")
def tuned() -> mc.MiniCLIP:
    """Pretrained towers whose top stages may train, under untrained heads."""
    mc.set_seed(1)
    return mc.MiniCLIP(mc.Config().updated(encoders={"image_trainable": 2, "text_trainable": 1}))


@pytest.fixture(scope="session")
def shipped() -> mc.MiniCLIP:
    """The shipped checkpoint that learned from Flickr8k."""
    return mc.load("flickr8k", "cpu")


@pytest.fixture(scope="session")
def everyday() -> mc.MiniCLIP:
    """The shipped checkpoint that learned from all captions at hand."""
    return mc.load("everyday", "cpu")


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """An image of noise, wider than tall."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Return a function that finds a file of a real dataset, or skips the test if it is not there.

    ``real_data("flickr8k/Flickr8k_text.zip")`` looks in ``$MINICLIP_DATA``, or beside the checkout.
    """
    beside_checkout = Path(__file__).resolve().parents[2] / "shared" / "datasets"
    folder = Path(os.environ.get("MINICLIP_DATA") or beside_checkout)

    def find(name: str) -> Path:
        if not (folder / name).exists():
            pytest.skip(f"There is no {folder / name}: MINICLIP_DATA can name the folder.")
        return folder / name

    return find


def change_result(path: Path, *keys: str, to: Any) -> None:
    """Change a number among the metrics of a file of results."""
    record = json.loads(path.read_text())
    inner = record["metrics"]
    for key in keys[:-1]:
        inner = inner[key]
    assert keys[-1] in inner
    inner[keys[-1]] = to
    path.write_text(json.dumps(record))
