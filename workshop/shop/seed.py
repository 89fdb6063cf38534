"""The shop's rows: from data/ to PostgreSQL and MongoDB.

Nothing is loaded before the SHA-256 of every file has been checked, and what is loaded appears under its name
in the last step: PostgreSQL's database is renamed, MongoDB's collection is renamed. So a store holds the
whole shop or none of it.

The unit of size is the scale: 1 is the data as shipped (100,000 customers), 0.2 its first fifth of customers
with their orders, 10 is ten copies with shifted ids. Streams are made block by block, so memory does not grow
with the scale.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from pymongo import MongoClient, WriteConcern
from pymongo.collection import Collection
from sqlalchemy import URL, Connection, Table
from sqlalchemy.dialects.postgresql import dialect as PostgresDialect
from sqlalchemy.schema import AddConstraint, CreateColumn, CreateIndex
from tqdm import tqdm

from workshop.shop import DATABASE
from workshop.shop.bios import avatars, biographies
from workshop.shop.models import STORE_BIO_OUT_OF_LINE, Base
from workshop.stack.service import Servers, Service
from workshop.state import WorkshopError, lock

DATA = Path(__file__).resolve().parents[2] / "data"
BASE_CUSTOMERS, BASE_ORDERS = 100_000, 300_000
TABLES = ("products", "customers", "orders", "order_items")
PROFILES = "profiles"
FILES = {**{table: f"{table}.csv.gz" for table in TABLES}, PROFILES: "profiles.ndjson.gz"}
SCALES = (0.01, 100)
BLOCK = 1 << 18  # bytes per message to the server
BATCH = 2_000  # documents per insert
BIOS = 128  # customers per turn of the maker of biographies: about one block
_LOCK = 0x776F726B73686F70  # "workshop" in ASCII: the advisory lock that seeders take in turn

Advance = Callable[[int], Any]


class DataError(WorkshopError):
    """The shipped data is not what it should be: one sentence with what was expected, what was found and what
    to run.
    """


def check_scale(scale: float) -> float:
    """``scale`` itself. Raises ValueError when it is not a number from 0.01 to 100."""
    if not SCALES[0] <= scale <= SCALES[1]:  # false for nan too
        raise ValueError(f"the scale is {scale}, expected a number from {SCALES[0]} to {SCALES[1]}: set another scale")
    return float(scale)


# --- the files ------------------------------------------------------------------------------------


def _mend(path: Path) -> str:
    return f"restore it with `git checkout -- data/{path.name}`, then run `python -m workshop reset`"


def read_manifest(data_dir: Path | None = None) -> dict[str, Any]:
    """data/manifest.json: ``files`` and ``tables`` with rows and SHA-256. Raises DataError when it is missing
    or bad.
    """
    path = (data_dir or DATA) / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        wanted = [(manifest["files"][name], ("rows", "bytes", "sha256")) for name in FILES.values()]
        wanted += [(manifest["tables"][name], ("rows", "sha256")) for name in FILES]
        for entry, keys in wanted:
            for key in keys:
                if not isinstance(entry[key], str if key == "sha256" else int):
                    raise TypeError(key)
    except OSError as error:
        reason = error.strerror or "an error"
        raise DataError(f"data/manifest.json cannot be read: expected a file, found: {reason}; {_mend(path)}") from None
    except (ValueError, KeyError, TypeError) as error:
        found = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            "data/manifest.json is damaged: expected JSON with rows and SHA-256 of each file and "
            f"table, found: {found}; "
            f"{_mend(path)}"
        ) from None
    return manifest


def check_files(data_dir: Path | None = None) -> dict[str, Any]:
    """Check size and SHA-256 of every shipped file; the manifest. Raises DataError for the first that
    differs.
    """
    folder = data_dir or DATA
    manifest = read_manifest(folder)
    for name in FILES.values():
        path, expected = folder / name, manifest["files"][name]
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise DataError(
                f"data/{name} is missing: expected {expected['bytes']:,} bytes, found no file; {_mend(path)}"
            ) from None
        except OSError as error:
            raise DataError(
                f"data/{name} cannot be read: expected a file, found: {error.strerror}; {_mend(path)}"
            ) from None
        if len(content) != expected["bytes"]:
            raise DataError(
                f"data/{name} is damaged: expected {expected['bytes']:,} bytes, found {len(content):,}; {_mend(path)}"
            )
        digest = hashlib.sha256(content).hexdigest()
        if digest != expected["sha256"]:
            raise DataError(
                f"data/{name} is damaged: expected SHA-256 {expected['sha256'][:12]}..., found "
                f"{digest[:12]}...; {_mend(path)}"
            )
    return manifest


def _lines(name: str, folder: Path) -> Iterator[bytes]:
    """The expanded lines of a shipped file, the header included."""
    path = folder / FILES[name]
    try:
        with gzip.open(path, "rb") as file:
            yield from file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"data/{path.name} is damaged: expected gzip, found: {error}; {_mend(path)}") from None


def _raw_blocks(name: str, folder: Path) -> Iterator[bytes]:
    """A shipped file expanded, in blocks: no work per row."""
    path = folder / FILES[name]
    try:
        with gzip.open(path, "rb") as file:
            while block := file.read(BLOCK):
                yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"data/{path.name} is damaged: expected gzip, found: {error}; {_mend(path)}") from None


# --- rows at any scale ----------------------------------------------------------------------------


def _copies(scale: float) -> list[tuple[int, int]]:
    """(number of the copy, how many of its customers) for each copy of the shop that the scale asks for."""
    full, rest = divmod(round(check_scale(scale) * BASE_CUSTOMERS), BASE_CUSTOMERS)
    return [(copy, BASE_CUSTOMERS) for copy in range(full)] + ([(full, rest)] if rest else [])


def _blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join small pieces to blocks of about BLOCK bytes."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= BLOCK:
            yield b"".join(waiting)
            waiting.clear()
            size = 0
    if waiting:
        yield b"".join(waiting)


def _customers(copy: int, limit: int, folder: Path) -> Iterator[bytes]:
    """Customers of a copy with avatar and biography, as CSV; each piece holds BIOS rows or fewer."""
    lines = islice(_lines("customers", folder), 1, limit + 1)
    while batch := list(islice(lines, BIOS)):
        rows = [line[:-1].split(b",", 3) for line in batch]
        ids = [int(row[0]) + copy * BASE_CUSTOMERS for row in rows]
        made = zip(ids, rows, avatars(ids), biographies(ids, [row[1] for row in rows]), strict=True)
        if copy:
            plus = b"+%d@" % copy
            yield b"".join(
                b'%d,%s,%s,%s,%s,"%s"\n' % (i, name, email.replace(b"@", plus, 1), rest, avatar, bio)
                for i, (_, name, email, rest), avatar, bio in made
            )
        else:
            yield b"".join(
                b'%s,%s,"%s"\n' % (line[:-1], avatar, bio)
                for line, (_, _, avatar, bio) in zip(batch, made, strict=True)
            )


def _orders(copy: int, limit: int, folder: Path) -> Iterator[bytes]:
    order_shift, customer_shift = copy * BASE_ORDERS, copy * BASE_CUSTOMERS
    for line in islice(_lines("orders", folder), 1, None):
        order, customer, rest = line.split(b",", 2)
        number = int(customer)
        if number <= limit:
            yield b"%d,%d,%s" % (int(order) + order_shift, number + customer_shift, rest)


def _kept_orders(limit: int, folder: Path) -> bytearray:
    """1 at the number of each order of the first ``limit`` customers; shape (BASE_ORDERS + 1,)."""
    kept = bytearray(BASE_ORDERS + 1)
    for line in islice(_lines("orders", folder), 1, None):
        order, customer, _ = line.split(b",", 2)
        if int(customer) <= limit:
            kept[int(order)] = 1
    return kept


def _order_items(copy: int, limit: int, folder: Path) -> Iterator[bytes]:
    kept = _kept_orders(limit, folder)
    shift = copy * BASE_ORDERS
    for line in islice(_lines("order_items", folder), 1, None):
        order, rest = line.split(b",", 1)
        number = int(order)
        if kept[number]:
            yield b"%d,%s" % (number + shift, rest)


_MAKERS = {"customers": _customers, "orders": _orders, "order_items": _order_items}


def table_stream(table: str, scale: float = 1.0, data_dir: Path | None = None) -> Iterator[bytes]:
    """The bytes that COPY gets for ``table``: CSV with a header, blocks of about 256 kB."""
    folder = data_dir or DATA
    copies = _copies(scale)
    yield (",".join(copy_columns(table)) + "\n").encode("ascii")
    for copy, limit in copies:
        if table == "products" and copy:
            break  # every copy of the shop sells the same products
        if table == "products" or (copy == 0 and limit == BASE_CUSTOMERS and table != "customers"):
            blocks = _raw_blocks(table, folder)
            first = next(blocks, b"")
            yield from chain([first[first.find(b"\n") + 1 :]], blocks)
        else:
            yield from _blocks(_MAKERS[table](copy, limit, folder))


def profile_lines(scale: float = 1.0, data_dir: Path | None = None) -> Iterator[bytes]:
    """The profiles as canonical JSON lines: sorted keys, no spaces, times as 2026-06-30T00:00:00Z."""
    folder = data_dir or DATA
    for copy, limit in _copies(scale):
        people = islice(_lines("customers", folder), 1, None)
        for line, person in islice(zip(_lines(PROFILES, folder), people, strict=True), limit):
            email = person.split(b",", 3)[2]  # the shipped profiles leave it out
            line = line.replace(b'"preferences"', b'"email":"%s","preferences"' % email, 1)
            if copy:
                document = json.loads(line)
                document["_id"] += copy * BASE_CUSTOMERS
                document["email"] = document["email"].replace("@", f"+{copy}@", 1)
                line = _canonical(document)
            yield line


def stream_checksums(data_dir: Path | None = None, scale: float = 1.0) -> dict[str, dict[str, Any]]:
    """{table or "profiles": {"rows", "sha256"}} of what would be loaded, without a server."""
    found = {}
    for table in TABLES:
        digest, lines = hashlib.sha256(), 0
        for block in table_stream(table, scale, data_dir):
            digest.update(block)
            lines += block.count(b"\n")
        found[table] = {"rows": lines - 1, "sha256": digest.hexdigest()}
    digest, lines = hashlib.sha256(), 0
    for line in profile_lines(scale, data_dir):
        digest.update(line)
        lines += 1
    found[PROFILES] = {"rows": lines, "sha256": digest.hexdigest()}
    return found


def _check_stream(name: str, rows: int, sha256: str, manifest: dict[str, Any]) -> None:
    """At scale 1: what was sent is what the manifest says."""
    expected = manifest["tables"][name]
    if (rows, sha256) != (expected["rows"], expected["sha256"]):
        raise DataError(
            f"the rows made for {name} differ from data/manifest.json: expected {expected['rows']:,} "
            "rows with SHA-256 "
            f"{expected['sha256'][:12]}..., found {rows:,} with {sha256[:12]}...; "
            "restore them with `git checkout -- data workshop/shop`, then run `python -m workshop reset`"
        )


def _version(manifest: dict[str, Any]) -> str:
    """Short name of the data, so that a database seeded from other data is replaced."""
    return hashlib.sha256(json.dumps(manifest["tables"], sort_keys=True).encode()).hexdigest()[:16]


def _bar(title: str, rows: float, progress: bool) -> tqdm:
    """A bar that shows on terminals only."""
    return tqdm(
        desc=title,
        total=round(rows),
        unit=" rows",
        unit_scale=True,
        leave=False,
        disable=None if progress else True,
    )


# --- PostgreSQL -----------------------------------------------------------------------------------


def connect(url: URL, database: str | None = None, autocommit: bool = True) -> psycopg.Connection:
    """A psycopg connection to ``url``, or to another ``database`` of its server."""
    url = url.set(drivername="postgresql+psycopg", database=database or url.database)
    args, kwargs = url.get_dialect()().create_connect_args(url)
    kwargs.setdefault("connect_timeout", 10)
    return psycopg.connect(*args, **kwargs, autocommit=autocommit)


def _table(name: str) -> Table:
    return Base.metadata.tables[name]


def copy_columns(table: str) -> list[str]:
    """The columns that COPY fills: all but the number that the server gives to each order item."""
    return [column.name for column in _table(table).columns if (table, column.name) != ("order_items", "id")]


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
    """``COPY table (columns) FROM STDIN`` for table_stream()."""
    return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv, HEADER{})").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, copy_columns(table))), sql.SQL(options)
    )


def copy_table(cursor: psycopg.Cursor, table: str, blocks: Iterable[bytes], advance: Advance) -> tuple[int, str]:
    """COPY the blocks into ``table``, made in the same transaction; rows and SHA-256 of the bytes sent.

    FREEZE writes the rows as if VACUUM had been there: no second pass over the pages, and index-only scans at
    once.
    """
    digest, lines = hashlib.sha256(), 0
    with cursor.copy(copy_statement(table, ", FREEZE")) as copy:
        for block in blocks:
            digest.update(block)
            copy.write(block)
            count = block.count(b"\n")
            lines += count
            advance(count)
    if cursor.rowcount != lines - 1:
        raise DataError(
            f"{table} holds {cursor.rowcount:,} rows, expected {lines - 1:,}: run `python -m workshop "
            "reset` to load it again"
        )
    return lines - 1, digest.hexdigest()


def _load_postgres(
    connection: psycopg.Connection, scale: float, manifest: dict[str, Any], folder: Path, progress: bool
) -> dict[str, dict[str, Any]]:
    """Make and fill the tables in an empty database; rows and SHA-256 per table."""
    found: dict[str, dict[str, Any]] = {}
    total = sum(manifest["tables"][table]["rows"] for table in TABLES) * scale
    cursor = connection.cursor()
    # The rename at the end is committed synchronously and so makes everything before it durable.
    for setting in (
        "synchronous_commit = off",
        "maintenance_work_mem = '256MB'",
        "client_min_messages = warning",
    ):
        cursor.execute(f"SET {setting}")
    with _bar("PostgreSQL", total, progress) as bar:
        for table in TABLES:
            with connection.transaction():
                create_bare_table(cursor, table)
                rows, sha256 = copy_table(cursor, table, table_stream(table, scale, folder), bar.update)
            if scale == 1:
                _check_stream(table, rows, sha256, manifest)
            found[table] = {"rows": rows, "sha256": sha256}
        bar.set_description("PostgreSQL, indexes")
        with connection.transaction():
            for table in map(_table, TABLES):
                cursor.execute(_ddl(AddConstraint(table.primary_key, isolate_from_table=False)))
                for index in sorted(table.indexes, key=lambda index: str(index.name)):
                    cursor.execute(_ddl(CreateIndex(index)))
            for table in map(_table, TABLES):
                for key in sorted(table.foreign_key_constraints, key=lambda key: str(key.name)):
                    cursor.execute(_ddl(AddConstraint(key, isolate_from_table=False)))
            for table in ("customers", "products", "orders"):  # their ids came with the rows
                cursor.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))")
        cursor.execute(f"VACUUM (ANALYZE) {', '.join(TABLES)}")
    return found


def seeded_postgres(url: URL, database: str = DATABASE) -> dict[str, Any] | None:
    """What ``database`` was seeded with: scale, rows and checksums per table; None when it is not there or
    not ours.

    One query; ``url`` is of any database of the server.
    """
    with connect(url) as connection:
        return _seeded(connection, database)


def _comment(connection: psycopg.Connection, database: str) -> tuple[bool, dict[str, Any]]:
    """Whether the database is there, and the record in its comment ({} when that is not the workbook's)."""
    row = connection.execute(
        "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", [database]
    ).fetchone()
    try:
        record = json.loads(row[0]) if row and row[0] else {}
    except ValueError:
        record = {}
    return row is not None, record if isinstance(record, dict) and "workshop" in record else {}


def _seeded(connection: psycopg.Connection, database: str) -> dict[str, Any] | None:
    _, record = _comment(connection, database)
    return record if record.get("workshop") == "shop" else None


def _drop_ours(connection: psycopg.Connection, database: str) -> None:
    """Drop ``database`` if it is there. Raises DataError when the workbook did not make it."""
    exists, record = _comment(connection, database)
    if not exists:
        return
    if not record:
        raise DataError(
            f"the PostgreSQL database {database} was not made by the workbook: expected its mark in the "
            "database's comment, "
            "found none; rename that database or drop it, then run `python -m workshop reset`"
        )
    name = sql.Identifier(database)
    connection.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(name))
    connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def _set_comment(connection: psycopg.Connection, database: str, record: dict[str, Any]) -> None:
    text = sql.Literal(json.dumps(record))
    connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(database), text))


def seed_postgres(
    url: URL,
    scale: float = 1.0,
    progress: bool = True,
    *,
    database: str = DATABASE,
    data_dir: Path | None = None,
) -> dict[str, int]:
    """Make the shop's template database, or leave it when it is there at this scale; rows per table.

    ``url`` is of another database of the server, by a role that may create databases; it need not be a
    superuser. The shop is loaded as ``<database>_loading`` and renamed in the last step; on any error that
    one is dropped, and a shop that was there before stays as it was. The result is a template: nobody
    connects to it, so it can be cloned at any time.

    Raises DataError (files), ValueError (scale) and psycopg.Error (server).
    """
    check_scale(scale)
    folder = data_dir or DATA
    manifest = read_manifest(folder)
    with connect(url) as admin:

        def rows_if_done() -> dict[str, int] | None:
            record = _seeded(admin, database)
            done = record and record["scale"] == scale and record["version"] == _version(manifest)
            return record["rows"] if done else None

        if rows := rows_if_done():
            return rows
        check_files(folder)
        admin.execute(
            "SELECT pg_advisory_lock(%s)", [_LOCK]
        )  # another seeder may be at work; freed with the connection
        if rows := rows_if_done():
            return rows
        loading = f"{database}_loading"
        name = sql.Identifier(loading)
        _drop_ours(admin, loading)  # left by a seeder that was killed
        admin.execute(
            # C order is the same on every system and version, so plans and sorted results are too.
            sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER libc LOCALE 'C'").format(
                name
            )
        )
        try:
            _set_comment(admin, loading, {"workshop": "loading"})
            with connect(url, loading) as connection:
                found = _load_postgres(connection, scale, manifest, folder, progress)
            rows = {table: found[table]["rows"] for table in TABLES}
            checksums = {table: found[table]["sha256"] for table in TABLES}
            record = {
                "workshop": "shop",
                "scale": scale,
                "version": _version(manifest),
                "rows": rows,
                "checksums": checksums,
            }
            _set_comment(admin, loading, record)
            admin.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE true ALLOW_CONNECTIONS false").format(name))
            _drop_ours(admin, database)
            admin.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(name, sql.Identifier(database)))
        except BaseException:
            if not admin.closed and not admin.broken:
                # Ours for certain, whatever its comment says by now.
                if _comment(admin, loading)[0]:
                    admin.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(name))
                admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
            raise
        return rows


def table_checksum(connection: Connection | psycopg.Connection, table: str) -> str:
    """SHA-256 of the rows that the server holds, in the form in which they were sent; at scale 1 it is the
    manifest's.

    ``connection`` is SQLAlchemy's or psycopg's, to a database that holds the shop, for instance a clone of
    the template.
    """
    driver = connection.connection.driver_connection if isinstance(connection, Connection) else connection
    assert isinstance(driver, psycopg.Connection)
    columns = sql.SQL(", ").join(map(sql.Identifier, copy_columns(table)))
    query = sql.SQL("COPY (SELECT {} FROM {} ORDER BY id) TO STDOUT (FORMAT csv, HEADER)")
    digest = hashlib.sha256()
    settings = {"TimeZone": "UTC", "DateStyle": "ISO, YMD", "client_encoding": "UTF8"}
    with driver.transaction(), driver.cursor() as cursor:
        before = {key: cursor.execute("SELECT current_setting(%s)", [key]).fetchone()[0] for key in settings}
        for key, value in settings.items():
            cursor.execute("SELECT set_config(%s, %s, true)", [key, value])
        with cursor.copy(query.format(columns, sql.Identifier(table))) as copy:
            for block in copy:
                digest.update(block)
        for key, value in before.items():  # the caller's transaction may go on
            cursor.execute("SELECT set_config(%s, %s, true)", [key, value])
    return digest.hexdigest()


# --- MongoDB --------------------------------------------------------------------------------------

_META = "workshop_meta"
_LOADING = f"{PROFILES}_loading"


def _canonical(document: dict[str, Any]) -> bytes:
    """A document as its canonical JSON line."""
    return (json.dumps(document, sort_keys=True, separators=(",", ":"), default=_time) + "\n").encode()


def _time(value: Any) -> str:
    if not isinstance(value, datetime):
        raise TypeError(f"{type(value).__name__} is not JSON")
    value = value.astimezone(UTC) if value.tzinfo else value
    return value.isoformat(timespec="microseconds" if value.microsecond else "seconds").removesuffix("+00:00") + "Z"


def _document(line: bytes) -> dict[str, Any]:
    """A canonical line as a document, its times as naive UTC, which is what MongoDB keeps."""
    document = json.loads(line)
    document["updated_at"] = datetime.fromisoformat(document["updated_at"][:-1])
    for entry in document["cart"]:
        entry["added_at"] = datetime.fromisoformat(entry["added_at"][:-1])
    return document


def _uuid(collection: Collection) -> Any:
    """The collection's own identity, which a rename keeps; None when it is not there."""
    found = next(iter(collection.database.list_collections(filter={"name": collection.name})), None)
    return found["info"]["uuid"] if found else None


def _client(url: str) -> MongoClient:
    return MongoClient(url, serverSelectionTimeoutMS=10_000)


def seeded_mongo(url: str, database: str = DATABASE) -> dict[str, Any] | None:
    """What ``database`` was seeded with: scale, rows and checksums; None when it is not there or not
    complete.
    """
    with _client(url) as client:
        return _seeded_mongo(client, database)


def _seeded_mongo(client: MongoClient, database: str) -> dict[str, Any] | None:
    # The record names the collection that it describes, so it cannot be taken for another's.
    record = client[database][_META].find_one({"_id": PROFILES}, {"_id": 0})
    if record is None or record.pop("collection", None) != _uuid(client[database][PROFILES]):
        return None
    return record


def seed_mongo(
    url: str,
    database: str = DATABASE,
    scale: float = 1.0,
    progress: bool = True,
    *,
    data_dir: Path | None = None,
) -> int:
    """Fill the collection ``profiles``, or leave it when it is there at this scale; the number of documents.

    They are loaded as ``profiles_loading``, which is renamed in the last step and dropped on any error.

    Raises DataError (files), ValueError (scale) and pymongo.errors.PyMongoError (server).
    """
    check_scale(scale)
    folder = data_dir or DATA
    manifest = read_manifest(folder)
    with _client(url) as client:
        record = _seeded_mongo(client, database)
        if record and record["scale"] == scale and record["version"] == _version(manifest):
            return record["rows"][PROFILES]
        check_files(folder)
        store = client[database]
        if _uuid(store[PROFILES]) and not store[_META].find_one():
            raise DataError(
                f"the MongoDB collection {database}.{PROFILES} was not made by the workbook: expected its "
                f"record in {_META}, "
                "found none; rename that collection or drop it, then run `python -m workshop reset`"
            )
        # Until the rename nothing counts, so a loading write need not wait for the journal.
        loading = store.get_collection(_LOADING, write_concern=WriteConcern(w=1, j=False))
        try:
            loading.drop()
            rows, sha256 = _load_mongo(loading, scale, manifest, folder, progress)
            if scale == 1:
                _check_stream(PROFILES, rows, sha256, manifest)
            record = {
                "scale": scale,
                "version": _version(manifest),
                "rows": {PROFILES: rows},
                "checksums": {PROFILES: sha256},
            }
            store[_META].replace_one({"_id": PROFILES}, {**record, "collection": _uuid(loading)}, upsert=True)
            loading.rename(PROFILES, dropTarget=True)
        except BaseException:
            loading.drop()
            raise
        return rows


def _load_mongo(
    loading: Collection, scale: float, manifest: dict[str, Any], folder: Path, progress: bool
) -> tuple[int, str]:
    """Insert the profiles in unordered batches; their number and SHA-256."""
    digest, rows = hashlib.sha256(), 0
    lines = profile_lines(scale, folder)
    with _bar("MongoDB", manifest["tables"][PROFILES]["rows"] * scale, progress) as bar:
        while batch := list(islice(lines, BATCH)):
            digest.update(b"".join(batch))
            loading.insert_many(map(_document, batch), ordered=False)
            rows += len(batch)
            bar.update(len(batch))
    if (count := loading.count_documents({})) != rows:
        raise DataError(
            f"{PROFILES} holds {count:,} documents, expected {rows:,}: run `python -m workshop reset` to load it again"
        )
    return rows, digest.hexdigest()


def profiles_checksum(collection: Collection) -> str:
    """SHA-256 of the documents as canonical JSON lines in order of _id; at scale 1 it is the manifest's."""
    digest = hashlib.sha256()
    for document in collection.find().sort("_id"):
        digest.update(_canonical(document))
    return digest.hexdigest()


# --- both -----------------------------------------------------------------------------------------


def ensure(servers: Servers, scale: float | None = None) -> None:
    """Seed what is not seeded yet, PostgreSQL and MongoDB at the same time.

    Without a `scale` a shop that is there keeps its own; a missing one is made at the scale of the other store,
    or at 1. A shop that was loaded from other files than those in data/ now is replaced.
    """
    records = [seeded_postgres(servers.postgres), seeded_mongo(servers.mongo)]
    wanted = scale or next((record["scale"] for record in records if record), 1.0)
    version = _version(read_manifest())
    if all(record and (record["scale"], record["version"]) == (wanted, version) for record in records):
        return
    with lock("seed.lock", 1800), ThreadPoolExecutor(2) as pool:
        loading = [
            pool.submit(seed_postgres, servers.postgres, wanted),
            pool.submit(seed_mongo, servers.mongo, scale=wanted),
        ]
    for future in loading:
        future.result()


def status(postgres: Service | None, mongo: Service | None) -> dict[str, Any]:
    """{"scale", "rows": {table: n}} of what is seeded; a scale of None and no rows where nothing is."""
    records = [
        seeded_postgres(postgres.url) if postgres else None,
        seeded_mongo(mongo.url) if mongo else None,
    ]
    found = [record for record in records if record]
    rows = {table: count for record in found for table, count in record["rows"].items()}
    return {"scale": found[0]["scale"] if found else None, "rows": rows}


def remove(servers: Servers) -> None:
    """Drop the seeded shop from both stores; what the workbook did not make stays."""
    with connect(servers.postgres) as admin:
        _drop_ours(admin, DATABASE)
    with _client(servers.mongo) as client:
        if client[DATABASE][_META].find_one():
            for collection in (PROFILES, _LOADING, _META):
                client[DATABASE].drop_collection(collection)
