"""Every plot of the workbook, in one look.

Each function returns a matplotlib `Figure` that pyplot knows nothing of: a notebook shows it once, as the last
expression of a cell. The look is applied while a figure is made and drawn, and nothing global is changed. Colours are
from Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), darkened where text is written in them; no colour
carries a meaning alone. Results are dots with intervals: on a log axis the length of a bar means nothing.
"""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from workshop.measure.result import CLEAR_GAIN, Comparison
from workshop.table import significant

__all__ = ["comparison", "distance", "gains"]

# Vermillion and blue (darkened for text) differ in lightness too: 0.39 and 0.28 in grey; and each arm has its own row.
COLOURS = {"before": "#c2500a", "after": "#00558c", "lower_bound": "#6b6b6b"}
INK = "#222222"
FAINT = "#6b6b6b"
BAND = "#e3e3e3"
WIDTH_IN = 9.0
LOG_FROM = 10.0

# What differs from matplotlib's own defaults, which `_look` applies first.
LOOK: dict[str, Any] = {
    # A list by name, not the alias: matplotlib resolves an alias when it draws, after this look has been left.
    "font.family": ["DejaVu Sans"],
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": "#ececec",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "lines.linewidth": 1.8,
}


class Figure(matplotlib.figure.Figure):
    """A figure that shows itself in a notebook, even where pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        with _look():
            self.savefig(data, format="png")
        return data.getvalue()

    def as_base64(self) -> str:
        """The figure as a PNG, in base64."""
        return base64.b64encode(self._repr_png_()).decode("ascii")


def _look() -> Any:
    """The look, in a `with` block, or as a decorator in each call of a function."""
    # "default" first: a reader's own rcParams must not break the layout.
    return matplotlib.style.context(["default", LOOK])


def _new(height_in: float, title: str) -> tuple[Figure, Axes]:
    """A figure whose layout matplotlib fits to its texts; the title says the finding and may take several lines."""
    wrapped = textwrap.fill(title, 86, max_lines=3, placeholder=" …")
    fig = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    FigureCanvasAgg(fig)
    fig.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    fig.suptitle(wrapped, x=0.012, ha="left", fontsize=12, fontweight="bold", linespacing=1.25)
    return fig, fig.add_subplot()


def _rows(ax: Axes, labels: Sequence[str], width: int = 34) -> None:
    """A row for each label, the first on top; long ones are wrapped."""
    ax.set_yticks(range(len(labels)), [textwrap.fill(label, width, max_lines=3, placeholder=" …") for label in labels])
    ax.set_ylim(len(labels) - 0.45, -0.55)
    ax.tick_params(axis="y", length=0, pad=9)
    ax.grid(False, axis="y")


def _plain(x: float, _: Any = None) -> str:
    """A tick's number without exponent: 0.01, 1, 2,000."""
    return f"{x:,.10f}".rstrip("0").rstrip(".") if abs(x) < 1 else f"{x:,.6g}" if abs(x) < 1000 else f"{x:,.0f}"


def _scale(ax: Axes, which: str, low: float, high: float, log: bool) -> None:
    """Limits and ticks of the "x" or "y" axis: on a log scale decades with plain numbers, and 2 and 5 where few fit."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    limits = ax.set_xlim if which == "x" else ax.set_ylim
    if not log:
        limits(0, high * 1.12)
        axis.set_major_formatter(FuncFormatter(_plain))
        return
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    room = max((high / low) ** 0.07, 1.08)
    low, high = low / room, high * room
    limits(low, high)
    decades = math.log10(high / low)
    steps = (1.0,) if decades > 2.5 else (1.0, 2.0, 5.0) if decades > 0.9 else (1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    every = max(1, math.ceil(decades / 8))  # at most eight labelled decades
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [step * 10.0**e for e in range(first, last + 1, every) for step in steps]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _side(ax: Axes, x: float) -> str:
    """How text at `x` is aligned so that it stays inside the frame."""
    at = ax.transAxes.inverted().transform(ax.transData.transform((x, 0)))[0]
    return "left" if at < 0.12 else "right" if at > 0.88 else "center"


def _value(ax: Axes, text: str, x: float, y: float, colour: str, above: float = 10, **options: Any) -> Annotation:
    """A value written above its mark, `above` points away."""
    options = {"ha": _side(ax, x), "va": "bottom", "fontsize": 10.5, "fontweight": "bold", **options}
    return ax.annotate(text, (x, y), xytext=(0, above), textcoords="offset points", color=colour, **options)


def _time_unit(smallest: float, largest: float) -> tuple[float, str]:
    """The one unit in which all times of a plot are written, so that they can be compared at a glance."""
    units = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
    for size, unit in units:
        if largest >= size and smallest >= 0.01 * size:
            return size, unit
    return next(((size, unit) for size, unit in units if largest >= size), units[-1])


@_look()
def comparison(result: Comparison, title: str | None = None) -> Figure:
    """Draw every sample, each arm's median, the ratio with its interval, and the ratio to the lower bound.

    `title` says the finding in the unit of the axis, which is logarithmic where ratios exceed ten.
    """
    arms = result.arms
    medians = {arm: result.median(arm) for arm in arms}
    size, unit = _time_unit(min(medians.values()), max(medians.values()))
    samples = {arm: np.asarray(result.samples[arm]) / size for arm in arms}
    everything = np.concatenate(list(samples.values()))
    # A single slow sample may lie far out: then too the log scale shows everything.
    far_out = everything.max() > LOG_FROM * everything.min()
    log = bool(max(medians.values()) / min(medians.values()) > LOG_FROM or far_out)

    fig, ax = _new(1.2 + 1.0 * len(arms), title or (f"{result.name}: " if result.name else "") + result.finding)
    _scale(ax, "x", everything.min(), everything.max(), log)
    _rows(ax, [result.label(arm) for arm in arms])
    ax.set_xlabel(f"time per {result.unit} ({unit}{', log scale' if log else ''})")
    for row, arm in enumerate(arms):
        # Golden-ratio steps: spread evenly, and the same on every run.
        jitter = ((np.arange(len(samples[arm])) * 0.6180339887) % 1 - 0.5) * 0.26
        ax.scatter(samples[arm], row + jitter, s=13, color=COLOURS[arm], alpha=0.35, linewidths=0, zorder=2)
        at = medians[arm] / size
        ax.plot([at] * 2, [row - 0.2, row + 0.2], color=COLOURS[arm], linewidth=4, solid_capstyle="butt", zorder=3)
        _value(ax, f"{significant(at)} {unit}", at, row - 0.2, COLOURS[arm], above=2)

    fig.draw_without_rendering()  # now the frame is where it stays, and the texts in it can be fitted
    solid = {"color": INK, "linewidth": 1.2, "arrowstyle": "-" if result.verdict == "~" else "-|>"}
    _gap(ax, 0.46, medians["before"] / size, medians["after"] / size, result.finding, solid)
    if result.to_lower_bound is not None:
        apart = result.to_lower_bound_interval[0] > max(CLEAR_GAIN, result.noise)
        style = {"linestyle": (0, (4, 3)), "arrowstyle": "-|>" if apart else "-"}
        dashed = {"color": FAINT, "linewidth": 1.1, **style}
        _gap(ax, 1.46, medians["after"] / size, medians["lower_bound"] / size, result.lower_bound_finding, dashed)
    return fig


def _gap(ax: Axes, y: float, start: float, end: float, text: str, line: dict[str, Any]) -> None:
    """An arrow from one median to the next at height `y`, its text above."""
    a, b = (ax.transData.transform((x, y))[0] for x in (start, end))
    if abs(a - b) >= 12:  # pixels: below that there is no room for an arrow, and nothing to see
        arrow = {"shrinkA": 0, "shrinkB": 0, "mutation_scale": 11, **line}
        ax.annotate("", xy=(end, y), xytext=(start, y), arrowprops=arrow, zorder=4)
    x = ax.transData.inverted().transform(((a + b) / 2, 0))[0]
    text = textwrap.fill(text, 84, max_lines=2, placeholder=" …")
    note = _value(ax, text, x, y, line["color"], above=3, fontsize=9.5, ha="center")
    box, frame = note.get_window_extent(), ax.get_window_extent()
    outside = max(frame.x0 + 6 - box.x0, 0) - max(box.x1 + 6 - frame.x1, 0)  # pixels
    note.xyann = (outside * 72 / ax.figure.dpi, note.xyann[1])


@_look()
def distance(
    points: Sequence[tuple[float, float, float, float]],
    title: str | None = None,
    *,
    nearest: str | None = None,
) -> Figure:
    """Draw a comparison's gain against the network distance.

    `points`: (round trip in ms, ratio, low, high) each, the nearest first; `nearest` is its name where it is the
    network as it is, without added time. The grey band is where no clear difference is.
    """
    if not points:
        raise ValueError("distance needs at least one point (round trip in ms, ratio, low, high), found none.")
    closest = min((p[0] for p in points if p[0] > 0), default=0.05)
    # A round trip of 0 has no place on a log axis: it stands where the nearest measured one would.
    trips = np.array([p[0] if p[0] > 0 else min(0.05, closest / 4) for p in points])
    ratio, low, high = (np.array([p[i] for p in points], dtype=float) for i in (1, 2, 3))
    names = [f"{significant(trip, 2)} ms" for trip in trips]
    if nearest:
        names[0] = nearest
    near = f"on {nearest}" if nearest else f"at {names[0]}"
    wording = f"{significant(ratio[0])}x {near}, {significant(ratio[-1])}x at {names[-1]}"
    fig, ax = _new(3.6, title if title is not None else f"The gain at your distance: {wording}")
    top, bottom = max(high.max(), CLEAR_GAIN), min(low.min(), 1 / CLEAR_GAIN)
    log = top / bottom > LOG_FROM
    _scale(ax, "y", bottom, top * 1.25, log)
    ax.set_xscale("log")
    ax.set_xlim(trips.min() / 1.6, trips.max() * 1.9)
    ax.xaxis.set_major_locator(FixedLocator(list(trips)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, i: names[i] if i is not None and i < len(names) else ""))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("network distance (measured round trip, log scale)")
    ax.set_ylabel(f"gain (times{', log scale' if log else ''})")
    ax.axhspan(1 / CLEAR_GAIN, CLEAR_GAIN, color=BAND, zorder=0, linewidth=0, label="no clear difference")
    ax.vlines(trips, low, high, color=COLOURS["after"], linewidth=3)
    ax.plot(trips, ratio, color=COLOURS["after"], marker="o", markersize=6)
    for trip, gain, end in zip(trips, ratio, high, strict=True):
        _value(ax, f"{significant(gain)}x", trip, end, COLOURS["after"], above=5, fontsize=9.5)
    ax.legend(loc="best", fontsize=9, frameon=False)
    return fig


@_look()
def gains(records: Sequence[Mapping[str, Any]], title: str | None = None) -> Figure:
    """Draw each comparison's gain with its interval, the greatest first; the height grows with their number.

    `records`: results as kept by `results.append` (keys lesson, name, ratio, interval, verdict).
    """
    if not records:
        raise ValueError("gains needs at least one record, found none: run a notebook first.")
    records = sorted(records, key=lambda r: r["ratio"], reverse=True)
    best = f"{_record_label(records[0])} gains most: {significant(records[0]['ratio'])}x"
    fig, ax = _new(1.2 + 0.42 * len(records), title if title is not None else best)
    low, high = min(r["interval"][0] for r in records), max(r["interval"][1] for r in records)
    _scale(ax, "x", min(low, 1 / CLEAR_GAIN), max(high, CLEAR_GAIN) * (high / low) ** 0.08, log=True)
    _rows(ax, [_record_label(r) for r in records], width=52)
    ax.set_xlabel("gain, before / after (times, log scale); grey band: no clear difference")
    ax.axvspan(1 / CLEAR_GAIN, CLEAR_GAIN, color=BAND, zorder=0, linewidth=0)
    for row, record in enumerate(records):
        start, end = record["interval"]
        gain = record["ratio"]
        colour = COLOURS["after"] if "faster" in record["verdict"] else COLOURS["before"]
        colour = FAINT if record["verdict"] == "~" else colour
        ax.plot([start, end], [row, row], color=colour, linewidth=3, solid_capstyle="butt")
        ax.plot(gain, row, marker="o", color=colour, markersize=6)
        ax.annotate(
            f"{significant(gain)}x" + (" ~" if record["verdict"] == "~" else ""),
            (end, row),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9.5,
            fontweight="bold",
        )
    return fig


def _record_label(record: Mapping[str, Any]) -> str:
    lesson, name = str(record.get("lesson") or ""), str(record.get("name") or "")
    return f"{lesson}: {name}" if lesson and name else lesson or name or "unnamed"
