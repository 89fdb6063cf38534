"""Extra servers for one lesson: they start, form a cluster, take little memory, and go with whoever asked for them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import redis
from conftest import _own_state

from workshop.servers.extra import PREFIX, ExtraServers, reap
from workshop.servers.postgres_server import connect
from workshop.servers.process import PROGRAMS
from workshop.state import WorkshopError, lock, password

MEMORY_MB = 400
GONE_WITHIN_S = 60.0

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("passwords")]


@pytest.fixture(scope="module")
def state():
    """A state folder of the module's own."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield from _own_state(monkeypatch)


@pytest.fixture
def passwords(state):
    with lock():
        for owner in ("postgres", "redis"):
            password(owner)


def servers_below(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["name", "status"]):
        try:
            alive = process.info["name"] in PROGRAMS and process.status() != psutil.STATUS_ZOMBIE
            if alive and str(folder) in process.cwd():
                found.append(process)
        except psutil.Error:
            pass
    return found


def wait_until_gone(state: Path) -> None:
    give_up = time.monotonic() + GONE_WITHIN_S
    while servers_below(state) or list(state.glob(f"{PREFIX}*")):
        assert time.monotonic() < give_up, [process.cmdline() for process in servers_below(state)]
        time.sleep(0.1)


def test_they_start_as_asked_take_little_memory_and_go(state):
    extra = ExtraServers(postgres=2, redis=3)
    try:
        assert [extra.services[name].name for name in extra.services] == ["postgres"] * 2 + ["redis"] * 3
        for url in extra.postgres:
            with connect(url) as connection:
                connection.execute("CREATE EXTENSION postgres_fdw")
                assert connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()[0]
                assert connection.execute("SHOW max_prepared_transactions").fetchone()[0] != "0"
        with redis.RedisCluster.from_url(extra.redis[0]) as cluster:
            for number in range(300):
                cluster.set(f"key {number}", number)
        per_node = [redis.Redis.from_url(url).dbsize() for url in extra.redis]
        assert sum(per_node) == 300 and min(per_node) > 50
        memory = sum(process.memory_full_info().pss for process in servers_below(state)) / 1e6
        assert memory < MEMORY_MB
        folders = list(state.glob(f"{PREFIX}*"))
        assert len(folders) == 1 and not reap(), "those that are in use stay"
        assert password("postgres") not in repr(extra) and password("redis") not in repr(extra)
        # A server that dies comes back at its address, with what it had written.
        with connect(extra.postgres[1]) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
        extra.stop("postgres-2")
        with pytest.raises(Exception, match="refused"):
            connect(extra.postgres[1])
        extra.start("postgres-2")
        with connect(extra.postgres[1]) as connection:
            assert connection.execute("SELECT n FROM kept").fetchone() == (1,)
    finally:
        extra.close()
    assert not servers_below(state) and not list(state.glob(f"{PREFIX}*"))


USER = """
import sys, time
from workshop.servers.extra import ExtraServers
extra = ExtraServers(postgres=1, redis=3)
print(extra._watcher.pid, flush=True)
time.sleep(600)
"""


def started_elsewhere() -> tuple[subprocess.Popen, int]:
    """A process with servers of its own, and the process id of its watcher."""
    process = subprocess.Popen([sys.executable, "-c", USER], stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


def test_they_are_gone_after_a_kill_of_the_process_that_asked_for_them(state):
    process, _ = started_elsewhere()
    assert len(servers_below(state)) >= 4
    process.kill()
    process.communicate()
    wait_until_gone(state)


def test_they_are_gone_with_the_next_ones_where_the_watcher_was_killed_too(state):
    process, watcher = started_elsewhere()
    psutil.Process(watcher).send_signal(signal.SIGKILL)
    process.kill()
    process.communicate()
    assert servers_below(state)
    with lock():
        assert len(reap()) == 1
    wait_until_gone(state)


def test_bad_luck_is_one_sentence_and_leaves_nothing_behind(state, monkeypatch):
    monkeypatch.setattr("workshop.servers.extra.SLOTS", 100)  # so the cluster misses most of its hash slots
    monkeypatch.setattr("workshop.servers.extra.CLUSTER_DEADLINE_S", 1.0)
    with pytest.raises(WorkshopError, match=r"have not become one cluster within 1 s: run the cell again$"):
        ExtraServers(redis=3)
    wait_until_gone(state)


def test_a_cluster_has_three_nodes_at_least(state):
    with pytest.raises(ValueError, match="three nodes or more"):
        ExtraServers(redis=2)
