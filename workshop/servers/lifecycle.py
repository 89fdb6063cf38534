"""Start, find, stop and delete the servers: each found by its URL in the environment, or started here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress

import psycopg

from workshop.servers import mongo_server, postgres_server, redis_server
from workshop.servers.local import LocalServer
from workshop.servers.service import Servers, Service
from workshop.state import WorkshopError, alone, lock, password, state_dir, use

KEEP = "keep"  # a file in the state folder: the servers were started by `up`
# Each server: the one that a URL in the environment names, and our own.
SERVERS: dict[str, tuple[Callable[[], Service | None], Callable[[], LocalServer]]] = {
    "postgres": (postgres_server.primary_from_environment, postgres_server.primary),
    "redis": (redis_server.from_environment, redis_server.Redis),
    "mongo": (mongo_server.from_environment, mongo_server.Mongo),
}
NAMES = tuple(SERVERS)


def up(names: Sequence[str] = NAMES, replicas: int = 0, *, do_without: bool = False) -> Servers:
    """Start those of `names` that are not running, wait until they answer, and say where they are.

    Safe to call from several processes at once; whatever a crash or a reboot left behind is repaired. `replicas`
    streaming replicas are started too: those named in WORKSHOP_REPLICA_URLS, or our own. Until this process ends, it
    counts as one that uses the servers.

    Raises WorkshopError when a server cannot be had; with `do_without` only when none can, and `Servers.lacking` says
    which and why.
    """
    notes: list[str] = []
    with lock():
        use()
        for owner in (*NAMES, "mongo-members"):
            password(owner)  # made here, one after the other, before the threads need them
        with ThreadPoolExecutor(len(SERVERS)) as pool:
            waiting = {name: pool.submit(_up, name, replicas, notes) for name in names}
        errors = {name: error for name, future in waiting.items() if (error := future.exception())}
        fatal = [error for error in errors.values() if not (do_without and isinstance(error, WorkshopError))]
        if fatal or len(errors) == len(waiting):
            raise (fatal or list(errors.values()))[0]
        services = {name: future.result() for name, future in waiting.items() if name not in errors}
        following = _replicas_up(replicas, services["postgres"]) if replicas and "postgres" in services else []
        return Servers(services, following, {name: str(error) for name, error in errors.items()}, notes)


def _up(name: str, replicas: int, notes: list[str]) -> Service:
    by_url, ours = SERVERS[name]
    service = by_url()
    if service and name == "postgres" and len(postgres_server.replicas_from_environment(service.url)) < replicas:
        notes.append(
            f"WORKSHOP_REPLICA_URLS names fewer than the {replicas} that this lesson needs: "
            "it uses a PostgreSQL of the workbook's own, started here, in place of your server"
        )
        service = None
    if service:
        return service  # nothing is made in somebody's database: observe() says what an administrator would run there
    service = ours().up()
    if name == "postgres":
        with postgres_server.connect(service.url) as connection, suppress(psycopg.Error):  # one on PATH may lack it
            connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    return service


def _replicas_up(count: int, primary: Service) -> list[Service]:
    if primary.source == "url":
        return postgres_server.replicas_from_environment(primary.url)[:count]
    ours = postgres_server.primary()
    return [postgres_server.Cluster(f"replica{number}", ours).follow() for number in range(1, count + 1)]


def find() -> Servers:
    """The servers that answer now; `lacking` says why another one lets nobody in. Starts nothing."""
    found = Servers({})
    for name, (by_url, ours) in SERVERS.items():
        try:
            if service := by_url() or ours().service():
                found.services[name] = service
        except WorkshopError as error:
            found.lacking[name] = str(error)
    with suppress(WorkshopError):
        found.replica_services.extend(postgres_server.replicas_from_environment())
    for cluster in postgres_server.replicas_made():
        with suppress(WorkshopError):
            if service := cluster.service():
                found.replica_services.append(service)
    return found


def _ours() -> list[LocalServer]:
    """The servers of the state folder, replicas before their primary."""
    return [*postgres_server.replicas_made(), *(ours() for _, ours in SERVERS.values())]


def down(*, if_alone: bool = False) -> list[str]:
    """Stop every server that the workbook started (never one that was found by URL); the names of those stopped.

    Raises WorkshopError, with `if_alone`, while another process uses them.
    """
    with lock(), alone() if if_alone else nullcontext():
        (state_dir() / KEEP).unlink(missing_ok=True)
        return [server.name for server in _ours() if server.down()]


def keep() -> None:
    """Let the servers run until `down`, whichever JupyterLab ends before that."""
    (state_dir() / KEEP).touch()


def kept() -> bool:
    return (state_dir() / KEEP).exists()


def remove() -> None:
    """Stop the servers that the workbook started and delete their data.

    Raises WorkshopError while another process uses them: its lesson would lose its copies.
    """
    with lock(), alone():
        for server in _ours():
            server.down()
            server.remove()
