"""Everything around the callers: the fleet, its characters, what breaks, what memory is held.

Against an address, the fleet is somebody else's: nothing is broken, and its memory is not seen.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtest.book import Book
from loadtest.caller import Desk
from loadtest.faults import Wounds, planned
from loadtest.marks import Face, recordings
from loadtest.measures import Measure, Sample, drift
from loadtest.processes import descendants, memory_mb
from loadtest.scenario import Ending, Line, Scenario
from loadtest.wire import LOOPBACK, Wire
from talkingmachines.cli.server import NoFleet, Server, own_fleet
from talkingmachines.client import Client
from talkingmachines.errors import BadInput
from talkingmachines.local import DATA_VARIABLE, Addresses
from talkingmachines.v1 import avatar_pb2

# Beside this package, in a checkout and in the image.
_MODEL = Path(__file__).resolve().parents[1] / "models" / "tiny"
SPEECH, PICTURES = _MODEL / "speech", _MODEL / "avatars"

_MEMORY_SECONDS = 5.0
_FEWEST_MEMORY = 6  # samples of a process that say anything about growth
_MADE = 6  # characters that are made where there are none


@dataclass(frozen=True, slots=True)
class Stage:
    """Ready for callers."""

    desk: Desk
    addresses: Addresses | None  # of a fleet of our own
    wires: Mapping[Line, Wire]  # between its parts, where the scenario disturbs them
    loop: asyncio.AbstractEventLoop  # in which calls are held

    async def run(self, scenario: Scenario) -> None:
        """What happens beside the callers, until cancelled; raises when the fleet is gone."""
        if self.addresses is None:
            await asyncio.Event().wait()
            return
        root, book = self.addresses.pid, self.desk.book
        wounds = Wounds(root, self.wires, book)
        async with asyncio.TaskGroup() as beside:
            beside.create_task(_weigh(root, book))
            beside.create_task(_alive(root))
            draw = random.Random(f"victims {scenario.seed}")
            beside.create_task(wounds.suffer(planned(scenario), draw))


@asynccontextmanager
async def stage(scenario: Scenario, server: Server, *, speech: Path) -> AsyncIterator[Stage]:
    """The fleet that is meant, started if none is, with its characters known.

    Raises:
        BadInput: the scenario cannot be done with this fleet.
        NoFleet: one of our own does not start.
        TalkingMachinesError: it does not answer.
    """
    check(scenario, server)
    sounds = await asyncio.to_thread(recordings, speech)
    async with AsyncExitStack() as stack:
        addresses = None
        wires, ports = await _wires(scenario, stack)
        if server.address is None:
            addresses = await stack.enter_async_context(_own(scenario, wires, ports))
        address = server.address or (addresses.address if addresses else "")
        faces = await stack.enter_async_context(_faces(server, address))
        loop = asyncio.get_running_loop()
        book = Book(loop.time)
        host = _host(address)
        desk = Desk(book, server.client, address, host, faces, sounds)
        await stack.enter_async_context(desk.stack)
        yield Stage(desk, addresses, wires, loop)


def check(scenario: Scenario, server: Server) -> None:
    """What can be known beforehand.

    Raises:
        BadInput: this scenario needs a fleet of its own, or callers that reach it in the clear.
    """
    if server.address is None:
        return
    if scenario.faults is not None:
        expected = "none: only a fleet that the test starts itself is hurt"
        raise BadInput("server", got=server.address, expected=expected)
    wired = any(one.network or one.endings.get(Ending.VANISH) for one in scenario.callers)
    secure = server.tls or server.authorities or server.certificate
    if wired and (secure or _host(server.address) is None):
        expected = "host:port in the clear, for callers whose network fails"
        raise BadInput("server", got=server.address, expected=expected)


def _host(address: str) -> tuple[str, int] | None:
    """Host and port, where an address is no more than that."""
    host, _, port = address.rpartition(":")
    return (host, int(port)) if host and ":" not in host and port.isdigit() else None


async def _wires(
    scenario: Scenario, stack: AsyncExitStack
) -> tuple[dict[Line, Wire], dict[Line, int]]:
    """Lines that are to be disturbed, and the ports on which what they lead to must listen."""
    ports = {line: _free_port() for line in scenario.lines}
    wires = {line: Wire((LOOPBACK, port)) for line, port in ports.items()}
    for wire in wires.values():
        await stack.enter_async_context(wire)
    return wires, ports


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as held:
        return int(held.getsockname()[1])


@asynccontextmanager
async def _own(
    scenario: Scenario, wires: Mapping[Line, Wire], ports: Mapping[Line, int]
) -> AsyncIterator[Addresses]:
    """A fleet for this run alone, with a data folder of its own."""
    wishes = scenario.fleet
    with tempfile.TemporaryDirectory(prefix="tm-load-") as folder:
        variables = {DATA_VARIABLE: str(Path(folder) / "data")}
        for line, wire in wires.items():
            variables[f"TM_LOCAL_{line.upper()}_PORT"] = str(ports[line])
            variables[f"TM_LOCAL_{line.upper()}_VIA"] = wire.address
        groups: Mapping[str, Mapping[str, str]] = {
            "TM_LOCAL_": wishes.local,
            "TM_GATEWAY_": wishes.gateway,
            "TM_BRIDGE_": wishes.bridge,
        }
        for prefix, given in groups.items():
            variables |= {f"{prefix}{name.upper()}": value for name, value in given.items()}
        async with own_fleet(converse=scenario.converses, variables=variables) as addresses:
            yield addresses


@asynccontextmanager
async def _faces(server: Server, address: str) -> AsyncIterator[list[Face]]:
    """Those who are called: the fleet's own characters; where there are none, some of ours."""
    async with server.client(address) as client:
        found = [avatar async for avatar in client.avatars.list(with_portraits=True)]
        made = [] if found else await _made(client)
        try:
            yield [Face.of(one.avatar_id, one.portrait) for one in [*found, *made]]
        finally:
            for one in made:
                await client.avatars.delete(one.avatar_id)


async def _made(client: Client) -> list[avatar_pb2.Avatar]:
    pictures = sorted(PICTURES.glob("*.png"))[:_MADE]
    if not pictures:
        raise NoFleet(f"the fleet has no characters, and there are no pictures in {PICTURES}")
    return [await client.avatars.create(picture, f"load {picture.stem}") for picture in pictures]


async def _alive(root: int) -> None:
    """Wait until a fleet of our own is no more.

    Raises:
        NoFleet: then.
    """
    while True:
        await asyncio.sleep(1.0)
        if root not in await asyncio.to_thread(descendants, root):
            raise NoFleet("the fleet has ended")


async def _weigh(root: int, book: Book) -> None:
    """Look at every process' memory, again and again."""
    while True:
        weights = await asyncio.to_thread(memory_mb, root)
        own = await asyncio.to_thread(memory_mb, os.getpid())
        weights |= {
            f"callers {os.getpid()}": own[name] for name in own if name.endswith(f" {os.getpid()}")
        }
        for name, megabytes in weights.items():
            book.memory.setdefault(name, []).append((round(book.now, 1), round(megabytes, 2)))
        await asyncio.sleep(_MEMORY_SECONDS)


def memory_samples(book: Book) -> list[Sample]:
    """What the memory of each process says about the whole run."""
    found = []
    for series in book.memory.values():
        end = series[-1][0]
        found.append(Sample(Measure.MEMORY_PEAK, end, max(held for _, held in series)))
        # The first fifth fills caches. Who came late or went early has its own time.
        grown = drift(series, skip=1) if len(series) >= _FEWEST_MEMORY else None
        if grown is not None:
            found.append(Sample(Measure.MEMORY_GROWTH, end, grown))
    return found
