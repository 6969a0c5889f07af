"""Hold one call and look at what comes: call.py HOST:PORT. Ends with 0 when frames moved.

An API key is in TALKINGMACHINES_KEY, the file of whom to believe in TALKINGMACHINES_AUTHORITIES, if
needed. The first character of the fleet speaks; where there is none, one is made of a drawn face
and deleted after.
"""

import asyncio
import math
import os
import sys
import wave
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw

from talkingmachines.client import Client, Tls
from talkingmachines.picture import VideoFrame
from talkingmachines.v1 import avatar_pb2, media_pb2

SECONDS, RATE, TONE = 3, 16_000, 220.0  # what is said: a hum that swells four times a second
LEAST_FRAMES = 20
SPEECH = Path("/tmp/hum.wav")  # noqa: S108  the only folder that a pod may write


def hum() -> Path:
    """A sound file that a mouth has reason to move to."""
    times = (sample / RATE for sample in range(SECONDS * RATE))
    loud = (math.sin(2 * math.pi * TONE * t) * math.sin(4 * math.pi * t) ** 2 for t in times)
    with wave.open(str(SPEECH), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(array("h", (int(12_000 * value) for value in loud)).tobytes())
    return SPEECH


def face() -> bytes:
    picture = Image.new("RGB", (512, 512), "lightsteelblue")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((120, 60, 392, 452), fill="wheat")
    for left in (190, 282):
        draw.ellipse((left, 200, left + 40, 230), fill="black")
    draw.ellipse((216, 340, 296, 370), fill="firebrick")
    saved = BytesIO()
    picture.save(saved, "PNG")
    return saved.getvalue()


@asynccontextmanager
async def character(client: Client) -> AsyncIterator[str]:
    async for avatar in client.avatars.list():
        yield avatar.avatar_id
        return
    region = media_pb2.Region(x=0.23, y=0.12, width=0.54, height=0.77)
    speaker = avatar_pb2.Speaker(face=region)
    made = await client.avatars.create(face(), "helm test", speakers=[speaker])
    try:
        yield made.avatar_id
    finally:
        await client.avatars.delete(made.avatar_id)


async def call(address: str) -> str:
    """What was seen; exits when it was not enough."""
    authorities = os.environ.get("TALKINGMACHINES_AUTHORITIES")
    tls = Tls(Path(authorities)) if authorities else None
    async with Client(address, key=os.environ.get("TALKINGMACHINES_KEY"), tls=tls) as client:
        async with character(client) as avatar:
            async with client.talk(avatar, max_queue_seconds=60) as session:
                session.say(hum())
                session.hang_up()
                items = [item async for item in session]
    pictures = [item.picture for item in items if isinstance(item, VideoFrame)]
    if len(pictures) < LEAST_FRAMES:
        sys.exit(f"only {len(pictures)} frames came")
    if len(set(pictures)) < len(pictures) // 4:
        sys.exit(f"{len(pictures)} frames came, but they hardly differ")
    return f"{len(pictures)} frames, {len(set(pictures))} of them different"


if __name__ == "__main__":
    print(asyncio.run(call(sys.argv[1])))
