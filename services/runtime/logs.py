"""Logs: one JSON object per line, with service, session, turn and trace ids, and nothing private.

Libraries that use the standard `logging` go through the same processors. The last one before the
line is written keeps sound, pictures, tensors and secrets out, whatever was passed.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from enum import Enum
from math import isfinite
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any, TextIO
from uuid import UUID

import structlog
from structlog.contextvars import bound_contextvars, merge_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger

from services.runtime.tracing import trace_ids

_PRIVATE = (
    r"secret|password|passwd|passphrase|authorization|cookie|credential|private|api_?key|signature"
)
_SECRET_NAME = re.compile(rf"{_PRIVATE}|(^|_)(auth|tokens?|jwt|pin)$")  # of a `_snake` name
_COUNT_NAME = re.compile(r"(^|_)tokens$")  # a number of these is no secret
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NO_WORD = re.compile(r"\W+")
_SECRET_TEXT = (  # each quick on any text: no repetition without a bound may fail late
    # key=value, and "key": value
    (
        re.compile(
            rf"""(?ix)
            ( (?: {_PRIVATE} | api-key | token | jwt ) \w{{0,32}} (?: \s?= | ["']\s?: ) \s? )
            (?: "[^"]*" | '[^']*' | [^\s,;&)}}\]]+ )"""
        ),
        r"\1<redacted>",
    ),
    # Bytes as Python and protobuf print them: escapes, with what is printable in between.
    (
        re.compile(r"(?:\\(?:x[0-9a-fA-F]{2}|[0-7]{3})(?:[^\\\n]|\\[^x0-7\n]){0,24}){3,}"),
        "<redacted: bytes>",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w\-.~+/=]{6,}"), r"\1 <redacted>"),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), "<redacted>"),  # a JSON web token
    (re.compile(r"(?<=://)[^\s\"'<>]{1,256}@"), "<redacted>@"),  # user:password in a URL
    (re.compile(r"\b(tm|sk|pk)[-_][\w-]{16,}"), "<redacted>"),  # API keys
    # An encoded picture or sound; longer than any name or hash that we write.
    (re.compile(r"[A-Za-z0-9+/_-]{160,}={0,2}"), "<redacted: encoded content>"),
)
_LONGEST_TEXT = 8000  # characters: a long traceback
_MARGIN = 512  # beyond, so that a secret is still whole where a text is cut
_DEEPEST = 6
_MOST_ITEMS = 64  # more are samples or pixels, not something to read
_WIDEST = 64  # bits of a number


def configure(service: str, *, level: str = "info", stream: TextIO | None = None) -> None:
    """Send every log line of this process to `stream` (not given: stderr) as JSON."""
    shared: list[Processor] = [
        merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _Identity(service),
        structlog.processors.format_exc_info,
        redact,
    ]
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(_fit_arguments)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    spare_grpc()
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            _fit_positional,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def spare_grpc() -> None:
    """Keep grpc's core from debug messages, whatever the level of everybody else.

    One of them is written while a server object is being freed, and takes that object along:
    whoever keeps the record crashes the process when letting it go.
    """
    logging.getLogger("grpc._cython").setLevel(logging.INFO)


@contextmanager
def about(*, session: str | None = None, turn: int | None = None) -> Iterator[None]:
    """Put the session's id, or the turn's number, on every line logged inside."""
    named = {"session": session, "turn": turn}
    with bound_contextvars(**{key: value for key, value in named.items() if value is not None}):
        yield


def redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """The event with everything that must not be written replaced by what kind of thing it was."""
    return {key: _fit_for_log(key, value, 0) for key, value in event.items()}


def _fit_positional(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """What is about to be formatted into the text of a line of ours."""
    if event.get("positional_args"):
        event["positional_args"] = tuple(_fit_for_log("", a, 0) for a in event["positional_args"])
    return event


def _fit_arguments(record: logging.LogRecord) -> bool:
    """The same for a library's line, which is formatted here, where a misfit does no harm."""
    if record.args:
        arguments = record.args if isinstance(record.args, tuple) else (record.args,)
        fitted = tuple(_fit_for_log("", argument, 0) for argument in arguments)
        with suppress(TypeError, ValueError):
            record.msg = str(record.msg) % (fitted if isinstance(record.args, tuple) else fitted[0])
        record.args = ()
    return True


class _Identity:
    """Adds the service's name and the trace's ids."""

    def __init__(self, service: str) -> None:
        self._service = service

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        return {"service": self._service, **event, **trace_ids()}


def _fit_for_log(key: str, value: Any, depth: int) -> Any:
    if _is_secret(key, value):
        return "<redacted>"
    match value:
        case None | bool():
            return value
        case Integral():  # those of numpy too
            number = int(value)
            wide = number.bit_length() > _WIDEST
            return f"<int: {number.bit_length()} bits>" if wide else number
        case Real():
            return float(value) if isfinite(value) else str(value)  # JSON has no infinity
        case Enum():
            return value.name
        case str() | PurePath() | UUID():
            return _text(str(value))
        case BaseException():
            return _text(f"{type(value).__name__}: {value}")
        case bytes() | bytearray() | memoryview():
            return f"<{type(value).__name__}: {len(value)} bytes>"
        case Mapping() | Sequence() | Set() if depth >= _DEEPEST or len(value) > _MOST_ITEMS:
            return f"<{type(value).__name__}: {len(value)}>"
        case Mapping():
            return {str(k): _fit_for_log(str(k), v, depth + 1) for k, v in value.items()}
        case Sequence() | Set():
            return [_fit_for_log("", item, depth + 1) for item in value]
        case _:
            # A type's name, never its repr: that may hold anything.
            shape = getattr(value, "shape", None)
            sized = f" {list(shape)}" if isinstance(shape, Sequence) else ""
            return f"<{type(value).__name__}{sized}>"


def _is_secret(key: str, value: Any) -> bool:
    """Whether a field's name says that its value is nobody's business."""
    name = _NO_WORD.sub("_", _HUMP.sub("_", key)).lower()  # accessToken, x-api-key
    if isinstance(value, Real) and _COUNT_NAME.search(name):
        return False
    return _SECRET_NAME.search(name) is not None


def _text(value: str) -> str:
    shown = value[: _LONGEST_TEXT + _MARGIN]
    for pattern, replacement in _SECRET_TEXT:
        shown = pattern.sub(replacement, shown)
    if len(value) > _LONGEST_TEXT:
        return shown[:_LONGEST_TEXT] + f"<{len(value) - _LONGEST_TEXT} more characters>"
    return shown
