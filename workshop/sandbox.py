"""A lesson's own databases: copies of the seeded shop that go when the lesson's process does.

A watcher process holds the reading end of a pipe whose writing end belongs to the lesson. When the lesson's kernel
ends, however it ends, the pipe closes and the watcher drops what the lesson was given. Should the watcher have been
killed too, the next lesson that opens on these servers does it: each sandbox has a lease (lease.py), and one that is
marked as the workbook's own and whose lease nobody holds is dropped. Nothing else ever is.
"""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

import psycopg
import redis
from psycopg import sql
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError
from sqlalchemy import URL, make_url

from workshop import learner, lease
from workshop.servers import mongo_server, process, redis_server
from workshop.servers.postgres_server import connect, connect_common, drop_database
from workshop.servers.service import Servers
from workshop.shop import DATABASE, WITH_BIOGRAPHIES
from workshop.state import WorkshopError

PREFIX = "workshop_sandbox_"
OURS = re.compile(rf"{PREFIX}\w+_[0-9a-f]{{8}}")
MARK = {"workshop": "sandbox"}
COPY_DEADLINE_S = 60.0

# What the watcher does at the end, see `process.watch`.
WATCHER = "import json; from workshop.sandbox import Sandbox; Sandbox(**json.loads(given)).drop()"


@dataclass
class Sandbox:
    """What a lesson was given: one database name, and the URL of each server that it asked for."""

    postgres_url: str | None = field(default=None, repr=False)
    mongo_url: str | None = field(default=None, repr=False)
    redis_url: str | None = field(default=None, repr=False)
    name: str = ""
    redis_database: int | None = None

    def __post_init__(self) -> None:
        self._leases: list[lease.PostgresLease | lease.MongoLease | lease.RedisLease] = []
        self._renewal: lease.Renewal | None = None

    @property
    def postgres(self) -> URL:
        """The sandbox's own PostgreSQL database."""
        return make_url(self.postgres_url).set(database=self.name)

    @property
    def redis(self) -> str:
        """The sandbox's own Redis database."""
        return redis_database_url(self.redis_url, self.redis_database)

    def hold(self, new: lease.PostgresLease | lease.MongoLease | lease.RedisLease) -> None:
        """Keep a lease for as long as the sandbox is held."""
        self._leases.append(new)
        if self._renewal is None:
            self._renewal = lease.Renewal(self._renew)

    def _renew(self) -> None:
        for held in list(self._leases):
            # Whatever is wrong with a server, the next turn may find it well again.
            with suppress(psycopg.Error, PyMongoError, redis.RedisError, OSError):
                held.renew()

    def drop(self) -> None:
        """Drop all that this sandbox was given; a server that is gone has nothing to drop."""
        if self._renewal:  # else it could write a lease anew that is gone
            self._renewal.stop()
            self._renewal = None
        if self.postgres_url:
            with suppress(psycopg.Error):
                drop_postgres(make_url(self.postgres_url), self.name)
        if self.mongo_url:
            with suppress(PyMongoError), mongo_server.connect(self.mongo_url) as client:
                drop_mongo(client, self.name)
        if self.redis_url and self.redis_database is not None:
            with suppress(redis.RedisError):
                lease.free_redis(self.redis_url, self.redis, self.redis_database, self.name)
        while self._leases:
            self._leases.pop().close()
        learner.give_name(self.name)


def redis_database_url(url: str, database: int | None) -> str:
    """`url` with another database number; without a `db` in the query, which would come before the path."""
    parts = urlsplit(url)
    query = "&".join(option for option in parts.query.split("&") if not option.startswith("db="))
    return parts._replace(path=f"/{database}", query=query).geturl()


def drop_postgres(admin: URL, name: str) -> None:
    """Drop a database with its connections, and what pg_stat_statements remembers of it."""
    with connect(admin) as connection:
        with suppress(psycopg.Error):  # not loaded, or not allowed, on somebody's own server
            forget = "SELECT pg_stat_statements_reset(0, oid, 0) FROM pg_database WHERE datname = %s"
            connection.execute(forget, [name])
        drop_database(connection, name)


def drop_mongo(client: MongoClient, name: str) -> None:
    """Drop a database; collection by collection where the user may only read and write."""
    try:
        client.drop_database(name)
    except OperationFailure:
        for collection in client[name].list_collection_names():
            client[name].drop_collection(collection)
    # The lease goes last: what is left of an interrupted drop is still known as the workbook's.
    client[DATABASE][lease.LEASES].delete_one({"_id": name})


def create(servers: Servers, label: str, wanted: Sequence[str], *, biographies: bool = False) -> Sandbox:
    """Copies of the shop on the `wanted` servers, of "postgres", "mongo" and "redis", held until `drop`.

    With `biographies` it is the shop whose customers have theirs; seed.ensure makes it.
    What was left behind without a lease is dropped first. Raises WorkshopError when a copy cannot be had.
    """
    reap(servers, wanted)
    seat = learner.place()
    ready = _ready_documents(servers.mongo) if seat and "mongo" in wanted else None
    name = learner.take_name(seat.sandboxes, ready) if seat else f"{PREFIX}{label}_{secrets.token_hex(4)}"
    sandbox = Sandbox(name=name)
    try:
        if "postgres" in wanted:
            sandbox.postgres_url = servers.postgres.render_as_string(hide_password=False)
            sandbox.hold(lease.PostgresLease(servers.postgres, sandbox.name))
            if seat:  # the name was used before, and what it was used for may be left over
                drop_postgres(servers.postgres, sandbox.name)
            template = WITH_BIOGRAPHIES if biographies else DATABASE
            if not (seat and not biographies and _take_spare(servers.postgres, sandbox.name, seat.spare)):
                _clone_postgres(servers.postgres, sandbox.name, f"{seat.templates if seat else ''}{template}")
        if "mongo" in wanted:
            sandbox.mongo_url = servers.mongo
            sandbox.hold(lease.MongoLease(servers.mongo, sandbox.name))
            with mongo_server.connect(servers.mongo) as client:
                this = {"_id": learner.READY, "name": name}
                if not (ready and client[DATABASE][lease.LEASES].delete_one(this).deleted_count):
                    client[DATABASE].profiles.aggregate([{"$out": {"db": sandbox.name, "coll": "profiles"}}])
        if "redis" in wanted:
            sandbox.redis_url = servers.redis
            claimed = _claim_redis(servers.redis, sandbox.name)
            sandbox.redis_database = claimed.number
            sandbox.hold(claimed)
    except BaseException:
        sandbox.drop()
        raise
    return sandbox


def _clone_postgres(admin: URL, name: str, template: str) -> None:
    # Nobody may come in before it is closed to all but its owner.
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY ALLOW_CONNECTIONS false")
    with connect(admin) as connection:
        give_up = time.monotonic() + COPY_DEADLINE_S
        while True:
            try:
                connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
                break
            except (psycopg.errors.ObjectInUse, psycopg.errors.InvalidCatalogName) as error:
                # Somebody is connected to the template, or seeds it anew and swaps the two at this moment.
                if time.monotonic() > give_up:
                    raise WorkshopError(
                        f"the database {template} cannot be copied ({error.diag.message_primary}): "
                        "close the connections to it and run the cell again"
                    ) from None
                time.sleep(0.5)
        for step in (
            "COMMENT ON DATABASE {} IS {}",
            "REVOKE ALL ON DATABASE {} FROM PUBLIC",
            "ALTER DATABASE {} ALLOW_CONNECTIONS true",
        ):
            connection.execute(sql.SQL(step).format(sql.Identifier(name), sql.Literal(json.dumps(MARK))))


def _take_spare(admin: URL, name: str, spare: str) -> bool:
    """Make the database `spare`, which the class prepared, the sandbox `name`; whether it was there."""
    rename, mark = sql.SQL("ALTER DATABASE {} RENAME TO {}"), sql.SQL("COMMENT ON DATABASE {} IS {}")
    with connect(admin) as connection:
        try:
            connection.execute(rename.format(sql.Identifier(spare), sql.Identifier(name)))
        except psycopg.errors.InvalidCatalogName:
            return False
        connection.execute(mark.format(sql.Identifier(name), sql.Literal(json.dumps(MARK))))
        return True


def _ready_documents(url: str) -> str | None:
    """The learner's MongoDB database that the class has filled and no lesson has taken yet."""
    with mongo_server.connect(url) as client:
        return (client[DATABASE][lease.LEASES].find_one({"_id": learner.READY}) or {}).get("name")


def _claim_redis(url: str, sandbox: str) -> lease.RedisLease:
    """The `sandbox`'s lease of an empty database, its own from now on; the URL's only where a server has no other."""
    with redis_server.connect(url, decode_responses=True) as client:
        home = int(client.connection_pool.connection_kwargs.get("db") or 0)
        taken = lease.redis_leases(client)
    for number in _redis_databases(url, home):
        if number in taken:
            continue
        with redis_server.connect(redis_database_url(url, number)) as candidate:
            empty = all(key == lease.REGISTRY.encode() for key in candidate.scan_iter(count=1000))
        if empty:
            claimed = lease.RedisLease(url, number, sandbox)
            if claimed.taken:
                return claimed
            claimed.close()
    raise WorkshopError(
        "no Redis database is empty and free: shut down other lessons' kernels, or name a Redis with more databases in "
        "WORKSHOP_REDIS_URL, then run the cell again"
    )


def _redis_databases(url: str, home: int) -> list[int]:
    """The databases of the server, without CONFIG, which users may seldom run: all but `home`, or that alone."""
    numbers = []
    with redis_server.connect(url, single_connection_client=True) as client:
        for number in range(1024):
            try:
                client.execute_command("SELECT", number)
            except redis.ResponseError:
                break
            numbers.append(number)
        client.execute_command("SELECT", home)
    return [number for number in numbers if number != home] or [home]


def _postgres_sandboxes(connection: psycopg.Connection) -> list[tuple[str, str | None]]:
    rows = connection.execute(
        "SELECT datname, shobj_description(oid, 'pg_database') FROM pg_database"
        " WHERE pg_has_role(datdba, 'USAGE') AND datname LIKE %s",
        [PREFIX.replace("_", r"\_") + "%"],
    ).fetchall()
    # Without a comment: its maker was killed between CREATE and COMMENT.
    return [(name, mark) for name, mark in rows if OURS.fullmatch(name) and mark in (None, json.dumps(MARK))]


def reap(servers: Servers, wanted: Sequence[str] = ("postgres", "mongo", "redis")) -> list[str]:
    """Drop the sandboxes on the `wanted` servers whose lease nobody holds; their names."""
    dropped = []
    # What cannot be dropped, for somebody's session in it or a missing right, keeps nobody from a lesson.
    if "postgres" in wanted and "postgres" in servers:
        with connect_common(servers.postgres) as connection:
            held = lease.postgres_leases(connection)
            for name, _ in _postgres_sandboxes(connection) if lease.is_back(connection) else ():
                if lease.take_abandoned(connection, name, held):
                    with suppress(psycopg.Error):
                        drop_postgres(servers.postgres, name)
                        dropped.append(name)
    if "mongo" in wanted and "mongo" in servers:
        with mongo_server.connect(servers.mongo) as client:
            for name in client.list_database_names():
                if OURS.fullmatch(name) and not lease.mongo_lease_holds(client, name):
                    with suppress(OperationFailure):
                        drop_mongo(client, name)
                        dropped.append(name)
    if "redis" in wanted and "redis" in servers:
        with redis_server.connect(servers.redis, decode_responses=True) as client:
            leases = lease.redis_leases(client)
        for number in (number for number, (_, held) in leases.items() if not held):
            with suppress(redis.ResponseError):
                lease.free_redis(servers.redis, redis_database_url(servers.redis, number), number, leases[number][0])
                dropped.append(f"redis database {number}")
    return dropped


def watch(sandbox: Sandbox) -> subprocess.Popen:
    """Start the watcher of `sandbox`: it drops it as soon as this process ends, or as the pipe is closed."""
    return process.watch(WATCHER, json.dumps(asdict(sandbox)))
