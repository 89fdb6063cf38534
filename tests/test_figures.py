"""The figures: text that fits and does not overlap, labelled axes, no side effects."""

from __future__ import annotations

import dataclasses
import io
import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text

from workshop import figures
from workshop.measure.result import CLEAR_GAIN, Comparison, verdict_of


def make(
    ratio: float,
    to_lower_bound: float | None = 9.0,
    *,
    base: float = 5.23e-3,
    noise: float = 0.08,
    labels: tuple[str, ...] = ("a new connection per query", "five warm connections", "the bare driver, warm"),
    spike: float = 1.0,
) -> Comparison:
    rng = np.random.default_rng(3)
    medians = {"before": base, "after": base / ratio}
    if to_lower_bound:
        medians["lower_bound"] = base / ratio / to_lower_bound
    samples = {arm: (m * rng.lognormal(0, noise, 20)).tolist() for arm, m in medians.items()}
    samples["before"][0] *= spike
    low, high = ratio * 0.95, ratio * 1.05
    return Comparison(
        name="a connection per query vs. a pool",
        labels=labels,
        unit="query",
        units=1,
        samples=samples,
        batch=dict.fromkeys(samples, 1),
        ratio=ratio,
        interval=(low, high),
        verdict=verdict_of(low, high, 1.02),
        noise=1.02,
        to_lower_bound=to_lower_bound,
        to_lower_bound_interval=(0.95 * to_lower_bound, 1.05 * to_lower_bound) if to_lower_bound else None,
    )


def drawn_texts(fig) -> list[Text]:
    """Every text that shows; ticks outside the axis' limits keep a label that is never drawn."""
    undrawn = set()
    for axis in (axis for axes in fig.axes for axis in (axes.xaxis, axes.yaxis)):
        drawn = {id(tick.label1) for tick in axis._update_ticks()}
        ticks = (*axis.get_major_ticks(), *axis.get_minor_ticks())
        undrawn |= {id(label) for tick in ticks for label in (tick.label1, tick.label2)} - drawn
    texts = (t for t in fig.findobj(Text) if id(t) not in undrawn)
    return [t for t in texts if t.get_visible() and t.get_text().strip()]


def assert_readable(fig) -> None:
    """No text leaves the figure, and no two texts overlap."""
    fig.draw_without_rendering()
    renderer = fig.canvas.get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in drawn_texts(fig)]
    assert len(boxes) > 4
    width, height = fig.bbox.width, fig.bbox.height
    for what, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, f"clipped: {what}"
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        overlap = min(a.x1, b.x1) - max(a.x0, b.x0) > 0.5 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.5
        assert not overlap, f"{one!r} over {other!r}"


@pytest.mark.parametrize(
    ("ratio", "to_lower_bound"),
    [(0.001, None), (0.5, 9.0), (1.0, 1.0), (1.05, 1.5), (5, 200.0), (20.7, 9.0), (1000, 1.0)],
)
def test_comparison_is_readable_at_any_ratio(ratio, to_lower_bound):
    assert_readable(figures.comparison(make(ratio, to_lower_bound)))


@pytest.mark.parametrize(
    "options",
    [{"base": 40.0}, {"base": 3e-7}, {"noise": 0.5}, {"spike": 30.0}, {"labels": ("word " * 20, "x", "unbroken" * 4)}],
)
def test_comparison_is_readable_with_odd_data(options):
    assert_readable(figures.comparison(make(20.7, **options), "A finding of many words " * 8))


def texts(fig) -> str:
    return "\n".join(t.get_text() for t in fig.findobj(Text))


def test_comparison_says_what_was_found():
    fig = figures.comparison(make(20.7), "200 connections become 1")
    found = texts(fig)
    for expected in (
        "200 connections become 1",
        "20.7x faster (19.7 to 21.7)",
        "9.00x (8.55 to 9.45) the lower bound",
        "before: a new connection per query",
        "ms",
    ):
        assert expected in found
    assert "no difference shown" in texts(figures.comparison(make(1.0)))
    assert "2.00x slower" in texts(figures.comparison(make(0.5)))


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((1.02, 1.08), "at the lower bound, 1.05x (1.02 to 1.08)"),
        ((0.99, 1.46), "not told apart from the lower bound, 1.05x (0.990 to 1.46)"),
        ((1.2, 1.5), "1.05x (1.20 to 1.50) the lower bound"),
        ((0.4, 0.6), "faster than its lower bound, 1.05x (0.400 to 0.600), so that is no lower bound"),
    ],
)
def test_the_lower_bound_is_reached_only_where_the_whole_interval_says_so(interval, said):
    result = dataclasses.replace(make(20.7, 1.05), to_lower_bound_interval=interval)
    assert result.lower_bound_finding == said and said in texts(figures.comparison(result))


@pytest.mark.parametrize(("ratio", "to_lower_bound"), [(1000, 1.2), (1.02, 900)])
def test_what_was_found_stands_inside_the_frame(ratio, to_lower_bound):
    fig = figures.comparison(make(ratio, to_lower_bound))
    fig.draw_without_rendering()
    frame = fig.axes[0].get_window_extent()
    found = [t for t in fig.axes[0].texts if "lower bound" in t.get_text() or "faster" in t.get_text()]
    assert found
    for text in found:
        box = text.get_window_extent()
        assert frame.x0 < box.x0 and box.x1 < frame.x1, text.get_text()


def test_log_scale_where_ratios_exceed_ten_else_linear_from_zero():
    for ratio, to_lower_bound, scale in (
        (20.7, None, "log"),
        (5, None, "linear"),
        (5, 5.0, "log"),
        (0.05, None, "log"),
    ):
        axes = figures.comparison(make(ratio, to_lower_bound)).axes[0]
        assert axes.get_xscale() == scale
        assert ("log scale" in axes.get_xlabel()) == (scale == "log")
        if scale == "linear":
            assert axes.get_xlim()[0] == 0


def test_every_sample_is_shown_and_jitter_is_repeatable():
    result = make(20.7)
    one, other = (figures.comparison(result).axes[0] for _ in range(2))
    for axes in (one, other):
        assert [len(c.get_offsets()) for c in axes.collections] == [20, 20, 20]
        left, right = axes.get_xlim()
        assert all(left <= x <= right for c in axes.collections for x in c.get_offsets()[:, 0])
    for a, b in zip(one.collections, other.collections, strict=True):
        assert np.array_equal(a.get_offsets(), b.get_offsets())


# Round trip in ms, ratio, low, high.
POINTS = {
    "falling": [(0.04, 17.2, 16.5, 18.1), (0.12, 11.2, 10.9, 11.6), (0.5, 5, 4.8, 5.2), (20, 2.4, 2.3, 2.5)],
    "rising": [(0, 1.02, 0.98, 1.1), (0.5, 2, 1.9, 2.1), (2, 5, 4.5, 5.1), (20, 8, 7.8, 8.2)],
    "steep": [(0.05, 300, 280, 320), (0.5, 20, 19, 21), (2, 4, 3.6, 4.2), (20, 0.9, 0.85, 0.95)],
    "one": [(0.05, 3, 2.8, 3.2)],
}  # fmt: skip


@pytest.mark.parametrize("points", POINTS.values(), ids=POINTS)
def test_distance(points):
    fig = figures.distance(points)
    axes = fig.axes[0]
    assert "round trip" in axes.get_xlabel() and "times" in axes.get_ylabel()
    assert "no clear difference" in texts(fig)
    assert_readable(fig)
    assert_readable(figures.distance(points, nearest="loopback"))


def test_distance_names_what_was_measured_and_where_the_servers_are():
    points = [(0.4, 3.0, 2.9, 3.1), (2.13, 7, 6.9, 7.1), (20.2776, 9, 8.9, 9.1)]
    fig = figures.distance(points, nearest="your network")
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["your network", "2.1 ms", "20 ms"]
    assert "3.00x on your network, 9.00x at 20 ms" in texts(fig)
    fig = figures.distance(points)  # the nearest has added time, too
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["0.40 ms", "2.1 ms", "20 ms"]
    assert "3.00x at 0.40 ms, 9.00x at 20 ms" in texts(fig)


def gain(name, ratio, verdict, spread=0.05):
    interval = [ratio * (1 - spread), ratio * (1 + spread)]
    return {"lesson": "02-pool", "name": name, "ratio": ratio, "interval": interval, "verdict": verdict}


def test_gains():
    records = [
        gain("a", 20.7, "faster"),
        gain("b " * 60, 348, "faster"),
        gain("c", 1.01, "~"),
        gain("d", 0.4, "slower"),
    ]
    fig = figures.gains(records)
    assert_readable(fig)
    assert fig.axes[0].get_xscale() == "log"
    assert [t.get_text()[:10] for t in fig.axes[0].get_yticklabels()][::3] == ["02-pool: b", "02-pool: d"]
    noisy = {**gain("noisy", 1.2, "faster"), "noise": 1.3}  # its own verdict knows of its noise; others' bands do not
    band = figures.gains([*records, noisy]).axes[0].patches[0]
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((1 / CLEAR_GAIN, CLEAR_GAIN))
    assert_readable(figures.gains(records[:1]))
    assert_readable(figures.gains([gain("x", 3000, "faster", 0.5)] * 30))


def test_nothing_to_draw_is_an_error_with_a_sentence():
    for draw in (lambda: figures.distance([]), lambda: figures.gains([])):
        with pytest.raises(ValueError, match="at least one"):
            draw()


def every_figure():
    yield figures.comparison(make(20.7))
    yield figures.distance(POINTS["falling"])
    yield figures.gains([gain("a", 20.7, "faster")])


def test_every_axis_has_a_label_or_named_rows_and_the_size_is_fixed():
    for fig in every_figure():
        (axes,) = fig.axes
        assert axes.get_xlabel()
        assert axes.get_ylabel() or all(t.get_text() for t in axes.get_yticklabels())
    assert repr(figures.comparison(make(1.0))) == repr(figures.comparison(make(1000), "x " * 200))
    assert repr(figures.comparison(make(1.0))) == "<Figure size 900x420 with 1 Axes>"


def test_no_global_state_is_touched_and_no_file_written(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    with matplotlib.rc_context({"font.size": 7.5, "axes.grid": False, "axes.facecolor": "pink"}):
        before, open_before = dict(matplotlib.rcParams), plt.get_fignums()
        for fig in every_figure():
            assert fig._repr_png_().startswith(b"\x89PNG")
        assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == open_before
    assert list(tmp_path.iterdir()) == []


def test_the_readers_own_style_does_not_change_the_look():
    def pixels() -> bytes:
        data = io.BytesIO()
        figures.comparison(make(20.7), "t").savefig(data, format="raw", dpi=100)
        return data.getvalue()

    plain = pixels()
    with matplotlib.rc_context({"font.size": 20, "axes.titlesize": 30, "lines.linewidth": 9, "axes.grid": False}):
        assert pixels() == plain
