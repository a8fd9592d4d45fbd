"""README and RESULTS.md show the numbers of report/results, and all that they link to is there."""

import contextlib
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tables
from conftest import change_result

import minicliplib as mc

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "report/RESULTS.md", "report/SCALING.md", "CONTRIBUTING.md", "data/README.md")
REMEDY = "run: python report/tables.py"


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture
def change(tmp_path, monkeypatch):
    """Change a number in a copy of the results, which the tables then read."""
    shutil.copytree(ROOT / "report" / "results", tmp_path / "report" / "results")
    monkeypatch.setattr(tables, "ROOT", tmp_path)

    def change(dataset, topic, *keys, to):
        change_result(tables.source(dataset, topic), *keys, to=to)

    return change


# ---- README.md and RESULTS.md are what the results say ---------------------------------------


def test_readme_shows_the_committed_results():
    readme = read("README.md")
    assert tables.renewed(readme) == readme, REMEDY
    assert "| **Mini-CLIP** |" in readme


def test_results_page_shows_the_committed_results():
    assert read("report/RESULTS.md") == tables.results_page(), REMEDY


def test_a_changed_result_changes_readme_and_results_page(change):
    readme = read("README.md")
    page = tables.results_page()
    assert "**12.3**" not in readme + page

    change("flickr8k", "04_retrieval", "trained", "image_to_text", "R@10", to=0.12345)

    assert "**12.3**" in tables.renewed(readme)
    changed = tables.results_page().splitlines()
    different = [new for old, new in zip(page.splitlines(), changed, strict=True) if old != new]
    assert len(different) == 2  # in the table, and in that of the recipes measured on test
    assert "**12.3**" in different[0]
    assert "12.3" in different[1]


def test_results_page_names_the_file_of_every_table():
    for part in tables.results_page().split("\n## ")[1:-1]:
        assert "\n| --- |" in part
        assert re.search(r"\]\(results/\w+/\w+\.json\)\s*$", part), part.splitlines()[0]


def test_readme_is_short():
    assert len(read("README.md").splitlines()) <= 120


def test_map_in_readme_names_every_part_of_the_package():
    package = ROOT / "minicliplib"
    parts = {path.name for path in package.glob("[a-z]*.py")}
    parts |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    named = re.findall(r"`([\w/]+(?:\.py)?)`", read("README.md").split("## The package")[1])
    assert parts <= set(named)


@pytest.mark.slow
def test_readme_example_prints_what_it_says():
    (code,) = re.findall(r"```python\n(.*?)```", read("README.md"), flags=re.DOTALL)
    promised = re.findall(r"^# (.*)", code, flags=re.MULTILINE)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})

    printed = out.getvalue().splitlines()
    number = r"\d\.\d\d"
    assert [re.sub(number, "", line) for line in printed] == [
        re.sub(number, "", line) for line in promised
    ]
    expected = [float(value) for value in re.findall(number, "\n".join(promised))]
    found = [float(value) for value in re.findall(number, "\n".join(printed))]
    assert found == pytest.approx(expected, abs=0.02)


# ---- links -----------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Return the headings of a page as GitHub names them in links."""
    headings = re.findall(
        r"^#+ (.+)", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def files() -> set[str]:
    """The files of the checkout that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.split("\0"))


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_to_a_file_of_the_project(page, files):
    text = read(page)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("https://", "http://")):
            continue
        name, _, heading = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        path = target.resolve().relative_to(ROOT).as_posix()
        assert path in files, f"{page} links to {link}, which is not there."
        assert target.exists(), f"{page} links to {link}, which is not there."
        if heading:
            assert heading in anchors(read(path)), f"{page} links to {link}: no such heading."


# ---- single tables ---------------------------------------------------------------------------


def test_settings_of_old_and_of_new_results_give_the_same_recipe():
    old = {
        "loss": {"name": "multi_positive", "captions_per_image": 2, "temperature": 0.04},
        "train": {"views": 10, "tower_dropout": 0.25},
        "digest": "5094fad8",
    }
    new = {
        "loss": {"name": "multi_positive"},
        "heads": {"temperature": 0.04},
        "train": {"captions_per_image": 2},
        "features": {"views": 10},
        "encoders": {"text_dropout": 0.25},
    }
    recipe = tables.recipe(tables.config_of({"config": old}))

    assert recipe == tables.recipe(tables.config_of({"config": new}))
    assert "captions per image | 2 |" in recipe
    assert "cached views per image | 10 |" in recipe
    assert "temperature at the start | 0.04 |" in recipe
    assert "dropout, text tower | 25% |" in recipe


def test_committed_results_hold_the_recipe_of_the_preset():
    recorded = tables.config_of(tables.measured("flickr8k", "03_training"))
    assert recorded == mc.preset("flickr8k")


@pytest.mark.parametrize(
    ("minutes", "recall"),
    [
        (1, None),  # nothing was measured yet
        (2, 0.1),
        (4, 0.3),  # a step may end a little late
        (6, 0.3),  # the last one, though training ended before the mark
        (8, None),  # training had ended long before
    ],
)
def test_recall_after_minutes(minutes, recall):
    times = {2.0: 0.1, 3.0: 0.2, 4.3: 0.3}
    curve = [{"minutes": time, "mean_recall": found} for time, found in times.items()]
    assert tables.recall_after({"curve": curve}, minutes, between=2) == recall


def test_a_peer_that_nobody_reaches_is_said_so(change):
    peer = ("contenders", "open_clip", "curve")
    change("benchmarks", "peers", *peer, to=[{"minutes": 5.0, "mean_recall": 0.99}])
    first, second = tables.cheaper()
    assert "times faster" in first
    assert second.startswith("open_clip reached its best mean recall, 99.0%, after 5.0 minutes")
    assert second.count("did not reach it") == 2


def test_a_peer_that_wins_the_race_is_said_so(change):
    curve = [{"minutes": 5.0, "mean_recall": 0.99}]
    change("benchmarks", "speedrun", "curves", "open_clip", to=curve)
    first, second = tables.sooner()
    assert "times as fast" in first
    assert second == (
        "open_clip reached its best mean recall, 99.0%, after 5.0 minutes; ours did not reach it."
    )


def test_a_target_that_was_not_reached_is_a_dash(change):
    curve = [{"minutes": 1.234, "mean_recall": 0.54}]
    change("benchmarks", "speedrun", "curves", "one_tower", to=curve)
    row = tables.speedrun().splitlines()[2]
    assert "| 1.2 | - | - | - |" in row


def test_a_lead_has_its_interval_and_the_reference_has_none(change):
    rows = {
        "mean": {"mean_recall": 0.5, "lead": 0.0, "interval": [0.0, 0.0]},
        "attention": {"mean_recall": 0.49, "lead": -0.01, "interval": [-0.02, 0.004]},
    }
    change("benchmarks", "ideas", "pooling", "rows", to=rows)
    reference, other = tables.pooling().splitlines()[2:]
    assert reference.endswith("| 50.0 | - |")
    assert other.endswith("| 49.0 | -1.0 [-2.0, +0.4] |")


def test_a_checkpoint_without_numbers_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=r"everyday\.json is missing.*checkpoints\.py measure"):
        tables.measured("checkpoints", "everyday")


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [([0.001, 0.02], "Yes"), ([-0.02, -0.001], "No"), ([-0.01, 0.01], "We cannot tell")],
)
def test_the_verdict_on_coco_follows_the_interval(change, interval, verdict):
    change("benchmarks", "cross", "gain", "interval", to=interval)
    assert f"help on Flickr8k? {verdict}" in tables.cross_note()


def test_a_score_of_a_study_is_found_by_label_and_by_place():
    label = tables.study("head")[-1]["label"]
    assert tables.studied("head", label) == tables.studied("head", -1)
