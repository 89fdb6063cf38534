"""The files in data/, checked, and as streams of rows at any scale."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from workshop.shop.models import Base
from workshop.state import WorkshopError

DATA = Path(__file__).resolve().parents[2] / "data"
BASE_CUSTOMERS, BASE_ORDERS = 100_000, 300_000
TABLES = ("products", "customers", "orders", "order_items")
CUSTOMERS_WITH_BIOGRAPHIES = "customers_with_biographies"  # a stream for the table customers
PROFILES = "profiles"
FILES = {**{table: f"{table}.csv.gz" for table in TABLES}, PROFILES: "profiles.ndjson.gz"}
SCALES = (0.01, 100)
BLOCK = 1 << 18  # bytes per message to the server
BATCH = 2_000  # documents per insert
BIOS = 128  # customers per turn of the maker of biographies: about one block

Advance = Callable[[int], Any]


class DataError(WorkshopError):
    """The shop's data is not what it should be: one sentence with what was expected, what was found, what to run."""


def check_scale(scale: float) -> float:
    """`scale` itself. Raises ValueError when it is not a number from 0.01 to 100."""
    if not SCALES[0] <= scale <= SCALES[1]:  # false for nan too
        raise ValueError(f"the scale is {scale}, expected a number from {SCALES[0]} to {SCALES[1]}: set another scale")
    return float(scale)


# --- the files ------------------------------------------------------------------------------------


def _damaged(name: str, expected: str, found: str) -> DataError:
    return DataError(
        f"data/{name} is missing or damaged: expected {expected}, found {found}; "
        f"restore it with `git checkout -- data/{name}`, then run `python -m workshop reset`"
    )


def read_manifest() -> dict[str, Any]:
    """data/manifest.json: `files` and `tables` with rows and SHA-256. Raises DataError when it is missing or bad."""
    try:
        manifest = json.loads((DATA / "manifest.json").read_bytes())
        for table, file in FILES.items():
            manifest["tables"][table]["rows"], manifest["files"][file]["sha256"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        expected = "JSON with the rows of each table and SHA-256 of each file"
        raise _damaged("manifest.json", expected, f"{type(error).__name__}: {error}") from None
    return manifest


def check_files() -> dict[str, Any]:
    """Check SHA-256 of every shipped file; the manifest. Raises DataError for the first that differs."""
    manifest = read_manifest()
    for name in FILES.values():
        expected = f"SHA-256 {manifest['files'][name]['sha256']}"
        try:
            with open(DATA / name, "rb") as file:
                found = f"SHA-256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
        except OSError as error:
            found = str(error.strerror)
        if found != expected:
            raise _damaged(name, expected, found)
    return manifest


def _lines(name: str) -> Iterator[bytes]:
    """The expanded lines of a shipped file, the header included."""
    with gzip.open(DATA / FILES[name], "rb") as file:
        yield from file


def _raw_blocks(name: str) -> Iterator[bytes]:
    """A shipped file expanded, in blocks: no work per row."""
    with gzip.open(DATA / FILES[name], "rb") as file:
        while block := file.read(BLOCK):
            yield block


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


def _customers(copy: int, limit: int, with_biographies: bool) -> Iterator[bytes]:
    """Customers of a copy with avatar and, if wanted, biography, as CSV; each piece holds BIOS rows or fewer."""
    from workshop.shop.bios import avatars, biographies  # numpy is slow to import, and only loading needs it

    lines = islice(_lines("customers"), 1, limit + 1)
    while batch := list(islice(lines, BIOS)):
        rows = [line[:-1].split(b",", 3) for line in batch]
        ids = [int(row[0]) + copy * BASE_CUSTOMERS for row in rows]
        bios = (
            (b'"%s"' % bio for bio in biographies(ids, [row[1] for row in rows])) if with_biographies else repeat(b"")
        )
        made = zip(ids, rows, avatars(ids), bios)  # noqa: B905 -- one a row, or as many as there are
        plus = b"+%d@" % copy if copy else b"@"
        yield b"".join(
            b"%d,%s,%s,%s,%s,%s\n" % (i, name, email.replace(b"@", plus, 1), rest, avatar, bio)
            for i, (_, name, email, rest), avatar, bio in made
        )


def _orders(copy: int, limit: int) -> Iterator[bytes]:
    order_shift, customer_shift = copy * BASE_ORDERS, copy * BASE_CUSTOMERS
    for line in islice(_lines("orders"), 1, None):
        order, customer, rest = line.split(b",", 2)
        number = int(customer)
        if number <= limit:
            yield b"%d,%d,%s" % (int(order) + order_shift, number + customer_shift, rest)


def _kept_orders(limit: int) -> bytearray:
    """1 at the number of each order of the first `limit` customers; shape (BASE_ORDERS + 1,)."""
    kept = bytearray(BASE_ORDERS + 1)
    for line in islice(_lines("orders"), 1, None):
        order, customer, _ = line.split(b",", 2)
        if int(customer) <= limit:
            kept[int(order)] = 1
    return kept


def _order_items(copy: int, limit: int) -> Iterator[bytes]:
    kept = _kept_orders(limit)
    shift = copy * BASE_ORDERS
    for line in islice(_lines("order_items"), 1, None):
        order, rest = line.split(b",", 1)
        number = int(order)
        if kept[number]:
            yield b"%d,%s" % (number + shift, rest)


_MAKERS = {
    "customers": partial(_customers, with_biographies=False),
    CUSTOMERS_WITH_BIOGRAPHIES: partial(_customers, with_biographies=True),
    "orders": _orders,
    "order_items": _order_items,
}


def copy_columns(table: str) -> list[str]:
    """The columns that COPY fills: all but the number that the server gives to each order item."""
    columns = Base.metadata.tables[table].columns
    return [column.name for column in columns if (table, column.name) != ("order_items", "id")]


def table_stream(stream: str, scale: float = 1.0) -> Iterator[bytes]:
    """The bytes that COPY gets for a table, or for CUSTOMERS_WITH_BIOGRAPHIES: CSV with a header, in blocks of about
    256 kB.
    """
    copies = _copies(scale)
    table = "customers" if stream == CUSTOMERS_WITH_BIOGRAPHIES else stream
    yield (",".join(copy_columns(table)) + "\n").encode("ascii")
    for copy, limit in copies:
        if table == "products" and copy:
            break  # every copy of the shop sells the same products
        if table == "products" or (copy == 0 and limit == BASE_CUSTOMERS and table != "customers"):
            blocks = _raw_blocks(table)
            first = next(blocks, b"")
            yield from chain([first[first.find(b"\n") + 1 :]], blocks)
        else:
            yield from _blocks(_MAKERS[stream](copy, limit))


def profile_lines(scale: float = 1.0) -> Iterator[bytes]:
    """The profiles as canonical JSON lines: sorted keys, no spaces, times as 2026-06-30T00:00:00Z."""
    for copy, limit in _copies(scale):
        people = islice(_lines("customers"), 1, None)
        for line, person in islice(zip(_lines(PROFILES), people, strict=True), limit):
            email = person.split(b",", 3)[2]  # the shipped profiles leave it out
            line = line.replace(b'"preferences"', b'"email":"%s","preferences"' % email, 1)
            if copy:
                document = json.loads(line)
                document["_id"] += copy * BASE_CUSTOMERS
                document["email"] = document["email"].replace("@", f"+{copy}@", 1)
                line = (json.dumps(document, sort_keys=True, separators=(",", ":")) + "\n").encode()
            yield line


def version_of_data(manifest: dict[str, Any]) -> str:
    """Short name of the data, so that a database seeded from other data is replaced."""
    return hashlib.sha256(json.dumps(manifest["tables"], sort_keys=True).encode()).hexdigest()[:16]


def document_of(line: bytes) -> dict[str, Any]:
    """A canonical line as a document, its times as naive UTC, which is what MongoDB keeps."""
    document = json.loads(line)
    document["updated_at"] = datetime.fromisoformat(document["updated_at"][:-1])
    for entry in document["cart"]:
        entry["added_at"] = datetime.fromisoformat(entry["added_at"][:-1])
    return document


def stream_checksums() -> dict[str, dict[str, Any]]:
    """{stream or "profiles": {"rows", "sha256"}} of what is loaded at scale 1: what data/make.py writes down."""
    found = {}
    for stream in (*TABLES, CUSTOMERS_WITH_BIOGRAPHIES, PROFILES):
        digest, lines = hashlib.sha256(), 0
        for block in profile_lines() if stream == PROFILES else table_stream(stream):
            digest.update(block)
            lines += block.count(b"\n")
        found[stream] = {"rows": lines - (stream != PROFILES), "sha256": digest.hexdigest()}
    return found
