"""Sound, latents and the tail of a session's log, as values.

Every type checks itself when it is made, so that what crosses the wire is sound on both ends.
`from_proto` and `to_proto` are the only places where these meet protobuf; `at` is the path of the
message within the request, for errors that name the field. Pictures are in `picture`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from math import prod

import numpy as np
from numpy.typing import NDArray

from talkingmachines.errors import BadInput
from talkingmachines.fields import FieldPath, member, unsigned
from talkingmachines.spec import StreamSpec
from talkingmachines.v1 import media_pb2

MIN_SAMPLE_RATE = 8_000  # Hz
MAX_SAMPLE_RATE = 96_000

# Ours have four at most. The number of elements is then quick to work out, whatever was sent.
_MOST_DIMENSIONS = 8


class Mode(Enum):
    """What a speaker in the picture is doing."""

    SPEAKING = media_pb2.MODE_SPEAKING
    LISTENING = media_pb2.MODE_LISTENING


class DataType(Enum):
    """Element type of a tensor's payload."""

    FLOAT32 = media_pb2.DATA_TYPE_FLOAT32
    FLOAT16 = media_pb2.DATA_TYPE_FLOAT16
    BFLOAT16 = media_pb2.DATA_TYPE_BFLOAT16

    @property
    def bytes(self) -> int:
        """Bytes of one element."""
        return 4 if self is DataType.FLOAT32 else 2


@dataclass(frozen=True, slots=True)
class Pcm:
    """Mono sound: signed 16-bit little-endian samples.

    `first_sample` counts from the start of its stream at `sample_rate`; in what a session returns
    that is the session's media clock.
    """

    samples: bytes = field(repr=False)
    sample_rate: int  # Hz
    first_sample: int = 0
    turn: int = 0
    chunk: int = 0
    speaker: int = 0

    def __post_init__(self) -> None:
        if len(self.samples) % 2:
            raise BadInput(
                "samples", got=f"{len(self.samples)} bytes", expected="an even number of bytes"
            )
        if not MIN_SAMPLE_RATE <= self.sample_rate <= MAX_SAMPLE_RATE:
            raise BadInput(
                "sample_rate",
                got=self.sample_rate,
                expected=f"{MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz",
            )
        unsigned("first_sample", self.first_sample, bits=64)
        unsigned("turn", self.turn, bits=32)
        unsigned("chunk", self.chunk, bits=64)
        unsigned("speaker", self.speaker, bits=32)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.samples) // 2

    @property
    def end_sample(self) -> int:
        """One past the last sample."""
        return self.first_sample + len(self)

    @property
    def seconds(self) -> float:
        return len(self) / self.sample_rate

    def array(self) -> NDArray[np.int16]:
        """The samples as a read-only view, [samples]."""
        return np.frombuffer(self.samples, dtype="<i2")

    def part(self, start: int, end: int) -> Pcm:
        """Samples `start` to `end` as a slice has them, at their place on the clock."""
        start, end, _ = slice(start, end).indices(len(self))
        return replace(
            self,
            samples=self.samples[2 * start : 2 * end],
            first_sample=self.first_sample + start,
        )

    @classmethod
    def from_proto(cls, message: media_pb2.Pcm, *, at: str) -> Pcm:
        with FieldPath(at):
            return cls(
                samples=message.samples,
                sample_rate=message.sample_rate,
                first_sample=message.first_sample,
                turn=message.turn,
                chunk=message.chunk,
                speaker=message.speaker,
            )

    def to_proto(self) -> media_pb2.Pcm:
        message = media_pb2.Pcm()
        self.put_into(message)
        return message

    def put_into(self, message: media_pb2.Pcm) -> None:
        """Fill an empty message: of one that is made apart and then joined, all is copied."""
        message.turn, message.chunk, message.speaker = self.turn, self.chunk, self.speaker
        message.first_sample = self.first_sample
        message.sample_rate, message.samples = self.sample_rate, self.samples


@dataclass(frozen=True, slots=True)
class Tensor:
    """A dense array as raw little-endian bytes in row-major order; numpy has no bfloat16."""

    data_type: DataType
    shape: tuple[int, ...]
    payload: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.shape) <= _MOST_DIMENSIONS:
            raise BadInput(
                "shape",
                got=f"{len(self.shape)} dimensions",
                expected=f"1 to {_MOST_DIMENSIONS} dimensions",
            )
        if not all(1 <= size < 1 << 32 for size in self.shape):
            raise BadInput("shape", got=list(self.shape), expected="dimensions >= 1")
        expected = prod(self.shape) * self.data_type.bytes
        if len(self.payload) != expected:
            raise BadInput(
                "payload",
                got=f"{len(self.payload)} bytes",
                expected=f"{expected} bytes for {self.data_type.name} {list(self.shape)}",
            )

    @classmethod
    def from_array(
        cls, array: NDArray[np.floating], data_type: DataType = DataType.FLOAT32
    ) -> Tensor:
        """Store `array`, rounded to nearest even where `data_type` is narrower."""
        floats = np.ascontiguousarray(array, dtype="<f4")
        return cls(data_type, tuple(array.shape), _ENCODE[data_type](floats))

    def array(self) -> NDArray[np.float32]:
        """The values as float32, of `shape`; exact for every element type."""
        return _DECODE[self.data_type](self.payload).reshape(self.shape)

    @classmethod
    def from_proto(cls, message: media_pb2.Tensor, *, at: str) -> Tensor:
        with FieldPath(at):
            return cls(
                data_type=member(DataType, message.data_type, at="data_type"),
                shape=tuple(message.shape),
                payload=message.payload,
            )

    def to_proto(self) -> media_pb2.Tensor:
        message = media_pb2.Tensor()
        self.put_into(message)
        return message

    def put_into(self, message: media_pb2.Tensor) -> None:
        """Fill an empty message."""
        message.data_type, message.payload = self.data_type.value, self.payload
        message.shape.extend(self.shape)


@dataclass(frozen=True, slots=True)
class Latents:
    """The clean latents of one chunk: [channels, latent frames, height, width], normalised."""

    turn: int
    chunk: int
    tensor: Tensor

    def __post_init__(self) -> None:
        if len(self.tensor.shape) != 4:
            raise BadInput(
                "tensor.shape",
                got=list(self.tensor.shape),
                expected="[channels, latent frames, height, width]",
            )
        unsigned("turn", self.turn, bits=32)
        unsigned("chunk", self.chunk, bits=64)

    @classmethod
    def from_proto(cls, message: media_pb2.Latents, *, at: str) -> Latents:
        with FieldPath(at):
            tensor = Tensor.from_proto(message.tensor, at="tensor")
            return cls(turn=message.turn, chunk=message.chunk, tensor=tensor)

    def to_proto(self) -> media_pb2.Latents:
        message = media_pb2.Latents()
        self.put_into(message)
        return message

    def put_into(self, message: media_pb2.Latents) -> None:
        """Fill an empty message."""
        message.turn, message.chunk = self.turn, self.chunk
        self.tensor.put_into(message.tensor)


@dataclass(frozen=True, slots=True)
class SpeakerSpeech:
    """One speaker during one chunk."""

    speaker: int
    mode: Mode
    speech: Pcm  # exactly the chunk
    lookahead: Pcm  # what follows it, as far as it is known

    def __post_init__(self) -> None:
        unsigned("speaker", self.speaker, bits=32)

    @classmethod
    def from_proto(cls, message: media_pb2.SpeakerSpeech, *, at: str) -> SpeakerSpeech:
        with FieldPath(at):
            speech = Pcm.from_proto(message.speech, at="speech")
            known = message.HasField("lookahead")
            return cls(
                speaker=message.speaker,
                mode=member(Mode, message.mode, at="mode"),
                speech=speech,
                lookahead=Pcm.from_proto(message.lookahead, at="lookahead")
                if known
                else Pcm(b"", speech.sample_rate),
            )

    def to_proto(self) -> media_pb2.SpeakerSpeech:
        return media_pb2.SpeakerSpeech(
            speaker=self.speaker,
            mode=self.mode.value,
            speech=self.speech.to_proto(),
            lookahead=self.lookahead.to_proto(),
        )


@dataclass(frozen=True, slots=True)
class PastChunk:
    """A finished chunk, as a replica is told of it."""

    chunk: int
    latents: Latents | None = None  # where only speech is asked for, there are none
    speech: tuple[SpeakerSpeech, ...] = ()  # exactly as score was sent it

    def __post_init__(self) -> None:
        unsigned("chunk", self.chunk, bits=64)
        if self.latents is not None and self.latents.chunk != self.chunk:
            raise BadInput("latents.chunk", got=self.latents.chunk, expected=str(self.chunk))

    @classmethod
    def from_proto(cls, message: media_pb2.PastChunk, *, at: str) -> PastChunk:
        with FieldPath(at):
            known = message.HasField("latents")
            return cls(
                chunk=message.chunk,
                latents=Latents.from_proto(message.latents, at="latents") if known else None,
                speech=tuple(
                    SpeakerSpeech.from_proto(part, at=f"speech[{index}]")
                    for index, part in enumerate(message.speech)
                ),
            )

    def to_proto(self) -> media_pb2.PastChunk:
        return media_pb2.PastChunk(
            chunk=self.chunk,
            latents=None if self.latents is None else self.latents.to_proto(),
            speech=[part.to_proto() for part in self.speech],
        )


@dataclass(frozen=True, slots=True)
class LogTail:
    """The end of a session's log, from which any replica can go on."""

    next_chunk: int
    chunks: tuple[PastChunk, ...] = ()  # oldest first, without a gap, ending before next_chunk

    def __post_init__(self) -> None:
        unsigned("next_chunk", self.next_chunk, bits=64)
        first = self.next_chunk - len(self.chunks)
        if first < 0 or any(past.chunk != first + n for n, past in enumerate(self.chunks)):
            raise BadInput(
                "chunks",
                got=f"{len(self.chunks)} chunks, the first of them {self.chunks[0].chunk}",
                expected=f"chunks without a gap up to {self.next_chunk - 1}, oldest first",
            )
        known = [past.latents is not None for past in self.chunks]
        if known != sorted(known):
            raise BadInput("chunks.latents", got="a gap", expected="the last chunks to have them")
        shapes = {past.latents.tensor.shape for past in self.chunks if past.latents is not None}
        if len(shapes) > 1:
            raise BadInput("chunks.latents", got=sorted(shapes), expected="one shape")

    @property
    def latents(self) -> tuple[Latents, ...]:
        """Those that are known, oldest first."""
        return tuple(past.latents for past in self.chunks if past.latents is not None)

    @classmethod
    def from_proto(cls, message: media_pb2.LogTail, *, at: str) -> LogTail:
        with FieldPath(at):
            return cls(
                next_chunk=message.next_chunk,
                chunks=tuple(
                    PastChunk.from_proto(past, at=f"chunks[{index}]")
                    for index, past in enumerate(message.chunks)
                ),
            )

    def to_proto(self) -> media_pb2.LogTail:
        return media_pb2.LogTail(
            next_chunk=self.next_chunk, chunks=[past.to_proto() for past in self.chunks]
        )


def spec_from_proto(message: media_pb2.StreamSpec, *, at: str) -> StreamSpec:
    with FieldPath(at):
        return StreamSpec(
            sample_rate=message.sample_rate,
            fps=message.fps,
            latents_per_chunk=message.latents_per_chunk,
            frames_per_latent=message.frames_per_latent,
            width=message.width,
            height=message.height,
            lookahead_samples=message.lookahead_samples,
        )


def spec_to_proto(spec: StreamSpec) -> media_pb2.StreamSpec:
    return media_pb2.StreamSpec(
        sample_rate=spec.sample_rate,
        fps=spec.fps,
        latents_per_chunk=spec.latents_per_chunk,
        frames_per_latent=spec.frames_per_latent,
        width=spec.width,
        height=spec.height,
        lookahead_samples=spec.lookahead_samples,
    )


def _to_bfloat16(floats: NDArray[np.float32]) -> bytes:
    """The upper half of each float, rounded to nearest even; not-a-numbers stay quiet ones."""
    bits = floats.view("<u4")
    rounded = bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))
    halves = (rounded >> 16).astype("<u2")
    halves[np.isnan(floats)] = 0x7FC0
    return halves.tobytes()


def _from_bfloat16(payload: bytes) -> NDArray[np.float32]:
    bits = np.frombuffer(payload, dtype="<u2").astype("<u4") << 16
    return bits.view("<f4")


_ENCODE: dict[DataType, Callable[[NDArray[np.float32]], bytes]] = {
    DataType.FLOAT32: lambda floats: floats.tobytes(),
    DataType.FLOAT16: lambda floats: floats.astype("<f2").tobytes(),
    DataType.BFLOAT16: _to_bfloat16,
}
_DECODE: dict[DataType, Callable[[bytes], NDArray[np.float32]]] = {
    DataType.FLOAT32: lambda payload: np.frombuffer(payload, dtype="<f4"),
    DataType.FLOAT16: lambda payload: np.frombuffer(payload, dtype="<f2").astype(np.float32),
    DataType.BFLOAT16: _from_bfloat16,
}
