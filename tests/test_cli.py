"""The command line, called as a user calls it."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import zipfile
from datetime import date
from pathlib import Path

import pytest

import minicliplib as mc
from minicliplib.apps.cli import main

COMMANDS = [
    *("download", "train", "evaluate", "embed", "search", "duplicates", "classify", "demo"),
]
QUICK = ["data.limit=16", "train.batch_size=8", "train.epochs=2", "train.warmup=0"]
QUERY = "a thing on a beach"


def miniclip(*words: str | Path) -> int:
    """Call the command line with these words, and return its exit status."""
    return main([str(word) for word in words])


def set_options(settings: list[str]) -> list[str]:
    """Return the options that change these settings: ``["--set", "train.epochs=2", ...]``."""
    options = []
    for setting in settings:
        options += ["--set", setting]
    return options


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert miniclip("train", *set_options(QUICK), "--out", folder) == 0
    return folder


@pytest.fixture
def photos(pairs, tmp_path):
    """A folder of three images."""
    for i in range(3):
        pairs.images[i].save(tmp_path / f"{i}.png")
    return tmp_path


# ---- help ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "checkpoint"),
    [
        ("evaluate", "flickr8k"),
        ("embed", "everyday"),
        ("search", "everyday"),
        ("classify", "everyday"),
        ("demo", "everyday"),
    ],
)
def test_each_command_names_its_checkpoint(command, checkpoint, capsys):
    with pytest.raises(SystemExit):
        miniclip(command, "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert f"folder or hub id (default: {checkpoint})" in text


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_reads_well(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        miniclip(*command.split(), "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: miniclip {command}")
    options = re.findall(r"^  +(-[-\w]+(?:, --\w+)?)", text, re.MULTILINE)
    assert options
    assert "==SUPPRESS==" not in text
    assert "None" not in text


RUN_COMMANDS = """
import contextlib, shlex, sys
from minicliplib.apps.cli import main

for command in sys.argv[1:]:
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
        main(shlex.split(command))
print(*sys.modules)
"""


def modules_loaded_by(*commands: str) -> set[str]:
    """Return the modules that a new process has loaded once it has run these commands."""
    process = [sys.executable, "-c", RUN_COMMANDS, *commands]
    result = subprocess.run(process, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_help_loads_nothing_heavy():
    loaded = modules_loaded_by("--help", *[f"{command} --help" for command in COMMANDS])
    assert "minicliplib.apps.cli" in loaded
    heavy = {"torch", "torchvision", "timm", "transformers", "accelerate", "gradio", "lancedb"}
    heavy |= {"pandas", "scipy", "skimage", "sklearn", "matplotlib", "seaborn", "requests"}
    assert loaded & heavy == set()


@pytest.mark.slow
def test_search_in_an_index_loads_only_what_it_needs(run, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("index")
    assert miniclip("embed", photos, "--out", out, "--checkpoint", run) == 0
    loaded = modules_loaded_by(f"search '{QUERY}' --index {out} --checkpoint {run}")
    assert "minicliplib.retrieval" in loaded
    assert "torch" in loaded
    needless = {"pandas", "skimage", "sklearn", "matplotlib", "seaborn", "requests", "lancedb"}
    needless |= {"gradio", "minicliplib.training", "minicliplib.analysis"}
    assert loaded & needless == set()


# ---- train and evaluate ----------------------------------------------------------------------


def test_train_writes_a_run_and_goes_on_from_it(run, capsys):
    files = {path.name for path in run.iterdir()}
    assert {"config.json", "model.safetensors", "history.csv"} <= files
    config = mc.load(run).config
    assert config.data.limit == 16
    assert config.train.epochs == 2
    assert config.train.batch_size == 8

    # the same call again loads the run
    stamp = (run / "model.safetensors").stat().st_mtime_ns
    assert miniclip("train", *set_options(QUICK), "--out", run) == 0
    assert (run / "model.safetensors").stat().st_mtime_ns == stamp
    out = capsys.readouterr().out
    assert re.search(r"epoch +loss +log_batch .*dev_mean_recall", out)
    assert len(re.findall(r"^ +[12] ", out, re.MULTILINE)) == 2
    assert str(run) in out


@pytest.mark.slow
@pytest.mark.filterwarnings("default:Left out")
def test_a_folder_of_ones_own_trains_without_what_cannot_be_read(pairs, tmp_path, capsys):
    # twenty images with a caption each, one of which cannot be read
    lines = ["image,caption"]
    for i in range(20):
        pairs.images[i].save(tmp_path / f"{i:02}.png")
        lines.append(f'{i:02}.png,"{pairs.captions[i][0]}"')
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    train = mc.load_dataset("folder", "train", tmp_path)
    broken = train.images[0]
    broken.write_bytes(b"no photo")

    # it is left out of training, by name
    settings = ["data.name=folder", f"train.batch_size={len(train) - 1}", "train.epochs=1"]
    folder = tmp_path / "run"
    options = [*set_options(settings), "--out", folder]
    assert miniclip("train", "--root", tmp_path, *options) == 0
    error = capsys.readouterr().err
    assert f"Left out 1 of {len(train)} images of 'folder':\n" in error
    assert f"Cannot read the image {broken}" in error

    # the test split of a folder can be measured
    test = mc.load_dataset("folder", "test", tmp_path)
    where = ["--data", "folder", "--root", tmp_path]
    assert miniclip("evaluate", *where, "--checkpoint", folder) == 0
    assert f"{len(test)} images, {len(test)} captions" in capsys.readouterr().out


@pytest.mark.slow
def test_other_captions_of_ones_own_folder_are_another_run(pairs, tmp_path, capsys):
    for i in range(20):
        pairs.images[i].save(tmp_path / f"{i:02}.png")
    settings = ["data.name=folder", "train.batch_size=4", "train.epochs=1"]
    command = ["train", "--root", tmp_path, *set_options(settings)]

    folders = set()
    for caption in ("A dog.", "A cat.", "A cat."):
        lines = [f"{i:02}.png,{caption}" for i in range(20)]
        (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *lines]) + "\n")
        assert miniclip(*command) == 0
        folders.add(capsys.readouterr().out.splitlines()[-1])
    assert len(folders) == 2


@pytest.mark.slow
def test_evaluate_prints_and_writes_what_the_library_measures(run, capsys, tmp_path):
    where = ["--data", "sample", "--limit", "20", "--checkpoint", run]
    assert miniclip("evaluate", *where, "--json", tmp_path / "numbers.json") == 0
    out = capsys.readouterr().out
    assert "20 images, 100 captions" in out
    for column in ("R@1", "R@5", "R@10", "chance"):
        assert column in out

    numbers = json.loads((tmp_path / "numbers.json").read_text())
    expected = mc.evaluate(mc.load(run), mc.load_dataset("sample", "test", limit=20))
    assert numbers == json.loads(json.dumps(expected))
    assert f"{numbers['scores']['text_to_image']['R@5']:.1%}" in out


# ---- search and embed ------------------------------------------------------------------------


def test_search_by_sentence_and_by_image(run, photos, capsys):
    options = ["--checkpoint", run, "-k", "2"]
    assert miniclip("search", QUERY, "--images", photos, *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    scores = [float(line.split()[0]) for line in lines]
    assert scores == sorted(scores, reverse=True)

    image = photos / "1.png"
    assert miniclip("search", image, "--by-image", "--images", photos, *options) == 0
    others = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert sorted(others) == [str(photos / "0.png"), str(photos / "2.png")]

    # a folder can also be named as a dataset
    assert miniclip("search", QUERY, "--data", "folder", "--root", photos, *options) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_search_prints_what_other_programs_read(run, photos, capsys):
    options = ["--images", photos, "--checkpoint", run, "-k", "2"]
    assert miniclip("search", QUERY, *options) == 0
    paths = [line.split()[1] for line in capsys.readouterr().out.splitlines()]

    assert miniclip("search", QUERY, *options, "--paths") == 0
    assert capsys.readouterr().out.splitlines() == paths

    assert miniclip("search", QUERY, *options, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in rows] == paths
    assert {row["day"] for row in rows} == {date.today().isoformat()}  # the files are new
    assert rows[0]["score"] >= rows[1]["score"]


def test_search_leaves_out_patterns_and_other_days(run, photos, capsys):
    os.utime(photos / "1.png", (0, 0))  # 1970-01-01
    command = ["search", QUERY, "--images", photos, "--checkpoint", run, "--paths"]

    def found(*options):
        assert miniclip(*command, *options) == 0
        return sorted(Path(line).name for line in capsys.readouterr().out.splitlines())

    assert found("--exclude", "0.*") == ["1.png", "2.png"]
    assert found("--since", "2000-01-01") == ["0.png", "2.png"]
    assert found("--until", "1999-12-31") == ["1.png"]
    assert found("--until", "1960-12-31") == []


def test_duplicates_lists_groups(run, photos, capsys):
    shutil.copy(photos / "1.png", photos / "copy of 1.png")
    command = ["duplicates", photos, "--checkpoint", run, "--above", "0.999"]
    assert miniclip(*command) == 0
    said = capsys.readouterr()
    assert said.out.split("\n") == [str(photos / "1.png"), str(photos / "copy of 1.png"), "", ""]
    assert "groups: 1, with 2 of 4 images" in said.err

    assert miniclip(*command, "--json") == 0
    assert json.loads(capsys.readouterr().out) == [
        [str(photos / "1.png"), str(photos / "copy of 1.png")]
    ]


def test_embed_keeps_an_index_that_search_opens(run, photos, tmp_path_factory, capsys):
    out = tmp_path_factory.mktemp("index")
    embed = ["embed", photos, "--out", out, "--checkpoint", run]

    def stamps() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in out.glob("*.npy")}

    # what cannot be read is named and left out
    (photos / "broken.jpg").write_bytes(b"no photo")
    assert miniclip(*embed) == 0
    said = capsys.readouterr()
    assert re.search(r"left out: Cannot read the image .*broken.jpg", said.err)
    assert f"{out}: 3 of 4 images" in said.out

    # where nothing is new, nothing is written
    (photos / "broken.jpg").unlink()
    before = stamps()
    assert miniclip(*embed) == 0
    assert stamps() == before
    assert f"{out}: 3 of 3 images" in capsys.readouterr().out

    # another folder may not take the place of the first
    other = tmp_path_factory.mktemp("other")
    (other / "x.png").write_bytes((photos / "0.png").read_bytes())
    assert miniclip("embed", other, "--out", out, "--checkpoint", run) == 2
    error = capsys.readouterr().err
    assert f"{out} holds images of another folder ({photos})" in error

    # search finds the same in the index and in the folder
    assert miniclip("search", QUERY, "--index", out, "--checkpoint", run) == 0
    from_index = capsys.readouterr().out
    assert miniclip("search", QUERY, "--images", photos, "--checkpoint", run) == 0
    assert capsys.readouterr().out == from_index

    # an index belongs to the model that has made it
    assert miniclip("search", QUERY, "--index", out) == 2
    assert "another model" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("default:Left out")
def test_a_folder_is_used_without_what_cannot_be_read(run, photos, capsys):
    commands = [
        ["search", QUERY, "--data", "folder", "--root", photos, "--checkpoint", run],
        ["classify", photos, "--labels", "a drawing,a dog", "--checkpoint", run],
    ]
    whole = []
    for command in commands:
        assert miniclip(*command) == 0
        whole.append(capsys.readouterr().out)

    (photos / "broken.jpg").write_bytes(b"no photo")
    for command, expected in zip(commands, whole, strict=True):
        assert miniclip(*command) == 0
        out, error = capsys.readouterr()
        assert out == expected
        assert error.startswith(f"miniclip {command[0]}: Left out 1 of 4 images of 'folder':\n")
        assert re.search(r"\n  Cannot read the image .*broken.jpg", error)

    for path in photos.glob("*.png"):
        path.write_bytes(b"no photo")
    assert miniclip(*commands[0]) == 2
    error = capsys.readouterr().err
    assert "None of the 4 images of 'folder' can be read." in error
    assert "Cannot read the image" in error


def test_an_indexed_folder_is_searched_without_what_cannot_be_read(run, photos, capsys):
    command = ["search", QUERY, "--images", photos, "--checkpoint", run]
    assert miniclip(*command) == 0
    whole = capsys.readouterr().out

    (photos / "broken.jpg").write_bytes(b"no photo")
    assert miniclip(*command) == 0
    out, error = capsys.readouterr()
    assert out == whole
    assert re.search(r"left out: Cannot read the image .*broken.jpg", error)

    for path in photos.glob("*.png"):
        path.write_bytes(b"no photo")
    assert miniclip(*command) == 2
    assert re.search(r"No image in .* can be read, of 4. The first: ", capsys.readouterr().err)


# ---- classify and download -------------------------------------------------------------------


def test_classify_names_images_and_measures_on_class_folders(photos, tmp_path, capsys):
    assert miniclip("classify", photos, "--labels", "a drawing,a photo of a dog", "-k", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    guess = r"a (drawing|photo of a dog) \d+%"
    assert re.fullmatch(rf".*0\.png: {guess}, {guess}", lines[0])

    # the same image in two classes: one of the two is wrong
    for name in ("beach", "room"):
        folder = tmp_path / "classes" / name
        folder.mkdir(parents=True)
        mc.load_image(photos / "0.png").save(folder / "0.png")
    assert miniclip("classify", tmp_path / "classes") == 0
    out = capsys.readouterr().out
    assert "2 images, 2 classes" in out
    assert re.search(r"top1 50\.0% \[0\.0%, 100\.0%\], chance 50\.0%", out)


def test_classify_refuses_bad_input_in_one_line(photos, capsys):
    image = photos / "0.png"
    no_class_folders = ["classify", photos]
    twice = ["classify", image, "--labels", "cat,cat"]
    no_image = ["classify", photos / "gone.png", "--labels", "cat,dog"]
    for command in (no_class_folders, twice, no_image):
        assert miniclip(*command) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert "'cat' appears twice" in errors[1]


def test_download_from_a_folder(tmp_path, capsys):
    """The options arrive; ``datasets/test_download.py`` tests whole copies."""
    with zipfile.ZipFile(tmp_path / "Flickr8k_Dataset.zip", "w") as file:
        file.writestr("Flicker8k_Dataset/a.jpg", b"")
    target = tmp_path / "here"
    assert miniclip("download", "flickr8k", "--root", target, "--from", tmp_path) == 2
    error = capsys.readouterr().err
    assert "Flickr8k_text.zip" in error
    assert str(tmp_path) in error
    assert (target / "Flickr8k_Dataset").is_dir()


# ---- wrong input -----------------------------------------------------------------------------

# Each command with the words that its error has to name. RUN and PHOTOS stand for the fixtures.
WRONG = [
    ("download imagenet", ["'imagenet'", "flickr8k"]),
    ("train --preset imagenet", ["preset 'imagenet'", "sample, flickr8k"]),
    ("train --set train.epochs", ["NAME=VALUE"]),
    ("train --set train.epoch=3", ["setting 'train.epoch'"]),
    ("train --set train.epochs=many", ["train.epochs", "int", "'many'"]),
    ("train --set data.name=imagenet", ["dataset 'imagenet'", "sample"]),
    ("train --set data.limit=4", ["train.batch_size", "2 to 4"]),
    (
        "train --set data.limit=8 --set train.batch_size=8 --set encoders.image=resnet5000",
        ["'resnet5000'"],
    ),
    ("evaluate --data imagenet --checkpoint RUN", ["dataset 'imagenet'"]),
    ("evaluate --data sample --split half --checkpoint RUN", ["split 'half'"]),
    ("evaluate --data sample --limit 0 --checkpoint RUN", ["limit=0"]),
    ("evaluate --data flickr8k --root PHOTOS --checkpoint RUN", ["miniclip download flickr8k"]),
    ("evaluate --data sample --limit 5 --checkpoint nothing", ["checkpoint 'nothing'"]),
    ("search 'a dog' --images no-such-folder --checkpoint RUN", ["folder no-such-folder"]),
    ("search 'a dog' --index no-such-index --checkpoint RUN", ["index in no-such-index"]),
    ("embed no-such-folder --out PHOTOS --checkpoint RUN", ["folder no-such-folder"]),
    ("search ' ' --images PHOTOS --checkpoint RUN", ["query is empty"]),
    (
        "search no.jpg --by-image -k 1 --images PHOTOS --checkpoint RUN",
        ["Cannot read the image no.jpg"],
    ),
    ("search 'a dog' --exclude '*.png' --data photos", ["--exclude goes with --images"]),
    ("duplicates PHOTOS --above 2 --checkpoint RUN", ["--above", "2.0"]),
    ("search 'a dog' -k 9 --images PHOTOS --checkpoint RUN", ["k must be from 1 to 3"]),
]


@pytest.mark.parametrize(("command", "named"), WRONG)
def test_a_wrong_input_is_one_line_and_status_2(command, named, run, photos, capsys):
    places = {"RUN": run, "PHOTOS": photos}
    words = shlex.split(command)
    assert miniclip(*[places.get(word, word) for word in words]) == 2
    out, error = capsys.readouterr()
    for text in named:
        assert text in error
    assert error.startswith(f"miniclip {words[0]}: ")
    assert error.count("\n") == 1
    assert "Traceback" not in out + error


UNREADABLE = [
    *("", "fly", "search", "embed photos --out index --root data"),
    "search dog --since 2024-13-01 --images photos",
]


@pytest.mark.parametrize("command", UNREADABLE)
def test_a_wrong_command_shows_the_usage(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        miniclip(*command.split())
    assert stopped.value.code == 2
    assert "usage: miniclip" in capsys.readouterr().err


def test_python_dash_m(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["minicliplib", "download", "imagenet"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("minicliplib", run_name="__main__")
    assert stopped.value.code == 2
    assert "'imagenet'" in capsys.readouterr().err
