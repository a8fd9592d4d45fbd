"""The project as a whole: dependencies agree, imports flow one way, the core stays small."""

import ast
import graphlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import minicliplib as mc

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minicliplib"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]

# Data flow from left to right: a module imports from those before it, or from its own folder.
DATA_FLOW = (
    "config",
    "paths",
    "datasets",
    "encoders",
    "model",
    "loss",
    "features",
    "metrics",
    "training",
    "retrieval",
    "zeroshot",
)
LEVEL = {name: level for level, name in enumerate(DATA_FLOW)}

# The folders around the core. The core loads none of them before a setting asks for it.
AROUND_THE_CORE = ("analysis", "interop", "scale", "apps")
LEVEL |= {"analysis": 20, "interop": 20, "scale": 20, "apps": 21, "__main__": 22}

# What a student reads.
CORE = [name for name in DATA_FLOW if name != "datasets"]
CORE_LINES = 2000  # with docstrings and comments, without blank lines
FUNCTION_LINES = 60

# Libraries that take long to load, or that only some users need.
HEAVY = {
    "accelerate",
    "gradio",
    "lancedb",
    "matplotlib",
    "pandas",
    "requests",
    "scipy",
    "seaborn",
    "skimage",
    "sklearn",
    "timm",
    "torch",
    "torchvision",
    "transformers",
}


# ---- what the project needs ----------------------------------------------------------------------


def direct_dependencies(without: Iterable[str] = ()) -> list[Requirement]:
    """Return what the library and its extras ask for, but for the extras named."""
    texts = list(PROJECT["dependencies"])
    for extra, wanted in PROJECT["optional-dependencies"].items():
        if extra not in without:
            texts += wanted
    requirements = [Requirement(text) for text in texts]
    # The extra "test" names the project's other extras, which are read above.
    return [r for r in requirements if r.name != PROJECT["name"]]


def bounds(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Return the bound of each package: ``{"torch": ">=2.6"}``."""
    return {canonicalize_name(r.name): str(r.specifier) for r in requirements}


def test_conda_and_pip_ask_for_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    pip.remove("--no-deps -e .")

    given = bounds(Requirement(text) for text in conda + pip)
    assert given.pop("python") == PROJECT["requires-python"]
    assert given.pop("pip") == given.pop("make") == ""
    given["torch"] = given.pop("pytorch")  # as conda calls it

    assert given == bounds(direct_dependencies(without=["bench"]))


def test_lower_bounds_only():
    for requirement in direct_dependencies():
        operators = [bound.operator for bound in requirement.specifier]
        assert operators == [">="], requirement


def constraints() -> dict[str, str]:
    """Return the version of each package in constraints.txt: ``{"torch": "2.14.1"}``."""
    versions = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            versions[canonicalize_name(name)] = version
    return versions


def test_constraints_name_every_direct_dependency():
    versions = constraints()
    for requirement in direct_dependencies(without=["bench"]):
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


def test_constraints_leave_the_libraries_of_a_gpu_to_torch():
    names = constraints().keys()
    assert "torch" in names
    assert not [name for name in names if name.startswith(("nvidia", "cuda", "triton"))]


def test_hooks_run_the_same_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    revisions = {repo["repo"]: repo.get("rev") for repo in hooks["repos"]}
    ruff = revisions["https://github.com/astral-sh/ruff-pre-commit"]
    assert ruff == f"v{constraints()['ruff']}"


def test_changelog_and_citation_are_of_this_version():
    version = PROJECT["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))

    newest = re.findall(r"^## \[?([\d.]+)", changelog, re.M)[0]
    assert newest == citation["version"] == version


def test_every_folder_of_the_package_is_installed():
    folders = {path.parent.relative_to(ROOT) for path in PACKAGE.rglob("*.py")}
    dotted = {".".join(folder.parts) for folder in folders}
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == dotted
    for folder in folders:
        assert (ROOT / folder / "__init__.py").exists(), folder


def test_the_command_is_there():
    module, name = PROJECT["scripts"]["miniclip"].split(":")
    assert callable(getattr(import_module(module), name))


# ---- imports go one way --------------------------------------------------------------------------


def module_name(path: Path) -> str:
    """Return the dotted name below the package: ``scale.soup``, or ``scale`` for the folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def is_for_type_checkers(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def run_on_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run when a module is loaded, those of blocks included."""
    for node in body:
        if is_for_type_checkers(node) or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        yield node
        for block in ("body", "orelse", "finalbody"):
            yield from run_on_import(getattr(node, block, []))
        for handler in getattr(node, "handlers", []):
            yield from run_on_import(handler.body)


def imports_within(path: Path) -> set[str]:
    """Return the modules of the package that a module imports when it is loaded."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    folder = path.relative_to(PACKAGE).parts[:-1]
    found = set()
    for node in run_on_import(tree.body):
        if isinstance(node, ast.Import):
            libraries = [alias.name.split(".")[0] for alias in node.names]
            assert "minicliplib" not in libraries, f"{path} imports the package by its name"
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level == 0:
            assert not node.module.startswith("minicliplib"), f"{path} imports {node.module}"
            continue

        # One dot is the module's own folder, each dot more is a folder up.
        base = folder[: len(folder) - (node.level - 1)]
        if node.module:
            found.add(".".join((*base, node.module)))
        else:
            found |= {".".join((*base, alias.name)) for alias in node.names}
    return found


def import_graph() -> dict[str, set[str]]:
    """Return what each module imports when it is loaded; the package's own list is left out."""
    paths = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    return {module_name(path): imports_within(path) for path in paths}


def test_every_module_has_its_place_in_the_order():
    assert {name.split(".")[0] for name in import_graph()} == set(LEVEL)


def test_no_module_imports_against_the_arrow():
    faults = []
    for module, imported in import_graph().items():
        home = module.split(".")[0]
        for other in imported:
            source = other.split(".")[0]
            if LEVEL[source] > LEVEL[home]:
                faults.append(f"{module} imports {other}")
    assert not faults


def test_no_modules_import_one_another():
    graphlib.TopologicalSorter(import_graph()).prepare()  # raises CycleError


def run_python(code: str) -> Any:
    """Run code in a process of its own, and return what it prints as JSON on its last line."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def loaded_by(*modules: str) -> set[str]:
    """Return the names of all modules that a fresh process has, once it has loaded these."""
    imports = "\n".join(f"import {module}" for module in modules)
    return set(run_python(f"import json, sys\n{imports}\nprint(json.dumps(list(sys.modules)))"))


def dataset_modules() -> list[str]:
    names = [module_name(path) for path in sorted((PACKAGE / "datasets").glob("*.py"))]
    return [f"minicliplib.{name}" for name in names]


@pytest.mark.slow
def test_the_core_loads_nothing_of_what_is_around_it():
    loaded = loaded_by(*(f"minicliplib.{name}" for name in CORE), *dataset_modules())
    around = tuple(f"minicliplib.{folder}" for folder in AROUND_THE_CORE)
    assert not [name for name in loaded if name.startswith(around)]


def test_importing_the_package_loads_no_heavy_library():
    heavy = loaded_by("minicliplib") & HEAVY
    assert not heavy


def test_settings_data_and_the_command_line_load_no_heavy_library():
    light = ("minicliplib.config", "minicliplib.paths", "minicliplib.apps.cli", *dataset_modules())
    heavy = loaded_by(*light) & HEAVY
    assert not heavy


@pytest.mark.slow
def test_a_plain_run_loads_no_piece_that_no_setting_asks_for(tmp_path):
    script = (
        "import sys; import minicliplib as mc\n"
        "data = mc.load_dataset('sample', 'train', limit=8)\n"
        "config = mc.Config().updated(train={'epochs': 1, 'batch_size': 4})\n"
        f"mc.fit(config, {str(tmp_path)!r}, data, data, progress=False)\n"
        "print(*(name for name in sys.modules if name.startswith('minicliplib.scale.')))\n"
    )
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {name.rpartition(".")[2] for name in result.stdout.split()}
    assert {"runs", "cache"} <= loaded
    assert not loaded & {"averaging", "soup", "two_pass", "processes", "engine", "stored_index"}


# ---- the public names ----------------------------------------------------------------------------


# The public names of the first version. They stay.
FIRST_NAMES = (
    "CaptionedImages",
    "CheckpointError",
    "Config",
    "DataError",
    "EncoderError",
    "Index",
    "LabelledImages",
    "MiniCLIP",
    "PHOTO_TEMPLATES",
    "PRESETS",
    "Run",
    "SCENE_TEMPLATES",
    "ZeroShotClassifier",
    "altered",
    "as_open_clip",
    "bootstrap",
    "chance",
    "classification",
    "contrastive_loss",
    "download",
    "evaluate",
    "fit",
    "image_files",
    "leave_one_out",
    "load",
    "load_dataset",
    "load_image",
    "load_judgements",
    "load_labelled",
    "output_root",
    "preset",
    "randomised",
    "ranks_from_embeddings",
    "recall_at_k",
    "relevance_map",
    "save_result",
    "set_seed",
    "summarise",
    "word_relevance",
)


def test_every_public_name_resolves():
    assert set(FIRST_NAMES) <= set(mc.__all__)
    for name in mc.__all__:
        assert getattr(mc, name) is not None
        assert name in dir(mc)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = mc.no_such_name


def test_type_checkers_see_the_public_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if is_for_type_checkers(node))

    seen = set()
    for node in block.body:
        if node.module is None:  # a module of the core
            assert getattr(mc, node.names[0].name).__name__ == f"minicliplib.{node.names[0].name}"
            continue
        module = import_module(f"minicliplib.{node.module}")
        for alias in node.names:
            assert alias.asname == alias.name  # which marks it as public
            assert getattr(module, alias.name) is getattr(mc, alias.name)
            seen.add(alias.name)
    assert seen == set(mc.__all__)


# ---- loading and building change nothing ---------------------------------------------------------

STATE_BEFORE_AND_AFTER = """
import json, os, warnings
import accelerate, matplotlib, seaborn, timm, torch, transformers
from transformers.utils import logging as transformers_logging

def state():
    return {
        "environment": dict(os.environ),
        "figures": {name: str(value) for name, value in matplotlib.rcParams.items()},
        "log level of transformers": transformers_logging.get_verbosity(),
        "bars of transformers": transformers_logging.is_progress_bar_enabled(),
        "warnings": [str(entry) for entry in warnings.filters],
        "threads": torch.get_num_threads(),
        "type of floats": str(torch.get_default_dtype()),
    }

before = state()
import minicliplib as mc
for name in mc.__all__:
    getattr(mc, name)
import minicliplib.analysis.figures
model = mc.MiniCLIP(mc.Config())
model.encode_text(["a dog in the snow"])
after = state()
print(json.dumps({name: [before[name], after[name]] for name in before}))
"""


@pytest.mark.slow
def test_loading_and_building_change_nothing_about_the_process():
    for name, (before, after) in run_python(STATE_BEFORE_AND_AFTER).items():
        assert after == before, name


# ---- small enough to read ------------------------------------------------------------------------


def test_the_core_is_read_in_one_sitting():
    lines = {}
    for name in CORE:
        text = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
        lines[name] = sum(bool(line.strip()) for line in text.splitlines())
    assert sum(lines.values()) <= CORE_LINES, lines


@pytest.mark.parametrize("name", CORE)
def test_functions_of_the_core_are_short(name):
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines"


def test_no_large_file_and_no_dataset_is_committed():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert files
    assert not [f for f in files if f.suffix.lower() in (".jpeg", ".zip", ".pt", ".pth")]
    # Only figures of scenes and of the free photos may be JPEGs.
    figures = [ROOT / "figures" / name for name in ("sample", "photos")]
    assert not [f for f in files if f.suffix.lower() == ".jpg" and f.parent not in figures]
    assert not [f for f in files if f.exists() and f.stat().st_size > 30e6]
