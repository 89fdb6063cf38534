"""Measurements take turns in a class: when too many run at once, all are slow and none is right."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from workshop.learner import place
from workshop.servers.postgres_server import connect_common, primary_from_environment
from workshop.state import WorkshopError

KEY = 0x7475726E  # "turn" in ASCII: the first half of the advisory locks, one lock for each place
LOOK_S = 0.2
PATIENCE_S = 300.0


@contextmanager
def turn() -> Iterator[None]:
    """A block in which at most `Place.turns` learners of a class measure; outside of a class there is no wait.

    The places are advisory locks in the class's PostgreSQL, which a session that ends gives back. Who has waited
    PATIENCE_S seconds goes ahead, and the figures are then worth less: it says so.
    """
    seat = place()
    try:
        service = primary_from_environment() if seat and seat.turns else None
        connection = connect_common(service.url) if service else None
    except (WorkshopError, psycopg.Error):  # no connection is free: that is no reason not to measure
        connection = None
    if connection is None:
        yield
        return
    with connection:
        start, told = time.monotonic(), False
        while not any(
            connection.execute("SELECT pg_try_advisory_lock(%s, %s)", [KEY, number]).fetchone()[0]
            for number in range(seat.turns)
        ):
            if not told:
                print(f"{seat.turns} in the class measure at this moment: waiting for a turn ...", end="", flush=True)
                told = True
            if time.monotonic() - start > PATIENCE_S:
                print(" not any longer; others measure at the same time, so take these figures with care.", flush=True)
                told = False
                break
            time.sleep(LOOK_S)
        if told:
            print(f" {time.monotonic() - start:.0f} s.", flush=True)
        yield
