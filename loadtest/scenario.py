"""What a load test does, as a small TOML file says it: who calls when, what breaks, what must hold.

`read(PATH or NAME)` gives a `Scenario` or one error that lists every mistake in the file. Nothing
here knows how any of it is done.
"""

from __future__ import annotations

import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from loadtest.measures import Measure, Summary

SCENARIOS = Path(__file__).parent / "scenarios"

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Share = Annotated[float, Field(ge=0)]


class BadScenario(ValueError):
    """A scenario cannot be used; says every reason."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Range(_Part):
    """Drawn evenly from `least` to `most`; in the file one number, or two in brackets."""

    least: Annotated[float, Field(ge=0)]
    most: Annotated[float, Field(ge=0)]

    @model_validator(mode="before")
    @classmethod
    def _from_numbers(cls, given: object) -> object:
        match given:
            case int() | float():
                return {"least": given, "most": given}
            case [int() | float() as least, int() | float() as most]:
                return {"least": least, "most": most}
        return given

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"expected the smaller number first, got {self.least}, {self.most}")
        return self


class Mode(StrEnum):
    """Whose voice a caller sends: the character's own, or a user's."""

    DRIVE = "drive"
    CONVERSE = "converse"


class Ending(StrEnum):
    """How a call ends."""

    HANG_UP = "hang_up"
    LEAVE = "leave"  # in the middle of speech, as who closes the window
    VANISH = "vanish"  # without a word, as who walks into a tunnel for good


class Outage(StrEnum):
    """What becomes of a caller's own network."""

    CUT = "cut"  # connections break, new ones are refused
    HOLD = "hold"  # nothing moves and nothing breaks; then everything comes at once


class Network(_Part):
    """How a caller loses its network, again and again."""

    every_seconds: Range
    out_seconds: Range
    how: Outage = Outage.CUT


class Caller(_Part):
    """A kind of caller. Times are those of one call and drawn for each anew."""

    name: Annotated[str, Field(pattern="^[a-z][-a-z0-9]{0,39}$")]
    share: Share = 1.0  # of all calls, beside the shares of the other kinds
    mode: Mode = Mode.DRIVE
    call_seconds: Range
    speech_seconds: Range = Range(least=2, most=5)  # how long it speaks at a time
    pause_seconds: Range = Range(least=1, most=3)  # after that, or after the answer
    interrupt: Annotated[float, Field(ge=0, le=1)] = 0.0  # chance that it cuts the character off
    endings: dict[Ending, Share] = {Ending.HANG_UP: 1.0}
    network: Network | None = None
    buffer_seconds: Annotated[float, Field(ge=0, le=30)] = 0.3  # that its viewer waits at first
    queue_seconds: Annotated[float, Field(ge=0, le=600)] = 0.0  # that it waits to be let in

    @field_validator("endings")
    @classmethod
    def _some_ending(cls, given: dict[Ending, float]) -> dict[Ending, float]:
        if sum(given.values()) <= 0:
            raise ValueError("expected at least one share above 0")
        return given


class Phase(_Part):
    """A stretch of time with its own arrivals. Callers ring whether or not others got through."""

    name: Annotated[str, Field(pattern="^[a-z][-a-z0-9]{0,39}$")]
    seconds: Seconds
    at_once: Annotated[int, Field(ge=0, le=100_000)] = 0  # that ring when it begins
    calls_per_minute: Annotated[float, Field(ge=0, le=600_000)] = 0.0  # at its beginning
    until_per_minute: Annotated[float, Field(ge=0, le=600_000)] | None = None  # at its end
    spread: Literal["random", "even"] = "random"  # Poisson's, or the same pause between any two

    @property
    def rates(self) -> tuple[float, float]:
        """Calls per second at its beginning and at its end."""
        until = self.calls_per_minute if self.until_per_minute is None else self.until_per_minute
        return self.calls_per_minute / 60, until / 60


class Part(StrEnum):
    """A part of the fleet that can be hurt."""

    SCORE = "score"
    VAE = "vae"
    INGRESS = "ingress"  # Serve's proxy, through which both engines are reached
    GATEWAY = "gateway"
    BRIDGE = "bridge"
    REDIS = "redis"


class Line(StrEnum):
    """A connection between parts that can be disturbed."""

    ENGINES = "engines"  # gateway to Serve's ingress
    REDIS = "redis"  # gateway to Redis


class Kill(_Part):
    """SIGKILL to one process of a part, drawn among those that it has."""

    do: Literal["kill"]
    part: Part


class Freeze(_Part):
    """SIGSTOP, and SIGCONT after a while."""

    do: Literal["freeze"]
    part: Part
    seconds: Range


class Disturb(_Part):
    """A line between parts: broken, silent, or slow for a while."""

    do: Literal["cut", "hold", "delay"]
    line: Line
    seconds: Range
    delay_ms: Annotated[float, Field(ge=0, le=60_000)] = 0.0  # for delay: of every piece of data

    @model_validator(mode="after")
    def _delay_has_a_length(self) -> Self:
        if (self.do == "delay") != (self.delay_ms > 0):
            raise ValueError("delay_ms: expected a number above 0 with delay, and none otherwise")
        return self


Fault = Annotated[Kill | Freeze | Disturb, Field(discriminator="do")]


class Faults(_Part):
    """What breaks, and how often. Only in a fleet that the test started itself."""

    first_after: Annotated[float, Field(ge=0)] = 10.0  # seconds
    every_seconds: Seconds
    last_before: Annotated[float, Field(ge=0)] = 10.0  # seconds before the end: time to recover
    each_of: Annotated[tuple[Fault, ...], Field(min_length=1)]


class Objective(_Part):
    """What must hold of one measure."""

    measure: Measure
    of: Summary
    at_most: float | None = None
    at_least: float | None = None
    phase: str | None = None  # None: the whole run

    @model_validator(mode="after")
    def _some_limit(self) -> Self:
        if self.at_most is None and self.at_least is None:
            raise ValueError("expected at_most, at_least or both, got neither")
        return self


class FleetWishes(_Part):
    """Settings of a fleet that the test starts itself, by the names of its variables."""

    local: dict[str, str] = {}  # TM_LOCAL_*
    gateway: dict[str, str] = {}  # TM_GATEWAY_*
    bridge: dict[str, str] = {}  # TM_BRIDGE_*


class Scenario(_Part):
    """One load test."""

    name: Annotated[str, Field(pattern="^[a-z][-a-z0-9]{0,39}$")]
    about: str
    seed: int = 1  # the same seed: the same arrivals, callers and faults
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]
    callers: Annotated[tuple[Caller, ...], Field(min_length=1)]
    faults: Faults | None = None
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)]
    fleet: FleetWishes = FleetWishes()
    farewell_seconds: Annotated[float, Field(gt=0, le=600)] = 20.0  # for calls that run at the end

    @model_validator(mode="after")
    def _names_meet(self) -> Self:
        phases = [phase.name for phase in self.phases]
        for names, what in ((phases, "phases"), ([one.name for one in self.callers], "callers")):
            if len(set(names)) < len(names):
                raise ValueError(f"{what}: expected different names, got {', '.join(names)}")
        for objective in self.objectives:
            if objective.phase not in (None, *phases):
                raise ValueError(
                    f"objectives: expected a phase of {', '.join(phases)}, got {objective.phase!r}"
                )
        if not any(caller.share for caller in self.callers):
            raise ValueError("callers: expected at least one share above 0")
        if not any(phase.at_once or sum(phase.rates) for phase in self.phases):
            raise ValueError("phases: expected at_once or calls_per_minute in one, got none")
        return self

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def converses(self) -> bool:
        """Whether a fleet of its own needs a bridge."""
        return any(caller.mode is Mode.CONVERSE for caller in self.callers)

    @property
    def lines(self) -> frozenset[Line]:
        """Connections between parts that it disturbs."""
        faults = self.faults.each_of if self.faults else ()
        return frozenset(fault.line for fault in faults if isinstance(fault, Disturb))

    def resized(self, *, scale: float = 1.0, seconds: float | None = None) -> Scenario:
        """With so many times the callers, or with all phases shortened to `seconds` together."""
        shorter = 1.0 if seconds is None else seconds / self.seconds
        phases = tuple(
            phase.model_copy(
                update={
                    "seconds": phase.seconds * shorter,
                    "at_once": round(phase.at_once * scale),
                    "calls_per_minute": phase.calls_per_minute * scale,
                    "until_per_minute": None
                    if phase.until_per_minute is None
                    else phase.until_per_minute * scale,
                }
            )
            for phase in self.phases
        )
        return self.model_copy(update={"phases": phases})

    def phase_at(self, seconds: float) -> str:
        """The phase that is on so long after the run's beginning; the last one ever after."""
        end = 0.0
        for phase in self.phases:
            end += phase.seconds
            if seconds < end:
                return phase.name
        return self.phases[-1].name


def names() -> list[str]:
    """Of the scenarios that come along."""
    return sorted(file.stem for file in SCENARIOS.glob("*.toml"))


def read(given: str) -> Scenario:
    """A scenario by its file, or by the name of one that comes along.

    Raises:
        BadScenario: there is none, or it is wrong; says where, what was got and what is expected.
    """
    file = Path(given)
    if not file.is_file():
        file = SCENARIOS / f"{given}.toml"
    if not file.is_file():
        raise BadScenario(f"expected a file or one of {', '.join(names())}, got {given!r}")
    try:
        return Scenario.model_validate(tomllib.loads(file.read_text()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadScenario(f"{file}: expected TOML: {error}") from error
    except ValidationError as error:
        lines = [
            _mistake(mistake["loc"], mistake["msg"], mistake["input"]) for mistake in error.errors()
        ]
        raise BadScenario("\n  ".join([f"{file} cannot be used:", *lines])) from error


def _mistake(place: tuple[int | str, ...], message: str, got: object) -> str:
    where = ".".join(str(part) for part in place)
    shown = f", got {got!r}" if isinstance(got, str | int | float) else ""
    return f"{where or 'scenario'}: {message.removeprefix('Value error, ')}{shown}"
