"""Who the character is in conversation, as the avatar and the session have it.

Beside the path: servicer → **persona** → conversation, dialogue. What a client leaves open is
filled in with the operator's defaults here, once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from talkingmachines import duration
from talkingmachines.v1 import avatar_pb2

_DEFAULT_INSTRUCTIONS = (
    "You are a friendly character in a live video call. Speak as people speak: short, warm, "
    "natural sentences, no lists, no markup, no emojis."
)


@dataclass(frozen=True, slots=True)
class Patience:
    """When a character speaks, and when it lets itself be interrupted. Times in seconds."""

    end_silence: float = 0.6  # silence after which the user's turn is over
    min_interruption: float = 0.5  # less voice than this does not interrupt
    silence_timeout: float = 60.0  # silence after which the character says something; 0: never


@dataclass(frozen=True, slots=True)
class Manners:
    """A persona's turn-taking."""

    patience: Patience = field(default_factory=Patience)
    push_to_talk: bool = False  # the client says when the user's turn is over
    uninterruptible_greeting: bool = False
    uninterruptible: bool = False


@dataclass(frozen=True, slots=True)
class Tool:
    """A function of the client's."""

    name: str
    description: str
    parameters_json: str  # JSON Schema of the arguments


@dataclass(frozen=True, slots=True)
class Persona:
    """A character. Empty texts mean the model's own choice."""

    instructions: str = _DEFAULT_INSTRUCTIONS
    voice: str = ""
    greeting: str = ""
    language: str = ""
    tools: tuple[Tool, ...] = ()
    manners: Manners = field(default_factory=Manners)


def persona_from_proto(message: avatar_pb2.Persona, *, defaults: Patience) -> Persona:
    """The persona, which the gateway has checked, with what it leaves open filled in."""
    return Persona(
        instructions=message.instructions or _DEFAULT_INSTRUCTIONS,
        voice=message.voice,
        greeting=message.greeting,
        language=message.language,
        tools=tuple(
            Tool(tool.name, tool.description, tool.parameters_json) for tool in message.tools
        ),
        manners=_manners(message.turn_taking, defaults),
    )


def _manners(message: avatar_pb2.TurnTaking, defaults: Patience) -> Manners:
    given = {
        name: duration.from_proto(getattr(message, name))
        for name in ("end_silence", "min_interruption", "silence_timeout")
        if message.HasField(name)
    }
    return Manners(
        patience=Patience(
            end_silence=given.get("end_silence", defaults.end_silence),
            min_interruption=given.get("min_interruption", defaults.min_interruption),
            silence_timeout=given.get("silence_timeout", defaults.silence_timeout),
        ),
        push_to_talk=message.detection == avatar_pb2.TURN_DETECTION_MANUAL,
        uninterruptible_greeting=message.uninterruptible_greeting,
        uninterruptible=message.uninterruptible,
    )
