"""Plans as facts, on a table small enough to be quick and large enough for an index."""

from __future__ import annotations

import datetime
from decimal import Decimal

import psycopg
import pytest
from sqlalchemy import URL, Date, Engine, NullPool, Numeric, String, create_engine, func, insert, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from workshop.plan import explain
from workshop.servers.postgres_server import dsn

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


def vacuum(url: URL) -> None:
    with psycopg.connect(dsn(url), autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE sale")


def tuned(url: URL, **settings: object) -> Engine:
    """An engine whose sessions have these settings."""
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return create_engine(url, poolclass=NullPool, connect_args={"options": options})


@pytest.fixture(scope="module")
def engine(scratch_of_module):
    """5,000 sales, ten a day."""
    engine = create_engine(scratch_of_module, poolclass=NullPool)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO sale (email, day, price, note)"
                " SELECT 'c' || i || '@x.example', DATE '2024-01-01' + i / 10, i, repeat('n', 100)"
                " FROM generate_series(0, 4999) AS i"
            )
        )
    vacuum(scratch_of_module)
    return engine


def test_sequential_scan(engine):
    plan = explain(engine, select(Sale).where(Sale.note == "x"))
    assert [node.node_type for node in plan.nodes] == ["Seq Scan"]
    assert (plan.rows, plan.rows_removed, plan.index_cond, plan.heap_fetches) == (0, 5000, None, None)
    assert plan.index_names == []
    assert plan.buffers > 50


def test_index_scan(engine):
    plan = explain(engine, select(Sale).where(Sale.email == "c7@x.example"))
    assert plan.nodes[0].label == "Index Scan using ix_sale_email on sale"
    assert plan.index_names == ["ix_sale_email"]
    assert plan.index_cond == "((email)::text = 'c7@x.example'::text)"
    assert (plan.rows, plan.rows_removed) == (1, 0)
    assert 0 < plan.buffers < 10


def test_an_index_only_scan_without_a_condition_is_told_apart(engine):
    vacuum(engine.url)
    no_seqscan = tuned(engine.url, enable_seqscan="off")
    plan = explain(no_seqscan, select(Sale.email).where(Sale.email.ilike("%7@x.example")))
    assert plan.nodes[0].node_type == "Index Only Scan"
    assert (plan.index_cond, plan.rows, plan.rows_removed, plan.heap_fetches) == (None, 500, 4500, 0)


def test_heap_fetches_before_and_after_vacuum(engine):
    lookup = select(Sale.email).where(Sale.email.between("c1", "c2"))
    index_only = tuned(engine.url, enable_bitmapscan="off", enable_seqscan="off")
    vacuum(engine.url)
    assert explain(index_only, lookup).heap_fetches == 0
    with engine.begin() as connection:  # new versions of the rows, equal to the old
        connection.execute(update(Sale).where(Sale.id % 10 == 0).values(note=Sale.note))
    assert explain(index_only, lookup).heap_fetches > 0
    vacuum(engine.url)
    assert explain(index_only, lookup).heap_fetches == 0


def test_parameters_dates_and_in_lists(engine):
    day = DAY + datetime.timedelta(days=3)
    plan = explain(engine, select(Sale).where(Sale.day == day, Sale.id.in_([31, 32, 33, 999])))
    assert (plan.rows, plan.rows_removed) == (3, 1)
    assert "'{31,32,33,999}'::integer[]" in plan.index_cond
    assert explain(engine, text("SELECT * FROM sale WHERE day = :day").bindparams(day=day)).rows == 10
    assert explain(engine, "SELECT * FROM sale WHERE note LIKE '%n%'").rows == 5000


def test_the_plan_is_for_these_parameters_whatever_the_plan_cache_mode(engine):
    generic = tuned(engine.url, plan_cache_mode="force_generic_plan")
    plan = explain(generic, select(Sale).where(Sale.email == "c1@x.example"))
    assert "'c1@x.example'" in plan.index_cond


def test_writes_leave_nothing(engine):
    def stored() -> tuple[int, int]:
        with engine.connect() as look:
            return tuple(look.execute(select(func.count(), func.sum(Sale.price))).one())

    before = stored()
    plan = explain(engine, update(Sale).where(Sale.id <= 7).values(price=0))
    assert [(node.node_type, node.rows) for node in plan.nodes[:2]] == [("ModifyTable", 0), ("Index Scan", 7)]
    explain(engine, insert(Sale).values(email="e", day=DAY, price=1, note="n"))
    explain(engine, "DELETE FROM sale")
    assert stored() == before


def test_loops_and_table(engine):
    loops = tuned(engine.url, enable_hashjoin="off", enable_mergejoin="off", enable_memoize="off")
    plan = explain(
        loops,
        "SELECT b.note FROM generate_series(1, 20) AS a(i) JOIN sale AS b ON b.id = a.i + 1 WHERE b.note = 'x'",
    )
    assert repr(plan.table("rows", "removed")) == (
        "node                                   rows  removed\n"
        "Nested Loop                               0        0\n"
        "-> Function Scan on generate_series      20        0\n"
        "-> Index Scan using sale_pkey on sale     0       20"
    )
    assert plan.rows_removed == 20
    assert plan.table().headings == ("node", "index cond", "rows", "removed", "buffers", "heap fetches")
    for unstable in ("cost", "time", "ms"):
        assert unstable not in repr(plan)
    with pytest.raises(ValueError, match="expected columns among"):
        plan.table("cost")


def test_parallel_plans_are_totals(engine):
    workers = 2
    parallel = tuned(
        engine.url,
        max_parallel_workers_per_gather=workers,
        parallel_setup_cost=0,
        parallel_tuple_cost=0,
        min_parallel_table_scan_size=0,
    )
    plan = explain(parallel, select(func.count()).select_from(Sale).where(Sale.id % 2 == 0))
    assert "Gather" in [node.node_type for node in plan.nodes]
    assert abs(plan.nodes[-1].rows - 2500) <= workers + 1
    assert abs(plan.rows_removed - 2500) <= workers + 1


def test_html_is_escaped(engine):
    plan = explain(engine, select(Sale).where(Sale.email == "<script>"))
    assert "<script>" not in plan._repr_html_()
    assert "&lt;script&gt;" in plan._repr_html_()
