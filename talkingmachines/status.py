"""The one mapping between domain errors and gRPC status, both ways.

A server puts the error into a `google.rpc.Status`: the code says what kind of thing went wrong,
`ErrorInfo` (domain `talkingmachines`) carries everything needed to build the same error again,
and the standard details (`BadRequest`, `RetryInfo`, `QuotaFailure`, `ResourceInfo`) say it once
more for clients that are not ours. Where a proxy lets only code and text through, the text carries
the `ErrorInfo` (`to_text`). `from_rpc_error` undoes both, and also gives a name to what
gRPC itself reports (a refused connection, an oversized message).
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from contextlib import suppress

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import (
    BadRequest,
    ErrorInfo,
    QuotaFailure,
    ResourceInfo,
    RetryInfo,
)
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from talkingmachines import duration, errors
from talkingmachines.errors import (
    BadInput,
    EngineFailure,
    Fenced,
    Internal,
    NoCapacity,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    TalkingMachinesError,
    TimedOut,
    Unauthenticated,
    Unavailable,
)

DOMAIN = "talkingmachines"

_MARK = "talkingmachines-error:"  # before an ErrorInfo in base64

_RETRY_UNSTATED = 1.0  # seconds, for errors of gRPC's own that name no time
# What a caller sent was too large: the server noticed, or the caller's own end.
_OVERSIZED = re.compile(
    r"(?:SERVER: Received|CLIENT: Sent) message larger than max \((\d+) vs\. (\d+)\)"
)
# What was answered was too large, which trying again will not change.
_UNANSWERABLE = re.compile(
    r"(?:SERVER: Sent|CLIENT: Received) message larger than max|metadata size exceeds"
)

_Args = dict[str, str]


def to_status(error: TalkingMachinesError) -> Status:
    """`error` as the status that crosses the wire, under the nearest name that both ends know."""
    code, args, details = _describe(error)
    info = ErrorInfo(reason=_known(error), domain=DOMAIN, metadata=args)
    status = Status(code=code.value[0], message=str(error))
    for detail in (info, *details):
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def code_of(error: TalkingMachinesError) -> grpc.StatusCode:
    """The code that `error` crosses the wire with."""
    return _describe(error)[0]


def to_text(error: TalkingMachinesError) -> str:
    """`error` for a status whose details do not survive: a line for people, a line for us.

    Short enough, however long its parts are, for proxies that cut texts at 4,096 characters.
    """
    _, args, _ = _describe(error)
    info = ErrorInfo(reason=_known(error), domain=DOMAIN, metadata=args)
    return f"{error}\n{_MARK}{b64encode(info.SerializeToString()).decode()}"


def from_status(status: Status) -> TalkingMachinesError:
    """The error that `to_status` was given, or the nearest one for a status that is not ours."""
    with suppress(DecodeError, ValueError):  # details that are not what they say they are
        for packed in status.details:
            info = ErrorInfo()
            if packed.Unpack(info) and info.domain == DOMAIN:
                return _rebuild(info.reason, info.metadata, status.message)
    return _nearest(_code(status.code), status.message)


def from_rpc_error(error: grpc.RpcError) -> TalkingMachinesError:
    """The domain error behind a failed call of `grpc` or `grpc.aio`."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    status = None
    with suppress(DecodeError, ValueError):  # a proxy's own, or not that of this call
        status = _attached_status(error)
    if status is not None:
        return from_status(status)
    return _from_text(error.code(), error.details() or "")


def _from_text(code: grpc.StatusCode, text: str) -> TalkingMachinesError:
    """The error that `to_text` was given, or the nearest one for a text that is not ours."""
    message, mark, encoded = text.rpartition(f"\n{_MARK}")
    if mark:
        with suppress(DecodeError, ValueError):  # cut short on its way
            info = ErrorInfo.FromString(b64decode(encoded, validate=True))
            return _rebuild(info.reason, info.metadata, message)
    return _nearest(code, text)


def _known(error: TalkingMachinesError) -> str:
    """The nearest name of `error` that both ends know."""
    known = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    return known.__name__


def _describe(error: TalkingMachinesError) -> tuple[grpc.StatusCode, _Args, list[Message]]:
    match error:
        case BadInput(field=field, got=got, expected=expected):
            violation = BadRequest.FieldViolation(field=field, description=str(error))
            return (
                grpc.StatusCode.INVALID_ARGUMENT,
                {"field": field, "got": got, "expected": expected},
                [BadRequest(field_violations=[violation])],
            )
        case NotFound(kind=kind, name=name):
            return (
                grpc.StatusCode.NOT_FOUND,
                {"kind": kind, "name": name},
                [ResourceInfo(resource_type=kind, resource_name=name)],
            )
        case NoCapacity(what=what, retry_after=seconds):
            args = {"what": what, "retry_after": repr(seconds)}
            return (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                args,
                [RetryInfo(retry_delay=duration.to_proto(seconds))],
            )
        case QuotaExceeded(quota=quota, limit=quota_limit):
            violation = QuotaFailure.Violation(subject=quota, description=str(error))
            return (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                {"quota": quota, "limit": quota_limit},
                [QuotaFailure(violations=[violation])],
            )
        case Unavailable(what=what, retry_after=seconds):
            args = {"what": what, "retry_after": repr(seconds)}
            return (
                grpc.StatusCode.UNAVAILABLE,
                args,
                [RetryInfo(retry_delay=duration.to_proto(seconds))],
            )
        case TimedOut(what=what, limit=limit):
            args = {"what": what, "limit": repr(limit)}
            return grpc.StatusCode.DEADLINE_EXCEEDED, args, []
        case Unauthenticated():
            return grpc.StatusCode.UNAUTHENTICATED, {}, []
        case PermissionDenied():
            return grpc.StatusCode.PERMISSION_DENIED, {}, []
        case Fenced():
            return grpc.StatusCode.ABORTED, {}, []
        case _:
            return grpc.StatusCode.INTERNAL, {}, []


def _rebuild(reason: str, args: Mapping[str, str], message: str) -> TalkingMachinesError:
    match reason:
        case "BadInput":
            return BadInput(args["field"], got=args["got"], expected=args["expected"])
        case "NotFound":
            return NotFound(args["kind"], args["name"])
        case "NoCapacity":
            return NoCapacity(args["what"], retry_after=float(args["retry_after"]))
        case "QuotaExceeded":
            return QuotaExceeded(args["quota"], limit=args["limit"])
        case "Unavailable":
            return Unavailable(args["what"], retry_after=float(args["retry_after"]))
        case "TimedOut":
            return TimedOut(args["what"], limit=float(args["limit"]))
        case "Unauthenticated":
            return Unauthenticated(message)
        case "PermissionDenied":
            return PermissionDenied(message)
        case "Fenced":
            return Fenced(message)
        case "EngineFailure":
            return EngineFailure(message)
        case _:  # a newer server may know reasons that we do not
            return Internal(message)


def _nearest(code: grpc.StatusCode, message: str) -> TalkingMachinesError:
    """What gRPC, a proxy or a foreign server meant, in our words."""
    match code:
        case grpc.StatusCode.RESOURCE_EXHAUSTED if oversized := _OVERSIZED.fullmatch(message):
            got, most = oversized.groups()
            return BadInput("message", got=f"{got} bytes", expected=f"at most {most} bytes")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if _UNANSWERABLE.search(message):
            return Internal(message)
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.OUT_OF_RANGE:
            return BadInput("request", got="what was sent", expected=message)
        case grpc.StatusCode.NOT_FOUND:
            return NotFound("resource", message)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return NoCapacity(message or "the call", retry_after=_RETRY_UNSTATED)
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return Unavailable(message or "the peer is gone", retry_after=_RETRY_UNSTATED)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return TimedOut("the call", limit=0.0)
        case grpc.StatusCode.UNAUTHENTICATED:
            return Unauthenticated(message)
        case grpc.StatusCode.PERMISSION_DENIED:
            return PermissionDenied(message)
        case grpc.StatusCode.ABORTED:
            return Fenced(message)
        case _:
            return Internal(f"{code.name}: {message}")


def _code(number: int) -> grpc.StatusCode:
    known = {code.value[0]: code for code in grpc.StatusCode}
    return known.get(number, grpc.StatusCode.UNKNOWN)


def _attached_status(error: grpc.Call | grpc.aio.AioRpcError) -> Status | None:
    if isinstance(error, grpc.aio.AioRpcError):
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                return Status.FromString(value if isinstance(value, bytes) else value.encode())
        return None
    return rpc_status.from_call(error)
