"""A network distance of one's own choosing: a TCP proxy that adds a round-trip time, and counts flights and bytes.

    with Proxy("127.0.0.1", 5432, round_trip_ms=2) as proxy:
        ...                      # connect to proxy.host, proxy.port instead
        proxy.counts()           # 1 connection, 4 flights, 512 bytes to the server, 2,048 bytes to the client

It knows nothing of what it carries, so it serves PostgreSQL, Redis and MongoDB alike, with TLS or without.

How the time is added:

* The whole round trip is added on the way to the server, each chunk counted from its own arrival; answers pass at
  once. For whoever asks and waits this is the same as half of it each way, with one timer that can be late, not two.
* Chunks that follow each other share one delay, so requests sent together (a pipeline) cost one round trip, and the
  bandwidth is not limited (but 64 MB per connection and direction are on their way at most).
* Opening a connection costs one round trip, TCP's handshake. The kernel has accepted before the proxy hears of it, so
  that time is added to the connection's first flight, which so takes two.
* The proxy's own two hops take 0.05 to 0.15 ms, and more on a busy machine. They are part of the time added: each
  delay is shorter by what they take now. An echo on loopback at the start says what two wake-ups of a process take;
  the rest the proxy sees on each flight. A round trip shorter than the hops cannot be had; 0 adds only them, and
  counts. On two cores the median of what was added lay within 8 % of 0.5 ms, 3 % of 2 ms and 2 % of 20 ms, for an
  echo, PostgreSQL and Redis, on an idle machine and with both cores kept busy by others.

A **flight** is what the client sends until the server's answer comes back: one round trip that somebody waited for.
Requests sent before the first answer came are one flight. A goodbye, which nobody answers, is none. So the time on a
long network is about (connections + flights) x round trip.

The proxy is a process of its own, so it never waits for the interpreter lock of what is measured. It ends when its
parent does, even if that is killed. It needs the standard library only, and so starts in some 50 ms.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import json
import os
import resource
import select
import selectors
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from workshop.state import WorkshopError

__all__ = ["Counts", "Proxy", "checked_round_trip"]

LONGEST_MS = 1000.0
START_DEADLINE_S = 20.0
ANSWER_DEADLINE_S = 5.0
CONNECT_DEADLINE_S = 10.0
CHUNK = 256 * 1024
ON_THE_WAY = 64 * 1024 * 1024  # bytes; more is left with the sender, as TCP's own window would
RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time to linger: close() sends RST
LATEST = 9  # flights whose median says what the hops take now


@dataclass(frozen=True)
class Counts:
    """What passed through a proxy since its start or its last `reset()`."""

    connections: int
    flights: int
    bytes_to_server: int
    bytes_to_client: int

    def __str__(self) -> str:
        words = (
            (self.connections, "connection", ""),
            (self.flights, "flight", ""),
            (self.bytes_to_server, "byte", " to the server"),
            (self.bytes_to_client, "byte", " to the client"),
        )
        return ", ".join(f"{n:,} {word}{'' if n == 1 else 's'}{where}" for n, word, where in words)

    __repr__ = __str__


# ------------------------------------------------------------------------------------------ in the lesson's process


class Proxy:
    """A way to the TCP server at `host`:`port` that is `round_trip_ms` (0 to 1000) longer than the straight one.

    A context manager; inside it connect to `proxy.host`, `proxy.port`. Raises ValueError for a round trip or a port
    out of range, and on entering WorkshopError if no server answers there. If the server goes away later, connections
    through the proxy are reset.
    """

    host = "127.0.0.1"

    def __init__(self, host: str, port: int, round_trip_ms: float) -> None:
        self.round_trip_ms = checked_round_trip(round_trip_ms)
        if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
            raise ValueError(f"port must be a whole number from 1 to 65535, found {port!r}.")
        self.target = (host, port)
        self.port = 0
        self._process: subprocess.Popen | None = None
        self._lock = threading.Lock()
        self._unread = b""

    def __enter__(self) -> Proxy:
        family, address = _reach(*self.target)
        setting = {"family": int(family), "address": address, "delay_ns": round(1e6 * self.round_trip_ms)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "workshop.network", json.dumps(setting)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # interrupting a cell must not end it
        )
        try:
            self.port = self._answer(START_DEADLINE_S)["port"]
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def counts(self) -> Counts:
        """What passed through since the start, or since `reset()`; all that was sent before this call is in it."""
        return Counts(**self._ask("counts"))

    def reset(self) -> None:
        """Count from zero again."""
        self._ask("reset")

    def close(self) -> None:
        """End the proxy and every connection through it; what is on its way still arrives. Twice does no harm."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        try:
            process.stdin.write(b"end\n")  # type: ignore[union-attr]
            process.stdin.close()  # type: ignore[union-attr]
        except OSError:
            pass  # it has ended already
        try:
            process.wait(ANSWER_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()  # type: ignore[union-attr]

    def _ask(self, question: str) -> dict:
        with self._lock:
            if self._process is None:
                raise WorkshopError("the proxy is not open: use it inside its with block")
            try:
                self._process.stdin.write(question.encode() + b"\n")  # type: ignore[union-attr]
                self._process.stdin.flush()  # type: ignore[union-attr]
            except OSError:
                raise WorkshopError("the proxy's process has ended: run the cell again") from None
            return self._answer(ANSWER_DEADLINE_S)

    def _answer(self, deadline_s: float) -> dict:
        """The next line that the process writes; WorkshopError when none comes in time."""
        pipe = self._process.stdout.fileno()  # type: ignore[union-attr]
        give_up = time.monotonic() + deadline_s
        while b"\n" not in self._unread:
            # poll, not select: a notebook may well hold more than 1,024 open files
            waiter = select.poll()
            waiter.register(pipe, select.POLLIN)
            ready = waiter.poll(max(0, 1000 * (give_up - time.monotonic())))
            got = os.read(pipe, 65536) if ready else b""
            if not got:
                state = "has ended" if ready else f"did not answer within {deadline_s:.0f} s"
                raise WorkshopError(f"the proxy's process {state}: run the cell again")
            self._unread += got
        line, self._unread = self._unread.split(b"\n", 1)
        return json.loads(line)


def checked_round_trip(value: object) -> float:
    """`value` as a round trip in milliseconds; ValueError if it is no number from 0 to 1000."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= LONGEST_MS:  # type: ignore[operator]
        raise ValueError(f"round_trip_ms must be a number from 0 to {LONGEST_MS:.0f}, found {value!r}.")
    return float(value)  # type: ignore[arg-type]


def _reach(host: str, port: int) -> tuple[socket.AddressFamily, tuple]:
    """The address under which a server answers at `host`:`port` now."""
    try:
        with socket.create_connection((host, port), timeout=CONNECT_DEADLINE_S) as probe:
            return probe.family, probe.getpeername()
    except OSError as error:
        raise WorkshopError(
            f"no server answers at {host}:{port} ({error.strerror or error}): run `python -m workshop up`"
        ) from None


# ------------------------------------------------------------------------------------------- in the proxy's process


class _Way:
    """One direction of a connection: chunks on their way, each with the time (ns) at which it is let through."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source, self.target = source, target
        self.chunks: deque[tuple[int, memoryview]] = deque()  # an empty chunk is the end of the stream
        self.size = 0
        self.last_due = 0
        self.open = True  # the source may still send
        self.blocked = False  # the target takes no more at present
        self.finished = False  # the end of the stream has been passed on

    def add(self, due: int, data: bytes) -> int:
        self.last_due = max(due, self.last_due)  # order is kept
        self.chunks.append((self.last_due, memoryview(data)))
        self.size += len(data)
        self.open = bool(data)
        return self.last_due

    def flush(self, now: int) -> None:
        """Pass on what is due; OSError if the target is gone."""
        while self.chunks and not self.blocked and self.chunks[0][0] <= now:
            due, data = self.chunks.popleft()
            if not data:
                self.finished = True
                self.target.shutdown(socket.SHUT_WR)
                return
            try:
                sent = self.target.send(data)
            except BlockingIOError:
                sent = 0
            self.size -= sent
            if sent < len(data):
                self.blocked = True
                self.chunks.appendleft((due, data[sent:]))


class _Connection:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.up, self.down = _Way(client, server), _Way(server, client)
        self.up.blocked = True  # until the server has accepted
        self.connect_by: float | None = time.monotonic() + CONNECT_DEADLINE_S
        self.watched = dict.fromkeys((client, server), 0)
        self.answered = False  # the server has said something
        self.asking = False  # the client waits for an answer
        self.dead = False


class _Hops:
    """What the proxy's own two hops take now, in ns: `wake_ups_ns`, and the median of what it saw of the latest."""

    def __init__(self, wake_ups_ns: int) -> None:
        self.wake_ups_ns = self.now_ns = wake_ups_ns
        self.late_ns = 0  # how long after its due time the last chunk left for the server
        self._latest = deque([0] * (LATEST // 2), maxlen=LATEST)  # one slow start must not shorten all that follows

    def answer_took(self, ns: int) -> None:
        self._latest.append(self.late_ns + ns)
        self.now_ns = self.wake_ups_ns + int(statistics.median(self._latest))


class _Relay:
    """The proxy's loop: one thread that waits in one place."""

    def __init__(self, family: int, target: tuple, delay_ns: int, hops: _Hops) -> None:
        self.family, self.target, self.delay_ns, self.hops = family, target, delay_ns, hops
        self.selector = selectors.DefaultSelector()
        self.due: list[tuple[int, int, _Connection]] = []
        self.number = itertools.count()  # of two chunks due at the same time the first goes first
        self.connections: set[_Connection] = set()
        self.commands = b""
        self.zero()
        self.door = _listen()
        self.selector.register(self.door, selectors.EVENT_READ)
        os.set_blocking(0, False)
        self.selector.register(0, selectors.EVENT_READ)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
        self.most_connections = (most - 32) // 2

    def zero(self) -> None:
        self.counted = dict.fromkeys(Counts.__dataclass_fields__, 0)

    def run(self) -> None:
        """Carry until the parent says that it is over, closes our standard input, or is gone."""
        parent, look_up = os.getppid(), 0.0
        while True:
            asked, _ = self.step(self._until_due(1.0))
            if asked:
                for _ in range(1000):  # what was sent before the question belongs to the answer, a long stream does not
                    if not self.step(0.0)[1]:
                        break
                if not self.obey():
                    break
            if time.monotonic() > look_up:
                look_up = time.monotonic() + 1.0
                if os.getppid() != parent:  # a fork of the parent may hold the other end of our standard input
                    break
                self._drop_those_who_wait_too_long()
        give_up = time.monotonic() + 2e-9 * self.delay_ns + 0.1
        while self.due and time.monotonic() < give_up:  # what is on its way arrives
            self.step(self._until_due(0.01))

    def _until_due(self, longest_s: float) -> float:
        if not self.due:
            return longest_s
        return min(longest_s, max(0.0, (self.due[0][0] - time.perf_counter_ns()) / 1e9))

    def step(self, wait_s: float) -> tuple[bool, bool]:
        """Wait, let through what is due, read what has come: whether the parent asks, and whether a socket had work."""
        # epoll counts milliseconds, select microseconds: so select waits, for the one descriptor of epoll.
        select.select([self.selector], [], [], wait_s)
        self._let_through()
        asked = worked = False
        for key, events in self.selector.select(0):
            if key.fileobj == 0:
                asked = True
                continue
            worked = True
            if key.fileobj is self.door:
                self._accept()
            elif not key.data.dead:
                self._guard(key.data, self._handle, key.fileobj, events)
            self._let_through()
        return asked, worked

    def _let_through(self) -> None:
        while self.due and self.due[0][0] <= (now := time.perf_counter_ns()):
            due, _, connection = heapq.heappop(self.due)
            if not connection.dead:
                self._guard(connection, self._flush, connection.up, now)
                self.hops.late_ns = time.perf_counter_ns() - due

    def _guard(self, connection: _Connection, work: Callable[..., None], *args: object) -> None:
        try:
            work(connection, *args)
        except BlockingIOError:
            pass  # nothing was there after all
        except OSError:  # one end is gone: so is the other
            self._end(connection, reset=True)

    def _accept(self) -> None:
        try:
            client, _ = self.door.accept()
        except OSError:
            return  # gone again
        if len(self.connections) >= self.most_connections:
            _hang_up(client)
            return
        server = socket.socket(self.family, socket.SOCK_STREAM)
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(client, server)
        self.connections.add(connection)
        self.counted["connections"] += 1
        if server.connect_ex(self.target) in (0, errno.EINPROGRESS):
            self._watch(connection)
        else:
            self._end(connection, reset=True)

    def _handle(self, connection: _Connection, end: socket.socket, events: int) -> None:
        outward = end is connection.server
        if events & selectors.EVENT_WRITE:
            if outward and connection.connect_by is not None:
                error = end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error:
                    raise OSError(error, os.strerror(error))
                connection.connect_by = None
            way = connection.up if outward else connection.down
            way.blocked = False
            self._flush(connection, way, time.perf_counter_ns())
        if events & selectors.EVENT_READ and not connection.dead:
            if outward:
                self._read_answer(connection)
            else:
                self._read_request(connection)

    def _read_request(self, connection: _Connection) -> None:
        data = connection.client.recv(CHUNK)
        now = time.perf_counter_ns()
        if data:
            connection.asking = True
            self.counted["bytes_to_server"] += len(data)
        # TCP's handshake takes a round trip too; ours was over before we heard of it, so it is made up for here.
        trips = 1 if connection.answered else 2
        due = connection.up.add(now + max(0, trips * self.delay_ns - self.hops.now_ns), data)
        if due > now:
            heapq.heappush(self.due, (due, next(self.number), connection))
        else:
            self.hops.late_ns = 0  # an old lateness, kept, would shorten every delay to come
        self._flush(connection, connection.up, now)

    def _read_answer(self, connection: _Connection) -> None:
        data = connection.server.recv(CHUNK)
        now = time.perf_counter_ns()
        flown = bool(data) and connection.asking
        if flown:
            connection.answered, connection.asking = True, False
            self.counted["flights"] += 1
        self.counted["bytes_to_client"] += len(data)
        connection.down.add(now, data)
        self._flush(connection, connection.down, now)
        if flown:
            self.hops.answer_took(time.perf_counter_ns() - now)

    def _flush(self, connection: _Connection, way: _Way, now: int) -> None:
        way.flush(now)
        if connection.up.finished and connection.down.finished:
            self._end(connection)
        else:
            self._watch(connection)

    def _watch(self, connection: _Connection) -> None:
        """Ask for what each end can do for us now, and for nothing that would make us turn in circles."""
        up, down = connection.up, connection.down
        for end, leaving, coming in ((connection.client, up, down), (connection.server, down, up)):
            connecting = leaving is down and connection.connect_by is not None
            read = leaving.open and leaving.size < ON_THE_WAY and not connecting
            events = selectors.EVENT_READ * read | selectors.EVENT_WRITE * coming.blocked
            before, connection.watched[end] = connection.watched[end], events
            if events == before:
                continue
            if not before:
                self.selector.register(end, events, connection)
            elif not events:
                self.selector.unregister(end)
            else:
                self.selector.modify(end, events, connection)

    def _end(self, connection: _Connection, reset: bool = False) -> None:
        connection.dead = True
        self.connections.discard(connection)
        for end, events in connection.watched.items():
            if events:
                self.selector.unregister(end)
            if reset:
                _hang_up(end)
            else:
                end.close()

    def _drop_those_who_wait_too_long(self) -> None:
        now = time.monotonic()
        for connection in [c for c in self.connections if c.connect_by is not None and c.connect_by < now]:
            self._end(connection, reset=True)

    def obey(self) -> bool:
        """Do what the parent asks; False when it has nothing more to ask."""
        got = os.read(0, 65536)
        *lines, self.commands = (self.commands + got).split(b"\n")
        for command in lines:
            if command == b"end":
                return False
            _say(self.counted if command == b"counts" else {})
            if command == b"reset":
                self.zero()
        return bool(got)


def _say(answer: dict) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def _listen() -> socket.socket:
    door = socket.create_server((Proxy.host, 0), backlog=256)
    door.setblocking(False)
    return door


def _hang_up(end: socket.socket) -> None:
    """Close with a reset, as a server that is not there would answer."""
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    except OSError:
        pass  # the other side was quicker
    end.close()


def _two_wake_ups_ns(pings: int = 40) -> int:
    """What two hops take beside what the proxy sees of them: an echo's round trip on loopback, which is two hops."""
    door = socket.create_server((Proxy.host, 0))
    child = os.fork()
    if child == 0:
        _echo(door)
    took = []
    with door, socket.create_connection(door.getsockname(), timeout=ANSWER_DEADLINE_S) as end:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(pings):
            time.sleep(0.0005)  # a process that slept wakes up more slowly than one that waits in turns
            start = time.perf_counter_ns()
            end.sendall(b"ping")
            end.recv(64)
            took.append(time.perf_counter_ns() - start)
    os.waitpid(child, 0)
    return int(statistics.median(took))


def _echo(door: socket.socket) -> None:
    try:
        for pipe in (0, 1):
            os.close(pipe)
        door.settimeout(ANSWER_DEADLINE_S)
        end, _ = door.accept()
        end.settimeout(ANSWER_DEADLINE_S)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := end.recv(64):
            end.sendall(data)
    except OSError:
        pass
    finally:
        os._exit(0)


def _main(setting: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with open("/proc/self/timerslack_ns", "w") as slack:
            slack.write("1")  # the kernel may wake a sleeper 50 microseconds late, to save power: not this one
    except OSError:
        pass  # not Linux
    given = json.loads(setting)
    try:
        relay = _Relay(given["family"], tuple(given["address"]), given["delay_ns"], _Hops(_two_wake_ups_ns()))
        _say({"port": relay.door.getsockname()[1]})
        relay.run()
    except BrokenPipeError:
        pass  # the parent is gone


if __name__ == "__main__":
    _main(sys.argv[1])
