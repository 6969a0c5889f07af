"""What browsers send and are sent, as JSON: bodies of HTTP, messages of the data channel, errors.

Beside the path: http_api, browser_call → **bodies**. The only place where JSON meets the contracts;
`docs/webrtc.md` says the same for whoever writes a client.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from services.runtime import strict_json
from talkingmachines import duration
from talkingmachines.errors import (
    BadInput,
    NoCapacity,
    NotFound,
    QuotaExceeded,
    TalkingMachinesError,
    Unavailable,
)
from talkingmachines.picture import Codec, VideoFormat, VideoSettings
from talkingmachines.status import code_of
from talkingmachines.v1 import avatar_pb2

MESSAGE_BYTES = 16 * 1024  # of one message from a client
Json = dict[str, Any]

T = TypeVar("T")

_STATUS = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


class TooLarge(BadInput):
    """More bytes than are read."""


# ---- Errors ----


def problem(error: TalkingMachinesError) -> Json:
    """The error as clients are told it."""
    told: Json = {"code": code_of(error).name, "message": str(error)}
    match error:
        case BadInput(field=field, got=got, expected=expected):
            told |= {"field": field, "got": got, "expected": expected}
        case NotFound(kind=kind, name=name):
            told |= {"kind": kind, "name": name}
        case QuotaExceeded(quota=quota, limit=limit):
            told |= {"quota": quota, "limit": limit}
        case NoCapacity(retry_after=seconds) | Unavailable(retry_after=seconds):
            told |= {"retry_after": seconds}
    return {"error": told}


def http_status(error: TalkingMachinesError) -> int:
    match error:
        case TooLarge():
            return 413
        case NoCapacity():  # the fleet's, not the caller's
            return 503
        case _:
            return _STATUS.get(code_of(error).name, 500)


# ---- Opening a call ----


@dataclass(frozen=True, slots=True)
class TurnTaking:
    detection: Literal["automatic", "manual"] | None = None
    end_silence: float | None = None  # seconds, as all of these
    min_interruption: float | None = None
    silence_timeout: float | None = None
    uninterruptible: bool = False
    uninterruptible_greeting: bool = False

    def to_proto(self) -> avatar_pb2.TurnTaking:
        message = avatar_pb2.TurnTaking(
            detection=_DETECTION[self.detection],
            uninterruptible=self.uninterruptible,
            uninterruptible_greeting=self.uninterruptible_greeting,
        )
        for name in ("end_silence", "min_interruption", "silence_timeout"):
            if (seconds := getattr(self, name)) is not None:
                getattr(message, name).CopyFrom(_span(seconds, at=f"persona.turn_taking.{name}"))
        return message


@dataclass(frozen=True, slots=True)
class Persona:
    instructions: str | None = None
    voice: str | None = None
    greeting: str | None = None
    language: str | None = None
    turn_taking: TurnTaking | None = None

    def to_proto(self) -> avatar_pb2.Persona:
        turns = None if self.turn_taking is None else self.turn_taking.to_proto()
        return avatar_pb2.Persona(
            instructions=self.instructions,
            voice=self.voice,
            greeting=self.greeting,
            language=self.language,
            turn_taking=turns,
        )


@dataclass(frozen=True, slots=True)
class CallBody:
    """The body of `POST /v1/calls`."""

    sdp: str
    avatar: str = ""
    resume: str = ""
    max_queue_seconds: float = 0.0
    persona: Persona = Persona()

    def opening(self, codec: Codec, bitrate: int) -> avatar_pb2.Open:
        """The first message of the session."""
        settings = VideoSettings(bitrate=bitrate)
        return avatar_pb2.Open(
            avatar_id=self.avatar,
            mode=avatar_pb2.TALK_MODE_CONVERSE,
            video=VideoFormat(codec, settings).to_proto(),
            resume_token=self.resume.encode(),
            persona=self.persona.to_proto(),
            max_queue_time=_span(self.max_queue_seconds, at="max_queue_seconds"),
        )


def read_body(kind: type[T], text: str) -> T:
    """A body or a message.

    Raises:
        BadInput: names the field that does not fit.
    """
    return _fitting(kind, _parsed(text, at="body"), at="body")


# ---- The data channel: from the client ----


@dataclass(frozen=True, slots=True)
class Interrupt:
    type: Literal["interrupt"]
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Text:
    type: Literal["text"]
    text: str


@dataclass(frozen=True, slots=True)
class EndOfSpeech:
    type: Literal["end_of_speech"]


@dataclass(frozen=True, slots=True)
class Microphone:
    type: Literal["microphone"]
    on: bool


@dataclass(frozen=True, slots=True)
class ToolResult:
    type: Literal["tool_result"]
    call_id: str
    result: str  # JSON
    failed: bool = False


@dataclass(frozen=True, slots=True)
class HangUp:
    type: Literal["hang_up"]


Message = Interrupt | Text | EndOfSpeech | Microphone | ToolResult | HangUp

_MESSAGES: dict[str, type[Message]] = {
    "interrupt": Interrupt,
    "text": Text,
    "end_of_speech": EndOfSpeech,
    "microphone": Microphone,
    "tool_result": ToolResult,
    "hang_up": HangUp,
}


def read_message(text: str | bytes) -> Message:
    """A message of the data channel.

    Raises:
        BadInput: names the field that does not fit.
    """
    size = len(text) if isinstance(text, bytes) else len(text.encode())
    if isinstance(text, bytes) or size > MESSAGE_BYTES:
        expected = f"text of at most {MESSAGE_BYTES} bytes"
        raise BadInput("message", got=f"{size} bytes", expected=expected)
    value = _parsed(text, at="message")
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in _MESSAGES:
        raise BadInput("message.type", got=repr(kind), expected=f"one of {sorted(_MESSAGES)}")
    if kind == "tool_result" and "result" in value:  # any JSON, kept as it is
        value |= {"result": json.dumps(value["result"])}
    return _fitting(_MESSAGES[kind], value, at="message")


def to_request(message: Interrupt | Text | EndOfSpeech | ToolResult) -> avatar_pb2.TalkRequest:
    """What a session takes."""
    match message:
        case Interrupt(turn=turn):
            if not 0 <= turn < 1 << 32:
                raise BadInput("message.turn", got=turn, expected="a turn's number")
            return avatar_pb2.TalkRequest(interrupt=avatar_pb2.Interrupt(turn=turn))
        case Text(text=text):
            return avatar_pb2.TalkRequest(text=avatar_pb2.Text(text=text))
        case EndOfSpeech():
            return avatar_pb2.TalkRequest(end_of_speech=avatar_pb2.EndOfSpeech())
        case ToolResult(call_id=name, result=result, failed=failed):
            answer = avatar_pb2.ToolResult(call_id=name, result_json=result, failed=failed)
            return avatar_pb2.TalkRequest(tool_result=answer)


# ---- The data channel: from the server ----


def ready(message: avatar_pb2.Ready) -> Json:
    spec = message.spec
    return {
        "type": "ready",
        "session": message.session_id,
        "resumed": message.resumed,
        "resume_token": message.resume_token.decode(),
        "resume_seconds": duration.from_proto(message.resume_window),
        "fps": spec.fps,
        "sample_rate": spec.sample_rate,
        "width": spec.width,
        "height": spec.height,
        "turn": message.turn,
        "time": message.next_frame / spec.fps,
    }


def queued(message: avatar_pb2.Queued) -> Json:
    told: Json = {"type": "queued", "position": message.position, "depth": message.depth}
    if message.HasField("expected_wait"):
        told["expected_wait"] = duration.from_proto(message.expected_wait)
    return told


def transcript(message: avatar_pb2.Transcript, *, rate: int, delay: float) -> Json:
    user = message.party == avatar_pb2.PARTY_USER
    return {
        "type": "transcript",
        "party": "user" if user else "character",
        "utterance": message.utterance,
        "turn": message.turn,
        "text": message.text,
        "final": message.final,
        "interrupted": message.interrupted,
        "start": message.first_sample / rate,
        "end": message.end_sample / rate,
        "delay": 0.0 if user else delay,
        "speaker": message.speaker,
    }


def statistics(message: avatar_pb2.Statistics) -> Json:
    counts = (
        "frames_sent",
        "frames_dropped",
        "deadline_misses",
        "holds",
        "hand_overs",
        "rebuilds",
    )
    told: Json = {"type": "statistics"} | {name: getattr(message, name) for name in counts}
    for name in ("held", "lead", "av_skew"):
        told[name] = duration.from_proto(getattr(message, name))
    for name in ("first_frame", "answer"):
        if message.HasField(name):  # type: ignore[arg-type]
            told[name] = duration.from_proto(getattr(message, name))
    told["stages"] = {stage.stage: duration.from_proto(stage.time) for stage in message.stages}
    return told


def notice(message: avatar_pb2.Notice) -> Json:
    kind = avatar_pb2.NoticeKind.Name(message.kind).removeprefix("NOTICE_KIND_").lower()
    told: Json = {"type": "notice", "kind": kind, "message": message.message}
    if message.turn:
        told["turn"] = message.turn
    if message.HasField("time_left"):
        told["time_left"] = duration.from_proto(message.time_left)
    return told


def tool_call(message: avatar_pb2.ToolCall) -> Json:
    return {
        "type": "tool_call",
        "call_id": message.call_id,
        "turn": message.turn,
        "name": message.name,
        "arguments": json.loads(message.arguments_json or "{}"),
    }


# ---- Characters ----


def character(avatar: avatar_pb2.Avatar) -> Json:
    persona = avatar.persona
    return {
        "id": avatar.avatar_id,
        "display_name": avatar.display_name,
        "shared": avatar.shared,
        "prompt": avatar.prompt,
        "created": avatar.create_time.ToJsonString(),
        "portrait": f"/v1/avatars/{avatar.avatar_id}/portrait",
        "persona": {
            "greeting": persona.greeting,
            "language": persona.language,
            "voice": persona.voice,
        },
    }


_DETECTION = {
    None: avatar_pb2.TURN_DETECTION_UNSPECIFIED,
    "automatic": avatar_pb2.TURN_DETECTION_AUTOMATIC,
    "manual": avatar_pb2.TURN_DETECTION_MANUAL,
}
_LONGEST_SPAN = 86_400.0  # seconds; every field has a limit of its own below


def _span(seconds: float, *, at: str) -> Any:
    if not 0 <= seconds <= _LONGEST_SPAN:  # also when it is not a number
        raise BadInput(at, got=seconds, expected=f"0 to {_LONGEST_SPAN:g} s")
    return duration.to_proto(seconds)


def _parsed(text: str, *, at: str) -> Json:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput(at, got="something else", expected="a JSON object") from None
    if not isinstance(value, dict):
        raise BadInput(at, got=f"a {type(value).__name__}", expected="a JSON object")
    return value


def _fitting(kind: type[T], value: Json, *, at: str) -> T:
    try:
        return strict_json.read(kind, value, at)
    except strict_json.Misfit as error:
        field = error.field.removeprefix("body.")
        raise BadInput(field, got=error.got, expected=error.expected) from None
