"""The results of all lessons as a table, as JSON and as one HTML file."""

from __future__ import annotations

import base64
import html as markup
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workshop.measure.result import Comparison
from workshop.state import WorkshopError
from workshop.table import seconds, significant

__all__ = ["EMPTY", "KEYS", "as_json", "figure", "html", "table"]

EMPTY = "No results yet: run a notebook first (make lab), then ask again."

KEYS = (
    "lesson",
    "name",
    "before_s",
    "after_s",
    "lower_bound_s",
    "ratio",
    "interval",
    "verdict",
    "noise",
    "round_trip_s",
    "versions",
    "scale",
    "at",
)

HEADINGS = ("lesson", "comparison", "before", "after", "lower bound", "gain (interval)", "verdict")
_NUMBERS = {2, 3, 4, 5}  # columns that are aligned on the right

Record = Mapping[str, Any]


def _best_first(records: Sequence[Record]) -> list[Record]:
    return sorted(records, key=lambda r: r["ratio"], reverse=True)


def _added_ms(record: Record) -> float:
    """The network distance that was added, in ms: 0 for a comparison on the network as it is."""
    return record.get("added_round_trip_ms") or 0.0


def _series(record: Record) -> tuple[Any, Any]:
    return record.get("lesson"), record.get("series") or record.get("name")


def _distances_together(records: Sequence[Record]) -> list[Record]:
    """The best gain first; one comparison at several distances stays together, in the place of the nearest."""
    place: dict[tuple[Any, Any], int] = {}
    for record in sorted(_best_first(records), key=_added_ms):
        place.setdefault(_series(record), len(place))
    return sorted(records, key=lambda r: (place[_series(r)], _added_ms(r)))


def _cells(record: Record) -> tuple[str, ...]:
    low, high = record["interval"]
    bound = record.get("lower_bound_s")
    return (
        str(record.get("lesson") or ""),
        str(record.get("name") or ""),
        seconds(record["before_s"]),
        seconds(record["after_s"]),
        seconds(bound) if bound is not None else "-",
        f"{significant(record['ratio'])}x ({significant(low)} to {significant(high)})",
        str(record["verdict"]),
    )


def table(records: Sequence[Record]) -> str:
    """Return a plain text table, the best gain first; times are medians per unit of each comparison."""
    if not records:
        return EMPTY
    rows = [HEADINGS, *map(_cells, _distances_together(records))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    rows.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in _NUMBERS else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def as_json(records: Sequence[Record]) -> str:
    """Return a JSON array, the best gain first; each entry has exactly the keys `KEYS`, null for unknown.

    Times end in `_s` and are seconds; `ratio` is before/after, `interval` its 95 % interval [low, high].
    """
    return json.dumps([{key: r.get(key) for key in KEYS} for r in _best_first(records)], indent=2, ensure_ascii=False)


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #8886; text-align: left; }
td.number, th.number { text-align: right; white-space: nowrap; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
small { opacity: .75; }
"""


def _image(figure: Any, alt: str) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png")
    encoded = base64.b64encode(data.getvalue()).decode("ascii")
    return f'<p><img alt="{markup.escape(alt)}" src="data:image/png;base64,{encoded}"></p>'


def _facts(record: Record) -> str:
    """What the numbers were measured on, in one line."""
    facts = []
    if record.get("noise"):
        facts.append(f"noise {record['noise']:.3f}x")
    if record.get("round_trip_s") is not None:
        facts.append(f"round trip {seconds(record['round_trip_s'])}")
    if record.get("scale") is not None:
        scale = record["scale"]
        facts.append("scale " + (_pairs(scale) if isinstance(scale, Mapping) else str(scale)))
    if isinstance(record.get("versions"), Mapping):
        facts.append(_pairs(record["versions"]))
    facts += [str(record[key]) for key in ("host", "at") if record.get(key)]
    return markup.escape("; ".join(facts))


def _pairs(mapping: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v}" for k, v in mapping.items())


def figure(records: Sequence[Record], path: Path) -> None:
    """Write a picture (PNG or SVG, by the file's ending) of each lesson's largest gain among those with a lower bound.

    Raises WorkshopError when no lesson has one.
    """
    from workshop import figures  # see html()

    largest: dict[str, Record] = {}
    for record in _best_first(records):
        if record["verdict"] == "faster" and record.get("lower_bound_s") and not _added_ms(record):
            largest.setdefault(record["lesson"], record)
    if not largest:
        raise WorkshopError(EMPTY)
    title = "The largest gain of each lesson"
    figures.gains(list(largest.values()), title).savefig(path)


def html(records: Sequence[Record], path: Path) -> None:
    """Write one self-contained HTML file: the table, the gains, and each comparison's plot.

    Nothing is loaded from elsewhere. Records without raw samples get no plot of their own.
    """
    body = ["<h1>What each technique gains</h1>"]
    if not records:
        body.append(f"<p>{markup.escape(EMPTY)}</p>")
    else:
        from workshop import figures  # matplotlib is slow to import: the table and the JSON need none of it

        ordered = _distances_together(records)
        cells = [_cells(r) for r in ordered]
        number = [' class="number"' if i in _NUMBERS else "" for i in range(len(HEADINGS))]
        head = "".join(f'<th scope="col"{n}>{h}</th>' for n, h in zip(number, HEADINGS, strict=True))
        rows = "".join(
            "<tr>" + "".join(f"<td{n}>{markup.escape(c)}</td>" for n, c in zip(number, row, strict=True)) + "</tr>\n"
            for row in cells
        )
        body.append(f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>')
        body.append(
            "<p>Times are medians per unit. The gain is before / after with its 95 % interval; "
            "~ means that no difference can be claimed.</p>"
        )
        # Farther away is one picture with the nearest, not many of the same.
        nearest = [(r, row) for r, row in zip(ordered, cells, strict=True) if not _added_ms(r)]
        alt = "; ".join(f"{row[0]} {row[1]}: {row[5]}" for _, row in nearest)
        if nearest:
            body.append(_image(figures.gains([r for r, _ in nearest]), alt))
        for record, row in nearest:
            title = ": ".join(part for part in row[:2] if part)
            body.append(f"<h2>{markup.escape(title)}</h2>")
            if record.get("samples"):
                result = Comparison.from_record(record)
                body.append(_image(figures.comparison(result, result.finding), f"{title}: {result.finding}"))
            else:
                body.append(f"<p>{markup.escape(f'{row[2]} became {row[3]}: {row[5]}')}</p>")
            if record.get("series"):
                far = [r for r in ordered if r.get("series") and _series(r) == _series(record)]
                points = [(1e3 * (r.get("round_trip_s") or 0.0), r["ratio"], *r["interval"]) for r in far]
                alt = f"{title}: gain at " + ", ".join(f"{t:.2g} ms {significant(x)}x" for t, x, _, _ in points)
                body.append(
                    _image(
                        figures.distance(
                            points, noise=record.get("noise") or 1.0, nearest=record.get("nearest") or "loopback"
                        ),
                        alt,
                    )
                )
            body.append(f"<p><small>{_facts(record)}</small></p>")
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>What each technique gains</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )
    Path(path).write_text(text, encoding="utf-8")
