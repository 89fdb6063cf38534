"""The lessons as a site that is read without running anything: `make book`, then open .workshop/book/html/index.html.

Sphinx with myst-nb renders the stored outputs; nothing is executed and nothing is fetched. The notebooks are copied
first, because Sphinx wants tags for what it leaves out (Colab's cell, what exercises refuse) and folds (solutions and
their checks).
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path

import nbformat
from sphinx.cmd.build import main as sphinx_build

from workshop.state import CHECKOUT, state_dir

AS_TAGGED = {"colab": "remove-cell", "check": "hide-cell", "solution": "hide-cell", "cheats": "remove-cell"}
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SETTINGS = f"""
project = "Fast data access in Python, measured"
html_title = project
extensions = ["myst_nb"]
nb_execution_mode = "off"
myst_heading_anchors = 3
html_theme = "sphinx_book_theme"
html_theme_options = {{
    "repository_url": {PROJECT["urls"]["Repository"]!r},
    "repository_branch": "main",
    "path_to_docs": "notebooks",
    "use_repository_button": True,
    "launch_buttons": {{"binderhub_url": "https://mybinder.org", "colab_url": "https://colab.research.google.com"}},
}}
"""
CONTENTS = "\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{names}\n```\n"


def build(target: Path) -> int:
    """Write the site to `target`/html; Sphinx's exit code, which is not 0 after a warning."""
    source = target / "source"
    shutil.rmtree(target, ignore_errors=True)
    source.mkdir(parents=True)
    lessons = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))
    for path in lessons:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            tags = cell.metadata.get("tags", [])
            cell.metadata["tags"] = [*tags, *(AS_TAGGED[tag] for tag in tags if tag in AS_TAGGED)]
        nbformat.write(notebook, source / path.name)
    index = (CHECKOUT / "notebooks" / "README.md").read_text(encoding="utf-8")
    # The guide for teachers has the answers to Predict, and stays out.
    index = index.replace("(TEACHING.md)", f"({PROJECT['urls']['Repository']}/blob/main/notebooks/TEACHING.md)")
    for caption, part in {
        "Part I": [path.stem for path in lessons if path.stem < "11"],
        "Part II": [path.stem for path in lessons if path.stem >= "11"],
    }.items():
        index += CONTENTS.format(caption=caption, names="\n".join(part))
    (source / "README.md").write_text(index, encoding="utf-8")
    (source / "conf.py").write_text(SETTINGS + 'root_doc = "README"\n', encoding="utf-8")
    code = sphinx_build(["--quiet", "--fail-on-warning", "--keep-going", str(source), str(target / "html")])
    if code == 0:
        shutil.copy(target / "html" / "README.html", target / "html" / "index.html")
    return code


if __name__ == "__main__":
    folder = state_dir() / "book"
    code = build(folder)
    if code == 0:
        print(f"The book: {folder / 'html' / 'index.html'}")
    sys.exit(code)
