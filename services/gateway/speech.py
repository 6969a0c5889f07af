"""Where the character's speech comes from: the client itself, or a conversation model.

On the path: client → **speech** → chunker. `SpeechSource` is the seam: in DRIVE the client sends
what the character is to say; in CONVERSE a bridge answers what the user says.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from services.gateway.outbox import Event
from talkingmachines.errors import BadInput
from talkingmachines.media import Pcm
from talkingmachines.v1 import avatar_pb2


class Character(Protocol):
    """What a source of speech can do with the session's character."""

    def say(self, pcm: Pcm, *, first_sample: int | None = None) -> None:
        """Speak on. `pcm.turn` is the turn; 0: the one that is on, or a new one.

        Args:
            first_sample: where the sender says that the piece begins; it must follow the last one.

        Raises:
            BadInput: the piece does not follow the last one, or is of another rate.
            QuotaExceeded: more waits to be played than the session may hold.
        """

    def end_of_speech(self, speaker: int) -> None:
        """The speaker's utterance is complete."""

    def interrupt(self, turn: int) -> None:
        """Stop speaking now; what of `turn` (0: any) is not played never comes."""

    def tell(self, event: Event) -> None:
        """Pass an event on to the client."""


class SpeechSource(Protocol):
    """One session's source of speech."""

    def take(self, request: avatar_pb2.TalkRequest) -> None:
        """What the client sent: audio, end of speech, text or a tool's result.

        Raises:
            BadInput: it cannot be used; names the field.
        """

    def interrupt(self, turn: int) -> None:
        """The client wants silence; `turn` as in its message."""

    def hang_up(self) -> None:
        """The client will say nothing more."""

    async def run(self, character: Character) -> None:
        """Let the character speak, as long as the session lasts."""


class Drive:
    """The client sends the character's own speech."""

    def __init__(self, character: Character) -> None:
        self._character = character

    def take(self, request: avatar_pb2.TalkRequest) -> None:
        match request.WhichOneof("message"):
            case "audio":
                pcm = request.audio
                if pcm.turn or pcm.chunk:
                    got = f"turn {pcm.turn}, chunk {pcm.chunk}"
                    raise BadInput("audio.turn and chunk", got=got, expected="0 from a client")
                first = pcm.first_sample if pcm.HasField("first_sample") else None
                self._character.say(Pcm.from_proto(pcm, at="audio"), first_sample=first)
            case "end_of_speech":
                self._character.end_of_speech(request.end_of_speech.speaker)
            case other:
                raise BadInput(other or "message", got="a message", expected="it only in CONVERSE")

    def interrupt(self, turn: int) -> None:
        self._character.interrupt(turn)

    def hang_up(self) -> None:
        """What was sent is played to its end."""

    async def run(self, character: Character) -> None:
        """Nothing comes but from the client."""
        del character
        await asyncio.Event().wait()
