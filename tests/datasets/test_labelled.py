"""Images with classes: class folders wherever they lie, scenes, and torchvision's files."""

import numpy as np
import pytest
import torchvision
from dataset_files import write_image, write_lines

from minicliplib.datasets.images import DataError
from minicliplib.datasets.labelled import load_labelled
from minicliplib.datasets.scenes import make_scene


@pytest.mark.parametrize("inside", ["", "test", "caltech101_subset/101_ObjectCategories"])
def test_class_folders_are_found_whatever_lies_round_them(tmp_path, inside):
    for name, count in (("cat", 2), ("stop_sign", 1), ("BACKGROUND_Google", 1)):
        for i in range(count):
            write_image(tmp_path / inside / name / f"{i}.png")
    write_lines(tmp_path / inside / "cat" / "notes.txt", "not an image")
    (tmp_path / inside / "empty").mkdir()

    data = load_labelled(tmp_path)
    assert data.classes == ["cat", "stop_sign"]
    assert data.labels.tolist() == [0, 0, 1]
    assert data.labels.dtype == np.int64
    assert [path.name for path in data.images] == ["0.png", "1.png", "0.png"]
    assert data.subset([2]).labels.tolist() == [1]


def test_labelled_scenes_show_what_their_label_says():
    data = load_labelled("sample")
    assert (len(data), len(data.classes)) == (200, 40)
    scene = make_scene("unseen", 7)
    assert data.classes[data.labels[7]] == scene.groups[0].name
    assert np.bincount(data.labels).tolist() == [5] * 40


@pytest.mark.parametrize("name", ["cifar10", "caltech101"])
def test_missing_class_folders_of_a_dataset_say_how_to_get_it(tmp_path, name):
    with pytest.raises(DataError, match=f"folder of images .*miniclip download {name}"):
        load_labelled(name, tmp_path / "nothing")


def test_missing_class_folders_of_ones_own_are_named():
    with pytest.raises(DataError, match=r"nowhere .*folder of images"):
        load_labelled("nowhere")


def test_torchvisions_cifar10_is_read(tmp_path, monkeypatch):
    # torchvision checks its files by their hashes, so that no small copy would do.
    class TwoImages:
        def __init__(self, root, train):
            self.data = np.zeros((2, 32, 32, 3), np.uint8)
            self.targets = [1, 0]
            self.classes = ["airplane", "automobile"]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", TwoImages)
    (tmp_path / "cifar-10-batches-py").mkdir()
    data = load_labelled("cifar10", tmp_path)
    assert data.name == "cifar10"
    assert data.labels.tolist() == [1, 0]
    assert data.images[0].size == (32, 32)


def test_the_first_of_each_class_are_a_part_of_their_own():
    data = load_labelled("sample")
    mask = data.first_of_each_class(2)
    assert mask.shape == (len(data),)
    assert np.bincount(data.labels[mask]).tolist() == [2] * len(data.classes)
    for label in range(len(data.classes)):
        own = np.flatnonzero(data.labels == label)
        assert mask[own].tolist() == [True, True] + [False] * (len(own) - 2)
