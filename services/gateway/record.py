"""The log of a session as bytes, as another gateway reads it."""

from __future__ import annotations

from services.gateway.chunk import Chunk, SpeechPosition, TurnEnd
from services.gateway.log import Entry
from talkingmachines.media import Latents, SpeakerSpeech
from talkingmachines.v1 import avatar_pb2, storage_pb2


def entry_to_proto(entry: Entry, *, sent_frame: int, turn: int) -> storage_pb2.LogEntry:
    """An entry whose latents are known.

    Args:
        sent_frame: media clock of what was to be sent next.
        turn: that the last interruption began.
    """
    assert entry.latents is not None
    chunk = entry.chunk
    message = storage_pb2.LogEntry(
        chunk=chunk.to_proto(0.0),
        begins=chunk.begins,
        ends=[storage_pb2.LogTurnEnd(turn=end.turn, samples=end.samples) for end in chunk.ends],
        positions=[_position_to_proto(position) for position in chunk.positions],
        sent_frame=sent_frame,
        turn=max(turn, chunk.turn),
    )
    message.chunk.ClearField("slack")
    entry.latents.put_into(message.latents)
    return message


def entry_from_proto(message: storage_pb2.LogEntry) -> Entry:
    chunk = Chunk(
        turn=message.chunk.turn,
        chunk=message.chunk.chunk,
        speech=tuple(SpeakerSpeech.from_proto(part, at="speech") for part in message.chunk.speech),
        begins=message.begins if message.HasField("begins") else None,
        ends=tuple(TurnEnd(end.turn, end.samples) for end in message.ends),
        positions=tuple(_position(position) for position in message.positions),
    )
    return Entry(chunk, Latents.from_proto(message.latents, at="latents"))


def _position_to_proto(position: SpeechPosition) -> storage_pb2.LogSpeechPosition:
    return storage_pb2.LogSpeechPosition(
        position=avatar_pb2.SpeechPosition(speaker=position.speaker, sample=position.sample),
        sample_rate=position.sample_rate,
        skip=position.skip,
        open=position.open,
    )


def _position(message: storage_pb2.LogSpeechPosition) -> SpeechPosition:
    return SpeechPosition(
        speaker=message.position.speaker,
        sample_rate=message.sample_rate,
        sample=message.position.sample,
        skip=message.skip,
        open=message.open,
    )
