"""check(): is an exercise solved? Judged by the answer and by what the servers counted, never by time."""

from __future__ import annotations

import html
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workshop.measure.answers import first_difference, same, short
from workshop.observe.observation import COUNTERS, NotCounted, Observation, quantity
from workshop.observe.observer import Observer

STANDARD_LIBRARY = sysconfig.get_path("stdlib")
ASKED = {"PostgreSQL": "statements", "Redis": "redis_commands", "MongoDB": "mongo_commands"}


@dataclass(frozen=True)
class Verdict:
    """The outcome of `check`; true if the exercise is solved. `seen` holds every counter of the candidate's run."""

    passed: bool
    reason: str
    seen: Observation | None = field(default=None, compare=False)

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"{'yes' if self.passed else 'not yet'}: {self.reason}"

    def _repr_html_(self) -> str:
        mark, colour = ("✓", "#00684a") if self.passed else ("…", "#8a5a00")
        return (
            f'<p style="border-left: 4px solid {colour}; padding-left: 0.6em; white-space: pre-wrap">'
            f'<b style="color: {colour}">{mark}</b> {html.escape(repr(self))}</p>'
        )


def check(
    candidate: Callable[[], Any],
    expected: Any,
    *,
    observer: Observer,
    at_most: Mapping[str, int],
    at_least: Mapping[str, int] | None = None,
    equal: Callable[[Any, Any], bool] = same,
) -> Verdict:
    """Run an exercise's solution once, under counters, and judge it.

    candidate: the learner's function, without arguments. It runs once, without a warm-up, in which a cache could be
        filled.
    expected: the right answer, or a function that returns it. It runs before the candidate and is not counted.
    at_most, at_least: bounds for counters, `{"statements": 3}`; names as in `observe.observation.COUNTERS`. Where
        `at_least` bounds no counter of a server that `at_most` names, that server must be asked at least once, unless
        `at_most` allows nothing there: so the answer itself, returned without work, is no solution. Any statement is
        work here: who sends one and returns the answer is stopped by bounds that only the lesson's own idea can meet.
    equal: `equal(expected, found)`, where `answers.same` is not what is meant.

    The verdict is "not yet" if the candidate raises, returns nothing, answers differently, misses a bound, or leaves a
    transaction open so that its last query is not counted; and where a bounded counter cannot be counted here. Raises
    ValueError for bounds that name no counter. An error of `expected` is not caught.
    """
    at_least = _with_an_ask(at_most, _checked(at_least or {}))
    _checked(at_most)
    right = expected() if callable(expected) else expected
    error: Exception | None = None
    found = None
    with observer.watch(*at_most, *at_least) as seen:
        try:
            found = candidate()
        except Exception as raised:
            error = raised

    def verdict(passed: bool, reason: str) -> Verdict:
        return Verdict(passed, reason, seen)

    if error is not None:
        return verdict(False, f"it raised {_as_raised(error)}")
    if found is ... or found is NotImplemented or (found is None and right is not None):
        return verdict(False, "nothing returned")
    if not equal(right, found):
        where = first_difference(right, found) or f"expected {short(right)}, found {short(found)}"
        return verdict(False, f"the answer differs (expected against found): {where}")
    counts = {counter: seen[counter] for counter in (*at_most, *at_least)}
    for counter, count in counts.items():
        if isinstance(count, NotCounted):
            return verdict(False, f"the answer is right, but {counter} cannot be counted here: {count.reason}")
    missed = [f"{quantity(c, counts[c])}, goal {_at_most(limit)}" for c, limit in at_most.items() if counts[c] > limit]
    missed += [f"{quantity(c, counts[c])}, goal {n:,} or more" for c, n in at_least.items() if counts[c] < n]
    if missed:
        return verdict(False, "; ".join(missed))
    if seen.open_transaction and any(COUNTERS[counter] == "PostgreSQL" for counter in counts):
        return verdict(
            False,
            "a transaction was open at the start or the end, so its last query is not counted: close the session",
        )
    reached = ", ".join(f"{quantity(c, counts[c])} (goal {_at_most(limit)})" for c, limit in at_most.items())
    return verdict(True, f"{reached}, same answer")


def _checked(bounds: Mapping[str, int]) -> dict[str, int]:
    for counter, bound in bounds.items():
        if counter not in COUNTERS:
            raise ValueError(f"expected bounds of counters among {', '.join(COUNTERS)}; found {counter!r}")
        if isinstance(bound, bool) or not isinstance(bound, int) or bound < 0:
            raise ValueError(f"expected a whole number of 0 or more as the bound of {counter}; found {bound!r}")
    return dict(bounds)


def _with_an_ask(at_most: Mapping[str, int], at_least: dict[str, int]) -> dict[str, int]:
    """`at_least`, and one request to each server that `at_most` bounds and `at_least` does not."""
    if not at_most and not at_least:
        raise ValueError("expected at least one bound, for instance at_most={'statements': 3}; found none")
    asked = {COUNTERS.get(counter) for counter, bound in at_least.items() if bound}
    for server in {COUNTERS.get(counter): None for counter in at_most}:
        counter = ASKED.get(server or "")
        if counter and server not in asked and at_most.get(counter, 1):
            at_least = {**at_least, counter: 1}
    return at_least


def _as_raised(error: Exception) -> str:
    """The learner's own exception: what it says, in one line, and the learner's innermost line on the way there."""
    last = "".join(traceback.format_exception_only(error)).strip()
    frames = traceback.extract_tb(error.__traceback__)[1:]
    others = (STANDARD_LIBRARY, "-packages")
    own = [frame for frame in frames if frame.line and not any(part in frame.filename for part in others)]
    where = f"\n  line {own[-1].lineno}, in {own[-1].name}: {own[-1].line}" if own else ""
    return f"{last.partition(chr(10))[0]}{where}"


def _at_most(limit: int) -> str:
    return f"{limit:,} or fewer" if limit else "none"
