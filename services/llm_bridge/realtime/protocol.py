"""The OpenAI Realtime protocol as messages: what we send, and what servers send, old and new.

Beside the path: dialogue ↔ **protocol** ↔ link. Source: the public reference of the API. Names of
events changed between its beta and its release, and so did the shape of a session; servers of both
kinds are about. Events are read by their newer names; which shape a server wants is seen from the
session that it announces.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from enum import Enum
from typing import Any, assert_never

from services.llm_bridge.persona import Persona, Tool
from services.llm_bridge.settings import Realtime
from services.llm_bridge.speech_model import (
    Asked,
    CheckIn,
    Cue,
    Greet,
    Line,
    Party,
    Past,
    Reply,
    Told,
)

RATE = 24_000  # Hz, 16-bit, both ways

Message = dict[str, Any]

_NEW_NAMES = {
    "response.audio.delta": "response.output_audio.delta",
    "response.audio.done": "response.output_audio.done",
    "response.audio_transcript.delta": "response.output_audio_transcript.delta",
    "response.audio_transcript.done": "response.output_audio_transcript.done",
    "response.text.delta": "response.output_text.delta",
    "response.text.done": "response.output_text.done",
    "conversation.item.created": "conversation.item.added",
}
_TRY_AGAIN = re.compile(r"try again in (\d+(?:\.\d+)?) ?(ms|s)\b", re.IGNORECASE)


class Dialect(Enum):
    """Which shape of session and items a server reads."""

    RELEASED = "released"
    BETA = "beta"

    @classmethod
    def of(cls, created: Message) -> Dialect:
        """By the session that `session.created` describes."""
        session = created.get("session")
        old = isinstance(session, dict) and "modalities" in session
        return cls.BETA if old else cls.RELEASED


def read(text: str) -> Message:
    """A server's event, under its newer name; {} for what is none."""
    try:
        event = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        return {}
    event["type"] = _NEW_NAMES.get(event["type"], event["type"])
    return event


def sound(event: Message) -> bytes:
    """The samples of an audio delta; b"" when they are none."""
    try:
        samples = base64.b64decode(event.get("delta", ""), validate=True)
    except (ValueError, TypeError):
        return b""
    return samples[: len(samples) & ~1]


def retry_seconds(error: Message) -> float:
    """How long an error asks to wait; 0 when it does not say."""
    match = _TRY_AGAIN.search(str(error.get("message", "")))
    if match is None:
        return 0.0
    return float(match[1]) / (1000 if match[2].lower() == "ms" else 1)


# ---- What we send ----


def session_update(dialect: Dialect, persona: Persona, settings: Realtime) -> Message:
    """The character: who it is, how it sounds, what it may call, when a turn is over.

    The server hears when the user is done; when to answer and to be quiet is decided here.
    """
    language = {"language": persona.language.split("-")[0]} if persona.language else {}
    transcription = (
        {"model": settings.transcription, **language} if settings.transcription else None
    )
    detection = None
    if not persona.manners.push_to_talk:
        detection = {
            "type": "server_vad",
            "silence_duration_ms": round(1000 * persona.manners.patience.end_silence),
            "create_response": False,
            "interrupt_response": False,
        }
    voice = persona.voice or settings.voice
    session: Message = {
        "instructions": persona.instructions,
        "tools": [_tool(tool) for tool in persona.tools],
        "tool_choice": "auto",
    }
    if dialect is Dialect.BETA:
        session |= {
            "modalities": ["text", "audio"],
            "input_audio_format": "pcm16",
            "output_audio_format": "pcm16",
            "input_audio_transcription": transcription,
            "turn_detection": detection,
        }
        session |= {"voice": voice} if voice else {}
    else:
        form = {"type": "audio/pcm", "rate": RATE}
        heard = {"format": form, "transcription": transcription, "turn_detection": detection}
        spoken: Message = {"format": form, **({"voice": voice} if voice else {})}
        session |= {
            "type": "realtime",
            "output_modalities": ["audio"],
            "audio": {"input": heard, "output": spoken},
        }
        session |= {"model": settings.model} if settings.model else {}
    return {"type": "session.update", "event_id": "session", "session": session}


def append(samples: bytes) -> Message:
    audio = base64.b64encode(samples).decode()
    return {"type": "input_audio_buffer.append", "audio": audio}


def commit() -> Message:
    return {"type": "input_audio_buffer.commit", "event_id": "commit"}


def line(dialect: Dialect, said: Line) -> Message:
    """Something that was said, as an item of the conversation."""
    if said.party is Party.USER:
        return _item("user", "input_text", said.text)
    kind = "text" if dialect is Dialect.BETA else "output_text"
    return _item("assistant", kind, said.text)


def create_response(answer: int, cue: Cue, persona: Persona) -> Message:
    """Ask for an answer; errors about it carry its event id."""
    message: Message = {"type": "response.create", "event_id": event_of(answer)}
    match cue:
        case Reply():
            return message
        case Greet(text=text):
            task = f"Greet the user now. Say exactly this and nothing else: {text}"
        case CheckIn():
            task = "The user has been silent for a while. Say one short, friendly thing."
        case _:
            assert_never(cue)
    return message | {"response": {"instructions": f"{persona.instructions}\n\n{task}"}}


def event_of(answer: int) -> str:
    return f"answer-{answer}"


def cancel_response(response_id: str) -> Message:
    return {"type": "response.cancel", "event_id": "cancel", "response_id": response_id}


def truncate(item_id: str, samples: int) -> Message:
    """The user heard no more of an item than so many samples."""
    return {
        "type": "conversation.item.truncate",
        "event_id": "truncate",
        "item_id": item_id,
        "content_index": 0,
        "audio_end_ms": 1000 * samples // RATE,
    }


def tool_call(asked: Asked) -> Message:
    item = {
        "type": "function_call",
        "call_id": asked.call_id,
        "name": asked.name,
        "arguments": asked.arguments_json,
    }
    return {"type": "conversation.item.create", "item": item}


def tool_output(told: Told) -> Message:
    item = {"type": "function_call_output", "call_id": told.call_id, "output": told.result_json}
    return {"type": "conversation.item.create", "item": item}


def replay(dialect: Dialect, past: Sequence[Past]) -> list[Message]:
    """The conversation so far, for a server that has not seen it."""
    asked, messages = set[str](), list[Message]()
    for event in past:
        match event:
            case Line(text=""):
                pass
            case Line():
                messages.append(line(dialect, event))
            case Asked():
                asked.add(event.call_id)
                messages.append(tool_call(event))
            case Told() if event.call_id in asked:  # servers refuse a result without its call
                messages.append(tool_output(event))
    return messages


def _item(role: str, kind: str, text: str) -> Message:
    content = [{"type": kind, "text": text}]
    item = {"type": "message", "role": role, "content": content}
    return {"type": "conversation.item.create", "item": item}


def _tool(tool: Tool) -> Message:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": json.loads(tool.parameters_json),
    }
