"""Scripted learners who take a lesson at the same time, as a class does: through the hub, each on her own server.

Each logs in by the form, waits for her server, starts a kernel, opens the lesson at the same moment as all the others,
runs every cell, the solutions too, and has passed when all of the lesson's exercises are kept as passed.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import aiohttp
import psutil
from yarl import URL

from workshop import passed
from workshop.classroom.page import records
from workshop.classroom.roll import Roll
from workshop.state import CHECKOUT, WorkshopError
from workshop.table import Table

DEADLINE_S = 1800.0
AT_ONCE_S = 20.0  # within which all have their sandboxes
WARM = "import pandas, workshop.lesson, workshop.figures, sqlalchemy.orm"  # what takes time and is no sandbox


@dataclass
class Learner:
    """One of them, and what took how many seconds."""

    name: str
    times: dict[str, float] = field(default_factory=dict)
    failure: str = ""
    passed: bool = False


def run(klass: Roll, address: str, lesson: str) -> int:
    """Rehearse `lesson` with all of the class's learners; prints the table and returns 0 when all passed."""
    path = CHECKOUT / "notebooks" / f"{lesson}.ipynb"
    if not path.is_file():
        raise WorkshopError(f"there is no lesson {lesson}: name one of notebooks/, as 00-start-here")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    learners = [Learner(f"learner-{number:02}") for number in klass.seats[1:]]
    most = asyncio.run(_all(klass, address, sources, learners))
    exercises = set(passed.solutions(lesson))
    for learner in learners:
        kept = records(klass.home(learner.name) / ".workshop" / passed.FILE)
        learner.passed = not learner.failure and exercises <= {str(record.get("exercise")) for record in kept}
    print(_table(lesson, learners))
    done = sum(learner.passed for learner in learners)
    opened = max((learner.times.get("open", 0.0) for learner in learners), default=0.0)
    print(f"{done} of {len(learners)} passed; at most {most / 1e9:.1f} GB of memory more than before")
    print(f"the last had her sandbox {opened:.1f} s after all began to open the lesson (goal {AT_ONCE_S:.0f} s)")
    return 0 if done == len(learners) else 1


def _table(lesson: str, learners: list[Learner]) -> Table:
    steps = ("server", "kernel", "open", "lesson")
    rows = [
        (
            learner.name,
            *(f"{learner.times[step]:.1f} s" if step in learner.times else "-" for step in steps),
            "yes" if learner.passed else f"no: {learner.failure or 'an exercise was not passed'}",
        )
        for learner in learners
    ]
    return Table((lesson, *steps, "passed"), rows, right=(1, 2, 3, 4))


async def _all(klass: Roll, address: str, sources: list[str], learners: list[Learner]) -> int:
    """Let them all take the lesson; how many bytes of memory were taken at most."""
    before = least = psutil.virtual_memory().available
    ready = asyncio.Barrier(len(learners))
    tasks = [asyncio.create_task(_take(klass, address, sources, learner, ready)) for learner in learners]
    told = time.monotonic()
    while not all(task.done() for task in tasks):
        least = min(least, psutil.virtual_memory().available)
        await asyncio.sleep(0.5)
        if time.monotonic() - told > 30:
            told = time.monotonic()
            steps = [max(learner.times, key=list(learner.times).index, default="start") for learner in learners]
            print("done: " + ", ".join(f"{step} {steps.count(step)}" for step in dict.fromkeys(steps)), flush=True)
    return before - least


async def _take(klass: Roll, address: str, sources: list[str], learner: Learner, ready: asyncio.Barrier) -> None:
    jar, connector = aiohttp.CookieJar(unsafe=True), aiohttp.TCPConnector(ssl=False)  # the certificate may be nobody's
    try:
        async with asyncio.timeout(DEADLINE_S), aiohttp.ClientSession(cookie_jar=jar, connector=connector) as session:
            browser = _Browser(session, address, learner.name, klass)
            with _timed(learner, "server"):
                await browser.log_in()
            with _timed(learner, "kernel"):
                kernel = await browser.kernel()
                await run_cell(kernel, WARM)
            await ready.wait()
            first = next(number for number, source in enumerate(sources) if "open_lesson(" in source)
            with _timed(learner, "open"):
                for source in sources[: first + 1]:
                    await run_cell(kernel, source)
            with _timed(learner, "lesson"):
                for source in sources[first + 1 :]:
                    await run_cell(kernel, source)
            await kernel.close()
    except asyncio.BrokenBarrierError:
        learner.failure = "the others could not begin"
    except (WorkshopError, aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        learner.failure = " ".join(str(error).split())[:160] or type(error).__name__
        await ready.abort()  # nobody waits for who does not come


@contextmanager
def _timed(learner: Learner, step: str) -> Iterator[None]:
    """A block whose seconds are kept under the name of a step, unless it ends by an error."""
    start = time.monotonic()
    yield
    learner.times[step] = time.monotonic() - start


class _Browser:
    """What a learner's browser does, by HTTP."""

    def __init__(self, session: aiohttp.ClientSession, address: str, name: str, klass: Roll) -> None:
        self.session, self.address, self.name, self.klass = session, address, name, klass
        self.headers: dict[str, str] = {}

    async def log_in(self, deadline_s: float = 300.0) -> None:
        """Through the form; returns when the server is ready. Its API is then open by a token of the learner's."""
        async with self.session.get(f"{self.address}hub/login") as page:
            form = re.search(r'name="_xsrf" value="([^"]+)"', await page.text())
        data = {"username": self.name, "password": self.klass.password, "otp": f"word of {self.name}"}
        data["_xsrf"] = form[1] if form else ""
        async with self.session.post(f"{self.address}hub/login", data=data, allow_redirects=False) as page:
            if page.status != 302:
                said = re.search(r'class="login_error">([^<]*)<', await page.text())
                raise WorkshopError(f"the login was refused: {said[1] if said else page.status}")
        async with self.session.get(f"{self.address}hub/home") as page:
            await page.read()
        url = f"{self.address}hub/api/users/{self.name}"
        cookies = self.session.cookie_jar.filter_cookies(URL(f"{self.address}hub/"))
        xsrf = cookies["_xsrf"].value if "_xsrf" in cookies else ""
        headers = {"X-XSRFToken": xsrf, "Referer": f"{self.address}hub/home"}
        async with self.session.post(f"{url}/tokens", json={}, headers=headers) as answer:
            known = await answer.json()
            if "token" not in known:
                raise WorkshopError(f"the hub gave no token: {known.get('message', answer.status)}")
        self.headers = {"Authorization": f"token {known['token']}"}
        async with self.session.post(f"{url}/server", headers=self.headers) as answer:
            if answer.status not in (201, 202):
                raise WorkshopError(f"the server did not start: {(await answer.text())[:100]}")
        give_up = time.monotonic() + deadline_s
        while time.monotonic() < give_up:
            async with self.session.get(url, headers=self.headers) as answer:
                known = await answer.json()
            if known.get("server") and not known.get("pending"):
                return
            if not known.get("pending"):
                raise WorkshopError("the server ended while it started")
            await asyncio.sleep(0.5)
        raise WorkshopError(f"the server was not ready after {deadline_s:.0f} s")

    async def kernel(self) -> aiohttp.ClientWebSocketResponse:
        """The web socket of a new kernel, in the folder of the notebooks."""
        url = f"{self.address}user/{self.name}/api/kernels"
        async with self.session.post(url, headers=self.headers, json={"name": "python3"}) as answer:
            if answer.status != 201:
                raise WorkshopError(f"no kernel started: {answer.status}")
            known = await answer.json()
        channels = f"{url}/{known['id']}/channels".replace("http", "ws", 1)
        return await self.session.ws_connect(channels, headers=self.headers, max_msg_size=0)


async def run_cell(kernel: aiohttp.ClientWebSocketResponse, source: str) -> None:
    """Run a cell to its end in the kernel of a web socket; WorkshopError with the error that it raised."""
    number = uuid.uuid4().hex
    header = {"msg_id": number, "msg_type": "execute_request", "username": "", "session": number, "version": "5.3"}
    content = {"code": source, "silent": False, "store_history": True, "allow_stdin": False, "stop_on_error": True}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    await kernel.send_json(message)
    replied = idle = False
    while not (replied and idle):
        given = await kernel.receive()
        if given.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            raise WorkshopError("the kernel is gone")
        if given.type == aiohttp.WSMsgType.BINARY:
            continue  # a figure's widget
        answer = json.loads(given.data)
        if answer["parent_header"].get("msg_id") != number:
            continue
        kind = answer["msg_type"]
        if kind == "error":
            raise WorkshopError(f"{answer['content']['ename']}: {answer['content']['evalue']}")
        replied |= kind == "execute_reply"
        idle |= kind == "status" and answer["content"]["execution_state"] == "idle"
