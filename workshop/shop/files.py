"""The files in data/, checked, and as streams of rows at any scale."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
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
_LOCK = 0x776F726B73686F70  # "workshop" in ASCII: the advisory lock that seeders take in turn

Advance = Callable[[int], Any]


class DataError(WorkshopError):
    """The shipped data is not what it should be: one sentence with what was expected, what was found and what
    to run.
    """


def check_scale(scale: float) -> float:
    """`scale` itself. Raises ValueError when it is not a number from 0.01 to 100."""
    if not SCALES[0] <= scale <= SCALES[1]:  # false for nan too
        raise ValueError(f"the scale is {scale}, expected a number from {SCALES[0]} to {SCALES[1]}: set another scale")
    return float(scale)


# --- the files ------------------------------------------------------------------------------------


def _fix(path: Path) -> str:
    return f"restore it with `git checkout -- data/{path.name}`, then run `python -m workshop reset`"


def read_manifest(data_dir: Path | None = None) -> dict[str, Any]:
    """data/manifest.json: `files` and `tables` with rows and SHA-256. Raises DataError when it is missing
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
        raise DataError(f"data/manifest.json cannot be read: expected a file, found: {reason}; {_fix(path)}") from None
    except (ValueError, KeyError, TypeError) as error:
        found = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            "data/manifest.json is damaged: expected JSON with rows and SHA-256 of each file and "
            f"table, found: {found}; "
            f"{_fix(path)}"
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
                f"data/{name} is missing: expected {expected['bytes']:,} bytes, found no file; {_fix(path)}"
            ) from None
        except OSError as error:
            raise DataError(
                f"data/{name} cannot be read: expected a file, found: {error.strerror}; {_fix(path)}"
            ) from None
        if len(content) != expected["bytes"]:
            raise DataError(
                f"data/{name} is damaged: expected {expected['bytes']:,} bytes, found {len(content):,}; {_fix(path)}"
            )
        digest = hashlib.sha256(content).hexdigest()
        if digest != expected["sha256"]:
            raise DataError(
                f"data/{name} is damaged: expected SHA-256 {expected['sha256'][:12]}..., found "
                f"{digest[:12]}...; {_fix(path)}"
            )
    return manifest


def _lines(name: str, folder: Path) -> Iterator[bytes]:
    """The expanded lines of a shipped file, the header included."""
    path = folder / FILES[name]
    try:
        with gzip.open(path, "rb") as file:
            yield from file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"data/{path.name} is damaged: expected gzip, found: {error}; {_fix(path)}") from None


def _raw_blocks(name: str, folder: Path) -> Iterator[bytes]:
    """A shipped file expanded, in blocks: no work per row."""
    path = folder / FILES[name]
    try:
        with gzip.open(path, "rb") as file:
            while block := file.read(BLOCK):
                yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"data/{path.name} is damaged: expected gzip, found: {error}; {_fix(path)}") from None


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


def _customers(copy: int, limit: int, folder: Path, with_biographies: bool) -> Iterator[bytes]:
    """Customers of a copy with avatar and, if wanted, biography, as CSV; each piece holds BIOS rows or fewer."""
    from workshop.shop.bios import avatars, biographies  # numpy is slow to import, and only loading needs it

    lines = islice(_lines("customers", folder), 1, limit + 1)
    while batch := list(islice(lines, BIOS)):
        rows = [line[:-1].split(b",", 3) for line in batch]
        ids = [int(row[0]) + copy * BASE_CUSTOMERS for row in rows]
        bios = (
            (b'"%s"' % bio for bio in biographies(ids, [row[1] for row in rows])) if with_biographies else repeat(b"")
        )
        made = zip(ids, rows, avatars(ids), bios)  # noqa: B905 -- one a row, or as many as there are
        if copy:
            plus = b"+%d@" % copy
            yield b"".join(
                b"%d,%s,%s,%s,%s,%s\n" % (i, name, email.replace(b"@", plus, 1), rest, avatar, bio)
                for i, (_, name, email, rest), avatar, bio in made
            )
        else:
            yield b"".join(
                b"%s,%s,%s\n" % (line[:-1], avatar, bio) for line, (_, _, avatar, bio) in zip(batch, made, strict=True)
            )


def _orders(copy: int, limit: int, folder: Path) -> Iterator[bytes]:
    order_shift, customer_shift = copy * BASE_ORDERS, copy * BASE_CUSTOMERS
    for line in islice(_lines("orders", folder), 1, None):
        order, customer, rest = line.split(b",", 2)
        number = int(customer)
        if number <= limit:
            yield b"%d,%d,%s" % (int(order) + order_shift, number + customer_shift, rest)


def _kept_orders(limit: int, folder: Path) -> bytearray:
    """1 at the number of each order of the first `limit` customers; shape (BASE_ORDERS + 1,)."""
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


_MAKERS = {
    "customers": partial(_customers, with_biographies=False),
    CUSTOMERS_WITH_BIOGRAPHIES: partial(_customers, with_biographies=True),
    "orders": _orders,
    "order_items": _order_items,
}


def table_of(stream: str) -> str:
    """The table that a stream fills."""
    return "customers" if stream == CUSTOMERS_WITH_BIOGRAPHIES else stream


def copy_columns(table: str) -> list[str]:
    """The columns that COPY fills: all but the number that the server gives to each order item."""
    columns = Base.metadata.tables[table].columns
    return [column.name for column in columns if (table, column.name) != ("order_items", "id")]


def table_stream(stream: str, scale: float = 1.0, data_dir: Path | None = None) -> Iterator[bytes]:
    """The bytes that COPY gets for a table, or for CUSTOMERS_WITH_BIOGRAPHIES: CSV with a header, in blocks of about
    256 kB.
    """
    folder = data_dir or DATA
    copies = _copies(scale)
    table = table_of(stream)
    yield (",".join(copy_columns(table)) + "\n").encode("ascii")
    for copy, limit in copies:
        if table == "products" and copy:
            break  # every copy of the shop sells the same products
        if table == "products" or (copy == 0 and limit == BASE_CUSTOMERS and table != "customers"):
            blocks = _raw_blocks(table, folder)
            first = next(blocks, b"")
            yield from chain([first[first.find(b"\n") + 1 :]], blocks)
        else:
            yield from _blocks(_MAKERS[stream](copy, limit, folder))


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
                line = canonical(document)
            yield line


def check_stream(name: str, rows: int, sha256: str, manifest: dict[str, Any]) -> None:
    """At scale 1: what was sent is what the manifest says."""
    expected = manifest["tables"][name]
    if (rows, sha256) != (expected["rows"], expected["sha256"]):
        raise DataError(
            f"the rows made for {name} differ from data/manifest.json: expected {expected['rows']:,} "
            "rows with SHA-256 "
            f"{expected['sha256'][:12]}..., found {rows:,} with {sha256[:12]}...; "
            "restore them with `git checkout -- data workshop/shop`, then run `python -m workshop reset`"
        )


def version_of_data(manifest: dict[str, Any]) -> str:
    """Short name of the data, so that a database seeded from other data is replaced."""
    return hashlib.sha256(json.dumps(manifest["tables"], sort_keys=True).encode()).hexdigest()[:16]


def canonical(document: dict[str, Any]) -> bytes:
    """A document as its canonical JSON line."""
    return (json.dumps(document, sort_keys=True, separators=(",", ":"), default=_time) + "\n").encode()


def _time(value: Any) -> str:
    if not isinstance(value, datetime):
        raise TypeError(f"{type(value).__name__} is not JSON")
    value = value.astimezone(UTC) if value.tzinfo else value
    return value.isoformat(timespec="microseconds" if value.microsecond else "seconds").removesuffix("+00:00") + "Z"


def document_of(line: bytes) -> dict[str, Any]:
    """A canonical line as a document, its times as naive UTC, which is what MongoDB keeps."""
    document = json.loads(line)
    document["updated_at"] = datetime.fromisoformat(document["updated_at"][:-1])
    for entry in document["cart"]:
        entry["added_at"] = datetime.fromisoformat(entry["added_at"][:-1])
    return document


def stream_checksums(data_dir: Path | None = None, scale: float = 1.0) -> dict[str, dict[str, Any]]:
    """{stream or "profiles": {"rows", "sha256"}} of what would be loaded, without a server."""
    found = {}
    for stream in (*TABLES, CUSTOMERS_WITH_BIOGRAPHIES):
        digest, lines = hashlib.sha256(), 0
        for block in table_stream(stream, scale, data_dir):
            digest.update(block)
            lines += block.count(b"\n")
        found[stream] = {"rows": lines - 1, "sha256": digest.hexdigest()}
    digest, lines = hashlib.sha256(), 0
    for line in profile_lines(scale, data_dir):
        digest.update(line)
        lines += 1
    found[PROFILES] = {"rows": lines, "sha256": digest.hexdigest()}
    return found
