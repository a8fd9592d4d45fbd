"""Probes of what a model reads in a caption: false twins, which change one thing of it.

A model that only looks for the things a caption names cannot tell a caption from a twin that names
the same things in another order or relation. The idea follows ARO (Yuksekgonul et al. 2023).
"""

import re
from collections.abc import Collection

import numpy as np

from ..datasets.scenes import KIND

# Words of a kind. One put in the place of another changes what a caption says.
ALTERNATIVES = {
    "number": ("two", "three", "four"),
    "colour": (
        *("red", "blue", "green", "yellow", "white", "black"),
        *("brown", "golden", "grey", "pink", "purple"),
    ),
    "side": ("left", "right"),
    "subject": (
        *("man", "woman", "boy", "girl"),
        *(name for name, kind in KIND.items() if kind in ("animal", "person")),
    ),
}


def altered(caption: str, kind: str, rng: np.random.Generator) -> str | None:
    """Return a caption's false twin: nearly the same words, but not true of its image.

    Args:
        caption: One sentence.
        kind: What changes. "order" shuffles the words, "roles" lets two subjects change places,
            and a key of ``ALTERNATIVES`` puts another word of that kind in the place of one.
        rng: Draws the order of the words, or the word to replace and the one in its place.

    Returns:
        The twin, or None where the caption has nothing of that kind to change.

    """
    words = caption.rstrip(".").split()
    if kind == "order":
        twin_words = [words[i] for i in rng.permutation(len(words))]
    elif kind == "roles":
        twin_words = _with_roles_swapped(words)
    else:
        words_of_caption = caption.lower().split()
        twin_words = _with_one_replaced(words, ALTERNATIVES[kind], words_of_caption, rng)

    twin = " ".join(twin_words) + "."
    if kind in ("subject", "roles"):
        twin = _with_fitting_articles(twin)

    original = caption.rstrip(".") + "."
    if twin.lower().split() == original.lower().split():
        return None
    return twin


def _with_roles_swapped(words: list[str]) -> list[str]:
    """Return the words with the first subject and the next other one in each other's place."""
    places = _places_of(words, ALTERNATIVES["subject"])
    for other in places:
        first = places[0]
        if words[other] != words[first]:
            swapped = list(words)
            swapped[first] = words[other]
            swapped[other] = words[first]
            return swapped
    return words


def _with_one_replaced(
    words: list[str], group: Collection[str], taken: Collection[str], rng: np.random.Generator
) -> list[str]:
    """Return the words with one of a group replaced by another of it that is not ``taken``."""
    places = _places_of(words, group)
    if not places:
        return words

    place = rng.choice(places)
    choices = [word for word in group if word not in taken]
    if not choices:  # the caption has them all
        return words
    substitute = str(rng.choice(choices))
    if place == 0:
        substitute = substitute.capitalize()
    return [*words[:place], substitute, *words[place + 1 :]]


def _places_of(words: list[str], group: Collection[str]) -> list[int]:
    """Return where in a sentence words of a group stand."""
    return [place for place, word in enumerate(words) if word.lower() in group]


def _with_fitting_articles(sentence: str) -> str:
    """Return the sentence with "a" or "an" as the next word wants it.

    Without this a wrong article could betray the twin.
    """
    sentence = re.sub(r"\b(a)n?(?= [aeiou])", r"\1n", sentence, flags=re.IGNORECASE)
    return re.sub(r"\b(a)n(?= [^aeiou])", r"\1", sentence, flags=re.IGNORECASE)
