"""`python -m services.local`: the whole fleet on this machine, until Ctrl-C or SIGTERM.

Says `ready` with the addresses on standard output; with `--json` as one line for programs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Coroutine
from dataclasses import asdict
from typing import Any

from services.local.errors import CannotStart
from services.local.fleet import fleet
from services.local.settings import Settings
from services.runtime import logs
from services.runtime.drain import Drain
from services.runtime.settings import BadSettings, read
from talkingmachines.local import Addresses


async def run(settings: Settings, *, as_json: bool) -> None:
    """Start the fleet and hold it until a signal, or until it cannot go on."""
    drain = Drain(0.0)
    with drain.on_signals():
        held = asyncio.create_task(_hold(settings, as_json=as_json))
        await _first(held, drain.started.wait())
        if not held.done():
            held.cancel()
            _say("stopping", as_json=as_json)
        await asyncio.wait({held})
    if not held.cancelled():
        held.result()


async def _hold(settings: Settings, *, as_json: bool) -> None:
    async with fleet(settings) as running:
        _tell(running.addresses, settings, as_json=as_json)
        await running.failed()


async def _first(task: asyncio.Task[None], other: Coroutine[Any, Any, Any]) -> None:
    """Wait until either is over."""
    beside = asyncio.create_task(other)
    await asyncio.wait({task, beside}, return_when=asyncio.FIRST_COMPLETED)
    beside.cancel()


def _tell(addresses: Addresses, settings: Settings, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"event": "ready", **asdict(addresses)}), flush=True)
        return
    characters = ", ".join(addresses.characters) or "none"
    lines = [
        f"ready after {addresses.ready_seconds:.1f} s",
        f"  gRPC        {addresses.address}",
        f"  page        {addresses.page}",
        f"  metrics     http://{addresses.metrics['gateway'][0]}/metrics",
        f"  characters  {characters}",
        f"  converses   {f'no: {addresses.advice}' if addresses.advice else 'yes'}",
        f"  logs        {settings.data / 'logs'}",
        f"call one:     {addresses.page} in a browser",
        f"talk to one:  talkingmachines talk speech.wav --server {addresses.address}",
        "Ctrl-C stops it",
    ]
    print("\n".join(lines), flush=True)


def _say(event: str, *, as_json: bool) -> None:
    print(json.dumps({"event": event}) if as_json else event, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m services.local", description=__doc__)
    parser.add_argument("--json", action="store_true", help="tell programs, one line per event")
    options = parser.parse_args()
    try:
        settings = read(Settings)
        logs.configure("local", level="warning")
        asyncio.run(run(settings, as_json=options.json))
    except (BadSettings, CannotStart) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
