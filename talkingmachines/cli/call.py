"""`talkingmachines call`: the page of a fleet of this machine, opened in a browser."""

from __future__ import annotations

import asyncio
import json
import webbrowser

from talkingmachines.cli.avatars import starting
from talkingmachines.cli.console import ERRORS, OUT
from talkingmachines.cli.server import NoFleet, own_fleet
from talkingmachines.local import Addresses, data_folder, running_fleet


async def call(*, opens: bool, as_json: bool) -> None:
    """Open the page of the fleet that runs here; of one of its own, until Ctrl-C, if none does.

    Raises:
        NoFleet: there is none that holds conversations, and none can be started.
    """
    running = running_fleet(data_folder())
    if running is not None:
        await _show(running, opens=opens, as_json=as_json)
        return
    starting()
    async with own_fleet(converse=True) as addresses:
        await _show(addresses, opens=opens, as_json=as_json)
        ERRORS.print("Ctrl-C ends the fleet")
        await asyncio.Event().wait()


async def _show(addresses: Addresses, *, opens: bool, as_json: bool) -> None:
    if addresses.advice:
        raise NoFleet(f"the fleet that runs here holds no conversations: {addresses.advice}")
    if as_json:
        print(json.dumps({"page": addresses.page}), flush=True)
    else:
        OUT.print(f"call at {addresses.page}", highlight=False)
    if opens and not await asyncio.to_thread(webbrowser.open, addresses.page):
        ERRORS.print("no browser was found: open that address in one")
