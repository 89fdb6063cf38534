"""The state folder: one per checkout and user, with the servers' data, their passwords, logs and the results.

It is `.workshop` in the checkout. Where that cannot be (the checkout is read-only, belongs to somebody else, or root
runs the servers under an account that cannot enter the checkout's parents), it is a folder of its own in `/var/tmp`.
`WORKSHOP_STATE` names another.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil
from dotenv import dotenv_values

CHECKOUT = Path(__file__).resolve().parent.parent
ENV_FILE = CHECKOUT / ".env"  # Compose reads it too: there the servers in containers get their passwords and ports
FALLBACK = Path("/var/tmp") / f"workshop-{os.geteuid()}-{hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:10]}"
MADE_HERE = "made-by-the-workbook"  # in the state folder: `make clean` may delete it
OURS = {MADE_HERE, "lock", "users", "secrets.json", "results.jsonl", "passed.jsonl", "sandboxes"}
ACCOUNT = "nobody"  # where root starts the servers, PostgreSQL runs as this account: it exists on every system


class WorkshopError(RuntimeError):
    """What went wrong, in one sentence that ends with what to run."""


def is_root() -> bool:
    return os.geteuid() == 0


def reachable_by_others(path: Path) -> bool:
    """Whether an unrelated account can enter every folder above `path`."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.resolve().parents)


def _usable(folder: Path) -> bool:
    """Whether `folder` is ours, or can be made by us, and the servers' account can reach it."""
    if is_root() and not reachable_by_others(folder):
        return False
    if folder.exists():
        return folder.stat().st_uid == os.geteuid() and os.access(folder, os.W_OK)
    return os.access(folder.parent, os.W_OK)


def state_dir() -> Path:
    """The state folder, made when it is not there: mode 0700, as root 0711 so that the servers' account can pass.

    Raises WorkshopError when the folder belongs to somebody else, has files that are not the workbook's, or cannot be
    reached by the servers' account.
    """
    chosen = os.environ.get("WORKSHOP_STATE")
    folder = Path(chosen).expanduser().absolute() if chosen else CHECKOUT / ".workshop"
    if not chosen and not _usable(folder):
        folder = FALLBACK
    try:
        made = not folder.exists()
        folder.mkdir(mode=0o700, parents=bool(chosen), exist_ok=True)
        if made:
            (folder / MADE_HERE).touch()
        found = folder.lstat()  # in a folder that all may write, a link could lead to somebody else's files
        if (not stat.S_ISDIR(found.st_mode) and not chosen) or folder.stat().st_uid != os.geteuid():
            raise WorkshopError(
                f"the state folder {folder} is a link or belongs to another user: "
                "set WORKSHOP_STATE to a folder of your own and run again"
            )
        inside = {path.name for path in folder.iterdir()} - {"lost+found", ".DS_Store"}
        if not inside:
            (folder / "lock").touch()
        elif not inside & OURS:
            raise WorkshopError(
                f"the state folder {folder} has files that are not the workbook's: "
                "set WORKSHOP_STATE to an empty folder, or to one that is not there yet, and run again"
            )
        mode = 0o711 if is_root() else 0o700
        if stat.S_IMODE(folder.stat().st_mode) != mode:
            folder.chmod(mode)
    except OSError as error:
        raise WorkshopError(
            f"the state folder {folder} cannot be made ({error.strerror}): "
            "set WORKSHOP_STATE to a folder that you can write and run again"
        ) from None
    if is_root() and not reachable_by_others(folder):
        raise WorkshopError(
            f"the account '{ACCOUNT}', which runs PostgreSQL for root, cannot enter the state folder {folder}: "
            "set WORKSHOP_STATE to a folder below /var/tmp and run again"
        )
    return folder


def setting(name: str) -> str:
    """The setting `name` from the environment, even an empty one, else from the checkout's .env; "" without either."""
    if name in os.environ:
        return os.environ[name]
    return dotenv_values(ENV_FILE).get(name) or ""


def named(name: str) -> str:
    """A setting's name as error messages give it, with where it was found."""
    return name if name in os.environ else f"{name} in .env"


def write_private(path: Path, text: str) -> None:
    """Write `text` in one step to a file that only this user reads (mode 0600)."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict:
    """The object in a JSON file; empty when the file is missing or was torn by a crash."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def password(service: str) -> str:
    """The random password of one service, made at its first use, which is with the lock held."""
    path = state_dir() / "secrets.json"
    known = read_json(path)
    if service not in known:
        known[service] = secrets.token_urlsafe(24)
        write_private(path, json.dumps(known))
    return known[service]


@contextmanager
def lock(name: str = "lock", deadline_s: float = 180.0) -> Iterator[None]:
    """Hold the state folder's lock, so that of several processes only one starts or seeds the servers.

    Raises WorkshopError when another process still holds it after `deadline_s` seconds.
    """
    path = state_dir() / name
    with open(path, "a", encoding="utf-8") as file:
        _flock(file, fcntl.LOCK_EX, deadline_s)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def _flock(file: IO[str], how: int, deadline_s: float) -> None:
    give_up = time.monotonic() + deadline_s
    while True:
        try:
            return fcntl.flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise WorkshopError(
                    f"another process has held the workbook's lock for {deadline_s:.0f} s: "
                    "wait for it or end it, then run the command again"
                ) from None
            time.sleep(0.05)


USE_DEADLINE_S = 10.0
_in_use: IO[str] | None = None  # open as long as this process lives


def use() -> None:
    """From now until this process ends, it counts as one that uses the servers. Call it with the lock held."""
    global _in_use
    path = state_dir() / "users"
    if _in_use is None or _in_use.closed or Path(_in_use.name) != path:
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        _flock(file, fcntl.LOCK_SH, USE_DEADLINE_S)  # who is alone holds the lock, so there is nobody to wait for
        _in_use = file


def leave() -> None:
    """This process does not use the servers any more."""
    if _in_use is not None:
        _in_use.close()


@contextmanager
def alone() -> Iterator[None]:
    """A block in which nobody else uses the servers; WorkshopError, with the process ids, while somebody does.

    Enter it with the lock held: who starts to use the servers holds it too.
    """
    leave()
    path = state_dir() / "users"
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            others = ", ".join(str(pid) for pid in _holders(path)) or "of another user"
            raise WorkshopError(
                f"other processes use the servers (process id {others}): "
                "shut down their notebooks' kernels or end them, then run the command again"
            ) from None
        yield


def _holders(path: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and any(file.path == str(path) for file in process.open_files()):
                found.append(process.pid)
        except psutil.Error:
            pass
    return sorted(found)


if __name__ == "__main__" and "--delete" in sys.argv and (state_dir() / MADE_HERE).exists():  # for `make clean`
    shutil.rmtree(state_dir())
