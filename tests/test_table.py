"""The one table and how numbers are written in it, to the letter: notebooks compare both."""

from __future__ import annotations

import pytest

from workshop.table import Table, seconds, shorten, significant

TABLE = Table(
    ("way", "median", "rows", "<note>"),
    [("-> one & all", "5.2 ms", 1_250, None), ("two", "20 µs", None, True)],
    notes=["a < b"],
    caption="both <ways>",
    right=(1,),
)


def test_text():
    assert repr(TABLE) == (
        "both <ways>\n"
        "way           median   rows  <note>\n"
        "-> one & all  5.2 ms  1,250\n"
        "two            20 µs           True\n"
        "note: a < b"
    )


def test_html():
    page = TABLE._repr_html_()
    assert page.startswith(
        '<table><caption>both &lt;ways&gt;</caption><thead><tr><th style="text-align: left">way</th>'
    )
    assert '<td style="text-align: right"><span style="white-space: pre-wrap">1,250</span></td>' in page
    assert "-&gt; one &amp; all" in page and "None" not in page
    assert page.endswith("</table><p>note: a &lt; b</p>")


def test_no_rows():
    empty = Table(("a",), [], notes=["why"], empty="nothing <yet>")
    assert repr(empty) == "nothing <yet>\nnote: why"
    assert empty._repr_html_() == "<p>nothing &lt;yet&gt;</p><p>note: why</p>"


def test_shorten():
    assert shorten('FETCH  10\n FROM "c_7f00_1"') == 'FETCH 10 FROM "c_..."'
    assert shorten("word " * 50, 12) == "word word..."


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00523, "5.23 ms"),
        (2.85e-5, "28.5 µs"),
        (1.0, "1.00 s"),
        (0.99999, "1.00 s"),
        (0.0009996, "1.00 ms"),
        (754, "754 s"),
        (3.2e-8, "32.0 ns"),
        (0, "0 s"),
    ],
)
def test_seconds(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(20.74, "20.7"), (348.4, "348"), (1249.6, "1,250"), (0.02853, "0.0285"), (9.996, "10.0"), (0, "0")],
)
def test_significant(value, text):
    assert significant(value) == text
