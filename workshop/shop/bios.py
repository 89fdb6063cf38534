"""Made-up biographies of the shop's customers: 2.1 to 6 kB of plain prose each, the same for an id on every
machine.

They are made while loading, not shipped: wide rows are needed to show what reading all columns costs, and 260
MB of them would not fit in a repository. The choice of phrases is integer arithmetic on the customer's id
(SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), so no
library's random generator can change it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

_GAMMA = 0x9E3779B97F4A7C15
_BITS = 3  # eight choices for each blank


def _sections() -> dict[str, list[str]]:
    """bios.txt: {"openings", "blanks", "themes"}, their lines each."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^\[", Path(__file__).with_name("bios.txt").read_text(encoding="ascii"), flags=re.MULTILINE)[
        1:
    ]:
        name, *lines = part.strip().splitlines()
        found[name.rstrip("]")] = lines
    return found


_TEXT = _sections()
_BLANKS = dict(line.split(": ", 1) for line in _TEXT["blanks"])
# Each theme is used at most once in a biography; each is longer than 300 bytes whatever fills its blanks.
_THEMES = _TEXT["themes"]


def _paragraphs() -> tuple[list[bytes], int]:
    """All paragraphs, theme by theme, and how many there are for one theme."""
    variants = 1 << (2 * _BITS)
    made = []
    for theme in _THEMES:
        blanks = [name for name in _BLANKS if "{" + name + "}" in theme]
        choices = [_BLANKS[name].split("|") for name in blanks]
        filled = [theme.format(**dict(zip(blanks, words, strict=True))) for words in product(*choices)]
        # A theme with fewer blanks has fewer variants: repeat them, so that every theme takes the same number
        # of places.
        made += [filled[i % len(filled)].encode("ascii") for i in range(variants)]
    return made, variants


_POOL, _VARIANTS = _paragraphs()
_COUNT = len(_POOL) // _VARIANTS
_OPENINGS = [opening.encode("ascii") for opening in _TEXT["openings"]]
# Paragraphs per biography: 7 always, then one more for each entry that a draw from 0 to 1023 reaches: a long,
# thin tail.
_MORE = np.array([512, 780, 880, 940, 970, 988, 1000, 1008, 1014, 1018, 1021], dtype=np.uint64)
_LEAST = 7


def splitmix64(numbers: np.ndarray) -> np.ndarray:
    """SplitMix64 of each number: uint64 to uint64, the same shape."""
    with np.errstate(over="ignore"):
        z = numbers.astype(np.uint64) * np.uint64(_GAMMA)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def biographies(ids: Sequence[int], names: Sequence[bytes]) -> list[bytes]:
    """A biography in ASCII for each customer, without quotes or line ends. `names` are the customers'
    names.
    """
    steps = _LEAST + len(_MORE)
    base = np.asarray(ids, dtype=np.uint64)
    draws = splitmix64(base[:, None] * np.uint64(32) + np.arange(1, steps + 2, dtype=np.uint64))
    first = draws[:, 0]
    opening = (first & np.uint64(len(_OPENINGS) - 1)).tolist()
    theme = (first >> np.uint64(8)) % np.uint64(_COUNT)
    lengths = (_LEAST + np.searchsorted(_MORE, (first >> np.uint64(40)) & np.uint64(1023), side="right")).tolist()
    themes = (theme[:, None] + np.arange(steps, dtype=np.uint64)) % np.uint64(_COUNT)
    places = (themes * np.uint64(_VARIANTS) + (draws[:, 1:] >> np.uint64(64 - 2 * _BITS))).tolist()
    pool, openings = _POOL, _OPENINGS
    return [
        b" ".join([name, openings[o], *[pool[i] for i in row[:n]]])
        for name, o, n, row in zip(names, opening, lengths, places, strict=True)
    ]


def avatars(ids: Sequence[int]) -> list[bytes]:
    """An avatar URL for each customer, under a domain that RFC 2606 reserves."""
    tokens = splitmix64(np.asarray(ids, dtype=np.uint64)).tolist()
    return [b"https://img.shop.example/avatars/%016x.png" % token for token in tokens]
