"""What nbval does not see: a stripped notebook passes it without being compared at all."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = [
    "01_data_exploration",
    "02_model_building",
    "03_training",
    "04_retrieval_evaluation",
    "05_zero_shot_classification",
    "06_embedding_and_attention",
    "07_interactive_demo",
    "08_ablations",
]
NOTEBOOKS = [ROOT / "notebooks" / f"{name}.ipynb" for name in EXPECTED]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(params=NOTEBOOKS, ids=EXPECTED)
def path(request) -> Path:
    return request.param


@pytest.fixture
def notebook(path) -> dict:
    return json.loads(path.read_text())


def test_these_notebooks_and_no_other():
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == EXPECTED


def test_every_cell_was_run_in_order(notebook):
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert len(counts) > 8


def test_outputs_hold_no_error_no_stderr_and_no_path(notebook):
    for cell in code_cells(notebook):
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr"
            text = "".join(output.get("text", "")) + "".join(
                output.get("data", {}).get("text/plain", "")
            )
            assert not re.search(r"(/home/|/tmp/|/root/|/Users/|[A-Z]:\\)", text), text


def test_ignored_outputs_are_few_and_still_assert_something(notebook):
    cells = code_cells(notebook)
    ignored = [cell for cell in cells if "NBVAL_IGNORE_OUTPUT" in source(cell)]
    assert len(ignored) <= len(cells) / 4
    for cell in ignored:
        # nbval knows the marker only when it stands alone on its line
        assert re.search(r"^# NBVAL_IGNORE_OUTPUT$", source(cell), re.M), source(cell)
        assert "assert" in source(cell) or "version" in source(cell), source(cell)
    assert not any("NBVAL_SKIP" in source(cell) for cell in cells)


def test_no_shell_no_install_no_absolute_path(notebook):
    for cell in code_cells(notebook):
        assert not re.search(r"^\s*[!%]", source(cell), re.M), source(cell)
        assert not re.search(r"""["'](/|~|[A-Z]:\\)\w""", source(cell)), source(cell)


def test_opens_with_a_title_and_ends_with_a_summary(notebook):
    first, headings = notebook["cells"][0], []
    assert first["cell_type"] == "markdown"
    assert source(first).startswith("# ")
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            headings += re.findall(r"^## +(.*)$", source(cell), re.M)
    assert any("Summary" in heading for heading in headings[-3:]), headings


def test_takes_the_dataset_as_a_parameter(notebook):
    tagged = [c for c in code_cells(notebook) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert re.search(r'^dataset = "sample"', source(tagged[0]), re.M)


def test_is_short_enough_to_read(path, notebook):
    assert path.stat().st_size <= 1_000_000
    for cell in code_cells(notebook):
        assert not re.search(r"^\s*class ", source(cell), re.M), source(cell)
        assert len(source(cell).splitlines()) <= 24, source(cell)


def test_each_figure_is_saved_once_and_committed(path, notebook):
    code = "\n".join(map(source, code_cells(notebook)))
    names = re.findall(r'viz\.save\(\s*[^,]+,\s*f?"([^"]+)"', code)
    assert len(names) >= 3
    assert len(names) == len(set(names))
    for name in names:
        assert name.startswith(path.stem[:2] + "_"), name
        pattern = re.sub(r"\{.*?\}", "*", name) + ".png"  # a name may be filled in
        assert any(
            list((ROOT / "figures" / shown).glob(pattern)) for shown in ("sample", "photos")
        ), name


def test_results_are_committed(path, notebook):
    topics = re.findall(
        r'save_result\(\s*dataset,\s*"([^"]+)"', "\n".join(map(source, code_cells(notebook)))
    )
    assert topics
    for topic in topics:
        record = json.loads((ROOT / "report" / "results" / "sample" / f"{topic}.json").read_text())
        assert record["topic"] == topic
        assert record["metrics"]
