"""The gateway's HTTP: characters, calls over WebRTC, and the page, as `docs/webrtc.md` says.

On the path: browser → **http_api** → browser_call, avatars. Handlers translate; like a servicer's
methods they fit on a postcard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from time import time
from typing import Any
from uuid import uuid4

import structlog
from aiohttp import BodyPartReader, web

from services.gateway import bodies, webrtc
from services.gateway.auth import Caller
from services.gateway.avatars import Avatars
from services.gateway.browser_call import BrowserCall, Desk
from services.gateway.entrance import Entrance
from services.gateway.ice import Ice
from services.gateway.opening import wanted
from services.gateway.page import Page
from services.gateway.webrtc import Peer, Wants
from services.runtime.metrics import WebRtcRole
from talkingmachines.errors import (
    BadInput,
    Internal,
    NotFound,
    PermissionDenied,
    TalkingMachinesError,
    TimedOut,
    Unavailable,
)
from talkingmachines.picture import Codec
from talkingmachines.v1 import avatar_pb2

_log = structlog.stdlib.get_logger(__name__)

_SDP = 64 * 1024  # bytes
_FIELD = 64 * 1024  # of one field of a form that is not the picture
_REQUEST_SECONDS = 30.0
_SAFE = {"GET", "HEAD", "OPTIONS"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Handling = Callable[[web.Request, Caller], Awaitable[web.StreamResponse]]


@dataclass
class HttpApi:
    """Routes and their handlers; `close` ends the calls that are left."""

    entrance: Entrance
    avatars: Avatars
    desk: Desk
    ice: Ice
    codecs: tuple[Codec, ...]
    auth_required: bool
    public: bool  # whether more than this machine can reach us
    page: Page = field(default_factory=Page)
    _calls: dict[str, BrowserCall] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def application(self) -> web.Application:
        app = web.Application(client_max_size=_SDP, middlewares=[self._guarded])
        self.page.add_to(app)
        app.router.add_get("/v1/config", self._config)
        for method, path, handling in self._routes():
            app.router.add_route(method, path, self._entered(handling))
        return app

    async def close(self) -> None:
        """End what still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _routes(self) -> list[tuple[str, str, Handling]]:
        call, whep, whip = "/v1/calls/{call}", "/v1/calls/{call}/whep", "/v1/calls/{call}/whip"
        return [
            ("GET", "/v1/ice", self._servers),
            ("GET", "/v1/avatars", self._list),
            ("POST", "/v1/avatars", self._create),
            ("GET", "/v1/avatars/{avatar}", self._get),
            ("GET", "/v1/avatars/{avatar}/portrait", self._portrait),
            ("DELETE", "/v1/avatars/{avatar}", self._delete),
            ("POST", "/v1/calls", self._open),
            ("PATCH", call, self._trickle),
            ("DELETE", call, self._hang_up),
            ("POST", whep, self._watch),
            ("PATCH", whep + "/{other}", self._trickle_viewer),
            ("DELETE", whep + "/{other}", self._leave_viewer),
            ("POST", whip, self._lend),
            ("PATCH", whip + "/{other}", self._trickle_microphone),
            ("DELETE", whip + "/{other}", self._leave_microphone),
        ]

    # ---- For every request ----

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer for whatever comes of a request; let in none that another site's page made."""
        try:
            self._check_origin(request)
            async with asyncio.timeout(_REQUEST_SECONDS):
                return await handler(request)
        except web.HTTPRequestEntityTooLarge:
            error: TalkingMachinesError = bodies.TooLarge(
                "body", got="more", expected=f"at most {_SDP} bytes"
            )
        except web.HTTPException as answer:  # of the router: no such path, or not this method
            if answer.status < 400:
                raise
            return _refused(NotFound("resource", request.path), status=answer.status)
        except TimeoutError:
            error = TimedOut("the request", limit=_REQUEST_SECONDS)
        except TalkingMachinesError as known:
            error = known
        except Exception as fault:  # noqa: BLE001  the boundary of a request: it alone fails
            name = uuid4().hex[:12]
            _log.error("fault in a request", fault=name, method=request.method, exc_info=fault)
            error = Internal(f"internal fault {name}")
        return _refused(error)

    def _check_origin(self, request: web.Request) -> None:
        """Browsers say whose page asks. Keys keep strangers out; without keys, this does."""
        origin, host = request.headers.get("Origin"), request.headers.get("Host", "")
        if origin and request.method not in _SAFE and origin.partition("://")[2] != host:
            raise PermissionDenied("pages of other sites may not call")
        # A name that a stranger points at this machine would make their page one of ours.
        if not (self.auth_required or self.public) and not _names_this_machine(host):
            raise PermissionDenied("this gateway is called by the name localhost alone")

    def _entered(self, handling: Handling) -> Handler:
        async def handled(request: web.Request) -> web.StreamResponse:
            shown = request.headers.get("Authorization")
            caller = await self.entrance.enter({"authorization": shown} if shown else {})
            return await handling(request, caller)

        return handled

    # ---- What the page must know ----

    async def _config(self, _: web.Request) -> web.Response:
        calls, limits = self.desk.calls, self.entrance.door.limits.image
        return web.json_response(
            {
                "auth_required": self.auth_required,
                "converse": calls.conversation is not None,
                "resume_seconds": calls.leases.window,
                "codecs": [codec.name for codec in self.codecs],
                "max_queue_seconds": 600,
                "image": {"bytes": limits.bytes, "pixels": limits.pixels},
            }
        )

    async def _servers(self, _: web.Request, caller: Caller) -> web.Response:
        told: bodies.Json = {"ice_servers": self.ice.servers(caller.name, time())}
        if self.ice.turn is not None:
            told["expires"] = self.ice.turn.seconds
        return web.json_response(told, headers={"Cache-Control": "no-store"})

    # ---- Characters ----

    async def _list(self, request: web.Request, caller: Caller) -> web.Response:
        size = request.query.get("page_size", "0")
        if not size.isdecimal() or len(size) > 9:
            raise BadInput("page_size", got=size, expected="a number")
        asked = avatar_pb2.ListAvatarsRequest(
            page_size=int(size), page_token=request.query.get("page_token", "")
        )
        page = await self.avatars.list(caller.tenant, asked)
        avatars = [bodies.character(avatar) for avatar in page.avatars]
        return web.json_response({"avatars": avatars, "next_page_token": page.next_page_token})

    async def _get(self, request: web.Request, caller: Caller) -> web.Response:
        avatar = await self.avatars.get(caller.tenant, request.match_info["avatar"])
        return web.json_response(bodies.character(avatar))

    async def _portrait(self, request: web.Request, caller: Caller) -> web.Response:
        avatar = await self.avatars.get(caller.tenant, request.match_info["avatar"])
        headers = {"Cache-Control": "private, max-age=3600"}
        return web.Response(body=avatar.portrait, content_type="image/jpeg", headers=headers)

    async def _create(self, request: web.Request, caller: Caller) -> web.Response:
        limits = caller.limits
        form = await _form(request, most=limits.image.bytes)
        image = form.pop("image", b"")
        text = {name: _text(value, at=name) for name, value in form.items()}
        asked = avatar_pb2.CreateAvatarRequest(
            image=image,
            display_name=text.get("display_name", ""),
            prompt=text.get("prompt", ""),
            idempotency_key=text.get("idempotency_key", ""),
            persona=avatar_pb2.Persona(
                instructions=text.get("instructions"),
                voice=text.get("voice"),
                greeting=text.get("greeting"),
                language=text.get("language"),
            ),
        )
        avatar = await self.avatars.create(
            caller.tenant, asked, limits=limits.image, most=limits.avatars
        )
        where = {"Location": f"/v1/avatars/{avatar.avatar_id}"}
        return web.json_response(bodies.character(avatar), status=201, headers=where)

    async def _delete(self, request: web.Request, caller: Caller) -> web.Response:
        await self.avatars.delete(caller.tenant, request.match_info["avatar"])
        return web.Response(status=204)

    # ---- Calls ----

    async def _open(self, request: web.Request, caller: Caller) -> web.Response:
        if self.desk.drain.started.is_set():
            raise Unavailable("this gateway is draining", retry_after=1.0)
        body = bodies.read_body(bodies.CallBody, await _body(request, "application/json"))
        peer = Peer(Wants(webrtc.CALL, sends=True, codecs=self.codecs), self.ice)
        try:
            answer = await peer.answer(body.sdp)
            opening = body.opening(peer.codec or self.codecs[0], self.desk.rates.first)
            want = wanted(opening, converses=self.desk.calls.conversation is not None)
            if not want.resume_token:
                await self.avatars.get(caller.tenant, want.avatar_id)
            await self._take_over(want.resume_token)
        except BaseException:
            await peer.close()
            raise
        call = BrowserCall(self.desk, caller, opening, peer)
        self._calls[call.id] = call
        self._begin(call.run(), lambda: self._calls.pop(call.id))
        where = {"Location": f"/v1/calls/{call.id}"}
        told = {"call": call.id, "sdp": answer}
        return web.json_response(told, status=201, headers=where)

    async def _trickle(self, request: web.Request, caller: Caller) -> web.Response:
        return await _candidates(request, self._call(request, caller).peer)

    async def _hang_up(self, request: web.Request, caller: Caller) -> web.Response:
        self._call(request, caller).hang_up()
        return web.Response(status=204)

    async def _take_over(self, token: bytes) -> None:
        """A client that is back need not wait until its lost connection is noticed."""
        for call in list(self._calls.values()):
            if call.resumed_by(token):
                await call.leave()

    def _call(self, request: web.Request, caller: Caller) -> BrowserCall:
        name = request.match_info["call"]
        call = self._calls.get(name)
        if call is None or call.caller.tenant != caller.tenant:
            raise NotFound("call", name)
        return call

    # ---- Others who watch, and other microphones ----

    async def _watch(self, request: web.Request, caller: Caller) -> web.Response:
        call = self._call(request, caller)
        call.check_room()
        wants = Wants(webrtc.VIEWER, sends=True, codecs=(call.codec,))
        return await self._attended(request, call, wants, WebRtcRole.VIEWER)

    async def _lend(self, request: web.Request, caller: Caller) -> web.Response:
        wants = Wants(webrtc.MICROPHONE, sends=False)
        return await self._attended(
            request, self._call(request, caller), wants, WebRtcRole.MICROPHONE
        )

    async def _attended(
        self, request: web.Request, call: BrowserCall, wants: Wants, role: WebRtcRole
    ) -> web.Response:
        offer = await _body(request, "application/sdp")
        peer = Peer(wants, self.ice)
        try:
            answer = await peer.answer(offer)
            call.check_room()  # others may have come meanwhile
            name = call.watch(peer) if role is WebRtcRole.VIEWER else call.listen(peer)
        except BaseException:
            await peer.close()
            raise
        self._begin(call.attend(name, peer, role))
        where = {"Location": f"{request.path}/{name}"}
        return web.Response(text=answer, status=201, content_type="application/sdp", headers=where)

    async def _trickle_viewer(self, request: web.Request, caller: Caller) -> web.Response:
        return await _candidates(request, self._other(request, caller, WebRtcRole.VIEWER))

    async def _leave_viewer(self, request: web.Request, caller: Caller) -> web.Response:
        self._other(request, caller, WebRtcRole.VIEWER).gone.set()
        return web.Response(status=204)

    async def _trickle_microphone(self, request: web.Request, caller: Caller) -> web.Response:
        return await _candidates(request, self._other(request, caller, WebRtcRole.MICROPHONE))

    async def _leave_microphone(self, request: web.Request, caller: Caller) -> web.Response:
        self._other(request, caller, WebRtcRole.MICROPHONE).gone.set()
        return web.Response(status=204)

    def _other(self, request: web.Request, caller: Caller, role: WebRtcRole) -> Peer:
        name = request.match_info["other"]
        peer = self._call(request, caller).other(name, role)
        if peer is None:
            raise NotFound(role, name)
        return peer

    def _begin(
        self, work: Coroutine[Any, Any, None], ended: Callable[[], object] = lambda: None
    ) -> None:
        """Let something go on after its request was answered."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: ended())


_PERSONA = {"greeting", "instructions", "voice", "language"}
_TEXTS = {"display_name", "prompt", "idempotency_key", *_PERSONA}
_LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}


def _refused(error: TalkingMachinesError, *, status: int = 0) -> web.Response:
    told = bodies.problem(error)
    headers = {"Cache-Control": "no-store"}
    if (seconds := told["error"].get("retry_after")) is not None:
        headers["Retry-After"] = str(max(1, round(seconds)))
    code = status or bodies.http_status(error)
    if code == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.json_response(told, status=code, headers=headers)


def _names_this_machine(host: str) -> bool:
    name, _, port = host.rpartition(":")
    return (name if port.isdecimal() else host) in _LOCAL_NAMES


async def _body(request: web.Request, kind: str) -> str:
    """The body, of the type named: no form of a page can send that."""
    if request.content_type != kind:
        raise BadInput("content-type", got=request.content_type, expected=kind)
    try:
        return (await request.read()).decode()
    except UnicodeDecodeError:
        raise BadInput("body", got="other bytes", expected="UTF-8") from None


async def _candidates(request: web.Request, peer: Peer) -> web.Response:
    await peer.candidates(await _body(request, "application/trickle-ice-sdpfrag"))
    return web.Response(status=204)


async def _form(request: web.Request, *, most: int) -> dict[str, bytes]:
    """The parts of a form by name, each within its limit.

    Args:
        most: bytes of the picture.
    """
    if request.content_type != "multipart/form-data":
        expected = "multipart/form-data"
        raise BadInput("content-type", got=request.content_type, expected=expected)
    form: dict[str, bytes] = {}
    try:
        async for part in await request.multipart():
            name = part.name if isinstance(part, BodyPartReader) else None
            if not isinstance(part, BodyPartReader) or name not in {"image", *_TEXTS}:
                raise BadInput("body", got=f"a part named {name}", expected="the contract's")
            form[name] = await _part(part, name, most=most if name == "image" else _FIELD)
    except ValueError as error:
        raise BadInput("body", got=str(error)[:100], expected="multipart/form-data") from None
    return form


async def _part(part: BodyPartReader, name: str, *, most: int) -> bytes:
    content = bytearray()
    while chunk := await part.read_chunk():
        content += chunk
        if len(content) > most:
            raise bodies.TooLarge(name, got="more", expected=f"at most {most} bytes")
    return bytes(content)


def _text(value: bytes, *, at: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise BadInput(at, got="other bytes", expected="UTF-8") from None
