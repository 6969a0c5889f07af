"""The two engines as the gateway knows them: where they are, and what they have loaded.

Beside the path: opening, avatars → **engines** → score and vae. Each is one gRPC target (an
ingress that picks a replica); every call carries the fleet's shared token.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import structlog

from services.gateway.attaching import Seen
from services.gateway.log import TailLength
from services.gateway.replicas import Replica
from services.runtime.metrics import Engine
from talkingmachines.errors import BadInput, TalkingMachinesError, Unavailable
from talkingmachines.media import spec_from_proto
from talkingmachines.picture import RawPicture
from talkingmachines.spec import StreamSpec
from talkingmachines.v1 import score_pb2, vae_pb2
from talkingmachines.v1.score_pb2_grpc import ScoreServiceStub
from talkingmachines.v1.vae_pb2_grpc import VaeServiceStub

if TYPE_CHECKING:  # classes that only the stubs' types have
    import grpc

    from talkingmachines.v1.score_pb2_grpc import ScoreServiceAsyncStub
    from talkingmachines.v1.vae_pb2_grpc import VaeServiceAsyncStub

S = TypeVar("S")
V = TypeVar("V")

_ASK_SECONDS = 2.0  # between questions; a gateway that asks learns of one replica of each each time
_ANSWER_SECONDS = 5.0
_FRESH_SECONDS = 5.0
_CHANGE_SECONDS = 30.0  # of not seeing what was loaded before, until something else counts
_RETRY_SECONDS = 2.0

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the fleet has loaded: geometry, and what an attachment must be sent."""

    spec: StreamSpec
    score_checkpoint: str
    vae_checkpoint: str
    takes_prompt: bool
    max_speakers: int
    score_tail: TailLength
    vae_tail: TailLength

    @property
    def keep(self) -> int:
        """Chunks of the log before the played one that a new attachment may need."""
        return max(self.score_tail.latents, self.score_tail.speech, self.vae_tail.latents) + 1


class Engines:
    """Score and VAE.

    Args:
        seen: told of every replica that answered.
    """

    def __init__(self, score: grpc.aio.Channel, vae: grpc.aio.Channel, *, seen: Seen) -> None:
        self.score: ScoreServiceAsyncStub = ScoreServiceStub(score)
        self.vae: VaeServiceAsyncStub = VaeServiceStub(vae)
        self._seen = seen
        self._loaded: Loaded | None = None
        self._asked_at = 0.0
        self._agreed_at = 0.0
        self._wrong = ""

    async def watch(self) -> None:
        """Ask again and again: for what is loaded, and for replicas that have no sessions yet."""
        while True:
            with suppress(Unavailable):
                await self._refresh()
            await asyncio.sleep(_ASK_SECONDS * random.uniform(0.8, 1.2))

    async def loaded(self) -> Loaded:
        """What is loaded now, or a few seconds ago.

        While a fleet is upgraded some replicas answer with another checkpoint than others; the one
        that was seen first counts until it was not seen for a while.

        Raises:
            Unavailable: an engine does not answer (yet).
        """
        clock = asyncio.get_running_loop().time
        if self._loaded is not None and clock() - self._asked_at <= _FRESH_SECONDS:
            return self._loaded
        return await self._refresh()

    async def _refresh(self) -> Loaded:
        clock = asyncio.get_running_loop().time
        try:
            answer = await self._ask()
        except Unavailable as error:
            # What answered a moment ago is likely to be back in another: attaching waits for that.
            if clock() - self._asked_at > _FRESH_SECONDS:
                self._loaded = None
            self._tell(str(error))
            raise
        self._asked_at = clock()
        before = self._loaded
        if before is None or before == answer or clock() - self._agreed_at > _CHANGE_SECONDS:
            self._loaded, self._agreed_at = answer, clock()
            self._tell("")
        else:
            self._tell(f"replicas disagree: {_names(before)} and {_names(answer)}")
            return before
        return answer

    def _tell(self, wrong: str) -> None:
        """Log how the engines are, whenever that changes."""
        if wrong != self._wrong:
            _log.warning(
                "engines are not as they should be" if wrong else "engines are well", why=wrong
            )
        self._wrong = wrong

    async def condition(
        self, picture: RawPicture, prompt: str, listening_prompt: str
    ) -> score_pb2.Conditioning:
        """What score and VAE make of a picture; digest and faces are not set yet.

        Raises:
            BadInput: a prompt cannot be used.
            Unavailable: an engine does not answer.
        """
        request = score_pb2.ConditionRequest(
            image=picture.to_proto(), prompt=prompt, listening_prompt=listening_prompt
        )
        image = vae_pb2.EncodeRequest(image=picture.to_proto())
        conditioned, encoded = await _both(self.score.Condition(request), self.vae.Encode(image))
        conditioning = score_pb2.Conditioning()
        conditioning.CopyFrom(conditioned.conditioning)
        conditioning.anchor.CopyFrom(encoded.anchor)
        return conditioning

    async def _ask(self) -> Loaded:
        score, vae = await _both(
            self.score.Describe(score_pb2.ScoreServiceDescribeRequest(), timeout=_ANSWER_SECONDS),
            self.vae.Describe(vae_pb2.VaeServiceDescribeRequest(), timeout=_ANSWER_SECONDS),
        )
        self._seen(Engine.SCORE, Replica(score.replica, score.capacity.slots))
        self._seen(Engine.VAE, Replica(vae.replica, vae.capacity.slots))
        spec = spec_from_proto(score.spec, at="spec")
        if vae.frames_per_latent != spec.frames_per_latent:
            raise _unfit(score.checkpoint, vae.checkpoint)
        return Loaded(
            spec=spec,
            score_checkpoint=score.checkpoint,
            vae_checkpoint=vae.checkpoint,
            takes_prompt=score.takes_prompt,
            max_speakers=score.max_speakers,
            score_tail=TailLength(score.tail.latent_chunks, score.tail.speech_chunks),
            vae_tail=TailLength(-(-vae.tail_latents // spec.latents_per_chunk)),
        )


async def _both(score: Awaitable[S], vae: Awaitable[V]) -> tuple[S, V]:
    """Both engines' answers. Whatever else their ingress says, it means that they are not there."""
    try:
        return await asyncio.gather(score, vae)
    except BadInput:
        raise
    except TalkingMachinesError as error:
        raise Unavailable(
            f"the engines do not answer ({error})", retry_after=_RETRY_SECONDS
        ) from error


def _names(loaded: Loaded) -> str:
    return f"{loaded.score_checkpoint} with {loaded.vae_checkpoint}"


def _unfit(score: str, vae: str) -> TalkingMachinesError:
    return Unavailable(f"score {score} and VAE {vae} do not fit together", retry_after=30.0)
