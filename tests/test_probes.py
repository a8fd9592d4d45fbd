"""A false twin changes one thing of a caption, or there is none."""

import numpy as np
import pytest

import minicliplib as mc
from minicliplib.datasets.scenes import make_scene


def sorted_words(sentence: str) -> list[str]:
    return sorted(sentence.lower().rstrip(".").split())


@pytest.mark.parametrize(
    ("kind", "caption", "expected"),
    [
        ("number", "Two dogs on a beach.", {"Three dogs on a beach.", "Four dogs on a beach."}),
        ("side", "An owl to the left of a cat.", {"An owl to the right of a cat."}),
        ("roles", "An owl to the left of a cat.", {"A cat to the left of an owl."}),
        ("colour", "A dog in the snow.", {None}),
        ("number", "A dog.", {None}),
        ("roles", "A dog beside a dog.", {None}),
        ("order", "Dog.", {None}),
        ("side", "The left dog and the right dog.", {None}),  # no other word is left
    ],
)
def test_a_twin_changes_one_thing_or_there_is_none(kind, caption, expected):
    rng = np.random.default_rng(0)
    assert {mc.altered(caption, kind, rng) for _ in range(30)} == expected


@pytest.mark.parametrize("kind", ["order", "subject", "colour", "number"])
def test_a_twin_of_a_scene_says_something_else_in_as_many_words(kind):
    rng = np.random.default_rng(0)
    for scene in (make_scene("dev", i) for i in range(80)):
        for caption in scene.captions:
            twin = mc.altered(caption, kind, rng)
            if twin is None:
                continue
            assert twin.lower() != caption.lower()
            if kind == "order":
                assert sorted_words(twin) == sorted_words(caption)
            else:
                assert len(twin.split()) == len(caption.split())
                assert " a owl" not in twin.lower()
                assert " an c" not in twin.lower()
