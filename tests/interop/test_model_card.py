"""Model cards: the hub can read them, and they say what a checkpoint may be used for."""

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, RepoUrl

import minicliplib as mc
from minicliplib.interop.model_card import DATASETS, model_card, write_model_card

RETRIEVAL = {
    "dataset": "flickr8k",
    "split": "test",
    "images": 1000,
    "captions": 5000,
    "metrics": {"image → text R@1": 0.359, "mean recall": 0.5798},
}
ZERO_SHOT = {
    "dataset": "cifar10",
    "split": "test part",
    "images": 9000,
    "classes": 10,
    "metrics": {"top-1": 0.4796},
}
FACTS = {
    "trained_on": {"name": "flickr8k", "images": 6000, "captions": 30000},
    "results": [RETRIEVAL, ZERO_SHOT],
}


@pytest.fixture
def card(tmp_path) -> ModelCard:
    """A card of the preset for Flickr8k, as the hub's own code reads it."""
    return ModelCard.load(write_model_card(tmp_path, mc.preset("flickr8k"), FACTS))


def card_of(trained_on: str) -> ModelCard:
    """Return the card of a checkpoint that learned from a dataset."""
    return ModelCard(model_card(mc.Config().updated(data={"name": trained_on}), {}))


# ---- the header ----------------------------------------------------------------------------------


def test_the_header_tells_the_hub_what_it_is(card):
    assert card.data.library_name == "minicliplib"
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert card.data.language == "en"
    assert card.data.datasets == ["flickr8k"]
    assert card.data.metrics == ["recall", "accuracy"]
    assert card.data.license == "other"
    assert card.data.license_name == "research-only"


def test_the_header_holds_every_number_in_percent(card):
    found = []
    for result in card.data.eval_results:
        found.append(
            (
                *(result.task_type, result.dataset_name, result.dataset_split),
                *(result.metric_type, result.metric_name, result.metric_value),
            )
        )
    assert found == [
        ("image-text-retrieval", "flickr8k", "test", "recall", "image → text R@1", 35.9),
        ("image-text-retrieval", "flickr8k", "test", "recall", "mean recall", 58.0),
        ("zero-shot-image-classification", "cifar10", "test part", "accuracy", "top-1", 48.0),
    ]


def test_without_numbers_there_are_no_results():
    card = card_of("sample")
    assert card.data.eval_results is None
    assert "Nothing was measured" in card.text


# ---- terms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flickr8k", "coco", "flickr8k+sample", "folder+coco"])
def test_what_learned_from_research_data_says_so(name):
    card = card_of(name)
    assert card.data.license == "other"
    assert card.data.license_name == "research-only"
    assert "use it for research and education only" in card.text
    for part in name.split("+"):
        assert DATASETS[part] in card.text


@pytest.mark.parametrize("name", ["folder", "sample", "folder+sample"])
def test_what_learned_from_free_data_or_ones_own_does_not(name):
    card = card_of(name)
    assert card.data.license is None
    assert card.data.license_name is None
    assert "research" not in card.content.lower()
    assert DATASETS["folder" if "folder" in name else "sample"] in card.text


def test_the_data_that_were_used_count_and_not_the_settings():
    # Data can be handed to ``fit`` beside a config that names others.
    own = {"trained_on": {"name": "folder", "images": 12, "captions": 30}}
    assert "research-only" not in model_card(mc.preset("flickr8k"), own)
    assert "12 images with 30 captions" in model_card(mc.preset("flickr8k"), own)
    assert "research-only" in model_card(mc.Config(), FACTS)
    assert "6,000 images with 30,000 captions" in model_card(mc.Config(), FACTS)


# ---- the page ------------------------------------------------------------------------------------


def table_rows(text: str) -> list[list[str]]:
    """Return the cells of every row of the tables in a Markdown page."""
    rows = []
    for line in text.splitlines():
        if line.startswith("| "):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_numbers_stand_beside_their_pool(card):
    rows = table_rows(card.text)
    retrieval_pool = ["flickr8k, test", "1,000 images × 5,000 captions"]
    assert [*retrieval_pool, "image → text R@1", "35.9"] in rows
    assert [*retrieval_pool, "mean recall", "58.0"] in rows
    assert ["cifar10, test part", "9,000 images × 10 classes", "top-1", "48.0"] in rows


def test_the_recipe_is_the_configs(card):
    rows = table_rows(card.text)
    config = mc.preset("flickr8k")
    assert ["loss", config.loss.name] in rows
    assert ["epochs", str(config.train.epochs)] in rows
    assert ["images in a batch", str(config.train.batch_size)] in rows
    assert ["runs whose weights are averaged", str(config.train.soup)] in rows
    assert ["views averaged in use", str(config.inference.tta_views)] in rows
    assert "EfficientNet-Lite1" in card.text
    assert "EfficientNet-Lite2" in card.text
    assert "MiniLM" in card.text


@pytest.mark.parametrize(
    ("trainable", "words"),
    [(0, "all of its stages are frozen"), (-1, "all of its stages were trained"), (3, "last 3")],
)
def test_it_says_how_much_of_a_tower_was_trained(trainable, words):
    config = mc.Config().updated(encoders={"image_trainable": trainable})
    line = re.search("- Image tower: .*", model_card(config, {}))[0]
    assert words in line.lower()


def test_limits_follow_from_the_towers(card):
    # MiniLM has read captions of the test images, and this image tower was trained on ImageNet.
    assert "captions of Flickr8k's and COCO's test images" in card.text
    assert "not zero-shot there" in card.text
    other = mc.Config().updated(encoders={"image": "my-tower", "text": "bert_tiny"})
    text = model_card(other, {})
    assert "test images" not in text
    assert "ImageNet" not in text
    assert "my-tower" in text


# ---- who writes it -------------------------------------------------------------------------------


def facts_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())["facts"]


def test_saving_writes_the_card(locked, tmp_path, monkeypatch):
    monkeypatch.setattr(locked, "facts", FACTS)
    expected = model_card(locked.config, FACTS)
    locked.save(tmp_path / "ours")
    locked.save_pretrained(tmp_path / "hubs")
    for name in ("ours", "hubs"):
        assert (tmp_path / name / "README.md").read_text(encoding="utf-8") == expected
        assert facts_of(tmp_path / name) == FACTS


def test_pushing_to_the_hub_takes_the_card_along(locked, tmp_path, monkeypatch):
    uploaded = tmp_path / "uploaded"

    def create_repo(api, repo_id, **options):
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(api, folder_path, **options):
        shutil.copytree(folder_path, uploaded)

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(locked, "facts", FACTS)
    locked.push_to_hub("someone/mini-clip")

    names = {path.name for path in uploaded.iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}
    card = ModelCard.load(uploaded / "README.md")
    assert card.content == model_card(locked.config, FACTS)
    assert card.data.library_name == "minicliplib"
    assert mc.load(uploaded).config == locked.config


def test_a_checkpoint_that_is_loaded_and_saved_keeps_its_facts(shipped, tmp_path):
    again = shipped.save(tmp_path / "again")
    assert facts_of(again) == shipped.facts
    assert len(shipped.facts["results"]) == 3
    committed = Path(mc.__file__).parent / "assets" / "checkpoints" / "flickr8k"
    text = (again / "README.md").read_text(encoding="utf-8")
    assert text == (committed / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("soup", [1, 2])
def test_a_run_says_what_it_learned_from(pairs, tmp_path, soup):
    config = mc.Config().updated(train={"epochs": 1, "batch_size": 8, "soup": soup})
    dev = mc.CaptionedImages("pairs", "dev", pairs.images[:8], pairs.captions[:8])
    run = mc.fit(config, tmp_path, pairs.subset(range(16)), dev)

    facts = facts_of(tmp_path)
    assert facts["trained_on"] == {"name": "pairs", "images": 16, "captions": 16}
    assert run.model.facts == facts
    card = ModelCard.load(tmp_path / "README.md")
    assert "16 images with 16 captions" in card.text

    # A single run was measured on dev; nobody has measured the average of two.
    if soup == 1:
        recall = run.history["dev_mean_recall"].iloc[-1]
        row = ["pairs, dev", "8 images × 8 captions", "mean recall", f"{100 * recall:.1f}"]
        assert row in table_rows(card.text)
    else:
        assert "Nothing was measured" in card.text
