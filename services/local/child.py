"""A process of the fleet: started, started again when it dies, ended with the fleet.

Ended by SIGTERM when left, by SIGKILL when it does not go; and by the kernel when this process dies
without leaving (Linux).
"""

from __future__ import annotations

import asyncio
import ctypes
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from services.local.errors import CannotStart

_log = structlog.stdlib.get_logger(__name__)

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_LAST_LINES = 12
_MOST_DEATHS, _WITHIN_SECONDS = 3, 30.0  # beyond this, starting it again does not help
_PAUSE_SECONDS = 0.2


class Child:
    """Runs while entered.

    Args:
        command: the program and its arguments.
        log: file that gets what it says.
        grace_seconds: between SIGTERM and SIGKILL when it is to end.
        only_after: the exit code after which it is started again; None: after any.

    Raises:
        CannotStart: on entering, when the program is not there.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        grace_seconds: float,
        environment: Mapping[str, str] | None = None,
        only_after: int | None = None,
    ) -> None:
        self.name = name
        self._command = command
        self._log = log
        self._grace_seconds = grace_seconds
        self._environment = environment
        self._only_after = only_after
        self._deaths: deque[float] = deque(maxlen=_MOST_DEATHS)

    async def __aenter__(self) -> Self:
        self._log.write_bytes(b"")
        self._process = await self._start()
        self._keeping = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._keeping.cancel()
        await asyncio.wait({self._keeping})
        if self._process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(self._grace_seconds):
                await self._process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def done(self) -> None:
        """Wait for a child that ends by itself.

        Raises:
            CannotStart: it ended badly; says what it said last.
        """
        code = await self._process.wait()
        if code:
            raise CannotStart(f"{self.name} has ended with code {code}:\n{last_words(self._log)}")

    async def failed(self) -> None:
        """Wait until it has died so often that it is given up.

        Raises:
            CannotStart: then; says what it said last.
        """
        await asyncio.shield(self._keeping)

    async def _start(self) -> asyncio.subprocess.Process:
        libc = ctypes.CDLL(None)
        with self._log.open("ab") as said:
            try:
                return await asyncio.create_subprocess_exec(
                    *self._command,
                    env=self._environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    # Ctrl-C in a terminal reaches this process alone, which ends its children.
                    start_new_session=True,
                    preexec_fn=lambda: libc.prctl(_DEATH_SIGNAL, signal.SIGTERM),
                )
            except OSError as error:
                raise CannotStart(f"{self.name} cannot be started: {error}") from error

    async def _keep(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            code = await self._process.wait()
            self._deaths.append(clock())
            often = len(self._deaths) == _MOST_DEATHS
            often = often and self._deaths[-1] - self._deaths[0] < _WITHIN_SECONDS
            if often or self._only_after not in (None, code):
                said = last_words(self._log)
                raise CannotStart(f"{self.name} has ended with code {code}:\n{said}")
            _log.warning("a process died and is started again", name=self.name, code=code)
            await asyncio.sleep(_PAUSE_SECONDS)
            self._process = await self._start()


def last_words(log: Path) -> str:
    """The end of a log, for an error; an empty line begins what matters."""
    text = log.read_text(errors="replace").rpartition("\n\n")[2] if log.exists() else ""
    lines = text.splitlines()
    return "\n".join(f"  {line[:300]}" for line in lines[-_LAST_LINES:]) or "  (it said nothing)"
