"""Redis's counters: the commands that this process sends, and INFO for hits and misses."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import redis as redis_driver
from redis.asyncio.connection import AbstractConnection as AsyncConnection
from redis.connection import AbstractConnection

from workshop.observe.observation import DEADLINE, Observation
from workshop.observe.windows import Windows

# what the observer itself sends, and what redis-py sends to open a connection
_UNCOUNTED = {"info", "hello", "auth", "select", "client"}
# what others may send, for instance to prolong a lease, without a hit or a miss
_NO_LOOK_UP = {"ping", "expire", "pexpire", "hset", "hdel", "publish", "time"}
# the connection that holds the lesson's database, see lease.py; its commands are not the lesson's
_LEASE = "workshop-lease-"
_SCRIPTS = {"eval", "eval_ro", "evalsha", "evalsha_ro", "fcall", "fcall_ro"}
_windows: Windows[Counter[str]] = Windows()


def _sending(commands: Iterable[tuple]) -> None:
    # redis-py takes "CONFIG GET" for one argument or for two, and text or bytes
    names = [c[0].decode() if isinstance(c[0], bytes) else str(c[0]) for c in commands]
    counted = [name.lower() for name in names if _command(name) not in _UNCOUNTED]
    with _windows.lock:
        for window in _windows.open:
            window.update(counted)


def _command(name: str) -> str:
    """A command's name without its subcommand."""
    return name.replace("|", " ").split()[0].lower()


def _counting_one(send_command: Any) -> Any:
    @functools.wraps(send_command)
    def counting(self: Any, *command: Any, **options: Any) -> Any:
        if _windows.open and not str(getattr(self, "client_name", None)).startswith(_LEASE):
            _sending([command])
        return send_command(self, *command, **options)

    return counting


def _counting_many(pack_commands: Any) -> Any:
    @functools.wraps(pack_commands)
    def counting(self: Any, commands: Iterable[tuple]) -> Any:
        if _windows.open:
            commands = [tuple(command) for command in commands]  # a generator would be empty afterwards
            _sending(commands)
        return pack_commands(self, commands)

    return counting


# Count in the two methods by which redis-py turns commands into bytes: it has no events for commands.
for _connection in (AbstractConnection, AsyncConnection):
    _connection.send_command = _counting_one(_connection.send_command)
    _connection.pack_commands = _counting_many(_connection.pack_commands)


class RedisProbe:
    """The commands of this process's redis-py clients, and the hits and misses of one Redis server."""

    def __init__(self, url: str) -> None:
        self.client = redis_driver.Redis.from_url(url, socket_timeout=DEADLINE, socket_connect_timeout=DEADLINE)
        self.user = self.client.get_connection_kwargs().get("username") or "default"

    def close(self) -> None:
        self.client.close()

    def read(self) -> Mapping[str, Any] | str:
        """INFO's sections commandstats and stats, or why they cannot be read."""
        try:
            return self.client.info("commandstats", "stats")
        except redis_driver.exceptions.NoPermissionError:
            return f"this account may not run INFO; an administrator runs ACL SETUSER {self.user} +info"
        except redis_driver.RedisError as error:
            return f"Redis's counters cannot be read by INFO: {error}"
        finally:
            self.client.close()  # so that an idle observer holds no connection

    @contextmanager
    def watch(self, seen: Observation) -> Iterator[None]:
        before = self.read()
        with _windows.window(Counter()) as sent:
            try:
                yield
            finally:
                self._fill(seen, before, self.read(), sent)

    def _fill(self, seen: Observation, before: Mapping | str, after: Mapping | str, sent: Counter[str]) -> None:
        seen._count(redis_commands=sent.total())
        seen._commands += [("Redis", name, n) for name, n in sent.items()]
        reason = next((reading for reading in (before, after) if isinstance(reading, str)), None)
        reason = reason or self._doubt(before, after, sent)
        if reason:
            seen._absent(["redis_hits", "redis_misses"], reason)
        else:
            hits, misses = (after[name] - before[name] for name in ("keyspace_hits", "keyspace_misses"))
            seen._count(redis_hits=hits, redis_misses=misses)

    def _doubt(self, before: Mapping[str, Any], after: Mapping[str, Any], sent: Counter[str]) -> str | None:
        """Why the growth of the server's counters is not this process's own, if it is not.

        Redis counts hits and misses for the whole server. They are ours where the server ran no command that we did
        not send.
        """
        ours, ran = Counter(), Counter()
        for name, calls in sent.items():
            ours[_command(name)] += calls
        went_back = any(after[name] < before[name] for name in ("keyspace_hits", "keyspace_misses"))
        for key in {**before, **after}:
            if key.startswith("cmdstat_"):
                then, now = (reading.get(key, {"calls": 0})["calls"] for reading in (before, after))
                ran[_command(key.removeprefix("cmdstat_"))] += now - then
                went_back = went_back or now < then
        if went_back:
            return "Redis's counters were reset during the block; run it again"
        others = {name for name, calls in ran.items() if calls > ours[name]} - _UNCOUNTED - _NO_LOOK_UP
        if others and ours.keys() & _SCRIPTS:
            return (
                "a script ran, and Redis does not say whether hits are the script's, this process's or another client's"
            )
        if others:
            return (
                "other clients used this Redis server during the block, and it counts the hits of all together;"
                " run the block again when they are idle, or on a Redis server of your own"
            )
        return None
