"""The proxy's own process: carries bytes, delays them, counts them. Standard library only: it starts in some 50 ms."""

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
import sys
import time
from collections import deque
from collections.abc import Callable

HOST = "127.0.0.1"
ANSWER_DEADLINE_S = 5.0
CONNECT_DEADLINE_S = 10.0
CHUNK = 256 * 1024
PIECE = 16 * 1024  # bytes that a limited link lets through at once
ON_THE_WAY = 64 * 1024 * 1024  # bytes; more is left with the sender, as TCP's own window would
RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time to linger: close() sends RST
LATEST = 9  # round trips whose median says what the hops take now


class _Direction:
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


class _Link:
    """One direction of the network that all connections share: it carries a byte in `ns_per_byte`, 0 without limit."""

    def __init__(self, ns_per_byte: float) -> None:
        self.ns_per_byte = ns_per_byte
        self.free_at = 0.0

    def carry(self, data: bytes, start: int) -> list[tuple[int, bytes]]:
        """Pieces of `data`, each with the time at which its last byte has been sent if it may start at `start`."""
        if not self.ns_per_byte or not data:
            return [(max(start, int(self.free_at)), data)]
        pieces = []
        for at in range(0, len(data), PIECE):
            piece = data[at : at + PIECE]
            self.free_at = max(self.free_at, start) + len(piece) * self.ns_per_byte
            pieces.append((int(self.free_at), piece))
        return pieces


class _Connection:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.up, self.down = _Direction(client, server), _Direction(server, client)
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

    def __init__(self, family: int, target: tuple, delay_ns: int, ns_per_byte: float, hops: _Hops) -> None:
        self.family, self.target, self.delay_ns, self.hops = family, target, delay_ns, hops
        self.parent = os.getppid()  # asked before the parent knows the port: it may be killed right after
        self.link_up, self.link_down = _Link(ns_per_byte), _Link(ns_per_byte)
        self.selector = selectors.DefaultSelector()
        self.due: list[tuple[int, int, _Connection, _Direction]] = []
        self.number = itertools.count()  # of two chunks due at the same time the first goes first
        self.connections: set[_Connection] = set()
        self.commands = b""
        self.zero()
        self.listener = _listen()
        self.selector.register(self.listener, selectors.EVENT_READ)
        os.set_blocking(0, False)
        self.selector.register(0, selectors.EVENT_READ)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
        self.most_connections = (most - 32) // 2

    def zero(self) -> None:
        self.counted = dict.fromkeys(("connections", "round_trips", "bytes_to_server", "bytes_to_client"), 0)

    def run(self) -> None:
        """Carry until the parent says that it is over, closes our standard input, or is gone."""
        look_up = 0.0
        while True:
            asked, _ = self.step(self._until_due(1.0))
            if asked:
                for _ in range(1000):  # what was sent before the question belongs to the answer, a long stream does not
                    if not self.step(0.0)[1]:
                        break
                if not self.handle_commands():
                    break
            if time.monotonic() > look_up:
                look_up = time.monotonic() + 1.0
                if os.getppid() != self.parent:  # a fork of the parent may hold the other end of our standard input
                    break
                self._drop_those_who_wait_too_long()
        give_up = time.monotonic() + 2e-9 * self.delay_ns + min(1.0, self._backlog_s()) + 0.1
        while self.due and time.monotonic() < give_up:  # what is on its way arrives
            self.step(self._until_due(0.01))

    def _until_due(self, longest_s: float) -> float:
        if not self.due:
            return longest_s
        return min(longest_s, max(0.0, (self.due[0][0] - time.perf_counter_ns()) / 1e9))

    def _backlog_s(self) -> float:
        """How long the slower of the links will still be busy."""
        return max(0.0, max(self.link_up.free_at, self.link_down.free_at) - time.perf_counter_ns()) / 1e9

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
            if key.fileobj is self.listener:
                self._accept()
            elif not key.data.dead:
                self._guard(key.data, self._handle, key.fileobj, events)
            self._let_through()
        return asked, worked

    def _let_through(self) -> None:
        while self.due and self.due[0][0] <= (now := time.perf_counter_ns()):
            due, _, connection, direction = heapq.heappop(self.due)
            if not connection.dead:
                self._guard(connection, self._flush, direction, now)
                if direction is connection.up:
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
            client, _ = self.listener.accept()
        except OSError:
            return  # gone again
        if len(self.connections) >= self.most_connections:
            _close_with_reset(client)
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
            direction = connection.up if outward else connection.down
            direction.blocked = False
            self._flush(connection, direction, time.perf_counter_ns())
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
        delay = max(0, trips * self.delay_ns - self.hops.now_ns)
        if not self._send(connection, connection.up, self.link_up.carry(data, now), delay, now):
            self.hops.late_ns = 0  # an old lateness, kept, would shorten every delay to come
        self._flush(connection, connection.up, now)

    def _read_answer(self, connection: _Connection) -> None:
        data = connection.server.recv(CHUNK)
        now = time.perf_counter_ns()
        answers = bool(data) and connection.asking
        if answers:
            connection.answered, connection.asking = True, False
            self.counted["round_trips"] += 1
        self.counted["bytes_to_client"] += len(data)
        self._send(connection, connection.down, self.link_down.carry(data, now), 0, now)
        self._flush(connection, connection.down, now)
        if answers:
            self.hops.answer_took(time.perf_counter_ns() - now)

    def _send(
        self, connection: _Connection, direction: _Direction, pieces: list[tuple[int, bytes]], delay: int, now: int
    ) -> bool:
        """Put the pieces on their way; whether one of them has to wait."""
        waits = False
        for sent_at, piece in pieces:
            due = direction.add(sent_at + delay, piece)
            if due > now:
                waits = True
                heapq.heappush(self.due, (due, next(self.number), connection, direction))
        return waits

    def _flush(self, connection: _Connection, direction: _Direction, now: int) -> None:
        direction.flush(now)
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
                _close_with_reset(end)
            else:
                end.close()

    def _drop_those_who_wait_too_long(self) -> None:
        now = time.monotonic()
        for connection in [c for c in self.connections if c.connect_by is not None and c.connect_by < now]:
            self._end(connection, reset=True)

    def handle_commands(self) -> bool:
        """Do what the parent asks; False when it has nothing more to ask."""
        got = os.read(0, 65536)
        *lines, self.commands = (self.commands + got).split(b"\n")
        for command in lines:
            if command == b"end":
                return False
            _reply(self.counted if command == b"counts" else {})
            if command == b"reset":
                self.zero()
        return bool(got)


def _reply(answer: dict) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def _listen() -> socket.socket:
    listener = socket.create_server((HOST, 0), backlog=256)
    listener.setblocking(False)
    return listener


def _close_with_reset(end: socket.socket) -> None:
    """Close with a reset, as a server that is not there would answer."""
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    except OSError:
        pass  # the other side was quicker
    end.close()


def _two_wake_ups_ns(pings: int = 40) -> int:
    """What two hops take beside what the proxy sees of them: an echo's round trip on loopback, which is two hops."""
    listener = socket.create_server((HOST, 0))
    child = os.fork()
    if child == 0:
        _echo(listener)
    took = []
    with listener, socket.create_connection(listener.getsockname(), timeout=ANSWER_DEADLINE_S) as end:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(pings):
            time.sleep(0.0005)  # a process that slept wakes up more slowly than one that waits in turns
            start = time.perf_counter_ns()
            end.sendall(b"ping")
            end.recv(64)
            took.append(time.perf_counter_ns() - start)
    os.waitpid(child, 0)
    return int(statistics.median(took))


def _echo(listener: socket.socket) -> None:
    try:
        for pipe in (0, 1):
            os.close(pipe)
        listener.settimeout(ANSWER_DEADLINE_S)
        end, _ = listener.accept()
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
        hops = _Hops(_two_wake_ups_ns())
        relay = _Relay(given["family"], tuple(given["address"]), given["delay_ns"], given["ns_per_byte"], hops)
        _reply({"port": relay.listener.getsockname()[1]})
        relay.run()
    except BrokenPipeError:
        pass  # the parent is gone


if __name__ == "__main__":
    _main(sys.argv[1])
