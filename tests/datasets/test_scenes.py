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
    Scene,
    draw_glyph,
    make_scene,
    noun,
    plural,
)

SCENES = [make_scene(split, i) for split in ("train", "dev", "test") for i in range(250)]


# ---- what is drawn -------------------------------------------------------------------------------


def test_things_are_160_of_which_40_are_never_trained_on():
    assert len(THINGS) == len(KIND) == len(set(THINGS.values())) == 160
    assert len(UNSEEN) == 40
    assert THINGS.keys() > UNSEEN


def test_every_thing_is_drawn_in_colour_and_differently():
    drawn = set()
    coloured = 0
    for name, glyph in THINGS.items():
        pixels = np.asarray(draw_glyph(glyph).resize((48, 48)))
        drawn.add(pixels.tobytes())
        # not an empty box
        opaque = pixels[..., 3] > 128
        assert opaque.mean() > 0.1, name
        # a font without colour would give an outline of black alone
        spread = np.ptp(pixels[..., :3].astype(int), axis=2)
        coloured += spread.max() > 60
    assert len(drawn) == 160
    assert coloured > 130


def test_a_scene_follows_from_seed_split_and_index_alone():
    late = make_scene("dev", 7)
    early = make_scene("dev", 3)
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


@pytest.mark.parametrize("x", [0.25, 0.75])
def test_a_thing_is_drawn_where_the_scene_says(x):
    bear = Group("bear", 1, "big", x, 0.6, 0.3)
    seed = make_scene("train", 0).seed
    without = np.asarray(Scene("beach", "golden", (), (), seed).render(), int)
    with_bear = np.asarray(Scene("beach", "golden", (bear,), (), seed).render(), int)
    changed = np.abs(with_bear - without).sum(2) > 60
    rows, columns = changed.nonzero()
    assert abs(columns.mean() / 224 - x) < 0.03
    assert abs(rows.mean() / 224 - 0.6) < 0.03


def test_nothing_is_cut_off_by_the_edge():
    for scene in SCENES[:100]:
        for group in scene.groups:
            half = group.scale * (0.5 if group.count == 1 else 1.0)
            assert half <= group.x <= 1 - half


def test_groups_are_large_enough_and_do_not_cover_each_other():
    for scene in SCENES[:200]:
        edges = []
        for group in scene.groups:
            assert round(group.scale * 224) >= 45
            half = group.scale * (0.5 if group.count == 1 else 1.05)
            edges.append((group.x - half, group.x + half))
        for (_, right), (next_left, _) in pairwise(edges):
            assert right <= next_left, scene.captions


# ---- what the captions say -----------------------------------------------------------------------


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


BESIDE = re.compile(r"(.+) to the (left|right) of (.+)\.")
SIDE = re.compile(r"(.+) (?:is|are) (on the left|on the right|in the middle)\.")


def side_of(x):
    if x < 0.4:
        return "on the left"
    if x > 0.6:
        return "on the right"
    return "in the middle"


def test_relations_agree_with_the_positions():
    checked = 0
    for scene in SCENES:
        xs = [group.x for group in scene.groups]
        assert xs == sorted(xs)

        text = scene.captions[2].lower()
        x_of = {noun(group.name, group.count): group.x for group in scene.groups}
        beside = BESIDE.fullmatch(text)
        on_a_side = SIDE.fullmatch(text)
        if beside:
            one, side, other = beside.groups()
            assert (x_of[one] < x_of[other]) == (side == "left"), text
            checked += 1
        elif on_a_side:
            thing, side = on_a_side.groups()
            assert side == side_of(x_of[thing]), text
            checked += 1
    assert checked > len(SCENES) / 3


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
