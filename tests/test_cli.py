"""The command line, called as a user calls it."""

import json
import os
import re
import runpy
import sys
import zipfile
from pathlib import Path

import pytest

import minicliplib as mc
from minicliplib.__main__ import main

QUICK = ["data.limit=16", "train.batch_size=8", "train.epochs=2", "train.warmup=0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", *(word for item in QUICK for word in ("--set", item)), "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def photos(pairs, tmp_path):
    for i in range(3):
        pairs.images[i].save(tmp_path / f"{i}.png")
    return tmp_path


def test_train_writes_a_run_and_goes_on_from_it(run, capsys):
    assert {"config.json", "model.safetensors", "history.csv"} <= {path.name for path in run.iterdir()}
    config = mc.load(run).config
    assert (config.data.limit, config.train.epochs, config.train.batch_size) == (16, 2, 8)
    stamp = (run / "model.safetensors").stat().st_mtime_ns
    arguments = [word for item in QUICK for word in ("--set", item)]
    assert main(["train", *arguments, "--out", str(run)]) == 0  # the same call again loads it
    assert (run / "model.safetensors").stat().st_mtime_ns == stamp
    out = capsys.readouterr().out
    assert re.search(r"epoch +loss +log_batch .*dev_mean_recall", out)
    assert len(re.findall(r"^ +[12] ", out, re.MULTILINE)) == 2
    assert str(run) in out


@pytest.mark.filterwarnings("default:Left out")
def test_a_folder_of_ones_own_trains_without_what_cannot_be_read(pairs, tmp_path, capsys):
    rows = [(f"{i:02}.png", pairs.captions[i][0]) for i in range(20)]
    for (name, _), picture in zip(rows, pairs.images, strict=False):
        picture.save(tmp_path / name)
    (tmp_path / "captions.csv").write_text("image,caption\n" + "".join(f'{n},"{text}"\n' for n, text in rows))
    train = mc.load_dataset("folder", "train", tmp_path).images
    train[0].write_bytes(b"no photo")
    options = ["data.name=folder", f"train.batch_size={len(train) - 1}", "train.epochs=1"]
    arguments = ["train", "--root", str(tmp_path), *(word for item in options for word in ("--set", item))]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    said = f"Left out 1 of {len(train)} images of 'folder':\n  Cannot read the image {train[0]}"
    assert said in capsys.readouterr().err
    evaluate = ["evaluate", "--data", "folder", "--root", str(tmp_path), "--checkpoint", str(tmp_path / "run")]
    before = mc.Config().updated(**{"data.name": "folder", "data.root": str(tmp_path)}).digest()
    os.utime(tmp_path / "captions.csv", (1, 1))  # other captions are another run
    assert mc.Config().updated(**{"data.name": "folder", "data.root": str(tmp_path)}).digest() != before
    test = len(mc.load_dataset("folder", "test", tmp_path))
    assert main(evaluate) == 0
    assert f"{test} images, {test} captions" in capsys.readouterr().out


def test_evaluate_prints_and_writes_what_the_library_measures(run, capsys, tmp_path):
    arguments = ["evaluate", "--data", "sample", "--checkpoint", str(run), "--limit", "20"]
    assert main([*arguments, "--json", str(tmp_path / "numbers.json")]) == 0
    out = capsys.readouterr().out
    assert "20 images, 100 captions" in out
    assert {"R@1", "R@5", "R@10", "chance"} <= set(re.findall(r"R@\d+|chance", out))
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    expected = mc.evaluate(mc.load(run), mc.load_dataset("sample", "test", limit=20))
    assert numbers == json.loads(json.dumps(expected))
    assert f"{numbers['scores']['text_to_image']['R@5']:.1%}" in out


def test_search_by_sentence_and_by_image(run, photos, capsys):
    arguments = ["search", "--images", str(photos), "--checkpoint", str(run), "-k", "2"]
    assert main([*arguments, "a thing on a beach"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    scores = [float(line.split()[0]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    assert main([*arguments, str(photos / "1.png"), "--by-image"]) == 0
    best = capsys.readouterr().out.splitlines()[0]
    assert best.split() == ["1.000", str(photos / "1.png")]
    dataset = ["search", "--data", "folder", "--root", str(photos), "--checkpoint", str(run), "-k", "2"]
    assert main([*dataset, "a thing on a beach"]) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_embed_keeps_an_index_that_search_opens(run, photos, tmp_path_factory, capsys):
    out = str(tmp_path_factory.mktemp("index"))
    (photos / "broken.jpg").write_bytes(b"no photo")
    embed = ["embed", str(photos), "--out", out, "--checkpoint", str(run)]
    assert main(embed) == 0
    said = capsys.readouterr()
    assert re.search(r"left out: Cannot read the image .*broken.jpg", said.err)
    assert f"{out}: 3 of 4 images" in said.out
    (photos / "broken.jpg").unlink()
    stamps = {path: path.stat().st_mtime_ns for path in Path(out).glob("*.npy")}
    assert main(embed) == 0  # nothing is new
    assert {path: path.stat().st_mtime_ns for path in Path(out).glob("*.npy")} == stamps
    assert f"{out}: 3 of 3 images" in capsys.readouterr().out
    other = tmp_path_factory.mktemp("other")
    (other / "x.png").write_bytes((photos / "0.png").read_bytes())
    assert main(["embed", str(other), "--out", out, "--checkpoint", str(run)]) == 2
    assert f"{out} holds images of another folder ({photos}): name another --out." in capsys.readouterr().err
    assert main(["search", "a thing on a beach", "--index", out, "--checkpoint", str(run)]) == 0
    from_index = capsys.readouterr().out
    assert main(["search", "a thing on a beach", "--images", str(photos), "--checkpoint", str(run)]) == 0
    assert capsys.readouterr().out == from_index
    assert main(["search", "a thing on a beach", "--index", out]) == 2
    assert "made with another model" in capsys.readouterr().err


@pytest.mark.filterwarnings("default:Left out")
def test_a_folder_is_searched_and_named_without_what_cannot_be_read(run, photos, capsys):
    search = ["search", "a thing on a beach", "--images", str(photos), "--checkpoint", str(run)]
    classify = ["classify", str(photos), "--labels", "a drawing,a dog", "--checkpoint", str(run)]
    whole = []
    for command in (search, classify):
        assert main(command) == 0
        whole.append(capsys.readouterr().out)
    (photos / "broken.jpg").write_bytes(b"no photo")
    for command, expected in zip((search, classify), whole, strict=True):
        assert main(command) == 0
        out, error = capsys.readouterr()
        assert out == expected
        said = rf"^miniclip {command[0]}: Left out 1 of 4 images of 'folder':\n  Cannot read the image .*broken.jpg"
        assert re.search(said, error)
    for path in photos.glob("*.png"):
        path.write_bytes(b"no photo")
    assert main(search) == 2
    assert "No image of 'folder' can be read, of 4. The first: Cannot read the image" in capsys.readouterr().err


def test_download_from_a_folder(tmp_path, capsys):
    """What a whole copy looks like is tested in test_archives.py; here, that the options arrive."""
    with zipfile.ZipFile(tmp_path / "Flickr8k_Dataset.zip", "w") as file:
        file.writestr("Flicker8k_Dataset/a.jpg", b"")
    assert main(["download", "flickr8k", "--root", str(tmp_path / "here"), "--from", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "No mirror gave Flickr8k_text.zip" in error
    assert str(tmp_path) in error
    assert (tmp_path / "here" / "Flickr8k_Dataset").is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["download", "imagenet"], "no download for 'imagenet'. Known: flickr8k"),
        (["train", "--preset", "imagenet"], "Unknown preset 'imagenet'. Known: sample, flickr8k"),
        (["train", "--set", "train.epochs"], "--set takes NAME=VALUE"),
        (["train", "--set", "train.epoch=3"], "no setting 'train.epoch'"),
        (["train", "--set", "train.epochs=many"], "train.epochs takes int, not 'many'"),
        (["train", "--set", "data.name=imagenet"], "Unknown dataset 'imagenet'. Known: sample"),
        (["train", "--set", "data.limit=4"], "train.batch_size must be 2 to 4"),
        (
            ["train", "--set", "data.limit=8", "--set", "train.batch_size=8", "--set", "encoders.image=resnet5000"],
            "'resnet5000' could not be loaded",
        ),
        (["evaluate", "--data", "imagenet", "--checkpoint", "RUN"], "Unknown dataset 'imagenet'"),
        (["evaluate", "--data", "sample", "--split", "half", "--checkpoint", "RUN"], "no split 'half'"),
        (["evaluate", "--data", "sample", "--limit", "0", "--checkpoint", "RUN"], "limit=0"),
        (["evaluate", "--data", "flickr8k", "--root", "PHOTOS", "--checkpoint", "RUN"], "miniclip download flickr8k"),
        (["evaluate", "--data", "sample", "--limit", "5", "--checkpoint", "nothing"], "no checkpoint 'nothing'"),
        (["search", "a dog", "--images", "no-such-folder", "--checkpoint", "RUN"], "no folder no-such-folder"),
        (["search", "a dog", "--index", "no-such-index", "--checkpoint", "RUN"], "no whole index in no-such-index"),
        (["embed", "no-such-folder", "--out", "PHOTOS", "--checkpoint", "RUN"], "no folder no-such-folder"),
        (["search", " ", "--images", "PHOTOS", "--checkpoint", "RUN"], "the query is empty"),
        (
            ["search", "no.jpg", "--by-image", "-k", "1", "--images", "PHOTOS", "--checkpoint", "RUN"],
            "Cannot read the image no.jpg",
        ),
        (["search", "a dog", "-k", "9", "--images", "PHOTOS", "--checkpoint", "RUN"], "k must be from 1 to 3"),
    ],
)
def test_a_wrong_input_is_one_line_and_status_2(arguments, message, run, photos, capsys):
    places = {"RUN": str(run), "PHOTOS": str(photos)}
    assert main([places.get(word, word) for word in arguments]) == 2
    out, error = capsys.readouterr()
    assert message in error
    assert error.startswith(f"miniclip {arguments[0]}: ")
    assert error.count("\n") == 1
    assert "Traceback" not in out + error


@pytest.mark.parametrize("command", ["", "download", "train", "evaluate", "embed", "search", "classify", "demo"])
def test_help_reads_well(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: miniclip {command}")
    options = re.findall(r"^  +(-[-\w]+(?:, --\w+)?)", text, re.MULTILINE)
    assert options
    assert "==SUPPRESS==" not in text
    assert "None" not in text


@pytest.mark.parametrize("arguments", [[], ["fly"], ["search"]])
def test_a_wrong_command_shows_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: miniclip" in capsys.readouterr().err


def test_python_dash_m(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "minicliplib.__main__")
    monkeypatch.setattr(sys, "argv", ["minicliplib", "download", "imagenet"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("minicliplib", run_name="__main__")
    assert stopped.value.code == 2
    assert "no download for 'imagenet'" in capsys.readouterr().err


def test_classify_names_images_and_measures_on_class_folders(photos, tmp_path, capsys):
    assert main(["classify", str(photos), "--labels", "a drawing,a photo of a dog", "-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r".*0\.png: a (drawing|photo of a dog) \d+%, a (drawing|photo of a dog) \d+%", lines[0])
    for name in ("beach", "room"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        mc.load_image(photos / "0.png").save(tmp_path / "classes" / name / "0.png")
    assert main(["classify", str(tmp_path / "classes")]) == 0
    out = capsys.readouterr().out
    assert "2 images, 2 classes" in out
    assert re.search(r"top1 50\.0% \[0\.0%, 100\.0%\], chance 50\.0%", out)


def test_classify_refuses_bad_input_in_one_line(photos, capsys):
    assert main(["classify", str(photos)]) == 2  # no class folders in it
    assert main(["classify", str(photos / "0.png"), "--labels", "cat,cat"]) == 2
    assert main(["classify", str(photos / "gone.png"), "--labels", "cat,dog"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert "'cat' stands twice" in errors[1]
