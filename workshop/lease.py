"""Leases: who has a sandbox is known to the servers themselves, from whichever machine or container it was made.

A lease is a session of its own, held by the lesson's process: when that ends, however it ends, the server closes
the session. A process that is paused keeps its session.

* PostgreSQL: an advisory lock, which everybody sees in pg_locks.
* MongoDB: a connection under the sandbox's name in $currentOp, or a time beside the shop, by the server's clock, until
  which the lease holds without a connection: for who may not see it, and when the network was away.
* Redis: a connection under the sandbox's name in CLIENT LIST, or a time in a registry, as for MongoDB.

A thread looks every RENEW_S seconds whether the sessions are there, and takes them again after the network or the
server was away. So PostgreSQL's are not taken for lost within BACK_S seconds of its start. A machine that sleeps for
longer than HOLDS_S may lose what it has in MongoDB and Redis.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

import psycopg
import redis
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from sqlalchemy import URL

from workshop import learner
from workshop.servers import mongo_server, redis_server
from workshop.servers.postgres_server import connect_common
from workshop.shop import DATABASE

RENEW_S = 15.0
BACK_S = 2 * RENEW_S
HOLDS_S = 120  # without a connection
_seat = learner.place()
# Beside the shop, not in the sandbox: what is written there is not the lesson's.
LEASES = _seat.leases if _seat else "workshop_leases"


class Renewal:
    """A thread that calls `renew` every RENEW_S seconds until it is stopped, or the process ends."""

    def __init__(self, renew: Callable[[], None]) -> None:
        self._renew = renew
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="workshop-lease", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(RENEW_S):
            self._renew()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(10)


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


def key_of(name: str) -> tuple[int, int]:
    """Two numbers for the advisory lock of a sandbox, as pg_locks shows them: 0 to 2**32 - 1."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")


def _signed(number: int) -> int:
    return number - (1 << 32) if number >= 1 << 31 else number


class PostgresLease:
    """The lease of the PostgreSQL database `name`."""

    def __init__(self, url: URL, name: str) -> None:
        self.url, self.name = url, name
        self._connection = self._take()

    def _take(self) -> psycopg.Connection:
        connection = connect_common(self.url)
        # A laptop that sleeps for a night does not answer the server's probes.
        connection.execute("SET tcp_keepalives_idle = 86400")
        # A session that the network has lost may hold it still: then the next turn tries again.
        connection.execute("SET lock_timeout = '5s'")
        connection.execute("SELECT pg_advisory_lock(%s, %s)", [_signed(part) for part in key_of(self.name)])
        return connection

    def renew(self) -> None:
        try:
            self._connection.execute("SELECT 1")
        except psycopg.Error:
            self._connection.close()
            self._connection = self._take()

    def close(self) -> None:
        self._connection.close()


def is_back(connection: psycopg.Connection) -> bool:
    """Whether PostgreSQL has run for so long that all who lived through its restart hold their leases again.

    Where one backend dies, it ends them all, and starts the checkpointer anew, but not itself.
    """
    begun = "SELECT backend_start FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
    since = f"SELECT now() - greatest(pg_postmaster_start_time(), ({begun})) > make_interval(secs => %s)"
    return connection.execute(since, [BACK_S]).fetchone()[0]


def postgres_leases(connection: psycopg.Connection) -> set[tuple[int, int]]:
    """The keys of all leases that are held, whichever database their sessions are in."""
    locks = "SELECT classid::bigint, objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2"
    return set(connection.execute(locks).fetchall())


def take_abandoned(connection: psycopg.Connection, name: str, held: set[tuple[int, int]]) -> bool:
    """Take the lease of the sandbox `name` if nobody holds it: then the taker may drop it. `connection` is common."""
    key = key_of(name)
    if key in held:
        return False
    return connection.execute("SELECT pg_try_advisory_lock(%s, %s)", [_signed(part) for part in key]).fetchone()[0]


# --- MongoDB ------------------------------------------------------------------------------------------------------


class MongoLease:
    """The lease of the MongoDB database `name`."""

    def __init__(self, url: str, name: str) -> None:
        # A single connection, so that it is this one that stays open.
        self._client = mongo_server.connect(url, appname=name, maxPoolSize=1)
        self.name = name
        self.renew()

    def renew(self) -> None:
        until = {"$dateAdd": {"startDate": "$$NOW", "unit": "second", "amount": HOLDS_S}}
        self._client[DATABASE][LEASES].update_one({"_id": self.name}, [{"$set": {"until": until}}], upsert=True)

    def close(self) -> None:
        self._client.close()


def mongo_lease_holds(client: MongoClient, name: str) -> bool:
    """Whether somebody holds the lease of the database `name`; also when it is not marked as a sandbox."""
    over = {"_id": name, "$expr": {"$lte": ["$until", "$$NOW"]}}
    if client[DATABASE][LEASES].find_one(over) is None:
        return True
    try:
        look = {"$currentOp": {"allUsers": False, "idleConnections": True}}
        return bool(list(client.admin.aggregate([look, {"$match": {"appName": name}}])))
    except PyMongoError:
        return False


# --- Redis --------------------------------------------------------------------------------------------------------

# A hash in the URL's own database: database number -> until when, in the server's time, and which sandbox has it.
REGISTRY = "workshop:sandboxes"


def _redis_name(sandbox: str) -> str:
    return f"workshop-lease-{sandbox}"


class RedisLease:
    """The lease of the Redis database `number` for a `sandbox`; `taken` says whether it was free."""

    def __init__(self, url: str, number: int, sandbox: str) -> None:
        self.number, self.sandbox = number, sandbox
        self._client = redis_server.connect(
            url, client_name=_redis_name(sandbox), max_connections=1, decode_responses=True
        )
        self._until = self._client.time()[0] + HOLDS_S
        self.taken = bool(self._client.hsetnx(REGISTRY, str(number), f"{self._until} {sandbox}"))

    def renew(self) -> None:
        now = self._client.time()[0]
        if now > self._until and _owner(self._client, self.number) not in (None, self.sandbox):
            return  # somebody has it by now
        self._until = now + HOLDS_S
        self._client.hset(REGISTRY, str(self.number), f"{self._until} {self.sandbox}")

    def close(self) -> None:
        self._client.close()


def _owner(client: redis.Redis, number: int) -> str | None:
    """The sandbox that has the database `number`; None where it is not in the registry."""
    entry = client.hget(REGISTRY, str(number))
    return entry.partition(" ")[2] if entry else None


def redis_leases(client: redis.Redis) -> dict[int, tuple[str, bool]]:
    """For each database in the registry its sandbox, and whether that holds the lease still.

    `client` is on the URL's own database and decodes.
    """
    registered = client.hgetall(REGISTRY)
    if not registered:
        return {}
    now = client.time()[0]
    try:
        names = {entry["name"] for entry in client.client_list()}
    except redis.exceptions.NoPermissionError:
        names = set()
    found = {}
    for number, entry in registered.items():
        until, _, sandbox = entry.partition(" ")
        found[int(number)] = sandbox, _redis_name(sandbox) in names or (until.isdecimal() and int(until) > now)
    return found


def free_redis(url: str, database_url: str, number: int, sandbox: str) -> None:
    """Empty a database and take it out of the registry, unless another than `sandbox` has it by now."""
    with redis_server.connect(url, decode_responses=True) as client:
        if _owner(client, number) not in (None, sandbox):
            return
    with redis_server.connect(database_url) as client:
        try:
            client.flushdb()
        except redis.exceptions.NoPermissionError:  # key by key is allowed to all who may write
            for key in client.scan_iter(count=1000):
                client.unlink(key)
    with redis_server.connect(url) as client:
        client.hdel(REGISTRY, str(number))
