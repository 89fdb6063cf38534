"""``python -m workshop bench``: how fast the loader's COPY is, beside PostgreSQL's own ``psql \\copy``."""

from __future__ import annotations

import os
import secrets
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import URL

from workshop.shop import seed
from workshop.state import WorkshopError


def bench_copy(
    url: URL,
    psql: str | Path,
    *,
    tables: Sequence[str] = seed.TABLES,
    pairs: int = 4,
    scale: float = 1.0,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """Load each table by the loader and by ``psql \\copy``, in turn; print a table of rows per second and
    return it.

    Both sides fill the same bare table in one transaction with the same options. The loader starts from the
    shipped files: it expands them, makes the biographies and hashes every byte. psql is given plain files
    that were expanded beforehand. ``pairs`` is even: the order is loader, psql, psql, loader, and so on
    (ABBA), after one discarded pair, so that a drift of the machine falls on both.

    ``url`` is of any database of the server; a database of its own is made and dropped. ``psql`` is the
    program.

    Returns {"tables": {table: {"rows", "loader_seconds", "psql_seconds", "ratio"}}, "ratio"}: seconds are
    lists of raw samples; a ratio is the loader's median speed over psql's, so 1 means equal and more is
    better.

    Raises WorkshopError when psql fails or ``pairs`` is odd.
    """
    if pairs < 2 or pairs % 2:
        raise WorkshopError(f"pairs is {pairs}, expected an even number from 2: ABBA needs as many AB as BA")
    seed.check_files(data_dir)
    database = f"workshop_bench_{secrets.token_hex(4)}"
    name = sql.Identifier(database)
    with seed.connect(url) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(name))
        try:
            found = {}
            with (
                tempfile.TemporaryDirectory(prefix="workshop-bench-") as folder,
                seed.connect(url, database) as work,
            ):
                for table in tables:
                    found[table] = _bench_table(work, Path(psql), Path(folder), table, pairs, scale, data_dir)
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
    medians = {
        side: sum(statistics.median(entry[f"{side}_seconds"]) for entry in found.values())
        for side in ("loader", "psql")
    }
    result = {"tables": found, "ratio": medians["psql"] / medians["loader"]}
    _print(result, medians)
    return result


def _bench_table(
    connection: psycopg.Connection,
    psql: Path,
    folder: Path,
    table: str,
    pairs: int,
    scale: float,
    data_dir: Path | None,
) -> dict[str, Any]:
    path = folder / f"{table}.csv"
    with path.open("wb") as file:
        for block in seed.table_stream(table, scale, data_dir):
            file.write(block)
    cursor = connection.cursor()
    seed.create_bare_table(cursor, table)
    cursor.execute("SET synchronous_commit = off")
    columns = ", ".join(seed.copy_columns(table))
    script = (
        f"SET synchronous_commit = off;\nBEGIN;\nTRUNCATE {table};\n"
        f"\\copy {table} ({columns}) FROM '{path}' WITH (FORMAT csv, HEADER, FREEZE)\nCOMMIT;\n"
    )
    rows = 0

    def loader() -> None:
        nonlocal rows
        with connection.transaction():
            cursor.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(table)))
            rows, _ = seed.copy_table(cursor, table, seed.table_stream(table, scale, data_dir), lambda count: None)

    def native() -> None:
        _psql(psql, connection, script)

    seconds: dict[str, list[float]] = {"loader": [], "psql": []}
    sides: dict[str, Callable[[], None]] = {"loader": loader, "psql": native}
    for number in range(pairs + 1):
        for side in list(sides) if number % 2 else reversed(list(sides)):
            start = time.perf_counter()
            sides[side]()
            if number:  # the first pair warms up
                seconds[side].append(time.perf_counter() - start)
    count = cursor.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))).fetchone()
    if count != (rows,):
        raise WorkshopError(f"{table} holds {count} rows after the bench, expected {rows}: run the bench again")
    cursor.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(table)))
    path.unlink()
    ratio = statistics.median(seconds["psql"]) / statistics.median(seconds["loader"])
    return {
        "rows": rows,
        "loader_seconds": seconds["loader"],
        "psql_seconds": seconds["psql"],
        "ratio": ratio,
    }


def _psql(psql: Path, connection: psycopg.Connection, script: str) -> None:
    """Run ``script`` in psql, connected like ``connection``; the password goes by the environment, unseen in
    ps.
    """
    info = connection.info
    environment = {
        **os.environ,
        "PGHOST": info.host,
        "PGPORT": str(info.port),
        "PGUSER": info.user,
        "PGDATABASE": info.dbname,
        "PGPASSWORD": info.password,
        "PGCLIENTENCODING": "UTF8",
    }
    done = subprocess.run(
        [psql, "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1"],
        input=script,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise WorkshopError(f"psql failed with: {reason}; run `python -m workshop doctor`")


def _print(result: dict[str, Any], medians: dict[str, float]) -> None:
    print(f"{'table':12} {'rows':>10} {'loader rows/s':>14} {'psql rows/s':>14} {'ratio':>6}")
    for table, entry in result["tables"].items():
        loader, native = (entry["rows"] / statistics.median(entry[f"{side}_seconds"]) for side in ("loader", "psql"))
        print(f"{table:12} {entry['rows']:>10,} {loader:>14,.0f} {native:>14,.0f} {entry['ratio']:>6.2f}")
    rows = sum(entry["rows"] for entry in result["tables"].values())
    loader, native = rows / medians["loader"], rows / medians["psql"]
    print(f"{'all':12} {rows:>10,} {loader:>14,.0f} {native:>14,.0f} {result['ratio']:>6.2f}")
