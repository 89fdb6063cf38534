"""A reader's way through the workbook: JupyterLab in Chromium at 1280 pixels, from the URL that `make lab` prints.

`make test-browser` runs it. The reader has a copy of the checkout, so that what JupyterLab saves changes nothing here.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Locator, Page, expect, sync_playwright

from workshop import slides
from workshop.state import CHECKOUT, state_dir

pytestmark = pytest.mark.timeout(600)

LESSONS = sorted(path.name for path in (CHECKOUT / "notebooks").glob("*.ipynb"))
SCREENSHOTS = os.environ.get("SCREENSHOTS")  # the folder for the README's pictures; none are taken without it
WINDOW = {"width": 1280, "height": 800}
START_S, OPEN_S, WHOLE_S, RUN_S, STOP_S = 180, 60, 120, 300, 60  # deadlines; the first start loads the shop

# What is wider than its place, as sentences. JupyterLab draws a cell only when it comes into view, and hides some parts
# until they are clicked: each cell is brought into view, opened, and then measured.
OVERFLOW = """async (notebook) => {
  const found = [];
  const right = notebook.querySelector(".jp-WindowedPanel-outer").getBoundingClientRect().right;
  const drawn = (cell) => cell.querySelector(".jp-MarkdownOutput *, .cm-content, .jp-InputPlaceholder");
  const frame = () => new Promise(requestAnimationFrame);
  for (const [number, cell] of notebook.querySelectorAll(".jp-Cell").entries()) {
    cell.scrollIntoView();
    for (const end = Date.now() + 10000; !drawn(cell) && Date.now() < end; ) await frame();
    if (!drawn(cell)) found.push(`cell ${number} was not drawn within 10 s`);
    cell.querySelector(".jp-InputPlaceholder .jp-Placeholder-content")?.click();
    for (const details of cell.querySelectorAll("details")) details.open = true;
    for (const image of cell.querySelectorAll("img"))
      await image.decode().catch(() => found.push(`cell ${number}: an image is broken`));
    await frame();
    await frame();
    const parts = ".jp-OutputArea-output, .jp-MarkdownOutput, .cm-scroller, table, pre, img, .widget-label";
    for (const part of cell.querySelectorAll(parts)) {
      const over = Math.max(part.scrollWidth - part.clientWidth, part.getBoundingClientRect().right - right);
      if (over > 1) {
        const name = [...part.classList].find((name) => /^(jp|cm)-/.test(name)) ?? part.tagName.toLowerCase();
        found.push(`cell ${number}: ${name} is ${Math.round(over)} px too wide`);
        break;
      }
    }
  }
  const page = document.documentElement.scrollWidth - innerWidth;
  if (page > 0) found.push(`the page is ${page} px wider than the window`);
  return found;
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL that `make lab ARGS=--no-browser` prints, in a copy of the checkout, with a fresh reader's settings."""
    folder = tmp_path_factory.mktemp("reader")
    copy = folder / "the workbook"
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")
    for part in ("notebooks", "workshop", "data"):
        shutil.copytree(CHECKOUT / part, copy / part, ignore=unwanted)
    process = subprocess.Popen(
        [sys.executable, "-m", "workshop", "lab", "--no-browser", "--ServerApp.port_retries=50"],
        cwd=copy,
        stdout=subprocess.PIPE,
        env={
            **os.environ,
            "PYTHONPATH": str(copy),
            "WORKSHOP_STATE": str(state_dir()),  # the checkout's servers and data
            "JUPYTER_CONFIG_DIR": str(folder / "settings"),
        },
    )
    try:
        yield _printed_url(process)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, f"expected `workshop lab` to end with 0 after SIGINT, found {process.returncode}"


def _printed_url(process: subprocess.Popen) -> str:
    give_up = time.monotonic() + START_S
    printed = b""
    while not (found := re.search(rb"^JupyterLab: (\S+)\n", printed, re.MULTILINE)):
        ready, _, _ = select.select([process.stdout], [], [], max(0, give_up - time.monotonic()))
        more = os.read(process.stdout.fileno(), 65536) if ready else b""
        assert more, f"expected a line 'JupyterLab: <URL>' within {START_S} s, found: {printed.decode()[-500:]!r}"
        printed += more
    return found[1].decode()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = os.environ.get("CHROMIUM")
    assert program, "CHROMIUM, the browser's path, is not set: run `make test-browser`, which finds it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    page = chromium.new_page(viewport=WINDOW)
    page.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)
    yield page
    page.close()


@contextmanager
def step(page: Page, expected: str) -> Iterator[None]:
    """One thing that the reader does. When it fails: one sentence, and a picture of what the reader sees."""
    try:
        yield
    except (AssertionError, Error) as error:
        folder = state_dir() / "browser"
        folder.mkdir(exist_ok=True)
        picture = folder / f"{re.sub('[^a-z0-9]+', '-', expected.lower())[:60]}.png"
        page.screenshot(path=picture)
        found = " ".join(str(error).partition("Call log")[0].split())[:500]
        message = f"expected {expected}; found: {found} (see {picture})"
        raise pytest.fail.Exception(message, pytrace=False) from None


def shown(page: Page, name: str) -> Locator:
    """The panel of the notebook `name`, in front."""
    expect(page.locator(".lm-DockPanel-tabBar .jp-mod-current")).to_have_text(name, timeout=OPEN_S * 1000)
    notebook = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    expect(notebook.locator("h1").first).to_contain_text(name[:2])
    return notebook


def whole(page: Page, name: str) -> Locator:
    """The same, once JupyterLab has added all cells, which it does whenever it is idle."""
    notebook = shown(page, name)
    cells = json.loads((CHECKOUT / "notebooks" / name).read_text())["cells"]
    expect(notebook.locator(".jp-Cell")).to_have_count(len(cells), timeout=WHOLE_S * 1000)
    return notebook


def choose(page: Page, menu: str, entry: str) -> None:
    page.locator(".lm-MenuBar-item", has_text=re.compile(f"^{menu}$")).click()
    page.locator(".lm-Menu-item", has_text=re.compile(f"^{entry}")).first.click()


def assert_fits(notebook: Locator) -> None:
    if wide := notebook.evaluate(OVERFLOW):
        raise AssertionError("; ".join(wide))


def code_cell(notebook: Locator, source: str) -> Locator:
    return notebook.locator(".jp-CodeCell", has_text=source).first


def take(page: Page, name: str, part: Locator, height: int, block: str = "start") -> None:
    """A picture for the README, without the sidebar: `part` at the start or in the center of the notebook."""
    if not SCREENSHOTS:
        return
    folder = Path(SCREENSHOTS)
    folder.mkdir(parents=True, exist_ok=True)
    page.keyboard.press("Escape")
    page.keyboard.press("Control+b")
    page.set_viewport_size({**WINDOW, "height": height})
    expect(page.locator("#jp-left-stack")).to_be_hidden()
    for _ in range(10):  # cells that come into view and are drawn for the first time move those below
        part.evaluate(
            "(part, block) => { part.scrollIntoView({block}); return new Promise(requestAnimationFrame); }", block
        )
    page.mouse.move(0, 0)
    page.screenshot(path=folder / f"{name}.png")
    page.set_viewport_size(WINDOW)
    page.keyboard.press("Control+b")
    expect(page.locator("#jp-left-stack")).to_be_visible()


def test_a_reader_takes_lesson_02(lab, page):
    with step(page, "the printed URL to open 00-start-here.ipynb"):
        page.goto(lab)
        shown(page, "00-start-here.ipynb")

    with step(page, "a double click in the file browser to open lesson 02"):
        page.locator(".jp-DirListing-item", has_text="02-connection-pooling.ipynb").dblclick()
        notebook = whole(page, "02-connection-pooling.ipynb")
        expect(notebook.locator(".jp-Notebook-ExecutionIndicator")).to_have_attribute("data-status", "idle")

    # JupyterLab shows an exception as it shows what is written to stderr; neither is welcome.
    errors = notebook.locator("[data-mime-type='application/vnd.jupyter.stderr']")
    last = notebook.locator(".jp-CodeCell").last.locator(".jp-InputPrompt")
    with step(page, "Run > Run All Cells to run each cell to the last, without an error output"):
        # The stored outputs go first: what is seen from here on comes from this run.
        choose(page, "Edit", "Clear Outputs of All Cells")
        expect(notebook.locator(".jp-OutputArea-output")).to_have_count(0)
        choose(page, "Run", "Run All Cells")
        count = notebook.locator(".jp-CodeCell").count()
        expect(last.filter(has_text=f"[{count}]:").or_(errors).first).to_be_attached(timeout=RUN_S * 1000)
        if errors.count():
            raise AssertionError(f"the error output {errors.first.text_content()!r}")
        expect(notebook.locator(".jp-Notebook-ExecutionIndicator")).to_have_attribute("data-status", "idle")

    measured = code_cell(notebook, "new connection vs. pool").locator(".jp-Cell-outputWrapper")
    take(page, "comparison", measured, 800)

    with step(page, "the slider pool_size, moved from 5 to 1, to open 1 connection in place of 5"):
        explorer = code_cell(notebook, "serve_400").locator(".jp-Cell-outputWrapper")
        explorer.scroll_into_view_if_needed()
        expect(explorer).to_contain_text("    5 connections opened")
        slider = explorer.locator(".widget-slider", has_text="pool_size")
        slider.locator(".noUi-handle").focus()
        page.keyboard.press("Home")
        expect(slider.locator(".widget-readout")).to_have_text("1")
        expect(explorer).to_contain_text("    1 connections opened")

    take(page, "explorer", explorer, 540, block="center")

    with step(page, "a click on the collapsed solution to show its code"):
        collapsed = notebook.locator(".jp-CodeCell", has=page.locator(".jp-InputPlaceholder"))
        solution = collapsed.nth(2)  # the first one is Colab's, the second the exercise's check
        solution.scroll_into_view_if_needed()
        solution.locator(".jp-InputPlaceholder .jp-Placeholder-content").click()
        # The exercise and, now, its solution.
        expect(notebook.locator(".jp-CodeCell .cm-content", has_text="def handle(engine, number)")).to_have_count(2)

    take(page, "exercise", code_cell(notebook, "check_handle(handle)"), 800)

    with step(page, "no output of the run to be wider than its place"):
        assert_fits(notebook)

    with step(page, "the link at the end to open lesson 03"):
        notebook.get_by_role("link", name="03 Bulk writes").last.click()
        shown(page, "03-bulk-writes.ipynb")


@pytest.mark.parametrize("name", LESSONS)
def test_nothing_is_wider_than_its_place(lab, page, name):
    with step(page, f"{name}, with its stored outputs and its solutions opened, to fit a window of 1280 px"):
        page.goto(lab.replace("00-start-here.ipynb", name) + "&reset")
        assert_fits(whole(page, name))


@pytest.mark.parametrize("name", LESSONS)
def test_no_slide_overflows(lab, page, name):
    """The live slides of jupyterlab-rise, with the stored outputs, on a screen of 1280 by 720."""
    page.set_viewport_size({"width": 1280, "height": 720})
    with step(page, f"{name} to open as slides"):
        page.goto(lab.replace("/lab/tree/notebooks/00-start-here.ipynb", f"/rise/notebooks/{name}"))
        expect(page.locator(".reveal.ready")).to_be_attached(timeout=OPEN_S * 1000)
        page.wait_for_function("document.querySelectorAll('.reveal section.present .jp-Cell').length > 0")
    tall, seen, last = [], 0, ""
    while page.url != last and seen < 99:
        last, seen = page.url, seen + 1
        height = page.evaluate("[...document.querySelectorAll('.reveal section.present')].at(-1).scrollHeight")
        if height > 720:
            tall.append(f"slide {last.partition('#')[2]} is {height} pixels high")
        page.keyboard.press("Space")
        page.wait_for_timeout(150)
    assert seen > 10, f"expected more than ten slides, found {seen}"
    assert not tall, "; ".join(tall)


def test_static_slides_open_offline(page, tmp_path):
    slides.build(tmp_path, "05-*")
    errors, asked, texts = [], [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "index.html").as_uri())
    page.get_by_role("link", name="05-materialized-views").click()
    expect(page.locator(".reveal.ready")).to_be_attached()
    for _ in range(page.evaluate("Reveal.getTotalSlides()")):
        texts.append(page.locator("section.present section.present").inner_text())
        page.keyboard.press("Space")
    assert errors == [] and not [url for url in asked if not url.startswith(("file:", "data:"))]
    assert len(set(texts)) > 10 and "You will" in texts[0] and "Take away" in "".join(texts)
    assert not [text for text in texts if text.startswith(("Going further", "On Colab"))]
