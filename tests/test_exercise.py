"""Every verdict of check(), to the letter: notebooks compare these texts."""

from __future__ import annotations

import json
import re

import psycopg
import pytest
from sqlalchemy import create_engine, literal, select, text

from workshop.exercise import check
from workshop.observe.observer import Observer
from workshop.servers.postgres_server import dsn


@pytest.fixture
def engine(scratch_of_module):
    engine = create_engine(scratch_of_module)
    yield engine
    engine.dispose()


@pytest.fixture
def judge(servers, scratch_of_module):
    observer = Observer(servers.postgres, scratch_of_module.database)

    def judge(candidate, expected, at_most=None, **options):
        return check(candidate, expected, observer=observer, at_most=at_most or {"statements": 3}, **options)

    return judge


def numbers(engine, statements: int) -> list[int]:
    with engine.connect() as connection:
        return [connection.scalar(text(f"SELECT {i}")) for i in range(statements)]


def test_solved(engine, judge):
    verdict = judge(lambda: numbers(engine, 2), [0, 1])
    assert verdict.passed and verdict
    assert repr(verdict) == "yes: 2 statements (goal 3 or fewer), same answer"
    assert "✓" in verdict._repr_html_() and repr(verdict) in verdict._repr_html_()
    assert verdict.seen.statements == 2
    verdict = judge(lambda: numbers(engine, 1), [0], {"statements": 1, "rollbacks": 1, "commits": 0})
    goals = "1 statement (goal 1 or fewer), 1 rollback (goal 1 or fewer), 0 commits (goal none)"
    assert repr(verdict) == f"yes: {goals}, same answer"


def test_too_many(engine, judge):
    verdict = judge(lambda: numbers(engine, 201), list(range(201)))
    assert not verdict
    assert repr(verdict) == "not yet: 201 statements, goal 3 or fewer"
    assert "…" in verdict._repr_html_()
    verdict = judge(lambda: numbers(engine, 4), [0, 1, 2, 3], {"statements": 3, "rollbacks": 0})
    assert repr(verdict) == "not yet: 4 statements, goal 3 or fewer; 1 rollback, goal none"


def test_the_reference_runs_once_and_is_not_counted(engine, judge):
    runs = []

    def reference():
        runs.append(1)
        return numbers(engine, 50)

    verdict = judge(lambda: numbers(engine, 50), reference, {"statements": 50})
    assert (verdict.passed, len(runs), verdict.seen.statements) == (True, 1, 50)


def test_too_few(engine, judge):
    """A bound from below: the lesson's own idea may need several statements."""
    verdict = judge(lambda: numbers(engine, 2), [0, 1], {"statements": 5}, at_least={"statements": 3})
    assert repr(verdict) == "not yet: 2 statements, goal 3 or more"
    assert judge(lambda: numbers(engine, 3), [0, 1, 2], {"statements": 5}, at_least={"statements": 3})


EXPECTED = [0, 1]


@pytest.mark.parametrize("cheat", [lambda: EXPECTED, lambda: [0, 1], lambda: list(range(2))])
def test_an_answer_without_work_is_no_solution(judge, cheat):
    assert repr(judge(cheat, EXPECTED)) == "not yet: 0 statements, goal 1 or more"
    # 0 or more is no bound
    assert repr(judge(cheat, EXPECTED, at_least={"rows": 0})) == "not yet: 0 statements, goal 1 or more"
    # a bound on another counter of the same server asks for work all the same
    assert repr(judge(cheat, EXPECTED, {"connections": 5})) == "not yet: 0 statements, goal 1 or more"


def test_work_elsewhere_is_no_solution(engine, judge, servers):
    """Statements in another database are not the exercise's."""

    def candidate():
        with psycopg.connect(dsn(servers.postgres)) as c:
            c.execute("SELECT 1")
        return [0, 1]

    assert repr(judge(candidate, [0, 1])) == "not yet: 0 statements, goal 1 or more"


def test_wrong_answers(engine, judge):
    differs = "not yet: the answer differs (expected against found): "
    assert repr(judge(lambda: [2, 1], [1, 2])) == differs + "item 0 is 1 against 2"
    assert repr(judge(lambda: [1], [1, 2])) == differs + "2 items against 1"
    assert repr(judge(lambda: 5, 4)) == differs + "expected 4, found 5"
    assert len(repr(judge(lambda: "x" * 500, "y" * 500))) < 300

    def reordered():
        return numbers(engine, 2)[::-1]

    assert judge(reordered, [0, 1], equal=lambda a, b: sorted(a) == sorted(b))
    assert not judge(reordered, [0, 1])


@pytest.mark.parametrize("placeholder", [None, ..., NotImplemented])
def test_nothing_returned(judge, placeholder):
    assert repr(judge(lambda: placeholder, [1])) == "not yet: nothing returned"


def test_none_may_be_the_answer_of_work(engine, judge):
    def candidate():
        numbers(engine, 1)

    assert judge(candidate, None)
    assert repr(judge(lambda: None, None)) == "not yet: 0 statements, goal 1 or more"


def test_it_raised(engine, judge):
    def candidate():
        numbers(engine, 1)
        raise ValueError("no such thing\nin line 2")

    verdict = judge(candidate, [1])
    first, second = repr(verdict).splitlines()
    assert first == "not yet: it raised ValueError: no such thing"
    assert second.endswith(r'in candidate: raise ValueError("no such thing\nin line 2")')
    assert verdict.seen.statements == 1

    def raised_in_the_standard_library():
        return json.loads("no JSON")

    second = repr(judge(raised_in_the_standard_library, [1])).splitlines()[1]
    assert second.endswith('in raised_in_the_standard_library: return json.loads("no JSON")')

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(interrupted, [1])


def test_a_transaction_left_open_hides_a_query(engine, judge):
    kept = []

    def candidate():
        connection = engine.connect()
        kept.append(connection)
        connection.execute(text("SELECT 6"))
        return connection.scalar(select(literal(7)))

    verdict = judge(candidate, 7)
    kept[0].close()
    assert repr(verdict).startswith("not yet: a transaction was open at the start or the end")


def test_a_counter_that_is_not_counted_here_is_said(engine, judge):
    verdict = judge(lambda: numbers(engine, 2), [0, 1], {"statements": 3, "redis_hits": 1}, at_least={"redis_hits": 0})
    assert re.match("not yet: the answer is right, but redis_hits cannot be counted here: .*Redis", repr(verdict))
    raised = judge(lambda: 1 / 0, 1, {"redis_hits": 1})  # the learner's own error comes first
    assert repr(raised).startswith("not yet: it raised ZeroDivisionError: division by zero")


def test_bounds_that_cannot_be_judged(judge):
    with pytest.raises(ValueError, match="expected bounds of counters among statements"):
        judge(lambda: 1, 1, {"queries": 1})
    with pytest.raises(ValueError, match="whole number"):
        judge(lambda: 1, 1, {"statements": "3"})
    with pytest.raises(ValueError, match="whole number"):
        judge(lambda: 1, 1, at_least={"statements": -1})
