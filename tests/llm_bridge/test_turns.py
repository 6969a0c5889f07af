"""Turn-taking as a state machine: what holds whatever happens, and what happens when."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.llm_bridge.persona import Manners, Patience
from services.llm_bridge.speech_model import CheckIn, Greet, Reply
from services.llm_bridge.turns import Action, Answer, FallSilent, GiveUp, GoOn, Turns

manners = st.builds(
    Manners,
    patience=st.builds(
        Patience,
        end_silence=st.just(0.6),
        min_interruption=st.sampled_from([0.0, 0.3, 0.5]),
        silence_timeout=st.sampled_from([0.0, 5.0]),
    ),
    push_to_talk=st.booleans(),
    uninterruptible_greeting=st.booleans(),
    uninterruptible=st.booleans(),
)
steps = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "started", "paused", "noise", "words", "unknown", "wrote", "interrupt", "speech",
                "made", "heard", "failed", "reported", "down", "up", "wait",
            ]
        ),
        st.floats(0, 2),
    ),
    max_size=60,
)  # fmt: skip


class World:
    """A conversation, a model and a gateway that do what they are told, and check it."""

    def __init__(self, how: Manners) -> None:
        self.how = how
        self.now = 0.0
        self.turns = Turns(how, now=0.0)
        self.answer = 0  # being made or heard
        self.cue: Any = None
        self.made = self.spoken = self.silent = False
        self.lost = False  # the answer failed before it was heard
        self.speaking = False
        self.log: list[Action] = []

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            self.log.append(action)
            match action:
                case Answer(answer=number, cue=cue):
                    assert number == self.turns.answer
                    assert self.answer == 0 or self.lost, (
                        "a second answer before the first was over"
                    )
                    self.answer, self.cue = number, cue
                    self.made = self.spoken = self.silent = self.lost = False
                case FallSilent(answer=number):
                    assert number == self.answer
                    assert self.spoken
                    assert not self.silent
                    self.silent = True
                case GoOn(answer=number):
                    assert number == self.answer
                    self.silent = self.spoken = False
                case GiveUp(answer=number):
                    assert number == self.answer
                    assert self.silent or not self.spoken, "given up while it is heard"
                    self.answer = 0

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.turns.deadline) is not None and due <= end:
            self.now = max(self.now, due)
            before = due
            self.do(self.turns.tick(self.now))
            assert self.turns.deadline is None or self.turns.deadline != before, "it is stuck"
        self.now = end

    def step(self, kind: str, seconds: float) -> None:
        turns, now = self.turns, self.now
        match kind:
            case "started" if not self.how.push_to_talk:
                self.speaking = True
                self.do(turns.user_started(now))
            case "paused" if self.speaking:
                self.do(turns.user_paused(now))
            case "noise" | "words" | "unknown" if self.speaking or self.how.push_to_talk:
                self.speaking = False
                text = {"noise": "", "words": "Yes.", "unknown": None}[kind]
                self.do(turns.user_stopped(now, seconds, text))
            case "wrote":
                self.do(turns.user_wrote(now))
            case "interrupt":
                self.do(turns.interrupted(now))
            case "speech" if self.answer and turns.may_speak:
                self.spoken = True
                turns.spoke()
            case "made" if self.answer:
                self.made = True
                turns.made()
            case "heard" if self.answer and self.made and turns.may_speak:
                self.answer = 0
                self.do(turns.heard(now))
            case "failed" if self.answer and not self.made:
                self.made = True
                self.lost = not self.spoken and not self.silent
                self.do(turns.failed(now, seconds))
            case "reported" if self.silent:
                self.do(turns.reported(now))
            case "down":
                turns.model_down()
            case "up":
                self.do(turns.model_up(now))
            case "wait":
                self.wait(seconds)


@settings(max_examples=300)
@given(manners, steps)
def test_whatever_happens_answers_follow_one_another_and_none_is_forgotten(
    how: Manners, happens: list[tuple[str, float]]
) -> None:
    world = World(how)
    world.do(world.turns.begin(Greet("Hello"), 0.0))
    for kind, seconds in happens:
        world.step(kind, seconds)
        if how.uninterruptible:
            by_hand = any(step[0] == "interrupt" for step in happens)
            cut = [it for it in world.log if isinstance(it, FallSilent)]
            assert by_hand or not cut
    numbers = [it.answer for it in world.log if isinstance(it, Answer)]
    assert numbers == list(range(1, len(numbers) + 1))
    cuts = [it for it in world.log if isinstance(it, FallSilent)]
    ends = [it for it in world.log if isinstance(it, GoOn | GiveUp)]
    assert len(cuts) <= len(ends) + 1
    # Everything comes to rest: the user falls silent, the model is there, answers are heard.
    world.step("noise", 0.1)
    world.step("up", 0)
    for _ in range(6):
        world.wait(3.0)
        for kind in ("reported", "speech", "made", "heard"):
            world.step(kind, 0)
    if not how.patience.silence_timeout:
        assert world.answer == 0 or world.lost


def ready(**fields: Any) -> tuple[Turns, list[Action]]:
    """A conversation whose first answer is being heard."""
    patience = {"min_interruption": 0.5, "silence_timeout": 0.0}
    patience |= {name: fields.pop(name) for name in list(fields) if name in patience}
    turns = Turns(Manners(Patience(**patience), **fields), now=0.0)
    turns.user_started(0.0)
    asked = turns.user_stopped(1.0, 0.8, "Tell me.")
    turns.spoke()
    return turns, asked


def test_an_interruption_takes_voice_of_the_least_length_pauses_not_counted() -> None:
    turns, asked = ready()
    assert asked == [Answer(1, Reply())]
    assert turns.user_started(2.0) == []
    assert turns.deadline == 2.5
    assert turns.user_paused(2.3) == []
    assert turns.deadline is None
    assert turns.user_started(3.0) == []
    assert turns.deadline == 3.2
    assert turns.tick(3.1) == []
    assert turns.tick(3.2) == [FallSilent(1)]
    assert turns.reported(3.25) == []  # whether it is meant is open
    assert turns.user_stopped(4.0, 1.0, "Wait.") == [GiveUp(1), Answer(2, Reply())]


def test_long_voice_is_meant_before_its_words_are_known() -> None:
    turns, _ = ready()
    turns.user_started(2.0)
    assert turns.tick(2.5) == [FallSilent(1)]
    turns.reported(2.55)
    assert turns.deadline == 3.2
    assert turns.tick(3.2) == [GiveUp(1)]
    assert turns.user_stopped(5.0, 2.5, "No, wait.") == [Answer(2, Reply())]


def test_the_model_hears_what_was_heard_or_half_a_second_later_what_was_known() -> None:
    turns, _ = ready()
    turns.user_started(2.0)
    turns.tick(2.5)
    assert turns.user_stopped(2.6, 0.6, "Stop!") == []  # nobody said yet what was heard
    assert turns.deadline == 3.0
    assert turns.tick(3.0) == [GiveUp(1), Answer(2, Reply())]


def test_noise_lets_the_answer_go_on() -> None:
    turns, _ = ready()
    turns.user_started(2.0)
    turns.tick(2.5)
    assert not turns.may_speak
    assert turns.user_stopped(3.2, 0.6, "") == [GoOn(1)]
    assert turns.may_speak


def test_assent_does_not_interrupt_and_is_not_answered() -> None:
    turns, _ = ready()
    turns.user_started(2.0)
    turns.user_paused(2.2)
    assert turns.user_stopped(2.8, 0.2, "Mhm.") == []


def test_who_goes_on_before_the_answer_is_heard_is_answered_once_and_wholly() -> None:
    turns = Turns(Manners(), now=0.0)
    turns.user_started(0.0)
    assert turns.user_stopped(1.0, 0.8, "I think") == [Answer(1, Reply())]
    turns.user_started(1.2)
    assert not turns.may_speak  # it is not talked over
    turns.user_paused(1.5)
    assert turns.user_stopped(2.1, 0.3, "that") == [GiveUp(1), Answer(2, Reply())]


def test_uninterruptible_means_heard_to_its_end_and_then_answered() -> None:
    turns, _ = ready(uninterruptible=True)
    turns.user_started(2.0)
    assert turns.deadline is None
    assert turns.user_stopped(4.0, 1.5, "But I") == []
    turns.made()
    assert turns.heard(5.0) == [Answer(2, Reply())]


def test_silence_is_broken_twice_and_then_kept() -> None:
    turns = Turns(Manners(Patience(silence_timeout=5.0)), now=0.0)
    (greeting,) = turns.begin(Greet("Hello"), 0.0)
    assert greeting == Answer(1, Greet("Hello"))
    now = 1.0
    for number in (2, 3):
        turns.spoke()
        turns.made()
        assert turns.heard(now) == []
        assert turns.deadline == now + 5.0
        now += 5.0
        assert turns.tick(now) == [Answer(number, CheckIn())]
    turns.made()
    turns.heard(now)
    assert turns.deadline is None


def test_a_failed_answer_is_tried_twice_more_and_later_when_the_model_is_back() -> None:
    turns = Turns(Manners(Patience(silence_timeout=0)), now=0.0)
    turns.user_started(0.0)
    turns.user_stopped(1.0, 1.0, "Hi")
    assert turns.failed(1.0, 4.0) == []
    assert turns.tick(4.9) == []
    assert turns.tick(5.0) == [Answer(2, Reply())]
    turns.failed(5.0, 0.0)
    assert turns.tick(6.0) == [Answer(3, Reply())]
    assert turns.failed(6.0, 0.0) == []
    assert turns.deadline is None
    turns.user_started(7.0)
    turns.user_stopped(8.0, 1.0, "Hello?")
    turns.model_down()
    assert turns.failed(8.5, 0.0) == []
    assert turns.model_up(20.0) == [Answer(5, Reply())]
