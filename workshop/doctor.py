"""What the workbook needs of a machine, each need with its fix."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass

import psutil

from workshop.servers import mongo_server, postgres_server, redis_server
from workshop.servers.local import LocalServer
from workshop.servers.process import free_port
from workshop.shop import files
from workshop.state import WorkshopError, state_dir

SERVERS = ("PostgreSQL", "replicas", "Redis", "MongoDB")


@dataclass(frozen=True)
class Finding:
    need: str
    ok: bool
    found: str
    fix: str = ""


def _python() -> Finding:
    found = platform.python_version()
    return Finding(
        "Python 3.11 to 3.13",
        (3, 11) <= sys.version_info[:2] <= (3, 13),
        found,
        "install Python 3.13, delete .venv and run `make lab` again",
    )


def _disk() -> Finding:
    free = shutil.disk_usage(state_dir()).free / 1e9
    return Finding(
        "3 GB of free disk",
        free >= 3,
        f"{free:.1f} GB free",
        "free some space, or set WORKSHOP_STATE to a folder on a larger disk",
    )


def _memory() -> Finding:
    total = psutil.virtual_memory()
    return Finding(
        "1.5 GB of free memory",
        total.available >= 1.5e9,
        f"{total.available / 1e9:.1f} of {total.total / 1e9:.1f} GB free",
        "close other programs, or use servers on another machine by setting WORKSHOP_POSTGRES_URL, "
        "WORKSHOP_REDIS_URL and WORKSHOP_MONGO_URL",
    )


def _ports() -> Finding:
    return Finding("a free port on 127.0.0.1", True, f"{free_port()} is free")


def _locale() -> Finding:
    encoding = sys.getfilesystemencoding()
    return Finding("a UTF-8 locale", encoding == "utf-8", encoding, "run `export LC_ALL=C.UTF-8` and try again")


def _data() -> Finding:
    files.check_files()
    return Finding("the shop's data files", True, "as the manifest says")


def _server(
    name: str, variable: str, by_url: Callable, programs: Callable, ours: Callable[[], LocalServer]
) -> Callable[[], Finding]:
    def look() -> Finding:
        service = by_url()
        if service:
            return Finding(name, True, f"{service.version} at {service.address}, from {variable}")
        found = programs()
        version = ".".join(map(str, found.version))
        missing = _missing_libraries(found)
        if missing:
            return Finding(
                name,
                False,
                f"{version} lacks {', '.join(missing)}",
                f"install the system package of each library (on Debian: libcurl4, libssl3), or set {variable}",
            )
        if failure := ours().process.failure:
            fix = "run `python -m workshop reset`, which makes its files anew"
            return Finding(name, False, f"its last start failed: {failure}", fix)
        return Finding(name, True, f"{version} from {'a wheel' if found.source == 'wheel' else 'PATH'}")

    return look


def _replicas() -> Finding:
    services = postgres_server.replicas_from_environment()
    if not services:
        return Finding("replicas", True, "copied from the primary when a lesson asks for them")
    return Finding("replicas", True, f"{', '.join(s.address for s in services)}, from WORKSHOP_REPLICA_URLS")


def _missing_libraries(programs) -> list[str]:
    """Shared libraries that the loader does not find, where `ldd` can tell."""
    ldd = shutil.which("ldd")
    missing = set()
    for program in ("postgres", "redis-server", "mongod"):
        if ldd and (programs / program).is_file():
            said = subprocess.run([ldd, programs / program], capture_output=True, text=True, timeout=20).stdout
            missing |= {line.split()[0] for line in said.splitlines() if "not found" in line}
    return sorted(missing)


def findings(needs: Collection[str] | None = None) -> list[Finding]:
    """Each need, or those named, looked up now.

    A need whose look-up fails is a finding too, with the error's sentence as its fix.
    """
    looks: dict[str, Callable[[], Finding]] = {
        "Python": _python,
        "disk": _disk,
        "memory": _memory,
        "locale": _locale,
        "ports": _ports,
        "PostgreSQL": _server(
            "PostgreSQL",
            "WORKSHOP_POSTGRES_URL",
            postgres_server.primary_from_environment,
            postgres_server.programs,
            postgres_server.primary,
        ),
        "replicas": _replicas,
        "Redis": _server(
            "Redis", "WORKSHOP_REDIS_URL", redis_server.from_environment, redis_server.programs, redis_server.Redis
        ),
        "MongoDB": _server(
            "MongoDB", "WORKSHOP_MONGO_URL", mongo_server.from_environment, mongo_server.programs, mongo_server.Mongo
        ),
        "data": _data,
    }
    found = []
    for need, look in looks.items():
        if needs is not None and need not in needs:
            continue
        try:
            found.append(look())
        except (WorkshopError, files.DataError) as error:
            found.append(Finding(need, False, "", str(error)))
    return found
