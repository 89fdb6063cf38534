"""Where a lesson's slides begin: `store_outputs.py` writes it into each cell, for jupyterlab-rise.

A section of the core begins a slide. Cells go on it, with their stored outputs, as long as they fit a screen of 1280 by
720; then a slide below it begins. What goes deeper, Colab's cell and what exercises refuse are left out. The heights
are estimates, in pixels of jupyterlab-rise's own style; tests/browser measures the slides themselves.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

ROOM = 560  # of 720: the rest is margin, and the arrows
LINE, CODE_LINE, ROW = 21, 18, 24
CHARACTERS = 150  # of prose in a line
LEFT_OUT = {"colab", "cheats"}


def mark(cells: Sequence[Mapping[str, Any]]) -> None:
    """Write `slideshow.slide_type` into the metadata of each cell."""
    in_core, used = True, 0
    for cell in cells:
        source = "".join(cell["source"])
        in_core = in_core and not source.startswith("## Going further")
        if not in_core or LEFT_OUT & set(cell["metadata"].get("tags", [])):
            kind = "skip"
        else:
            needed = height(cell)
            if source.startswith(("# ", "## ")) and cell["cell_type"] == "markdown":
                kind, used = "slide", needed
            elif used + needed > ROOM:
                kind, used = "subslide", needed
            else:
                kind, used = "-", used + needed
        cell["metadata"]["slideshow"] = {"slide_type": kind}


def height(cell: Mapping[str, Any]) -> int:
    """About how many pixels the cell takes with its outputs."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return _prose(source)
    hidden = cell["metadata"].get("jupyter", {}).get("source_hidden")
    code = 40 if hidden else 24 + CODE_LINE * (source.count("\n") + 1)
    return code + sum(_output(output) for output in cell["outputs"])


def _prose(text: str) -> int:
    pixels, folded = 0, False
    for block in text.split("\n\n"):
        folded = folded or block.startswith("<details>")
        if folded:  # only its summary shows
            pixels += 30 if "<summary>" in block else 0
            folded = "</details>" not in block
        elif block.startswith("|"):
            pixels += 12 + sum(ROW * math.ceil(len(row) / CHARACTERS) for row in block.splitlines())
        elif block.startswith("#"):
            pixels += 64
        elif block.lstrip().startswith(("- ", "* ", "1.", "```")):
            pixels += 12 + sum(LINE * math.ceil((len(line) or 1) / CHARACTERS) for line in block.splitlines())
        else:
            pixels += 14 + LINE * math.ceil(len(" ".join(block.split())) / CHARACTERS)
    return pixels


def _output(output: Mapping[str, Any]) -> int:
    data = output.get("data", {})
    if "image/png" in data:
        _, tall = struct.unpack(">II", base64.b64decode("".join(data["image/png"]))[16:24])
        return 16 + tall
    if "text/html" in data:
        html = "".join(data["text/html"])
        return 24 + ROW * (html.count("<tr") + html.count("<p") + html.count("<caption"))
    text = "".join(output.get("text", "")) or "".join(data.get("text/plain", ""))
    return 16 + 17 * (text.rstrip("\n").count("\n") + 1)
