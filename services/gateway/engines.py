"""The two engines as the gateway knows them: where they are, and what they have loaded.

Beside the path: opening, avatars → **engines** → score and vae. Each is one gRPC target (an
ingress that picks a replica); every call carries the fleet's shared token.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.gateway.log import TailLength
from talkingmachines.errors import TalkingMachinesError, TimedOut, Unavailable
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

_FRESH_SECONDS = 5.0
_RETRY_SECONDS = 2.0


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
    """Score and VAE."""

    def __init__(self, score: grpc.aio.Channel, vae: grpc.aio.Channel) -> None:
        self.score: ScoreServiceAsyncStub = ScoreServiceStub(score)
        self.vae: VaeServiceAsyncStub = VaeServiceStub(vae)
        self._loaded: Loaded | None = None
        self._asked_at = 0.0

    async def loaded(self) -> Loaded:
        """What is loaded now, or a few seconds ago.

        Raises:
            Unavailable: an engine does not answer.
        """
        clock = asyncio.get_running_loop().time
        if self._loaded is None or clock() - self._asked_at > _FRESH_SECONDS:
            self._loaded = await self._ask()
            self._asked_at = clock()
        return self._loaded

    async def condition(
        self, picture: RawPicture, prompt: str, listening_prompt: str
    ) -> score_pb2.Conditioning:
        """What score and VAE make of a picture; digest and faces are not set yet."""
        request = score_pb2.ConditionRequest(
            image=picture.to_proto(), prompt=prompt, listening_prompt=listening_prompt
        )
        image = vae_pb2.EncodeRequest(image=picture.to_proto())
        conditioned, encoded = await asyncio.gather(
            self.score.Condition(request), self.vae.Encode(image)
        )
        conditioning = score_pb2.Conditioning()
        conditioning.CopyFrom(conditioned.conditioning)
        conditioning.anchor.CopyFrom(encoded.anchor)
        return conditioning

    async def _ask(self) -> Loaded:
        try:
            score, vae = await asyncio.gather(
                self.score.Describe(score_pb2.ScoreServiceDescribeRequest()),
                self.vae.Describe(vae_pb2.VaeServiceDescribeRequest()),
            )
        except (Unavailable, TimedOut) as error:
            raise Unavailable("the engines do not answer", retry_after=_RETRY_SECONDS) from error
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


def _unfit(score: str, vae: str) -> TalkingMachinesError:
    return Unavailable(f"score {score} and VAE {vae} do not fit together", retry_after=30.0)
