"""One connection to a Realtime server: opened, set up, written to and read.

On the path: dialogue → **link** → WebSocket. Sending never waits; what cannot be written in time
ends the link. Whoever loses one makes another.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp

from services.llm_bridge.persona import Persona
from services.llm_bridge.realtime import protocol
from services.llm_bridge.realtime.protocol import Dialect, Message
from services.llm_bridge.settings import Realtime
from talkingmachines.errors import (
    BadInput,
    NoCapacity,
    PermissionDenied,
    TalkingMachinesError,
    TimedOut,
    Unavailable,
)

_HEARTBEAT_SECONDS = 20.0
_MOST_WAITING = 2_000  # messages that a server does not take: half a minute of voice
_MOST_BYTES = 16 * 1024 * 1024  # of one event


class Link:
    """A connection that stands, with the session set up."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, dialect: Dialect) -> None:
        self.dialect = dialect
        self._socket = socket
        self._waiting: asyncio.Queue[Message] = asyncio.Queue(_MOST_WAITING)

    def send(self, *messages: Message) -> None:
        """Send these, in order.

        Raises:
            Unavailable: the server has not read for long.
        """
        try:
            for message in messages:
                self._waiting.put_nowait(message)
        except asyncio.QueueFull:
            raise Unavailable("the speech model does not read", retry_after=1.0) from None

    async def events(self) -> AsyncIterator[Message]:
        """What the server sends, until it ends the connection."""
        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.TEXT and (event := protocol.read(message.data)):
                yield event

    async def write(self) -> None:
        """Send what waits, for ever."""
        with suppress(ConnectionError):  # reading tells that it is over
            while True:
                await self._socket.send_json(await self._waiting.get())

    async def until(self, kind: str) -> Message:
        """The next event of a kind, while the link is being set up.

        Raises:
            TalkingMachinesError: the server sent an error, or ended the connection.
        """
        async for event in self.events():
            if event["type"] == kind:
                return event
            if event["type"] == "error":
                raise refusal(event.get("error"))
        raise Unavailable("the speech model ended the connection", retry_after=1.0)


@asynccontextmanager
async def connected(
    http: aiohttp.ClientSession, settings: Realtime, persona: Persona
) -> AsyncIterator[Link]:
    """A connection whose session is this character's; nothing was said in it yet.

    Raises:
        TalkingMachinesError: why there is none.
    """
    key = settings.key.get_secret_value() if settings.key else None
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    patience = asyncio.timeout(settings.connect_seconds)
    try:
        async with (
            patience,
            http.ws_connect(
                settings.url,
                headers=headers,
                heartbeat=_HEARTBEAT_SECONDS,
                max_msg_size=_MOST_BYTES,
            ) as socket,
        ):
            link = Link(socket, Dialect.RELEASED)
            link.dialect = Dialect.of(await link.until("session.created"))
            await socket.send_json(protocol.session_update(link.dialect, persona, settings))
            await link.until("session.updated")
            patience.reschedule(None)
            yield link
    except TimeoutError:
        if not patience.expired():
            raise
        raise TimedOut("connecting to the speech model", limit=settings.connect_seconds) from None
    except aiohttp.WSServerHandshakeError as error:
        raise _status_refusal(error) from error
    except (aiohttp.ClientError, ConnectionError) as error:
        what = f"the speech model cannot be reached: {type(error).__name__}"
        raise Unavailable(what, retry_after=1.0) from error


def refusal(error: object) -> TalkingMachinesError:
    """What an `error` event means."""
    known = error if isinstance(error, dict) else {}
    code, kind = known.get("code"), known.get("type")
    message = str(known.get("message", "no reason given"))[:200]
    if "rate_limit" in f"{code} {kind}" or code == "insufficient_quota":
        seconds = protocol.retry_seconds(known) or 1.0
        return NoCapacity("an answer of the speech model", retry_after=seconds)
    if kind == "invalid_request_error":
        field = str(known.get("param") or code or "request")
        return BadInput(field, got="what we sent", expected=message)
    return Unavailable(f"the speech model: {message}", retry_after=1.0)


def _status_refusal(error: aiohttp.WSServerHandshakeError) -> TalkingMachinesError:
    match error.status:
        case 401 | 403:
            return PermissionDenied("the speech model refuses our key")
        case 429:
            said = error.headers.get("retry-after", "") if error.headers else ""
            seconds = float(said) if said.replace(".", "", 1).isdigit() else 5.0
            return NoCapacity("a connection to the speech model", retry_after=seconds)
        case status:
            return Unavailable(f"the speech model answered {status}", retry_after=1.0)
