"""Whose turn it is: when the character answers, is interrupted, goes on, or says something itself.

Beside the path: conversation ↔ **turns**. A state machine without clock, wire or model: the
conversation tells it what happened and when, and does what it answers. Times are seconds of the
caller's clock; `deadline` is when `tick` wants to be called at the latest.

An interruption has two steps. Once the user's voice has lasted long enough over an answer, the
answer falls silent at once, but is still being made. Then it shows whether the user meant it:
words, or enough voice, make it real, and the answer is given up; a noise makes it false, and the
answer goes on where it was cut off.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from services.llm_bridge.persona import Manners
from services.llm_bridge.speech_model import CheckIn, Cue, Greet, Reply

_CERTAIN_SECONDS = 0.7  # of voice beyond the least: nobody coughs for so long
_REPORT_SECONDS = 0.5  # for the gateway to say what was heard of an interrupted answer
_RETRIES = 2  # of an answer that failed before it made a sound
_RETRY_SECONDS = 1.0
_CHECK_INS = 2  # in a row; then the user is left alone


@dataclass(frozen=True, slots=True)
class Answer:
    """Let the model make an answer."""

    answer: int
    cue: Cue


@dataclass(frozen=True, slots=True)
class FallSilent:
    """What of the answer is not heard yet must not be heard now."""

    answer: int


@dataclass(frozen=True, slots=True)
class GoOn:
    """The interruption was a noise: say the rest of the answer."""

    answer: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The answer is over, heard or not; the model stops making it."""

    answer: int


Action = Answer | FallSilent | GoOn | GiveUp


class _User(Enum):
    SILENT = auto()
    SPEAKING = auto()
    PAUSED = auto()


class _Phase(Enum):
    NONE = auto()  # the character listens
    ON = auto()  # an answer is being made or heard
    CUT = auto()  # an answer was interrupted; whether for good is open, or being settled
    FAILED = auto()  # an answer failed; it will be tried again


class Turns:
    """One conversation's turn-taking.

    Args:
        now: when the conversation begins.
    """

    def __init__(self, manners: Manners, *, now: float) -> None:
        self._manners = manners
        self._user = _User.SILENT
        self._voice_since = 0.0  # while speaking
        self._voiced = 0.0  # seconds of this utterance before
        self._phase = _Phase.NONE
        self._answer = 0
        self._cue: Cue = Reply()
        self._spoken = False  # whether the gateway has speech of this answer
        self._over = False  # whether the model is done with it
        self._tries = 0
        self._retry_at = 0.0
        self._real = False  # while cut
        self._reported = False  # while cut: whether the gateway said what was heard
        self._report_due = 0.0
        self._owed: Cue | None = None  # to be said when there is room
        self._up = True
        self._quiet_since = now
        self._check_ins = 0

    # ---- What the conversation asks ----

    @property
    def answer(self) -> int:
        """The newest answer; 0 when there was none."""
        return self._answer

    @property
    def may_speak(self) -> bool:
        """Whether speech of the newest answer may be sent as it comes.

        Not before the user is silent: who only paused for breath is not talked over.
        """
        if self._phase is not _Phase.ON:
            return False
        return self._spoken or self._user is _User.SILENT or not self._interruptible

    @property
    def deadline(self) -> float | None:
        """When something is due that nobody else will tell of."""
        match self._phase:
            case _Phase.ON if self._challenged:
                return self._voice_reaches(self._least)
            case _Phase.CUT if self._real:
                return None if self._reported else self._report_due
            case _Phase.CUT if self._user is _User.SPEAKING:
                return self._voice_reaches(self._least + _CERTAIN_SECONDS)
            case _Phase.FAILED:
                return self._retry_at
            case _Phase.NONE if self._may_check_in:
                return self._quiet_since + self._manners.patience.silence_timeout
            case _:
                return None

    # ---- What happened ----

    def begin(self, owed: Cue | None, now: float) -> list[Action]:
        """The call begins, or goes on from another bridge."""
        self._owed = owed
        return self._settle(now)

    def user_started(self, now: float) -> list[Action]:
        if self._user is _User.SILENT:
            self._voiced = 0.0
        if self._user is not _User.SPEAKING:
            self._voice_since = now
        self._user = _User.SPEAKING
        self._check_ins = 0
        return self.tick(now)

    def user_paused(self, now: float) -> list[Action]:
        if self._user is _User.SPEAKING:
            self._voiced = self._voice(now)
            self._user = _User.PAUSED
        return self.tick(now)

    def user_stopped(self, now: float, voiced: float, text: str | None) -> list[Action]:
        """The user is done after `voiced` seconds of voice that mean `text`."""
        self._user = _User.SILENT
        self._quiet_since = now
        long = voiced >= self._least
        words = bool(text) if text is not None else long
        actions: list[Action] = []
        match self._phase:
            case _Phase.NONE if text != "":
                self._owed = Reply()
            case _Phase.CUT:
                if words:
                    self._real, self._owed = True, Reply()
                elif not self._real:
                    actions = self._go_on()
            case _Phase.ON | _Phase.FAILED if (
                text != "" and not self._spoken and self._interruptible
            ):
                # The user went on before the answer could be heard: answer all of it.
                self._owed = Reply()
                actions = self._end_answer(now)
            case _Phase.ON | _Phase.FAILED if words and not self._by_voice:
                self._owed = Reply()
            case _:
                pass  # a noise, or a word of assent, over an answer
        return [*actions, *self._settle(now)]

    def user_wrote(self, now: float) -> list[Action]:
        """The user typed, and means it."""
        self._owed = Reply()
        self._check_ins = 0
        actions: list[Action] = []
        if self._phase in (_Phase.ON, _Phase.FAILED) and self._interruptible:
            actions = self._cut(now)
        if self._phase is _Phase.CUT:
            self._real = True
        return [*actions, *self._settle(now)]

    def interrupted(self, now: float) -> list[Action]:
        """The user asked for silence; the gateway has seen to it, and said what was heard."""
        if self._phase is _Phase.NONE:
            return []
        silent: list[Action] = [FallSilent(self._answer)] if self._audible else []
        self._quiet_since = now
        return [*silent, *self._end_answer(now), *self._settle(now)]

    def spoke(self) -> None:
        """Speech of the newest answer was sent, for the first time or after it went on."""
        self._spoken = True

    def made(self) -> None:
        """The model is done with the answer."""
        self._over = True

    def heard(self, now: float) -> list[Action]:
        """Everything of the answer was heard."""
        if self._phase is not _Phase.ON or not self._over:
            return []
        self._phase = _Phase.NONE
        self._quiet_since = now
        return self._settle(now)

    def failed(self, now: float, retry_after: float) -> list[Action]:
        """The model could not make the answer. What was said of it stays said."""
        self._over = True
        if self._phase is not _Phase.ON or self._spoken:
            return []
        if self._up and self._tries < _RETRIES:
            self._phase = _Phase.FAILED
            self._retry_at = now + max(_RETRY_SECONDS, retry_after)
            return []
        self._phase = _Phase.NONE
        self._quiet_since = now
        if not self._up:
            self._owed = self._owed or self._cue
        return self._settle(now)

    def reported(self, now: float) -> list[Action]:
        """The gateway said what was heard of the answer that fell silent."""
        self._reported = True
        return self._settle(now)

    def model_down(self) -> None:
        self._up = False

    def model_up(self, now: float) -> list[Action]:
        self._up = True
        return self._settle(now)

    def tick(self, now: float) -> list[Action]:
        """Do what is due."""
        actions: list[Action] = []
        due = self.deadline
        if due is None or due > now:
            return actions
        match self._phase:
            case _Phase.ON:
                actions = self._cut(now)
            case _Phase.CUT if self._real:
                self._reported = True  # nobody will say: what was known before must do
            case _Phase.CUT:
                self._real = True
            case _Phase.FAILED:
                actions = self._ask(self._cue, tries=self._tries + 1)
            case _Phase.NONE:
                self._owed = CheckIn()
                self._check_ins += 1
        return [*actions, *self._settle(now)]

    # ---- How it comes about ----

    @property
    def _least(self) -> float:
        return self._manners.patience.min_interruption

    @property
    def _interruptible(self) -> bool:
        greeting = isinstance(self._cue, Greet) and self._manners.uninterruptible_greeting
        return not (greeting or self._manners.uninterruptible)

    @property
    def _by_voice(self) -> bool:
        """Whether talking over the answer interrupts it."""
        return self._interruptible and not self._manners.push_to_talk

    @property
    def _challenged(self) -> bool:
        return self._user is _User.SPEAKING and self._by_voice

    @property
    def _audible(self) -> bool:
        return self._phase is _Phase.ON and self._spoken

    @property
    def _may_check_in(self) -> bool:
        wanted = self._manners.patience.silence_timeout > 0 and self._check_ins < _CHECK_INS
        return wanted and self._up and self._user is _User.SILENT and self._owed is None

    def _voice(self, now: float) -> float:
        """Seconds of voice in this utterance."""
        running = now - self._voice_since if self._user is _User.SPEAKING else 0.0
        return self._voiced + running

    def _voice_reaches(self, seconds: float) -> float:
        """When the utterance will have so much voice, if the user speaks on."""
        return self._voice_since + seconds - self._voiced

    def _cut(self, now: float) -> list[Action]:
        """Let the answer fall silent."""
        audible = self._audible
        self._phase = _Phase.CUT
        self._real = False
        self._reported = not audible
        self._report_due = now + _REPORT_SECONDS
        return [FallSilent(self._answer)] if audible else []

    def _go_on(self) -> list[Action]:
        self._phase = _Phase.ON
        self._spoken = False  # what is left of it begins a turn of its own
        return [GoOn(self._answer)]

    def _end_answer(self, now: float) -> list[Action]:
        self._phase = _Phase.NONE
        self._quiet_since = now
        return [GiveUp(self._answer)]

    def _settle(self, now: float) -> list[Action]:
        """End what is decided, and say what is owed when there is room."""
        actions: list[Action] = []
        if self._phase is _Phase.CUT and self._real and self._reported:
            actions += self._end_answer(now)
        room = self._phase is _Phase.NONE and self._user is _User.SILENT and self._up
        if room and self._owed is not None:
            cue, self._owed = self._owed, None
            actions += self._ask(cue, tries=0)
        return actions

    def _ask(self, cue: Cue, *, tries: int) -> list[Action]:
        self._answer += 1
        self._cue = cue
        self._phase = _Phase.ON
        self._spoken = self._over = False
        self._tries = tries
        return [Answer(self._answer, cue)]
