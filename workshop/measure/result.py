"""What a comparison found: ratio, interval, noise, verdict, and every sample."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from workshop.table import Shown, Table, seconds, significant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = ("before", "after", "lower_bound")
NAMES = {"lower_bound": "lower bound"}  # of the arms, where the key is not the word
CLEAR_GAIN = 1.1
RESAMPLES = 10_000
CONFIDENCE = 0.95


def interval_of(log_ratios: np.ndarray, seed: int) -> tuple[float, float, float]:
    """The ratio, exp(median of the pairwise log-ratios), and its 95 % percentile bootstrap interval.

    Why the median and plain percentiles (simulated, 1,000 comparisons per case, 10 % drift):

    * 20 pairs, lognormal noise of 10 %: 93 of 100 intervals hold the true ratio (mean: 92);
    * 20 pairs, 5 % noise and one sample in ten 1.5 to 4 times too long: 95 of 100; the mean's hold 89, and it finds a
      true 1.3x in 47 of 100 where the median finds 99, the 20 % trimmed mean and Hodges-Lehmann 80 and 78;
    * 6 pairs, 5 % noise: 95 of 100, and 94 with 10 % noise; the mean's interval is too narrow there (85);
    * BCa changes nothing (90 to 96) and costs a jackknife.
    """
    n = len(log_ratios)
    rng = np.random.default_rng(seed)
    resamples = np.sort(log_ratios[rng.integers(0, n, size=(RESAMPLES, n))], axis=1)
    medians = (resamples[:, (n - 1) // 2] + resamples[:, n // 2]) / 2  # np.median takes ten times as long
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return float(np.exp(np.median(log_ratios))), float(np.exp(low)), float(np.exp(high))


def noise_of(samples: Mapping[str, np.ndarray], seed: int) -> float:
    """The ratio by which identical code differed from itself in this run, at least 1.

    Each quadruple A B B A runs both arms twice, so that A/A and B/B are comparisons of identical code at no cost. The
    noise is the larger of two: their median as a ratio, which shows an unfairness of the order, and their standard
    error, a quarter of the width of their 95 % interval. Simulated with 20 pairs, noise of 2 to 10 %, drift of 10 % and
    one sample in ten spoilt: identical code is called different in 0 to 2 of 100, a true 1.05x is found in 99 of 100 at
    a noise of 2 % and in 30 of 100 at 5 %.
    """
    logs = [np.log(np.asarray(samples[arm])) for arm in ("before", "after")]
    ratio, low, high = interval_of(np.concatenate([x[0::2] - x[1::2] for x in logs]), seed)
    return max(ratio, 1 / ratio, (high / low) ** 0.25)


def verdict_of(low: float, high: float, noise: float) -> str:
    """What the interval of the ratio before/after carries: "faster", "slightly faster", "~" and their opposites."""
    if low > max(CLEAR_GAIN, noise):
        return "faster"
    if high < 1 / max(CLEAR_GAIN, noise):
        return "slower"
    if low > noise:
        return "slightly faster"
    if high < 1 / noise:
        return "slightly slower"
    return "~"


@dataclass(frozen=True, repr=False, kw_only=True)
class Comparison(Shown):
    """What `compare` found. Times are seconds per unit (`unit`, such as "query").

    `samples` holds every raw sample per arm, in the order taken; `batch` the calls per sample. `ratio` is before/after
    (above 1: after is faster) and `interval` its 95 % bootstrap interval; `noise` is the ratio that identical code
    showed in the same run. `to_lower_bound` is after/lower bound with `to_lower_bound_interval`; both are None without
    a lower bound.
    """

    name: str = ""
    labels: tuple[str, ...] = ARMS
    unit: str = "call"
    units: int = 1
    samples: dict[str, list[float]]
    batch: dict[str, int] = field(default_factory=dict)
    ratio: float
    interval: tuple[float, float]
    verdict: str
    noise: float = 1.0
    to_lower_bound: float | None = None
    to_lower_bound_interval: tuple[float, float] | None = None

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms measured: before, after, and lower_bound if there was one."""
        return tuple(arm for arm in ARMS if arm in self.samples)

    @property
    def pairs(self) -> int:
        return len(self.samples["before"])

    @property
    def before_s(self) -> float:
        """The median of before, in seconds per unit."""
        return self.median("before")

    @property
    def after_s(self) -> float:
        """The median of after, in seconds per unit."""
        return self.median("after")

    @property
    def lower_bound_s(self) -> float | None:
        """The median of the lower bound, in seconds per unit; None without one."""
        return self.median("lower_bound") if "lower_bound" in self.samples else None

    @property
    def finding(self) -> str:
        """The finding in a few words: "20.7x faster (19.8 to 21.5)"."""
        ratio, (low, high) = self.ratio, self.interval
        if self.verdict.endswith("slower"):
            ratio, low, high = 1 / ratio, 1 / high, 1 / low
        digits = 3 if max(abs(1 - low), abs(1 - high)) < 0.095 else None  # 1.047x, where 1.05x would say less
        what, low_text, high_text = (f"{x:.{digits}f}" if digits else significant(x) for x in (ratio, low, high))
        if self.verdict == "~":
            return f"~ no difference shown, {what}x ({low_text} to {high_text})"
        return f"{what}x {self.verdict} ({low_text} to {high_text})"

    def label(self, arm: str) -> str:
        """The arm and what it is: "after: five warm connections"."""
        name = NAMES.get(arm, arm)
        label = dict(zip(ARMS, self.labels, strict=False)).get(arm, name)
        return name if label == arm else label if label.lower().startswith(name) else f"{name}: {label}"

    def median(self, arm: str) -> float:
        """The arm's median in seconds per unit."""
        return float(np.median(self.samples[arm]))

    @property
    def lower_bound_finding(self) -> str:
        """How far after is from the lower bound: "3.20x (3.10 to 3.40) the lower bound"; empty without one."""
        if self.to_lower_bound is None or self.to_lower_bound_interval is None:
            return ""
        low, high = self.to_lower_bound_interval
        span = f"{significant(self.to_lower_bound)}x ({significant(low)} to {significant(high)})"
        same = max(CLEAR_GAIN, self.noise)
        if high < 1 / same:
            return f"faster than its lower bound, {span}, so that is no lower bound"
        if high <= same:
            return f"at the lower bound, {span}"
        return f"not told apart from the lower bound, {span}" if low <= same else f"{span} the lower bound"

    @property
    def method(self) -> str:
        """How it was measured, in a few words."""
        return f"{self.pairs} ABBA pairs; identical code differed by {self.noise:.3f}x in this run"

    def table(self) -> Table:
        """What is displayed: a row for each arm, and the finding as a note."""
        rows = [(self.label(arm), seconds(self.median(arm))) for arm in self.arms]
        finding = self.finding + (f"; after is {self.lower_bound_finding}" if self.to_lower_bound else "")
        headings = ("way", f"median time per {self.unit}")
        return Table(headings, rows, [finding, self.method], caption=self.name, right=(1,))

    def _repr_html_(self) -> str:
        table = self.table()
        finding, method = map(html.escape, table.notes)
        return f"{replace(table, notes=())._repr_html_()}<p><b>{finding}</b> <small>({method})</small></p>"

    def plot(self, title: str | None = None) -> Figure:
        """Draw samples, medians and ratio; `title` says the finding."""
        from workshop import figures  # matplotlib is slow to import, and a run without a screen needs none of it

        return figures.comparison(self, title)

    def as_record(self) -> dict[str, Any]:
        """Plain values that JSON takes, the medians in seconds too; `Comparison.from_record` reads it back."""
        medians = {"before_s": self.before_s, "after_s": self.after_s, "lower_bound_s": self.lower_bound_s}
        return {**asdict(self), **medians}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Comparison:
        """A comparison from `as_record()` or a stored result; other keys are left aside.

        Raises ValueError when a key is missing that nothing can stand in for.
        """
        if missing := [key for key in ("samples", "ratio", "interval", "verdict") if key not in record]:
            raise ValueError(f"a comparison's record needs {', '.join(missing)}, found {', '.join(sorted(record))}.")
        known = {each.name: record[each.name] for each in fields(cls) if each.name in record}
        for name in ("labels", "interval", "to_lower_bound_interval"):
            if known.get(name):
                known[name] = tuple(known[name])  # JSON has lists only
        return cls(**known)
