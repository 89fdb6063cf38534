"""The servers: from nothing to ready, found again, mended, and gone without a trace."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg
import pymongo
import pytest
import redis
from pymongo.errors import OperationFailure

from workshop.servers import lifecycle, local, mongo_server, postgres_server
from workshop.servers.find import find
from workshop.servers.postgres_server import dsn
from workshop.servers.process import ServerProcess
from workshop.servers.redis_server import Redis
from workshop.servers.service import Servers
from workshop.state import ACCOUNT, WorkshopError, is_root, lock, password

NAMES = ("postgres", "redis", "mongo")
pytestmark = pytest.mark.long


def server_processes(folder: Path) -> dict[str, psutil.Process]:
    """The running server processes whose run files stand in `folder`, by name."""
    found = {}
    for run_file in folder.glob("*/run.json"):
        run = json.loads(run_file.read_text())
        with contextlib.suppress(psutil.NoSuchProcess):
            found[run_file.parent.name] = psutil.Process(run["pid"])
    return found


def query(url, statement: str):
    """The first value that the statement returns, if it returns any."""
    with psycopg.connect(dsn(url), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None


def ping_all(servers: Servers) -> None:
    assert query(servers.postgres, "SELECT 1") == 1
    assert redis.Redis.from_url(servers.redis).ping()
    with pymongo.MongoClient(servers.mongo) as client:
        assert client.test.things.insert_one({}).acknowledged


def test_from_nothing_up_again_and_down(own_state):
    start = time.monotonic()
    servers = lifecycle.up()
    assert time.monotonic() - start < 15
    ping_all(servers)
    before = {name: process.pid for name, process in server_processes(own_state).items()}
    assert set(before) == set(NAMES)

    again = lifecycle.up()
    assert {name: process.pid for name, process in server_processes(own_state).items()} == before
    assert again == servers

    family = [child for pid in before.values() for child in psutil.Process(pid).children(recursive=True)]
    ports = [int(service.address.rpartition(":")[2].partition("/")[0]) for service in servers.services.values()]
    assert sorted(lifecycle.down()) == sorted(NAMES)
    assert server_processes(own_state) == {}
    assert not [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not [path for path in own_state.rglob("*") if path.is_socket()]
    for port in ports:
        assert not Path(f"/tmp/.s.PGSQL.{port}").exists()
        assert not Path(f"/tmp/mongodb-{port}.sock").exists()
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert lifecycle.down() == []


def test_several_processes_start_one_set_of_servers(own_state):
    code = "from workshop.servers import lifecycle; s = lifecycle.up(); print(s.postgres.port, s.redis, s.mongo)"
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = {process.communicate(timeout=100)[0] for process in started}
    assert [process.returncode for process in started] == [0] * 4
    assert len(answers) == 1


def test_killed_servers_a_stale_pid_and_a_taken_port_are_mended(own_state):
    servers = lifecycle.up()
    query(servers.postgres, "CREATE TABLE kept AS SELECT 42 AS n")
    with pymongo.MongoClient(servers.mongo) as client:
        client.kept.things.insert_one({"_id": 1})
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    ports = {name: json.loads((own_state / name / "run.json").read_text())["port"] for name in NAMES}
    for process in server_processes(own_state).values():
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    # As after a reboot: the process id in the file now belongs to somebody else, and so do the ports.
    blockers = []
    for name, port in ports.items():
        run_file = own_state / name / "run.json"
        run_file.write_text(json.dumps({**json.loads(run_file.read_text()), "pid": bystander.pid}))
        blocker = socket.socket()
        blocker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        blocker.bind(("127.0.0.1", port))
        blocker.listen()
        blockers.append(blocker)
    try:
        mended = lifecycle.up()
        ping_all(mended)
        assert query(mended.postgres, "SELECT n FROM kept") == 42
        with pymongo.MongoClient(mended.mongo) as client:
            assert client.kept.things.count_documents({}) == 1
        assert mended.postgres.port != servers.postgres.port
        assert bystander.poll() is None
    finally:
        bystander.kill()
        for blocker in blockers:
            blocker.close()


@pytest.mark.long
def test_a_server_that_no_longer_answers_is_replaced(own_state):
    servers = lifecycle.up()
    frozen = server_processes(own_state)["redis"]
    frozen.send_signal(signal.SIGSTOP)
    try:
        assert redis.Redis.from_url(lifecycle.up().redis).ping()
        assert not frozen.is_running() or frozen.status() == psutil.STATUS_ZOMBIE
    finally:
        if frozen.is_running():
            frozen.kill()
    assert servers.postgres == lifecycle.up().postgres


@pytest.mark.long
def test_a_server_that_stands_still_for_some_seconds_is_not_replaced(own_state):
    lifecycle.up(("redis",))
    frozen = server_processes(own_state)["redis"]
    frozen.send_signal(signal.SIGSTOP)
    again = threading.Timer(7, frozen.send_signal, [signal.SIGCONT])
    again.start()
    try:
        lifecycle.up(("redis",))
        assert server_processes(own_state)["redis"].pid == frozen.pid
    finally:
        again.join()


def test_a_server_that_lets_nobody_in_is_left_alone(own_state, monkeypatch):
    """Open lessons have taken all connections, or it has another password than we know."""
    monkeypatch.setattr(local, "REFUSED_DEADLINE_S", 0.3)
    query(lifecycle.up(("postgres",)).postgres, "ALTER SYSTEM SET max_connections = 8")
    lifecycle.down()
    servers = lifecycle.up()
    before = {name: process.pid for name, process in server_processes(own_state).items()}
    with contextlib.ExitStack() as lessons:
        taken = []
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                taken.append(lessons.enter_context(psycopg.connect(dsn(servers.postgres))))
        with pytest.raises(local.Refused, match=r"postgres runs and lets nobody in \(.*too many clients already\)"):
            lifecycle.up(("postgres",))
        assert all(connection.execute("SELECT 1").fetchone() == (1,) for connection in taken)
    with redis.Redis.from_url(servers.redis) as lesson:
        lesson.config_set("maxclients", 1)
        with pytest.raises(local.Refused, match="max number of clients reached"):
            lifecycle.up(("redis",))
        lesson.config_set("maxclients", 100)
    with monkeypatch.context() as other:
        other.setattr(mongo_server, "password", lambda name: "another")
        with pytest.raises(local.Refused, match="Authentication failed"):
            lifecycle.up(("mongo",))
    assert lifecycle.up() == servers
    assert {name: process.pid for name, process in server_processes(own_state).items()} == before


def test_a_server_is_known_whatever_the_clock_says(own_state, monkeypatch):
    """When a process was started, psutil reckons from the time that the system says it was booted."""
    redis_url = lifecycle.up(("redis",)).redis
    pid = server_processes(own_state)["redis"].pid
    later = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: later(process) + 3600)
    assert lifecycle.up(("redis",)).redis == redis_url and server_processes(own_state)["redis"].pid == pid


def test_a_half_made_data_folder_is_made_anew(own_state):
    (own_state / "lock").touch()  # which the first `up` held
    half = own_state / "postgres" / "data"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    (own_state / "mongo" / "data").mkdir(parents=True)
    ping_all(lifecycle.up())


def test_redis_keeps_its_snapshot_but_not_that_of_a_newer_version(own_state):
    server = Redis()
    redis.Redis.from_url(server.up().url).set("kept", 42)
    server.down()
    assert redis.Redis.from_url(server.up().url).get("kept") == b"42"
    server.down()
    snapshot = own_state / "redis" / "dump.rdb"
    snapshot.write_bytes(b"REDIS9999" + snapshot.read_bytes()[9:])  # the format's number: no server reads this one yet
    (own_state / "redis" / "version").write_text("99.0.0")
    assert redis.Redis.from_url(server.up().url).dbsize() == 0


def test_a_server_that_cannot_start_says_why_in_one_sentence(own_state):
    lifecycle.up()
    lifecycle.down()
    with open(own_state / "postgres" / "data" / "postgresql.conf", "a") as conf:
        conf.write("no_such_setting = 1\n")
    with pytest.raises(WorkshopError, match=r"(?s)ended while it started.*run `python -m workshop doctor`") as caught:
        lifecycle.up()
    assert "\n" not in str(caught.value)
    assert "postgres" not in server_processes(own_state)


def test_passwords_are_asked_for_and_kept_private(servers):
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn(servers.postgres.set(password="wrong")), connect_timeout=5)
    with pytest.raises(redis.AuthenticationError):
        redis.Redis.from_url(re.sub(r":[^:@/]+@", ":wrong@", servers.redis)).ping()
    with pymongo.MongoClient(re.sub(r":[^:@/]+@", ":wrong@", servers.mongo)) as client, pytest.raises(OperationFailure):
        client.test.things.find_one()
    with pymongo.MongoClient(re.sub(r"//[^@]+@", "//", servers.mongo)) as client, pytest.raises(OperationFailure):
        client.test.things.find_one()
    shown = repr(servers) + repr(servers.services) + str(servers.postgres)
    for name in NAMES:
        assert password(name) not in shown


def test_secrets_are_readable_by_their_user_alone(own_state):
    servers = lifecycle.up()
    secret_texts = [password(name) for name in NAMES]
    for path in own_state.rglob("*"):
        if not path.is_file() or "data" in path.relative_to(own_state).parts:
            continue
        if any(secret in path.read_text(errors="replace") for secret in secret_texts):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    assert stat.S_IMODE((own_state / "mongo" / "keyfile").stat().st_mode) == 0o600
    assert stat.S_IMODE((own_state / "postgres" / "data").stat().st_mode) == 0o700
    for process in server_processes(own_state).values():
        with contextlib.suppress(psutil.AccessDenied):  # in a container root may not look at another account
            assert {c.laddr.ip for c in process.net_connections() if c.status == "LISTEN"} == {"127.0.0.1"}
        assert not any(secret in " ".join(process.cmdline()) for secret in secret_texts)
    for port in (servers.postgres.port, urlsplit(servers.redis).port, urlsplit(servers.mongo).port):
        # This machine's second address: a server that listens on all of them would answer there.
        with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), timeout=2):
            pass
    if is_root():
        assert server_processes(own_state)["postgres"].username() == ACCOUNT
    assert query(servers.postgres, "SELECT current_setting('fsync')") == "on"


def test_durability_is_the_default_and_the_counters_are_loaded(servers):
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        assert query(servers.postgres, f"SELECT current_setting('{setting}')") == "on"
    loaded = query(servers.postgres, "SELECT current_setting('shared_preload_libraries')")
    assert {"pg_stat_statements", "auto_explain"} <= {name.strip() for name in loaded.split(",")}
    assert query(servers.postgres, "SELECT count(*) >= 0 FROM pg_stat_statements")
    with pymongo.MongoClient(servers.mongo) as client:
        assert client.admin.command("hello")["setName"]


def test_replicas_stream_and_follow_a_primary_that_moved(own_state):
    servers = lifecycle.up(replicas=2)
    assert len(servers.replicas) == 2
    query(servers.postgres, "CREATE TABLE seen AS SELECT 1 AS n")
    assert [wait_for(replica, "SELECT n FROM seen") for replica in servers.replicas] == [1, 1]
    assert all(query(replica, "SELECT pg_is_in_recovery()") for replica in servers.replicas)

    lifecycle.down()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", servers.postgres.port))
        taken.listen()
        moved = lifecycle.up(replicas=2)
    query(moved.postgres, "INSERT INTO seen VALUES (2) RETURNING n")
    assert [wait_for(replica, "SELECT max(n) FROM seen", until=2) for replica in moved.replicas] == [2, 2]

    with postgres_server.replay_paused(moved.replicas[1:]):
        query(moved.postgres, "INSERT INTO seen VALUES (3) RETURNING n")
        assert wait_for(moved.replicas[0], "SELECT max(n) FROM seen", until=3) == 3
        assert query(moved.replicas[1], "SELECT max(n) FROM seen") == 2
        with pytest.raises(WorkshopError, match="replica 2 has not caught up within 1 s"):  # who waits undoes no pause
            postgres_server.wait_for_replicas(moved.postgres, moved.replicas, 1)
    assert wait_for(moved.replicas[1], "SELECT max(n) FROM seen", until=3) == 3
    query(moved.replicas[1], "SELECT pg_wal_replay_pause() IS NULL")  # as by a kernel that was killed meanwhile
    query(moved.postgres, "INSERT INTO seen VALUES (4) RETURNING n")
    postgres_server.wait_for_replicas(moved.postgres, moved.replicas, 20)
    assert query(moved.replicas[1], "SELECT max(n) FROM seen") == 4

    with psycopg.connect(dsn(moved.postgres), autocommit=True) as admin:
        admin.execute("CREATE ROLE half LOGIN PASSWORD 'half'")
        admin.execute("GRANT EXECUTE ON FUNCTION pg_wal_replay_pause TO half")  # and not to resume
    assert wait_for(moved.replicas[1], "SELECT count(*) FROM pg_roles WHERE rolname = 'half'", until=1) == 1
    half = moved.replicas[1].set(username="half", password="half")
    refused = pytest.raises(psycopg.errors.InsufficientPrivilege, match="replay_resume")
    with refused, postgres_server.replay_paused([half]):
        pass
    assert not query(moved.replicas[1], "SELECT pg_is_wal_replay_paused()")

    assert sorted(lifecycle.down()) == sorted([*NAMES, "replica1", "replica2"])


def wait_for(url, statement: str, until=None):
    """The answer of a replica, asked again until it has replayed what the primary wrote."""
    give_up = time.monotonic() + 20
    while True:
        try:
            answer = query(url, statement)
            if until is None or answer == until or time.monotonic() > give_up:
                return answer
        except psycopg.errors.UndefinedTable:
            if time.monotonic() > give_up:
                raise
        time.sleep(0.05)


def test_a_url_in_the_environment_wins_and_is_left_running(servers, own_state, monkeypatch):
    monkeypatch.setenv("WORKSHOP_POSTGRES_URL", dsn(servers.postgres))
    monkeypatch.setenv("WORKSHOP_REDIS_URL", servers.redis)
    monkeypatch.setenv("WORKSHOP_MONGO_URL", servers.mongo)
    found = lifecycle.up()
    assert {service.source for service in found.services.values()} == {"url"}
    assert lifecycle.down() == []
    ping_all(found)
    assert not (own_state / "postgres").exists()


def test_replicas_that_nobody_named_are_the_workbooks_own_and_it_says_so(servers, own_state, monkeypatch):
    monkeypatch.setenv("WORKSHOP_POSTGRES_URL", dsn(servers.postgres))
    found = lifecycle.up(("postgres",), replicas=1)
    assert found.services["postgres"].source != "url" and len(found.replicas) == 1
    assert "fewer than the 1 that this lesson needs" in found.notes[0] and "in place of your server" in found.notes[0]


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        (
            "WORKSHOP_POSTGRES_URL",
            "postgresql://u:secret@127.0.0.1:1/x",
            "PostgreSQL at 127.0.0.1:1, which WORKSHOP_POSTGRES_URL names, cannot be used (Connection refused",
        ),
        ("WORKSHOP_POSTGRES_URL", "not a url", "not a URL like postgresql"),
        (
            "WORKSHOP_REDIS_URL",
            "redis://:secret@127.0.0.1:1/0",
            "Redis at 127.0.0.1:1, which WORKSHOP_REDIS_URL names, cannot be used (Error 111 connecting",
        ),
        (
            "WORKSHOP_POSTGRES_URL",
            "postgresql://u:secret@127.0.0.1:1/x?schema=public",
            "cannot be used (invalid ",
        ),
        ("WORKSHOP_REDIS_URL", "nonsense", "not a URL like redis"),
        ("WORKSHOP_REDIS_URL", "redis://:secret@127.0.0.1:1/0?no_such_option=1", "not a URL like redis"),
        ("WORKSHOP_MONGO_URL", "nonsense", "not a URL like mongodb"),
        ("WORKSHOP_MONGO_URL", "mongodb://u:secret@127.0.0.1:99999/", "not a URL like mongodb"),
    ],
)
def test_wrong_settings_get_one_sentence(own_state, monkeypatch, variable, value, expected):
    monkeypatch.setenv(variable, value)
    with pytest.raises(WorkshopError, match=re.escape(expected)) as caught:
        lifecycle.up([variable.removeprefix("WORKSHOP_").removesuffix("_URL").lower()], replicas=1, do_without=True)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("above", "ours"), [("", True), ("/var", False)])
def test_a_server_of_a_folder_that_ends_like_ours_is_not_ours(tmp_path, above, ours):
    settings = f"--config={above}{tmp_path}/redis.conf"
    program = [sys.executable, "-c", "print(flush=True); import sys; sys.stdin.read()", settings]
    other = subprocess.Popen(program, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        other.stdout.readline()  # before its first line, the system may not tell the command yet
        assert ServerProcess("Redis", tmp_path)._works_here(psutil.Process(other.pid)) is ours
    finally:
        other.communicate()


def test_servers_from_path(own_state, monkeypatch):
    """The same class of server from PATH, whichever is in use here put there."""
    monkeypatch.setenv("PATH", f"{postgres_server.programs().folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(postgres_server, "package_folder", lambda package: None)
    service = postgres_server.primary().up()
    assert service.source == "path"
    assert query(service.url, "SELECT 1") == 1


def test_a_missing_program_is_told_with_where_it_was_looked_for(tmp_path, monkeypatch):
    program = tmp_path / "no-such-server"
    with pytest.raises(WorkshopError, match="and none was found in a wheel or on PATH: install it, or set A_URL"):
        find(program.name, tmp_path, [], (1,), "A_URL")
    program.write_text("#!/bin/sh\necho 0.9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        WorkshopError, match=r"none that will do was found \(no-such-server 0.9 is too old.*\) in a wheel or on PATH"
    ):
        find(program.name, tmp_path, [], (1,), "A_URL")


def test_the_lock_has_a_deadline(own_state):
    code = "import time; from workshop.state import lock\nwith lock(): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(WorkshopError, match="another process has held"), lock(deadline_s=0.2):
            pass
    finally:
        holder.kill()
        holder.wait()
