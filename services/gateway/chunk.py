"""What flows down the pipeline: chunks to be drawn, and rewinds.

On the path: chunker → **chunk** → log → score → vae → pacer. Plain values; they know protobuf only
to be written into the log and onto the wire.
"""

from __future__ import annotations

from dataclasses import dataclass

from talkingmachines import duration
from talkingmachines.media import Mode, SpeakerSpeech
from talkingmachines.v1 import score_pb2


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """A turn that is over during a chunk."""

    turn: int
    samples: int  # of the chunk, after which it is over; 0 when it was over before


@dataclass(frozen=True, slots=True)
class SpeechPosition:
    """How much of what a client sent for one speaker is in chunks, so that it can go on there."""

    speaker: int
    sample_rate: int  # Hz, of the speech as sent
    sample: int  # as sent: where to go on; a little before the end, to warm up the resampler
    skip: int  # samples at the stream's rate that come of it and are in chunks already
    open: bool  # whether the utterance goes on there


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk to be drawn: who says what during it. Nobody speaking means listening."""

    turn: int
    chunk: int
    speech: tuple[SpeakerSpeech, ...] = ()
    begins: int | None = None  # the speaker whose speech begins the turn with this chunk
    ends: tuple[TurnEnd, ...] = ()
    positions: tuple[SpeechPosition, ...] = ()  # after this chunk, by speaker

    @property
    def mode(self) -> Mode:
        return Mode.SPEAKING if self.speech else Mode.LISTENING

    def to_proto(self, slack: float) -> score_pb2.DenoiseChunk:
        """The request to draw it, due in `slack` seconds (negative: late already)."""
        return score_pb2.DenoiseChunk(
            turn=self.turn,
            chunk=self.chunk,
            speech=[part.to_proto() for part in self.speech],
            slack=duration.to_proto(slack),
        )


@dataclass(frozen=True, slots=True)
class Rewind:
    """The user interrupted; what was drawn and not played is void.

    It flows down the pipeline in the place of a chunk, so that every stage sees it in order.
    """

    turn: int  # that begins
    next_chunk: int  # the first chunk to be drawn anew
    decode_from: int  # the first chunk whose frames are wanted from the VAE (again)
    first_frame: int  # media clock: where the pictures go on
