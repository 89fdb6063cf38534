"""The network distance: as long as asked for, counted exactly, and gone with the process that wanted it."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from urllib.parse import urlsplit

import psutil
import psycopg
import pymongo
import pytest
import redis
from sqlalchemy import URL, create_engine, make_url, text

from workshop import open_lesson, results
from workshop.far.proxy import Counts, Proxy
from workshop.far.servers import FarServers
from workshop.servers.postgres_server import dsn
from workshop.state import WorkshopError, state_dir

ECHO = """
import select, socket
listener = socket.create_server(("127.0.0.1", 0), backlog=256)
print(listener.getsockname()[1], flush=True)
ends = []
while True:
    for end in select.select([listener, *ends], [], [])[0]:
        if end is listener:
            ends.append(listener.accept()[0])
            ends[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        elif data := end.recv(1 << 20):
            end.sendall(data)
        else:
            ends.remove(end)
            end.close()
"""


@pytest.fixture(scope="module")
def echo() -> Iterator[int]:
    """The port of an echo server, in a process of its own as servers are."""
    with subprocess.Popen([sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True) as server:
        yield int(server.stdout.readline())
        server.kill()


def connect(port: int) -> socket.socket:
    end = socket.create_connection(("127.0.0.1", port), timeout=10)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return end


def receive(end: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        data = end.recv(1 << 20)
        assert data, f"the connection ended after {len(got)} of {size} bytes"
        got += data
    return bytes(got)


def ask(end: socket.socket, data: bytes = b"ping") -> None:
    end.sendall(data)
    assert receive(end, len(data)) == data


def wait_for(condition: Callable[[], object], deadline_s: float = 5.0) -> None:
    give_up = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


# ------------------------------------------------------------------------------------------------- the time


def redis_at(url: str, host: str, port: int) -> redis.Redis:
    """A client of the server behind `url`, by another way."""
    parts = urlsplit(url)
    return redis.Redis.from_url(parts._replace(netloc=f":{parts.password}@{host}:{port}").geturl())


def echo_ping(host: str, port: int, _servers) -> Callable[[], object]:
    end = connect(port)
    return lambda: ask(end)


def postgres_ping(host: str, port: int, servers) -> Callable[[], object]:
    connection = psycopg.connect(dsn(servers.postgres.set(host=host, port=port)), autocommit=True)
    return lambda: connection.execute("")


def redis_ping(host: str, port: int, servers) -> Callable[[], object]:
    return redis_at(servers.redis, host, port).ping


PINGS = {"echo": echo_ping, "postgres": postgres_ping, "redis": redis_ping}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.mark.alone
@pytest.mark.parametrize("server", PINGS)
@pytest.mark.parametrize(("trip_ms", "pings"), [(0.5, 300), (2, 100), (20, 20)])
def test_what_is_added_is_what_was_asked_for(servers, echo, server, trip_ms, pings):
    """Round trip through the proxy minus the one without, medians of pings taken in turns; within 10 %.

    Both ask at the same pace. Whoever waits on a network sleeps, and a client and a server that slept for 0.5 ms answer
    up to 0.06 ms later than those that are asked without a pause: a longer way, whatever makes it long, has that too.
    A neighbour may disturb a busy machine for a moment, never systematically: a few attempts, one must do.
    """
    url = urlsplit(servers.redis)
    addresses = {
        "echo": ("127.0.0.1", echo),
        "postgres": (servers.postgres.host, servers.postgres.port),
        "redis": (url.hostname, url.port),
    }
    host, port = addresses[server]
    added = []
    for _ in range(6):
        with Proxy(host, port, trip_ms) as proxy:
            near, far = PINGS[server](host, port, servers), PINGS[server](proxy.host, proxy.port, servers)
            far()
            straight, through = [], []
            for _ in range(pings):
                time.sleep(trip_ms / 1e3)
                straight.append(seconds(near))
                through.append(seconds(far))
            added.append(1e3 * (statistics.median(through) - statistics.median(straight)))
        if abs(added[-1] / trip_ms - 1) <= 0.1:
            return
    pytest.fail(f"added {', '.join(f'{ms:.3f}' for ms in added)} ms, asked for {trip_ms} ms")


@pytest.mark.alone
def test_a_machine_that_stood_still_for_a_moment_leaves_no_trace(echo):
    """What the hops take is learnt from the latest round trips: bad ones must not shorten all that follow."""
    with Proxy("127.0.0.1", echo, 2) as proxy, connect(proxy.port) as end:
        for _ in range(9):
            end.sendall(b"ping")
            time.sleep(0.0005)
            os.kill(proxy._process.pid, signal.SIGSTOP)
            time.sleep(0.02)
            os.kill(proxy._process.pid, signal.SIGCONT)
            receive(end, 4)
        assert statistics.median(seconds(lambda: ask(end)) for _ in range(60)) > 0.0015


@pytest.mark.alone
def test_chunks_share_one_delay(echo):
    """Each is delayed from its own arrival: fifty in a row are not fifty delays."""
    with Proxy("127.0.0.1", echo, 40) as proxy, connect(proxy.port) as end:
        ask(end)
        start = time.perf_counter()
        for i in range(50):
            end.sendall(bytes([i]))
            time.sleep(0.001)
        assert receive(end, 50) == bytes(range(50))
        took = time.perf_counter() - start
    assert took + 0.01 >= 0.09 and took < 0.8  # one after the other would be 2 s


def test_the_bandwidth_is_not_limited_and_nothing_is_lost(echo):
    sent = os.urandom(1 << 20) * 24
    with Proxy("127.0.0.1", echo, 20) as proxy, connect(proxy.port) as end:
        writer = threading.Thread(target=end.sendall, args=(sent,))
        start = time.perf_counter()
        writer.start()
        assert receive(end, len(sent)) == sent
        took = time.perf_counter() - start
        writer.join(10)
        counts = proxy.counts()
    assert (counts.bytes_to_server, counts.bytes_to_client) == (len(sent), len(sent))
    assert took < 5  # 96 chunks of 256 KB, one round trip each, would be 2 s more


def test_a_limited_bandwidth_is_what_all_connections_share(echo):
    """A lower bound by arithmetic: two megabytes over 40 Mbit/s cannot take less than 0.4 s in one direction."""
    sent = os.urandom(1 << 20)
    with Proxy("127.0.0.1", echo, 0, mbit_s=40) as proxy, connect(proxy.port) as one, connect(proxy.port) as other:
        start = time.perf_counter()
        for end in (one, other):
            threading.Thread(target=end.sendall, args=(sent,)).start()
        assert receive(one, len(sent)) == sent and receive(other, len(sent)) == sent
        took = time.perf_counter() - start
        small = seconds(lambda: ask(one))
    assert 2 * 8 * (1 << 20) / 40e6 <= took < 2  # one byte a time, in step, would take minutes
    assert small < 0.1


@pytest.mark.parametrize("mbit_s", [0, -1, "fast", True])
def test_a_bandwidth_out_of_range_is_refused(mbit_s):
    with pytest.raises(ValueError, match="mbit_s must be a number from"):
        Proxy("127.0.0.1", 1, 1, mbit_s=mbit_s)


@pytest.mark.alone
def test_connecting_costs_a_round_trip(echo):
    """TCP's handshake; so the time is about (connections + round trips) x round trip."""
    with Proxy("127.0.0.1", echo, 100) as proxy:
        start = time.perf_counter()
        with connect(proxy.port) as end:
            ask(end)
            first = time.perf_counter() - start
            second = seconds(lambda: ask(end))
        counts = proxy.counts()
    assert (counts.connections, counts.round_trips) == (1, 2)
    assert 0.19 < first < 0.29 and 0.09 < second < 0.19


def test_zero_counts_too(echo):
    with Proxy("127.0.0.1", echo, 0) as proxy, connect(proxy.port) as end:
        for _ in range(200):
            ask(end)
        assert proxy.counts() == Counts(1, 200, 800, 800)


# --------------------------------------------------------------------------------------------- what is counted


def test_round_trips_and_bytes_of_an_echo(echo):
    with Proxy("127.0.0.1", echo, 300) as proxy:  # much longer than it takes to ask the proxy
        assert proxy.counts() == Counts(0, 0, 0, 0)
        with connect(proxy.port) as one, connect(proxy.port) as other:
            ask(one, b"12345")
            ask(other, b"123")
            ask(one, b"12")
            assert proxy.counts() == Counts(connections=2, round_trips=3, bytes_to_server=10, bytes_to_client=10)
            proxy.reset()
            one.sendall(b"1234")
            assert proxy.counts() == Counts(0, 0, 4, 0)  # sent before the question, still on its way
            receive(one, 4)
            assert repr(proxy.counts()) == "0 connections, 1 round trip, 4 bytes to the server, 4 bytes to the client"


def test_all_that_was_sent_before_the_question_is_in_the_answer(echo):
    """Even on connections that the proxy has not heard of yet."""
    with Proxy("127.0.0.1", echo, 1000) as proxy:  # no answer is back before the last question
        for i in range(1, 21):
            with connect(proxy.port) as end:
                end.sendall(b"1234")
                assert proxy.counts() == Counts(i, 0, 4 * i, 0)


def test_round_trips_of_postgresql(servers):
    url = servers.postgres
    with Proxy(url.host, url.port, 20) as proxy:
        with psycopg.connect(dsn(url.set(host=proxy.host, port=proxy.port)), autocommit=True) as connection:
            assert proxy.counts().connections == 1
            proxy.reset()
            assert connection.execute("SELECT 1").fetchone() == (1,)
            assert proxy.counts() == Counts(0, 1, 14, 66)  # the protocol's own bytes: the same on every version
            proxy.reset()
            for i in range(10):
                connection.execute("SELECT %s", [i], prepare=False)
            assert proxy.counts().round_trips == 10
            proxy.reset()
            with connection.pipeline():
                for i in range(10):
                    connection.execute("SELECT %s", [i], prepare=False)
            assert 1 <= proxy.counts().round_trips <= 3
            proxy.reset()
        assert proxy.counts().round_trips == 0 and proxy.counts().bytes_to_server == 5  # a goodbye: nobody answers


def test_round_trips_of_a_redis_pipeline(servers):
    url = urlsplit(servers.redis)
    with (
        Proxy(url.hostname, url.port, 20) as proxy,
        redis_at(servers.redis, proxy.host, proxy.port) as client,
    ):
        client.ping()
        proxy.reset()
        with client.pipeline(transaction=False) as pipeline:
            for _ in range(100):
                pipeline.ping()
            assert pipeline.execute() == [True] * 100
        assert proxy.counts().round_trips == 1
        for _ in range(5):
            client.ping()
        assert proxy.counts().round_trips == 6


# ------------------------------------------------------------------------------------- how connections come and go


def test_a_hundred_connections_at_once(echo):
    with Proxy("127.0.0.1", echo, 20) as proxy:
        ends = [connect(proxy.port) for _ in range(100)]
        for end in ends:
            end.sendall(b"ping")
        assert all(receive(end, 4) == b"ping" for end in ends)
        assert proxy.counts() == Counts(100, 100, 400, 400)
        for end in ends:
            end.close()


def test_half_close_reaches_the_server_after_what_was_sent():
    with socket.create_server(("127.0.0.1", 0)) as listener, Proxy("127.0.0.1", listener.getsockname()[1], 20) as proxy:
        listener.accept()[0].close()  # the look whether anybody answers
        with connect(proxy.port) as client, listener.accept()[0] as server:
            server.settimeout(5)
            client.sendall(b"the last")
            client.shutdown(socket.SHUT_WR)
            assert receive(server, 8) == b"the last" and server.recv(1) == b""
            server.sendall(b"answer")  # the other direction is still open
            assert receive(client, 6) == b"answer"
            server.close()
            assert client.recv(1) == b""


def test_a_reset_is_passed_on_both_ways():
    now = struct.pack("ii", 1, 0)
    with socket.create_server(("127.0.0.1", 0)) as listener, Proxy("127.0.0.1", listener.getsockname()[1], 2) as proxy:
        listener.accept()[0].close()
        for breaks in ("server", "client"):
            ends = {"client": connect(proxy.port), "server": listener.accept()[0]}
            end = ends.pop(breaks)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
            end.close()
            (other,) = ends.values()
            with other, pytest.raises(ConnectionResetError):
                other.settimeout(5)
                other.recv(1)


def test_what_is_on_its_way_at_the_end_arrives():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with Proxy("127.0.0.1", listener.getsockname()[1], 100) as proxy:
            listener.accept()[0].close()
            with connect(proxy.port) as client:
                server = listener.accept()[0]
                client.sendall(b"goodbye")
        with server:
            server.settimeout(5)
            assert receive(server, 7) == b"goodbye" and server.recv(1) == b""


def test_no_server_there():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    message = rf"no server answers at 127.0.0.1:{port} \(Connection refused\): run `python -m workshop up`"
    with pytest.raises(WorkshopError, match=message), Proxy("127.0.0.1", port, 2):
        pass


def test_a_server_that_went_away_refuses_at_once():
    with socket.create_server(("127.0.0.1", 0)) as listener, Proxy("127.0.0.1", listener.getsockname()[1], 2) as proxy:
        listener.close()
        start = time.perf_counter()
        with pytest.raises(ConnectionResetError), connect(proxy.port) as end:
            end.recv(1)
        assert time.perf_counter() - start < 2


@pytest.mark.parametrize("trip", [-1, 1000.1, float("nan"), "2", None, True])
def test_a_round_trip_out_of_range(trip):
    with pytest.raises(ValueError, match=r"^round_trip_ms must be a number from 0 to 1,000, found .+\.$"):
        Proxy("127.0.0.1", 5432, trip)


def test_a_port_out_of_range():
    for port in (0, 65536, "5432"):
        with pytest.raises(ValueError, match=r"^port must be a whole number from 1 to 65535, found .+\.$"):
            Proxy("127.0.0.1", port, 2)


# ------------------------------------------------------------------------------------------------- its process


PARENT = """
import os, sys, time
from workshop.far.proxy import Proxy
proxy = Proxy("127.0.0.1", int(sys.argv[1]), 20).__enter__()
child = os.fork() if sys.argv[2] == "with a fork" else 0
if child or sys.argv[2] == "alone":
    print(proxy._process.pid, child, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["alone", "with a fork"])
def test_it_ends_when_its_parent_is_killed(echo, how):
    """Even where a fork of the parent lives on, which holds the pipe's other end."""
    with subprocess.Popen([sys.executable, "-c", PARENT, str(echo), how], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert select.select([parent.stdout], [], [], 20)[0]
            proxy, fork = map(int, parent.stdout.readline().split())
            assert psutil.pid_exists(proxy)
        finally:
            parent.kill()
        try:
            wait_for(lambda: not psutil.pid_exists(proxy) or psutil.Process(proxy).status() == psutil.STATUS_ZOMBIE)
        finally:
            if fork:
                os.kill(fork, signal.SIGKILL)


def test_its_process_goes_with_the_block_and_says_so_later(echo):
    with Proxy("127.0.0.1", echo, 2) as proxy:
        process = proxy._process
        os.kill(process.pid, signal.SIGINT)  # interrupting a cell interrupts the whole group
        with connect(proxy.port) as end:
            ask(end)
    assert process.returncode == 0
    with pytest.raises(WorkshopError, match="not open: use it inside its with block"):
        proxy.counts()
    with Proxy("127.0.0.1", echo, 2) as proxy:
        proxy._process.kill()
        with pytest.raises(WorkshopError, match="has ended: run the cell again"):
            proxy.counts()


# ------------------------------------------------------------------------------------------------- in a lesson


def test_an_answer_that_comes_late_is_not_taken_for_the_next(echo, monkeypatch):
    with Proxy("127.0.0.1", echo, round_trip_ms=0) as proxy:
        monkeypatch.setattr("workshop.far.proxy.ANSWER_DEADLINE_S", 0.2)
        relay = proxy._process.pid
        os.kill(relay, signal.SIGSTOP)
        with pytest.raises(WorkshopError, match="did not answer within"):
            proxy.counts()
        os.kill(relay, signal.SIGCONT)
        monkeypatch.setattr("workshop.far.proxy.ANSWER_DEADLINE_S", 10)
        with pytest.raises(WorkshopError, match="has ended: run the cell again"):
            while True:  # until it is gone
                proxy.reset()


@pytest.fixture(scope="module")
def lesson():
    lesson = open_lesson("97-far", servers=("postgres", "redis", "mongo"))
    yield lesson
    lesson.close()


def test_the_same_sandbox_farther_away(lesson, caplog, capfd):
    with lesson.at_distance(5) as far:
        assert far.servers == []  # nothing is started before it is asked for
        engine = create_engine(far.postgres)
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT current_database()")) == lesson.postgres.database
        with redis.Redis.from_url(lesson.redis_url) as near, redis.Redis.from_url(far.redis_url) as client:
            near.set("where", "here")
            assert client.get("where") == b"here"
        with pymongo.MongoClient(far.mongo_url) as client:
            assert client[lesson.mongo_database].profiles.estimated_document_count() > 0
            assert client.address == ("127.0.0.1", urlsplit(far.mongo_url).port)  # it stayed with the proxy
        assert far.servers == ["postgres", "redis", "mongo"]
        for server in far.servers:
            assert far.counts(server).round_trips > 0
        far.reset("redis")
        assert far.counts("redis") == Counts(0, 0, 0, 0)
        with pytest.raises(WorkshopError, match=r"expected one of the servers used .* found None"):
            far.counts()
    with pytest.raises(WorkshopError, match="this distance has ended"):
        _ = far.postgres
    engine.dispose()  # the pool's connection lost its network: nobody needs to hear of that
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert capfd.readouterr().err == ""


def test_at_zero_there_is_no_proxy(lesson):
    with lesson.at_distance(0) as here:
        assert here.postgres == lesson.postgres and here.dsn == lesson.dsn
        assert here.redis_url == lesson.redis_url and here.mongo_url == lesson.mongo_url
        with pytest.raises(WorkshopError, match="nothing is counted at distance 0"):
            here.counts("postgres")


@pytest.mark.alone
def test_a_comparison_at_several_distances(lesson, monkeypatch):
    monkeypatch.setattr(results, "FILE", "test-results-far.jsonl")  # the reader's own results stay as they are
    ended = []

    def arms(far):
        client = redis.Redis.from_url(far.redis_url)
        far.at_end(lambda: ended.append(far.round_trip_ms))

        def pipelined():
            with client.pipeline(transaction=False) as pipeline:
                for _ in range(5):
                    pipeline.ping()
                return pipeline.execute()

        return lambda: [client.ping() for _ in range(5)], pipelined, client.ping

    try:
        found = lesson.compare_at_distances(arms, name="pings", round_trips_ms=(10, 0), budget_s=0.5)
        kept = results.read(state_dir() / results.FILE)
    finally:
        (state_dir() / results.FILE).unlink(missing_ok=True)
    assert ended == [0, 10]
    (near, *_), (trip, ratio, low, high) = found.points
    assert near < 5 and 10 <= trip < 15 and low <= ratio <= high and ratio > 2
    # Five round trips of 10 ms became one. A busy machine only adds to that, and least to the fastest run.
    fastest = {arm: min(seconds) for arm, seconds in kept[1]["samples"].items()}
    assert 0.049 < fastest["before"] < 0.095 and 0.009 < fastest["after"] < 0.019
    assert 4 < fastest["before"] / fastest["after"] < 5.5
    started_here = lesson.servers.services["postgres"].source != "url"
    nearest = "loopback" if started_here else "your network"
    assert [(r["name"], r["series"], r["added_round_trip_ms"]) for r in kept] == [
        (f"pings, on {nearest}", "pings", 0),
        ("pings, at 10 ms", "pings", 10),
    ]
    assert kept[1]["round_trip_s"] == 1e-3 * trip and len(kept[1]["samples"]["lower_bound"]) >= 6
    assert "+10 ms" in repr(found) and "lower bound" in repr(found) and "+10 ms" in found._repr_html_()
    assert nearest in [label.get_text() for label in found.plot("five become one").axes[0].get_xticklabels()]


def test_arms_that_do_not_go_far(lesson):
    with pytest.raises(ValueError, match="with the lesson's own URLs no distance is added"):
        lesson.compare_at_distances(lambda far: (int, int), name="near", round_trips_ms=[2])
    for wrong in (None, [int], (int, 1), (int, int, int, int)):
        with pytest.raises(ValueError, match=r"arms must return \(before, after\) or"):
            lesson.compare_at_distances(lambda far, wrong=wrong: wrong, name="wrong", round_trips_ms=[0])
    with pytest.raises(ValueError, match="round_trips_ms needs at least one"):
        lesson.compare_at_distances(lambda far: (int, int), name="none", round_trips_ms=[])


def by_name(host: str) -> str:
    return "localhost" if host == "127.0.0.1" else host


def test_urls_of_other_peoples_servers(servers):
    """A host by its name, certificates, options: all stays as it was but the way there."""
    host = by_name(servers.postgres.host)
    port, redis_port = servers.postgres.port, urlsplit(servers.redis).port
    near = SimpleNamespace(
        postgres=make_url(f"postgresql+psycopg://u:p%40ss@{host}:{port}/db?sslmode=verify-full&connect_timeout=5"),
        redis_url=f"rediss://user:p%40ss@{by_name(urlsplit(servers.redis).hostname)}:{redis_port}/7?protocol=3",
        mongo_url=servers.mongo,
    )
    with FarServers(near, 1) as far:
        url = far.postgres
        assert (url.host, url.password, url.database) == (host, "p@ss", "db")
        assert url.port != port
        assert url.query == {"sslmode": "verify-full", "connect_timeout": "5", "hostaddr": "127.0.0.1"}
        url = urlsplit(far.redis_url)
        assert url.netloc == f"user:p%40ss@127.0.0.1:{url.port}" and url.port != redis_port
        assert (url.path, url.query) == ("/7", "protocol=3&ssl_check_hostname=false")
        url = urlsplit(far.mongo_url)
        assert url.query == "authSource=admin&directConnection=true"  # replicaSet would lead past the proxy
        assert url.username == urlsplit(servers.mongo).username
        assert "@" not in repr(far)
    near = SimpleNamespace(postgres=URL.create("postgresql+psycopg", query={"host": "/run/postgresql"}))
    with FarServers(near, 1) as far, pytest.raises(WorkshopError, match="reached by TCP"):
        _ = far.postgres


def test_a_member_reached_by_name_answers_far_away(servers):
    near = SimpleNamespace(postgres=servers.postgres.set(host=by_name(servers.postgres.host)))
    with FarServers(near, 1) as far, closing(psycopg.connect(dsn(far.postgres))) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert far.counts().connections == 1
