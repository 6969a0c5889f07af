"""`python -m loadtest SCENARIO`: callers on a fleet, faults in it, a report, and an exit code.

Against a fleet of its own on this machine, or against `--server`. The scenario is a TOML file, or
the name of one that comes along.

Exit codes: 0 all objectives met, 1 some not, 2 wrong usage or scenario, 3 nobody answers,
4 stopped before its end.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from loadtest.book import Book
from loadtest.measures import Measure
from loadtest.report import Report, summary
from loadtest.scenario import BadScenario, Scenario, names, read
from loadtest.stage import SPEECH
from loadtest.swarm import Interrupted, run
from talkingmachines.cli.server import Server
from talkingmachines.errors import BadInput, TalkingMachinesError

_MET, _MISSED, _USAGE, _NOBODY, _STOPPED = range(5)
_TELL_SECONDS = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = options_of(arguments)
    server = Server(
        options.server,
        key=os.environ.get("TALKINGMACHINES_KEY"),
        authorities=options.authorities,
        tls=options.tls,
    )
    try:
        scenario = read(options.scenario)
        scenario = scenario.resized(scale=options.scale, seconds=options.seconds)
        scenario = scenario.model_copy(update={"seed": _seed(scenario, options.seed)})
        progress = _silent if options.quiet else _progress(scenario)
        if server.address is None:
            print("starting a fleet", file=sys.stderr)
        book, finished = run(
            scenario, server, speech=options.speech, progress=progress, web_port=options.web
        )
    except (BadScenario, BadInput) as error:
        print(error, file=sys.stderr)
        return _USAGE
    except Interrupted as error:
        print(error, file=sys.stderr)
        return _STOPPED
    except TalkingMachinesError as error:
        print(error, file=sys.stderr)
        return _NOBODY
    command = shlex.join(["python", "-m", "loadtest", *_telling(arguments)])
    report = Report(scenario, book, finished, command)
    _write(report, options.out)
    print(json.dumps(report.to_dict()) if options.json else summary(report))
    if not finished:
        return _STOPPED
    return _MET if report.met else _MISSED


def options_of(arguments: Sequence[str]) -> argparse.Namespace:
    """What a command line means; ends the program where it means nothing."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("scenario", help=f"a TOML file, or one of {', '.join(names())}")
    add("--scale", type=_above_0, default=1.0, help="so many times the callers")
    add("--seconds", type=_above_0, help="all phases shortened, or stretched, to so long together")
    add("--seed", type=int, help="instead of the scenario's own")
    add("--server", help="host:port of gateways; not given: a fleet of its own on this machine")
    add("--tls", action="store_true", help="TLS, with the authorities that gRPC knows")
    add("--authorities", type=Path, help="PEM file of whom to believe; means TLS")
    add("--speech", type=Path, default=SPEECH, help="folder with WAV files that callers speak")
    add("--out", type=Path, help="folder for report.json and report.html")
    add("--web", type=int, metavar="PORT", help="show Locust's page there, on this machine alone")
    add("--json", action="store_true", help="the whole report on standard output")
    add("--quiet", action="store_true", help="no progress")
    parser.epilog = "An API key is in TALKINGMACHINES_KEY, if one is needed."
    return parser.parse_args(arguments)


def _telling(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments without where the report went, which changes nothing in it."""
    given = iter(arguments)
    for argument in given:
        if argument == "--out":
            next(given)
        elif not argument.startswith("--out="):
            yield argument


def _seed(scenario: Scenario, given: int | None) -> int:
    """Pods of one Job differ, else their callers could not be told from each other."""
    pod = int(os.environ.get("JOB_COMPLETION_INDEX", "0"))
    return (scenario.seed if given is None else given) + pod


def _above_0(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return number


def _write(report: Report, out: Path | None) -> None:
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    (out / "report.html").write_text(report.to_html())


def _silent(_: Book) -> None:
    """Tells nothing."""


def _progress(scenario: Scenario) -> Callable[[Book], None]:
    """A line now and then."""
    told = -_TELL_SECONDS

    def tell(book: Book) -> None:
        nonlocal told
        if book.now - told < _TELL_SECONDS:
            return
        told = book.now
        there = sum(call.ended is None for call in book.calls)
        stalls = sum(sample.measure is Measure.STALLS for sample in book.samples)
        print(
            f"{book.now:5.0f} of {scenario.seconds:.0f} s, {scenario.phase_at(book.now)}: "
            f"{len(book.calls)} calls, {there} there, {stalls} stalls, "
            f"{len(book.injuries)} faults",
            file=sys.stderr,
        )

    return tell


if __name__ == "__main__":
    sys.exit(main())
