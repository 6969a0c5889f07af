"""`talkingmachines`: the command line. Options and texts; what commands do is in their own files.

Exit codes: 0 done; 1 failed; 2 wrong usage or bad input; 3 nobody answers there; 4 not allowed;
5 the fleet is full; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.text import Text

from talkingmachines.cli import avatars as avatars_command
from talkingmachines.cli import call as call_command
from talkingmachines.cli import cluster as cluster_command
from talkingmachines.cli import converse as converse_command
from talkingmachines.cli import demo as demo_command
from talkingmachines.cli import doctor as doctor_command
from talkingmachines.cli import models as models_command
from talkingmachines.cli import status as status_command
from talkingmachines.cli import talk as talk_command
from talkingmachines.cli.cluster.reading import Place
from talkingmachines.cli.console import ERRORS
from talkingmachines.cli.server import Server, serve_command, serve_environment
from talkingmachines.errors import (
    BadInput,
    NoCapacity,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    TalkingMachinesError,
    TimedOut,
    Unauthenticated,
    Unavailable,
)
from talkingmachines.local import DATA_VARIABLE, DEFAULT_PORT

T = TypeVar("T")

app = typer.Typer(
    help="Live calls with generated characters.", no_args_is_help=True, add_completion=False
)
avatars = typer.Typer(help="Characters.", no_args_is_help=True)
app.add_typer(avatars, name="avatars")
models = typer.Typer(help="Public weights.", no_args_is_help=True)
app.add_typer(models, name="models")


Address = Annotated[
    str | None,
    typer.Option(
        "--server",
        envvar="TALKINGMACHINES_SERVER",
        help="host:port of a gateway; without it, the fleet of this machine.",
    ),
]
Key = Annotated[
    str | None, typer.Option(envvar="TALKINGMACHINES_KEY", help="An API key or a signed token.")
]
UsesTls = Annotated[bool, typer.Option("--tls", help="Secure the connection.")]
Authorities = Annotated[
    Path | None, typer.Option("--tls-ca", help="PEM of whom to believe; implies --tls.")
]
InCluster = Annotated[bool, typer.Option("--cluster", help="Of a release in Kubernetes.")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="With --cluster.")]
Release = Annotated[str | None, typer.Option(help="With --cluster, where there are several.")]
Context = Annotated[str | None, typer.Option(help="Of the kubeconfig, with --cluster.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: JSON on standard output.")]


@app.command()
def talk(
    speech: Annotated[Path, typer.Argument(help="A sound file.")],
    out: Annotated[Path, typer.Option(help="The film to write.")] = Path("talk.mp4"),
    avatar: Annotated[
        str | None, typer.Option(help="A character's id or name, or a picture file.")
    ] = None,
    converse: Annotated[
        bool, typer.Option("--converse", help="Ask it instead, and film how it answers.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="The same seed, the same film.")] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait when the fleet is full.")] = 60.0,
    server: Address = None,
    key: Key = None,
    tls: UsesTls = False,
    tls_ca: Authorities = None,
    as_json: AsJson = False,
) -> None:
    """Let a character say a recording, or answer it, and keep the film."""
    where = Server(server, key, tls_ca, tls=tls)
    wish = talk_command.Wish(speech, out, avatar, seed, wait)
    command = converse_command.converse if converse else talk_command.talk
    _run(command(where, wish, as_json=as_json))


@app.command()
def call(
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    as_json: AsJson = False,
) -> None:
    """Call a character of this machine's fleet, face to face, in a browser."""
    _run(call_command.call(opens=browser, as_json=as_json))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The film to write.")] = Path("demo.mp4"),
    sheet: Annotated[Path, typer.Option(help="Pictures of it, as PNG.")] = Path("demo.png"),
    server: Address = None,
    key: Key = None,
    tls: UsesTls = False,
    tls_ca: Authorities = None,
    as_json: AsJson = False,
) -> None:
    """Let the bundled characters say the bundled recordings, and measure."""
    _run(demo_command.demo(Server(server, key, tls_ca, tls=tls), out, sheet, as_json=as_json))


@avatars.command("list")
def list_avatars(
    server: Address = None,
    key: Key = None,
    tls: UsesTls = False,
    tls_ca: Authorities = None,
    as_json: AsJson = False,
) -> None:
    """Who there is."""
    _run(avatars_command.list_(Server(server, key, tls_ca, tls=tls), as_json=as_json))


@avatars.command("create")
def create_avatar(
    picture: Annotated[Path, typer.Argument(help="A JPEG, PNG or WebP file.")],
    name: Annotated[str, typer.Option(help="What people call the character.")],
    prompt: Annotated[str, typer.Option(help="What it looks like and does.")] = "",
    listening_prompt: Annotated[
        str, typer.Option(help="The same while it listens; empty: as while it speaks.")
    ] = "",
    server: Address = None,
    key: Key = None,
    tls: UsesTls = False,
    tls_ca: Authorities = None,
    as_json: AsJson = False,
) -> None:
    """Make a character from a picture."""
    where = Server(server, key, tls_ca, tls=tls)
    prompts = (prompt, listening_prompt)
    _run(avatars_command.create(where, picture, name, prompts, as_json=as_json))


@avatars.command("delete")
def delete_avatar(
    avatar_id: str,
    server: Address = None,
    key: Key = None,
    tls: UsesTls = False,
    tls_ca: Authorities = None,
) -> None:
    """Forget a character."""
    _run(avatars_command.delete(Server(server, key, tls_ca, tls=tls), avatar_id))


@models.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Known public weights: licences, size, what they do here."""
    models_command.list_(as_json=as_json)


# What follows is read by the services' own parser, which knows every name.
_PASSED_ON = {"ignore_unknown_options": True, "help_option_names": []}
PassedOn = Annotated[list[str] | None, typer.Argument()]


@models.command("verify", context_settings=_PASSED_ON)
def verify_model(arguments: PassedOn = None) -> None:
    """Whether a download is whole, and what to do where it is not."""
    _run_models("verify", arguments or [])


@models.command("plan", context_settings=_PASSED_ON)
def plan_model(arguments: PassedOn = None) -> None:
    """Memory, time and sessions on a GPU."""
    _run_models("plan", arguments or [])


@models.command("convert", context_settings=_PASSED_ON)
def convert_model(arguments: PassedOn = None) -> None:
    """Write weights as our own sharded safetensors: float32, bf16 or fp8."""
    _run_models("convert", arguments or [])


@app.command()
def serve(
    model: Annotated[Path | None, typer.Option(help="A model folder.")] = None,
    data: Annotated[Path | None, typer.Option(help="Where characters and logs are kept.")] = None,
    host: Annotated[
        str, typer.Option(envvar="TM_LOCAL_HOST", help="Where callers are let in.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(envvar="TM_LOCAL_PORT", help="0: any free one.")
    ] = DEFAULT_PORT,
    sessions: Annotated[int, typer.Option(envvar="TM_LOCAL_SESSIONS", min=1, help="At once.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Start the whole fleet on this machine, until Ctrl-C."""
    try:
        environment = serve_environment()
    except TalkingMachinesError as error:
        _fail(error)
    told = {
        "TM_LOCAL_MODEL": str(model.resolve()) if model else None,
        DATA_VARIABLE: str(data.resolve()) if data else None,
        "TM_LOCAL_HOST": host,
        "TM_LOCAL_PORT": str(port),
        "TM_LOCAL_SESSIONS": str(sessions),
    }
    environment |= {name: value for name, value in told.items() if value is not None}
    command = serve_command(*(["--json"] if as_json else []))
    sys.stdout.flush()
    os.execve(command[0], command, environment)  # noqa: S606  this process becomes the fleet


@app.command()
def status(
    metrics: Annotated[
        list[str] | None,
        typer.Option(help="host:port of a /metrics page; without it, the fleet of this machine."),
    ] = None,
    watch: Annotated[bool, typer.Option(help="Show it anew every second.")] = False,
    cluster: InCluster = False,
    namespace: Namespace = None,
    release: Release = None,
    context: Context = None,
    as_json: AsJson = False,
) -> None:
    """How the fleet is doing: replicas, sessions, capacity, time by stage."""
    if cluster:
        _run(cluster_command.status(Place(namespace, release, context), as_json=as_json))
        return
    _run(status_command.status(metrics or [], watch=watch, as_json=as_json))


@app.command()
def doctor(
    cluster: InCluster = False,
    namespace: Namespace = None,
    release: Release = None,
    context: Context = None,
    as_json: AsJson = False,
) -> None:
    """Look at this machine, or at a release, and say what to do where something is missing."""
    if cluster:
        findings = _run(cluster_command.examine(Place(namespace, release, context)))
    else:
        findings = doctor_command.examine()
    doctor_command.show(findings, as_json=as_json)
    raise typer.Exit(1 if any(found.failed for found in findings) else 0)


def _run_models(command: str, arguments: list[str]) -> NoReturn:
    try:
        code = models_command.run(command, arguments)
    except TalkingMachinesError as error:
        _fail(error)
    raise typer.Exit(code)


def _run(command: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(command)
    except TalkingMachinesError as error:
        _fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _fail(error: TalkingMachinesError) -> NoReturn:
    told = Text.assemble((type(error).__name__, "red"), f": {error}")
    ERRORS.print(told, highlight=False)
    raise typer.Exit(_code(error)) from None


def _code(error: TalkingMachinesError) -> int:
    match error:
        case BadInput() | NotFound():
            return 2
        case Unavailable() | TimedOut():
            return 3
        case Unauthenticated() | PermissionDenied():
            return 4
        case NoCapacity() | QuotaExceeded():
            return 5
        case _:
            return 1


def main() -> None:
    app()


if __name__ == "__main__":
    main()
