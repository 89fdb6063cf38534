"""MongoDB: a replica set of one member, so that write concern, transactions and the oplog are there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from pymongo import MongoClient
from pymongo.errors import ConfigurationError, InvalidURI, OperationFailure, PyMongoError

from workshop.servers.find import Programs, find, package_folder
from workshop.servers.local import LocalServer, Refused
from workshop.servers.process import free_port
from workshop.servers.service import Service
from workshop.state import WorkshopError, named, password, setting, write_private

MINIMUM = (6, 0)
VARIABLE = "WORKSHOP_MONGO_URL"
USER = "workshop"
REPLICA_SET = "workshop"
DEADLINE_S = 5.0


def connect(url: str, **options: Any) -> MongoClient:
    """A client that finds its server within DEADLINE_S seconds, or raises."""
    deadlines = {"serverSelectionTimeoutMS": int(DEADLINE_S * 1000), "connectTimeoutMS": int(DEADLINE_S * 1000)}
    return MongoClient(url, **{**deadlines, **options})


def server_version(url: str) -> str | None:
    """The version of the server behind `url`, None when it takes no writes; PyMongoError if it is out of reach."""
    with connect(url) as client:
        client.admin.command("ping")
        return client.server_info()["version"] if client.is_primary or client.is_mongos else None


def from_environment() -> Service | None:
    """The server that WORKSHOP_MONGO_URL names; None where none is named.

    Raises WorkshopError, with the server's own reason, if it cannot be used or is too old.
    """
    url = setting(VARIABLE)
    if not url:
        return None
    address = Service("mongo", url, "", "url").address
    where = f"MongoDB at {address}, which {named(VARIABLE)} names,"
    try:
        if "://" not in url:  # PyMongo would take it for a host's name
            raise InvalidURI(url)
        version = server_version(url)
    except (ConfigurationError, InvalidURI, ValueError):  # the latter: a port that is none
        raise WorkshopError(
            f"{named(VARIABLE)} is not a URL like mongodb://user:password@host:27017/: correct it or unset it"
        ) from None
    except OperationFailure as error:
        raise WorkshopError(
            f"{where} cannot be used ({_reason(error)}): correct the user, the password or authSource in the URL"
        ) from None
    except PyMongoError as error:
        raise WorkshopError(
            f"{where} cannot be used ({_reason(error)}): start it, or correct or unset the variable"
        ) from None
    if version is None:
        raise WorkshopError(f"{where} takes no writes: name the primary, or the replica set with ?replicaSet=NAME")
    if tuple(map(int, version.split(".")[:2])) < MINIMUM:
        raise WorkshopError(
            f"MongoDB 6.0 or later is needed and {named(VARIABLE)} leads to {version}: name a newer server"
        )
    return Service("mongo", url, version, "url")


def _reason(error: PyMongoError) -> str:
    """The server's own reason, without the time-outs and the description of the topology that PyMongo appends."""
    if isinstance(error, OperationFailure) and error.details:
        return error.details.get("errmsg", str(error))
    return " ".join(str(error).split(" (configured")[0].split(", Timeout:")[0].split())


def programs() -> Programs:
    wheel = package_folder("fiftyone")
    return find("mongod", wheel / "db" / "bin" if wheel else None, [], MINIMUM, VARIABLE)


class Mongo(LocalServer):
    """The server that the workbook started."""

    kind = "mongo"

    def __init__(self) -> None:
        super().__init__("mongo", "MongoDB")
        self._complete = self.folder / "complete"  # holds the port that the replica set knows

    def url(self, port: int) -> str:
        return f"mongodb://{USER}:{password('mongo')}@127.0.0.1:{port}/?replicaSet={REPLICA_SET}&authSource=admin"

    def version(self, port: int) -> str | None:
        try:
            return server_version(self.url(port))
        except PyMongoError as error:
            if any(words in str(error) for words in ("Connection refused", "timed out", "found yet")):
                return None
            raise Refused(self.name, _reason(error)) from None

    def start(self) -> None:
        tools = programs()
        if not self._complete.exists():
            self.remove()
            (self.folder / "data").mkdir(parents=True, mode=0o700)
            self.folder.chmod(0o700)
            write_private(self.folder / "keyfile", password("mongo-members").replace("-", "+").replace("_", "/"))
        port = free_port(self.process.port)
        try:
            if self._complete.exists() and self._complete.read_text() != str(port):
                self._move(tools, port)
            self._start(tools, port, member=True)
            if not self._complete.exists():
                self._initialize(port)
            _wait(lambda: self.ready(port), "took no writes")
        except BaseException:
            self.process.stop()
            raise

    def _start(self, tools: Programs, port: int, member: bool) -> None:
        """Start mongod, as a `member` of the replica set or alone."""
        replication = f"replication: {{replSetName: {REPLICA_SET}, oplogSizeMB: 200}}" if member else ""
        write_private(
            self.folder / "mongod.conf",
            # YAML takes JSON strings, so a path with a space or a quote in it is safe.
            f"""
net: {{bindIp: 127.0.0.1, port: {port}, unixDomainSocket: {{enabled: false}}}}
storage:
  dbPath: {json.dumps(str(self.folder / "data"))}
  wiredTiger: {{engineConfig: {{cacheSizeGB: 0.25, configString: "log=(file_max=20MB)"}}}}
security: {{authorization: enabled, keyFile: {json.dumps(str(self.folder / "keyfile"))}}}
setParameter: {{diagnosticDataCollectionEnabled: false, shutdownTimeoutMillisForSignaledShutdown: 500}}
{replication}
""",
        )
        self.process.start(
            [tools / "mongod", "--config", self.folder / "mongod.conf"],
            port,
            lambda: _answers(_direct(port)),
            source=tools.source,
        )

    def _initialize(self, port: int) -> None:
        """Make the replica set and its one user; MongoDB lets the first come in from localhost without a password."""
        with connect(_direct(port)) as client:
            members = [{"_id": 0, "host": f"127.0.0.1:{port}"}]
            client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": members})
            _wait(lambda: client.admin.command("hello")["isWritablePrimary"], "elected no primary")
            client.admin.command("createUser", USER, pwd=password("mongo"), roles=["root"])
        self._complete.write_text(str(port))

    def _move(self, tools: Programs, port: int) -> None:
        """Another program took the old port: give the only member its new address.

        Method: MongoDB manual, "Change Hostnames in a Self-Managed Replica Set", with the member started alone.
        """
        self._start(tools, port, member=False)
        # Alone, it sees only what the last checkpoint holds, and that may be without our user.
        # Members of a replica set know each other by the key file; so we come in as one.
        login = {"username": "__system", "password": (self.folder / "keyfile").read_text(), "authSource": "local"}
        with connect(_direct(port), **login) as client:
            address = {"members.0.host": f"127.0.0.1:{port}"}
            client.local["system.replset"].update_one({"_id": REPLICA_SET}, {"$set": address})
        self.process.stop()
        self._complete.write_text(str(port))


def _wait(look: Callable[[], Any], failure: str, deadline_s: float = 30.0) -> Any:
    """What `look` returns once that is true; WorkshopError, with `failure`, when the deadline passes."""
    give_up = time.monotonic() + deadline_s
    while not (found := look()):
        if time.monotonic() > give_up:
            raise WorkshopError(
                f"MongoDB {failure} within {deadline_s:.0f} s of its start: run `python -m workshop reset`"
            )
        time.sleep(0.05)
    return found


def _direct(port: int) -> str:
    """The one member itself: it answers before the replica set exists, and outside of it."""
    return f"mongodb://127.0.0.1:{port}/?directConnection=true"


def _answers(url: str) -> bool:
    try:
        with connect(url, serverSelectionTimeoutMS=1000) as client:
            client.admin.command("ping")
        return True
    except OperationFailure:
        return True  # it asks who we are: it is there
    except PyMongoError:
        return False
