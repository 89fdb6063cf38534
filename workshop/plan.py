"""EXPLAIN as facts: what PostgreSQL did for a statement, in numbers that do not depend on time.

    plan = explain(engine, select(Customer).where(Customer.email == "a@b.example"))
    plan                    # the plan's nodes as a table
    plan.index_cond         # "(email = 'a@b.example'::text)"
    plan.rows_removed, plan.buffers, plan.heap_fetches

The statement runs, with its real parameters, in a transaction that is rolled back. So the plan is the one for
these parameters (PostgreSQL plans an EXPLAIN anew each time, whatever plan_cache_mode says), and writes leave
nothing behind but used-up sequence numbers, dead rows and WAL. Times and costs are left out of the table;
`execution_ms` has the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, Executable, event, text
from sqlalchemy.orm import Session

from workshop.table import Table, shorten

Parameters = Mapping[str, Any] | Sequence[Any] | None


@dataclass(frozen=True)
class Node:
    """One node of a plan. Counts are totals over all loops and parallel workers; None where the node has no
    such fact.

    `rows` that the node gave to its parent. PostgreSQL reports averages per loop, so `rows` and the
    removed rows of a node with many loops or workers are rounded. `buffers` are blocks of 8 kB found in or
    read into shared buffers, children included. `rows_removed` by the filter, `recheck_removed` by
    rechecking a bitmap's lossy pages or a lossy index, `join_removed` by a join's further condition.
    `condition` joins whatever the node has besides index_cond and filter.
    """

    depth: int
    node_type: str
    relation: str | None
    index_name: str | None
    index_cond: str | None
    filter: str | None
    condition: str | None
    rows: int
    rows_removed: int
    recheck_removed: int
    join_removed: int
    loops: int
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


class Plan:
    """What EXPLAIN (ANALYZE, BUFFERS) found, made by `explain`.

    node: type of the scan; several, in the plan's order, are joined by ", ". A bitmap scan counts as
        "Bitmap Heap Scan".
    nodes: every node from the top down, as `Node`.
    rows: that the statement returned, or wrote if it returns none.
    rows_removed: read and thrown away, over all nodes, by filters, rechecks and join conditions.
    buffers: blocks of 8 kB, found in or read into shared buffers.
    index_names, index_cond: of the scans, in order; `index_cond` is None if no index narrowed the search.
    heap_fetches: rows that index-only scans had to look up in the table; None without an index-only scan.
    execution_ms: milliseconds, planning and sending not included.
    serialized_bytes: size of the result as sent to the client, in steps of 1,024 bytes.
    serialized_buffers: blocks read for that, mostly values stored out of line. Both are None unless asked for
        by `serialize=True` on PostgreSQL 17 or newer.
    raw: EXPLAIN's own JSON.
    """

    def __init__(self, raw: Mapping[str, Any], note: str | None = None) -> None:
        self.raw = raw
        self.note = note
        self.nodes: list[Node] = list(_nodes(raw["Plan"]))
        self.execution_ms: float = raw["Execution Time"]
        serialization = raw.get("Serialization")
        self.serialized_bytes: int | None = serialization and serialization["Output Volume"] * 1024
        self.serialized_buffers: int | None = serialization and _buffers(serialization)

    @property
    def node(self) -> str:
        scans = [n.node_type for n in self.nodes if "Scan" in n.node_type and n.node_type != "Bitmap Index Scan"]
        return ", ".join(dict.fromkeys(scans)) or self.nodes[0].node_type

    @property
    def index_names(self) -> list[str]:
        return list(dict.fromkeys(n.index_name for n in self.nodes if n.index_name))

    def uses(self, index_name: str) -> bool:
        """Whether a scan went through this index. That alone does not mean that the index narrowed it: see
        index_cond."""
        return index_name in self.index_names

    @property
    def index_cond(self) -> str | None:
        return "; ".join(n.index_cond for n in self.nodes if n.index_cond) or None

    @property
    def rows(self) -> int:
        top = self.nodes[0]
        if top.node_type == "ModifyTable" and not top.rows and len(self.nodes) > 1:
            return next(n.rows for n in self.nodes if n.depth == 1)
        return top.rows

    @property
    def rows_removed(self) -> int:
        return sum(n.rows_removed + n.recheck_removed + n.join_removed for n in self.nodes)

    @property
    def buffers(self) -> int:
        return self.nodes[0].buffers

    @property
    def heap_fetches(self) -> int | None:
        found = [n.heap_fetches for n in self.nodes if n.heap_fetches is not None]
        return sum(found) if found else None

    def facts(self) -> dict[str, Any]:
        """The plan in brief, without times."""
        return {
            "node": self.node,
            "index": ", ".join(self.index_names) or None,
            "index_cond": self.index_cond,
            "rows": self.rows,
            "rows_removed": self.rows_removed,
            "buffers": self.buffers,
            "heap_fetches": self.heap_fetches,
        }

    def table(self, *columns: str) -> Table:
        """The nodes as a table; `columns` chooses among index_cond, filter, condition, rows, removed,
        loops, buffers, heap_fetches, for instance to leave out buffers, which may differ by a few between
        versions of PostgreSQL. By default: every column in which some node has something to say.
        """
        known = {
            "index_cond": [n.index_cond for n in self.nodes],
            "filter": [n.filter for n in self.nodes],
            "condition": [n.condition for n in self.nodes],
            "rows": [n.rows for n in self.nodes],
            "removed": [n.rows_removed + n.recheck_removed + n.join_removed for n in self.nodes],
            "loops": [n.loops for n in self.nodes],
            "buffers": [n.buffers for n in self.nodes],
            "heap_fetches": [n.heap_fetches for n in self.nodes],
        }
        if unknown := [c for c in columns if c not in known]:
            raise ValueError(f"expected columns among {', '.join(known)}; found {', '.join(unknown)}")
        optional = {"index_cond", "filter", "condition", "heap_fetches"}
        shown = columns or [c for c, values in known.items() if c not in optional or any(v is not None for v in values)]
        labels = ["   " * (n.depth - 1) + "-> " * (n.depth > 0) + n.label for n in self.nodes]
        cells = [[shorten(v, 200) if isinstance(v, str) else v for v in known[c]] for c in shown]
        headings = ("node", *(c.replace("_", " ") for c in shown))
        return Table(headings, list(zip(labels, *cells, strict=True)), [self.note] if self.note else [])

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _buffers(node: Mapping[str, Any]) -> int:
    return node.get("Shared Hit Blocks", 0) + node.get("Shared Read Blocks", 0)


_CONDITIONS = (
    "Hash Cond",
    "Merge Cond",
    "Join Filter",
    "Recheck Cond",
    "TID Cond",
    "Order By",
    "One-Time Filter",
)


def _nodes(plan: Mapping[str, Any], depth: int = 0) -> Iterator[Node]:
    loops = plan["Actual Loops"]

    def total(name: str) -> int:
        return round(plan.get(name, 0) * loops)

    # a recheck that repeats the bitmap's own index condition says nothing new
    below = [child.get("Index Cond") for child in plan.get("Plans", ())]
    conditions = [plan[c] for c in _CONDITIONS if c in plan and not (c == "Recheck Cond" and plan[c] in below)]
    yield Node(
        depth=depth,
        node_type=plan["Node Type"],
        relation=plan.get("Relation Name") or plan.get("CTE Name") or plan.get("Function Name"),
        index_name=plan.get("Index Name"),
        index_cond=plan.get("Index Cond"),
        filter=plan.get("Filter"),
        condition=" and ".join(conditions) or None,
        rows=total("Actual Rows"),
        rows_removed=total("Rows Removed by Filter"),
        recheck_removed=total("Rows Removed by Index Recheck"),
        join_removed=total("Rows Removed by Join Filter"),
        loops=loops,
        buffers=_buffers(plan),
        heap_fetches=plan.get("Heap Fetches"),
    )
    for child in plan.get("Plans", ()):
        yield from _nodes(child, depth + 1)


class _Captured(Exception):
    """Stops SQLAlchemy where it would have sent the statement."""


def _as_sent(connection: Connection, statement: Executable | str, params: Parameters) -> tuple[str, Any]:
    """The SQL text and the parameters as SQLAlchemy would give them to psycopg, with types converted and IN
    lists expanded."""
    found: list[tuple[str, Any]] = []

    def capture(_connection, _cursor, sql, parameters, _context, executemany):
        if executemany:
            raise ValueError("expected one set of parameters to explain; found several")
        found.append((sql, parameters))
        raise _Captured

    event.listen(connection, "before_cursor_execute", capture)
    try:
        if isinstance(statement, str) and (not isinstance(params, Mapping) and params):
            connection.exec_driver_sql(statement, tuple(params))
        elif isinstance(statement, str) and params and "%(" in statement:
            connection.exec_driver_sql(statement, params)
        else:
            connection.execute(text(statement) if isinstance(statement, str) else statement, params)
    except _Captured:
        pass
    finally:
        event.remove(connection, "before_cursor_execute", capture)
    if not found:
        raise TypeError(f"expected a statement to explain; SQLAlchemy sent none for {shorten(str(statement))!r}")
    return found[0]


@contextmanager
def _rolled_back(connection: Connection) -> Iterator[None]:
    """Undo what the block does, and leave the connection in the transaction, or in none, as it was."""
    driver = connection.connection.driver_connection
    if driver.autocommit:
        # SQLAlchemy's begin() sends nothing in AUTOCOMMIT, so a write would stay
        nested = driver.info.transaction_status != TransactionStatus.IDLE
        begin, end = ("SAVEPOINT workshop_explain", "ROLLBACK TO workshop_explain") if nested else ("BEGIN", "ROLLBACK")
        was = connection.in_transaction()
        connection.exec_driver_sql(begin)
        try:
            yield
        finally:
            connection.exec_driver_sql(end)
            if not was:
                connection.rollback()
        return
    transaction = connection.begin_nested() if connection.in_transaction() else connection.begin()
    try:
        yield
    finally:
        transaction.rollback()


@contextmanager
def _connection(bind: Connection | Engine | Session, statement: Executable | str) -> Iterator[Connection]:
    if isinstance(bind, Connection):
        yield bind
        return
    if isinstance(bind, Session):
        clause = text(statement) if isinstance(statement, str) else statement
        if bind.in_transaction():
            # what the session has written and not committed must be there; what it has not flushed stays
            # unflushed
            yield bind.connection(bind_arguments={"clause": clause})
            return
        bind = bind.get_bind(clause=clause)
    if isinstance(bind, Connection):
        yield bind
    elif isinstance(bind, Engine):
        with bind.connect() as connection:
            yield connection
    else:
        raise TypeError(f"expected an Engine, a Connection or a Session; found {type(bind).__name__}")


def explain(
    bind: Connection | Engine | Session,
    statement: Executable | str,
    params: Parameters = None,
    *,
    serialize: bool = False,
) -> Plan:
    """Run a statement under EXPLAIN (ANALYZE, BUFFERS) and return its plan; what it writes is rolled back.

    statement: Core or ORM statement, `text()`, or SQL as a string. A string takes `:name` with a mapping,
        or psycopg's own `%s` with a sequence and `%(name)s` with a mapping.
    serialize: also turn the result into what would be sent, which reads values stored out of line (PostgreSQL
        17 or newer; older servers leave `serialized_bytes` None, and the plan's note says so).

    A connection or session in a transaction is left in it: the statement runs inside a savepoint. On a
    connection in which `max_parallel_workers_per_gather` is 0, the plan's text is the same on machines with
    more cores. Source of the facts: https://www.postgresql.org/docs/current/sql-explain.html
    """
    with _connection(bind, statement) as connection:
        autobegun = not connection.in_transaction()
        driver = connection.connection.driver_connection
        can_serialize = driver.info.server_version >= 170000
        note = None
        if serialize and not can_serialize:
            version = driver.info.server_version // 10000
            note = f"serialized_bytes needs PostgreSQL 17 or newer; this server is {version}"
        options = "ANALYZE, BUFFERS, FORMAT JSON" + (", SERIALIZE" if serialize and can_serialize else "")
        try:
            with _rolled_back(connection):
                sql, parameters = _as_sent(connection, statement, params)
                raw = connection.exec_driver_sql(f"EXPLAIN ({options}) {sql}", parameters or None).scalar_one()
        finally:
            if autobegun and connection.in_transaction():
                connection.rollback()
    return Plan(raw[0], note)
