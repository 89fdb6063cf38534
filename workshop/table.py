"""One table, as text and as HTML, and how numbers are written in it."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def significant(x: float, digits: int = 3) -> str:
    """A number with `digits` significant digits and no exponent: 20.7, 348, 1,250, 0.0285."""
    if x == 0 or not math.isfinite(x):
        return f"{x:g}"
    decimals = digits - 1 - math.floor(math.log10(abs(x)))
    rounded = round(x, decimals)
    # Rounding may have added a digit: 9.996 is 10.0, not 10.00.
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(0, decimals)}f}"


def seconds(x: float) -> str:
    """A duration in seconds for people: 0.00523 is "5.23 ms", 2.85e-05 is "28.5 µs"."""
    if x == 0:
        return "0 s"
    # 0.9995 units and above are written as 1.00 of this unit, never as 1,000 of the next.
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(x) >= 0.9995 * size:
            return f"{significant(x / size)} {unit}"
    return f"{significant(x / 1e-9)} ns"


def shorten(text: str, width: int = 100) -> str:
    """One line of at most `width` characters; cursor names, new on every run, become `c_...`."""
    text = re.sub(r'"c_[0-9a-f]+_\d+"', '"c_..."', " ".join(text.split()))
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."


@dataclass(frozen=True)
class Table:
    """Rows under headings, as aligned text and as HTML.

    Columns of whole numbers stand to the right, with separators, and so do those named by number in `right`; None is
    left blank. `notes` follow below, `caption` stands above, `empty` is shown where there are no rows.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()
    empty: str = "nothing to show"
    caption: str = ""
    right: Sequence[int] = ()

    def _cells(self) -> list[list[str]]:
        def cell(value: Any) -> str:
            if value is None:
                return ""
            return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

        return [[cell(value) for value in row] for row in self.rows]

    def _to_the_right(self) -> list[bool]:
        columns = ([row[i] for row in self.rows] for i in range(len(self.headings)))
        return [i in self.right or all(v is None or isinstance(v, int) for v in c) for i, c in enumerate(columns)]

    def __repr__(self) -> str:
        lines = [self.empty]
        if self.rows:
            cells, right = [list(self.headings), *self._cells()], self._to_the_right()
            widths = [max(len(row[i]) for row in cells) for i in range(len(self.headings))]
            lines = [
                "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
                for row in cells
            ]
        return "\n".join([*([self.caption] if self.caption else []), *lines, *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        parts = [f"<p>{html.escape(self.empty)}</p>"]
        if self.rows:
            style = [f' style="text-align: {"right" if right else "left"}"' for right in self._to_the_right()]
            head = "".join(f"<th{s}>{html.escape(h)}</th>" for h, s in zip(self.headings, style, strict=True))
            body = "".join(
                # pre-wrap keeps the indentation of a plan's nodes, and wraps what is wider than the page
                "<tr>"
                + "".join(
                    f'<td{s}><span style="white-space: pre-wrap">{html.escape(c)}</span></td>'
                    for c, s in zip(row, style, strict=True)
                )
                + "</tr>"
                for row in self._cells()
            )
            caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
            parts = [f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"]
        return "".join([*parts, *(f"<p>note: {html.escape(note)}</p>" for note in self.notes)])


class Shown:
    """What is displayed as the table that its method `table` returns."""

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()
