"""The results of all lessons as a table, as JSON and as one HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from workshop.measure.result import Comparison
from workshop.table import Table, seconds, significant

__all__ = ["EMPTY", "as_json", "gain", "html", "table"]

EMPTY = "No results yet: run a notebook first (make lab), then ask again."
HEADINGS = ("lesson", "comparison", "before", "after", "lower bound", "gain (interval)", "verdict")
NUMBERS = (2, 3, 4, 5)  # columns that stand to the right

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


def gain(record: Record) -> str:
    """The gain and its interval: "20.7x (19.8 to 21.5)"."""
    low, high = record["interval"]
    return f"{significant(record['ratio'])}x ({significant(low)} to {significant(high)})"


def _cells(record: Record) -> tuple[str, ...]:
    bound = record.get("lower_bound_s")
    return (
        str(record.get("lesson") or ""),
        str(record.get("name") or ""),
        seconds(record["before_s"]),
        seconds(record["after_s"]),
        seconds(bound) if bound is not None else "-",
        gain(record),
        str(record["verdict"]),
    )


def table(records: Sequence[Record]) -> Table:
    """The results, the best gain first; times are medians per unit of each comparison."""
    return Table(HEADINGS, [_cells(r) for r in _distances_together(records)], empty=EMPTY, right=NUMBERS)


def as_json(records: Sequence[Record]) -> str:
    """A JSON array, the best gain first: the records as they were kept, without their samples.

    Times end in `_s` and are seconds; `ratio` is before/after, `interval` its 95 % interval [low, high]. Where a
    comparison was made at several distances, `series` is its name and `added_round_trip_ms` tells them apart.
    """
    entries = [{key: value for key, value in record.items() if key != "samples"} for record in _best_first(records)]
    return json.dumps(entries, indent=2, ensure_ascii=False)


def html(records: Sequence[Record], path: Path) -> None:
    """Write one self-contained HTML file: the table, the gains, and each comparison's plot.

    Nothing is loaded from elsewhere. Records without raw samples get no plot of their own.
    """
    from workshop import figures  # matplotlib is slow to import: the table and the JSON need none of it

    ordered = _distances_together(records)
    # Farther away is one picture with the nearest, not many of the same.
    nearest = [record for record in ordered if not _added_ms(record)]
    overview = None
    if nearest:
        alt = "; ".join(f"{r.get('lesson')} {r.get('name')}: {gain(r)}" for r in nearest)
        overview = _picture(figures.gains(nearest), alt)
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template(
        "report.html.jinja"
    )
    page = template.render(
        table=table(records)._repr_html_(), overview=overview, parts=[_part(r, ordered) for r in nearest]
    )
    Path(path).write_text(page, encoding="utf-8")


def _part(record: Record, ordered: Sequence[Record]) -> dict[str, Any]:
    """One comparison of the page: title, pictures or a sentence, and what the numbers were measured on."""
    from workshop import figures

    title = ": ".join(str(part) for part in (record.get("lesson"), record.get("name")) if part)
    pictures = []
    if record.get("samples"):
        result = Comparison.from_record(record)
        pictures.append(_picture(figures.comparison(result, result.finding), f"{title}: {result.finding}"))
    if record.get("series"):
        far = [r for r in ordered if r.get("series") and _series(r) == _series(record)]
        points = [(1e3 * (r.get("round_trip_s") or 0.0), r["ratio"], *r["interval"]) for r in far]
        alt = f"{title}: gain at " + ", ".join(f"{t:.2g} ms {significant(x)}x" for t, x, _, _ in points)
        nearest = None if _added_ms(far[0]) else record.get("nearest") or "loopback"
        pictures.append(_picture(figures.distance(points, nearest=nearest), alt))
    sentence = f"{seconds(record['before_s'])} became {seconds(record['after_s'])}: {gain(record)}"
    return {"title": title, "pictures": pictures, "sentence": sentence, "facts": _facts(record)}


def _picture(figure: Any, alt: str) -> dict[str, str]:
    return {"data": figure.as_base64(), "alt": alt}


def _facts(record: Record) -> str:
    """What the numbers were measured on, in one line."""
    facts = []
    if record.get("noise"):
        facts.append(f"noise {record['noise']:.3f}x")
    if record.get("round_trip_s") is not None:
        facts.append(f"round trip {seconds(record['round_trip_s'])}")
    if record.get("scale") is not None:
        facts.append(f"scale {record['scale']}")
    if isinstance(record.get("versions"), Mapping):
        facts.append(", ".join(f"{name} {version}" for name, version in record["versions"].items()))
    facts += [str(record[key]) for key in ("host", "at") if record.get(key)]
    return "; ".join(facts)
