"""EXPLAIN as facts: what PostgreSQL did for a statement, in numbers that do not depend on time.

    plan = explain(engine, select(Customer).where(Customer.email == "a@b.example"))
    plan                    # the plan's nodes as a table
    plan.index_cond         # "(email = 'a@b.example'::text)"
    plan.rows_removed, plan.buffers, plan.heap_fetches

The statement runs, with its real parameters, in a transaction that is rolled back. So the plan is the one for
these parameters (PostgreSQL plans an EXPLAIN anew each time, whatever plan_cache_mode says), and writes leave
nothing behind but used-up sequence numbers, dead rows and WAL. Times and costs are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Executable, event, text

from workshop.table import Shown, Table, shorten


@dataclass(frozen=True)
class Node:
    """One node of a plan. Counts are totals over all loops and parallel workers; None where the node has no
    such fact.

    `rows` that the node gave to its parent, and `removed`, those that it read and threw away by its filter, by
    rechecking a bitmap's lossy pages or a lossy index, or by a join's further condition. PostgreSQL reports
    averages per loop, so both are rounded where a node has many loops or workers. `buffers` are blocks of 8 kB
    found in or read into shared buffers, children included.
    """

    depth: int
    node_type: str
    relation: str | None
    index_name: str | None
    index_cond: str | None
    rows: int
    removed: int
    buffers: int
    heap_fetches: int | None

    @property
    def label(self) -> str:
        """As EXPLAIN writes it: `Index Scan using customer_email on customer`."""
        parts = [self.node_type]
        if self.index_name:
            parts.append(
                f"on {self.index_name}" if self.node_type == "Bitmap Index Scan" else f"using {self.index_name}"
            )
        if self.relation:
            parts.append(f"on {self.relation}")
        return " ".join(parts)


class Plan(Shown):
    """What EXPLAIN (ANALYZE, BUFFERS) found, made by `explain` from EXPLAIN's own JSON.

    nodes: every node from the top down, as `Node`.
    rows: that the statement returned.
    rows_removed: read and thrown away, over all nodes.
    buffers: blocks of 8 kB, found in or read into shared buffers.
    index_names, index_cond: of the scans, in order; `index_cond` is None if no index narrowed the search.
    heap_fetches: rows that index-only scans had to look up in the table; None without an index-only scan.
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.nodes: list[Node] = list(_nodes(raw["Plan"]))

    @property
    def index_names(self) -> list[str]:
        return list(dict.fromkeys(n.index_name for n in self.nodes if n.index_name))

    @property
    def index_cond(self) -> str | None:
        return "; ".join(n.index_cond for n in self.nodes if n.index_cond) or None

    @property
    def rows(self) -> int:
        return self.nodes[0].rows

    @property
    def rows_removed(self) -> int:
        return sum(n.removed for n in self.nodes)

    @property
    def buffers(self) -> int:
        return self.nodes[0].buffers

    @property
    def heap_fetches(self) -> int | None:
        found = [n.heap_fetches for n in self.nodes if n.heap_fetches is not None]
        return sum(found) if found else None

    def table(self, *columns: str) -> Table:
        """The nodes as a table; `columns` chooses among index_cond, rows, removed, buffers, heap_fetches, for
        instance to leave out buffers, which may differ by a few between versions of PostgreSQL. By default all.

        Raises ValueError for a column of another name.
        """
        if unknown := [c for c in columns if c not in COLUMNS]:
            raise ValueError(f"expected columns among {', '.join(COLUMNS)}; found {', '.join(unknown)}")
        shown = columns or COLUMNS
        rows = []
        for n in self.nodes:
            cells = (getattr(n, c) for c in shown)
            label = "   " * (n.depth - 1) + "-> " * (n.depth > 0) + n.label
            rows.append((label, *(shorten(cell, 200) if isinstance(cell, str) else cell for cell in cells)))
        return Table(("node", *(c.replace("_", " ") for c in shown)), rows)


COLUMNS = ("index_cond", "rows", "removed", "buffers", "heap_fetches")
REMOVED = ("Rows Removed by Filter", "Rows Removed by Index Recheck", "Rows Removed by Join Filter")


def _nodes(plan: Mapping[str, Any], depth: int = 0) -> Iterator[Node]:
    loops = plan["Actual Loops"]
    yield Node(
        depth=depth,
        node_type=plan["Node Type"],
        relation=plan.get("Relation Name") or plan.get("CTE Name") or plan.get("Function Name"),
        index_name=plan.get("Index Name"),
        index_cond=plan.get("Index Cond"),
        rows=round(plan["Actual Rows"] * loops),
        removed=sum(round(plan.get(name, 0) * loops) for name in REMOVED),
        buffers=plan.get("Shared Hit Blocks", 0) + plan.get("Shared Read Blocks", 0),
        heap_fetches=plan.get("Heap Fetches"),
    )
    for child in plan.get("Plans", ()):
        yield from _nodes(child, depth + 1)


class _Sent(Exception):
    """Stops SQLAlchemy where it would have sent the statement; `args` are the SQL and its parameters."""


def _as_sent(connection: Connection, statement: Executable) -> tuple[str, Any]:
    """The SQL text and the parameters as SQLAlchemy would give them to psycopg, with types converted and IN
    lists expanded."""

    def stop(_connection, _cursor, sql, parameters, _context, _executemany):
        raise _Sent(sql, parameters)

    event.listen(connection, "before_cursor_execute", stop)
    try:
        connection.execute(statement)
    except _Sent as sent:
        return sent.args
    finally:
        event.remove(connection, "before_cursor_execute", stop)
    raise TypeError(f"expected a statement to explain; SQLAlchemy sent none for {shorten(str(statement))!r}")


def explain(engine: Engine, statement: Executable | str) -> Plan:
    """Run a statement under EXPLAIN (ANALYZE, BUFFERS) and return its plan; what it writes is rolled back.

    statement: Core or ORM statement, `text()`, or SQL as a string. `engine` must not be in AUTOCOMMIT, where a write
    would stay. With `max_parallel_workers_per_gather` of 0 the plan's text is the same on machines with more cores.
    Source of the facts: https://www.postgresql.org/docs/current/sql-explain.html
    """
    with engine.connect() as connection:  # leaving it rolls back
        sql, parameters = _as_sent(connection, text(statement) if isinstance(statement, str) else statement)
        raw = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", parameters or None)
        return Plan(raw.scalar_one()[0])
