"""What goes wrong with servers: each fault was seen, and each is repaired or told in one sentence."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from workshop import doctor, sandbox
from workshop.servers import lifecycle, mongo_server, postgres_server, redis_server
from workshop.servers.find import find
from workshop.shop import seed
from workshop.state import WorkshopError, alone

POSTGRES = ("postgres",)
pytestmark = pytest.mark.long


def servers_on(folder: Path) -> list[psutil.Process]:
    """The first process of each server whose data folder lies in `folder`."""
    found = []
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.Error):
            inside = f"{folder}/" in " ".join(process.cmdline())
            if process.info["name"] in ("postgres", "redis-server", "mongod") and inside:
                found.append(process)
    return [process for process in found if process.ppid() not in {other.pid for other in found}]


# --- processes and files -------------------------------------------------------------------------------------------


def test_a_killed_postmaster_with_a_busy_backend_is_replaced_at_once(own_state):
    url = lifecycle.up(POSTGRES).postgres

    def sleep() -> None:
        with suppress(psycopg.Error), postgres_server.connect(url) as connection:
            connection.execute("SELECT pg_sleep(60)")

    busy = threading.Thread(target=sleep, daemon=True)
    busy.start()
    with postgres_server.connect(url) as connection:
        asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        while connection.execute(asleep).fetchone() != (1,):
            time.sleep(0.02)
    (postmaster,) = servers_on(own_state)
    backends = postmaster.children()
    postmaster.kill()
    again = lifecycle.up(POSTGRES)
    with postgres_server.connect(again.postgres) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not [backend for backend in backends if backend.is_running() and backend.status() != psutil.STATUS_ZOMBIE]
    busy.join(10)


@pytest.mark.parametrize("what", ["deleted", "moved"])
def test_servers_of_a_folder_that_went_away_are_ended_before_new_ones_start(own_state, what):
    first = lifecycle.up()
    old = servers_on(own_state)
    assert len(old) == 3
    elsewhere = own_state.with_name(own_state.name + " moved")
    try:
        if what == "moved":
            own_state.rename(elsewhere)
        else:
            shutil.rmtree(own_state)
        own_state.mkdir(mode=0o711)
        second = lifecycle.up()
        new = servers_on(own_state)
        assert len(new) == 3 and not {process.pid for process in new} & {process.pid for process in old}
        assert not [process for process in old if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
        assert first.postgres.password != second.postgres.password
        assert lifecycle.down() and lifecycle.up(POSTGRES)  # its files were written by one server only
    finally:
        shutil.rmtree(elsewhere, ignore_errors=True)


def test_damaged_files_are_told_by_up_and_by_doctor_and_reset_repairs_them(own_state, capsys):
    lifecycle.up(POSTGRES)
    lifecycle.down()
    (own_state / "postgres" / "data" / "global" / "pg_control").write_bytes(b"damaged")
    with pytest.raises(WorkshopError, match="`python -m workshop reset` makes them anew"):
        lifecycle.up(POSTGRES)
    (found,) = doctor.findings(["PostgreSQL"])
    assert not found.ok and "last start failed" in found.found and "workshop reset" in found.fix
    lifecycle.remove()
    lifecycle.up(POSTGRES)
    assert doctor.findings(["PostgreSQL"])[0].ok


USER = """
import sys
from workshop.servers import lifecycle
lifecycle.up(("redis",))
print("up", flush=True)
sys.stdin.read()
"""


def test_while_another_process_uses_the_servers_they_are_neither_stopped_nor_deleted(own_state):
    user = subprocess.Popen([sys.executable, "-c", USER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert user.stdout.readline() == "up\n"
        with pytest.raises(WorkshopError, match=rf"other processes use the servers \(process id {user.pid}\)"):
            lifecycle.remove()
        assert redis_server.Redis().service()
    finally:
        user.communicate()
    with alone():
        pass


STARTING = """
import sys
from workshop.state import lock, use
with lock():
    print("starting", flush=True)
    sys.stdin.readline()
    use()
print("up", flush=True)
sys.stdin.read()
"""


def test_who_ends_while_another_one_starts_waits_for_it_and_not_it_for_him(own_state):
    starting = subprocess.Popen(
        [sys.executable, "-c", STARTING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert starting.stdout.readline() == "starting\n"
        with ThreadPoolExecutor(1) as pool:
            ending = pool.submit(lifecycle.down, if_alone=True)
            time.sleep(0.3)
            starting.stdin.write("\n")
            starting.stdin.flush()
            assert starting.stdout.readline() == "up\n"
            with pytest.raises(WorkshopError, match="other processes use the servers"):
                ending.result(10)
    finally:
        starting.communicate()


def test_only_what_is_named_is_started_and_needed(own_state, monkeypatch):
    def missing():
        raise WorkshopError("mongod 6.0 or later is needed and none was found")

    monkeypatch.setattr(mongo_server, "programs", missing)
    servers = lifecycle.up(POSTGRES)
    assert list(servers.services) == ["postgres"] and [p.name() for p in servers_on(own_state)] == ["postgres"]
    both = lifecycle.up(("redis", "mongo"), do_without=True)
    assert list(both.services) == ["redis"] and "mongod 6.0" in both.lacking["mongo"]
    with pytest.raises(WorkshopError, match=r"mongod 6\.0"):
        lifecycle.up()
    with pytest.raises(WorkshopError, match=r"mongod 6\.0"):
        lifecycle.up(("mongo",), do_without=True)


def test_a_program_that_does_not_run_is_passed_over(tmp_path, monkeypatch):
    for name, script in (("broken", "exit 1"), ("old", "echo 9.6.24"), ("good", "echo 15.3")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a-server").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name / "a-server").chmod(0o755)
    folders = [tmp_path / name for name in ("broken", "old", "good")]
    assert find("a-server", None, folders, (15,), "A_URL").version == (15, 3)
    with pytest.raises(WorkshopError, match=r"a-server does not run here .*; a-server 9\.6\.24 is too old"):
        find("a-server", None, folders[:2], (15,), "A_URL")
    loader = "error while loading shared libraries: libcurl.so.4: cannot open shared object file"
    (tmp_path / "broken" / "a-server").write_text(f"#!/bin/sh\necho '{loader}' >&2; exit 127\n")
    with pytest.raises(WorkshopError, match=r"libcurl\.so\.4.*: install its libraries' system packages"):
        find("a-server", None, folders[:1], (15,), "A_URL")


# --- servers by URL ------------------------------------------------------------------------------------------------


@pytest.fixture
def role(servers):
    """The URL of a role that may log in and nothing else."""
    with postgres_server.connect(servers.postgres) as admin:
        admin.execute("DROP ROLE IF EXISTS workshop_test_role")
        admin.execute("CREATE ROLE workshop_test_role LOGIN PASSWORD 'secret'")
        yield servers.postgres.set(username="workshop_test_role", password="secret", query={})
        admin.execute("DROP ROLE workshop_test_role")


def refusal(name: str) -> str:
    """The sentence with which a server by URL is refused, within ten seconds and without the password."""
    start = time.monotonic()
    with pytest.raises(WorkshopError) as caught:
        lifecycle.up((name,))
    assert time.monotonic() - start < 10
    sentence = str(caught.value)
    assert "\n" not in sentence and "secret" not in sentence
    return sentence


def test_refused_by_postgres(role, monkeypatch):
    def sentence(url) -> str:
        monkeypatch.setenv("WORKSHOP_POSTGRES_URL", url.render_as_string(hide_password=False))
        return refusal("postgres")

    assert "ALTER ROLE workshop_test_role CREATEDB" in sentence(role)
    wrong = sentence(role.set(password="not-secret-at-all"))
    assert 'password authentication failed for user "workshop_test_role"' in wrong and "correct the user or" in wrong
    missing = sentence(role.set(database="no_such_database"))
    assert 'database "no_such_database" does not exist' in missing and "name a database that exists" in missing
    assert "does not support SSL" in (tls := sentence(role.set(query={"sslmode": "require"}))) and "sslmode" in tls
    assert "cannot be used" in sentence(role.set(host="no-such-host.invalid"))


def test_nothing_is_made_in_the_database_that_a_url_names(scratch, monkeypatch):
    monkeypatch.setenv("WORKSHOP_POSTGRES_URL", postgres_server.dsn(scratch))
    url = lifecycle.up(POSTGRES).postgres
    assert url.database == scratch.database
    with postgres_server.connect(url) as connection:
        assert connection.execute("SELECT extname FROM pg_extension").fetchall() == [("plpgsql",)]


def test_refused_by_redis_and_mongo(servers, monkeypatch):
    monkeypatch.setenv("WORKSHOP_REDIS_URL", re.sub(r":[^:@/]+@", ":secret@", servers.redis))
    assert "invalid username-password pair" in (found := refusal("redis")) and "correct the user or" in found
    monkeypatch.setenv("WORKSHOP_REDIS_URL", servers.redis.replace("redis://", "rediss://"))
    assert re.search("(?i)ssl|connect", refusal("redis"))
    monkeypatch.setenv("WORKSHOP_MONGO_URL", re.sub(r":[^:@/]+@", ":secret@", servers.mongo))
    assert "Authentication failed" in (found := refusal("mongo")) and "correct the user, the password" in found
    monkeypatch.setenv("WORKSHOP_MONGO_URL", servers.mongo + "&tls=true")
    assert re.search("(?i)ssl|tls", refusal("mongo"))


@pytest.mark.parametrize("name", ["postgres", "redis", "mongo"])
def test_a_host_that_does_not_answer(name, monkeypatch):
    schemes = {"postgres": "postgresql", "redis": "redis", "mongo": "mongodb"}
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        url = f"{schemes[name]}://user:secret@127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv(f"WORKSHOP_{name.upper()}_URL", url)
        assert re.search("(?i)time(d )?-?out|no servers found", found := refusal(name)) and "start it" in found


def test_a_primary_is_no_replica(servers, monkeypatch):
    url = servers.postgres.render_as_string(hide_password=False)
    monkeypatch.setenv("WORKSHOP_REPLICA_URLS", url)
    with pytest.raises(WorkshopError, match="is a primary and no replica"):
        postgres_server.replicas_from_environment()


def test_a_link_in_the_place_of_the_state_folder_is_not_followed(tmp_path, monkeypatch):
    from workshop import state

    target, link = tmp_path / "of-somebody", tmp_path / "link"
    target.mkdir(mode=0o755)
    link.symlink_to(target)
    monkeypatch.delenv("WORKSHOP_STATE", raising=False)
    monkeypatch.setattr(state, "_usable", lambda folder: False)
    monkeypatch.setattr(state, "FALLBACK", link)
    with pytest.raises(WorkshopError, match="is a link or belongs to another user"):
        state.state_dir()
    assert oct(target.stat().st_mode & 0o777) == "0o755" and os.listdir(target) == []


def test_ctrl_c_of_one_lab_leaves_the_servers_to_the_other_user(own_state):
    small = "from workshop.servers import lifecycle; from workshop.shop import seed; seed.ensure(lifecycle.up(), 0.01)"
    subprocess.run([sys.executable, "-c", small], check=True, timeout=120)
    lab = [sys.executable, "-m", "workshop", "lab", "--no-browser", "--ServerApp.port_retries=50"]
    user = subprocess.Popen([sys.executable, "-c", USER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert user.stdout.readline() == "up\n"
    process = subprocess.Popen(lab, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        assert next(line for line in process.stdout if line.startswith("JupyterLab: "))
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(60) == 0 and "The servers stay" in rest
        assert redis_server.Redis().service()
    finally:
        process.kill()
        user.communicate()


# --- one server, several people ------------------------------------------------------------------------------------

SEED = """
import sys
from workshop.servers import lifecycle
from workshop.shop import seed
seed.ensure(lifecycle.up(("postgres", "mongo")), 0.02)
"""


@pytest.fixture
def shared(own_state):
    """Servers in this test's state folder, and what leads somebody with another state folder to them by URL."""
    servers = lifecycle.up()
    urls = {
        "WORKSHOP_POSTGRES_URL": servers.postgres.render_as_string(hide_password=False),
        "WORKSHOP_REDIS_URL": servers.redis,
        "WORKSHOP_MONGO_URL": servers.mongo,
    }
    folders = []

    def somebody(name: str) -> dict[str, str]:
        folder = own_state.with_name(f"{own_state.name} {name}")
        folder.mkdir(mode=0o711)
        folders.append(folder)
        return {**os.environ, **urls, "WORKSHOP_STATE": str(folder)}

    yield servers, somebody
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def whole(servers) -> bool:
    found = seed.status(servers.services["postgres"], servers.services["mongo"])
    return found["scale"] == 0.02 and {"customers", "profiles"} <= found["rows"].keys()


def test_two_state_folders_seed_one_server_at_once(shared):
    servers, somebody = shared
    first = somebody("one")
    # One comes by another database: advisory locks hold within one database only.
    second = somebody("other")
    second["WORKSHOP_POSTGRES_URL"] = second["WORKSHOP_POSTGRES_URL"].replace("/postgres?", "/template1?")
    seeders = [
        subprocess.Popen([sys.executable, "-c", SEED], env=environment, stderr=subprocess.PIPE, text=True)
        for environment in (first, second)
    ]
    for seeder in seeders:
        _, errors = seeder.communicate(timeout=120)
        assert seeder.returncode == 0, errors
    assert whole(servers)
    with postgres_server.connect(servers.postgres) as connection:
        names = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'workshop%'").fetchall()
    assert names == [("workshop_shop",)]


def test_a_killed_seeder_keeps_the_next_one_waiting_for_seconds_only(shared):
    servers, _ = shared
    with mongo_server.connect(servers.mongo) as client:
        meta = client["workshop_shop"]["workshop_meta"]
        until = {"$dateAdd": {"startDate": "$$NOW", "unit": "second", "amount": 3}}
        meta.update_one({"_id": "turn"}, [{"$set": {"token": "of one that was killed", "until": until}}], upsert=True)
    start = time.monotonic()
    seed.ensure(servers, 0.02)
    assert whole(servers) and 2 < time.monotonic() - start < 30


def test_reset_of_a_shared_server_breaks_no_open_lesson(shared):
    servers, somebody = shared
    seed.ensure(servers, 0.02)
    box = sandbox.create(servers, "test", ("postgres", "mongo"))
    try:
        command = [sys.executable, "-m", "workshop", "reset", "--scale", "0.03"]
        done = subprocess.run(command, env=somebody("colleague"), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        with postgres_server.connect(box.postgres) as connection:
            assert connection.execute("SELECT count(*) FROM customers").fetchone() == (2_000,)
        with mongo_server.connect(servers.mongo) as client:
            assert client[box.name].profiles.count_documents({}) == 2_000
        assert seed.status(servers.services["postgres"], None)["scale"] == 0.03
    finally:
        box.drop()
