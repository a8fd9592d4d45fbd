"""The index in a folder: what is embedded again, and what an interruption leaves."""

import threading

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from test_retrieval import Named, StandIn

from minicliplib.datasets.images import DataError, load_image
from minicliplib.retrieval import Index
from minicliplib.scale import stored_index as module
from minicliplib.scale.stored_index import path_of, stored_index


class Reader(StandIn):
    """A stand-in that opens the files, as a model does."""

    def encode_image(self, images):
        for image in images:
            load_image(image)
        return super().encode_image(images)


def write_images(folder, count):
    """Write images of different sizes and return their paths."""
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.new("RGB", (number + 1, 4)).save(path)
    return paths


def test_only_what_is_new_or_changed_is_embedded(tmp_path):
    paths = write_images(tmp_path, 4)
    stored_index(StandIn(), paths[:3], ["one", "two"], tmp_path / "index")

    Image.new("RGB", (50, 50)).save(paths[1])
    again = StandIn()
    index, faults = stored_index(again, paths[1:], ["two", "three"], tmp_path / "index")
    assert again.shown == ["three", paths[1], paths[3]]
    assert faults == []

    # In the index that is returned an image goes by its position; what is gone has left the folder.
    assert sorted(index.names["images"]) == [0, 1, 2]
    assert index.names["captions"] == ["two", "three"]
    kept = Index.load(tmp_path / "index").names
    assert {path_of(name) for name in kept["images"]} == {path.resolve() for path in paths[1:]}
    assert kept["captions"] == ["two", "three"]
    assert index.search(paths[3], k=1)[0][0] == 2


def test_images_in_memory_go_by_what_they_show(tmp_path):
    images = [Image.new("RGB", (size, 4)) for size in (3, 5)]
    stored_index(StandIn(), images, [], tmp_path)
    again = StandIn()
    index, _ = stored_index(again, images[::-1], [], tmp_path)
    assert again.shown == []
    assert index.names["images"] == [1, 0]


def test_another_model_embeds_again(tmp_path):
    paths = write_images(tmp_path, 2)
    stored_index(Named("one"), paths, [], tmp_path / "index")
    same = Named("one")
    stored_index(same, paths, [], tmp_path / "index")
    assert same.shown == []
    other = Named("other")
    stored_index(other, paths, [], tmp_path / "index")
    assert other.shown == paths


@pytest.mark.parametrize("at_a_time", [2, 256])
def test_unreadable_files_are_named_and_left_out(tmp_path, monkeypatch, at_a_time):
    monkeypatch.setattr(module, "AT_A_TIME", at_a_time)
    paths = write_images(tmp_path, 5)
    paths[2].write_bytes(b"not an image")
    with pytest.raises(DataError):
        Reader().encode_image(paths)

    index, faults = stored_index(Reader(), paths, [], tmp_path / "index")
    assert index.names["images"] == [0, 1, 3, 4]
    assert len(faults) == 1
    assert "2.png" in faults[0]

    # The good ones are not read again; the bad one is named each time.
    again = Reader()
    paths_of_good = [paths[row] for row in (0, 1, 3, 4)]
    stored_index(again, paths_of_good, [], tmp_path / "index")
    assert again.shown == []


def test_a_stored_index_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    paths = write_images(tmp_path, 100)
    monkeypatch.setattr(module, "SAVE_EVERY", 0)
    monkeypatch.setattr(module, "SAVING", np.inf)
    monkeypatch.setattr(module, "AT_A_TIME", 32)

    class CutOff(StandIn):
        def encode_image(self, images):
            if len(self.shown) > 60:
                raise KeyboardInterrupt
            return super().encode_image(images)

    with pytest.raises(KeyboardInterrupt):
        stored_index(CutOff(), paths, [], tmp_path / "index")

    # Two batches of 32 were kept.
    again = StandIn()
    index, faults = stored_index(again, paths, [], tmp_path / "index")
    assert again.shown == paths[64:]
    assert len(index) == 100
    assert faults == []
    names = Index.load(tmp_path / "index").names["images"]
    assert [path_of(name) for name in names] == [path.resolve() for path in paths]


def test_saving_does_not_take_all_the_time(tmp_path, monkeypatch):
    paths = write_images(tmp_path, 8)
    monkeypatch.setattr(module, "SAVE_EVERY", 0)
    monkeypatch.setattr(module, "SAVING", 1e-9)
    monkeypatch.setattr(module, "AT_A_TIME", 1)
    save = Index.save
    saved = []

    def count(index, folder):
        saved.append(len(index))
        save(index, folder)

    monkeypatch.setattr(Index, "save", count)
    stored_index(StandIn(), paths, [], tmp_path / "index")
    assert saved == [1, 8]  # at once, then not until all are in


def test_of_two_stored_indexes_in_one_folder_the_second_waits(tmp_path):
    paths = write_images(tmp_path, 1)
    (tmp_path / "index").mkdir()
    found = []

    def work():
        found.append(stored_index(StandIn(), paths, [], tmp_path / "index"))

    with FileLock(tmp_path / "index" / "lock"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(0.5)
        assert not found
    thread.join(60)
    index, _ = found[0]
    assert len(index) == 1
