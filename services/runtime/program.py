"""A service as a program: settings from the environment, logs, one event loop, clear mistakes.

def main() -> None:
    run("gateway", Settings, serve_until_told)
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from services.runtime import logs
from services.runtime.server import CannotListen
from services.runtime.settings import BadSettings, ServiceSettings, read

S = TypeVar("S", bound=ServiceSettings)


def run(
    name: str,
    settings: type[S],
    serve: Callable[[S], Coroutine[Any, Any, None]],
    *mistakes: type[Exception],
) -> None:
    """Serve until told to stop.

    Args:
        name: of the service, in its logs.
        mistakes: further errors that are the operator's to mend: their text ends the program, as
            that of bad settings and taken ports does.
    """
    told: tuple[type[Exception], ...] = (BadSettings, CannotListen, *mistakes)
    try:
        given = read(settings)
        logs.configure(name, level=given.telemetry.log_level)
        asyncio.run(serve(given))
    except told as error:
        sys.exit(str(error))
