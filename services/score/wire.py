"""Between the contract on the wire and the engine's own.

Beside the servicer. Whatever does not fit is refused here or by `checks`, under the name that its
sender knows; what has passed can be given to the engine.

Legend: C latent channels, F latent frames of a chunk, h and w rows and columns of a latent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from google.protobuf.duration_pb2 import Duration

from services.score import checks, contract
from services.score.config import DitConfig
from services.score.contract import Avatar, Chunk, Drawn, LogTail, PastChunk, Pcm16, Rectangle
from services.score.encoders.conditioning import Embeddings
from talkingmachines import duration, media
from talkingmachines.errors import BadInput
from talkingmachines.picture import PixelFormat, RawPicture
from talkingmachines.v1 import media_pb2, score_pb2

_SILENT = contract.Mode.LISTENING
_MODES = {
    media.Mode.SPEAKING: contract.Mode.SPEAKING,
    media.Mode.LISTENING: contract.Mode.LISTENING,
}
_TYPES = {
    torch.float32: media.DataType.FLOAT32,
    torch.float16: media.DataType.FLOAT16,
    torch.bfloat16: media.DataType.BFLOAT16,
}
_LONGEST_SLACK = 3600.0  # seconds, either way


@dataclass(frozen=True, slots=True, eq=False)
class Attach:
    """A session to take in."""

    session_id: str  # for logs
    avatar: Avatar
    seed: int
    tail: LogTail


class Reader:
    """Reads what the gateway sends to one checkpoint.

    Args:
        checkpoint: its name.
        most_faces: that one picture may have.
    """

    def __init__(self, config: DitConfig, *, checkpoint: str, most_faces: int) -> None:
        self._config, self._spec = config, config.spec
        self._checkpoint, self._most_faces = checkpoint, most_faces

    def attach(self, message: score_pb2.DenoiseAttach) -> Attach:
        """Raises BadInput, naming the field."""
        avatar = self._avatar(message.conditioning)
        if message.HasField("slack"):
            _slack(message.slack, at="attach.slack")
        sent = message.tail if message.HasField("tail") else media_pb2.LogTail()
        tail = self.tail(sent, faces=len(avatar.faces), at="attach.tail")
        return Attach(message.session_id, avatar, message.seed, tail)

    def chunk(self, message: score_pb2.DenoiseChunk, *, faces: int) -> Chunk:
        """Raises BadInput, naming the field."""
        return Chunk(
            turn=message.turn,
            chunk=message.chunk,
            speech=self._speech(_parts(message.speech, at="chunk.speech"), faces, "chunk.speech"),
            slack=_slack(message.slack, at="chunk.slack"),
        )

    def tail(self, message: media_pb2.LogTail, *, faces: int, at: str) -> LogTail:
        """Raises BadInput, naming the field."""
        sent = media.LogTail.from_proto(message, at=at)
        if sent.next_chunk and not sent.chunks:
            raise BadInput(f"{at}.chunks", got="none", expected="the last of them")
        past = tuple(
            PastChunk(
                chunk=one.chunk,
                speech=self._speech(one.speech, faces, f"{at}.chunks[{index}].speech"),
                latents=None if one.latents is None else _tensor(one.latents.tensor),
            )
            for index, one in enumerate(sent.chunks)
        )
        tail = LogTail(past)
        with _under(at, instead_of="tail"):
            checks.check_tail(tail, self._hearing(faces), self._config)
        return tail

    def _avatar(self, message: score_pb2.Conditioning) -> Avatar:
        at = "attach.conditioning"
        if message.checkpoint != self._checkpoint:
            got = message.checkpoint or "nothing"
            raise BadInput(f"{at}.checkpoint", got=got, expected=self._checkpoint)
        if not message.digest:
            raise BadInput(f"{at}.digest", got="nothing", expected="a digest of the rest")
        if len(message.faces) > self._most_faces:
            expected = f"at most {self._most_faces}"
            raise BadInput(f"{at}.faces", got=len(message.faces), expected=expected)
        given = {
            name: _tensor(media.Tensor.from_proto(getattr(message, name), at=f"{at}.{name}"))
            if message.HasField(name)
            else None
            for name in ("anchor", "text", "listening_text", "image")
        }
        if (anchor := given["anchor"]) is None:
            raise BadInput(f"{at}.anchor", got="nothing", expected="the reference picture's latent")
        faces = tuple(
            Rectangle(face.x, face.y, min(1.0, face.x + face.width), min(1.0, face.y + face.height))
            for face in message.faces
        )
        avatar = Avatar(
            digest=message.digest,
            anchor=anchor,
            faces=faces,
            text=given["text"],
            listening_text=given["listening_text"],
            clip=given["image"],
        )
        with _under(at, instead_of="avatar"):
            checks.check_avatar(avatar, self._config)
        return avatar

    def _speech(
        self, parts: Sequence[media.SpeakerSpeech], faces: int, at: str
    ) -> tuple[contract.Speech, ...]:
        """What every face says; those that are not sent listen."""
        silence = np.zeros(self._samples, np.int16)
        said = [contract.Speech(_SILENT, silence)] * self._hearing(faces)
        seen: set[int] = set()
        for index, part in enumerate(parts):
            if part.speaker >= faces or part.speaker in seen:
                expected = f"each once, below {faces}"
                raise BadInput(f"{at}[{index}].speaker", got=part.speaker, expected=expected)
            seen.add(part.speaker)
            pcm = self._pcm(part, f"{at}[{index}]")
            if said:
                said[part.speaker] = contract.Speech(_MODES[part.mode], pcm)
        return tuple(said)

    def _pcm(self, part: media.SpeakerSpeech, at: str) -> Pcm16:
        """A chunk's samples and its look-ahead's: what is missing of that counts as silence."""
        spec = self._spec
        for name, sent in (("speech", part.speech), ("lookahead", part.lookahead)):
            if len(sent) and sent.sample_rate != spec.sample_rate:
                expected = f"{spec.sample_rate} Hz"
                raise BadInput(f"{at}.{name}.sample_rate", got=sent.sample_rate, expected=expected)
        if len(part.speech) != spec.samples_per_chunk:
            expected = f"{spec.samples_per_chunk}, a chunk"
            raise BadInput(f"{at}.speech.samples", got=len(part.speech), expected=expected)
        if len(part.lookahead) > spec.lookahead_samples:
            expected = f"at most {spec.lookahead_samples}"
            raise BadInput(f"{at}.lookahead.samples", got=len(part.lookahead), expected=expected)
        pcm = np.zeros(self._samples, np.int16)
        pcm[: spec.samples_per_chunk] = part.speech.array()
        pcm[spec.samples_per_chunk :][: len(part.lookahead)] = part.lookahead.array()
        return pcm

    @property
    def _samples(self) -> int:
        return self._spec.samples_per_chunk + self._spec.lookahead_samples

    def _hearing(self, faces: int) -> int:
        return faces if self._config.audio is not None else 0


def picture(message: media_pb2.RawPicture) -> torch.Tensor:
    """[rows, columns, 3] uint8. Raises BadInput, naming the field."""
    sent = RawPicture.from_proto(message, at="image")
    if sent.pixel_format is not PixelFormat.RGB24:
        raise BadInput("image.pixel_format", got=sent.pixel_format.name, expected="RGB24")
    pixels = torch.frombuffer(bytearray(sent.pixels), dtype=torch.uint8)
    return pixels.view(sent.height, sent.width, 3)


def embed(conditioning: score_pb2.Conditioning, made: Embeddings) -> None:
    """Lay embeddings into a message."""
    if made.text is not None:
        conditioning.text.CopyFrom(_sent(made.text))
    if made.listening_text is not None:
        conditioning.listening_text.CopyFrom(_sent(made.listening_text))
    if made.picture is not None:
        conditioning.image.CopyFrom(_sent(made.picture))


def latents_to_proto(drawn: Drawn) -> media_pb2.Latents:
    """A chunk's latents in the element type that they left the device in."""
    return media.Latents(drawn.turn, drawn.chunk, _as_sent(drawn.latents)).to_proto()


def latent_shape(config: DitConfig) -> tuple[int, int, int, int]:
    """[C, F, h, w]."""
    return (config.latent.channels, config.stream.latents_per_chunk, *config.latent_size)


def tail_length(config: DitConfig) -> score_pb2.LogTailLength:
    size = checks.tail_size(config)
    return score_pb2.LogTailLength(latent_chunks=size.latents, speech_chunks=size.speech)


def _parts(
    messages: Sequence[media_pb2.SpeakerSpeech], *, at: str
) -> tuple[media.SpeakerSpeech, ...]:
    return tuple(
        media.SpeakerSpeech.from_proto(message, at=f"{at}[{index}]")
        for index, message in enumerate(messages)
    )


def _as_sent(tensor: torch.Tensor) -> media.Tensor:
    tensor = tensor.contiguous()
    payload = tensor.view(torch.uint8).numpy().tobytes()
    return media.Tensor(_TYPES[tensor.dtype], tuple(tensor.shape), payload)


def _sent(tensor: torch.Tensor) -> media_pb2.Tensor:
    return _as_sent(tensor).to_proto()


def _tensor(sent: media.Tensor) -> torch.Tensor:
    return torch.from_numpy(sent.array().copy())


def _slack(message: Duration, *, at: str) -> float:
    seconds = duration.from_proto(message)
    if not math.isfinite(seconds) or abs(seconds) > _LONGEST_SLACK:
        raise BadInput(at, got=f"{seconds:g} s", expected=f"within {_LONGEST_SLACK:g} s of now")
    return seconds


@contextmanager
def _under(at: str, *, instead_of: str) -> Iterator[None]:
    """Name fields as the sender knows them: `checks` knows only the engine's own names."""
    try:
        yield
    except BadInput as error:
        field = at + error.field.removeprefix(instead_of).replace(".clip", ".image")
        raise BadInput(field, got=error.got, expected=error.expected) from None
