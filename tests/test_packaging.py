"""The project as a whole: dependencies agree, imports flow one way, the package stays small."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
# Data flows from left to right; a module imports from those before it only.
ORDER = [
    *(
        "config",
        "images",
        "scenes",
        "data",
        "labelled",
        "archives",
        "encoders",
        "model",
        "interop",
        "trunk",
        "loss",
    ),
    *(
        "metrics",
        "training",
        "retrieval",
        "engine",
        "zeroshot",
        "explain",
        "visualize",
        "demo",
        "__main__",
    ),
]
CONDA_NAMES = {"pytorch": "torch"}


def requirement(text: str) -> tuple[str, str]:
    name, bound = re.fullmatch(r"([\w.-]+)\s*(.*)", text).groups()
    name = CONDA_NAMES.get(name.lower(), name.lower())
    return name.replace("_", "-"), bound


def test_conda_and_pip_ask_for_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = (
        project["dependencies"]
        + extras["notebooks"]
        + extras["demo"]
        + extras["engine"]
        + extras["report"]
        + extras["peers"]
        + [e for e in extras["test"] if "[" not in e]
    )
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in environment if isinstance(entry, dict))
    conda = [entry for entry in environment if isinstance(entry, str)]
    assert "--no-deps -e ." in pip
    given = dict(requirement(e) for e in conda + pip if not e.startswith("-"))
    assert given.pop("python") == project["requires-python"]
    assert {given.pop(tool) for tool in ("pip", "make")} == {""}
    assert given == dict(requirement(e) for e in wanted)


def test_lower_bounds_only():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for entry in project["dependencies"]:
        assert re.fullmatch(r"[\w-]+>=[\d.]+", entry), entry


def test_no_module_imports_against_the_arrow():
    modules = {
        path.stem: path for path in (ROOT / "minicliplib").glob("*.py") if path.stem != "__init__"
    }
    assert sorted(modules) == sorted(ORDER)
    for position, name in enumerate(ORDER):
        for node in ast.walk(ast.parse(modules[name].read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                assert node.module in ORDER[:position], f"{name} imports {node.module}"
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("minicliplib") for alias in node.names), name


def test_the_package_is_read_in_one_sitting():
    paths = (ROOT / "minicliplib").glob("*.py")
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}

    assert sum(lines.values()) <= 4120, lines  # docstrings and blank lines included
    assert max(lines.values()) <= 400, lines


def test_no_large_file_and_no_dataset_is_committed():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert files
    assert not [f for f in files if f.suffix.lower() in (".jpg", ".jpeg", ".zip", ".pt", ".pth")]
    assert not [f for f in files if f.exists() and f.stat().st_size > 25e6]
