"""Places follow the environment, files are written whole, and results say what made them."""

import json
from pathlib import Path

import pytest

import minicliplib as mc
from minicliplib import paths


def test_places_follow_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MINICLIP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MINICLIP_OUT", str(tmp_path / "out"))
    assert paths.data_root() == tmp_path / "home"
    assert paths.output_root() == tmp_path / "out"


def test_places_in_a_checkout(monkeypatch):
    monkeypatch.delenv("MINICLIP_HOME")
    monkeypatch.delenv("MINICLIP_OUT")
    monkeypatch.setattr(paths, "IN_CHECKOUT", True)
    assert paths.data_root() == paths.CHECKOUT / "data"
    assert paths.output_root() == paths.CHECKOUT


def test_places_of_an_installed_package_are_the_users(tmp_path, monkeypatch):
    monkeypatch.delenv("MINICLIP_HOME")
    monkeypatch.delenv("MINICLIP_OUT")
    monkeypatch.setattr(paths, "IN_CHECKOUT", False)
    monkeypatch.chdir(tmp_path)
    assert paths.data_root() == Path.home() / ".cache" / "minicliplib"
    assert paths.output_root() == tmp_path


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.txt"
    paths.write_atomically(path, lambda part: part.write_text("old"))

    def interrupted(part: Path) -> None:
        part.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        paths.write_atomically(path, interrupted)
    assert path.read_text() == "old"


def test_progress_bars_can_be_turned_off(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    assert paths.show_bars(progress=True)
    assert not paths.show_bars(progress=False)
    for value, shown in (("1", False), ("0", True), ("", True)):
        monkeypatch.setenv("TQDM_DISABLE", value)
        assert paths.show_bars(progress=True) == shown


def test_a_short_hash_tells_values_apart():
    assert paths.short_hash("a", 1) == paths.short_hash("a", "1")
    assert len({paths.short_hash(*parts) for parts in (("a", "b"), ("ab",), ("b", "a"))}) == 3
    assert len(paths.short_hash("a", digits=8)) == 8


def test_a_result_says_what_made_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MINICLIP_OUT", str(tmp_path))
    config = mc.Config().updated(train={"epochs": 3}, seed=7)
    path = mc.save_result("sample", "03_training", {"loss": 1.5}, config, seconds=12.345)
    assert path == tmp_path / "report" / "results" / "sample" / "03_training.json"
    record = json.loads(path.read_text())
    assert record["topic"] == "03_training"
    assert record["dataset"] == "sample"
    assert record["metrics"] == {"loss": 1.5}
    assert record["config"].pop("digest") == config.digest()
    assert mc.Config.from_dict(record["config"]) == config
    assert record["seconds"] == 12.3
    assert {"torch", "timm", "transformers", "minicliplib"} <= record["versions"].keys()
    assert mc.save_result("sample", "01_data", {}).exists()  # some results have no config
