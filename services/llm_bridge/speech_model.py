"""What a speech model is to a conversation: the user's voice in, answers in speech out.

On the path: servicer → conversation → **speech model**. `SpeechModel` is one process's, `Dialogue`
one conversation's. A dialogue hears when the user begins and ends and makes answers when it is
told to; when to answer, and when to be quiet, is decided in `turns`, the same for every model.
Nothing of a dialogue waits: what comes of a call comes as an event.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from services.llm_bridge.persona import Persona
from talkingmachines.media import Pcm

# ---- What an answer is to be about ----


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to what the user said or wrote last."""


@dataclass(frozen=True, slots=True)
class Greet:
    """The first words of a call, as the persona has them."""

    text: str


@dataclass(frozen=True, slots=True)
class CheckIn:
    """A word to a user who has been silent for long."""


Cue = Reply | Greet | CheckIn


# ---- What was said before ----


class Party(Enum):
    USER = "user"
    CHARACTER = "character"


@dataclass(frozen=True, slots=True)
class Line:
    """Something that was said, as far as it was heard."""

    party: Party
    text: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A function of the client's that the model called."""

    call_id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Told:
    """What the client answered to an `Asked` before it."""

    call_id: str
    result_json: str


Past = Line | Asked | Told


# ---- What comes of it ----
# Places in the user's voice are seconds since the conversation began; places in an answer are
# samples of its speech.


@dataclass(frozen=True, slots=True)
class UserStarted:
    """The user's voice begins, or goes on after a pause."""

    at: float


@dataclass(frozen=True, slots=True)
class UserPaused:
    """The voice fell silent; whether the user is done is not clear yet."""

    at: float


@dataclass(frozen=True, slots=True)
class UserStopped:
    """The user is done."""

    at: float  # where the voice ended
    voiced: float  # seconds of voice
    text: str | None  # what was said, "" for a noise; None when the model does not say


@dataclass(frozen=True, slots=True)
class UserSaid:
    """Words of the user, for captions; pieces, and at last the whole."""

    text: str
    final: bool
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Speech:
    """The next part of an answer's speech."""

    answer: int
    samples: bytes = field(repr=False)  # signed 16-bit, at the model's rate


@dataclass(frozen=True, slots=True)
class Wrote:
    """Words of an answer, and where they are in its speech; equal places mean unknown."""

    answer: int
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """The model wants to know something of the client, and waits for it."""

    answer: int
    call_id: str
    name: str
    arguments_json: str


class Ending(Enum):
    COMPLETE = "complete"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class AnswerOver:
    """Nothing more comes of this answer. Exactly one for each that was asked for."""

    answer: int
    ending: Ending
    why: str = ""  # for people, when it failed
    retry_after: float = 0.0  # seconds, when it failed


@dataclass(frozen=True, slots=True)
class ModelDown:
    """The model cannot be used until `ModelUp`."""

    why: str  # for people


@dataclass(frozen=True, slots=True)
class ModelUp:
    """The model can be used again."""


@dataclass(frozen=True, slots=True)
class RateLimited:
    """The model refuses for its rate limit, until so many seconds have passed."""

    retry_after: float


Event = (
    UserStarted
    | UserPaused
    | UserStopped
    | UserSaid
    | Speech
    | Wrote
    | ToolCalled
    | AnswerOver
    | ModelDown
    | ModelUp
    | RateLimited
)


class Dialogue(Protocol):
    """One conversation with a speech model, from entering its context to leaving it."""

    def events(self) -> AsyncIterator[Event]:
        """Everything that happens, in order, as long as the conversation lasts."""

    def hear(self, pcm: Pcm) -> None:
        """The next piece of the user's voice."""

    def end_of_speech(self) -> None:
        """The user says that the turn is over; `UserStopped` follows."""

    def read(self, text: str) -> None:
        """What the user typed; to be answered like speech, when `answer` says so."""

    def answer(self, answer: int, cue: Cue) -> None:
        """Make an answer. `answer` is higher than those before, which are over or cancelled."""

    def cancel(self, answer: int, heard: int) -> None:
        """Stop making the answer, and remember of it what was heard: so many samples.

        Of an answer that is over already, only what is remembered changes.
        """

    def tool_result(self, call_id: str, result_json: str, *, failed: bool) -> None:
        """What a `ToolCalled` asked for."""


class SpeechModel(Protocol):
    """Makes dialogues."""

    @property
    def name(self) -> str:
        """For people: what answers."""

    @property
    def sample_rate(self) -> int:
        """Of the speech, Hz."""

    def dialogue(
        self, persona: Persona, history: Sequence[Past]
    ) -> AbstractAsyncContextManager[Dialogue]:
        """A conversation with this character, going on after `history`."""

    def wrong(self) -> str | None:
        """Why no conversation can be held now, as a health check says it."""
