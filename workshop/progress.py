"""tqdm's bar in a terminal and in a notebook, gone when the work is done; nothing in a log or a pipe."""

from __future__ import annotations

import sys
from typing import Any
from uuid import uuid4

from tqdm import tqdm


class _NotebookOutput:
    """A file for tqdm that shows what is written as one updated output of the running cell.

    `tqdm.notebook` leaves a widget behind that a saved notebook shows as an error. Here the first message is empty and
    the bar comes as its updates, which nbval ignores; tqdm's last write clears the line, so an empty output is stored.
    """

    def __init__(self) -> None:
        self._display = {"display_id": f"progress-{uuid4().hex}"}
        self._publish({}, update=False)

    def _publish(self, data: dict[str, str], update: bool = True) -> None:
        from IPython.display import publish_display_data

        publish_display_data(data, transient=self._display, update=update)

    def write(self, text: str) -> None:
        if text:
            shown = text.strip()
            self._publish({"text/plain": shown} if shown else {})

    def flush(self) -> None:
        """Each write is sent at once."""

    def isatty(self) -> bool:
        return True


def _in_kernel() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def bar(label: str, total: float, unit: str = "it", mininterval: float = 0.1) -> tqdm:
    """A tqdm bar of `total` steps, to be used in a `with` block and moved by `update(n)`."""
    where: dict[str, Any] = {"file": _NotebookOutput(), "ncols": 80} if _in_kernel() else {}
    # disable=None: silent where the output is no terminal.
    return tqdm(
        desc=label,
        total=round(total),
        unit=unit,
        unit_scale=True,
        leave=False,
        mininterval=mininterval,
        disable=None,
        **where,
    )
