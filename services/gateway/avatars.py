"""Characters: made once from a picture, kept, and handed to sessions.

Beside the path: server → **avatars** → engines, blobs, index. All that a checkpoint must know about
an avatar is computed here when it is made, and again when the fleet's checkpoint changed.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from dataclasses import dataclass
from hashlib import sha256

from google.protobuf.timestamp_pb2 import Timestamp
from PIL import Image

from services.gateway.blobs import Blobs
from services.gateway.conditionings import Conditionings
from services.gateway.engines import Engines, Loaded
from services.gateway.faces import find_faces
from services.gateway.images import Crop, ImageLimits, decode, portrait, raw
from services.gateway.index import Index
from services.gateway.persona import check_persona, check_text
from services.runtime.metrics import GatewayMetrics, Outcome
from talkingmachines.errors import BadInput, NotFound, PermissionDenied, QuotaExceeded
from talkingmachines.picture import RawPicture, Region
from talkingmachines.v1 import avatar_pb2, media_pb2, score_pb2, storage_pb2

SHARED = ""  # the tenant of avatars that everybody sees

_NAME, _PROMPT, _ONCE, _SPEAKERS = 100, 2_000, 64, 8
_PAGE, _MOST_PER_PAGE = 50, 1_000
_WHOLE = Region(0.0, 0.0, 1.0, 1.0)
_IMAGES = "images"


@dataclass(frozen=True, slots=True)
class Character:
    """An avatar as a session needs it."""

    avatar: avatar_pb2.Avatar
    conditioning: score_pb2.Conditioning


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A picture cut to the stream's shape, and where the faces are in it."""

    picture: RawPicture
    portrait: bytes
    speakers: tuple[avatar_pb2.Speaker, ...]


class Avatars:
    """The avatars of all tenants; every method is told whose they are."""

    def __init__(
        self, engines: Engines, blobs: Blobs, index: Index, *, metrics: GatewayMetrics
    ) -> None:
        self._engines = engines
        self._blobs = blobs
        self._conditionings = Conditionings(blobs)
        self._index = index
        self._metrics = metrics
        # Pictures are decoded on worker threads, one at a time: sessions need the other cores.
        self._decoding = asyncio.Semaphore(1)

    async def create(
        self,
        tenant: str,
        request: avatar_pb2.CreateAvatarRequest,
        *,
        limits: ImageLimits,
        most: int,
        avatar_id: str | None = None,
    ) -> avatar_pb2.Avatar:
        """Make a character.

        Args:
            most: avatars that the tenant may have.
            avatar_id: given for shared ones; else made from the name.

        Raises:
            BadInput: names the field that cannot be used.
            QuotaExceeded: the tenant has as many as it may.
            Unavailable: an engine, Redis or the storage does not answer.
        """
        started = time.perf_counter()
        outcome = Outcome.FAILED
        try:
            avatar = await self._create(tenant, request, limits, most, avatar_id)
            outcome = Outcome.OK
        finally:
            self._metrics.avatars_created.labels(outcome).inc()
        self._metrics.avatar_seconds.observe(time.perf_counter() - started)
        return avatar

    async def get(self, tenant: str, avatar_id: str) -> avatar_pb2.Avatar:
        """Raises NotFound when there is none, or another tenant's."""
        return (await self._find(tenant, avatar_id))[1].avatar

    async def list(
        self, tenant: str, request: avatar_pb2.ListAvatarsRequest
    ) -> avatar_pb2.ListAvatarsResponse:
        """One page of the tenant's avatars and the shared ones."""
        size = request.page_size or _PAGE
        if size > _MOST_PER_PAGE:
            raise BadInput("page_size", got=size, expected=f"0 to {_MOST_PER_PAGE}")
        tenants = (tenant,) if tenant == SHARED else (tenant, SHARED)
        records, more = await self._index.page(tenants, size=size, token=request.page_token)
        avatars = [record.avatar for record in records]
        if not request.with_portraits:
            for avatar in avatars:
                avatar.ClearField("portrait")
        return avatar_pb2.ListAvatarsResponse(avatars=avatars, next_page_token=more)

    async def delete(self, tenant: str, avatar_id: str) -> None:
        """Forget an avatar, its picture included; running sessions go on.

        Raises:
            NotFound: there is none, or it is another tenant's.
            PermissionDenied: it is shared.
        """
        owner, record = await self._find(tenant, avatar_id)
        if owner != tenant:
            raise PermissionDenied("shared avatars cannot be deleted")
        await self._index.remove(tenant, record)
        others = await self._index.all(tenant)
        if all(other.image != record.image for other in others):
            await self._blobs.delete(tenant, _IMAGES, record.image)
        if all(other.conditioning != record.conditioning for other in others):
            await self._conditionings.delete(tenant, record.conditioning)

    async def character(self, tenant: str, avatar_id: str) -> Character:
        """The avatar with its conditioning for the checkpoints that are loaded.

        Raises:
            NotFound: there is none, or it is another tenant's.
        """
        owner, record = await self._find(tenant, avatar_id)
        loaded = await self._engines.loaded()
        made_by = (record.score_checkpoint, record.vae_checkpoint)
        if made_by != (loaded.score_checkpoint, loaded.vae_checkpoint):
            record = await self._make_again(owner, record, loaded)
        conditioning = await self._conditionings.get(owner, record.conditioning)
        return Character(record.avatar, conditioning)

    async def _create(
        self,
        tenant: str,
        request: avatar_pb2.CreateAvatarRequest,
        limits: ImageLimits,
        most: int,
        avatar_id: str | None,
    ) -> avatar_pb2.Avatar:
        loaded = await self._engines.loaded()
        _check(request, loaded)
        if request.idempotency_key:
            known = await self._index.find_once(tenant, request.idempotency_key)
            if known is not None and (record := await self._index.get(tenant, known)):
                return record.avatar
        if await self._index.count(tenant) >= most:
            raise QuotaExceeded("avatars", limit=str(most))
        async with self._decoding:
            prepared = await asyncio.to_thread(_prepare, request, loaded, limits)
        created = Timestamp()
        created.GetCurrentTime()
        avatar = avatar_pb2.Avatar(
            avatar_id=avatar_id or _new_id(request.display_name),
            display_name=request.display_name,
            create_time=created,
            prompt=request.prompt,
            listening_prompt=request.listening_prompt,
            speakers=prepared.speakers,
            persona=request.persona,
            shared=tenant == SHARED,
            portrait=prepared.portrait,
        )
        record = storage_pb2.AvatarRecord(avatar=avatar, given_speakers=request.speakers)
        record.image = await self._blobs.put(tenant, _IMAGES, request.image)
        await self._condition(tenant, record, prepared.picture, loaded)
        added = await self._index.add(tenant, record, once=request.idempotency_key, most=most)
        return avatar if added == avatar.avatar_id else await self.get(tenant, added)

    async def _make_again(
        self, owner: str, record: storage_pb2.AvatarRecord, loaded: Loaded
    ) -> storage_pb2.AvatarRecord:
        """The conditioning under new checkpoints, from the picture as it was given."""
        request = avatar_pb2.CreateAvatarRequest(
            image=await self._blobs.get(owner, _IMAGES, record.image),
            speakers=record.given_speakers,
        )
        async with self._decoding:
            anything = ImageLimits(bytes=len(request.image))
            prepared = await asyncio.to_thread(_prepare, request, loaded, anything)
        del record.avatar.speakers[:]
        record.avatar.speakers.extend(prepared.speakers)
        await self._condition(owner, record, prepared.picture, loaded)
        most = 1 + await self._index.count(owner)  # it is there already
        await self._index.add(owner, record, once="", most=most)
        return record

    async def _condition(
        self, tenant: str, record: storage_pb2.AvatarRecord, picture: RawPicture, loaded: Loaded
    ) -> None:
        avatar = record.avatar
        prompts = (avatar.prompt, avatar.listening_prompt) if loaded.takes_prompt else ("", "")
        conditioning = await self._engines.condition(picture, *prompts)
        conditioning.faces.extend(speaker.face for speaker in avatar.speakers)
        content = conditioning.SerializeToString(deterministic=True)
        conditioning.digest = sha256(content).hexdigest()
        record.conditioning = await self._conditionings.put(tenant, conditioning)
        record.score_checkpoint = loaded.score_checkpoint
        record.vae_checkpoint = loaded.vae_checkpoint

    async def _find(self, tenant: str, avatar_id: str) -> tuple[str, storage_pb2.AvatarRecord]:
        for owner in dict.fromkeys((tenant, SHARED)):
            record = await self._index.get(owner, avatar_id)
            if record is not None:
                return owner, record
        raise NotFound("avatar", avatar_id[:100])


def _check(request: avatar_pb2.CreateAvatarRequest, loaded: Loaded) -> None:
    """Whether the request can be used, before it costs anything."""
    check_text(request.display_name, least=1, most=_NAME, at="display_name")
    check_text(request.idempotency_key, most=_ONCE, at="idempotency_key")
    for field in ("prompt", "listening_prompt"):
        text: str = getattr(request, field)
        check_text(text, most=_PROMPT, at=field)
        if text and not loaded.takes_prompt:
            raise BadInput(field, got="a text", expected="none: the checkpoint takes no prompt")
    most = min(_SPEAKERS, loaded.max_speakers)
    if len(request.speakers) > most:
        raise BadInput("speakers", got=len(request.speakers), expected=f"at most {most}")
    for index, speaker in enumerate(request.speakers):
        check_text(speaker.name, most=_NAME, at=f"speakers[{index}].name")
    check_persona(request.persona, at="persona")


def _prepare(
    request: avatar_pb2.CreateAvatarRequest, loaded: Loaded, limits: ImageLimits
) -> _Prepared:
    """Decode, crop, and find the faces. Takes a while: not for the event loop."""
    picture = decode(request.image, limits)
    width, height = loaded.spec.width, loaded.spec.height
    crop = Crop.to_shape(picture, width, height)
    cut = crop.cut(picture, width, height)
    speakers = [_placed(speaker, index, crop) for index, speaker in enumerate(request.speakers)]
    if not speakers:
        seen = _inner(picture, crop)
        faces = find_faces(seen, most=min(_SPEAKERS, loaded.max_speakers)) or [_WHOLE]
        speakers = [avatar_pb2.Speaker(face=face.to_proto()) for face in faces]
    return _Prepared(raw(cut), portrait(cut), tuple(speakers))


def _inner(picture: Image.Image, crop: Crop) -> Image.Image:
    return picture.crop((crop.x, crop.y, crop.x + crop.width, crop.y + crop.height))


def _placed(speaker: avatar_pb2.Speaker, index: int, crop: Crop) -> avatar_pb2.Speaker:
    at = f"speakers[{index}].face"
    face: media_pb2.Region = speaker.face
    inside = crop.region(Region.from_proto(face, at=at), at=at)
    return avatar_pb2.Speaker(name=speaker.name, face=inside.to_proto())


def _new_id(name: str) -> str:
    """Readable, and nobody's guess."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    return f"{slug or 'avatar'}-{secrets.token_hex(5)}"
