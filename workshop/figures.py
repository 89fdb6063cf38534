"""Every plot of the workbook, in one look.

Each function returns a matplotlib `Figure` that pyplot knows nothing of: a notebook shows it once, as the
last expression of a cell. The look is applied while a figure is made and drawn, and nothing global is
changed. Colours are from Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), darkened where text is
written in them; no colour carries a meaning alone.
"""

from __future__ import annotations

import functools
import io
import math
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec

import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import blended_transform_factory

from workshop.measure.result import CLEAR_GAIN, Comparison
from workshop.table import significant

if TYPE_CHECKING:
    from matplotlib.backend_bases import RendererBase

__all__ = ["bars", "comparison", "distance", "gains"]

P = ParamSpec("P")

# Vermillion and blue (darkened for text) differ in lightness too: 0.39 and 0.28 in grey; every arm also has
# its own row.
COLOURS = {"before": "#c2500a", "after": "#00558c", "lower_bound": "#6b6b6b"}
INK = "#222222"
FAINT = "#6b6b6b"
BAND = "#e3e3e3"
WIDTH_IN = 9.0
LOG_FROM = 10.0
DPI = 100

LOOK: dict[str, Any] = {
    # A list by name, not the alias: matplotlib resolves an alias when it draws, after this look has been
    # left.
    "font.family": ["DejaVu Sans"],
    "font.size": 10.0,
    "text.color": INK,
    "text.usetex": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 10.0,
    "axes.titlesize": 12.0,
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": "#ececec",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "figure.facecolor": "white",
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "savefig.facecolor": "white",
    "lines.linewidth": 1.8,
}


class Figure(matplotlib.figure.Figure):
    """A figure that shows itself in a notebook, even where pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        with _look():
            self.savefig(data, format="png")
        return data.getvalue()


def _look() -> Any:
    # "default" first: a reader's own rcParams must not break the layout.
    return matplotlib.rc_context({**_DEFAULTS, **LOOK})


# backend keys are left out: setting them would switch the reader's backend.
_DEFAULTS = {
    k: v
    for k, v in matplotlib.rcParamsDefault.items()
    if k.split(".")[0] in {"axes", "font", "text", "xtick", "ytick", "grid", "lines", "patch", "figure", "savefig"}
    and k not in {"figure.hooks", "savefig.directory", "axes.prop_cycle"}
}


def _styled(function: Callable[P, Figure]) -> Callable[P, Figure]:
    @functools.wraps(function)
    def inside_the_look(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _look():
            return function(*args, **kwargs)

    return inside_the_look


def _new(height_in: float, width_in: float = WIDTH_IN) -> tuple[Figure, Axes]:
    fig = Figure(figsize=(width_in, height_in), dpi=DPI)
    FigureCanvasAgg(fig)
    return fig, fig.add_subplot()


# -------------------------------------------------------------------------------------------- text that fits


def _renderer(fig: matplotlib.figure.Figure) -> RendererBase:
    return fig.canvas.get_renderer()  # type: ignore[attr-defined]


def _width(text: Text) -> float:
    """The text's width in pixels."""
    return text.get_window_extent(_renderer(text.figure)).width


def _fit(text: Text, width: float, lines: int = 3) -> None:
    """Break the text into at most `lines` lines of `width` pixels; the rest becomes an ellipsis."""
    whole = " ".join(text.get_text().split())
    text.set_text(whole)
    if not whole or _width(text) <= width:
        return
    columns = len(whole)
    while columns > 4:
        columns -= 1
        text.set_text("\n".join(textwrap.wrap(whole, columns, max_lines=lines, placeholder=" …")))
        if _width(text) <= width:
            return


def _layout(
    fig: Figure, ax: Axes, title: str, *, names: bool = True, name_lines: int = 3, left_share: float = 0.36
) -> None:
    """Place the axes so that title, axis titles and tick labels fit into the figure's fixed size."""
    w, h = fig.get_size_inches()
    right_in = 0.32
    head = fig.text(0.1 / w, 1 - 0.1 / h, title, ha="left", va="top", fontsize=12, fontweight="bold", linespacing=1.25)
    _fit(head, (w - 0.2) * DPI)
    renderer = _renderer(fig)
    top_in = 0.22 + (head.get_window_extent(renderer).height / DPI if title else 0)

    ax.set_position((0.3, 0.2, 0.6, 0.6))
    labels = [label for label in ax.get_yticklabels() if label.get_text()]
    if names:  # named rows, which may be long; else numbers
        for label in labels:
            _fit(label, left_share * w * DPI, lines=name_lines)
        ax.set_yticks(range(len(labels)), [label.get_text() for label in labels])
    left_in = 0.2 + max((_width(label) for label in labels), default=0) / DPI
    if ax.get_ylabel():
        left_in += 0.3
    below = [label.get_window_extent(renderer).height for label in ax.get_xticklabels() if label.get_text()]
    bottom_in = 0.18 + max(below, default=0) / DPI + (0.28 if ax.get_xlabel() else 0)
    ax.set_position((left_in / w, bottom_in / h, 1 - (left_in + right_in) / w, 1 - (top_in + bottom_in) / h))


# ------------------------------------------------------------------------------------------------------ axes


def _plain(x: float, _: Any = None) -> str:
    """A tick's number without exponent: 0.01, 1, 2,000."""
    return f"{x:,.10f}".rstrip("0").rstrip(".") if abs(x) < 1 else f"{x:,.6g}" if abs(x) < 1000 else f"{x:,.0f}"


def _log_axis(axis: Any, low: float, high: float) -> None:
    """Decades with plain numbers; where there are fewer than two decades, 2 and 5 as well."""
    decades = math.log10(high / low)
    subs = (1.0,) if decades > 2.5 else (1.0, 2.0, 5.0) if decades > 0.9 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    every = max(1, math.ceil(decades / 8))  # at most eight labelled decades
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [s * 10.0**e for e in range(first, last + 1, every) for s in subs]
    axis.set_major_locator(FixedLocator([t for t in ticks if low * 0.999 <= t <= high * 1.001]))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_locator(LogLocator(subs=range(2, 10)) if decades <= 8 else NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _time_unit(smallest: float, largest: float) -> tuple[float, str]:
    """The one unit in which all times of a plot are written, so that they can be compared at a glance."""
    units = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
    for size, unit in units:
        if largest >= size and smallest >= 0.01 * size:
            return size, unit
    return next(((size, unit) for size, unit in units if largest >= size), units[-1])


# ------------------------------------------------------------------------------------------------- the plots


@_styled
def comparison(result: Comparison, title: str | None = None, *, gap_note: str | None = None) -> Figure:
    """Draw every sample, each arm's median, the ratio with its interval, and what is left to the floor.

    `title` says the finding with its proof ("200 connections become 1"); `gap_note` says what lies between
    after and the floor ("BEGIN, ROLLBACK, ORM"). The time axis is logarithmic where ratios exceed ten.
    """
    arms = result.arms
    medians = {arm: result.median(arm) for arm in arms}
    everything = np.concatenate([np.asarray(result.samples[arm]) for arm in arms])
    size, unit = _time_unit(min(medians.values()), max(medians.values()))
    low, high = everything.min() / size, everything.max() / size
    # A single slow sample may lie far out: then too the log scale shows everything.
    log = max(medians.values()) / min(medians.values()) > LOG_FROM or bool(high / low > 2 * LOG_FROM)

    fig, ax = _new(1.35 + 0.95 * len(arms))
    # The room on the right is for the slowest arm's value.
    if log:
        ax.set_xscale("log")
        left, right = low / (high / low) ** 0.05, high * (high / low) ** 0.24
        ax.set_xlim(left, right)
        _log_axis(ax.xaxis, left, right)
    else:
        ax.set_xlim(0, high * 1.24)
        ax.xaxis.set_major_formatter(FuncFormatter(_plain))
    ax.set_ylim(len(arms) - 0.55, -0.42)
    ax.set_yticks(range(len(arms)), [result.label(arm) for arm in arms])
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    ax.set_xlabel(f"time per {result.unit} ({unit}{', log scale' if log else ''})")
    _layout(fig, ax, title if title is not None else _default_title(result))

    for row, arm in enumerate(arms):
        colour = COLOURS[arm]
        values = np.asarray(result.samples[arm]) / size
        # Golden-ratio steps: spread evenly, and the same on every run.
        jitter = ((np.arange(len(values)) * 0.6180339887) % 1 - 0.5) * 0.30
        ax.scatter(values, row + jitter, s=13, color=colour, alpha=0.35, linewidths=0, zorder=2)
        median = medians[arm] / size
        ax.plot([median] * 2, [row - 0.24, row + 0.24], color=colour, linewidth=4, solid_capstyle="butt", zorder=3)
        ax.annotate(
            f"{significant(median)} {unit}",
            (max(values.max(), median), row),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=11,
            fontweight="bold",
            zorder=5,
        )

    solid = {"color": INK, "linewidth": 1.2, "linestyle": "-"}
    style = "-" if result.verdict == "~" else "-|>"
    _gap(
        ax,
        0.5,
        medians["before"] / size,
        medians["after"] / size,
        [result.finding.removeprefix("~ ")],
        style,
        solid,
        10.5,
    )
    if result.to_lower_bound is not None:
        text = result.lower_bound_finding
        style = "-" if result.at_lower_bound else "-|>"
        dashed = {"color": FAINT, "linewidth": 1.1, "linestyle": (0, (4, 3))}
        whole = f"{text}: {gap_note}" if gap_note and style != "-" else text
        _gap(
            ax,
            1.5,
            medians["after"] / size,
            medians["lower_bound"] / size,
            _two_lines(ax, whole, 9.5),
            style,
            dashed,
            9.5,
        )
    return fig


def _default_title(result: Comparison) -> str:
    return f"{result.name}: {result.finding}" if result.name else result.finding


def _two_lines(ax: Axes, text: str, fontsize: float) -> list[str]:
    """Break a note into at most two lines of the axes' width: one for above its arrow, one for below."""
    probe = ax.figure.text(0, 0, text, fontsize=fontsize)
    _fit(probe, ax.get_window_extent().width - 8, lines=2)
    lines = probe.get_text().split("\n")
    probe.remove()
    return lines


def _gap(
    ax: Axes,
    y: float,
    start: float,
    end: float,
    lines: list[str],
    arrow: str,
    line: dict[str, Any],
    fontsize: float,
) -> None:
    """Draw an arrow from one median to the next at height `y`, its text above (and a second line below)."""
    frame = ax.get_window_extent()
    a, b = (ax.transData.transform((x, y))[0] for x in (start, end))
    if abs(a - b) >= 12:  # pixels: below that there is no room for an arrow, and nothing to see
        ax.annotate(
            "",
            xy=(end, y),
            xytext=(start, y),
            arrowprops={"arrowstyle": arrow, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 11, **line},
            zorder=4,
        )
    middle = (min(max(a, frame.x0), frame.x1) + min(max(b, frame.x0), frame.x1)) / 2
    x = ax.transData.inverted().transform((middle, frame.y0))[0]
    for text, offset, va in zip(lines, (3, -4), ("bottom", "top"), strict=False):
        label = ax.annotate(
            text,
            (x, y),
            xytext=(0, offset),
            textcoords="offset points",
            ha="center",
            va=va,
            color=line["color"],
            fontsize=fontsize,
            zorder=5,
        )
        box = label.get_window_extent(_renderer(ax.figure))
        shift = max(frame.x0 + 4 - box.x0, 0.0) or min(frame.x1 - 2 - box.x1, 0.0)
        label.set_position((shift * 72 / DPI, offset))


PLACES = {0.5: "zone", 2.0: "region", 20.0: "continent"}


def _milliseconds(trip: float) -> str:
    return _plain(float(f"{trip:.2g}"))


def _place(trip: float) -> str:
    """Where one is at this round trip (ms), on a line of its own; measured ones are a little off the round numbers."""
    return next((f"\n{name}" for at, name in PLACES.items() if 0.8 <= trip / at <= 1.25), "")


@_styled
def distance(
    points: Sequence[tuple[float, float, float, float]],
    title: str | None = None,
    *,
    noise: float = CLEAR_GAIN,
    nearest: str = "loopback",
) -> Figure:
    """Draw the gain against the network's round-trip time.

    `points`: (round trip in ms, ratio, low, high) each, the nearest first, which is called `nearest`. The grey
    band is where no gain can be claimed.
    """
    if not points:
        raise ValueError("distance needs at least one point (round_trip_ms, ratio, low, high), found none.")
    closest = min((p[0] for p in points if p[0] > 0), default=0.05)
    # A round trip of 0 has no place on a log axis: loopback stands where the nearest measured one would.
    trips = np.array([p[0] if p[0] > 0 else min(0.05, closest / 4) for p in points])
    ratio, low, high = (np.array([p[i] for p in points], dtype=float) for i in (1, 2, 3))
    threshold = max(CLEAR_GAIN, noise)

    fig, ax = _new(3.8, 7.0)
    ax.set_xscale("log")
    left, right = trips.min() / 1.6, trips.max() * 2.0
    ax.set_xlim(left, right)
    top, bottom = max(high.max(), threshold), min(low.min(), 1 / threshold)
    log = top / bottom > LOG_FROM
    if log:
        ax.set_yscale("log")
        bottom, top = bottom / 1.25, top * (top / bottom) ** 0.12
        ax.set_ylim(bottom, top)
        _log_axis(ax.yaxis, bottom, top)
        ax.yaxis.set_minor_locator(NullLocator())
    else:
        ax.set_ylim(0, top * 1.18)
        ax.yaxis.set_major_formatter(FuncFormatter(_plain))
    names = [nearest] + [_milliseconds(t) + _place(t) for t in trips[1:]]
    ax.xaxis.set_major_locator(FixedLocator(list(trips)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, i: names[i] if i is not None and i < len(names) else ""))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("network distance (round trip, ms, log scale)")
    ax.set_ylabel(f"gain (times{', log scale' if log else ''})")
    wording = f"{significant(ratio[0])}x on {nearest}, {significant(ratio[-1])}x at {_milliseconds(trips[-1])} ms"
    _layout(fig, ax, title if title is not None else f"The gain at your distance: {wording}", names=False)
    _thin_labels(ax, list(trips), names)

    ax.axhspan(1 / threshold, threshold, color=BAND, zorder=0, linewidth=0)
    order = np.argsort(trips)
    ax.fill_between(trips[order], low[order], high[order], color=COLOURS["after"], alpha=0.18, linewidth=0)
    ax.plot(trips[order], ratio[order], color=COLOURS["after"], marker="o", markersize=6)
    for i in order:
        # The value stands on the side where the curve falls away from it.
        rank = int(np.flatnonzero(order == i)[0])
        ahead = order[rank + 1] if rank + 1 < len(order) else i
        rising = ratio[ahead] > ratio[i]
        ax.annotate(
            f"{significant(ratio[i])}x",
            (trips[i], max(high[i], ratio[i])),
            xytext=(-3 if rising else 3, 6),
            textcoords="offset points",
            ha="right" if rising and rank else "center" if rising else "left",
            color=COLOURS["after"],
            fontsize=9.5,
            fontweight="bold",
        )
    # The band's name stands where the curve is farthest from it.
    at_left = abs(math.log(ratio[order][0])) >= abs(math.log(ratio[order][-1]))
    ax.annotate(
        "noise",
        (0.0 if at_left else 1.0, threshold),
        xycoords=blended_transform_factory(ax.transAxes, ax.transData),
        xytext=(5 if at_left else -5, 3),
        textcoords="offset points",
        ha="left" if at_left else "right",
        fontsize=9,
        color=FAINT,
    )
    return fig


def _thin_labels(ax: Axes, ticks: list[float], names: list[str]) -> None:
    """Take away x labels that would touch one written before; loopback and named distances come first."""
    renderer = _renderer(ax.figure)
    order = sorted(range(len(names)), key=lambda i: (i != 0, "\n" not in names[i], i))
    kept: list[tuple[float, float]] = []
    for i in order:
        probe = ax.text(ticks[i], ax.get_ylim()[0], names[i], fontsize=9.5, ha="center")
        box = probe.get_window_extent(renderer)
        probe.remove()
        if all(box.x1 + 6 < start or end + 6 < box.x0 for start, end in kept):
            kept.append((box.x0, box.x1))
        else:
            names[i] = ""  # the formatter reads this list


@_styled
def gains(records: Sequence[Mapping[str, Any]], title: str | None = None) -> Figure:
    """Draw each comparison's gain with its interval, the greatest first; the height grows with their number.

    `records`: results as kept by `results.append` (keys lesson, name, ratio, interval, verdict, and
    noise if known).
    """
    if not records:
        raise ValueError("gains needs at least one record, found none: run a notebook first.")
    records = sorted(records, key=lambda r: r["ratio"], reverse=True)
    low = min(r["interval"][0] for r in records)
    high = max(r["interval"][1] for r in records)
    threshold = max(CLEAR_GAIN, *(r.get("noise") or 1.0 for r in records))
    left, right = min(low, 1 / threshold) / 1.15, max(high, threshold)
    right *= max((right / left) ** 0.2, 1.15)

    fig, ax = _new(1.3 + 0.36 * len(records))
    ax.set_xscale("log")
    ax.set_xlim(left, right)
    _log_axis(ax.xaxis, left, right)
    ax.set_ylim(len(records) - 0.5, -0.5)
    ax.set_yticks(range(len(records)), [_record_label(r) for r in records])
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("gain, before / after (times, log scale); grey: no difference can be claimed")
    best = records[0]
    _layout(
        fig,
        ax,
        title if title is not None else f"{_record_label(best)} gains most: {significant(best['ratio'])}x",
        name_lines=1,
        left_share=0.45,
    )

    ax.axvspan(1 / threshold, threshold, color=BAND, zorder=0, linewidth=0)
    for row, record in enumerate(records):
        start, end = record["interval"]
        colour = {"faster": COLOURS["after"], "slower": COLOURS["before"]}.get(record["verdict"], FAINT)
        ax.plot([start, end], [row, row], color=colour, linewidth=3, solid_capstyle="butt")
        ax.plot(record["ratio"], row, marker="o", color=colour, markersize=6)
        ax.annotate(
            f"{significant(record['ratio'])}x" + (" ~" if record["verdict"] == "~" else ""),
            (max(end, record["ratio"]), row),
            xytext=(8, 0),
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


@_styled
def bars(
    values: Mapping[str, float],
    title: str,
    xlabel: str,
    *,
    log: bool = False,
    accent: Collection[str] | None = None,
) -> Figure:
    """Draw one bar per item of `values` with its value written at its end; made for counters.

    `xlabel` names what is counted, with its unit. `log`: a logarithmic axis, for ratios above ten; zeros get
    no bar. `accent`: the names of the bars in the other colour; by default the first, the slow way.
    """
    if not values:
        raise ValueError("bars needs at least one value, found none.")
    numbers = [float(v) for v in values.values()]
    if min(numbers) < 0 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"bars draws counts of 0 and above, found {min(numbers):g}.")
    positive = [v for v in numbers if v > 0]
    fig, ax = _new(1.15 + 0.42 * len(values))
    if log and positive:
        left, right = min(positive) / 2, max(positive)
        left = min(left, 10.0 ** math.floor(math.log10(min(positive))) * 0.8)
        right *= (right / left) ** 0.18
        ax.set_xscale("log")
        ax.set_xlim(left, right)
        _log_axis(ax.xaxis, left, right)
    else:
        left = 0.0
        ax.set_xlim(0, (max(numbers) or 1) * 1.18)
        ax.xaxis.set_major_formatter(FuncFormatter(_plain))
    ax.set_ylim(len(values) - 0.45, -0.55)
    ax.set_yticks(range(len(values)), list(values))
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    ax.set_xlabel(f"{xlabel}{' (log scale)' if log and positive else ''}")
    _layout(fig, ax, title)
    # Light and dark keep the two colours apart in grey.
    accented = set(list(values)[:1] if accent is None else accent)
    colours = [COLOURS["before" if name in accented else "after"] for name in values]
    for row, (value, colour) in enumerate(zip(numbers, colours, strict=True)):
        shown = value if value > 0 or not log else left
        ax.barh(row, shown - left if log else shown, left=left, height=0.58, color=colour)
        ax.annotate(
            f"{value:,.0f}" if value == int(value) else significant(value),
            (shown, row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=10.5,
            fontweight="bold",
        )
    return fig
