"""What learners may write into the files that the teacher's page reads."""

from __future__ import annotations

import json
import time

from workshop.classroom import page

GAIN = {"lesson": "00-try", "name": "x vs. y", "ratio": 9.0, "interval": [8.0, 10.0], "verdict": "faster"}


def test_lines_that_cannot_be_shown_are_left_out(tmp_path):
    file = tmp_path / "passed.jsonl"
    lines = [b"[" * 100_000, b'{"by": "\\ud800"}', b'{"a": ' * 100_000, b"\xff", b"3", b'{"by": "own"}']
    file.write_bytes(b"\n".join(lines))
    assert page.records(file) == [{"by": "own"}]
    (tmp_path / "link").symlink_to(file)
    assert page.records(tmp_path / "link") == page.records(tmp_path) == []


def test_gains_of_who_measures_much_and_of_who_writes_anything():
    wrong = [
        {"verdict": None},
        {"lesson": []},
        {"name": 3},
        {"ratio": "<b>"},
        {"interval": [1]},
        {"ratio": float("nan")},
    ]
    names = [json.loads(json.dumps({**GAIN, "name": f"{number}"})) for number in range(50_000)]
    people = {
        "ada": {"gains": [GAIN, {**GAIN, "ratio": 8.5}]},
        "bob": {"gains": [{**GAIN, **other} for other in wrong]},
        "cy": {"gains": [*names, GAIN]},
    }
    start = time.monotonic()
    found = page.gains(people)
    assert time.monotonic() - start < 5
    assert [(r["lesson"], r["ratio"]) for r in found["00-try", "x vs. y"]] == [("ada", 8.5), ("cy", 9.0)]
    assert len(found) == page.MOST_GAINS
    assert page.picture(found["00-try", "x vs. y"], "x")
