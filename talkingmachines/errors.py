"""The domain's errors: few, meaningful to a caller, the same on both ends of the wire.

How each becomes a gRPC status and back is written once, in `talkingmachines.status`. Every text
and every number is made fit for that when an error is made, so that the caller is never told less
than what was raised, nor something else.
"""

from __future__ import annotations

# In bytes of UTF-8. A status travels in headers of 8 KiB in all, and holds up to three parts, its
# message three times over, once with three bytes for each that is not ASCII, twice in base64.
_LONGEST_PART = 320
_LONGEST_MESSAGE = 1000
_LONGEST_WAIT = 86_400.0  # seconds


class TalkingMachinesError(Exception):
    """Anything this system tells a caller on purpose. `str()` is one line fit for a person."""

    def __init__(self, message: str) -> None:
        super().__init__(_fit(message, _LONGEST_MESSAGE))


class BadInput(TalkingMachinesError):
    """What the caller sent cannot be used; sending it again will not help.

    Names the field by its path in the message (`open.video.width`), what was got and what is
    expected, so that the caller can mend it without reading our code.
    """

    def __init__(self, field: str, *, got: object, expected: str) -> None:
        self.field = _fit(field)
        self.got = _fit(got)
        self.expected = _fit(expected)
        super().__init__(f"{self.field}: expected {self.expected}, got {self.got}")


class NotFound(TalkingMachinesError):
    """No such avatar, session or resource, or it belongs to another tenant."""

    def __init__(self, kind: str, name: str) -> None:
        self.kind = _fit(kind)
        self.name = _fit(name)
        super().__init__(f"no {self.kind} named {self.name!r}")


class NoCapacity(TalkingMachinesError):
    """The fleet is full. Running sessions never pay for new ones: come again later."""

    def __init__(self, what: str, *, retry_after: float) -> None:
        self.what = _fit(what)
        self.retry_after = _wait(retry_after)  # seconds
        super().__init__(f"no capacity for {self.what}; try again in {self.retry_after:g} s")


class QuotaExceeded(TalkingMachinesError):
    """The caller used up a limit of its own (sessions, avatars, rate, length)."""

    def __init__(self, quota: str, *, limit: str) -> None:
        self.quota = _fit(quota)
        self.limit = _fit(limit)
        super().__init__(f"{self.quota} is limited to {self.limit}")


class Unavailable(TalkingMachinesError):
    """This process cannot serve right now (draining, a dependency is down); another may."""

    def __init__(self, what: str, *, retry_after: float) -> None:
        self.what = _fit(what)
        self.retry_after = _wait(retry_after)  # seconds
        super().__init__(f"{self.what}; try again in {self.retry_after:g} s")


class Unauthenticated(TalkingMachinesError):
    """No credentials, or none that are valid. Never says which part was wrong."""


class PermissionDenied(TalkingMachinesError):
    """The caller is known and may not do this."""


class Fenced(TalkingMachinesError):
    """Another owner holds the session now; this one must stop writing to it."""


class TimedOut(TalkingMachinesError):
    """Something took longer than its limit: a call its deadline, a silent session our patience."""

    def __init__(self, what: str, *, limit: float) -> None:
        self.what = _fit(what)
        self.limit = limit  # seconds; 0 when whoever noticed did not say
        super().__init__(
            f"{self.what} took " + (f"longer than {limit:g} s" if limit else "too long")
        )


class EngineFailure(TalkingMachinesError):
    """A model's step failed for this session (not a number, out of memory, a dead rank)."""


class Internal(TalkingMachinesError):
    """A fault of ours that has no better name. The message carries no private detail."""


def _fit(value: object, longest: int = _LONGEST_PART) -> str:
    """As much of `value` as fits into an error, in UTF-8 (a lone surrogate becomes `?`)."""
    encoded = str(value).encode(errors="replace")
    if len(encoded) <= longest:
        return encoded.decode()
    return encoded[: longest - len("…".encode())].decode(errors="ignore") + "…"


def _wait(seconds: float) -> float:
    """A time to come again that can be told; what is not a number reads as 0."""
    return min(max(0.0, seconds), _LONGEST_WAIT)
