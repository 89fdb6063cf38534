"""What each entry of the benchmark returns."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def entry(value: float, unit: str, at_most: float | None = None, at_least: float | None = None, **samples: Any) -> dict:
    """`value` beside its goal, and the raw samples."""
    goals = [f"<= {at_most:g}"] if at_most is not None else []
    goals += [f">= {at_least:g}"] if at_least is not None else []
    met = (at_most is None or value <= at_most) and (at_least is None or value >= at_least) if goals else None
    return {"value": value, "unit": unit, "goal": " and ".join(goals) or "none", "met": met, "samples": samples}


def seconds(work: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def abba(a: Callable[[], Any], b: Callable[[], Any], pairs: int) -> tuple[list[float], list[float]]:
    """The seconds of `pairs` (even) calls of each, in ABBA order."""
    taken: dict[int, list[float]] = {0: [], 1: []}
    for number in range(pairs):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            taken[side].append(seconds((a, b)[side]))
    return taken[0], taken[1]
