"""What nbval does not see: it passes a notebook without outputs, and compares nothing."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "report" / "results" / "sample"
EXPECTED = [
    "00_clip_in_one_notebook",
    "01_data_exploration",
    "02_model_building",
    "03_training",
    "04_retrieval_evaluation",
    "05_zero_shot_classification",
    "06_embedding_and_attention",
    "07_interactive_demo",
    "08_ablations",
    "solutions",
]
LESSONS = EXPECTED[:-1]
NOTEBOOKS = [ROOT / "notebooks" / f"{name}.ipynb" for name in EXPECTED]

# A path of somebody's machine in what a cell has printed, and one in its source.
PRINTED_PATH = r"(/home/|/tmp/|/root/|/Users/|[A-Z]:\\)"
WRITTEN_PATH = r"""["'](/|~|[A-Z]:\\)\w"""


@pytest.fixture(params=NOTEBOOKS, ids=EXPECTED)
def path(request) -> Path:
    return request.param


@pytest.fixture
def notebook(path) -> dict:
    return json.loads(path.read_text())


def source(cell: dict) -> str:
    return "".join(cell["source"])


def cells_of_kind(notebook: dict, kind: str) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def code_cells(notebook: dict) -> list[dict]:
    return cells_of_kind(notebook, "code")


def all_code(notebook: dict) -> str:
    return "\n".join(source(cell) for cell in code_cells(notebook))


def printed(output: dict) -> str:
    """What an output shows as text: a stream, or the plain form of a value."""
    stream = "".join(output.get("text", ""))
    value = "".join(output.get("data", {}).get("text/plain", ""))
    return stream + value


def test_these_notebooks_and_no_other():
    found = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert found == EXPECTED


def test_every_cell_was_run_in_order(notebook):
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert len(counts) > 8


def test_outputs_hold_no_error_no_stderr_and_no_path(notebook):
    for cell in code_cells(notebook):
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr"
            text = printed(output)
            assert not re.search(PRINTED_PATH, text), text


def test_ignored_outputs_are_few_and_still_assert_something(notebook):
    sources = [source(cell) for cell in code_cells(notebook)]
    assert not any("NBVAL_SKIP" in text for text in sources)

    ignored = [text for text in sources if "NBVAL_IGNORE_OUTPUT" in text]
    assert len(ignored) <= len(sources) / 4
    for text in ignored:
        # nbval knows the marker only when it stands alone on its line
        assert re.search(r"^# NBVAL_IGNORE_OUTPUT$", text, re.MULTILINE), text
        assert "assert" in text or "version" in text, text


def test_no_shell_no_install_no_absolute_path(notebook):
    for cell in code_cells(notebook):
        text = source(cell)
        assert not re.search(r"^\s*[!%]", text, re.MULTILINE), text
        assert not re.search(WRITTEN_PATH, text), text


def test_opens_with_a_title_and_ends_with_a_summary(notebook):
    first = notebook["cells"][0]
    assert first["cell_type"] == "markdown"
    assert source(first).startswith("# ")

    headings = []
    for cell in cells_of_kind(notebook, "markdown"):
        headings += re.findall(r"^## +(.*)$", source(cell), re.MULTILINE)
    assert any("Summary" in heading for heading in headings[-3:]), headings


def test_takes_the_dataset_as_a_parameter(notebook):
    tagged = []
    for cell in code_cells(notebook):
        if "parameters" in cell["metadata"].get("tags", []):
            tagged.append(source(cell))
    assert len(tagged) == 1
    assert re.search(r'^dataset = "sample"', tagged[0], re.MULTILINE)


def test_is_short_enough_to_read(path, notebook):
    assert path.stat().st_size <= 1_500_000
    lengths = [len(source(cell).splitlines()) for cell in code_cells(notebook)]
    assert max(lengths) <= 24
    assert np.median(lengths) <= 12


@pytest.mark.parametrize("name", LESSONS)
def test_opens_and_ends_like_the_others(name):
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    opening = source(cells[0])
    for part in ("**Question.**", "**You will see**", "**Needs**", "**Time**", "**Writes**"):
        assert part in opening, part
    text = "\n".join(source(cell) for cell in cells)
    for part in ("## Summary", "**What would break this?**", "Exercises", "solutions.ipynb"):
        assert part in text, part
    place = EXPECTED.index(name)
    neighbours = EXPECTED[max(0, place - 1) : place + 2]
    for neighbour in neighbours:
        if neighbour != name:
            assert f"({neighbour}.ipynb" in source(cells[-1]), neighbour


def test_contents_lead_to_every_section(notebook):
    opening = source(notebook["cells"][0])
    linked = set(re.findall(r"\]\(#([^)]*(?:\([^)]*\)[^)]*)*)\)", opening))
    for cell in cells_of_kind(notebook, "markdown"):
        for heading in re.findall(r"^## +(\d+\. .*)$", source(cell), re.MULTILINE):
            assert heading.replace(" ", "-") in linked, heading


def test_figures_are_numbered_in_order(path, notebook):
    if path.stem == "solutions":
        return
    chapter = int(path.stem[:2])
    text = "\n".join(source(cell) for cell in cells_of_kind(notebook, "markdown"))
    numbers = []
    for caption in re.findall(r"\*(Figures? [^*]*)", text):
        numbers += [int(n) for n in re.findall(rf"{chapter}\.(\d+)", caption.split("*")[0])]
    assert numbers == sorted(numbers)
    assert numbers[:1] == [1]
    assert list(dict.fromkeys(numbers)) == list(range(1, max(numbers) + 1))


def test_each_figure_is_saved_once_and_committed(path, notebook):
    names = re.findall(r'viz\.save\(\s*[^,]+,\s*f?"([^"]+)"', all_code(notebook))
    if path.stem in ("00_clip_in_one_notebook", "solutions"):  # they show figures and keep none
        return
    assert len(names) >= 3
    assert len(names) == len(set(names))

    for name in names:
        assert name.startswith(f"{path.stem[:2]}_"), name
        # a name may be filled in by the notebook
        pattern = re.sub(r"\{.*?\}", "*", name) + ".*"
        committed = []
        for dataset in ("sample", "photos"):
            committed += (ROOT / "figures" / dataset).glob(pattern)
        assert committed, name


def test_results_are_committed(path, notebook):
    topics = re.findall(r'save_result\(\s*dataset,\s*"([^"]+)"', all_code(notebook))
    assert topics or path.stem in ("00_clip_in_one_notebook", "solutions")
    for topic in topics:
        record = json.loads((RESULTS / f"{topic}.json").read_text())
        assert record["topic"] == topic
        assert record["metrics"]
