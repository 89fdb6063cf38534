"""Compare two ways of doing the same thing, and say "faster" only when the numbers carry it.

The method, and where each rule comes from:

* equal answers first: a faster wrong answer is no gain;
* two warm-ups discarded, batches of at least 1 ms (criterion.rs, pyperf);
* pairs in ABBA order, so that a drift of the machine falls on both arms alike (tango, Google Benchmark's
  random interleaving), and their number fixed beforehand, so that nobody stops when the result looks good;
* garbage collection off for all arms (timeit);
* medians, and a bootstrap interval of the ratio from the pairwise log-ratios (benchstat's "~" for "no difference
  shown");
* the noise from the same run: each ABBA quadruple runs both arms twice, and that compares identical code with itself.
"""

from __future__ import annotations

import gc
import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import Any

import numpy as np

from workshop.measure.answers import check_answers, same, short
from workshop.measure.result import ARMS, Comparison, interval_of, noise_of, verdict_of
from workshop.progress import bar
from workshop.table import seconds

WARM_UPS = 2
MIN_PAIRS = 6
# A sample takes a millisecond at least; batches aim a little above that, because the machine is often faster during the
# pairs than just after the warm-up.
AIM_NS = 1_250_000
MAX_BATCH = 10_000_000
SEED = 0  # of the bootstrap

Work = Callable[[], Any]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep the collector out of the samples, and put it back as it was, after an error or Ctrl-C too."""
    enabled = gc.isenabled()
    gc.disable()
    # What is there now is set aside: collecting between pairs then takes microseconds and touches no cache.
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def _sample(work: Work, batch: int, prepare: Work | None, clock: Callable[[], int]) -> int:
    """Run `work` `batch` times and return the nanoseconds it took; `prepare` runs before, untimed."""
    if prepare is not None:
        prepare()
    calls = repeat(None, batch)
    start = clock()
    for _ in calls:
        work()
    return max(clock() - start, 1)


def _choose_batch(work: Work, once_ns: int, clock: Callable[[], int]) -> tuple[int, int]:
    """Return how many calls make a sample of at least 1 ms, and the nanoseconds that such a sample takes."""
    if once_ns >= 4 * AIM_NS:  # clearly long enough: no need for more calls
        return 1, once_ns
    batch = 1
    while True:
        # The shorter of two: one interruption must not make the batch too small.
        taken = min(_sample(work, batch, None, clock), _sample(work, batch, None, clock))
        if taken >= AIM_NS:
            return batch, taken
        if batch >= MAX_BATCH:
            raise ValueError(
                f"one sample must take at least 1 ms, but {batch:,} calls took {seconds(taken / 1e9)}: "
                "let each call do more work, or check the clock."
            )
        batch = min(MAX_BATCH, 1000 * batch, max(batch + 1, math.ceil(1.1 * batch * AIM_NS / taken)))


def _check_arguments(
    work: dict[str, Work], labels: Sequence[str], units: int, pairs: int, budget_s: float, **more: Any
) -> None:
    for arm, function in {**work, **{k: f for k, f in more.items() if f is not None}}.items():
        if not callable(function):
            raise ValueError(
                f"{arm} must be a function without arguments, found {short(function)}: pass the function itself."
            )
        if inspect.iscoroutinefunction(function):
            raise ValueError(
                f"{arm} must be a plain function, found an async one: wrap it, lambda: asyncio.run({arm}())."
            )
    if isinstance(labels, str) or len(labels) < len(work) or not all(isinstance(x, str) for x in labels):
        raise ValueError(f"labels must be {len(work)} strings, one per arm, found {short(labels)}.")
    for name, value, least in (("units", units, 1), ("pairs", pairs, MIN_PAIRS)):
        if not isinstance(value, int):
            raise ValueError(f"{name} must be a whole number, found {short(value)}.")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, found {value}.")
    if pairs % 2:
        raise ValueError(f"pairs must be even, found {pairs}: ABBA needs as many AB as BA.")
    if not (isinstance(budget_s, (int, float)) and budget_s > 0):
        raise ValueError(f"budget_s must be a number of seconds above 0, found {short(budget_s)}.")


def compare(
    before: Work,
    after: Work,
    lower_bound: Work | None = None,
    *,
    name: str = "",
    labels: Sequence[str] = ARMS,
    unit: str = "call",
    units: int = 1,
    pairs: int = 20,
    budget_s: float = 5.0,
    equal: Callable[[Any, Any], Any] | None = None,
    prepare: Work | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Comparison:
    """Measure `before` against `after`, and a `lower_bound` that this work cannot go below; returns a `Comparison`.

    before, after, lower_bound: functions without arguments. before and after must return the same answer; return what
        was fetched (plain values, not ORM objects), for two times None is equal and proves nothing. The lower bound may
        return anything.
    unit, units: what one call does, and how many: unit="query", units=200 gives seconds per query.
    pairs: pairs of samples, even, and fixed before the first is taken: as many as fit in `budget_s` seconds, at least
        6. The budget covers the pairs, not what comes before them: the check of the answers, and per arm two warm-ups
        and the calls by which the batch is found.
    equal: own test of the two answers, called with both; default `answers.same`, aware of numpy, pandas and NaN.
    prepare: runs untimed before every sample, such as emptying the table that is written; a sample is then one call.
    clock: returns nanoseconds; only tests need another one.

    The verdict is "faster" (or "slower") when the whole 95 % interval of the ratio before/after lies beyond 1.1 and the
    noise of this run, "slightly faster" when beyond the noise only, else "~". The interval is of this run of this
    session: another session may differ by more.

    Raises DifferentAnswers (a ValueError) if the answers differ, ValueError for an argument out of range.
    """
    work = {"before": before, "after": after} | ({} if lower_bound is None else {"lower_bound": lower_bound})
    _check_arguments(work, labels, units, pairs, budget_s, equal=equal, prepare=prepare)

    answers = []
    for arm in ("before", "after"):
        if prepare is not None:
            prepare()
        answers.append(work[arm]())
    check_answers(*answers, equal or same)
    del answers  # a large answer must not weigh on the memory of what is measured

    taken, batch = _take_samples(work, prepare, pairs, budget_s, clock, name or "measuring")
    samples = {arm: [ns / 1e9 / batch[arm] / units for ns in values] for arm, values in taken.items()}
    logs = {arm: np.log(values) for arm, values in samples.items()}
    ratio, low, high = interval_of(logs["before"] - logs["after"], SEED)
    noise = noise_of(samples, SEED)
    to_lower_bound = interval_of(logs["after"] - logs["lower_bound"], SEED) if lower_bound else None
    return Comparison(
        name=name,
        labels=tuple(labels),
        unit=unit,
        units=units,
        samples=samples,
        batch=batch,
        ratio=ratio,
        interval=(low, high),
        verdict=verdict_of(low, high, noise),
        noise=noise,
        to_lower_bound=to_lower_bound and to_lower_bound[0],
        to_lower_bound_interval=to_lower_bound and to_lower_bound[1:],
    )


def _take_samples(
    work: dict[str, Work],
    prepare: Work | None,
    pairs: int,
    budget_s: float,
    clock: Callable[[], int],
    label: str,
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """The nanoseconds of each sample per arm, in ABBA order, and the calls in one sample."""
    with _no_garbage_collection():
        batch: dict[str, int] = {}
        round_ns = 0
        for arm, function in work.items():
            start = clock()
            once = min(_sample(function, 1, prepare, clock) for _ in range(WARM_UPS))
            whole = (clock() - start) // WARM_UPS  # with the time of prepare, which the budget pays too
            if prepare is None:
                batch[arm], whole = _choose_batch(function, once, clock)
            else:
                batch[arm] = 1
            round_ns += whole

        fitting = int(budget_s * 1e9 / max(round_ns, 1))
        count = max(MIN_PAIRS, min(pairs, fitting - fitting % 2))
        taken: dict[str, list[int]] = {arm: [] for arm in work}
        with bar(label, count) as shown:
            for i in range(count):
                for arm in work if i % 2 == 0 else reversed(work):
                    taken[arm].append(_sample(work[arm], batch[arm], prepare, clock))
                gc.collect()
                shown.update()
    return taken, batch
