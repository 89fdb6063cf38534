"""The shop in PostgreSQL: one template database that lessons copy."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import URL, Table
from sqlalchemy.dialects.postgresql import dialect as PostgresDialect
from sqlalchemy.schema import AddConstraint, CreateColumn, CreateIndex

from workshop.progress import bar
from workshop.servers.postgres_server import connect, connect_common, drop_database
from workshop.shop import DATABASE, WITH_BIOGRAPHIES
from workshop.shop.files import (
    CUSTOMERS_WITH_BIOGRAPHIES,
    TABLES,
    Advance,
    DataError,
    check_files,
    check_scale,
    copy_columns,
    read_manifest,
    table_stream,
    version_of_data,
)
from workshop.shop.models import STORE_BIO_OUT_OF_LINE, Base
from workshop.state import WorkshopError

_LOCK = 0x776F726B  # "work" in ASCII: the first half of the advisory lock that seeders take in turn
SWAP_DEADLINE_S = 30.0


def _table(name: str) -> Table:
    return Base.metadata.tables[name]


def _ddl(element: Any) -> str:
    return str(element.compile(dialect=PostgresDialect()))


def create_bare_table(cursor: psycopg.Cursor, table: str) -> None:
    """CREATE TABLE as in models.py, yet without primary key, foreign keys and indexes: they come after the
    rows.
    """
    columns = ", ".join(_ddl(CreateColumn(column)) for column in _table(table).columns)
    # Autovacuum would come at moments of its own choice, in the middle of a lesson's measurement.
    toast = ", toast.autovacuum_enabled = false" if table == "customers" else ""
    cursor.execute(f"CREATE TABLE {table} ({columns}) WITH (autovacuum_enabled = false{toast})")
    if table == "customers":
        cursor.execute(_ddl(STORE_BIO_OUT_OF_LINE))


def copy_statement(table: str, options: str = "") -> sql.Composed:
    """`COPY table (columns) FROM STDIN` for table_stream()."""
    return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv, HEADER{})").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, copy_columns(table))), sql.SQL(options)
    )


def copy_table(cursor: psycopg.Cursor, table: str, blocks: Iterable[bytes], advance: Advance) -> int:
    """COPY the blocks into `table`, made in the same transaction; the number of rows.

    FREEZE writes the rows as if VACUUM had been there: no second pass over the pages, and index-only scans at
    once.
    """
    lines = 0
    with cursor.copy(copy_statement(table, ", FREEZE")) as copy:
        for block in blocks:
            copy.write(block)
            count = block.count(b"\n")
            lines += count
            advance(count)
    if cursor.rowcount != lines - 1:
        raise DataError(
            f"{table} holds {cursor.rowcount:,} rows, expected {lines - 1:,}: run `python -m workshop "
            "reset` to load it again"
        )
    return lines - 1


def _load_postgres(
    connection: psycopg.Connection,
    scale: float,
    manifest: dict[str, Any],
    biographies: bool,
    found: dict[str, int],
    keep: Callable[[], None],
) -> None:
    """Make and fill the tables that `found` does not have yet: rows per table; `keep` is called after each.

    Memory does not grow with the scale: rows are made block by block.
    """
    total = sum(manifest["tables"][table]["rows"] for table in TABLES) * scale
    cursor = connection.cursor()
    # The rename at the end is committed synchronously and so makes everything before it durable.
    for setting in (
        "synchronous_commit = off",
        "maintenance_work_mem = '256MB'",
        "client_min_messages = warning",
    ):
        cursor.execute(f"SET {setting}")
    with bar("PostgreSQL", total, unit=" rows") as loaded:
        for table in TABLES:
            if table in found:  # by a seeder that was stopped
                loaded.update(found[table])
                continue
            with connection.transaction():
                create_bare_table(cursor, table)
                stream = CUSTOMERS_WITH_BIOGRAPHIES if biographies and table == "customers" else table
                found[table] = copy_table(cursor, table, table_stream(stream, scale), loaded.update)
                keep()
        loaded.set_description("PostgreSQL, indexes")
        with connection.transaction():
            _add_keys_and_indexes(cursor)
        cursor.execute(f"VACUUM (ANALYZE) {', '.join(TABLES)}")


def _add_keys_and_indexes(cursor: psycopg.Cursor) -> None:
    """All that models.py asks for beyond the columns, unless a seeder that was stopped has come so far."""
    if cursor.execute("SELECT FROM pg_constraint WHERE contype = 'f'").fetchone() is not None:
        return
    for table in map(_table, TABLES):
        cursor.execute(_ddl(AddConstraint(table.primary_key, isolate_from_table=False)))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            cursor.execute(_ddl(CreateIndex(index)))
    for table in map(_table, TABLES):
        for key in sorted(table.foreign_key_constraints, key=lambda key: str(key.name)):
            cursor.execute(_ddl(AddConstraint(key, isolate_from_table=False)))
    for table in ("customers", "products", "orders"):  # their ids came with the rows
        cursor.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))")


def seeded_postgres(url: URL, database: str = DATABASE) -> dict[str, Any] | None:
    """What `database` was seeded with: scale and rows per table; None when it is not there or not ours.

    One query; `url` is of any database of the server.
    """
    with connect(url) as connection:
        return _seeded(connection, database)


def _comment(connection: psycopg.Connection, database: str) -> tuple[bool, dict[str, Any]]:
    """Whether the database is there, and the record in its comment ({} when that is not the workbook's)."""
    query = "SELECT shobj_description(oid, 'pg_database'), datconnlimit FROM pg_database WHERE datname = %s"
    row = connection.execute(query, [database]).fetchone()
    try:
        record = json.loads(row[0]) if row and row[0] else {}
    except ValueError:
        record = {}
    record = record if isinstance(record, dict) and "workshop" in record else {}
    if record and row[1] == -2:  # so PostgreSQL marks one whose DROP was cut short: nothing else can be done with it
        record = {"workshop": "half dropped"}
    return row is not None, record


def _seeded(connection: psycopg.Connection, database: str) -> dict[str, Any] | None:
    _, record = _comment(connection, database)
    return record if record.get("workshop") == "shop" else None


def _is_ours(connection: psycopg.Connection, database: str) -> bool:
    """Whether `database` is there. Raises DataError when the workbook did not make it."""
    exists, record = _comment(connection, database)
    if exists and not record:
        raise DataError(
            f"the PostgreSQL database {database} was not made by the workbook: expected its mark in the "
            "database's comment, "
            "found none; rename that database or drop it, then run `python -m workshop reset`"
        )
    return exists


def _drop_ours(connection: psycopg.Connection, database: str) -> None:
    """Drop `database` if it is there. Raises DataError when the workbook did not make it."""
    if _is_ours(connection, database):
        drop_database(connection, database)


def _drop_if_empty(url: URL, admin: psycopg.Connection, database: str) -> bool:
    """Drop a database without mark and without tables: its seeder was killed before it could mark it."""
    exists, record = _comment(admin, database)
    if not exists or record:
        return False
    with connect(url, database) as connection:
        if connection.execute("SELECT count(*) FROM pg_stat_user_tables").fetchone() != (0,):
            return False
    drop_database(admin, database)
    return True


def _set_comment(connection: psycopg.Connection, database: str, record: dict[str, Any]) -> None:
    text = sql.Literal(json.dumps(record))
    connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(database), text))


def seed_postgres(
    url: URL, scale: float = 1.0, *, database: str | None = None, biographies: bool = False, anew: bool = False
) -> dict[str, int]:
    """Make the shop's template database, or leave it when it is there at this scale and not wanted `anew`; its rows.

    `url` is of another database of the server, by a role that may create databases; it need not be a superuser. The
    shop is loaded as `<database>_loading` and renamed in the last step; on any error that one is dropped, and a shop
    that was there before stays as it was. When the seeder itself is stopped, the tables that it has filled stay, and
    the next one goes on behind them. The result is a template: nobody connects to it, so it can be copied at any time,
    and copies that are open outlive it. Of several seeders on one server one works and the others wait for it.

    `biographies` fills customers.bio, which makes a copy 450 MB in place of 160; that shop is a database of its own.

    Raises DataError (files), ValueError (scale) and psycopg.Error (server).
    """
    check_scale(scale)
    database = database or (WITH_BIOGRAPHIES if biographies else DATABASE)
    manifest = read_manifest()
    # Advisory locks hold within one database, and URLs may name different ones: so the lock is in the common one.
    with connect(url) as admin, connect_common(url) as turn:

        def rows_if_done() -> dict[str, int] | None:
            record = _seeded(admin, database)
            done = record and record["scale"] == scale and record["version"] == version_of_data(manifest)
            return record["rows"] if done else None

        if not anew and (rows := rows_if_done()):
            return rows
        _is_ours(admin, database)  # said now, and not after a long load
        check_files()
        turn.execute("SET lock_timeout = '30min'")
        turn.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", [_LOCK, database])  # freed with the connection
        if not anew and (rows := rows_if_done()):
            return rows
        loading = f"{database}_loading"
        name = sql.Identifier(loading)
        begun = {"workshop": "loading", "scale": scale, "version": version_of_data(manifest), "filled": {}}
        left = _comment(admin, loading)[1]
        if begun == {**left, "filled": {}}:
            begun = left
        else:
            if not _drop_if_empty(url, admin, loading):
                _drop_ours(admin, loading)
            admin.execute(
                # C order is the same on every system and version, so plans and sorted results are too.
                sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER libc LOCALE 'C'").format(
                    name
                )
            )
        found = begun["filled"]
        try:
            with connect(url, loading) as connection:

                def keep() -> None:
                    _set_comment(connection, loading, begun)

                keep()
                _load_postgres(connection, scale, manifest, biographies, found, keep)
            rows = {table: found[table] for table in TABLES}
            record = {"workshop": "shop", "scale": scale, "version": version_of_data(manifest), "rows": rows}
            _set_comment(admin, loading, record)
            admin.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE true ALLOW_CONNECTIONS false").format(name))
            _swap(admin, loading, database)
        except Exception:
            if not admin.closed and not admin.broken:
                # Ours for certain, whatever its comment says by now.
                drop_database(admin, loading)
            raise
        return rows


def _swap(admin: psycopg.Connection, loading: str, database: str) -> None:
    """Give `loading`, into which nobody is let any more, the name `database`, in place of the one that had it."""
    give_up = time.monotonic() + SWAP_DEADLINE_S
    # A session that is still in it would keep it from its name, when the earlier one is gone already.
    while left := admin.execute("SELECT pid FROM pg_stat_activity WHERE datname = %s", [loading]).fetchone():
        if time.monotonic() > give_up:
            raise WorkshopError(
                f"expected nobody in the PostgreSQL database {loading}, found a session (pid {left[0]}) that stays: "
                "end it, then run the command again"
            )
        time.sleep(0.1)
    _drop_ours(admin, database)
    admin.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(loading), sql.Identifier(database)))
