"""Server processes: start, find again, stop. Each wait has a deadline."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from workshop.state import ACCOUNT, WorkshopError, is_root, read_json, write_private

START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 20.0
MUTE_DEADLINE_S = 3.0  # for a server that lives but does not answer
STRAY_DEADLINE_S = 5.0
TOOL_DEADLINE_S = 120.0
PROGRAMS = {"postgres", "redis-server", "mongod"}


def free_port(preferred: int | None = None) -> int:
    """A free TCP port on loopback: `preferred` if nobody listens there, else one that the system picks."""
    for port in (preferred, 0):
        if port is None:
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise WorkshopError("no free port was found on 127.0.0.1: run `python -m workshop doctor`")


def as_account() -> dict:
    """Arguments for subprocess that give up root; empty when we are not root."""
    if not is_root():
        return {}
    entry = pwd.getpwnam(ACCOUNT)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def hand_over(path: Path) -> None:
    """Hand a file or an empty folder over to the servers' account; nothing to do when we are not root."""
    if is_root():
        entry = pwd.getpwnam(ACCOUNT)
        os.chown(path, entry.pw_uid, entry.pw_gid)


class ServerProcess:
    """One server process that outlives the Python process that started it.

    `folder` holds its data, its log and `run.json` (process id, port, where the program came from), by which a
    later Python process finds it.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.log = folder / "server.log"
        self._run_file = folder / "run.json"

    @property
    def port(self) -> int | None:
        """The port that it was last given, running or not."""
        return read_json(self._run_file).get("port")

    @property
    def failure(self) -> str | None:
        """The last words of a start that failed; None when the last start did not."""
        return read_json(self._run_file).get("failure")

    @property
    def source(self) -> str:
        """Where the program came from: "wheel" or "path"."""
        return read_json(self._run_file).get("source", "path")

    def _process(self) -> psutil.Process | None:
        run = read_json(self._run_file)
        try:
            process = psutil.Process(run["pid"])
            # A process id alone may by now belong to somebody else: after a reboot it often does. When it was started
            # would not do: the system reckons that from its clock, and somebody may set the clock.
            same = process.name() == run["program"] and self._works_here(process, dying=True)
            return process if same and _alive(process) else None
        except (KeyError, TypeError, ValueError, psutil.Error):
            return None

    def running(self) -> bool:
        return self._process() is not None

    def start(
        self,
        command: Sequence[str | Path],
        port: int,
        ready: Callable[[], bool],
        *,
        source: str,
        unprivileged: bool = False,
        stop_signal: int = signal.SIGTERM,
    ) -> None:
        """Start the server and wait until `ready()`.

        Raises WorkshopError, with the log's last line, when it ends or is not ready within START_DEADLINE_S seconds.
        """
        self._wait_for_the_last()
        if self.log.exists() and self.log.stat().st_size > 10_000_000:
            self.log.replace(self.log.with_suffix(".log.1"))
        with open(self.log, "a", encoding="utf-8") as log:
            try:
                child = subprocess.Popen(
                    [str(part) for part in command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    start_new_session=True,  # a kernel's interrupt or an editor's Ctrl-C must not reach the server
                    **(as_account() if unprivileged else {}),
                )
            except OSError as error:
                raise WorkshopError(
                    f"{self.name} could not be started ({error.strerror}: {command[0]}): "
                    "run `python -m workshop doctor`"
                ) from None
        run = {"pid": child.pid, "program": Path(command[0]).name, "port": port, "source": source}
        write_private(self._run_file, json.dumps(run))
        give_up = time.monotonic() + START_DEADLINE_S
        try:
            while not ready():
                ended = child.poll() is not None
                if ended or time.monotonic() > give_up:
                    what = "ended while it started" if ended else f"was not ready after {START_DEADLINE_S:.0f} s"
                    write_private(self._run_file, json.dumps(run | {"failure": self.last_words()}))
                    raise WorkshopError(
                        f"{self.name} {what}, its last words were: {self.last_words()!r}: where its files are damaged, "
                        "`python -m workshop reset` makes them anew; else run `python -m workshop doctor`"
                    )
                time.sleep(0.02)
        except BaseException:
            self.stop(stop_signal)
            raise

    def _wait_for_the_last(self) -> None:
        """Wait for the process of `run.json`, which may be dying: PostgreSQL does not start while its id is taken."""
        run = read_json(self._run_file)
        with suppress(KeyError, TypeError, ValueError, psutil.Error):
            process = psutil.Process(run["pid"])
            if process.name() == run["program"] and self._works_here(process, dying=True):
                process.wait(STRAY_DEADLINE_S)

    def stop(self, stop_signal: int = signal.SIGTERM, deadline_s: float = STOP_DEADLINE_S) -> bool:
        """Stop it, first politely, after the deadline by force. Returns whether there was something to stop."""
        process = self._process()
        if process is None:
            return bool(self.end_strays())
        family = [process, *process.children(recursive=True)]
        signal_to(process, stop_signal)
        if not _wait_until_gone([process], deadline_s) or not _wait_until_gone(family, 5.0):
            for straggler in filter(_alive, family):
                signal_to(straggler, signal.SIGKILL)
            _wait_until_gone(family, 5.0)
        return True

    def end_strays(self) -> int:
        """End servers on this folder that `run.json` does not name; their number.

        They are left over when PostgreSQL's first process was killed and a busy one lives on, or when the folder was
        moved or deleted under a server. Two servers on one folder would destroy its data. PostgreSQL gets SIGQUIT: it
        must not write a checkpoint into a folder that is no longer its own, and recovers from its log.
        """
        servers = [process for process in psutil.process_iter(["name"]) if process.info["name"] in PROGRAMS]
        strays = [process for process in servers if _alive(process) and self._works_here(process)]
        for stray in strays:
            signal_to(stray, signal.SIGQUIT if stray.info["name"] == "postgres" else signal.SIGTERM)
        if not _wait_until_gone(strays, STRAY_DEADLINE_S):
            for stray in strays:
                signal_to(stray, signal.SIGKILL)
            _wait_until_gone(strays, STRAY_DEADLINE_S)
        return len(strays)

    def _works_here(self, process: psutil.Process, dying: bool = False) -> bool:
        """Whether its working folder is ours or within, or its command line names ours, which may have been moved.

        `dying` is the answer for one that has given its memory back and tells neither any more.
        """
        try:
            command = " ".join(process.cmdline())
            if re.search(rf"(^|[\s='\"]){re.escape(str(self.folder))}/", command):
                return True
            if not (command and (folder := process.cwd())):
                return dying
            inside = Path(folder.removesuffix(" (deleted)"))  # so the kernel marks it
            return self.folder.resolve() in (inside, *inside.parents)
        except psutil.ZombieProcess:
            return dying
        except psutil.Error:
            return False  # another user's, or gone

    def last_words(self) -> str:
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1][:300] if lines else "(nothing)"


def signal_to(process: psutil.Process, number: int) -> None:
    """Send a signal; nothing where the process has ended."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        pass


def _alive(process: psutil.Process) -> bool:
    """Whether it runs. A zombie does not: it only waits for its parent, and inside containers that may take seconds."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return process.num_threads() > 1  # its first thread has ended, others are still closing files
        return process.is_running()
    except psutil.NoSuchProcess:
        return False


def _wait_until_gone(processes: Sequence[psutil.Process], deadline_s: float) -> bool:
    give_up = time.monotonic() + deadline_s
    while any(map(_alive, processes)):
        if time.monotonic() > give_up:
            return False
        time.sleep(0.01)
    for process in processes:
        try:
            os.waitpid(process.pid, os.WNOHANG)  # where it is our own child, nobody else takes it off the list
        except ChildProcessError:
            pass
    return True


def run_tool(command: Sequence[str | Path], what: str, folder: Path, env: Mapping[str, str] | None = None) -> None:
    """Run a server's own tool in `folder` to its end, without root's rights; WorkshopError with its last line."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TOOL_DEADLINE_S,
            cwd=folder,
            env=env,
            **as_account(),
        )
    except subprocess.TimeoutExpired:
        raise WorkshopError(f"{what} took more than {TOOL_DEADLINE_S:.0f} s: run `python -m workshop doctor`") from None
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["(nothing)"])[-1]
        raise WorkshopError(f"{what} failed, its last words were: {last!r}: run `python -m workshop doctor`")


# What a watcher's code needs is imported by it: while it waits it takes no more memory than Python itself.
WAITING = """
import sys
given = sys.stdin.readline().rstrip("\\n")
sys.stdin.read()  # returns when the process that started it has ended
"""


def watch(code: str, line: str) -> subprocess.Popen:
    """Start a watcher: Python that runs `code`, with `line` as `given`, when this process has ended."""
    watcher = subprocess.Popen(
        [sys.executable, "-c", WAITING + code],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # it must outlive the kernel, whatever signal ends that
    )
    watcher.stdin.write(f"{line}\n")  # by pipe: there may be passwords in it
    watcher.stdin.flush()
    return watcher
