"""The core of each lesson as static slides with stored outputs: `make slides`, then open .workshop/slides/index.html.

nbconvert renders the cells as they are marked for jupyterlab-rise. Its template fetches reveal.js and more from the
internet; here reveal.js lies beside the slides (from the wheel of sphinx-revealjs), and what else it fetches no lesson
needs.
"""

from __future__ import annotations

import importlib.util
import shutil
from html import escape
from pathlib import Path

import jinja2
import nbformat
from nbconvert import SlidesExporter
from traitlets.config import Config

from workshop.state import CHECKOUT, state_dir

OFFLINE = """{% extends 'reveal/index.html.j2' %}
{% block html_head_js %}<script src="reveal/dist/reveal.js"></script>{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block html_head_css %}<style>
.reveal .slides { text-align: left }
.reveal .slides section section { max-height: 100%; overflow-y: auto }
.reveal .slides :is(h1, h2, h3) { text-transform: none; font-size: 1.6em }
:root { --jp-ui-font-size1: 14px; --jp-content-font-size1: 15px; --jp-code-font-size: 14px }
</style>{% endblock %}
{% block footer_js %}<script>
Reveal.initialize({
  width: 1280, height: 720, margin: 0, center: false, hash: true, slideNumber: true, transition: "none",
});
</script>{% endblock %}
"""
INDEX = """<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Slides</title>
<body style="font: 18px/1.8 sans-serif; margin: 3em">
<h1>Fast data access in Python, measured</h1><ul>{}</ul></body></html>
"""


def build(target: Path, lessons: str = "*") -> None:
    """Write a page of slides for each lesson (by a pattern for their names), an index and reveal.js to `target`."""
    shutil.rmtree(target, ignore_errors=True)
    wheel = Path(importlib.util.find_spec("sphinx_revealjs").origin).parent
    shutil.copytree(wheel / "_static" / "revealjs", target / "reveal")
    exporter = SlidesExporter(
        config=Config(
            SlidesExporter={"reveal_url_prefix": "reveal", "reveal_theme": "white"},
            # Who presents wants neither what Colab needs nor the answers; skipped cells are left out by the template.
            TagRemovePreprocessor={"enabled": True, "remove_cell_tags": ["colab", "cheats", "check", "solution"]},
        ),
        extra_loaders=[jinja2.DictLoader({"offline.html.j2": OFFLINE})],
        template_file="offline.html.j2",
    )
    links = []
    for path in sorted((CHECKOUT / "notebooks").glob(f"{lessons}.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if "outputs" in cell:  # a progress bar that has been closed leaves an empty one
                cell.outputs = [output for output in cell.outputs if output.get("data") != {}]
        page, _ = exporter.from_notebook_node(notebook)
        (target / f"{path.stem}.html").write_text(page, encoding="utf-8")
        links.append(f'<li><a href="{path.stem}.html">{escape(path.stem)}</a>')
    (target / "index.html").write_text(INDEX.format("".join(links)), encoding="utf-8")


if __name__ == "__main__":
    folder = state_dir() / "slides"
    build(folder)
    print(f"The slides: {folder / 'index.html'}")
