"""Scenes: what is drawn, and that every caption is true of it."""

import re
from itertools import pairwise

import numpy as np
import pytest

from minicliplib.datasets.scenes import (
    GROUNDS,
    KIND,
    SIZES,
    THINGS,
    UNSEEN,
    Group,
    _glyph,
    make_scene,
    noun,
    plural,
)

SCENES = [make_scene(split, i) for split in ("train", "dev", "test") for i in range(250)]


def test_things_are_160_of_which_40_are_never_trained_on():
    assert len(THINGS) == len(KIND) == len(set(THINGS.values())) == 160
    assert len(UNSEEN) == 40
    assert THINGS.keys() > UNSEEN


def test_every_thing_is_drawn_in_colour_and_differently():
    drawn = {name: np.asarray(_glyph(glyph).resize((48, 48))) for name, glyph in THINGS.items()}
    for name, pixels in drawn.items():
        assert (pixels[..., 3] > 128).mean() > 0.1, name  # not an empty box
    # an outline of black alone would be the fallback of a font without colour
    coloured = [
        name for name, p in drawn.items() if np.ptp(p[..., :3].astype(int), axis=2).max() > 60
    ]
    assert len(coloured) > 130
    assert len({pixels.tobytes() for pixels in drawn.values()}) == 160


def test_a_scene_follows_from_seed_split_and_index_alone():
    late, early = make_scene("dev", 7), make_scene("dev", 3)
    assert make_scene("dev", 3) == early
    assert make_scene("dev", 7).render().tobytes() == late.render().tobytes()
    assert late != early
    assert make_scene("train", 7).captions != late.captions
    assert make_scene("dev", 7, seed=1).captions != late.captions
    assert late.render().size == (224, 224)
    assert late.render(96).size == (96, 96)


def test_the_unseen_are_in_their_own_split_only():
    assert not any(group.name in UNSEEN for scene in SCENES for group in scene.groups)
    unseen = [make_scene("unseen", i) for i in range(SIZES["unseen"])]
    assert {group.name for scene in unseen for group in scene.groups} == UNSEEN
    assert all(len(scene.groups) == 1 for scene in unseen)
    assert SIZES == {"train": 1000, "dev": 250, "test": 250, "unseen": 200}


def test_captions_read_as_sentences():
    for scene in SCENES:
        assert len(set(scene.captions)) == 5, scene.captions
        for caption in scene.captions:
            assert re.fullmatch(r"[A-Z][a-z ,]+\.", caption), caption
            assert "  " not in caption, caption
            assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", caption), caption
            assert not re.search(r"\b(mans|childs|mouses|sheeps|knifes|womans)\b", caption), caption


def test_counts_sizes_and_colours_agree_with_the_scene():
    for scene in SCENES:
        full = scene.captions[1].lower()
        assert scene.colour in full
        for group in scene.groups:
            assert noun(group.name, group.count, group.size) in full
        assert scene.ground in GROUNDS
        assert len({group.name for group in scene.groups}) == len(scene.groups)


def test_relations_agree_with_the_positions():
    checked = 0
    for scene in SCENES:
        xs = [group.x for group in scene.groups]
        assert xs == sorted(xs)
        text = scene.captions[2].lower()
        where = {noun(g.name, g.count): g.x for g in scene.groups}
        if match := re.fullmatch(r"(.+) to the (left|right) of (.+)\.", text):
            one, side, other = match.groups()
            assert (where[one] < where[other]) == (side == "left"), text
            checked += 1
        elif match := re.fullmatch(
            r"(.+) (?:is|are) (on the left|on the right|in the middle)\.", text
        ):
            x = where[match[1]]
            assert match[2] == (
                "on the left" if x < 0.4 else "on the right" if x > 0.6 else "in the middle"
            )
            checked += 1
    assert checked > len(SCENES) / 3


@pytest.mark.parametrize("x", [0.25, 0.75])
def test_a_thing_is_drawn_where_the_scene_says(x):
    scene = make_scene("train", 0)
    empty = type(scene)("beach", "golden", (), scene.captions, scene.seed).render()
    one = type(scene)(
        "beach", "golden", (Group("bear", 1, "big", x, 0.6, 0.3),), scene.captions, scene.seed
    ).render()
    changed = np.abs(np.asarray(one, int) - np.asarray(empty, int)).sum(2) > 60
    assert abs(changed.nonzero()[1].mean() / 224 - x) < 0.03
    assert abs(changed.nonzero()[0].mean() / 224 - 0.6) < 0.03


@pytest.mark.parametrize(
    ("name", "many"),
    [
        ("child", "children"),
        ("fish", "fish"),
        ("strawberry", "strawberries"),
        ("octopus", "octopuses"),
        ("bus", "buses"),
    ],
)
def test_plurals(name, many):
    assert plural(name) == many
    assert noun(name, 3) == f"three {many}"


def test_nothing_is_cut_off_by_the_edge():
    for scene in SCENES[:100]:
        for group in scene.groups:
            half = group.scale * (0.5 if group.count == 1 else 1.0)
            assert half <= group.x <= 1 - half


def test_groups_are_large_enough_and_do_not_cover_each_other():
    for scene in SCENES[:200]:
        assert all(round(group.scale * 224) >= 45 for group in scene.groups)
        halves = [group.scale * (0.5 if group.count == 1 else 1.05) for group in scene.groups]
        edges = [
            (group.x - half, group.x + half)
            for group, half in zip(scene.groups, halves, strict=True)
        ]
        assert all(right <= left for (_, right), (left, _) in pairwise(edges)), scene.captions
