"""Compare two ways of doing the same thing, and say "faster" only when the numbers carry it.

The method, and where each rule comes from:

* equal answers first: a faster wrong answer is no gain;
* two warm-ups discarded, batches of at least 1 ms (criterion.rs, pyperf);
* pairs in ABBA order, so that a drift of the machine falls on both arms alike (tango, Google Benchmark's
  random interleaving), and their number fixed beforehand, so that nobody stops when the result looks good;
* garbage collection off for all arms (timeit);
* medians, and a bootstrap interval of the ratio from the pairwise log-ratios (benchstat's "~" for "no
  difference shown").
"""

from __future__ import annotations

import gc
import html
import inspect
import math
import operator
import reprlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from .progress import track

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Comparison", "DifferentAnswers", "compare", "noise_floor", "seconds", "significant"]

ARMS = ("before", "after", "floor")
WARM_UPS = 2
MIN_PAIRS = 6
MIN_SAMPLE_NS = 1_000_000
# Batches aim a little above the minimum: the machine is often faster during the pairs than just after
# the warm-up.
AIM_NS = 1_250_000
MAX_BATCH = 10_000_000
SMALLEST_GAIN = 1.1
RESAMPLES = 10_000
CONFIDENCE = 0.95

Work = Callable[[], Any]


class DifferentAnswers(ValueError):
    """The two sides of a comparison do not return the same answer."""


# ------------------------------------------------------------------------------------------- numbers as text


def significant(x: float, digits: int = 3) -> str:
    """Write a number with `digits` significant digits and no exponent: 20.7, 348, 1,250, 0.0285."""
    if x == 0 or not math.isfinite(x):
        return f"{x:g}"
    decimals = digits - 1 - math.floor(math.log10(abs(x)))
    rounded = round(x, decimals)
    # Rounding may have added a digit: 9.996 is 10.0, not 10.00.
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(0, decimals)}f}"


def seconds(x: float) -> str:
    """Write a duration in seconds for people: 0.00523 is "5.23 ms", 2.85e-05 is "28.5 µs"."""
    if x == 0:
        return "0 s"
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")):
        # 0.9995 units and above are written as 1.00 of this unit, never as 1,000 of the next.
        if abs(x) >= 0.9995 * size or unit == "ns":
            return f"{significant(x / size)} {unit}"
    raise AssertionError("unreachable")


# ----------------------------------------------------------------------------------------------- the answers


def _is_frame(x: Any) -> bool:
    pandas = sys.modules.get("pandas")  # not imported for this: without it, nobody can hold a frame
    return pandas is not None and isinstance(x, (pandas.DataFrame, pandas.Series, pandas.Index))


def same(a: Any, b: Any) -> bool:
    """Tell whether two answers are equal: `==`, and what it means for numpy arrays, pandas objects and NaN.

    Lists, tuples and dicts are looked into; a frame equals a frame of the same values and dtypes
    (`DataFrame.equals`).
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
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(map(same, a, b))
    return False


def _short(x: Any) -> str:
    if _is_frame(x) or isinstance(x, np.ndarray):
        return f"{type(x).__name__} of shape {x.shape}"
    shortener = reprlib.Repr()
    shortener.maxlist = shortener.maxtuple = shortener.maxdict = shortener.maxset = 4
    shortener.maxother = shortener.maxstring = 60
    text = " ".join(shortener.repr(x).split())
    return text if len(text) <= 100 else text[:97] + "..."


def _first_difference(a: Any, b: Any) -> str:
    """Say where two answers part, when their short forms may well look alike."""
    if isinstance(a, Sequence) and isinstance(b, Sequence) and not isinstance(a, (str, bytes)):
        if len(a) != len(b):
            return f"; {len(a):,} items against {len(b):,}"
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            if not same(x, y):
                return f"; item {i} is {_short(x)} against {_short(y)}"
        return f"; {type(a).__name__} against {type(b).__name__}"
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(k for k in b if k not in a)]:
            if key not in a or key not in b:
                return f"; the key {_short(key)} is on one side only"
            if not same(a[key], b[key]):
                return f"; {_short(key)} is {_short(a[key])} against {_short(b[key])}"
    return ""


def _check_answers(a: Any, b: Any, equal: Callable[[Any, Any], Any]) -> None:
    if not equal(a, b):
        raise DifferentAnswers(
            f"before and after must return the same answer, but before returned {_short(a)} "
            f"and after returned {_short(b)}{_first_difference(a, b)}: "
            "mend one side, or pass equal= if they mean the same."
        )


# ---------------------------------------------------------------------------------------------------- timing


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


def _interval(log_ratios: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Return the ratio, exp(median of the pairwise log-ratios), and its 95 % percentile bootstrap interval.

    Why the median and plain percentiles (simulated, 1,000 comparisons per case, 10 % drift, "false" is A/A
    not called "~", "found" is a true 1.3x called faster):

    * 20 pairs, lognormal noise of 10 %: coverage 0.93, false 0.000, found 0.99 (mean 0.92, 0.000, 1.00);
    * 20 pairs, 5 % noise and one sample in ten 1.5 to 4 times too long: coverage 0.95, false 0.000, found
      0.99; there the mean covers 0.89 and finds 0.47, the 20 % trimmed mean and Hodges-Lehmann find 0.80 and
      0.78;
    * 6 pairs, 5 % noise: coverage 0.95, found 0.99; with 10 % noise 0.94 and 0.68, so six pairs are for big
      effects; the mean's interval is too narrow at six pairs (coverage 0.85);
    * BCa changes nothing (0.90 to 0.96 covered) and costs a jackknife.
    """
    n = len(log_ratios)
    rng = np.random.default_rng(seed)
    resamples = np.sort(log_ratios[rng.integers(0, n, size=(RESAMPLES, n))], axis=1)
    medians = (resamples[:, (n - 1) // 2] + resamples[:, n // 2]) / 2  # np.median takes ten times as long
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return float(np.exp(np.median(log_ratios))), float(np.exp(low)), float(np.exp(high))


def _verdict(low: float, high: float, noise_floor: float) -> str:
    threshold = max(SMALLEST_GAIN, noise_floor)
    if low > threshold:
        return "faster"
    if high < 1 / threshold:
        return "slower"
    return "~"


# ------------------------------------------------------------------------------------------------ the result


@dataclass(frozen=True, repr=False)
class Comparison:
    """What `compare` found. Times are seconds per unit (`unit`, such as "query").

    `samples` holds every raw sample per arm, in the order taken; `batch` the calls per sample. `ratio` is
    before/after (above 1: after is faster) and `interval` its 95 % bootstrap interval; `to_floor` is
    after/floor.
    """

    name: str
    labels: tuple[str, ...]
    unit: str
    units: int
    samples: dict[str, list[float]]
    batch: dict[str, int]
    ratio: float
    interval: tuple[float, float]
    verdict: str
    noise_floor: float
    before_s: float
    after_s: float
    floor_s: float | None = None
    to_floor: float | None = None

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms measured: before, after, and floor if there was one."""
        return tuple(arm for arm in ARMS if arm in self.samples)

    @property
    def pairs(self) -> int:
        """The number of pairs measured."""
        return len(self.samples["before"])

    @property
    def finding(self) -> str:
        """The finding in a few words: "20.7x faster (19.8 to 21.5)"."""
        ratio, (low, high) = self.ratio, self.interval
        if self.verdict == "slower":
            ratio, low, high = 1 / ratio, 1 / high, 1 / low
        what = f"{significant(ratio)}x"
        span = f"{significant(low)} to {significant(high)}"
        return f"~ no clear difference, {what} ({span})" if self.verdict == "~" else f"{what} {self.verdict} ({span})"

    def label(self, arm: str) -> str:
        """The arm and what it is: "after: five warm connections"."""
        label = dict(zip(ARMS, self.labels, strict=False)).get(arm, arm)
        return label if label.lower().startswith(arm) else f"{arm}: {label}"

    def median(self, arm: str) -> float:
        """The arm's median in seconds per unit."""
        return float(np.median(self.samples[arm]))

    def _to_floor_text(self) -> str:
        if self.to_floor is None:
            return ""
        if self.to_floor <= max(SMALLEST_GAIN, self.noise_floor):
            return "after is at the floor"
        return f"{significant(self.to_floor, 2)}x still to the floor"

    def _method(self) -> str:
        return f"{self.pairs} ABBA pairs, noise floor {self.noise_floor:.2f}x"

    def __repr__(self) -> str:
        width = max(len(self.label(arm)) for arm in self.arms)
        lines = [self.name] if self.name else []
        lines += [f"{self.label(arm):<{width}}  {seconds(self.median(arm)):>9} per {self.unit}" for arm in self.arms]
        last = f"{self.finding}; {self._to_floor_text()}" if self.to_floor is not None else self.finding
        return "\n".join([*lines, f"{last}  [{self._method()}]"])

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="text-align:left">{html.escape(self.label(arm))}</td>'
            f"<td>{html.escape(seconds(self.median(arm)))}</td></tr>"
            for arm in self.arms
        )
        caption = f"<caption>{html.escape(self.name)}</caption>" if self.name else ""
        floor = f"; {self._to_floor_text()}" if self.to_floor is not None else ""
        return (
            f'<table>{caption}<thead><tr><th style="text-align:left">way</th>'
            f"<th>median time per {html.escape(self.unit)}</th></tr></thead><tbody>{rows}</tbody></table>"
            f"<p><b>{html.escape(self.finding)}</b>{html.escape(floor)} "
            f"<small>({html.escape(self._method())})</small></p>"
        )

    def plot(self, title: str | None = None, *, gap_note: str | None = None) -> Figure:
        """Draw samples, medians and ratio; `gap_note` says what lies between after and the floor."""
        from . import figures  # matplotlib is slow to import, and a headless run needs none of it

        return figures.comparison(self, title, gap_note=gap_note)

    def as_record(self) -> dict[str, Any]:
        """Return plain JSON types only; `Comparison.from_record` reads it back."""
        return {
            "name": self.name,
            "labels": list(self.labels),
            "unit": self.unit,
            "units": self.units,
            "samples": {arm: list(values) for arm, values in self.samples.items()},
            "batch": dict(self.batch),
            "ratio": self.ratio,
            "interval": list(self.interval),
            "verdict": self.verdict,
            "noise_floor": self.noise_floor,
            "before_s": self.before_s,
            "after_s": self.after_s,
            "floor_s": self.floor_s,
            "to_floor": self.to_floor,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Comparison:
        """Build a comparison from `as_record()` or a stored result; other keys are left aside."""
        missing = [k for k in ("samples", "ratio", "interval", "verdict", "before_s", "after_s") if k not in record]
        if missing:
            raise ValueError(f"a comparison's record needs {', '.join(missing)}, found {', '.join(sorted(record))}.")
        samples = {arm: list(values) for arm, values in record["samples"].items()}
        low, high = record["interval"]
        floor_s, to_floor = record.get("floor_s"), record.get("to_floor")
        if to_floor is None and floor_s:
            to_floor = record["after_s"] / floor_s
        return cls(
            name=record.get("name", ""),
            labels=tuple(record.get("labels", ARMS)),
            unit=record.get("unit", "call"),
            units=record.get("units", 1),
            samples=samples,
            batch=dict(record.get("batch") or dict.fromkeys(samples, 1)),
            ratio=record["ratio"],
            interval=(low, high),
            verdict=record["verdict"],
            noise_floor=record.get("noise_floor") or 1.0,
            before_s=record["before_s"],
            after_s=record["after_s"],
            floor_s=floor_s,
            to_floor=to_floor,
        )


# -------------------------------------------------------------------------------------------- the comparison


def _check_arguments(
    work: dict[str, Work],
    labels: Sequence[str],
    units: int,
    pairs: int,
    budget_s: float,
    noise_floor: float,
    **more: Any,
) -> None:
    for arm, function in {**work, **{k: f for k, f in more.items() if f is not None}}.items():
        if not callable(function):
            raise ValueError(
                f"{arm} must be a function without arguments, found {_short(function)}: pass the function itself."
            )
        if inspect.iscoroutinefunction(function):
            raise ValueError(
                f"{arm} must be a plain function, found an async one: wrap it, lambda: asyncio.run({arm}())."
            )
    if isinstance(labels, str) or len(labels) < len(work) or not all(isinstance(x, str) for x in labels):
        raise ValueError(f"labels must be {len(work)} strings, one per arm, found {_short(labels)}.")
    for name, value, least in (("units", units, 1), ("pairs", pairs, MIN_PAIRS)):
        try:
            whole = operator.index(value)
        except TypeError:
            raise ValueError(f"{name} must be a whole number, found {_short(value)}.") from None
        if whole < least:
            raise ValueError(f"{name} must be at least {least}, found {value}.")
    if not (isinstance(budget_s, (int, float)) and budget_s > 0):
        raise ValueError(f"budget_s must be a number of seconds above 0, found {_short(budget_s)}.")
    if not (isinstance(noise_floor, (int, float)) and 1 <= noise_floor < math.inf):
        raise ValueError(f"noise_floor must be a ratio of at least 1, found {_short(noise_floor)}.")


def compare(
    before: Work,
    after: Work,
    floor: Work | None = None,
    *,
    name: str = "",
    labels: Sequence[str] = ARMS,
    unit: str = "call",
    units: int = 1,
    pairs: int = 20,
    budget_s: float = 8.0,
    equal: Callable[[Any, Any], Any] | None = None,
    prepare: Work | None = None,
    noise_floor: float = 1.0,
    seed: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Comparison:
    """Measure `before` against `after` (and a `floor` that nothing can go below) and return a `Comparison`.

    before, after, floor: functions without arguments. before and after must return the same answer; return
        what was fetched (plain values, not ORM objects), for two times None is equal and proves nothing.
        The floor's answer is free.
    unit, units: what one call does, and how many: unit="query", units=200 gives seconds per query.
    pairs: pairs of samples, fixed before the first is taken: as many as fit in `budget_s` seconds, at least
        6. The budget covers the pairs, not the check of the answers and the warm-ups (3 calls per arm).
    equal: own test of the two answers, called with both; default `==`, aware of numpy, pandas and NaN.
    prepare: runs untimed before every sample, such as emptying the table that is written; a sample is then
        one call.
    noise_floor: the ratio that identical code shows here, from `noise_floor()`.
    seed: of the bootstrap. clock: returns nanoseconds; only tests need another one.

    The verdict is "faster" (or "slower") only when the whole 95 % interval of the ratio before/after lies
    beyond max(1.1, noise_floor), else "~".

    Raises DifferentAnswers (a ValueError) if the answers differ, ValueError for an argument out of range.
    """
    work = {"before": before, "after": after} | ({} if floor is None else {"floor": floor})
    _check_arguments(work, labels, units, pairs, budget_s, noise_floor, equal=equal, prepare=prepare)

    answers = []
    for arm in ("before", "after"):
        if prepare is not None:
            prepare()
        answers.append(work[arm]())
    _check_answers(*answers, equal or same)
    del answers  # a large answer must not weigh on the memory of what is measured

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
        count = max(MIN_PAIRS, min(pairs, fitting - fitting % 2))  # even: as often A first as B first

        taken: dict[str, list[int]] = {arm: [] for arm in work}
        # closing(): the bar goes at once when a sample raises, while the traceback still holds this frame.
        with closing(track(range(count), name or "measuring", count)) as rounds:
            for i in rounds:
                for arm in work if i % 2 == 0 else reversed(work):
                    taken[arm].append(_sample(work[arm], batch[arm], prepare, clock))
                gc.collect()

    samples = {arm: [ns / 1e9 / batch[arm] / units for ns in values] for arm, values in taken.items()}
    log_ratios = np.log(samples["before"]) - np.log(samples["after"])
    ratio, low, high = _interval(log_ratios, seed)
    median = {arm: float(np.median(values)) for arm, values in samples.items()}
    to_floor = None
    if floor is not None:
        to_floor = float(np.exp(np.median(np.log(samples["after"]) - np.log(samples["floor"]))))
    return Comparison(
        name=name,
        labels=tuple(labels),
        unit=unit,
        units=int(units),
        samples=samples,
        batch=batch,
        ratio=ratio,
        interval=(low, high),
        verdict=_verdict(low, high, noise_floor),
        noise_floor=float(noise_floor),
        before_s=median["before"],
        after_s=median["after"],
        floor_s=median.get("floor"),
        to_floor=to_floor,
    )


def noise_floor(
    work: Work,
    *,
    pairs: int = 20,
    budget_s: float = 2.0,
    seed: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> float:
    """Return the ratio that identical code shows on this machine now: an A/A control, at least 1.

    `work` is compared with itself; the result is the farther end of the 95 % interval, max(high, 1/low).
    Answers are not compared, since `work` may well return something new each time.
    """
    control = compare(
        work,
        work,
        name="noise floor",
        pairs=pairs,
        budget_s=budget_s,
        equal=lambda a, b: True,
        seed=seed,
        clock=clock,
    )
    low, high = control.interval
    return max(1.0, high, 1 / low)
