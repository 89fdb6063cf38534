"""Are two answers equal, and if not, where do they part?"""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


class DifferentAnswers(ValueError):
    """The two sides of a comparison do not return the same answer."""


def _is_frame(x: Any) -> bool:
    pandas = sys.modules.get("pandas")  # not imported for this: without it, nobody can hold a frame
    return pandas is not None and isinstance(x, (pandas.DataFrame, pandas.Series, pandas.Index))


def same(a: Any, b: Any) -> bool:
    """Whether two answers are equal: `==`, and what it means for numpy arrays, pandas objects and NaN.

    Lists, tuples and dicts are looked into. A list equals a tuple of the same items, because a row of SQLAlchemy is a
    tuple and a row of other drivers a list; a frame equals a frame of the same values and dtypes (`DataFrame.equals`).
    """
    if _is_frame(a) or _is_frame(b):
        return _is_frame(a) and type(a) is type(b) and bool(a.equals(b))
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        try:
            return bool(np.array_equal(a, b, equal_nan=True))
        except TypeError:  # NaN has no meaning for this dtype
            return bool(np.array_equal(a, b))
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    try:
        if bool(a == b):
            return True
    except (ValueError, TypeError):  # an array or a frame inside: its == has no single truth value
        pass
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return False


def short(x: Any) -> str:
    """An answer in at most 100 characters."""
    if _is_frame(x) or isinstance(x, np.ndarray):
        return f"{type(x).__name__} of shape {x.shape}"
    shortener = reprlib.Repr()
    shortener.maxlist = shortener.maxtuple = shortener.maxdict = shortener.maxset = 4
    shortener.maxother = shortener.maxstring = 60
    text = " ".join(shortener.repr(x).split())
    return text if len(text) <= 100 else text[:97] + "..."


def first_difference(a: Any, b: Any) -> str:
    """Where two answers part, when their short forms may well look alike; empty where there is no such place."""
    if isinstance(a, Sequence) and isinstance(b, Sequence) and not isinstance(a, str | bytes):
        if len(a) != len(b):
            return f"{len(a):,} items against {len(b):,}"
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            if not same(x, y):
                return f"item {i} is {short(x)} against {short(y)}"
        return "" if type(a) is type(b) else f"{type(a).__name__} against {type(b).__name__}"
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(k for k in b if k not in a)]:
            if key not in a or key not in b:
                return f"the key {short(key)} is on one side only"
            if not same(a[key], b[key]):
                return f"{short(key)} is {short(a[key])} against {short(b[key])}"
    return ""


def check_answers(a: Any, b: Any, equal: Callable[[Any, Any], Any] = same) -> None:
    """Raise DifferentAnswers, in one sentence, unless `equal(a, b)`."""
    if not equal(a, b):
        where = first_difference(a, b)
        raise DifferentAnswers(
            f"before and after must return the same answer, but before returned {short(a)} and after returned "
            f"{short(b)}{where and f'; {where}'}: correct one side, or pass equal= if they mean the same."
        )
