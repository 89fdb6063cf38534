"""Results on disk and the reports made of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from workshop import report, results

ROOT = Path(__file__).parents[1]

RECORD = {
    "lesson": "02-connection-pooling",
    "name": "pool <b>&amp;</b>",
    "before_s": 0.00523,
    "after_s": 0.000266,
    "lower_bound_s": 2.85e-5,
    "ratio": 20.7,
    "interval": [19.8, 21.5],
    "verdict": "faster",
    "noise": 1.04,
    "round_trip_s": 3e-5,
    "versions": {"postgresql": "18.6", "python": "3.11"},
    "scale": 1.0,
    "at": "2026-01-01T10:00:00+00:00",
    "host": "Linux x86_64, 2 cores",
    "labels": ["a new connection <each>", "five warm", "the bare driver"],
    "unit": "query",
    "units": 1,
    "batch": {"before": 1, "after": 5, "lower_bound": 40},
    "samples": {
        "before": [0.0052, 0.00523, 0.0053, 0.0051, 0.0054, 0.0052],
        "after": [0.00026, 0.000266, 0.00027, 0.00025, 0.00028, 0.00026],
        "lower_bound": [2.8e-5, 2.85e-5, 2.9e-5, 2.7e-5, 3e-5, 2.8e-5],
    },
}


def record(**changes) -> dict:
    return {**RECORD, **changes}


# --------------------------------------------------------------------------------------------------- on disk


def test_a_record_that_cannot_be_written_costs_no_measurement(tmp_path):
    (tmp_path / "state").write_text("a file, no folder")
    with pytest.warns(UserWarning, match=r"not kept in results.jsonl \(\w.*\): run the cell again"):
        results.append(RECORD, tmp_path / "state" / results.FILE)


def test_what_is_appended_is_read(tmp_path):
    path = tmp_path / "new" / results.FILE
    assert results.read(path) == []
    results.append(RECORD, path)
    results.append(record(name="µs → ms"), path)
    assert results.read(path) == [RECORD, record(name="µs → ms")]


def test_what_is_not_json_is_refused_and_leaves_no_trace(tmp_path):
    path = tmp_path / results.FILE
    for value in (float("nan"), float("inf"), object()):
        with pytest.raises(ValueError, match="plain JSON"):
            results.append({"ratio": value}, path)
    assert not path.exists()


def test_a_torn_last_line_is_left_out_silently(tmp_path, recwarn):
    path = tmp_path / results.FILE
    results.append(RECORD, path)
    whole = path.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole + whole[:cut])
        assert results.read(path) == [RECORD]
    assert not recwarn.list


def test_a_torn_line_does_not_spoil_the_next(tmp_path):
    path = tmp_path / results.FILE
    path.write_bytes('{"name": "µ'.encode()[:-1])  # torn in the middle of a character
    results.append(RECORD, path)
    with pytest.warns(UserWarning, match="1 unreadable"):
        assert results.read(path) == [RECORD]


APPEND_MANY = """
import sys
from pathlib import Path
from workshop import results
path, worker = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for i in range(200):
    results.append({"worker": worker, "i": i, "pad": "x" * 20_000}, path)
"""


def test_four_processes_append_at_once(tmp_path):
    path = tmp_path / results.FILE
    command = [sys.executable, "-c", APPEND_MANY, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    workers = [subprocess.Popen([*command, str(w)], **pipes) for w in range(4)]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 4
    for worker in workers:  # all at once
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate(timeout=60)
        assert worker.returncode == 0
    found = results.read(path)
    assert len(found) == 800
    for w in range(4):
        assert [r["i"] for r in found if r["worker"] == w] == list(range(200))


def test_latest_of_each_comparison():
    old, new, other, elsewhere = record(ratio=10.0), record(ratio=30.0), record(name="other"), record(lesson="03")
    assert results.latest([old, other, elsewhere, new]) == [other, elsewhere, new]
    here, far, by_url = (
        record(name=f"far, {at}", series="far", added_round_trip_ms=added)
        for at, added in (("on loopback", 0), ("at 2 ms", 2), ("on your network", 0))
    )
    assert results.latest([here, far, by_url]) == [far, by_url]
    assert len(results.latest([record(series=[1], added_round_trip_ms={})])) == 1


# ----------------------------------------------------------------------------------------------- the reports


RECORDS = [
    record(name="small", ratio=1.02, interval=[0.98, 1.05], verdict="~", lower_bound_s=None),
    RECORD,
    record(name="worse", ratio=0.5, interval=[0.48, 0.53], verdict="slower"),
]


def test_table_has_the_best_gain_first():
    lines = repr(report.table(RECORDS)).splitlines()
    assert re.split(r" {2,}", lines[0].strip()) == list(report.HEADINGS)
    assert [re.search(r"(faster|slower|~)$", line).group() for line in lines[1:]] == ["faster", "~", "slower"]
    assert "5.23 ms" in lines[1] and "266 µs" in lines[1] and "28.5 µs" in lines[1]
    assert "20.7x (19.8 to 21.5)" in lines[1]
    assert len({line.index(")") for line in lines[1:]}) == 1  # aligned


def far(added_ms, ratio):
    name = f"pings, at {added_ms:g} ms" if added_ms else "pings, on loopback"
    return record(
        name=name, series="pings", added_round_trip_ms=added_ms, round_trip_s=3e-5 + 1e-3 * added_ms, ratio=ratio
    )


DISTANCES = [far(20, 40.0), far(0, 3.0), far(2, 30.0)]


def test_one_comparison_at_several_distances_stays_together():
    lines = repr(report.table([*RECORDS, *DISTANCES])).splitlines()[1:]
    places = ["pool <b>", "on loopback", "at 2 ms", "at 20 ms", "small", "worse"]  # in the place of the nearest
    assert [next(p for p in places if p in line) for line in lines] == places


def test_html_has_one_picture_for_all_distances(tmp_path):
    path = tmp_path / "report.html"
    report.html([*RECORDS, *DISTANCES], path)
    page = path.read_text(encoding="utf-8")
    assert page.count("<h2>") == len(RECORDS) + 1
    assert page.count("<img ") == 1 + len(RECORDS) + 2  # the nearest's own, and the gain against the distance
    assert "gain at 0.03 ms 3.00x, 2 ms 30.0x, 20 ms 40.0x" in page
    report.html(DISTANCES[2:], path)  # nothing on the network as it is: the table says it all
    assert "at 2 ms" in path.read_text(encoding="utf-8")


def test_json_has_all_but_the_samples_and_tells_distances_apart():
    entries = json.loads(report.as_json([*RECORDS, *DISTANCES]))
    assert [e["ratio"] for e in entries] == sorted((e["ratio"] for e in entries), reverse=True)
    assert entries[2] == {key: value for key, value in RECORD.items() if key != "samples"}
    assert [(e["series"], e["added_round_trip_ms"]) for e in entries if "series" in e] == [
        ("pings", 20),
        ("pings", 2),
        ("pings", 0),
    ]


def test_html_is_one_file_that_loads_nothing(tmp_path):
    path = tmp_path / "report.html"
    report.html(RECORDS, path)
    page = path.read_text(encoding="utf-8")
    assert page.count("<img ") == 1 + len(RECORDS)
    inlined = re.compile(r'src="data:image/png;base64,[A-Za-z0-9+/=]+"')
    assert len(inlined.findall(page)) == 1 + len(RECORDS)
    assert not re.search(r"src=|href=|https?:|//|<script|<link|@import|url\(", inlined.sub("", page))
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_html_escapes_and_describes_its_pictures(tmp_path):
    path = tmp_path / "report.html"
    report.html(RECORDS, path)
    page = path.read_text(encoding="utf-8")
    assert "pool &lt;b&gt;&amp;amp;&lt;/b&gt;" in page
    assert "<b>&" not in page and "<each>" not in page
    assert all(len(alt) > 20 for alt in re.findall(r'<img alt="([^"]*)"', page))
    assert "postgresql 18.6" in page


def test_html_without_raw_samples(tmp_path):
    path = tmp_path / "report.html"
    report.html([{k: v for k, v in RECORD.items() if k not in ("samples", "labels", "batch")}], path)
    assert path.read_text(encoding="utf-8").count("<img ") == 1


def test_no_results_say_what_to_do(tmp_path):
    assert "run a notebook first" in repr(report.table([]))
    assert json.loads(report.as_json([])) == []
    path = tmp_path / "report.html"
    report.html([], path)
    assert "run a notebook first" in path.read_text(encoding="utf-8")
