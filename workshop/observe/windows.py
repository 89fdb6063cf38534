"""The blocks that are being observed now, for what listens to a driver."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Windows(Generic[T]):
    """What the open blocks collect; to be changed under `lock`, and read without, for blocks in several threads."""

    def __init__(self) -> None:
        self.open: tuple[T, ...] = ()
        self.lock = threading.Lock()

    @contextmanager
    def window(self, collected: T) -> Iterator[T]:
        """Collect in `collected` until the block ends."""
        with self.lock:
            self.open = (*self.open, collected)
        try:
            yield collected
        finally:
            with self.lock:
                self.open = tuple(other for other in self.open if other is not collected)
