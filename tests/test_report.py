"""The README's numbers are those of report/results."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("tables", ROOT / "report" / "tables.py")
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)


def test_readme_shows_the_committed_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.renewed(readme) == readme, "run: python report/tables.py"
    assert "**Mini-CLIP**" in readme


def test_a_changed_result_changes_the_table(tmp_path, monkeypatch):
    record = json.loads(tables.source("sample").read_text())
    record["metrics"]["trained"]["text_to_image"]["R@1"] = 0.12345
    folder = tmp_path / "report" / "results" / "sample"
    folder.mkdir(parents=True)
    (folder / "04_retrieval.json").write_text(json.dumps(record))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert "**12.3**" in tables.tables()


def test_pictures_of_the_readme_exist():
    import re

    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), name
