"""check(): is an exercise solved? Judged by the answer and by what the servers counted, never by time."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workshop.observe.observation import COUNTERS, Observation, quantity
from workshop.observe.observer import Observer
from workshop.table import shorten


@dataclass(frozen=True)
class Verdict:
    """The outcome of :func:`check`; true if the exercise is solved. ``seen`` holds every counter of the
    candidate's run."""

    passed: bool
    reason: str
    name: str = ""
    seen: Observation | None = field(default=None, compare=False)

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        prefix = f"{self.name}: " if self.name else ""
        return f"{prefix}{'yes' if self.passed else 'not yet'}: {self.reason}"

    def _repr_html_(self) -> str:
        mark, colour = ("✓", "#00684a") if self.passed else ("…", "#8a5a00")
        return (
            f'<p style="border-left: 4px solid {colour}; padding-left: 0.6em">'
            f'<b style="color: {colour}">{mark}</b> {html.escape(repr(self))}</p>'
        )


def _same(expected: Any, found: Any) -> bool:
    """Equality that also holds for numpy arrays, pandas frames, and containers of them; order and shape
    matter."""
    module = type(expected).__module__.partition(".")[0]
    if module == "pandas" and hasattr(expected, "equals"):
        return type(expected) is type(found) and bool(expected.equals(found))
    if "numpy" in (module, type(found).__module__.partition(".")[0]):
        import numpy as np

        a, b = np.asarray(expected), np.asarray(found)
        if a.shape != b.shape:
            return False
        nan = a.dtype.kind in "fc" and b.dtype.kind in "fc"
        return bool(np.array_equal(a, b, equal_nan=nan))
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        return expected.keys() == found.keys() and all(_same(v, found[k]) for k, v in expected.items())
    # a row of SQLAlchemy is a tuple; a list is not a tuple, yet to a learner both are "the rows"
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        return len(expected) == len(found) and all(_same(a, b) for a, b in zip(expected, found, strict=True))
    return bool(expected == found)


def _difference(expected: Any, found: Any) -> str:
    """Where two answers part, in one short sentence."""
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        if len(expected) != len(found):
            return f"expected {len(expected):,} items, found {len(found):,}"
        at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if not _same(a, b)), None)
        if at is not None and len(expected) > 3:
            return f"at item {at}: expected {shorten(repr(expected[at]))}, found {shorten(repr(found[at]))}"
    return f"expected {shorten(repr(expected))}, found {shorten(repr(found))}"


def check(
    candidate: Callable[[], Any],
    expected: Any,
    *,
    observer: Observer,
    goals: Mapping[str, int],
    name: str = "",
    equal: Callable[[Any, Any], bool] | None = None,
) -> Verdict:
    """Run an exercise's solution once, under counters, and judge it.

    candidate: the learner's function, without arguments. It runs once, without a warm-up, in which a cache
        could be filled.
    expected: the right answer, or a function that returns it. It runs before the candidate and is not
        counted.
    goals: the most that each counter may show, ``{"statements": 3}``; names as in
        :data:`workshop.observe.COUNTERS`.
    equal: ``equal(expected, found)``, where ``==`` (for numpy and pandas: all values) is not what is meant.

    The verdict is "not yet" if the candidate raises, returns nothing, answers differently, misses a goal, or
    leaves a transaction open so that its last query is not counted. Errors: ValueError for goals that name no
    counter, LookupError for a goal whose counter the observer cannot read. An error of ``expected`` is not
    caught.
    """
    if not goals:
        raise ValueError("expected at least one goal, for instance {'statements': 3}; found none")
    for goal, limit in goals.items():
        if goal not in COUNTERS:
            raise ValueError(f"expected goals among {', '.join(COUNTERS)}; found {goal!r}")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise ValueError(f"expected a whole number of 0 or more as goal for {goal}; found {limit!r}")
    right = expected() if callable(expected) else expected
    error: Exception | None = None
    found = None
    with observer.watch(*goals) as seen:
        try:
            found = candidate()
        except Exception as raised:
            error = raised

    counts = {goal: seen[goal] for goal in goals}  # raises if one was not counted

    def verdict(passed: bool, reason: str) -> Verdict:
        return Verdict(passed, reason, name, seen)

    if error is not None:
        return verdict(False, f"it raised {type(error).__name__}: {shorten(str(error).partition(chr(10))[0])}")
    if found is ... or found is NotImplemented or (found is None and right is not None):
        return verdict(False, "nothing returned")
    if not (equal or _same)(right, found):
        return verdict(False, f"the answer differs: {_difference(right, found)}")
    missed = [goal for goal, limit in goals.items() if counts[goal] > limit]
    if missed:
        return verdict(False, "; ".join(f"{quantity(g, counts[g])}, goal {_goal(goals[g])}" for g in missed))
    if seen.open_transaction and any(COUNTERS[goal] == "PostgreSQL" for goal in goals):
        return verdict(
            False,
            "a transaction is still open, so its last query is not counted; close the session or connection",
        )
    reached = ", ".join(f"{quantity(g, counts[g])} (goal {_goal(limit)})" for g, limit in goals.items())
    return verdict(True, f"{reached}, same answer")


def _goal(limit: int) -> str:
    return f"{limit:,} or fewer" if limit else "none"
