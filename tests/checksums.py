"""What is loaded, as checksums: of the streams that the loaders send, and of the rows that the servers hold."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql
from pymongo.collection import Collection
from sqlalchemy import Connection

from workshop.shop.files import copy_columns


def table_checksum(connection: Connection | psycopg.Connection, table: str) -> str:
    """SHA-256 of the rows that the server holds, in the form in which they were sent; at scale 1 it is the
    manifest's.

    `connection` is SQLAlchemy's or psycopg's, to a database that holds the shop, for instance a clone of
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


def _time(value: Any) -> str:
    if not isinstance(value, datetime):
        raise TypeError(f"{type(value).__name__} is not JSON")
    value = value.astimezone(UTC) if value.tzinfo else value
    return value.isoformat(timespec="microseconds" if value.microsecond else "seconds").removesuffix("+00:00") + "Z"


def profiles_checksum(collection: Collection) -> str:
    """SHA-256 of the documents as canonical JSON lines in order of _id; at scale 1 it is the manifest's."""
    digest = hashlib.sha256()
    for document in collection.find().sort("_id"):
        line = json.dumps(document, sort_keys=True, separators=(",", ":"), default=_time) + "\n"
        digest.update(line.encode())
    return digest.hexdigest()
