"""The command line: python -m workshop up | status | down | reset | lab | report | progress | doctor | classroom.

Exit codes: 0 done, 1 a service or the data failed, 2 wrong use.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from workshop.state import WorkshopError

if TYPE_CHECKING:
    from workshop.servers.service import Servers, Service


def _scale(text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = 0.0
    if not 0.01 <= scale <= 100:
        raise argparse.ArgumentTypeError(f"a number from 0.01 to 100 is expected, {text!r} was found")
    return scale


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workshop", description="The workbook's servers and results.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="start the servers and seed them; does nothing where that is done")
    status = commands.add_parser("status", help="what runs, and which rows are there")
    down = commands.add_parser("down", help="stop the servers that `up` started")
    reset = commands.add_parser("reset", help="delete the servers' data that the workbook made, and seed anew")
    lab = commands.add_parser("lab", help="open JupyterLab; its own options are passed on", add_help=False)
    report = commands.add_parser("report", help="the latest result of each comparison")
    progress = commands.add_parser("progress", help="which exercises you have passed, and your gains")
    classroom = commands.add_parser("classroom", help="a JupyterHub for a class; --close, --rehearse", add_help=False)
    doctor = commands.add_parser("doctor", help="whether this machine has what the workbook needs")
    for command, run in (
        *((up, _up), (status, _status), (down, _down), (reset, _reset), (lab, _lab), (report, _report)),
        *((progress, _progress), (classroom, _classroom), (doctor, _doctor)),
    ):
        command.set_defaults(run=run)
    for command in (up, reset):
        command.add_argument("--scale", type=_scale, help="size of the shop; 1 is 100,000 customers (default)")
    for command in (status, report, progress, doctor):
        command.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument("--servers", action="store_true", help="the servers only")
    up.add_argument("--replicas", type=int, default=0, choices=range(4), help="streaming replicas to start, 0 to 3")
    report.add_argument("--html", metavar="FILE", type=Path, help="write one HTML file with the plots")
    return parser


def _up(arguments: argparse.Namespace) -> int:
    return _start(arguments.scale, replicas=arguments.replicas)


def _start(scale: float | None, *, replicas: int = 0, anew: bool = False) -> int:
    """Start and seed what can be had; `anew`: also what is seeded."""
    from workshop.servers import lifecycle
    from workshop.shop import seed

    servers = lifecycle.up(replicas=replicas, do_without=True)
    lifecycle.keep()
    if anew:
        from workshop import sandbox

        sandbox.reap(servers)
    seed.ensure(servers, scale, anew=anew)
    _print_state(_state_of(servers))
    for reason in servers.lacking.values():
        print(f"workshop: {reason}", file=sys.stderr)
    return 1 if servers.lacking else 0


def _state_of(servers: Servers) -> dict:
    """What `status --json` prints."""
    from workshop.shop import seed

    def describe(service: Service | None, reason: str | None = None) -> dict:
        known = {key: getattr(service, key, None) for key in ("version", "source", "address")}
        return {"ready": service is not None, **known, "reason": reason}

    found = servers.services
    services: dict = {
        name: describe(found.get(name), servers.lacking.get(name)) for name in ("postgres", "redis", "mongo")
    }
    services["replicas"] = [describe(replica) for replica in servers.replica_services]
    return {"services": services, "data": seed.status(found.get("postgres"), found.get("mongo"))}


def _print_state(state: dict) -> None:
    services = dict(state["services"])
    services |= {f"replica {number}": replica for number, replica in enumerate(services.pop("replicas"), 1)}
    for name, service in services.items():
        where = f"ready, {service['version']} at {service['address']}, from {service['source']}"
        print(f"{name:<10} {where if service['ready'] else service['reason'] or 'not running'}")
    data = state["data"]
    rows = ", ".join(f"{count:,} {table}" for table, count in data["rows"].items())
    print(f"{'data':<10} " + (f"scale {data['scale']:g}: {rows}" if rows else "not seeded"))


def _status(arguments: argparse.Namespace) -> int:
    from workshop.servers import lifecycle

    state = _state_of(lifecycle.find())
    if arguments.json:
        print(json.dumps(state, indent=2))
    else:
        _print_state(state)
    return 0


def _down(arguments: argparse.Namespace) -> int:
    from workshop.servers import lifecycle

    stopped = lifecycle.down()
    print(f"stopped {', '.join(stopped)}" if stopped else "nothing of the workbook's was running")
    return 0


def _reset(arguments: argparse.Namespace) -> int:
    from workshop.servers import lifecycle
    from workshop.shop import files

    files.check_files()  # before anything is deleted
    lifecycle.remove()
    # On somebody's server the shop is made beside the one that is there, and copies that are open stay as they are.
    return _start(arguments.scale, anew=True)


def _lab(arguments: argparse.Namespace) -> int:
    from workshop import lab

    return lab.run(arguments.jupyter)


def _report(arguments: argparse.Namespace) -> int:
    from workshop import report, results
    from workshop.state import state_dir

    records = results.latest(results.read(state_dir() / results.FILE))
    if arguments.html:
        try:
            report.html(records, arguments.html)
        except OSError as error:
            raise WorkshopError(f"{arguments.html} cannot be written ({error.strerror}): name another file") from None
        print(f"wrote {arguments.html}")
    elif arguments.json:
        print(report.as_json(records))
    else:
        print(report.table(records))
    return 0


def _progress(arguments: argparse.Namespace) -> int:
    from workshop import passed, report, results
    from workshop.state import state_dir

    done = passed.best(results.read(state_dir() / passed.FILE))
    records = results.latest(results.read(state_dir() / results.FILE))
    if arguments.json:
        gains = json.loads(report.as_json(records))
        print(json.dumps({"passed": list(done.values()), "gains": gains}, indent=2, ensure_ascii=False))
    else:
        print(passed.table(done))
        print()
        print(report.table(records))
    return 0


def _classroom(arguments: argparse.Namespace) -> int:
    try:
        from workshop.classroom import command
    except ModuleNotFoundError as error:
        raise WorkshopError(
            f"a class needs the package {error.name}: run `make classroom`, which installs it, in place of this"
        ) from None
    return command.main(arguments.jupyter)


def _doctor(arguments: argparse.Namespace) -> int:
    from workshop import doctor

    findings = doctor.findings(doctor.SERVERS if arguments.servers else None)
    if arguments.json:
        print(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{'OK  ' if finding.ok else 'FAIL'}  {finding.need}: {finding.found or 'not met'}")
            if not finding.ok:
                print(f"      {finding.fix}")
    return 0 if all(finding.ok for finding in findings) else 1


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    parsed, others = parser.parse_known_args(arguments)
    if others and parsed.run not in (_lab, _classroom):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    parsed.jupyter = others
    try:
        return parsed.run(parsed)
    except WorkshopError as error:
        print(f"workshop: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
