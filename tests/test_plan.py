"""Plans as facts, on a table small enough to be quick and large enough for an index."""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Iterator
from decimal import Decimal

import psycopg
import pytest
from sqlalchemy import URL, Date, NullPool, Numeric, String, create_engine, func, insert, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from workshop.plan import Plan, explain

DAY = datetime.date(2024, 1, 1)


class Base(DeclarativeBase):
    pass


class Sale(Base):
    __tablename__ = "sale"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String, index=True)
    day: Mapped[datetime.date] = mapped_column(Date)
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    note: Mapped[str] = mapped_column(String)


def dsn(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def vacuum(url: URL) -> None:
    with psycopg.connect(dsn(url), autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE sale")


@pytest.fixture(scope="module")
def scratch(servers) -> Iterator[URL]:
    """One database for the module: explain() leaves nothing behind, and the tests that write say what."""
    name = f"workshop_test_{secrets.token_hex(4)}"
    with psycopg.connect(dsn(servers.postgres), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield servers.postgres.set(database=name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def engine(scratch):
    """5,000 sales, ten a day."""
    engine = create_engine(scratch, poolclass=NullPool)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO sale (email, day, price, note)"
                " SELECT 'c' || i || '@x.example', DATE '2024-01-01' + i / 10, i, repeat('n', 100)"
                " FROM generate_series(0, 4999) AS i"
            )
        )
    vacuum(scratch)
    return engine


def test_sequential_scan(engine):
    plan = explain(engine, select(Sale).where(Sale.note == "x"))
    assert plan.node == "Seq Scan"
    assert (plan.rows, plan.rows_removed, plan.index_cond, plan.heap_fetches) == (0, 5000, None, None)
    assert plan.index_names == []
    assert plan.buffers > 50
    assert plan.execution_ms > 0


def test_index_scan(engine):
    plan = explain(engine, select(Sale).where(Sale.email == "c7@x.example"))
    assert plan.node == "Index Scan"
    assert plan.uses("ix_sale_email") and not plan.uses("sale_pkey")
    assert plan.index_cond == "((email)::text = 'c7@x.example'::text)"
    assert (plan.rows, plan.rows_removed) == (1, 0)
    assert 0 < plan.buffers < 10
    assert plan.facts() == {
        "node": "Index Scan",
        "index": "ix_sale_email",
        "index_cond": "((email)::text = 'c7@x.example'::text)",
        "rows": 1,
        "rows_removed": 0,
        "buffers": plan.buffers,
        "heap_fetches": None,
    }


def test_an_index_only_scan_without_a_condition_is_told_apart(engine, scratch):
    statement = (
        text("SET LOCAL enable_seqscan = off"),
        select(Sale.email).where(Sale.email.ilike("%7@x.example")),
    )
    vacuum(scratch)
    with engine.connect() as connection:
        connection.execute(statement[0])
        plan = explain(connection, statement[1])
    assert plan.node == "Index Only Scan"
    assert (plan.index_cond, plan.rows, plan.rows_removed, plan.heap_fetches) == (None, 500, 4500, 0)


def test_heap_fetches_before_and_after_vacuum(engine, scratch):
    lookup = select(Sale.email).where(Sale.email.between("c1", "c2"))

    def heap_fetches() -> int | None:
        with engine.connect() as connection:
            connection.execute(text("SET LOCAL enable_bitmapscan = off; SET LOCAL enable_seqscan = off"))
            return explain(connection, lookup).heap_fetches

    vacuum(scratch)
    assert heap_fetches() == 0
    with engine.begin() as connection:  # new versions of the rows, equal to the old
        connection.execute(update(Sale).where(Sale.id % 10 == 0).values(note=Sale.note))
    assert heap_fetches() > 0
    vacuum(scratch)
    assert heap_fetches() == 0


def test_parameters_dates_and_in_lists(engine):
    day = DAY + datetime.timedelta(days=3)
    plan = explain(engine, select(Sale).where(Sale.day == day, Sale.id.in_([31, 32, 33, 999])))
    assert plan.rows == 3
    assert plan.rows_removed == 1
    assert "'2024-01-04'::date" in (plan.nodes[0].filter or "")
    assert "'{31,32,33,999}'::integer[]" in plan.index_cond
    named = "SELECT * FROM sale WHERE day = :day AND note LIKE '%n%'"
    assert explain(engine, named, {"day": day}).rows == 10
    assert explain(engine, text(named), {"day": day}).rows == 10
    assert explain(engine, "SELECT * FROM sale WHERE day = %s AND price < %s", [day, Decimal("33.00")]).rows == 3
    assert explain(engine, "SELECT * FROM sale WHERE day = %(day)s", {"day": day}).rows == 10
    assert explain(engine, "SELECT * FROM sale WHERE note LIKE '%n%'").rows == 5000


def test_the_plan_is_for_these_parameters_however_often_it_is_asked(engine):
    with engine.connect() as connection:
        connection.execute(text("SET plan_cache_mode = force_generic_plan"))
        for i in range(8):  # more than psycopg's threshold for a prepared statement
            plan = explain(connection, select(Sale).where(Sale.email == f"c{i}@x.example"))
            assert f"'c{i}@x.example'" in plan.index_cond


@pytest.mark.parametrize("level", [None, "AUTOCOMMIT"])
def test_writes_leave_nothing(engine, level):
    if level:
        engine = engine.execution_options(isolation_level=level)
    with engine.connect() as look:

        def count() -> tuple[int, int]:
            result = tuple(look.execute(select(func.count(), func.sum(Sale.price))).one())
            look.rollback()
            return result

        before = count()
        plan = explain(engine, update(Sale).where(Sale.id <= 7).values(price=0))
        assert plan.rows == 7
        assert plan.nodes[0].node_type == "ModifyTable"
        explain(engine, insert(Sale), {"email": "e", "day": DAY, "price": 1, "note": "n"})
        explain(engine, "DELETE FROM sale")
        with engine.connect() as connection:
            explain(connection, "DELETE FROM sale")
            assert not connection.in_transaction()
            connection.commit()
        assert count() == before


def test_a_transaction_goes_on(engine):
    with engine.connect() as connection:
        connection.execute(update(Sale).where(Sale.id == 1).values(note="mine"))
        assert explain(connection, "DELETE FROM sale WHERE note = 'mine'").rows == 1
        assert connection.in_transaction()
        connection.commit()
        assert connection.scalar(select(Sale.note).where(Sale.id == 1)) == "mine"
    with Session(engine) as session:
        session.execute(update(Sale).where(Sale.id == 2).values(note="also mine"))
        assert explain(session, select(Sale).where(Sale.note == "also mine")).rows == 1
        session.commit()
        explain(session, select(Sale))
        assert not session.in_transaction()
    with engine.connect() as connection:
        assert connection.scalar(select(Sale.note).where(Sale.id == 2)) == "also mine"


def test_loops_and_table(engine):
    with engine.connect() as connection:
        connection.execute(
            text("SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_memoize = off")
        )
        plan = explain(
            connection,
            "SELECT b.note FROM generate_series(1, 20) AS a(i) JOIN sale AS b ON b.id = a.i + 1 WHERE b.note <> 'x'",
        )
    inner = plan.nodes[-1]
    assert (inner.node_type, inner.loops, inner.rows, inner.depth) == ("Index Scan", 20, 20, 1)
    assert plan.node == "Function Scan, Index Scan"
    assert repr(plan.table("rows", "loops")) == (
        "node                                   rows  loops\n"
        "Nested Loop                              20      1\n"
        "-> Function Scan on generate_series      20      1\n"
        "-> Index Scan using sale_pkey on sale    20     20"
    )
    for unstable in ("cost", "time", "ms"):
        assert unstable not in repr(plan)
    with pytest.raises(ValueError, match="expected columns among"):
        plan.table("cost")


def test_parallel_plans_are_totals(engine):
    with engine.connect() as connection:
        for setting in (
            "max_parallel_workers_per_gather = 2",
            "parallel_setup_cost = 0",
            "parallel_tuple_cost = 0",
            "min_parallel_table_scan_size = 0",
        ):
            connection.execute(text(f"SET LOCAL {setting}"))
        plan = explain(connection, select(func.count()).select_from(Sale).where(Sale.id % 2 == 0))
    scan = plan.nodes[-1]
    assert scan.loops > 1
    assert abs(scan.rows - 2500) <= scan.loops
    assert abs(plan.rows_removed - 2500) <= scan.loops


def test_html_is_escaped(engine):
    plan = explain(engine, select(Sale).where(Sale.note == "<script>"))
    assert "<script>" not in plan._repr_html_()
    assert "&lt;script&gt;" in plan._repr_html_()


def test_serialize(engine):
    plan = explain(engine, select(Sale.note).limit(100), serialize=True)
    with engine.connect() as connection:
        new_enough = connection.dialect.server_version_info >= (17,)
    if new_enough:
        assert 10_000 < plan.serialized_bytes < 15_000
    else:
        assert plan.serialized_bytes is None
        assert "needs PostgreSQL 17" in repr(plan)
    assert explain(engine, select(Sale.note).limit(100)).serialized_bytes is None


def test_errors(engine):
    with pytest.raises(ValueError, match="one set of parameters"):
        explain(engine, insert(Sale), [{"email": "a"}, {"email": "b"}])
    with pytest.raises(TypeError, match="expected an Engine"):
        explain("postgresql://", "SELECT 1")
    assert isinstance(explain(engine, "SELECT 1"), Plan)
