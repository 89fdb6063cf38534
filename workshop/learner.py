"""What a learner's processes know of the class that they belong to: nothing, for a reader alone.

`make classroom` puts it into the environment of the learner's server, as JSON in `WORKSHOP_CLASS`. MongoDB grants
rights on databases by their whole names, so a learner's sandboxes have a few fixed names in place of random ones.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO

from workshop.state import WorkshopError, state_dir

VARIABLE = "WORKSHOP_CLASS"
READY = "ready"  # the document beside a learner's leases that names the sandbox whose documents are there already


@dataclass(frozen=True)
class Place:
    """A learner's place: the names of her sandboxes, the class's templates, and how many may measure at once."""

    sandboxes: tuple[str, ...]
    templates: str  # before the name of the shop's database: the class's own copies, which learners may copy
    spare: str  # a PostgreSQL database that is ready to become a sandbox, as long as it is there
    leases: str  # MongoDB's collection of leases, not the one that others write to
    turns: int

    def as_variable(self) -> str:
        return json.dumps(asdict(self))


def place() -> Place | None:
    """The learner's place in a class; None outside of one."""
    told = os.environ.get(VARIABLE)
    if not told:
        return None
    known = json.loads(told)
    return Place(**{**known, "sandboxes": tuple(known["sandboxes"])})


_taken: dict[str, IO[str]] = {}  # open as long as this process lives


def take_name(names: tuple[str, ...], first: str | None = None) -> str:
    """The one of `names` that nobody has and that was taken the longest ago, until `give_name` or this process ends.

    If nobody has `first`, it is that one.
    Raises WorkshopError when all are taken.
    """
    folder = state_dir() / "sandboxes"
    folder.mkdir(mode=0o700, exist_ok=True)
    given = {path.name: path.stat().st_mtime for path in folder.iterdir()}
    for path in (folder / name for name in sorted(names, key=lambda name: (name != first, given.get(name, 0.0)))):
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.utime(path)
            _taken[path.name] = file
            return path.name
        file.close()
    raise WorkshopError(
        f"{len(names)} lessons are open, which is as many as a learner may have: shut one's kernel down"
    )


def give_name(name: str) -> None:
    """Give a name back that `take_name` gave; nothing for another one."""
    if name in _taken:
        _taken.pop(name).close()
