"""Learners' accounts on the servers: made, made again, and removed with all that belongs to them.

PostgreSQL: a role for each seat with CREATEDB, and limits. Sandboxes are copies of templates whose tables belong to a
role that all learners are in, so each may change the tables of her copy; into a copy comes only who owns it.
MongoDB: a user for each seat with rights on her sandboxes by name, reading the shop, and leases of her own.
Redis has counters for the whole server, which exercises are judged by: each learner's workbook starts her own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg
from psycopg import sql
from pymongo import MongoClient
from sqlalchemy import URL

from workshop.classroom.roll import Roll
from workshop.learner import READY
from workshop.progress import bar
from workshop.servers import mongo_server
from workshop.servers.postgres_server import connect, drop_database
from workshop.servers.service import Servers
from workshop.shop import DATABASE, WITH_BIOGRAPHIES
from workshop.shop.mongo_loader import META, PROFILES
from workshop.state import WorkshopError

CONNECTIONS = 60
LIMITS = {"statement_timeout": "120s", "temp_file_limit": "1GB", "idle_in_transaction_session_timeout": "30min"}


def prepare(roll: Roll, servers: Servers) -> None:
    """Make what is missing of the class's templates, accounts and spare copies. Safe to call again after a kill.

    Raises WorkshopError when the server's account may not do so.
    """
    with _admin(servers.postgres) as connection, mongo_server.connect(servers.mongo) as client:
        if not _has_role(connection, f"{roll.prefix}all"):
            _run(connection, "CREATE ROLE {} NOLOGIN", f"{roll.prefix}all")
        for shop in (DATABASE, WITH_BIOGRAPHIES):
            there = _about(connection, shop)
            if not there or _about(connection, f"{roll.prefix}{shop}") == (there[0], True):
                continue
            # What is ready is of the shop as it was. The template is made after that: it tells that this was done.
            for seat in roll.seats if shop == DATABASE else ():
                drop_database(connection, roll.place(seat, 0).spare)
                if found := client[DATABASE][roll.place(seat, 0).leases].find_one_and_delete({"_id": READY}):
                    client.drop_database(found["name"])
            _template(servers.postgres, connection, roll, shop, there[0])
        with bar("preparing places", len(roll.seats), " places") as shown:
            for seat in roll.seats:
                _role(connection, roll, seat)
                _user(client, roll, seat)
                spare(connection, roll, seat)
                _ready_documents(client, roll, seat)
                shown.update()


@contextmanager
def _admin(url: URL) -> Iterator[psycopg.Connection]:
    with connect(url) as connection:
        if not connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()[0]:
            raise WorkshopError(
                "a class needs roles for its learners, and the account in WORKSHOP_POSTGRES_URL is no superuser: name "
                "one that is, or unset the variable and the class starts servers of its own"
            )
        connection.execute("SET client_min_messages = warning")
        yield connection


def _run(connection: psycopg.Connection, statement: str, *names: str, **literals: str | int) -> None:
    """Run `statement`; its {} are names, its {name} are values."""
    values = {name: sql.Literal(value) for name, value in literals.items()}
    connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names), **values))


def _has_role(connection: psycopg.Connection, name: str) -> bool:
    return connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone() is not None


def _about(connection: psycopg.Connection, name: str) -> tuple[str, bool] | None:
    """A database's comment, which says what a shop was seeded with, and whether it is a template; None without it."""
    query = "SELECT shobj_description(oid, 'pg_database'), datistemplate FROM pg_database WHERE datname = %s"
    return connection.execute(query, [name]).fetchone()


def _template(admin: URL, connection: psycopg.Connection, roll: Roll, shop: str, comment: str) -> None:
    """Make the class's own copy of the `shop`, which itself stays as whoever made it wants it."""
    name = f"{roll.prefix}{shop}"
    drop_database(connection, name)
    _run(connection, "CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY ALLOW_CONNECTIONS false", name, shop)
    _run(connection, "REVOKE ALL ON DATABASE {} FROM PUBLIC", name)
    _run(connection, "ALTER DATABASE {} ALLOW_CONNECTIONS true", name)
    with connect(admin, name) as inside:
        for (table,) in inside.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall():
            _run(inside, "ALTER TABLE {} OWNER TO {}", table, f"{roll.prefix}all")
    _run(connection, "COMMENT ON DATABASE {} IS {comment}", name, comment=comment)
    _run(connection, "ALTER DATABASE {} IS_TEMPLATE true", name)


def _role(connection: psycopg.Connection, roll: Roll, seat: int) -> None:
    name = roll.account(seat)
    if not _has_role(connection, name):
        _run(connection, "CREATE ROLE {}", name)
    options = "LOGIN CREATEDB CONNECTION LIMIT {limit} PASSWORD {password}"
    _run(connection, f"ALTER ROLE {{}} {options}", name, limit=CONNECTIONS, password=roll.password_of("postgres", seat))
    for setting, value in LIMITS.items():
        _run(connection, f"ALTER ROLE {{}} SET {setting} = {{value}}", name, value=value)
    _run(connection, "GRANT {} TO {}", f"{roll.prefix}all", name)


def spare(connection: psycopg.Connection, roll: Roll, seat: int) -> None:
    """A copy of the shop that the seat's next lesson takes; nothing where it is there."""
    name = roll.place(seat, 0).spare
    if _about(connection, name):
        return
    making = f"{name}_making"  # a killed class leaves no half a copy under the name
    drop_database(connection, making)
    statement = "CREATE DATABASE {} TEMPLATE {} OWNER {} STRATEGY FILE_COPY"
    _run(connection, statement, making, f"{roll.prefix}{DATABASE}", roll.account(seat))
    _run(connection, "REVOKE ALL ON DATABASE {} FROM PUBLIC", making)
    _run(connection, "ALTER DATABASE {} RENAME TO {}", making, name)


def _user(client: MongoClient, roll: Roll, seat: int) -> None:
    name, place = roll.account(seat), roll.place(seat, 0)
    reading, writing = ["find", "listIndexes", "collStats", "listCollections"], ["find", "insert", "update", "remove"]
    privileges = [
        *({"resource": {"db": DATABASE, "collection": kept}, "actions": reading} for kept in (PROFILES, META)),
        {"resource": {"db": DATABASE, "collection": ""}, "actions": ["listCollections"]},
        {"resource": {"db": DATABASE, "collection": place.leases}, "actions": writing},
    ]
    roles = [{"role": right, "db": box} for box in place.sandboxes for right in ("readWrite", "dbAdmin")]
    made = client.admin.command("rolesInfo", name)["roles"]
    client.admin.command("updateRole" if made else "createRole", name, privileges=privileges, roles=[])
    made = client.admin.command("usersInfo", name)["users"]
    login = {"pwd": roll.password_of("mongo", seat), "roles": [{"role": name, "db": "admin"}, *roles]}
    client.admin.command("updateUser" if made else "createUser", name, **login)


def _ready_documents(client: MongoClient, roll: Roll, seat: int) -> None:
    """The documents of the seat's next lesson, under a name that no lesson of hers has; nothing where they are there.

    Thirty copies at once take MongoDB minutes, one after the other a second each.
    """
    place, leases = roll.place(seat, 0), client[DATABASE][roll.place(seat, 0).leases]
    there = client.list_database_names()
    name = next((name for name in place.sandboxes if name not in there), None)
    if name and not leases.find_one({"_id": READY}):
        client[DATABASE][PROFILES].aggregate([{"$out": {"db": name, "coll": PROFILES}}])
        leases.insert_one({"_id": READY, "name": name})


def urls(roll: Roll, servers: Servers, seat: int) -> dict[str, str]:
    """The environment by which the seat's workbook finds its servers; empty ones are started by the learner's own.

    Lessons that pause or stop a server do it to those: Redis and the replicas are never the class's.
    """
    name = roll.account(seat)
    postgres = servers.postgres.set(drivername="postgresql", username=name, password=roll.password_of("postgres", seat))
    mongo = urlsplit(servers.mongo)  # not make_url: there may be several hosts
    login = f"{name}:{roll.password_of('mongo', seat)}@{mongo.netloc.rpartition('@')[2]}"
    options = [option for option in mongo.query.split("&") if option and not option.lower().startswith("authsource=")]
    query = "&".join([*options, "authSource=admin"])
    return {
        "WORKSHOP_POSTGRES_URL": postgres.render_as_string(hide_password=False),
        "WORKSHOP_REPLICA_URLS": "",
        "WORKSHOP_REDIS_URL": "",
        "WORKSHOP_MONGO_URL": mongo._replace(netloc=login, path=mongo.path or "/", query=query).geturl(),
    }


def reset(roll: Roll, servers: Servers, seat: int) -> None:
    """Drop the seat's databases and give it a fresh spare one; its passwords become those that the `roll` has now."""
    with _admin(servers.postgres) as connection, mongo_server.connect(servers.mongo) as client:
        _role(connection, roll, seat)
        _user(client, roll, seat)
        _drop_databases_of(connection, roll.account(seat))
        _drop_documents(client, roll, seat)
        spare(connection, roll, seat)
        _ready_documents(client, roll, seat)


def remove(roll: Roll, servers: Servers) -> None:
    """Remove all that `prepare` made, and whatever else belongs to the learners' accounts."""
    with _admin(servers.postgres) as connection, mongo_server.connect(servers.mongo) as client:
        for shop in (DATABASE, WITH_BIOGRAPHIES):
            drop_database(connection, f"{roll.prefix}{shop}")
        pattern = roll.prefix.replace("_", r"\_") + "%"
        roles = connection.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE %s", [pattern]).fetchall()
        for (name,) in roles:
            _drop_databases_of(connection, name)
        for (name,) in roles:  # the group last of all: its tables are in the others' databases
            _run(connection, "DROP OWNED BY {}", name)
            _run(connection, "DROP ROLE {}", name)
        for seat in roll.seats:
            _drop_documents(client, roll, seat)
            for kind, made in (("User", "usersInfo"), ("Role", "rolesInfo")):
                if client.admin.command(made, roll.account(seat))[f"{kind.lower()}s"]:
                    client.admin.command(f"drop{kind}", roll.account(seat))


def _drop_databases_of(connection: psycopg.Connection, role: str) -> None:
    owned = "SELECT datname FROM pg_database WHERE pg_get_userbyid(datdba) = %s"
    for (name,) in connection.execute(owned, [role]).fetchall():
        drop_database(connection, name)


def _drop_documents(client: MongoClient, roll: Roll, seat: int) -> None:
    place = roll.place(seat, 0)
    for box in place.sandboxes:
        client.drop_database(box)
    client[DATABASE].drop_collection(place.leases)
