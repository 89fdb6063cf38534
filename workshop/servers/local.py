"""What the three servers have in common when the workbook starts them itself."""

from __future__ import annotations

import shutil
import signal
import time
from abc import ABC, abstractmethod

from sqlalchemy import URL

from workshop.servers.process import MUTE_DEADLINE_S, ServerProcess
from workshop.servers.service import Service
from workshop.state import WorkshopError, state_dir

QUESTIONS = 3  # one that is silent keeps each waiting for five seconds: it may only be busy, and others use it
REFUSED_DEADLINE_S = 5.0  # for a server that recovers, or whose connections are all taken


class Refused(WorkshopError):
    """A server of ours runs and answers, but lets nobody in: lessons may be open on it."""

    def __init__(self, name: str, reason: object) -> None:
        super().__init__(
            f"{name} runs and lets nobody in ({' '.join(str(reason).split())}): "
            "shut down the kernels of other lessons, or run `python -m workshop reset`"
        )


class LocalServer(ABC):
    """A server that runs on a folder of its own in the state folder."""

    kind: str  # "postgres", "redis" or "mongo"
    stop_signal = signal.SIGTERM

    def __init__(self, name: str, title: str) -> None:
        self.name = name
        self.folder = state_dir() / name
        self.process = ServerProcess(title, self.folder)

    @abstractmethod
    def url(self, port: int) -> str | URL:
        """Where it is reached on `port`, password included."""

    @abstractmethod
    def version(self, port: int) -> str | None:
        """The version of the server on `port`; None when none answers. Raises Refused when one does and gives none."""

    @abstractmethod
    def start(self) -> None:
        """Start it, from nothing if need be, and wait until it is ready. It is not running."""

    def ready(self, port: int) -> bool:
        """Whether it lets us in on `port`."""
        try:
            return self.version(port) is not None
        except Refused:
            return False

    def service(self) -> Service | None:
        """The running server; None when it is down or does not answer. Raises Refused when it lets nobody in."""
        port = self.process.port if self.process.running() else None
        version = self.version(port) if port else None
        return Service(self.kind, self.url(port), version, self.process.source) if version else None

    def up(self) -> Service:
        """The running server, started where it is not running. One that does not answer QUESTIONS times is replaced.

        Raises Refused when it answers and has let nobody in for REFUSED_DEADLINE_S seconds, and leaves it as it is.
        """
        give_up = time.monotonic() + REFUSED_DEADLINE_S
        asked = 0
        while True:
            try:
                if found := self.service():
                    return found
                asked += 1
                if asked == QUESTIONS or not self.process.running():
                    break
            except Refused:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.2)
        self.process.stop(self.stop_signal, MUTE_DEADLINE_S)
        self.process.end_strays()
        self.start()
        found = self.service()
        if not found:
            raise WorkshopError(
                f"{self.name} started and does not answer, its last words were: {self.process.last_words()!r}: "
                "run `python -m workshop reset`"
            )
        return found

    def down(self) -> bool:
        """Stop it in order; whether there was something to stop."""
        return self.process.stop(self.stop_signal)

    def remove(self) -> None:
        """Delete its folder. It is not running."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
