"""A progress bar that leaves nothing behind: no stderr in a stored notebook, no line in a log."""

from __future__ import annotations

import html
import sys
import time
import uuid
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

__all__ = ["track"]

T = TypeVar("T")

REFRESH_S = 0.1


def _in_kernel() -> bool:
    """Tell whether this runs in a Jupyter kernel, where displays can be updated."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def _bar(label: str, done: int, total: int | None) -> dict[str, str]:
    count = f"{done} of {total}" if total else str(done)
    size = f' value="{done}" max="{total}"' if total else ""
    return {"text/html": f"<progress{size}></progress> {html.escape(label)}: {count}"}


def _kernel_track(iterable: Iterable[T], label: str, total: int | None) -> Generator[T, None, None]:
    from IPython.display import publish_display_data

    # The first message is an empty bundle and the bar comes as its update. nbval ignores updates and sees no
    # data to compare, so a bar does no harm in a cell whose output is checked; the last update makes the
    # stored bundle empty again.
    handle: dict[str, Any] = {"display_id": f"progress-{uuid.uuid4().hex}"}
    events = sys.modules["IPython"].get_ipython().events
    over = False

    def show(data: dict[str, str]) -> None:
        publish_display_data(data, transient=handle, update=True)

    def finish(*_: Any) -> None:
        nonlocal over
        if not over:
            over = True
            events.unregister("post_run_cell", finish)
            show({})

    publish_display_data({}, transient=handle)
    # If the loop's body raises, the traceback keeps this generator alive: then the end of the cell clears the
    # bar.
    events.register("post_run_cell", finish)
    try:
        show(_bar(label, 0, total))
        shown = time.monotonic()
        for done, item in enumerate(iterable, start=1):
            yield item
            if time.monotonic() - shown >= REFRESH_S:
                show(_bar(label, done, total))
                shown = time.monotonic()
    finally:
        finish()


def _terminal_track(iterable: Iterable[T], label: str, total: int | None) -> Generator[T, None, None]:
    from tqdm import tqdm

    # disable=None: silent when stderr is no terminal.
    with tqdm(iterable, desc=label, total=total, leave=False, disable=None) as bar:
        yield from bar


def track(iterable: Iterable[T], label: str, total: int | None = None) -> Generator[T, None, None]:
    """Yield the items of `iterable` and show how many are done, under `label`.

    In a Jupyter kernel a bar in HTML, gone at the end; in a terminal tqdm's, gone too; elsewhere (a log, a
    pipe) nothing. `total` is the number of items if `iterable` has no length.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    if _in_kernel():
        return _kernel_track(iterable, label, total)
    return _terminal_track(iterable, label, total)
