"""The client: characters, and live calls with them.

    async with Client("127.0.0.1:50050") as client:
        async with client.talk("ada") as session:
            session.say("speech.wav")
            session.hang_up()
            async for item in session:
                match item:
                    case VideoFrame(): ...  # at session.seconds(item)
                    case Pcm(): ...

The same without asyncio is in `talkingmachines.blocking`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc

from talkingmachines import duration
from talkingmachines.channel import DomainChannel, Limits
from talkingmachines.errors import BadInput
from talkingmachines.picture import Codec, VideoFormat
from talkingmachines.session import Session
from talkingmachines.v1 import avatar_pb2
from talkingmachines.v1.avatar_pb2_grpc import AvatarServiceStub

if TYPE_CHECKING:  # a class that only the stubs' types have
    from talkingmachines.v1.avatar_pb2_grpc import AvatarServiceAsyncStub

_PAGE = 100


@dataclass(frozen=True, slots=True)
class Tls:
    """How a connection is secured; without files by the authorities that gRPC knows."""

    authorities: Path | None = None  # PEM: whom to believe
    certificate: Path | None = None  # PEM: what we show to a server that asks
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        def content(file: Path | None) -> bytes | None:
            return None if file is None else file.read_bytes()

        return grpc.ssl_channel_credentials(
            root_certificates=content(self.authorities),
            private_key=content(self.key),
            certificate_chain=content(self.certificate),
        )


class Client:
    """A connection to a fleet. Errors are those of `talkingmachines.errors`.

    Args:
        address: host:port or any gRPC name. Several gateways: `ipv4:10.0.0.1:50050,10.0.0.2:50050`
            or a DNS name with several addresses; a call whose gateway dies goes on at another.
        key: an API key, or a signed token.
        tls: None: in the clear, which is refused with a key to anywhere but this machine.
        timeout: seconds for everything but calls.
    """

    def __init__(
        self,
        address: str,
        *,
        key: str | None = None,
        tls: Tls | None = None,
        timeout: float = 30.0,
        limits: Limits | None = None,
    ) -> None:
        if key is not None and tls is None and not _is_local(address):
            raise BadInput(
                "tls", got="none", expected="TLS, where a key travels to another machine"
            )
        options = (limits or Limits()).client_options()
        if tls is None:
            inner = grpc.aio.insecure_channel(address, options)
        else:
            inner = grpc.aio.secure_channel(address, tls.credentials(), options)
        metadata = [] if key is None else [("authorization", f"Bearer {key}")]
        self._channel = DomainChannel(inner, deadline_seconds=timeout, outgoing=lambda: metadata)
        self._stub: AvatarServiceAsyncStub = AvatarServiceStub(self._channel)
        self.avatars = Avatars(self._stub)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    def talk(
        self,
        avatar_id: str,
        *,
        mode: avatar_pb2.TalkMode.ValueType = avatar_pb2.TALK_MODE_DRIVE,
        video: VideoFormat | None = None,
        seed: int | None = None,
        max_queue_seconds: float = 0.0,
        persona: avatar_pb2.Persona | None = None,
        no_video: bool = False,
        no_speech: bool = False,
        on_queued: Callable[[avatar_pb2.Queued], None] = lambda _: None,
    ) -> Session:
        """A session with a character; opened by entering it.

        Args:
            mode: DRIVE: the caller sends what the character says; CONVERSE: what the user says.
            video: None: JPEG, which needs no decoder with a memory.
            seed: the same speech with the same seed gives the same pictures.
            max_queue_seconds: how long to wait when the fleet is full.
            on_queued: told of every new position in the queue.
        """
        opening = avatar_pb2.Open(
            avatar_id=avatar_id,
            mode=mode,
            video=(video or VideoFormat(Codec.JPEG)).to_proto(),
            seed=seed,
            persona=persona,
            max_queue_time=duration.to_proto(max_queue_seconds),
            no_video=no_video,
            no_speech=no_speech,
        )
        return Session(self._stub.Talk, opening, on_queued=on_queued)


class Avatars:
    """Characters: made from a picture, found, deleted."""

    def __init__(self, stub: AvatarServiceAsyncStub) -> None:
        self._stub = stub

    async def create(
        self,
        image: bytes | Path | str,
        name: str,
        *,
        prompt: str = "",
        listening_prompt: str = "",
        speakers: Sequence[avatar_pb2.Speaker] = (),
        persona: avatar_pb2.Persona | None = None,
        idempotency_key: str | None = None,
    ) -> avatar_pb2.Avatar:
        """A character made from a picture (JPEG, PNG or WebP).

        Args:
            speakers: faces that speak, in fractions of the picture; none: they are looked for.
            idempotency_key: the same key within a day gives the same character.
        """
        image = image if isinstance(image, bytes) else await asyncio.to_thread(_read, Path(image))
        request = avatar_pb2.CreateAvatarRequest(
            display_name=name,
            image=image,
            prompt=prompt,
            listening_prompt=listening_prompt,
            speakers=speakers,
            persona=persona,
            idempotency_key=idempotency_key or uuid.uuid4().hex,
        )
        return (await self._stub.CreateAvatar(request)).avatar

    async def get(self, avatar_id: str) -> avatar_pb2.Avatar:
        """With its portrait. Raises NotFound."""
        request = avatar_pb2.GetAvatarRequest(avatar_id=avatar_id)
        return (await self._stub.GetAvatar(request)).avatar

    async def list(self, *, with_portraits: bool = False) -> AsyncIterator[avatar_pb2.Avatar]:
        """The caller's and the shared ones, by name."""
        token = ""
        while True:
            request = avatar_pb2.ListAvatarsRequest(
                page_size=_PAGE, page_token=token, with_portraits=with_portraits
            )
            response = await self._stub.ListAvatars(request)
            for avatar in response.avatars:
                yield avatar
            token = response.next_page_token
            if not token:
                return

    async def delete(self, avatar_id: str) -> None:
        """Raises NotFound, or PermissionDenied for a shared one."""
        await self._stub.DeleteAvatar(avatar_pb2.DeleteAvatarRequest(avatar_id=avatar_id))


def _read(image: Path) -> bytes:
    try:
        return image.read_bytes()
    except OSError as error:
        raise BadInput("image", got=image, expected=f"a picture: {error.strerror}") from error


def _is_local(address: str) -> bool:
    """Whether every host of a gRPC target is this machine."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    bare = address.rpartition("/")[2].removeprefix("ipv4:").removeprefix("ipv6:")
    hosts = [part.rpartition(":")[0].removeprefix("dns:").strip("[]") for part in bare.split(",")]
    return all(host == "localhost" or _is_loopback(host) for host in hosts)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
