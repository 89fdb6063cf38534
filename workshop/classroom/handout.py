"""The sheet that learners get: where to go, and the password, as text and as HTML with a QR code of the address."""

from __future__ import annotations

from pathlib import Path

import segno
from jinja2 import Template

from workshop.state import write_private

TEXT = """Fast data access in Python: the class

1. Open   {{ address }}
2. Log in with
     Username   a name of your own, as ada (letters, digits, '-')
     Password   {{ password }}
     Your word  one that only you know; choose it the first time, give it again every other time
3. The first lesson opens by itself. Your notebooks are kept from day to day.
"""
HTML = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Fast data access in Python: the class</title>
<style>body { font: 20px/1.6 system-ui, sans-serif; margin: 3em auto; max-width: 34em }
  code { font-size: 1.2em } svg { width: 12em; height: 12em }</style>
<h1>Fast data access in Python</h1>
<p>{{ code|safe }}</p>
<ol><li>Open <code>{{ address }}</code></li>
  <li>Log in with<ul><li>a <b>name</b> of your own, as <code>ada</code> (letters, digits, -)</li>
    <li>the <b>password</b> <code>{{ password }}</code></li>
    <li><b>a word</b> that only you know; choose it the first time, give it again every other time</li></ul></li>
  <li>The first lesson opens by itself. Your notebooks are kept from day to day.</li></ol></html>
"""


def write(folder: Path, address: str, password: str) -> Path:
    """Write `handout.txt` and `handout.html` to `folder`, readable by this user alone; the HTML's path."""
    code = segno.make(address).svg_inline(scale=6, omitsize=True)
    write_private(folder / "handout.txt", Template(TEXT).render(address=address, password=password) + "\n")
    page = Template(HTML, autoescape=True).render(address=address, password=password, code=code)
    write_private(folder / "handout.html", page)
    return folder / "handout.html"
