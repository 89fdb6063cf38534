"""Give up root for a learner's own user id, which needs no account on the system.

Programs such as initdb look their user up, and Python itself may lie in a folder that is closed to others, as /root is.
So the process gets a view of the file system of its own (a mount namespace) in which /etc/passwd has one more line, and
what is needed of a closed folder can be reached, and nothing else in it. Where the kernel or a container does not allow
that, the user id alone is changed.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from workshop.state import CHECKOUT, WorkshopError, reachable_by_others

CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 4096, 16384, 1 << 18
GB = 1 << 30
# Per process, save the last, which is per user.
LIMITS = {resource.RLIMIT_DATA: 4 * GB, resource.RLIMIT_FSIZE: 2 * GB, resource.RLIMIT_NPROC: 1000}
NOT_LIMITED = "4 GB of memory a process, 2 GB a file; a learner's memory and disk as a whole are not limited"


def become(uid: int, name: str, home: Path) -> None:
    """Make this process, which is root's, the learner's. Raises WorkshopError where it could not run then."""
    needed = [Path(folder).resolve() for folder in (sys.base_prefix, sys.prefix, CHECKOUT)]
    try:
        _own_view(uid, name, home, [folder for folder in needed if not reachable_by_others(folder / "x")])
    except OSError as error:
        if closed := [folder for folder in needed if not reachable_by_others(folder / "x")]:
            raise WorkshopError(
                f"learners cannot read {closed[0]} ({error.strerror}): build the workbook where others may look, with "
                "make PYTHON=/usr/bin/python3, run the class as another user than root, or with --spawner docker"
            ) from None
    for limit, most in LIMITS.items():
        resource.setrlimit(limit, (most, most))
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.umask(0o077)


def _own_view(uid: int, name: str, home: Path, closed: list[Path]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def call(function: str, *arguments: object) -> None:
        given = [part.encode() if isinstance(part, str) else part for part in arguments]
        if getattr(libc, function)(*given):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    call("unshare", CLONE_NEWNS)
    call("mount", None, "/", None, MS_REC | MS_PRIVATE, None)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as passwd:
        passwd.write(Path("/etc/passwd").read_text(encoding="utf-8").rstrip("\n"))
        passwd.write(f"\n{name}:x:{uid}:{uid}::{home}:/bin/sh\n")
        passwd.flush()
        os.chmod(passwd.name, 0o644)
        call("mount", passwd.name, "/etc/passwd", None, MS_BIND, None)
    if not closed:
        return
    with tempfile.TemporaryDirectory() as aside:
        call("mount", "none", aside, "tmpfs", 0, "mode=700")
        for number, folder in enumerate(closed):
            kept = Path(aside, str(number))
            kept.mkdir()
            call("mount", str(folder), str(kept), None, MS_BIND | MS_REC, None)
        for wall in {_wall(folder) for folder in closed}:
            call("mount", "none", str(wall), "tmpfs", 0, "mode=755")
        for number, folder in enumerate(closed):
            folder.mkdir(parents=True, exist_ok=True)
            call("mount", str(Path(aside, str(number))), str(folder), None, MS_BIND | MS_REC, None)
        call("umount2", aside, 2)  # MNT_DETACH


def _wall(folder: Path) -> Path:
    """The outermost folder above `folder` that others cannot enter."""
    return next(above for above in reversed(folder.parents) if not above.stat().st_mode & 1)


def check(uid: int) -> None:
    """Raises WorkshopError where a process under a learner's user id could not run the workbook."""
    code = "from pathlib import Path; from workshop.classroom import apart; apart.become({}, 'try', Path('/')); "
    code += "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import jupyterhub, workshop'], check=True)"
    done = subprocess.run([sys.executable, "-c", code.format(uid)], capture_output=True, text=True, cwd=CHECKOUT)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["(nothing)"])[-1].removeprefix("workshop.state.WorkshopError: ")
        raise WorkshopError(last if "learners cannot" in last else f"no process of a learner's can run here ({last})")
