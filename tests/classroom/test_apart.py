"""One learner tries to reach another's database, documents, keys and files; and what is made is removed again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from pymongo import uri_parser
from pymongo.errors import OperationFailure
from sqlalchemy import make_url

from workshop import learner
from workshop.classroom import accounts, roll, seat
from workshop.servers import mongo_server
from workshop.servers.postgres_server import connect, dsn
from workshop.servers.service import Servers, Service
from workshop.state import CHECKOUT, is_root

pytestmark = pytest.mark.timeout(120)
OPEN = """
from workshop import open_lesson
lesson = open_lesson("00-try", servers=("postgres", "redis", "mongo"))
import os
answer = {"postgres": lesson.dsn, "name": lesson.mongo_database, "redis": lesson.redis_url, "pid": os.getpid()}
"""


class Learner:
    """A process of the learner in `seat`, with the environment that the hub gives her server."""

    def __init__(self, klass: roll.Roll, servers: Servers, name: str) -> None:
        self.number = klass.seat_of(name, f"word of {name}")
        self.home = klass.home(name)
        self.login = accounts.urls(klass, servers, self.number)
        uid = klass.uid(self.number)
        environment = {
            **os.environ,
            **self.login,
            "HOME": str(self.home),
            "USER": name,
            "WORKSHOP_STATE": str(self.home / ".workshop"),
            learner.VARIABLE: klass.place(self.number, 1).as_variable(),
            **({seat.UID: str(uid)} if uid else {}),
        }
        program = Path(__file__).with_name("learner_process.py")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, program], env=environment, text=True, cwd=CHECKOUT, **pipes)

    def says(self, code: str, **given: object) -> dict:
        """{"answer": ...} or {"error": ...} of `code`, which sees `given`."""
        values = "\n".join(f"{name} = {value!r}" for name, value in given.items())
        self.process.stdin.write(json.dumps(f"{values}\n{textwrap.dedent(code)}") + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def answer(self, code: str, **given: object) -> object:
        said = self.says(code, **given)
        assert "error" not in said, said
        return said["answer"]

    def error(self, code: str, **given: object) -> str:
        said = self.says(code, **given)
        assert "error" in said, f"expected an error, found {said}"
        return said["error"]

    def end(self) -> None:
        self.says("lesson.close()")
        self.process.stdin.close()
        self.process.wait(20)
        environment = {**os.environ, "WORKSHOP_STATE": str(self.home / ".workshop")}
        uid = self.home.stat().st_uid
        become = f"from workshop.classroom import apart; apart.become({uid}, 'x', __import__('pathlib').Path('/'))\n"
        code = f"{become if uid else ''}from workshop.servers import lifecycle; lifecycle.down()"
        subprocess.run([sys.executable, "-c", code], env=environment, cwd=CHECKOUT, check=True)


def made(servers: Servers) -> dict[str, set[str]]:
    """The names of all that a class could leave behind on the servers."""
    with connect(servers.postgres) as connection, mongo_server.connect(servers.mongo) as client:
        return {
            "roles": {row[0] for row in connection.execute("SELECT rolname FROM pg_roles")},
            "databases": {row[0] for row in connection.execute("SELECT datname FROM pg_database")},
            "users": {user["user"] for user in client.admin.command("usersInfo")["users"]},
            "user roles": {role["role"] for role in client.admin.command("rolesInfo")["roles"]},
            "documents": {
                f"{name}.{kept}"
                for name in client.list_database_names()
                for kept in client[name].list_collection_names()
                if not kept.startswith("system.")  # MongoDB's own, made with the first role and never removed
            },
        }


@pytest.fixture(scope="module")
def klass(small_shop: Servers) -> Iterator[roll.Roll]:
    before = made(small_shop)
    klass = roll.opened("class", 2)
    accounts.prepare(klass, small_shop)
    accounts.prepare(klass, small_shop)  # again, as after a kill
    yield klass
    accounts.remove(klass, small_shop)
    after = made(small_shop)
    for what, names in before.items():
        assert after[what] - {"workshop_shop.workshop_leases"} == names - {"workshop_shop.workshop_leases"}, what


def test_a_kill_leaves_no_spare_copy_of_the_shop_as_it_was(klass, small_shop, monkeypatch):
    template, spare = f"{klass.prefix}workshop_shop", klass.place(0, 1).spare
    oid, run = "SELECT oid FROM pg_database WHERE datname = %s", accounts._run

    def killed(connection: psycopg.Connection, statement: str, *names: str, **literals: object) -> None:
        run(connection, statement, *names, **literals)
        if statement.endswith("IS_TEMPLATE true"):
            raise KeyboardInterrupt

    with connect(small_shop.postgres) as admin:
        before = admin.execute(oid, [spare]).fetchone()
        admin.execute(f"COMMENT ON DATABASE {template} IS 'of another shop'")
        with monkeypatch.context() as kill, pytest.raises(KeyboardInterrupt):
            kill.setattr(accounts, "_run", killed)
            accounts.prepare(klass, small_shop)
        accounts.prepare(klass, small_shop)
        assert admin.execute(oid, [spare]).fetchone() not in (None, before)


def test_mongodb_on_several_hosts(klass, small_shop):
    several = "mongodb://root:secret@a:1,b:2/?replicaSet=rs&authsource=other"
    services = {**small_shop.services, "mongo": Service("mongo", several, "8.0", "url")}
    url = accounts.urls(klass, Servers(services), 1)["WORKSHOP_MONGO_URL"]
    known = uri_parser.parse_uri(url)
    assert known["nodelist"] == [("a", 1), ("b", 2)] and known["username"] == klass.account(1)
    assert dict(known["options"]) == {"replicaSet": "rs", "authSource": "admin"} and "secret" not in url


@pytest.fixture(scope="module")
def ada(klass: roll.Roll, small_shop: Servers) -> Iterator[Learner]:
    person = Learner(klass, small_shop, "ada")
    person.given = person.answer(OPEN)
    yield person
    person.end()


@pytest.fixture(scope="module")
def bob(klass: roll.Roll, small_shop: Servers) -> Iterator[Learner]:
    person = Learner(klass, small_shop, "bob")
    person.given = person.answer(OPEN)
    yield person
    person.end()


def test_a_learner_may_change_all_that_is_hers(ada):
    rows = """
    import psycopg, pymongo, redis as client
    with psycopg.connect(postgres) as connection:
        connection.execute("CREATE INDEX ON orders (status)")
        connection.execute("UPDATE customers SET name = 'Ada' WHERE id = 1")
        connection.execute("CREATE TABLE own (id int)")
    with pymongo.MongoClient(lesson.mongo_url) as mongo, client.Redis.from_url(redis) as own:
        answer = [mongo[name].profiles.count_documents({}), own.set("own", "1")]
    """
    documents, kept = ada.answer(rows, **ada.given)
    assert documents > 0 and kept
    assert ada.answer("answer = lesson.servers.services['redis'].source") in ("wheel", "path")


def test_the_spare_copy_became_the_sandbox(klass, small_shop, ada):
    assert klass.place(ada.number, 1).spare not in made(small_shop)["databases"]
    assert make_url(ada.given["postgres"]).database in klass.place(ada.number, 1).sandboxes


@pytest.mark.parametrize(
    ("statement", "refusal"),
    [
        ("DROP DATABASE {database}", "must be owner"),
        ("ALTER DATABASE {database} RENAME TO mine", "must be owner"),
        ("CREATE DATABASE mine TEMPLATE {database}", "permission denied to copy"),
        ("SET ROLE {role}", "permission denied to set role"),
        ("ALTER ROLE {role} PASSWORD 'mine'", "permission denied"),
        ("GRANT {role} TO CURRENT_USER", "permission denied"),
        ("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'", "permission denied"),
        ("DROP DATABASE {template}", "must be owner"),
        ("COPY (SELECT 1) TO PROGRAM 'true'", "permission denied"),
    ],
)
def test_sql(klass, ada, bob, statement, refusal):
    theirs = make_url(ada.given["postgres"])
    names = {"database": theirs.database, "role": theirs.username, "template": f"{klass.prefix}workshop_shop"}
    with psycopg.connect(dsn(make_url(bob.given["postgres"])), autocommit=True) as connection:
        with pytest.raises(psycopg.errors.Error) as refused:
            connection.execute(statement.format(**names))
        assert refusal in str(refused.value)


def test_nobody_else_comes_into_a_database(klass, ada, bob):
    own = make_url(bob.given["postgres"]).set(drivername="postgresql")
    for database in (make_url(ada.given["postgres"]).database, f"{klass.prefix}workshop_shop"):
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(dsn(own.set(database=database)))


def test_other_learners_statements_are_not_shown(small_shop, ada, bob):
    ada.answer("held = psycopg.connect(postgres); held.execute('SELECT 1 AS a_secret_of_hers')", **ada.given)
    bobs = dsn(make_url(bob.given["postgres"]).set(database="postgres"))
    with psycopg.connect(bobs) as own, connect(small_shop.postgres) as admin:
        for view in ("pg_stat_activity", "pg_stat_statements"):
            asked = f"SELECT query FROM {view} WHERE query LIKE %s", ["%a_secret_of_hers%"]
            assert admin.execute(*asked).fetchall(), view
            assert own.execute(*asked).fetchall() == [], view
    ada.answer("held.close()")


@pytest.mark.parametrize(
    "attempt",
    [
        "client[theirs].profiles.find_one()",
        "client[theirs].profiles.insert_one({})",
        "client.drop_database(theirs)",
        "client[leases_db][leases].delete_many({})",
        "client[leases_db].profiles.insert_one({})",
        "client.admin.command('updateUser', user, pwd='mine')",
        "client.local['oplog.rs'].find_one()",
    ],
)
def test_documents(klass, ada, bob, attempt):
    given = {
        "theirs": ada.given["name"],
        "leases_db": "workshop_shop",
        "leases": klass.place(ada.number, 1).leases,
        "user": klass.account(ada.number),
    }
    code = f"import pymongo; client = pymongo.MongoClient(lesson.mongo_url); {attempt}"
    assert "not authorized" in bob.error(code, **given)
    assert ada.given["name"] not in bob.answer("answer = client.list_database_names()")


def test_keys(ada, bob):
    theirs = make_url(ada.given["redis"])
    own = make_url(bob.given["redis"])
    try_it = "import redis; redis.Redis.from_url(url).get('own')"
    assert "Authentication" in bob.error(try_it, url=f"redis://{theirs.host}:{theirs.port}/{theirs.database}")
    with_own = theirs.set(password=own.password).render_as_string(hide_password=False)
    assert "invalid username-password" in bob.error(try_it, url=with_own)


@pytest.mark.skipif(not is_root(), reason="only as root have learners user ids of their own")
@pytest.mark.parametrize(
    "attempt",
    [
        "os.listdir(home)",
        "open(os.path.join(home, '.workshop', 'secrets.json')).read()",
        "os.symlink('/etc', os.path.join(home, 'link'))",
        "open(f'/proc/{pid}/environ').read()",
        "os.kill(pid, 0)",
        "open(state).read()",
        "os.setuid(0)",
    ],
)
def test_files_and_processes(klass, ada, bob, attempt):
    given = {"home": str(ada.home), "pid": ada.given["pid"], "state": str(klass.folder / "class.json")}
    assert "PermissionError" in bob.error(f"import os; {attempt}", **given)


def test_as_many_lessons_as_there_are_names_and_no_more(bob):
    code = """
    from workshop import sandbox
    from workshop.state import WorkshopError
    boxes = []
    try:
        while len(boxes) < 10:
            boxes.append(sandbox.create(lesson.servers, "99", ["postgres"]))
    except WorkshopError as error:
        answer = [len(boxes), str(error)]
    finally:
        for box in boxes:
            box.drop()
    """
    count, refused = bob.answer(code)
    assert count == roll.SANDBOXES - 1 and "shut one's kernel down" in refused


def test_measurements_take_turns(ada, bob):
    waiting = """
    import time
    from workshop.turns import turn
    start = time.monotonic()
    with turn():
        answer = time.monotonic() - start
        time.sleep(held)
    """
    assert ada.answer(waiting, held=0) < 1
    hold = "held_open = __import__('workshop.turns', fromlist=['turn']).turn(); held_open.__enter__()"
    ada.answer(hold)
    bob.process.stdin.write(json.dumps(f"held = 0\n{textwrap.dedent(waiting)}") + "\n")
    bob.process.stdin.flush()
    ada.answer("time.sleep(1.5); held_open.__exit__(None, None, None)")
    assert "waiting for a turn" in bob.process.stdout.readline()
    assert json.loads(bob.process.stdout.readline())["answer"] > 1


def test_a_reset_gives_a_fresh_place(klass, small_shop, ada, bob):
    """The last of this file: bob's lesson loses its copies, and his passwords are others."""
    assert klass.shut("bob") == bob.number
    accounts.reset(klass, small_shop, bob.number)
    names = made(small_shop)
    assert klass.place(bob.number, 1).spare in names["databases"]
    assert not names["databases"] & set(klass.place(bob.number, 1).sandboxes)
    assert make_url(ada.given["postgres"]).database in names["databases"]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(bob.login["WORKSHOP_POSTGRES_URL"])
    with (
        pytest.raises(OperationFailure, match="Authentication failed"),
        mongo_server.connect(bob.login["WORKSHOP_MONGO_URL"]) as client,
    ):
        client.admin.command("ping")
    now = accounts.urls(klass, small_shop, bob.number)
    psycopg.connect(now["WORKSHOP_POSTGRES_URL"]).close()
    with mongo_server.connect(now["WORKSHOP_MONGO_URL"]) as client:
        client.admin.command("ping")
