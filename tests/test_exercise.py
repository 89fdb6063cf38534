"""Every verdict of check(), to the letter: notebooks compare these texts."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import URL, create_engine, literal, select, text

from workshop.exercise import _same, check
from workshop.observe.observation import NotCounted
from workshop.observe.observer import Observer


@pytest.fixture(scope="module")
def scratch(servers) -> Iterator[URL]:
    """One database for the module, because nothing here writes."""
    admin = servers.postgres.set(drivername="postgresql").render_as_string(hide_password=False)
    name = f"workshop_test_{secrets.token_hex(4)}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield servers.postgres.set(database=name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def engine(scratch):
    engine = create_engine(scratch)
    yield engine
    engine.dispose()


@pytest.fixture
def judge(servers, scratch):
    observer = Observer(servers.postgres, scratch.database)

    def judge(candidate, expected, goals=None, **options):
        return check(candidate, expected, observer=observer, goals=goals or {"statements": 3}, **options)

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
    verdict = judge(lambda: numbers(engine, 1), [0], {"statements": 1, "rollbacks": 1, "commits": 0}, name="task")
    goals = "1 statement (goal 1 or fewer), 1 rollback (goal 1 or fewer), 0 commits (goal none)"
    assert repr(verdict) == f"task: yes: {goals}, same answer"


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


def test_wrong_answers(engine, judge):
    assert repr(judge(lambda: [2, 1], [1, 2])) == "not yet: the answer differs: expected [1, 2], found [2, 1]"
    assert repr(judge(lambda: [1], [1, 2])) == "not yet: the answer differs: expected 2 items, found 1"
    assert (
        repr(judge(lambda: [1, 2, 3, 5], [1, 2, 3, 4])) == "not yet: the answer differs: at item 3: expected 4, found 5"
    )
    assert len(repr(judge(lambda: "x" * 500, "y" * 500))) < 300
    assert judge(lambda: [2, 1], [1, 2], equal=lambda a, b: sorted(a) == sorted(b))


@pytest.mark.parametrize("placeholder", [None, ..., NotImplemented])
def test_nothing_returned(judge, placeholder):
    assert repr(judge(lambda: placeholder, [1])) == "not yet: nothing returned"


def test_none_may_be_the_answer(judge):
    assert judge(lambda: None, None)


def test_it_raised(engine, judge):
    def candidate():
        numbers(engine, 1)
        raise ValueError("no such thing\nin line 2")

    verdict = judge(candidate, [1])
    assert repr(verdict) == "not yet: it raised ValueError: no such thing"
    assert verdict.seen.statements == 1

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(interrupted, [1])


def test_a_transaction_left_open_hides_a_query(engine, judge):
    kept = []

    def candidate():
        connection = engine.connect()
        kept.append(connection)
        return connection.scalar(select(literal(7)))

    verdict = judge(candidate, 7)
    kept[0].close()
    assert repr(verdict).startswith("not yet: a transaction is still open")


def test_goals_that_cannot_be_judged(judge):
    with pytest.raises(NotCounted, match="does not watch Redis"):
        judge(lambda: 1, 1, {"redis_hits": 1})
    with pytest.raises(ValueError, match="expected goals among statements"):
        judge(lambda: 1, 1, {"queries": 1})
    with pytest.raises(ValueError, match="whole number"):
        judge(lambda: 1, 1, {"statements": "3"})


def test_equality_knows_rows_arrays_and_frames():
    np = pytest.importorskip("numpy")
    pd = pytest.importorskip("pandas")
    assert _same([(1, "a")], [[1, "a"]])
    assert not _same([1, 2], [2, 1])
    assert not _same([1], [1, 1])
    assert _same({"a": np.array([1.0, np.nan])}, {"a": np.array([1.0, np.nan])})
    assert not _same(np.array([1, 2]), np.array([1, 3]))
    assert not _same(np.array([1, 2]), np.array([[1, 2]]))
    assert _same(pd.DataFrame({"a": [1, None]}), pd.DataFrame({"a": [1, None]}))
    assert not _same(pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [2]}))
    assert not _same(pd.DataFrame({"a": [1]}), [1])
    assert not _same([1], None)
