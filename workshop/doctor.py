"""What the workbook needs of a machine, each need with its fix."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import psutil

from workshop.servers import lifecycle, mongo_server, postgres_server, redis_server
from workshop.servers.find import Programs
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
    right = (3, 11) <= sys.version_info[:2] <= (3, 13)
    fix = "install Python 3.13, delete .venv and run `make lab` again"
    return Finding("Python 3.11 to 3.13", right, platform.python_version(), fix)


def _disk() -> Finding:
    free = shutil.disk_usage(state_dir()).free / 1e9
    fix = "free some space, or set WORKSHOP_STATE to a folder on a larger disk"
    return Finding("3 GB of free disk", free >= 3, f"{free:.1f} GB free", fix)


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    found = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    fix = (
        "close other programs, or use servers on another machine by setting WORKSHOP_POSTGRES_URL, "
        "WORKSHOP_REDIS_URL and WORKSHOP_MONGO_URL"
    )
    return Finding("1.5 GB of free memory", memory.available >= 1.5e9, found, fix)


def _data() -> Finding:
    files.check_files()
    return Finding("the shop's data files", True, "as the manifest says")


def _server(need: str, name: str, programs: Callable[[], Programs]) -> Finding:
    by_url, ours = lifecycle.SERVERS[name]
    if service := by_url():
        return Finding(need, True, f"{service.version} at {service.address}, from WORKSHOP_{name.upper()}_URL")
    found = programs()
    if failure := ours().process.failure:
        fix = "run `python -m workshop reset`, which makes its files anew"
        return Finding(need, False, f"its last start failed: {failure}", fix)
    where = "a wheel" if found.source == "wheel" else "PATH"
    return Finding(need, True, f"{'.'.join(map(str, found.version))} from {where}")


def _replicas() -> Finding:
    services = postgres_server.replicas_from_environment()
    if not services:
        return Finding("replicas", True, "copied from the primary when a lesson asks for them")
    return Finding("replicas", True, f"{', '.join(s.address for s in services)}, from WORKSHOP_REPLICA_URLS")


def findings(needs: Collection[str] | None = None) -> list[Finding]:
    """Each need, or those named, looked up now.

    A need whose look-up fails is a finding too, with the error's sentence as its fix.
    """
    looks: dict[str, Callable[[], Finding]] = {
        "Python": _python,
        "disk": _disk,
        "memory": _memory,
        "PostgreSQL": partial(_server, "PostgreSQL", "postgres", postgres_server.programs),
        "replicas": _replicas,
        "Redis": partial(_server, "Redis", "redis", redis_server.programs),
        "MongoDB": partial(_server, "MongoDB", "mongo", mongo_server.programs),
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
