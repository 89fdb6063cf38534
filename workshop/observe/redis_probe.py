"""Redis's counters: INFO of the server, or the commands of this process where others use the server too."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import redis

from workshop.observe.observation import DEADLINE, Observation, ObserveError

# what the observer itself sends, and what redis-py sends to open a connection
UNCOUNTED = {"info", "hello", "auth", "select", "client", "ping"}


class _Sent:
    """Counts the commands that this process's connections send, by the database of the connection."""

    def __init__(self) -> None:
        self.commands: Counter[tuple[int, str]] = Counter()
        for connection in (redis.connection.AbstractConnection, redis.asyncio.connection.AbstractConnection):
            connection.send_command = self._one(connection.send_command)
            connection.pack_commands = self._many(connection.pack_commands)

    def _count(self, connection: Any, command: Any) -> None:
        name = command.decode() if isinstance(command, bytes) else str(command)
        self.commands[connection.db or 0, name.lower()] += 1

    def _one(self, send_command: Callable) -> Callable:
        @functools.wraps(send_command)
        def counted(connection: Any, *command: Any, **options: Any) -> Any:
            self._count(connection, command[0])
            return send_command(connection, *command, **options)

        return counted

    def _many(self, pack_commands: Callable) -> Callable:
        @functools.wraps(pack_commands)
        def counted(connection: Any, commands: Iterable[Any]) -> Any:
            commands = list(commands)
            for command in commands:
                self._count(connection, command[0])
            return pack_commands(connection, commands)

        return counted


_sent: _Sent | None = None


def _sent_by_this_process() -> _Sent:
    global _sent
    if _sent is None:
        _sent = _Sent()
    return _sent


class RedisProbe:
    """The counters of one database of a Redis server.

    Redis keeps its counters for the server as a whole. They are this lesson's as long as no client of another database
    is connected; else the commands that this process sent are counted, and hits and misses are not.
    """

    NAMES = ("redis_commands", "redis_hits", "redis_misses")

    def __init__(self, client: redis.Redis) -> None:
        pool = client.connection_pool
        wanted = {"host", "port", "path", "username", "password", "credential_provider", "protocol", "db"}
        kwargs = {k: v for k, v in pool.connection_kwargs.items() if k in wanted or k.startswith("ssl_")}
        self.database = int(kwargs.get("db") or 0)
        self.sent = _sent_by_this_process()
        # a pool of its own, because the lesson's client need not have a deadline
        self.pool = redis.ConnectionPool(
            connection_class=pool.connection_class,
            socket_timeout=DEADLINE,
            socket_connect_timeout=DEADLINE,
            client_name="workshop-observer",
            **kwargs,
        )

    def _read(self) -> tuple[Mapping[str, Any], str]:
        """INFO's counters, empty where they may not be read; and why they are not this lesson's alone."""
        client = redis.Redis(connection_pool=self.pool)
        try:
            others = {c["db"] for c in client.client_list() if not c["name"].startswith("workshop-")}
            shared = others - {str(self.database)}
            return client.info("commandstats", "stats"), (
                f"{len(shared)} other database(s) of this Redis server are in use, and it counts for all together;"
                " open the lesson on a server of its own to count"
                if shared
                else ""
            )
        except redis.exceptions.NoPermissionError:
            reason = "this Redis account may not run INFO and CLIENT LIST; an administrator runs"
            return {}, f"{reason} ACL SETUSER name +info +client|list"
        except redis.RedisError as error:
            raise ObserveError(f"expected to read Redis's counters by INFO; found: {error}") from error
        finally:
            self.pool.disconnect()

    @contextmanager
    def watch(self, seen: Observation) -> Iterator[None]:
        before, shared = self._read()
        sent = self.sent.commands.copy()
        try:
            yield
        finally:
            sent = self.sent.commands - sent
            after, shared_now = self._read()
            if shared or shared_now:
                self._fill_from_client(seen, sent, shared or shared_now)
            else:
                self._fill_from_server(seen, before, after)

    def _fill_from_client(self, seen: Observation, sent: Counter[tuple[int, str]], reason: str) -> None:
        calls = {name: n for (db, name), n in sent.items() if db == self.database and name not in UNCOUNTED}
        seen.count("Redis", calls, redis_commands=sum(calls.values()))
        seen.absent(("redis_hits", "redis_misses"), reason, note=False)
        seen.note(f"redis_commands are those that this process sent: {reason}")

    def _fill_from_server(self, seen: Observation, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        calls = {}
        for key, stats in after.items():
            name = key.removeprefix("cmdstat_")
            if key != name and name.split("|")[0] not in UNCOUNTED:
                calls[name.replace("|", " ")] = int(stats["calls"]) - int(before.get(key, {"calls": 0})["calls"])
        hits = after["keyspace_hits"] - before["keyspace_hits"]
        misses = after["keyspace_misses"] - before["keyspace_misses"]
        gone = any(k.startswith("cmdstat_") and k not in after for k in before)
        if gone or min(hits, misses, *calls.values(), 0) < 0:
            raise ObserveError(
                "expected Redis's counters only to grow during the block;"
                " found that they were reset; run the block again"
            )
        seen.count("Redis", calls, redis_commands=sum(calls.values()), redis_hits=hits, redis_misses=misses)
