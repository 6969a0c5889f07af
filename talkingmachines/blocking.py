"""The client for programs without asyncio.

    with Client("127.0.0.1:50050") as client:
        with client.talk("ada") as session:
            session.say("speech.wav")
            session.hang_up()
            for item in session: ...

No thread: the event loop belongs to the client and runs while one of its methods does. Between
two items of a session nothing is read or sent, so a program that takes its time falls behind as
one that reads slowly does; one that must do other things for seconds uses `talkingmachines.client`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from talkingmachines.client import Avatars as AsyncAvatars
from talkingmachines.client import Client as AsyncClient
from talkingmachines.client import Tls
from talkingmachines.media import Pcm
from talkingmachines.picture import VideoFormat, VideoFrame
from talkingmachines.session import Item
from talkingmachines.session import Session as AsyncSession
from talkingmachines.spec import StreamSpec
from talkingmachines.speech import Speech
from talkingmachines.v1 import avatar_pb2

T = TypeVar("T")


class Client:
    """As `talkingmachines.client.Client`; every method waits for its answer."""

    def __init__(
        self,
        address: str,
        *,
        key: str | None = None,
        tls: Tls | None = None,
        timeout: float = 30.0,
    ) -> None:
        async def made() -> AsyncClient:  # a channel belongs to the loop that it is made on
            return AsyncClient(address, key=key, tls=tls, timeout=timeout)

        self._runner = asyncio.Runner()
        self._inner = self.run(made())
        self.avatars = Avatars(self, self._inner.avatars)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.run(self._inner.close())
        self._runner.close()

    def talk(
        self,
        avatar_id: str,
        *,
        mode: avatar_pb2.TalkMode.ValueType = avatar_pb2.TALK_MODE_DRIVE,
        video: VideoFormat | None = None,
        seed: int | None = None,
        max_queue_seconds: float = 0.0,
    ) -> Session:
        """A session with a character; opened by entering it."""
        inner = self._inner.talk(
            avatar_id, mode=mode, video=video, seed=seed, max_queue_seconds=max_queue_seconds
        )
        return Session(self, inner)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the loop until `work` is done."""
        return self._runner.run(work)


class Avatars:
    """Characters: made from a picture, found, deleted."""

    def __init__(self, client: Client, inner: AsyncAvatars) -> None:
        self._client = client
        self._inner = inner

    def create(
        self,
        image: bytes | Path | str,
        name: str,
        *,
        prompt: str = "",
        speakers: Sequence[avatar_pb2.Speaker] = (),
        persona: avatar_pb2.Persona | None = None,
    ) -> avatar_pb2.Avatar:
        """A character made from a picture (JPEG, PNG or WebP)."""
        made = self._inner.create(image, name, prompt=prompt, speakers=speakers, persona=persona)
        return self._client.run(made)

    def get(self, avatar_id: str) -> avatar_pb2.Avatar:
        """With its portrait. Raises NotFound."""
        return self._client.run(self._inner.get(avatar_id))

    def list(self) -> list[avatar_pb2.Avatar]:
        """The caller's and the shared ones, by name."""

        async def every_page() -> list[avatar_pb2.Avatar]:
            return [avatar async for avatar in self._inner.list()]

        return self._client.run(every_page())

    def delete(self, avatar_id: str) -> None:
        """Raises NotFound, or PermissionDenied for a shared one."""
        self._client.run(self._inner.delete(avatar_id))


class Session:
    """A session; entering opens it, leaving ends it, iterating gives what comes."""

    def __init__(self, client: Client, inner: AsyncSession) -> None:
        self._client = client
        self._inner = inner

    def __enter__(self) -> Self:
        self._client.run(self._inner.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.run(self._inner.__aexit__(kind, error, trace))

    @property
    def spec(self) -> StreamSpec:
        """Geometry of the stream."""
        return self._inner.spec

    def say(self, speech: Speech, *, sample_rate: int | None = None, speaker: int = 0) -> None:
        """Say all of `speech`; it is sent while items are taken."""

        async def begin() -> None:
            self._inner.say(speech, sample_rate=sample_rate, speaker=speaker)

        self._client.run(begin())

    def interrupt(self) -> None:
        """Stop speaking now; what is not played never comes."""
        self._inner.interrupt()

    def hang_up(self) -> None:
        """Say nothing more: what was said is played to its end, then iterating ends."""
        self._inner.hang_up()

    def seconds(self, item: VideoFrame | Pcm) -> float:
        """Presentation time of `item` on the session's media clock."""
        return self._inner.seconds(item)

    def __iter__(self) -> Iterator[Item]:
        while (item := self._client.run(self._inner.take())) is not None:
            yield item
