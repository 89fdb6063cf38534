"""More servers than the workbook's own three, for one lesson: several PostgreSQL servers, and a Redis Cluster.

They are started from the same programs, in a folder of their own in the state folder, and they go with the process that
asked for them. A watcher process holds the reading end of a pipe whose writing end belongs to that process: when that
ends, however it ends, the pipe closes, and the watcher stops the servers and deletes the folder. Should the watcher
have been killed too, the next process that starts such servers does it: it finds the folder's lock free.
"""

from __future__ import annotations

import fcntl
import secrets
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psycopg
import redis
from sqlalchemy import URL

from workshop.servers import postgres_server, redis_server
from workshop.servers.find import Programs
from workshop.servers.local import LocalServer
from workshop.servers.process import ServerProcess, free_port, watch
from workshop.servers.service import Service
from workshop.state import WorkshopError, is_root, lock, state_dir

PREFIX = "extra-"
HELD = "held"  # a file in the folder, locked by the process that uses the servers
CLUSTER_DEADLINE_S = 30.0
STOP_DEADLINE_S = 5.0
SLOTS = 16384

# Smaller than the workbook's own server, and ready for two-phase commit.
POSTGRES_SETTINGS = """
shared_buffers = 48MB
max_connections = 60
max_wal_size = 128MB
max_prepared_transactions = 10
"""
REDIS_SETTINGS = """
save ""
appendonly no
cluster-enabled yes
cluster-config-file nodes.conf
cluster-node-timeout 2000
"""

# What the watcher does at the end, see `process.watch`.
WATCHER = "from pathlib import Path; from workshop.servers.extra import remove; remove(Path(given))"


class Postgres(postgres_server.Cluster):
    """One of several PostgreSQL servers. Its user is the superuser, which `CREATE EXTENSION postgres_fdw` needs."""

    def _initialize(self, tools: Programs) -> None:
        super()._initialize(tools)
        with open(self.data / "postgresql.conf", "a", encoding="utf-8") as conf:
            conf.write(POSTGRES_SETTINGS)

    def start(self) -> None:
        super().start()
        with suppress(psycopg.Error), postgres_server.connect(self.url(self.process.port)) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")


class RedisNode(redis_server.Redis):
    """One node of a Redis Cluster."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "a node of the Redis Cluster")

    def settings(self) -> str:
        # The nodes' own port is by default that of the clients and 10,000, which may be none.
        return f"cluster-port {self.bus_port()}\n{REDIS_SETTINGS}"

    def bus_port(self) -> int:
        """The port by which the nodes talk to each other; the same again after a stop."""
        kept = self.folder / "bus-port"
        if not kept.exists():
            kept.write_text(str(free_port()))
        return int(kept.read_text())


class ExtraServers:
    """Servers that run until `close`, or until this process ends.

    `postgres` has the URLs of the PostgreSQL servers, `redis` those of the cluster's nodes, in the order of their names
    "postgres-1", "postgres-2", ..., "redis-1", ...; they hold passwords: do not print them.
    """

    def __init__(self, postgres: int = 0, redis: int = 0) -> None:
        """Start so many of each. Raises WorkshopError, in one sentence, when one cannot be had.

        ValueError for a cluster of one or two nodes: Redis wants three at least.
        """
        if postgres < 0 or redis < 0 or redis in (1, 2):
            raise ValueError(f"a Redis Cluster has three nodes or more (or there is none); found {redis}")
        with lock():
            reap()
            self._folder = state_dir() / f"{PREFIX}{secrets.token_hex(4)}"
            self._folder.mkdir(mode=0o711 if is_root() else 0o700)
            self._held = open(self._folder / HELD, "w", encoding="utf-8")  # noqa: SIM115
            fcntl.flock(self._held, fcntl.LOCK_EX)
            self._watcher = watch(WATCHER, str(self._folder))
            servers: list[LocalServer] = [Postgres(f"{self._folder.name}/postgres-{n + 1}") for n in range(postgres)]
            servers += [RedisNode(f"{self._folder.name}/redis-{n + 1}") for n in range(redis)]
            self._servers = {server.folder.name: server for server in servers}
            self.services: dict[str, Service] = {}
            try:
                with ThreadPoolExecutor(max(1, len(servers))) as pool:
                    started = pool.map(LocalServer.up, servers)
                    self.services = dict(zip(self._servers, started, strict=True))
                _form_cluster(self.redis, [node.bus_port() for node in servers if isinstance(node, RedisNode)])
            except BaseException:
                self.close()
                raise

    @property
    def postgres(self) -> list[URL]:
        return [service.url for service in self.services.values() if service.name == "postgres"]

    @property
    def redis(self) -> list[str]:
        return [service.url for service in self.services.values() if service.name == "redis"]

    def stop(self, name: str) -> None:
        """End the server `name` at once, as a power cut would; its data stays for `start`."""
        self._servers[name].process.stop(signal.SIGQUIT if name.startswith("postgres") else signal.SIGKILL)

    def start(self, name: str) -> None:
        """Start the server `name` again, at the address that it had. Raises WorkshopError when that is taken by now."""
        again = self._servers[name].up()
        if again.address != self.services[name].address:
            raise WorkshopError(f"the port of {name} was taken meanwhile: open the lesson again")

    def close(self) -> None:
        """Stop the servers and delete their data."""
        remove(self._folder)
        self._held.close()
        self._watcher.kill()  # nothing is left for it to do
        self._watcher.wait()
        self._watcher.stdin.close()

    def __repr__(self) -> str:
        running = ", ".join(f"{name} ({service.version})" for name, service in self.services.items())
        return f"started for this lesson, stopped with it: {running}"


def remove(folder: Path) -> None:
    """Stop the servers below `folder` at once and delete it."""
    for own in sorted(folder.glob("*-[0-9]*")):
        process = ServerProcess(own.name, own)
        process.stop(signal.SIGQUIT if own.name.startswith("postgres") else signal.SIGTERM, STOP_DEADLINE_S)
    ServerProcess(folder.name, folder).end_strays()
    shutil.rmtree(folder, ignore_errors=True)


def reap() -> list[str]:
    """Remove the servers whose process has ended, and whose watcher too; their folders' names. Hold the lock."""
    removed = []
    for folder in state_dir().glob(f"{PREFIX}*"):
        with open(folder / HELD, "a", encoding="utf-8") as held, suppress(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder)
            removed.append(folder.name)
    return removed


def _form_cluster(urls: list[str], bus_ports: list[int]) -> None:
    """Give each node an equal part of the hash slots, introduce the nodes to each other, and wait until all agree.

    Raises WorkshopError when they do not within CLUSTER_DEADLINE_S seconds.
    """
    nodes = [redis_server.connect(url, decode_responses=True) for url in urls]
    try:
        for number, node in enumerate(nodes):
            first, behind = (SLOTS * at // len(nodes) for at in (number, number + 1))
            node.execute_command("CLUSTER", "ADDSLOTSRANGE", first, behind - 1)
            node.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node, bus_port in zip(nodes[1:], bus_ports[1:], strict=True):
            address = node.connection_pool.connection_kwargs
            nodes[0].execute_command("CLUSTER", "MEET", address["host"], address["port"], bus_port)
        give_up = time.monotonic() + CLUSTER_DEADLINE_S
        while not all(_agrees(node, len(nodes)) for node in nodes):
            if time.monotonic() > give_up:
                raise WorkshopError(
                    f"the Redis nodes have not become one cluster within {CLUSTER_DEADLINE_S:.0f} s: run the cell again"
                )
            time.sleep(0.05)
    except redis.RedisError as error:
        raise WorkshopError(
            f"the Redis nodes have not become one cluster ({error}): run `python -m workshop doctor`"
        ) from None
    finally:
        for node in nodes:
            node.close()


def _agrees(node: redis.Redis, nodes: int) -> bool:
    info = node.execute_command("CLUSTER", "INFO")
    if isinstance(info, str):
        info = dict(line.split(":", 1) for line in info.split() if ":" in line)
    return info["cluster_state"] == "ok" and info["cluster_known_nodes"] == str(nodes)
