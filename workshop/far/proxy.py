"""A network distance of one's own choosing: a TCP proxy that adds a round-trip time, and counts round trips and bytes.

    with Proxy("127.0.0.1", 5432, round_trip_ms=2) as proxy:
        ...                      # connect to proxy.host, proxy.port instead
        proxy.counts()           # 1 connection, 4 round trips, 512 bytes to the server, 2,048 bytes to the client

It knows nothing of what it carries, so it serves PostgreSQL, Redis and MongoDB alike, with TLS or without.

How the time is added:

* The whole round trip is added on the way to the server, each chunk counted from its own arrival; answers pass at
  once. For whoever asks and waits this is the same as half of it each way, with one timer that can be late, not two.
* Chunks that follow each other share one delay, so requests sent together (a pipeline) cost one round trip.
* `mbit_s` limits the bandwidth, of each direction on its own and of all connections together: a byte takes 8 / `mbit_s`
  microseconds. Without it only the 64 MB per connection and direction that are on their way at most limit anything.
  TCP's slow start is not imitated: a new connection has the whole bandwidth at once.
* Opening a connection costs one round trip, TCP's handshake. The kernel has accepted before the proxy hears of it, so
  that time is added to the connection's first round trip, which so takes two.
* The proxy's own two hops take 0.05 to 0.15 ms, and more on a busy machine. They are part of the time added: each
  delay is shorter by what they take now. An echo on loopback at the start says what two wake-ups of a process take;
  the rest the proxy sees on each round trip. A round trip shorter than the hops cannot be had; 0 adds only them, and
  counts. Held against pings at the same pace on the direct way (a client and a server that have slept answer up to
  0.06 ms later), on two cores, the median of what was added lay within 20 % of 0.5 ms, mostly 10, 7 % of 2 ms and 2 %
  of 20 ms, for an echo, PostgreSQL and Redis, on an idle machine and with both cores kept busy by others.

A **round trip** is what the client sends until the server's answer comes back: one that somebody waited for. Requests
sent before the first answer came are one round trip. A goodbye, which nobody answers, is none. So the time on a long
network is about (connections + round trips) x the time of one.

The proxy is a process of its own, so it never waits for the interpreter lock of what is measured. It ends when its
parent does, even if that is killed. It needs the standard library only, and so starts in some 50 ms.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

from workshop.state import WorkshopError

LONGEST_MS = 1000.0
START_DEADLINE_S = 20.0
ANSWER_DEADLINE_S = 5.0
CONNECT_DEADLINE_S = 10.0


@dataclass(frozen=True)
class Counts:
    """What passed through a proxy since its start or its last `reset()`."""

    connections: int
    round_trips: int
    bytes_to_server: int
    bytes_to_client: int

    def __str__(self) -> str:
        words = (
            (self.connections, "connection", ""),
            (self.round_trips, "round trip", ""),
            (self.bytes_to_server, "byte", " to the server"),
            (self.bytes_to_client, "byte", " to the client"),
        )
        return ", ".join(f"{n:,} {word}{'' if n == 1 else 's'}{where}" for n, word, where in words)

    __repr__ = __str__


class Proxy:
    """A way to the TCP server at `host`:`port` that is `round_trip_ms` (0 to 1000) longer than the direct one, and
    carries `mbit_s` million bits a second (0.1 to 100,000; None: no limit).

    A context manager; inside it connect to `proxy.host`, `proxy.port`. Raises ValueError for a number out of range, and
    on entering WorkshopError if no server answers there. If the server goes away later, connections through the proxy
    are reset.
    """

    host = "127.0.0.1"

    def __init__(self, host: str, port: int, round_trip_ms: float, mbit_s: float | None = None) -> None:
        self.round_trip_ms = checked_round_trip(round_trip_ms)
        self.mbit_s = checked_bandwidth(mbit_s)
        if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
            raise ValueError(f"port must be a whole number from 1 to 65535, found {port!r}.")
        self.target = (host, port)
        self.port = 0
        self._process: subprocess.Popen | None = None
        self._lock = threading.Lock()
        self._unread = b""

    def __enter__(self) -> Proxy:
        family, address = _resolve(*self.target)
        setting = {
            "family": int(family),
            "address": address,
            "delay_ns": round(1e6 * self.round_trip_ms),
            "ns_per_byte": 8000 / self.mbit_s if self.mbit_s else 0,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "workshop.far.relay", json.dumps(setting)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # interrupting a cell must not end it, save while it is asked for its counts
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
            try:
                return self._answer(ANSWER_DEADLINE_S)
            except BaseException:
                self._process.kill()  # type: ignore[union-attr]  # its late answer would be taken for the next one
                raise

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
    return _number("round_trip_ms", value, 0, LONGEST_MS)


def checked_bandwidth(value: object) -> float | None:
    """`value` as Mbit/s; None is no limit; ValueError if it is no number from 0.1 to 100,000."""
    return None if value is None else _number("mbit_s", value, 0.1, 100_000, ", or None for no limit")


def _number(name: str, value: object, low: float, high: float, more: str = "") -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:,.0f}{more}, found {value!r}.")
    return float(value)


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple]:
    """The address under which a server answers at `host`:`port` now."""
    try:
        with socket.create_connection((host, port), timeout=CONNECT_DEADLINE_S) as probe:
            return probe.family, probe.getpeername()
    except OSError as error:
        raise WorkshopError(
            f"no server answers at {host}:{port} ({error.strerror or error}): run `python -m workshop up`"
        ) from None
