"""A lesson's databases go when its process does, and nothing else ever goes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pymongo
import pytest
import redis
from psycopg import sql

from workshop import lease, open_lesson, sandbox
from workshop.servers.postgres_server import connect, dsn
from workshop.shop import postgres_loader

WANTED = ("postgres", "mongo", "redis")


@pytest.fixture(scope="module")
def shop(small_shop):
    return small_shop


@pytest.fixture(autouse=True)
def _long_after_the_start(monkeypatch):
    """These tests' PostgreSQL has just been started; here nobody waits for lessons that lived through that."""
    monkeypatch.setattr(lease, "BACK_S", 0)


def databases(servers) -> set[str]:
    with connect(servers.postgres) as connection:
        return {row[0] for row in connection.execute("SELECT datname FROM pg_database")}


def stores_holding(servers, box: dict) -> set[str]:
    """Which servers still hold something of the sandbox."""
    found = {"postgres"} if box["name"] in databases(servers) else set()
    with pymongo.MongoClient(servers.mongo) as client:
        found |= {"mongo"} if box["name"] in client.list_database_names() else set()
    with redis.Redis.from_url(servers.redis, decode_responses=True) as client:
        registered = client.hexists(lease.REGISTRY, str(box["redis_database"]))
    with redis.Redis.from_url(sandbox.redis_database_url(servers.redis, box["redis_database"])) as client:
        found |= {"redis"} if registered or client.dbsize() else set()
    return found


def wait_until_gone(servers, box: dict) -> None:
    give_up = time.monotonic() + 20
    while stores_holding(servers, box):
        assert time.monotonic() < give_up, f"still in {stores_holding(servers, box)}"
        time.sleep(0.1)


LESSON = """
import json, socket, sys
from dataclasses import asdict
import redis
from workshop import lease, sandbox
from workshop.servers import lifecycle
lease.BACK_S = 0
socket.gethostname = lambda: {host!r}
box = sandbox.create(lifecycle.up(), "test", ("postgres", "mongo", "redis"))
watcher = sandbox.watch(box)
redis.Redis.from_url(box.redis).set("something", "of the lesson")
print(json.dumps(asdict(box) | {{"watcher": watcher.pid}}), flush=True)
sys.stdin.read()
"""


class Machine:
    """A lesson's process as on a machine of its own: with a host name and a state folder, and the servers by URL."""

    def __init__(self, servers, folder: Path, host: str = "laptop") -> None:
        folder.mkdir(exist_ok=True)
        folder.chmod(0o711)
        urls = {
            "WORKSHOP_POSTGRES_URL": servers.postgres.render_as_string(hide_password=False),
            "WORKSHOP_REDIS_URL": servers.redis,
            "WORKSHOP_MONGO_URL": servers.mongo,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", LESSON.format(host=host)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "WORKSHOP_STATE": str(folder), **urls},
        )
        self.box = json.loads(self.process.stdout.readline())

    def vanish(self) -> None:
        """Kernel and watcher are killed at the same moment, as when a container goes."""
        os.kill(self.box["watcher"], signal.SIGKILL)
        self.process.kill()
        self.process.wait(10)


@pytest.fixture
def machine(shop, tmp_path):
    """Makes machines; they and what they hold are gone after the test."""
    made = []

    def make(state: str = "state", host: str = "laptop") -> Machine:
        # pytest's own folder is closed to the account that runs PostgreSQL for root
        folder = Path(tempfile.gettempdir()) / f"workshop-test-{state}-{os.getpid()}"
        made.append((Machine(shop, folder, host), folder))
        return made[-1][0]

    yield make
    for one, _ in made:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGCONT)
            one.process.kill()
            one.process.wait(10)
    for one, folder in made:
        wait_until_gone(shop, one.box)
        shutil.rmtree(folder, ignore_errors=True)


def long_after(servers, box: dict) -> None:
    """The times are over until which MongoDB and Redis keep a lease without a connection."""
    with pymongo.MongoClient(servers.mongo) as client:
        long_ago = {"$set": {"until": datetime(2020, 1, 1, tzinfo=UTC)}}
        client["workshop_shop"][lease.LEASES].update_one({"_id": box["name"]}, long_ago)
    with redis.Redis.from_url(servers.redis) as client:
        client.hset(lease.REGISTRY, str(box["redis_database"]), f"1 {box['name']}")


def test_a_killed_kernel_leaves_nothing(shop, machine):
    lesson = machine()
    assert stores_holding(shop, lesson.box) == set(WANTED)
    lesson.process.kill()
    wait_until_gone(shop, lesson.box)


def test_kernel_and_watcher_killed_at_once_are_cleaned_up_from_anywhere(shop, machine):
    gone, lives = machine("one", host="a3f9c1"), machine("other", host="77b0de")
    gone.vanish()
    long_after(shop, gone.box)
    assert stores_holding(shop, gone.box) == set(WANTED)
    sandbox.reap(shop)  # a third state folder, this test's own
    assert stores_holding(shop, gone.box) == set()
    assert stores_holding(shop, lives.box) == set(WANTED)


def test_two_machines_with_equal_names_and_paths_do_not_take_from_each_other(shop, machine):
    """Cloned machines have equal host names, paths and, now and then, process ids."""
    first, second = machine("same"), machine("same")
    assert first.box["name"] != second.box["name"]
    assert first.box["redis_database"] != second.box["redis_database"]
    second.vanish()
    long_after(shop, second.box)
    machine("same")  # a lesson opens on the second one again
    assert stores_holding(shop, first.box) == set(WANTED)
    # The number of its Redis database is free, and may be the new lesson's by now.
    assert stores_holding(shop, second.box) <= {"redis"}


def test_a_paused_laptop_keeps_its_sandbox(shop, machine):
    lesson = machine()
    os.kill(lesson.box["watcher"], signal.SIGSTOP)
    lesson.process.send_signal(signal.SIGSTOP)
    try:
        # As after a long pause: the times that it would have renewed are over, its sessions are there.
        long_after(shop, lesson.box)
        sandbox.reap(shop)
        assert stores_holding(shop, lesson.box) == set(WANTED)
    finally:
        os.kill(lesson.box["watcher"], signal.SIGCONT)


def test_a_moment_without_network_costs_nobody_a_sandbox(shop):
    box = sandbox.create(shop, "test", ("mongo", "redis"))
    try:
        for held in box._leases:
            held.close()
        sandbox.reap(shop)
        assert stores_holding(shop, asdict(box)) == {"mongo", "redis"}
    finally:
        box.drop()
    assert stores_holding(shop, asdict(box)) == set()


def test_a_redis_database_that_another_lesson_has_by_now_stays_hers(shop):
    """As when a laptop wakes after a night, and its database was given away."""
    box = sandbox.create(shop, "test", ("redis",))
    entry, hers = (lease.REGISTRY, str(box.redis_database)), f"{2**40} hers"
    with redis.Redis.from_url(shop.redis, decode_responses=True) as client, redis.Redis.from_url(box.redis) as her:
        client.hset(*entry, hers)
        her.set("something", "of hers")
        box._leases[0]._until = 0
        box._renew()
        box.drop()
        assert client.hget(*entry) == hers and her.dbsize() == 1
        lease.free_redis(shop.redis, box.redis, box.redis_database, "hers")
        assert not client.hexists(*entry) and her.dbsize() == 0


def test_a_lease_is_taken_again_when_its_session_was_lost(shop, monkeypatch):
    """As after a failover, or a night without network."""
    monkeypatch.setattr(lease, "RENEW_S", 0.2)
    box = sandbox.create(shop, "test", ("postgres",))
    try:
        key = lease.key_of(box.name)
        with connect(shop.postgres) as connection:
            held = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND objid = %s"
            (pid,) = connection.execute(held, key).fetchone()
            connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            give_up = time.monotonic() + 10
            while not (again := connection.execute(held, key).fetchone()):
                assert time.monotonic() < give_up
                time.sleep(0.05)
        assert again != (pid,)
    finally:
        box.drop()


def test_a_restart_of_postgresql_costs_nobody_a_sandbox(shop, monkeypatch):
    box = sandbox.create(shop, "test", ("postgres",))
    try:
        box._leases[0].close()  # as its restart does
        with connect(shop.postgres) as connection:
            since = "SELECT extract(epoch FROM now() - pg_postmaster_start_time())"
            up_s = float(connection.execute(since).fetchone()[0])
        monkeypatch.setattr(lease, "BACK_S", up_s + 60)
        assert box.name not in sandbox.reap(shop)
        monkeypatch.setattr(lease, "BACK_S", up_s)
        assert box.name in sandbox.reap(shop)
    finally:
        box.drop()


@pytest.mark.long
def test_nor_does_a_backend_that_is_killed(shop, monkeypatch):
    """PostgreSQL then ends all sessions, and goes on without being started."""
    monkeypatch.setattr(lease, "BACK_S", 3)
    with connect(shop.postgres) as connection:
        while not lease.is_back(connection):
            time.sleep(0.2)
        os.kill(connection.info.backend_pid, signal.SIGKILL)
    give_up = time.monotonic() + 20
    while time.monotonic() < give_up:
        try:
            with connect(shop.postgres) as connection:
                assert not lease.is_back(connection)
                return
        except psycopg.OperationalError:  # it recovers
            time.sleep(0.05)
    raise AssertionError("PostgreSQL did not come back")


def test_a_kill_between_create_and_mark_leaves_nothing_for_ever(shop):
    name = f"{sandbox.PREFIX}test_0a1b2c3d"
    with connect(shop.postgres) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    assert name in sandbox.reap(shop)
    assert name not in databases(shop)


def test_what_the_workbook_did_not_make_is_never_dropped(shop):
    lookalikes = {
        f"{sandbox.PREFIX}of_somebody_else": None,
        f"{sandbox.PREFIX}test_0a1b2c3e": "a colleague's",
        f"{sandbox.PREFIX}test_0a1b2c3f": '{"workshop": "something else"}',
    }
    with connect(shop.postgres) as connection:
        try:
            for name, comment in lookalikes.items():
                connection.execute(f"CREATE DATABASE {name}")
                connection.execute(sql.SQL(f"COMMENT ON DATABASE {name} IS {{}}").format(sql.Literal(comment)))
            assert not set(sandbox.reap(shop)) & lookalikes.keys()
            assert lookalikes.keys() <= databases(shop)
        finally:
            for name in lookalikes:
                connection.execute(f"DROP DATABASE IF EXISTS {name}")


def test_a_mongo_database_without_the_mark_stays(shop):
    name = f"{sandbox.PREFIX}test_0a1b2c3d"
    with pymongo.MongoClient(shop.mongo) as client:
        client[name].things.insert_one({})
        try:
            sandbox.reap(shop)
            assert name in client.list_database_names()
        finally:
            client.drop_database(name)


def test_several_sandboxes_at_once(shop):
    """No queue: the template is copied by all of them together."""
    with ThreadPoolExecutor(4) as pool:
        boxes = list(pool.map(lambda _: sandbox.create(shop, "test", ("postgres", "redis")), range(4)))
    try:
        assert {box.name for box in boxes} <= databases(shop)
        assert len({box.redis_database for box in boxes}) == 4
    finally:
        for box in boxes:
            box.drop()
    assert not {box.name for box in boxes} & databases(shop)


FIRST_CELLS = """
import atexit, threading, time
import psutil
from workshop import open_lesson

def held():
    time.sleep(1)  # PyMongo's threads end within half a second of their client
    process = psutil.Process()
    return len(process.net_connections()), threading.active_count(), len(process.children()), atexit._ncallbacks()

for number in range(20):
    lesson = open_lesson("97-again", servers=("postgres", "mongo", "redis"))
    if number == 0:
        print(*held())
print(*held())
"""


@pytest.mark.long
def test_the_first_cell_run_twenty_times_leaves_nothing_over(shop):
    """Connections, threads, watchers and exit hooks of one process."""
    done = subprocess.run([sys.executable, "-c", FIRST_CELLS], capture_output=True, text=True, timeout=250)
    once, twenty_times = done.stdout.splitlines()
    assert once == twenty_times


def test_keeping_the_lease_is_not_counted_as_the_lessons_work(shop):
    lesson = open_lesson("96-lease", servers=WANTED)
    try:
        with lesson.observe() as seen:
            for _ in range(3):
                lesson._sandbox._renew()
        assert (seen.redis_commands, seen.mongo_commands, seen.statements) == (0, 0, 0)
        assert (seen.documents_examined, seen.keys_examined, seen.connections) == (0, 0, 0)
        assert (seen.redis_hits, seen.redis_misses) == (0, 0)
    finally:
        lesson.close()


def test_a_sandbox_is_a_copy_with_every_row(shop):
    box = sandbox.create(shop, "test", WANTED)
    try:
        with psycopg.connect(dsn(box.postgres)) as connection:
            rows = {
                table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for table in ("customers", "products", "orders", "order_items")
            }
        assert rows == postgres_loader.seeded_postgres(shop.postgres)["rows"]
        with pymongo.MongoClient(shop.mongo) as client:
            assert client[box.name].profiles.estimated_document_count() == rows["customers"]
        with redis.Redis.from_url(box.redis) as client:
            assert client.dbsize() == 0
    finally:
        box.drop()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://:p@h:1/0", "redis://:p@h:1/7"),
        ("redis://:p@h:1", "redis://:p@h:1/7"),
        ("redis://:p@h:1?db=2&protocol=3", "redis://:p@h:1/7?protocol=3"),
        ("rediss://u:p@h:1/2?ssl_cert_reqs=none", "rediss://u:p@h:1/7?ssl_cert_reqs=none"),
    ],
)
def test_redis_database_url(url, expected):
    assert sandbox.redis_database_url(url, 7) == expected


def test_a_database_with_somebodys_binary_keys_is_passed_over(shop):
    box = sandbox.create(shop, "test", ("redis",))
    first = box.redis_database
    with redis.Redis.from_url(box.redis) as client:
        box.drop()
        client.set(b"\xff\x00", 1)
        other = sandbox.create(shop, "test", ("redis",))
        try:
            assert other.redis_database != first
        finally:
            other.drop()
            client.delete(b"\xff\x00")


def test_what_cannot_be_dropped_keeps_nobody_from_a_lesson(shop, monkeypatch):
    name = f"{sandbox.PREFIX}test_{0:08x}"
    with connect(shop.postgres) as connection:
        connection.execute(f"CREATE DATABASE {name}")

    def refused(*_: object) -> None:
        raise psycopg.errors.InsufficientPrivilege("must be a superuser to terminate superuser process")

    with monkeypatch.context() as patched:
        patched.setattr(sandbox, "drop_postgres", refused)
        assert name not in sandbox.reap(shop)
        sandbox.create(shop, "test", ("postgres",)).drop()
    assert name in sandbox.reap(shop)


def test_a_first_cell_that_fails_leaves_no_copy(shop, monkeypatch):
    def unreachable(*_: object) -> None:
        raise KeyboardInterrupt

    before = databases(shop)
    monkeypatch.setattr("workshop.lesson.round_trip", unreachable)
    with pytest.raises(KeyboardInterrupt):
        open_lesson("97-interrupted")
    assert databases(shop) <= before
