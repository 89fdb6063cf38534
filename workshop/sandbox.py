"""A lesson's own databases: copies of the seeded shop that go when the lesson's process does.

A watcher process holds the reading end of a pipe whose writing end belongs to the lesson. When the lesson's kernel
ends, however it ends, the pipe closes and the watcher drops what the lesson was given. Each sandbox is marked as the
workbook's own, with the process that it belongs to; what is not so marked is never dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import psutil
import psycopg
import redis
from psycopg import sql
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from sqlalchemy import URL, make_url

from workshop.servers.postgres_server import dsn
from workshop.servers.service import Servers
from workshop.shop import DATABASE
from workshop.state import WorkshopError, lock, state_dir

PREFIX = "workshop_sandbox_"
REDIS_REGISTRY = "workshop:sandboxes"  # a hash in the URL's own database: database number -> owner
OWNERS = "workshop_sandbox"  # a collection with one document, in each MongoDB sandbox

# It imports what it needs only at its end: while it waits it takes no more memory than Python itself.
WATCHER = """
import sys
given = sys.stdin.readline()
sys.stdin.read()  # returns when the lesson's process has ended
import json
from workshop.sandbox import Sandbox
Sandbox(**json.loads(given)).drop()
"""


def _owner() -> dict:
    """Who a sandbox belongs to: this checkout's user (hashed), this process and its start time."""
    home = hashlib.sha256(f"{socket.gethostname()}:{state_dir()}".encode()).hexdigest()[:12]
    return {"home": home, "pid": os.getpid(), "created": psutil.Process().create_time()}


def _abandoned(owner: dict) -> bool:
    """Whether the sandbox is from this checkout and user, and its process is gone."""
    if owner.get("home") != _owner()["home"]:
        return False
    try:
        return abs(psutil.Process(owner["pid"]).create_time() - owner["created"]) > 1.0
    except (KeyError, psutil.Error):
        return True


@dataclass
class Sandbox:
    """Names of a lesson's databases; None where the lesson did not ask for that server."""

    postgres_url: str | None = field(default=None, repr=False)
    mongo_url: str | None = field(default=None, repr=False)
    redis_url: str | None = field(default=None, repr=False)
    name: str = ""
    redis_database: int | None = None

    @property
    def postgres(self) -> URL:
        """The sandbox's own PostgreSQL database."""
        return make_url(self.postgres_url).set(database=self.name)

    @property
    def redis(self) -> str:
        """The sandbox's own Redis database."""
        return redis_database_url(self.redis_url, self.redis_database)

    def drop(self) -> None:
        """Drop all that this sandbox was given; a server that is gone has nothing to drop."""
        if self.postgres_url:
            try:
                drop_postgres(make_url(self.postgres_url), self.name)
            except psycopg.Error:
                pass
        if self.mongo_url:
            try:
                with MongoClient(self.mongo_url, serverSelectionTimeoutMS=3000) as client:
                    client.drop_database(self.name)
            except PyMongoError:
                pass
        if self.redis_url and self.redis_database is not None:
            try:
                _free_redis(self.redis_url, self.redis_database)
            except redis.RedisError:
                pass


def redis_database_url(url: str, database: int) -> str:
    """`url` with another database number."""
    base, _, query = url.partition("?")
    scheme, rest = base.split("://", 1)
    return f"{scheme}://{rest.split('/', 1)[0]}/{database}" + (f"?{query}" if query else "")


def drop_postgres(admin: URL, name: str) -> None:
    """Drop a database with its connections, and what pg_stat_statements remembers of it."""
    with psycopg.connect(dsn(admin), autocommit=True) as connection:
        try:
            forget = "SELECT pg_stat_statements_reset(0, oid, 0) FROM pg_database WHERE datname = %s"
            connection.execute(forget, [name])
        except psycopg.Error:
            pass  # not loaded on somebody's own server
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _free_redis(url: str, database: int) -> None:
    with redis.Redis.from_url(redis_database_url(url, database), socket_timeout=5) as client:
        client.flushdb()
    with redis.Redis.from_url(url, socket_timeout=5) as client:
        client.hdel(REDIS_REGISTRY, database)


def create(servers: Servers, label: str, wanted: Sequence[str]) -> Sandbox:
    """Copies of the shop for this process on the `wanted` servers, of "postgres", "mongo" and "redis".

    What dead processes left behind is dropped first.
    """
    reap(servers)
    name = f"{PREFIX}{label}_{secrets.token_hex(4)}"
    sandbox = Sandbox(name=name)
    try:
        if "postgres" in wanted:
            sandbox.postgres_url = servers.postgres.render_as_string(hide_password=False)
            _clone_postgres(servers.postgres, name)
        if "mongo" in wanted:
            sandbox.mongo_url = servers.mongo
            _clone_mongo(servers.mongo, name)
        if "redis" in wanted:
            sandbox.redis_url = servers.redis
            sandbox.redis_database = _claim_redis(servers.redis)
    except BaseException:
        sandbox.drop()
        raise
    return sandbox


def _clone_postgres(admin: URL, name: str) -> None:
    comment = json.dumps({"workshop": "sandbox", **_owner()})
    # Two sessions cannot copy one template at the same time; the lock makes them take turns.
    with lock("clone.lock"), psycopg.connect(dsn(admin), autocommit=True) as connection:
        statement = "CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY"
        target = sql.Identifier(name)
        for attempt in range(20):
            try:
                connection.execute(sql.SQL(statement).format(target, sql.Identifier(DATABASE)))
                break
            except psycopg.errors.ObjectInUse:
                if attempt == 19:
                    raise WorkshopError(
                        f"the database {DATABASE} cannot be copied while somebody is connected to it: "
                        "close that connection and run the cell again"
                    ) from None
                time.sleep(0.5)  # another checkout on the same server is copying it
        connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(target, sql.Literal(comment)))


def _clone_mongo(url: str, name: str) -> None:
    with MongoClient(url, serverSelectionTimeoutMS=5000) as client:
        client[name][OWNERS].insert_one({"_id": "owner", **_owner()})
        client[DATABASE].profiles.aggregate([{"$out": {"db": name, "coll": "profiles"}}])


def _claim_redis(url: str) -> int:
    """The number of an empty database that is ours from now on."""
    owner = json.dumps(_owner())
    with redis.Redis.from_url(url, socket_timeout=5, decode_responses=True) as client:
        count = int(client.config_get("databases").get("databases", 16))
        home = client.connection_pool.connection_kwargs.get("db", 0)
        for number in range(count):
            if number == home:
                continue
            with redis.Redis.from_url(redis_database_url(url, number), socket_timeout=5) as candidate:
                if candidate.dbsize() == 0 and client.hsetnx(REDIS_REGISTRY, number, owner):
                    return number
    raise WorkshopError(
        f"none of the {count} Redis databases is empty and free: "
        "shut down other lessons' kernels, then run the cell again"
    )


def reap(servers: Servers) -> list[str]:
    """Drop the sandboxes whose process is gone, for instance after a power cut; their names."""
    dropped = []
    with psycopg.connect(dsn(servers.postgres), autocommit=True) as connection:
        rows = connection.execute(
            "SELECT datname, shobj_description(oid, 'pg_database') FROM pg_database WHERE datname LIKE %s",
            [PREFIX.replace("_", r"\_") + "%"],
        ).fetchall()
    for name, comment in rows:
        try:
            owner = json.loads(comment or "null")
        except ValueError:
            owner = None
        if isinstance(owner, dict) and owner.get("workshop") == "sandbox" and _abandoned(owner):
            drop_postgres(servers.postgres, name)
            dropped.append(name)
    with MongoClient(servers.mongo, serverSelectionTimeoutMS=5000) as client:
        for name in client.list_database_names():
            if not name.startswith(PREFIX):
                continue
            owner = client[name][OWNERS].find_one({"_id": "owner"})
            if owner and _abandoned(owner):
                client.drop_database(name)
                dropped.append(name)
    with redis.Redis.from_url(servers.redis, socket_timeout=5, decode_responses=True) as client:
        for number, owner in client.hgetall(REDIS_REGISTRY).items():
            if _abandoned(json.loads(owner)):
                _free_redis(servers.redis, int(number))
                dropped.append(f"redis database {number}")
    return dropped


def watch(sandbox: Sandbox) -> subprocess.Popen:
    """Start the watcher of `sandbox`: it drops it as soon as this process ends, or as the pipe is closed."""
    watcher = subprocess.Popen(
        [sys.executable, "-c", WATCHER],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # it must outlive the kernel, whatever signal ends that
    )
    watcher.stdin.write(json.dumps(asdict(sandbox)).encode() + b"\n")  # by pipe: the URLs hold passwords
    watcher.stdin.flush()
    return watcher
