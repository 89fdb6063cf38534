"""compare(): right answers only, a fair order, honest verdicts.

The controls do real work; noise and drift are injected through the clock.
"""

from __future__ import annotations

import gc
import json
import math
import random
import time

import numpy as np
import pandas as pd
import pytest

from workshop.measure.answers import DifferentAnswers, same
from workshop.measure.compare import compare
from workshop.measure.result import Comparison, noise_of

MS = 1_000_000


class Machine:
    """A machine whose time passes only in `work`: it gets slower by `drift` in a run, and is noisy.

    Its clock starts every comparison afresh, so that each sees the whole drift.
    """

    def __init__(self, seed: int, drift: float = 0.0, noise: float = 0.0, calls: int = 60) -> None:
        self.random = random.Random(seed)
        self.now, self.drift, self.noise, self.calls, self.done = 0, drift, noise, calls, 0

    def clock(self) -> int:
        return self.now

    def work(self, cost_ms: float, answer: object = None):
        def run():
            speed = 1 + self.drift * self.done / self.calls
            self.now += int(cost_ms * MS * speed * self.random.lognormvariate(0, self.noise))
            self.done += 1
            return answer

        return run


# ----------------------------------------------------------------------------------------------- the verdict


# Real code on a real clock is tried by `make bench` (tests/benchmark/instrument.py): here time is made.


def verdicts_of(ratio: float, pairs: int, count: int = 100, **machine_options) -> list[str]:
    found = []
    for seed in range(count):
        machine = Machine(seed, calls=2 * pairs, **machine_options)
        found.append(compare(machine.work(8 * ratio), machine.work(8), pairs=pairs, clock=machine.clock).verdict)
    return found


@pytest.mark.parametrize("pairs", [20, 6])
@pytest.mark.parametrize("noise", [0.01, 0.08])
def test_identical_code_is_called_different_in_at_most_5_of_100(pairs, noise):
    assert verdicts_of(1.0, pairs, drift=0.10, noise=noise).count("~") >= 95


@pytest.mark.parametrize(
    ("ratio", "noise", "expected"),
    [
        (1.05, 0.02, {"slightly faster"}),
        (1 / 1.05, 0.02, {"slightly slower"}),
        (1.2, 0.05, {"faster"}),
        (1 / 1.2, 0.05, {"slower"}),
    ],
)
def test_a_true_difference_is_found_in_9_of_10(ratio, noise, expected):
    verdicts = verdicts_of(ratio, 20, drift=0.10, noise=noise)
    assert sum(verdict in expected for verdict in verdicts) >= 90


def test_drift_falls_on_both_sides_alike():
    """A drift without noise must cancel; in the order AAABBB the ratio would be 1/1.5."""
    machine = Machine(0, drift=1.0, calls=46)
    result = compare(machine.work(8), machine.work(8), clock=machine.clock)
    assert result.ratio == pytest.approx(1, abs=0.02)


def test_the_interval_holds_the_true_ratio():
    inside = 0
    for seed in range(100):
        machine = Machine(seed, drift=0.10, noise=0.08)
        result = compare(machine.work(8 * 1.3), machine.work(8), clock=machine.clock)
        inside += result.interval[0] <= 1.3 <= result.interval[1]
    assert inside >= 85  # meant to hold 95 of 100; drift within a pair takes a little


def test_one_sample_in_ten_spoilt_by_a_neighbour_does_no_harm():
    found = 0
    for seed in range(100):
        machine, spoil = Machine(seed, noise=0.05), random.Random(seed)

        def spoilt(cost, machine=machine, spoil=spoil):
            return machine.work(cost * (spoil.uniform(1.5, 4) if spoil.random() < 0.1 else 1))()

        result = compare(lambda f=spoilt: f(10.4), lambda f=spoilt: f(8), clock=machine.clock)
        found += result.verdict == "faster"
    assert found >= 90


def test_a_small_and_sure_gain_is_called_slight():
    machine = Machine(1, noise=0.001)
    result = compare(machine.work(8.4), machine.work(8), clock=machine.clock)
    assert result.verdict == "slightly faster"
    assert result.finding.startswith("1.050x slightly faster (1.0")
    machine = Machine(1, noise=0.001)
    assert compare(machine.work(8), machine.work(8.4), clock=machine.clock).finding.startswith("1.050x slightly slower")


def test_the_noise_is_what_identical_code_shows_in_the_same_run():
    quiet, loud = Machine(1), Machine(1, noise=0.3)
    assert compare(quiet.work(16), quiet.work(8), clock=quiet.clock).noise == 1.0
    noise = compare(loud.work(16), loud.work(8), clock=loud.clock).noise
    assert 1.03 < noise < 1.5
    # A bias of the order, here every second run of an arm 1.2 times slower, is noise too.
    biased = {"before": np.array([1.0, 1.2] * 10), "after": np.array([1.0, 1.2] * 10)}
    assert noise_of(biased, 0) == pytest.approx(1.2)


def test_a_gain_within_the_noise_is_not_claimed():
    """1.05x where identical code differs by more: the interval alone would carry it."""
    calls = iter(range(10**6))
    machine = Machine(0)

    def alternating(cost):
        def run():
            machine.now += int(cost * MS * (1.1 if next(calls) // 2 % 2 else 1.0))

        return run

    result = compare(alternating(8.4), alternating(8), clock=machine.clock)
    assert result.interval[0] > 1.0 and result.noise > 1.04
    assert result.verdict == "~"


# ----------------------------------------------------------------------------------------------- the answers


def test_a_wrong_answer_is_refused_before_anything_is_timed():
    calls = []

    def before():
        calls.append("before")
        return [1, 2, 3]

    def after():
        calls.append("after")
        return [1, 2, 4]

    with pytest.raises(DifferentAnswers, match=r"\[1, 2, 3\].*\[1, 2, 4\].*item 2 is 3 against 4"):
        compare(before, after)
    assert calls == ["before", "after"]
    assert issubclass(DifferentAnswers, ValueError)


def test_the_refusal_is_one_short_sentence_for_long_answers():
    with pytest.raises(DifferentAnswers) as error:
        compare(lambda: list(range(100_000)), lambda: [*range(99_999), -1])
    assert "item 99999 is 99999 against -1" in str(error.value)
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


FRAME = pd.DataFrame({"a": [1, 2], "b": [0.5, math.nan]})


@pytest.mark.parametrize(
    "answer",
    [
        None,
        0,
        "text",
        math.nan,
        [1, (2, {"three": 4.0})],
        np.arange(5),
        np.array([1.0, math.nan]),
        np.array(["x", None], dtype=object),
        FRAME,
        FRAME["b"],
        {"frame": FRAME, "rows": [np.arange(3)]},
    ],
)
def test_equal_answers_of_many_kinds(answer):
    import copy

    assert same(answer, copy.deepcopy(answer))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, 2),
        ([1], [1, 2]),
        ({"a": 1}, {"b": 1}),
        (np.arange(3), np.arange(4)),
        (np.arange(3), np.array([0, 1, 3])),
        (FRAME, FRAME.assign(a=[1, 3])),
        (FRAME, FRAME[["b", "a"]]),
        (FRAME, 1),
        (FRAME["a"], FRAME["b"]),
        ([FRAME], [FRAME.head(1)]),
        (None, []),
        (math.nan, 1.0),
    ],
)
def test_different_answers_of_many_kinds(a, b):
    assert not same(a, b)
    with pytest.raises(DifferentAnswers):
        compare(lambda: a, lambda: b)


def test_equal_overrides():
    machine = Machine(0)
    close = compare(
        machine.work(8, 1.0),
        machine.work(8, 1.0001),
        equal=lambda a, b: abs(a - b) < 0.01,
        clock=machine.clock,
    )
    assert close.verdict == "~"
    with pytest.raises(DifferentAnswers):
        compare(lambda: 1, lambda: 1, equal=lambda a, b: False)


def test_the_lower_bound_may_answer_otherwise():
    machine = Machine(0)
    result = compare(machine.work(32, 1), machine.work(16, 1), machine.work(8, "x"), clock=machine.clock)
    assert result.to_lower_bound == pytest.approx(2)
    assert (result.before_s, result.after_s, result.lower_bound_s) == pytest.approx((0.032, 0.016, 0.008))


# ------------------------------------------------------------------------------------------------- the order


def record_order(with_bound: bool, **options) -> list[str]:
    calls: list[str] = []
    machine = Machine(0)

    def arm(letter):
        work = machine.work(8)

        def run():
            calls.append(letter)
            work()

        return run

    compare(arm("A"), arm("B"), arm("F") if with_bound else None, clock=machine.clock, **options)
    return calls


def test_the_order_is_abba():
    calls = "".join(record_order(False, pairs=20))
    assert calls == "AB" + "AABB" + "ABBA" * 10  # answers, two warm-ups each, pairs


def test_the_order_with_a_lower_bound():
    calls = "".join(record_order(True, pairs=6))
    assert calls == "AB" + "AABBFF" + "ABFFBA" * 3


def test_prepare_runs_before_every_sample_untimed_and_each_sample_is_one_call():
    calls: list[str] = []
    machine = Machine(0)

    def prepare():
        calls.append("p")
        machine.now += 500 * MS

    def arm(letter, cost):
        work = machine.work(cost)

        def run():
            calls.append(letter)
            work()

        return run

    result = compare(arm("A", 0.02), arm("B", 0.01), prepare=prepare, pairs=6, clock=machine.clock)
    assert "".join(calls) == "pApB" + "pApApBpB" + "pApBpBpA" * 3
    assert result.batch == {"before": 1, "after": 1}
    assert result.before_s == pytest.approx(0.02e-3)


def test_slow_steps_get_six_pairs_and_others_what_fits():
    for cost, pairs, expected in ((2_000, 20, 6), (300, 20, 8), (8, 20, 20), (8, 40, 40)):
        machine = Machine(0)
        result = compare(machine.work(cost), machine.work(cost), pairs=pairs, clock=machine.clock)
        assert result.pairs == expected, cost


def test_the_budget_counts_prepare_too():
    machine = Machine(0)

    def prepare():
        machine.now += 250 * MS

    result = compare(machine.work(50), machine.work(50), prepare=prepare, clock=machine.clock)
    assert result.pairs == 8


# ----------------------------------------------------------------------------------------------- the batches


def test_a_sample_takes_at_least_a_millisecond():
    machine = Machine(0)
    works = (machine.work(ms) for ms in (0.3, 0.01, 0.0001))
    result = compare(*works, pairs=6, units=5, clock=machine.clock)
    for arm in result.arms:
        assert result.batch[arm] > 1
        assert result.median(arm) * result.batch[arm] * result.units >= 1e-3


def test_the_batch_is_fixed_and_no_larger_than_it_must_be():
    machine = Machine(0)
    result = compare(machine.work(0.01), machine.work(3), clock=machine.clock)
    assert 125 <= result.batch["before"] <= 140
    assert result.batch["after"] == 1
    assert result.before_s == pytest.approx(0.01e-3)


def test_units_divide():
    machine = Machine(0)
    result = compare(machine.work(200), machine.work(100), unit="query", units=200, clock=machine.clock)
    assert result.before_s == pytest.approx(1e-3)
    assert result.ratio == pytest.approx(2)


def test_a_clock_that_stands_still_is_an_error_not_a_hang():
    with pytest.raises(ValueError, match="at least 1 ms"):
        compare(lambda: None, lambda: None, clock=lambda: 0)


# ---------------------------------------------------------------------------------------- garbage collection


USUAL = (True, 0)


def gc_state() -> tuple[bool, int]:
    return gc.isenabled(), gc.get_freeze_count()


@pytest.fixture
def usual_collector():
    gc.enable()
    gc.unfreeze()
    yield
    gc.enable()
    gc.unfreeze()


@pytest.mark.usefixtures("usual_collector")
def test_the_collector_is_off_in_every_sample_and_back_after():
    states = []
    compare(lambda: time.sleep(0.001), lambda: states.append(gc.isenabled()), pairs=6)
    assert not any(states[1:])  # the first call is for the answer
    assert gc_state() == USUAL


@pytest.mark.usefixtures("usual_collector")
@pytest.mark.parametrize(("error", "when"), [(RuntimeError, 0), (KeyboardInterrupt, 8)])
def test_the_collector_is_back_after_an_error_in_the_answer_or_in_a_pair(error, when):
    calls = 0

    def fails():
        nonlocal calls
        calls += 1
        if calls > when:
            raise error
        time.sleep(0.002)

    with pytest.raises(error):
        compare(lambda: time.sleep(0.002), fails)
    assert gc_state() == USUAL


@pytest.mark.usefixtures("usual_collector")
def test_garbage_does_not_pile_up_over_the_pairs():
    class Node:
        alive = most = 0

        def __init__(self):
            self.itself = self  # only the collector can free it
            Node.alive += 1
            Node.most = max(Node.most, Node.alive)

        def __del__(self):
            Node.alive -= 1

    machine = Machine(0)
    pause = machine.work(8)

    def litter():
        Node()
        pause()

    compare(litter, litter, clock=machine.clock)
    assert 4 <= Node.most <= 8  # 46 calls


@pytest.mark.usefixtures("usual_collector")
def test_a_collector_that_was_off_stays_off():
    gc.disable()
    compare(lambda: time.sleep(0.001), lambda: None, pairs=6)
    assert not gc.isenabled()


# --------------------------------------------------------------------------------------------- the arguments


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"before": 3}, "before must be a function"),
        ({"after": None}, "after must be a function"),
        ({"lower_bound": "x"}, "lower_bound must be a function"),
        ({"equal": 1}, "equal must be a function"),
        ({"prepare": 1}, "prepare must be a function"),
        ({"units": 0}, "units must be at least 1, found 0"),
        ({"units": 1.5}, "units must be a whole number"),
        ({"pairs": 5}, "pairs must be at least 6, found 5"),
        ({"pairs": "20"}, "pairs must be a whole number"),
        ({"budget_s": 0}, "budget_s must be"),
        ({"pairs": 7}, "pairs must be even, found 7"),
        ({"labels": ("one",)}, "labels must be 2 strings"),
        ({"labels": "ab"}, "labels must be 2 strings"),
    ],
)
def test_arguments_out_of_range_are_refused_in_one_sentence(options, sentence):
    arguments = {"before": lambda: 1, "after": lambda: 1} | options
    with pytest.raises(ValueError, match=sentence) as error:
        compare(arguments.pop("before"), arguments.pop("after"), **arguments)
    assert "\n" not in str(error.value)


def test_async_functions_are_refused():
    async def later():
        return 1

    with pytest.raises(ValueError, match=r"asyncio\.run"):
        compare(later, later)


# ------------------------------------------------------------------------------------------------ the result


@pytest.fixture
def result() -> Comparison:
    machine = Machine(0, noise=0.05)
    return compare(
        machine.work(52.3),
        machine.work(2.66),
        machine.work(0.285),
        name="<pool> & co",
        labels=("a new connection", "five <warm>", "the bare driver"),
        unit="query",
        units=10,
        clock=machine.clock,
    )


def test_text_form(result):
    lines = repr(result).splitlines()
    assert len(lines) == 7  # name, headings, three arms, finding, method
    assert "per query" in lines[1]
    assert "before: a new connection" in lines[2] and "5.32 ms" in lines[2]
    assert "faster" in lines[-2] and "the lower bound" in lines[-2] and "ABBA pairs" in lines[-1]


def test_html_form_escapes(result):
    page = result._repr_html_()
    assert "&lt;pool&gt; &amp; co" in page and "five &lt;warm&gt;" in page
    assert "<pool>" not in page and "<warm>" not in page


def test_record_goes_through_json_and_back(result):
    record = json.loads(json.dumps(result.as_record(), allow_nan=False))
    assert Comparison.from_record(record) == result
    assert len(record["samples"]["lower_bound"]) == 20


def test_a_record_of_something_else_is_refused():
    with pytest.raises(ValueError, match="needs samples"):
        Comparison.from_record({"lesson": "x"})
