"""Who writes the answers of the local pipeline, and how a chat model is asked for one.

On the path: dialogue → **writer** → clauses.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol, assert_never

from services.llm_bridge.persona import Persona
from services.llm_bridge.speech_model import CheckIn, Cue, Greet, Line, Party, Reply

_MOST_LINES = 40  # of what was said that a model is reminded of
_SPOKEN = "You are heard, not read: answer in one to three short spoken sentences, without markup."
_CHECK_IN = "(The user has been silent for a while. Say one short, friendly thing.)"


class Writer(Protocol):
    """Writes what the character says."""

    @property
    def name(self) -> str:
        """For people."""

    def write(self, persona: Persona, history: Sequence[Line], cue: Cue) -> AsyncIterator[str]:
        """The answer in pieces, as they are written.

        Raises:
            TalkingMachinesError: why there is no answer, or no more of it.
        """


def messages(persona: Persona, history: Sequence[Line], cue: Cue) -> list[dict[str, str]]:
    """The conversation as chat models read it."""
    language = f" Speak {persona.language}." if persona.language else ""
    system = f"{persona.instructions}\n\n{_SPOKEN}{language}"
    asked = [{"role": "system", "content": system}]
    for line in history[-_MOST_LINES:]:
        role = "user" if line.party is Party.USER else "assistant"
        if asked[-1]["role"] == role:  # models expect the parties in turn
            asked[-1]["content"] += f"\n{line.text}"
        else:
            asked.append({"role": role, "content": line.text})
    match cue:
        case Reply():
            return asked
        case CheckIn():
            return [*asked, {"role": "user", "content": _CHECK_IN}]
        case Greet(text=text):
            return [*asked, {"role": "user", "content": f"(Greet the user: {text})"}]
        case _:
            assert_never(cue)
