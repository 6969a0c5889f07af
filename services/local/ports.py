"""Ports of this machine: found, and checked before anything is started."""

from __future__ import annotations

import errno
import random
import socket
from contextlib import ExitStack

from services.local.errors import CannotStart

_LOOPBACK = "127.0.0.1"
_TRIES = 100
_FIRST, _LAST = 20_000, 32_000  # below those that systems give out by themselves


def free_port() -> int:
    """A free port. Who is quick can still take it before it is used."""
    with socket.create_server((_LOOPBACK, 0)) as held:
        return int(held.getsockname()[1])


def free_port_like(wished: int) -> int:
    """The port wished for, when it is free; else any that is."""
    try:
        socket.create_server((_LOOPBACK, wished)).close()
    except OSError:
        return free_port()
    return wished


def free_block(size: int) -> int:
    """The first of so many free ports in a row.

    Raises:
        CannotStart: hardly any port is free.
    """
    for _ in range(_TRIES):
        first = random.randrange(_FIRST, _LAST, size)
        with ExitStack() as held:
            try:
                for port in range(first, first + size):
                    held.enter_context(socket.create_server((_LOOPBACK, port)))
            except OSError:
                continue
            return first
    raise CannotStart(f"no {size} free ports in a row between {_FIRST} and {_LAST}")


def check_free(host: str, port: int, *, what: str, setting: str) -> None:
    """Whether `what` could listen there.

    Raises:
        CannotStart: it could not; says why, and which setting to change.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host.strip("[]"), port), family=family).close()
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "it is taken; is a fleet running already?" if taken else f"{error.strerror}"
        raise CannotStart(
            f"{what} cannot listen on {host}:{port}: {why} (another port: {setting})"
        ) from None
