"""What a comparison found: ratio, interval, verdict, and every sample."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from workshop.table import seconds, significant

ARMS = ("before", "after", "floor")
SMALLEST_GAIN = 1.1
RESAMPLES = 10_000
CONFIDENCE = 0.95


def interval_of(log_ratios: np.ndarray, seed: int) -> tuple[float, float, float]:
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


def verdict_of(low: float, high: float, noise_floor: float) -> str:
    threshold = max(SMALLEST_GAIN, noise_floor)
    if low > threshold:
        return "faster"
    if high < 1 / threshold:
        return "slower"
    return "~"


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
        from workshop import figures  # matplotlib is slow to import, and a headless run needs none of it

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
