"""The teacher's page, a service of the hub: who passed what, everybody's gains of one comparison, and a reset.

What it reads are learners' files, written by whoever they like: no link is followed, and all that is shown is escaped.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, urlsplit

from jinja2 import Environment, FileSystemLoader
from jupyterhub.services.auth import HubOAuthCallbackHandler, HubOAuthenticated
from jupyterhub.utils import url_path_join
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.web import Application, HTTPError, RequestHandler, authenticated

from workshop import passed, results
from workshop.classroom import accounts, roll
from workshop.servers import lifecycle
from workshop.state import CHECKOUT

BASE = os.environ.get("JUPYTERHUB_SERVICE_PREFIX", "/services/class/")
MOST_BYTES, MOST_GAINS = 5_000_000, 500  # of one learner; the lessons have eighty comparisons
RESET_S = 60.0
resetting = asyncio.Lock()  # one after the other: a second click must not meet the first one's half


def records(path: Path) -> list[dict[str, Any]]:
    """The records of a learner's file; none where there is no plain file of a usual size."""
    try:
        with open(path, "rb", opener=lambda name, how: os.open(name, how | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
                return []
            return [record for line in file.read().splitlines() if isinstance(record := _parsed(line), dict)]
    except OSError:
        return []


def _parsed(line: bytes) -> Any:
    try:
        record = json.loads(line)
        json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair could not be shown
        return record
    except (ValueError, RecursionError):
        return None


def progress(klass: roll.Roll) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """{learner: {"passed": records, "gains": records}} of all who have a seat, the teacher last."""
    people = sorted(klass.seated(), key=lambda name: (name == roll.TEACHER, name))
    states = {name: klass.home(name) / ".workshop" for name in people}
    return {
        name: {"passed": records(state / passed.FILE), "gains": records(state / results.FILE)}
        for name, state in states.items()
    }


def _well_formed(record: dict[str, Any]) -> bool:
    """Whether it is a comparison near the servers that can be drawn."""
    span = record.get("interval")
    numbers = [record.get("ratio"), *(span if isinstance(span, list) and len(span) == 2 else [None])]
    return (
        not record.get("added_round_trip_ms")
        and all(isinstance(record.get(word), str) for word in ("lesson", "name", "verdict"))
        and all(isinstance(number, int | float) and 0 < number < 1e9 for number in numbers)
    )


def gains(people: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """{(lesson, name): each learner's latest result of that comparison, under the learner's name}."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, kept in people.items():
        for record in results.latest(filter(_well_formed, kept["gains"]))[-MOST_GAINS:]:
            found.setdefault((record["lesson"], record["name"]), []).append({**record, "lesson": name, "name": ""})
    return found


def picture(drawn: list[dict[str, Any]], title: str) -> str:
    """The gains as a PNG, in base64."""
    from workshop import figures

    return figures.gains(drawn, title).as_base64()


class Page(HubOAuthenticated, RequestHandler):
    """The table and the figure, for the teacher alone."""

    def klass(self) -> roll.Roll:
        if not (self.current_user or {}).get("admin"):
            raise HTTPError(403, "this page is the teacher's")
        return roll.found(os.environ["WORKSHOP_CLASS_KIND"])

    @authenticated
    async def get(self) -> None:
        klass = self.klass()
        people = await asyncio.to_thread(progress, klass)
        exercises = [
            (lesson.stem, exercise)
            for lesson in sorted((CHECKOUT / "notebooks").glob("[0-9]*.ipynb"))
            for exercise in passed.solutions(lesson.stem)
        ]
        done = {name: passed.best(kept["passed"]) for name, kept in people.items()}
        compared = gains(people)
        chosen = (self.get_argument("lesson", ""), self.get_argument("name", ""))
        drawn = compared.get(chosen)
        template = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
        self.finish(
            template.get_template("page.html.jinja").render(
                base=BASE,
                people=list(people),
                teacher=roll.TEACHER,
                exercises=exercises,
                begun=[exercise for exercise in exercises if any(exercise in of for of in done.values())],
                done=done,
                comparisons=sorted(compared),
                chosen=chosen,
                figure=await asyncio.to_thread(picture, drawn, f"{chosen[0]}: {chosen[1]}") if drawn else "",
                told=self.get_argument("told", ""),
                xsrf=self.xsrf_token.decode(),
            )
        )

    @authenticated
    async def post(self) -> None:
        """Reset a learner: server stopped, databases and home deleted, seat and word given back."""
        klass, name = self.klass(), self.get_body_argument("learner")
        async with resetting:
            if name not in klass.seated() or name == roll.TEACHER:
                raise HTTPError(404, "no such learner")
            await _hub("DELETE", f"users/{name}/server")
            give_up = asyncio.get_running_loop().time() + RESET_S
            while (await _hub("GET", f"users/{name}")).get("servers"):  # those that start or stop are named, too
                if asyncio.get_running_loop().time() > give_up:
                    raise HTTPError(503, f"the server of {name} has not stopped within {RESET_S:.0f} s: try again")
                await asyncio.sleep(0.3)
            await _hub("DELETE", f"users/{name}")  # and with it her session
            left = await asyncio.to_thread(_reset, klass, name)
        told = f"{name} is reset" + "".join(f"; {home} could not be deleted: delete it by hand" for home in left)
        self.redirect(f"{BASE}?told={quote_plus(told)}")


def _reset(klass: roll.Roll, name: str) -> list[Path]:
    """Clear her place, then free it: a reset that was killed can be had again. What of homes could not be deleted."""
    accounts.reset(klass, lifecycle.find(), klass.shut(name))
    return klass.forget(name)


async def _hub(method: str, path: str) -> dict[str, Any]:
    """The hub's answer; empty where there is no such user or server."""
    request = HTTPRequest(
        url_path_join(os.environ["JUPYTERHUB_API_URL"], path),
        method=method,
        headers={"Authorization": f"token {os.environ['JUPYTERHUB_API_TOKEN']}"},
    )
    try:
        answer = await AsyncHTTPClient().fetch(request)
    except HTTPClientError as error:
        if error.code == 404:
            return {}
        raise HTTPError(503, f"the hub answered {error.code} to {method} {path}") from None
    return json.loads(answer.body or b"{}")


async def main() -> None:
    address = urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"])
    handlers = [(BASE, Page), (url_path_join(BASE, "oauth_callback"), HubOAuthCallbackHandler)]
    application = Application(handlers, cookie_secret=os.urandom(32), xsrf_cookies=True)
    application.listen(address.port, address=address.hostname)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
