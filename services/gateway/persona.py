"""What a client may say about who a character is, checked field by field."""

from __future__ import annotations

import json
import re

from talkingmachines import duration
from talkingmachines.errors import BadInput
from talkingmachines.v1 import avatar_pb2

_INSTRUCTIONS = 20_000  # characters
_GREETING = 1_000
_DESCRIPTION = 1_000
_TOOLS = 64
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")  # BCP 47, near enough


def check_persona(persona: avatar_pb2.Persona, *, at: str) -> None:
    """Whether every field is within the contract.

    Raises:
        BadInput: one is not; names it.
    """
    check_text(persona.instructions, most=_INSTRUCTIONS, at=f"{at}.instructions")
    check_text(persona.greeting, most=_GREETING, at=f"{at}.greeting")
    check_text(persona.voice, most=100, at=f"{at}.voice")
    if persona.language and not _LANGUAGE.fullmatch(persona.language):
        raise BadInput(f"{at}.language", got=persona.language, expected='a tag such as "en"')
    if persona.no_tools and persona.tools:
        raise BadInput(f"{at}.no_tools", got="true, and tools", expected="one of them")
    if len(persona.tools) > _TOOLS:
        raise BadInput(f"{at}.tools", got=len(persona.tools), expected=f"at most {_TOOLS}")
    for index, tool in enumerate(persona.tools):
        _check_tool(tool, at=f"{at}.tools[{index}]")
    _check_patience(persona.turn_taking, at=f"{at}.turn_taking")


def laid_over(persona: avatar_pb2.Persona, own: avatar_pb2.Persona) -> avatar_pb2.Persona:
    """A session's `own` values over those of the avatar's `persona`."""
    whole = avatar_pb2.Persona()
    whole.CopyFrom(persona)
    if own.no_tools or own.tools:
        whole.ClearField("tools")
    if own.HasField("turn_taking"):
        whole.ClearField("turn_taking")
    whole.MergeFrom(own)  # a text that is set replaces the other, also when it is empty
    whole.ClearField("no_tools")
    return whole


def check_text(text: str, *, most: int, at: str, least: int = 0) -> None:
    """Whether `text` has `least` to `most` characters."""
    if not least <= len(text) <= most:
        raise BadInput(at, got=f"{len(text)} characters", expected=f"{least} to {most}")


def _check_tool(tool: avatar_pb2.Tool, *, at: str) -> None:
    if not _TOOL_NAME.fullmatch(tool.name):
        expected = "1 to 64 letters, digits, underscores and hyphens"
        raise BadInput(f"{at}.name", got=tool.name[:100], expected=expected)
    check_text(tool.description, most=_DESCRIPTION, at=f"{at}.description")
    try:
        fits = isinstance(json.loads(tool.parameters_json), dict)
    except ValueError:
        fits = False
    if not fits:
        got = tool.parameters_json[:100]
        raise BadInput(f"{at}.parameters_json", got=got, expected="a JSON object")


def _check_patience(turns: avatar_pb2.TurnTaking, *, at: str) -> None:
    for field, least, most in (("end_silence", 0.1, 10.0), ("min_interruption", 0.0, 5.0)):
        if turns.HasField(field):  # type: ignore[arg-type]
            seconds = duration.from_proto(getattr(turns, field))
            if not least <= seconds <= most:
                raise BadInput(
                    f"{at}.{field}", got=f"{seconds:g} s", expected=f"{least:g} to {most:g} s"
                )
    if turns.HasField("silence_timeout"):
        seconds = duration.from_proto(turns.silence_timeout)
        if seconds != 0 and seconds < 5:
            raise BadInput(
                f"{at}.silence_timeout", got=f"{seconds:g} s", expected="0 s, or 5 s or more"
            )
