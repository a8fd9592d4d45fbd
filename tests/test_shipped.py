"""The checkpoints that come with the package: they load, and repeat their committed numbers."""

import json
import shutil
from pathlib import Path

import cards
import pytest
import torch
from huggingface_hub import ModelCard

import minicliplib as mc
from minicliplib.config import MOVED
from minicliplib.datasets.download import ARCHIVES, unpack
from minicliplib.interop.checkpoint import SHIPPED
from minicliplib.interop.model_card import model_card

RESULTS = Path(__file__).resolve().parents[1] / "report" / "results"
NAMES = ["flickr8k", "everyday"]


def record_of(name: str) -> dict:
    """Return what the ``config.json`` of a shipped checkpoint holds."""
    return json.loads((SHIPPED / name / "config.json").read_text())


def flat(settings: dict) -> dict:
    """Return the settings of a record by dotted name."""
    found = {}
    for part, values in settings.items():
        if isinstance(values, dict):
            found |= {f"{part}.{name}": value for name, value in values.items()}
        else:
            found[part] = values
    return found


# ---- what made them ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small(name):
    assert sum(file.stat().st_size for file in (SHIPPED / name).iterdir()) < 30e6


def test_they_say_what_made_them(shipped, everyday):
    assert shipped.config == mc.preset("flickr8k")
    assert everyday.config == mc.preset("everyday")


def test_stored_indexes_are_still_those_of_these_models(shipped, everyday):
    # A new checkpoint gets a new number; new code must not.
    assert shipped.fingerprint() == "f1cf9c05"
    assert everyday.fingerprint() == "d0460d1d"


def assert_settings_kept(settings: dict) -> None:
    """Check that every setting of a record, also one that has moved, keeps its value."""
    now = mc.Config.from_dict(settings).flat()
    for name, value in flat(settings).items():
        assert now[MOVED.get(name, name)] == value, name


def with_settings() -> list[Path]:
    """Return the committed results that say which settings made them."""
    found = []
    for path in sorted(RESULTS.rglob("*.json")):
        if json.loads(path.read_text()).get("config"):
            found.append(path)
    return found


def short_name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", with_settings(), ids=short_name)
def test_the_settings_of_committed_results_can_be_read(path):
    settings = json.loads(path.read_text())["config"]
    digest = settings.pop("digest")
    assert len(digest) == 8
    assert_settings_kept(settings)


def committed(topic: str) -> dict:
    """Return what was measured on Flickr8k."""
    return json.loads((RESULTS / "flickr8k" / f"{topic}.json").read_text())


@pytest.mark.parametrize("topic", ["03_training", "04_retrieval", "05_zero_shot", "06_embedding"])
def test_the_committed_numbers_are_of_its_config(shipped, topic):
    settings = committed(topic)["config"]
    del settings["digest"]
    assert mc.Config.from_dict(settings) == shipped.config


# ---- their cards ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_its_card_shows_the_committed_results(name):
    record = record_of(name)
    assert record["facts"] == cards.facts_of(name, record["facts"]["trained_on"])
    text = (SHIPPED / name / "README.md").read_text(encoding="utf-8")
    assert text == model_card(mc.Config.from_dict(record["config"]), record["facts"])


def test_renewing_the_cards_changes_nothing(tmp_path, monkeypatch, capsys):
    for name in NAMES:
        (tmp_path / name).mkdir()
        shutil.copy(SHIPPED / name / "config.json", tmp_path / name)
    monkeypatch.setattr(cards, "SHIPPED", tmp_path)
    cards.main()
    assert "flickr8k" in capsys.readouterr().out
    for name in NAMES:
        for file in ("config.json", "README.md"):
            assert (tmp_path / name / file).read_bytes() == (SHIPPED / name / file).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_hub_can_read_its_card(name):
    card = ModelCard.load(SHIPPED / name / "README.md")
    assert card.data.library_name == "minicliplib"
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert card.data.license_name == "research-only"
    assert card.data.metrics == ["recall", "accuracy"]
    assert "research and education only" in card.text
    assert "1,000 images × 5,000 captions" in card.text


# ---- what they know ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes() -> mc.CaptionedImages:
    return mc.load_dataset("sample", "test", limit=50)


def cosines(model: mc.MiniCLIP, scenes: mc.CaptionedImages) -> torch.Tensor:
    """Compare each scene with the one caption of each that names everything: (images, texts)."""
    images = model.encode_image(scenes.images, tta_views=1)
    texts = model.encode_text([captions[1] for captions in scenes.captions])
    assert images.shape == texts.shape == (50, model.dim)
    assert torch.allclose(images.norm(dim=1), torch.ones(50), atol=1e-5)
    return images @ texts.T


@pytest.mark.slow
def test_the_everyday_one_finds_scenes(everyday, scenes):
    found = cosines(everyday, scenes).argmax(0)
    # chance is 0.02
    assert (found == torch.arange(50)).float().mean() > 0.8


@pytest.mark.slow
def test_it_knows_a_scene_it_has_never_seen(shipped, scenes):
    scores = cosines(shipped, scenes)
    ranks = (scores > scores.diagonal()).sum(0).float()
    # 24.5 is chance; these are drawings, and it was trained on photos only
    assert ranks.mean() < 21


@pytest.mark.slow
def test_it_repeats_the_committed_numbers(shipped, real_data, tmp_path):
    for archive in ARCHIVES["flickr8k"]:
        zipped = real_data(f"flickr8k/{archive}")
        unpack(zipped, tmp_path / Path(archive).stem, progress=False)
    scores = mc.evaluate(shipped, mc.load_dataset("flickr8k", "test", root=tmp_path))["scores"]
    assert scores["images"] == 1000
    assert scores["captions"] == 5000
    expected = committed("04_retrieval")["metrics"]["trained"]
    for direction in ("image_to_text", "text_to_image"):
        for k in ("R@1", "R@5", "R@10"):
            assert scores[direction][k] == pytest.approx(expected[direction][k], abs=0.001)
