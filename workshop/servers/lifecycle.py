"""The servers: each found by its URL in the environment, or started here."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg

from workshop.servers import mongo_server, postgres_server, redis_server
from workshop.servers.service import Servers, Service
from workshop.state import WorkshopError, lock, password


def up(replicas: int = 0) -> Servers:
    """Start what is not running, wait until all answer, and say where they are.

    Safe to call from several processes at once; whatever a crash or a reboot left behind is mended.
    `replicas` streaming replicas are started too: those named in WORKSHOP_REPLICA_URLS, or our own.
    """
    with lock():
        starters: dict[str, Callable[[], Service]] = {
            "postgres": _postgres_up,
            "redis": lambda: redis_server.from_environment() or redis_server.Redis().up(),
            "mongo": lambda: mongo_server.from_environment() or mongo_server.Mongo().up(),
        }
        for owner in (*starters, "mongo-members"):
            password(owner)  # made here, one after the other, before the threads need them
        with ThreadPoolExecutor(len(starters)) as pool:
            waiting = {name: pool.submit(start) for name, start in starters.items()}
        services = {name: future.result() for name, future in waiting.items()}
        return Servers(services, _replicas_up(replicas, services["postgres"]) if replicas else [])


def _postgres_up() -> Service:
    service = (
        next(iter(postgres_server.from_environment("WORKSHOP_POSTGRES_URL")), None) or postgres_server.primary().up()
    )
    with psycopg.connect(postgres_server.dsn(service.url), autocommit=True) as connection:
        try:
            connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        except psycopg.Error:
            pass  # somebody's own server without it: observe() then says what it cannot count
    return service


def _replicas_up(count: int, primary: Service) -> list[Service]:
    if primary.source == "url":
        services = postgres_server.from_environment("WORKSHOP_REPLICA_URLS")[:count]
        if len(services) < count:
            raise WorkshopError(
                f"{count} replicas are needed and WORKSHOP_REPLICA_URLS names {len(services)}: "
                "name the replicas of the server in WORKSHOP_POSTGRES_URL"
            )
        return services
    ours = postgres_server.primary()
    return [postgres_server.Cluster(f"replica{number}", ours).follow() for number in range(1, count + 1)]


def find() -> tuple[dict[str, Service | None], list[Service]]:
    """The services that answer now, by name (None for one that does not), and the replicas. Starts nothing."""
    finders: dict[str, Callable[[], Service | None]] = {
        "postgres": lambda: (
            next(iter(postgres_server.from_environment("WORKSHOP_POSTGRES_URL")), None)
            or postgres_server.primary().service()
        ),
        "redis": lambda: redis_server.from_environment() or redis_server.Redis().service(),
        "mongo": lambda: mongo_server.from_environment() or mongo_server.Mongo().service(),
    }
    found: dict[str, Service | None] = {}
    for name, look in finders.items():
        try:
            found[name] = look()
        except WorkshopError:
            found[name] = None
    try:
        replicas = postgres_server.from_environment("WORKSHOP_REPLICA_URLS")
    except WorkshopError:
        replicas = []
    replicas += [service for cluster in postgres_server.replicas_made() if (service := cluster.service())]
    return found, replicas


def down() -> list[str]:
    """Stop every server that the workbook started (never one that was found by URL); the names of those stopped."""
    with lock():
        ours = {cluster.name: cluster for cluster in [*postgres_server.replicas_made(), postgres_server.primary()]}
        stopped = [name for name, cluster in ours.items() if cluster.down()]
        stopped += ["redis"] if redis_server.Redis().down() else []
        stopped += ["mongo"] if mongo_server.Mongo().down() else []
        return stopped


def remove() -> None:
    """Stop the servers that the workbook started and delete their data."""
    down()
    with lock():
        for cluster in [*postgres_server.replicas_made(), postgres_server.primary()]:
            cluster.remove()
        redis_server.Redis().remove()
        mongo_server.Mongo().remove()
