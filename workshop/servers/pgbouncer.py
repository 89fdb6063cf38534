"""PgBouncer in front of one database, for as long as a block runs."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import URL

from workshop.servers.postgres_server import dsn
from workshop.servers.process import as_account, free_port, hand_over
from workshop.state import WorkshopError

START_DEADLINE_S = 10.0
SETTINGS = """
[databases]
{database} = host={host} port={port} user='{user}' password='{password}'
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = plain
auth_file = {users}
stats_users = {user}
pool_mode = {pool_mode}
default_pool_size = {size}
max_client_conn = 500
ignore_startup_parameters = extra_float_digits
"""


@contextmanager
def pgbouncer(server: URL, pool_mode: str = "transaction", size: int = 5) -> Iterator[URL]:
    """The URL of a PgBouncer on loopback that leads to `server` over at most `size` connections.

    `pool_mode` is "session", "transaction" or "statement". Raises WorkshopError where the program is not installed, or
    does not answer within START_DEADLINE_S seconds. Source: https://www.pgbouncer.org/config.html
    """
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        raise WorkshopError(
            "PgBouncer is not installed here: run `apt install pgbouncer`, `brew install pgbouncer` or "
            "`conda install -c conda-forge pgbouncer`, and this cell again"
        )
    port = free_port()
    password = secrets.token_urlsafe(24)  # whoever is on this machine reaches the port
    url = server.set(host="127.0.0.1", port=port, password=password, query={})
    with tempfile.TemporaryDirectory(prefix="workshop-pgbouncer-") as folder:
        settings, users = Path(folder, "pgbouncer.ini"), Path(folder, "users.txt")
        for path in (settings, users):
            path.touch(mode=0o600)
        name = str(server.username).replace('"', '""')
        users.write_text(f'"{name}" "{password}"\n')
        settings.write_text(
            SETTINGS.format(
                database=server.database,
                host=server.host,
                port=server.port or 5432,
                user=server.username,
                password=(server.password or "").replace("'", "''"),
                listen=port,
                users=users,
                pool_mode=pool_mode,
                size=size,
            )
        )
        for path in (Path(folder), settings, users):
            hand_over(path)
        process = subprocess.Popen(
            [program, "-q", settings],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            **as_account(),
        )
        try:
            _wait(process, url)
            yield url
        finally:
            process.kill()  # it holds nothing but connections
            process.communicate()


def _wait(process: subprocess.Popen, url: URL) -> None:
    give_up = time.monotonic() + START_DEADLINE_S
    while True:
        try:
            psycopg.connect(dsn(url), connect_timeout=2).close()
            return
        except psycopg.OperationalError as error:
            if process.poll() is not None:
                last = (process.stderr.read().strip().splitlines() or ["it said nothing"])[-1]  # type: ignore[union-attr]
                raise WorkshopError(f"PgBouncer ended at once: {last}") from None
            if time.monotonic() > give_up:
                raise WorkshopError(
                    f"PgBouncer does not answer within {START_DEADLINE_S:.0f} s: {str(error).strip().splitlines()[-1]}"
                ) from None
            time.sleep(0.05)
