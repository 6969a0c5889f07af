"""The characters that come with the model: made when the fleet first starts, shared by everybody.

A picture `avatars/ada.png` in the model's folder is the avatar `ada`, called Ada.
`python -m services.local.characters MODEL`, in the gateway's environment, waits for the engines
and makes those that are missing.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry

from services.gateway.avatars import SHARED, Avatars
from services.gateway.engines import Engines
from services.gateway.gateway import backing
from services.gateway.images import ImageLimits
from services.gateway.settings import Settings
from services.runtime import logs
from services.runtime.metrics import GatewayMetrics
from services.runtime.settings import read
from talkingmachines.errors import BadInput, NotFound, TalkingMachinesError, Unavailable
from talkingmachines.v1 import avatar_pb2

_PICTURES = {".jpg", ".jpeg", ".png", ".webp"}
_POLL_SECONDS = 0.3
_MOST = 10_000


def pictures(model: Path) -> Sequence[Path]:
    """The bundled characters' pictures, by name."""
    folder = model / "avatars"
    found = folder.iterdir() if folder.is_dir() else []
    return sorted(path for path in found if path.suffix.lower() in _PICTURES)


def avatar_id(picture: Path) -> str:
    return picture.stem.lower()


async def bundle(model: Path, settings: Settings) -> None:
    """Wait for the engines, and make the characters that are missing.

    Raises:
        TalkingMachinesError: a picture cannot be used.
    """
    async with backing(settings, GatewayMetrics(CollectorRegistry())) as behind:
        await _answering(behind.engines)
        for picture in pictures(model):
            await _made(behind.avatars, picture)


async def _answering(engines: Engines) -> None:
    while True:
        with suppress(Unavailable):
            await engines.loaded()
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _made(avatars: Avatars, picture: Path) -> None:
    try:
        await avatars.get(SHARED, avatar_id(picture))
        return
    except NotFound:
        image = await asyncio.to_thread(picture.read_bytes)
    name = picture.stem.replace("-", " ").title()
    request = avatar_pb2.CreateAvatarRequest(display_name=name, image=image)
    limits = ImageLimits(bytes=len(image))
    try:
        await avatars.create(
            SHARED, request, limits=limits, most=_MOST, avatar_id=avatar_id(picture)
        )
    except BadInput as error:
        raise BadInput(str(picture), got=error.got, expected=error.expected) from error


def main() -> None:
    logs.configure("characters", level="warning")
    try:
        asyncio.run(bundle(Path(sys.argv[1]), read(Settings)))
    except TalkingMachinesError as error:
        sys.exit(f"the bundled characters cannot be made: {error}")


if __name__ == "__main__":
    main()
