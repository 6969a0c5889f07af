"""The domain's errors: few, meaningful to a caller, the same on both ends of the wire.

How each becomes a gRPC status and back is written once, in `talkingmachines.status`.
"""

from __future__ import annotations

_LONGEST = 200  # characters of what a caller sent; a status travels in headers of 8 KiB in all


class TalkingMachinesError(Exception):
    """Anything this system tells a caller on purpose. `str()` is one line fit for a person."""


class BadInput(TalkingMachinesError):
    """What the caller sent cannot be used; sending it again will not help.

    Names the field by its path in the message (`open.video.width`), what was got and what is
    expected, so that the caller can mend it without reading our code.
    """

    def __init__(self, field: str, *, got: object, expected: str) -> None:
        self.got = _shown(got)
        super().__init__(f"{field}: expected {expected}, got {self.got}")
        self.field = field
        self.expected = expected


class NotFound(TalkingMachinesError):
    """No such avatar, session or resource, or it belongs to another tenant."""

    def __init__(self, kind: str, name: str) -> None:
        self.name = _shown(name)
        super().__init__(f"no {kind} named {self.name!r}")
        self.kind = kind


class NoCapacity(TalkingMachinesError):
    """The fleet is full. Running sessions never pay for new ones: come again later."""

    def __init__(self, what: str, *, retry_after: float) -> None:
        super().__init__(f"no capacity for {what}; try again in {retry_after:g} s")
        self.what = what
        self.retry_after = retry_after  # seconds


class QuotaExceeded(TalkingMachinesError):
    """The caller used up a limit of its own (sessions, avatars, rate, length)."""

    def __init__(self, quota: str, *, limit: str) -> None:
        super().__init__(f"{quota} is limited to {limit}")
        self.quota = quota
        self.limit = limit


class Unavailable(TalkingMachinesError):
    """This process cannot serve right now (draining, a dependency is down); another may."""

    def __init__(self, what: str, *, retry_after: float) -> None:
        super().__init__(f"{what}; try again in {retry_after:g} s")
        self.what = what
        self.retry_after = retry_after  # seconds


class Unauthenticated(TalkingMachinesError):
    """No credentials, or none that are valid. Never says which part was wrong."""


class PermissionDenied(TalkingMachinesError):
    """The caller is known and may not do this."""


class Fenced(TalkingMachinesError):
    """Another owner holds the session now; this one must stop writing to it."""


class TimedOut(TalkingMachinesError):
    """Something took longer than its limit: a call its deadline, a silent session our patience."""

    def __init__(self, what: str, *, limit: float) -> None:
        super().__init__(f"{what} took longer than {limit:g} s")
        self.what = what
        self.limit = limit  # seconds


class EngineFailure(TalkingMachinesError):
    """A model's step failed for this session (not a number, out of memory, a dead rank)."""


class Internal(TalkingMachinesError):
    """A fault of ours that has no better name. The message carries no private detail."""


def _shown(value: object) -> str:
    """What a caller sent, as much of it as fits into an error."""
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
