"""Which fleet a command talks to: the one it is told, the one that runs here, or one of its own.

Services are not part of this package: a fleet of one's own is a process that runs them, and they
are found where this package is, in a checkout.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from talkingmachines.client import Client, Tls
from talkingmachines.errors import TalkingMachinesError
from talkingmachines.local import Addresses, data_folder, running_fleet

ROOT = Path(__file__).resolve().parents[2]

_STOP_SECONDS = 60.0


class NoFleet(TalkingMachinesError):
    """A fleet of one's own did not start."""


@dataclass(frozen=True, slots=True)
class Server:
    """What a command was told of the server."""

    address: str | None = None  # None: this machine's
    key: str | None = None
    authorities: Path | None = None
    certificate: Path | None = None
    certificate_key: Path | None = None
    tls: bool = False

    def client(self, address: str) -> Client:
        secure = self.tls or self.authorities or self.certificate
        tls = Tls(self.authorities, self.certificate, self.certificate_key) if secure else None
        return Client(address, key=self.key, tls=tls)


def serve_command(*options: str) -> list[str]:
    """How to start a fleet here."""
    return [sys.executable, "-m", "services.local", *options]


def serve_environment() -> dict[str, str]:
    """Ours, in which services are found.

    Raises:
        NoFleet: there are none here.
    """
    if not (ROOT / "services" / "local").is_dir():
        raise NoFleet(
            "no server was given, and this installation has no services to start one: "
            "give --server, or work in a checkout"
        )
    known = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(ROOT), *([known] if known else [])])
    return os.environ | {"PYTHONPATH": path}


@asynccontextmanager
async def connected(
    server: Server, *, starting: Callable[[], None], converse: bool = False
) -> AsyncIterator[Client]:
    """A client of the server that is meant; one is started when there is none.

    Args:
        starting: called when a fleet is about to be started, which takes a while.
        converse: whether that fleet must hold conversations; otherwise it starts without.

    Raises:
        NoFleet: it does not start; says why.
    """
    running = running_fleet(data_folder())
    if server.address is not None or running is not None:
        address = server.address or (running.address if running else "")
        async with server.client(address) as client:
            yield client
        return
    starting()
    async with (
        own_fleet(converse=converse) as addresses,
        server.client(addresses.address) as client,
    ):
        yield client


@asynccontextmanager
async def own_fleet(
    *, converse: bool, variables: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[Addresses]:
    """A fleet that lasts as long as the command.

    Args:
        variables: of its environment, over those that there are.

    Raises:
        NoFleet: it does not start; says why.
    """
    process = await asyncio.create_subprocess_exec(
        *serve_command("--json"),
        env=serve_environment()
        | {"TM_LOCAL_PORT": "0", "TM_LOCAL_CONVERSE": str(converse).lower()}
        | dict(variables),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,  # Ctrl-C reaches us, and we stop it
    )
    try:
        yield await _ready(process)
    finally:
        await _stop(process)


async def _ready(process: Process) -> Addresses:
    assert process.stdout is not None
    assert process.stderr is not None
    async for line in process.stdout:
        if b'"ready"' in line:
            return Addresses.from_json(line.decode())
    said = (await process.stderr.read()).decode(errors="replace").strip()
    raise NoFleet(f"the fleet did not start: {said}")


async def _stop(process: Process) -> None:
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.communicate()
    except TimeoutError:
        process.kill()
        await process.communicate()
