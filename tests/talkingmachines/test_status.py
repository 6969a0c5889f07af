"""A domain error is the same error on both ends of the wire."""

from base64 import b64encode
from inspect import signature
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from talkingmachines import errors
from talkingmachines.errors import TalkingMachinesError
from talkingmachines.status import DOMAIN, code_of, from_rpc_error, from_status, to_status, to_text

seconds = st.floats()
limits = st.floats(min_value=0, allow_nan=False)
names = st.text(st.characters(), max_size=40) | st.text(min_size=300, max_size=400)

strategies: dict[type[TalkingMachinesError], st.SearchStrategy[TalkingMachinesError]] = {
    errors.BadInput: st.builds(errors.BadInput, names, got=names, expected=names),
    errors.NotFound: st.builds(errors.NotFound, names, names),
    errors.NoCapacity: st.builds(errors.NoCapacity, names, retry_after=seconds),
    errors.QuotaExceeded: st.builds(errors.QuotaExceeded, names, limit=names),
    errors.Unavailable: st.builds(errors.Unavailable, names, retry_after=seconds),
    errors.TimedOut: st.builds(errors.TimedOut, names, limit=limits),
    errors.Unauthenticated: st.builds(errors.Unauthenticated, names),
    errors.PermissionDenied: st.builds(errors.PermissionDenied, names),
    errors.Fenced: st.builds(errors.Fenced, names),
    errors.EngineFailure: st.builds(errors.EngineFailure, names),
    errors.Internal: st.builds(errors.Internal, names),
}


def _declared() -> set[type[TalkingMachinesError]]:
    classes = (cls for cls in vars(errors).values() if isinstance(cls, type))
    return {cls for cls in classes if issubclass(cls, TalkingMachinesError)} - {
        TalkingMachinesError
    }


@given(st.one_of(*strategies.values()))
def test_round_trip(error: TalkingMachinesError) -> None:
    status = Status.FromString(to_status(error).SerializeToString())
    again = from_status(status)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


@given(st.one_of(*strategies.values()))
def test_round_trip_through_a_proxy_that_lets_code_and_text_through(
    error: TalkingMachinesError,
) -> None:
    text = to_text(error)
    assert len(text) < 4096
    again = from_rpc_error(
        grpc.aio.AioRpcError(code_of(error), grpc.aio.Metadata(), grpc.aio.Metadata(), text)
    )
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_a_text_cut_short_still_tells_what_happened() -> None:
    error = errors.NotFound("avatar", "ada")
    for end in range(len(to_text(error))):
        cut = to_text(error)[:end]
        told = grpc.aio.AioRpcError(code_of(error), grpc.aio.Metadata(), grpc.aio.Metadata(), cut)
        assert isinstance(from_rpc_error(told), errors.NotFound | errors.Internal)


def test_no_error_of_the_domain_is_left_out() -> None:
    assert _declared() == strategies.keys()


def test_foreign_clients_find_the_standard_details() -> None:
    status = to_status(errors.BadInput("open.video.width", got=0, expected="an integer >= 16"))
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    bad = BadRequest()
    assert status.details[1].Unpack(bad)
    assert bad.field_violations[0].field == "open.video.width"

    status = to_status(errors.NoCapacity("a session", retry_after=2.5))
    retry = RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 2500


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.CANCELLED, errors.Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.TimedOut),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.NoCapacity),
        (grpc.StatusCode.UNAUTHENTICATED, errors.Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDenied),
        (grpc.StatusCode.NOT_FOUND, errors.NotFound),
        (grpc.StatusCode.INVALID_ARGUMENT, errors.BadInput),
        (grpc.StatusCode.ABORTED, errors.Fenced),
        (grpc.StatusCode.DATA_LOSS, errors.Internal),
    ],
)
def test_statuses_of_others_get_the_nearest_name(
    code: grpc.StatusCode, expected: type[TalkingMachinesError]
) -> None:
    assert type(from_status(Status(code=code.value[0], message="why"))) is expected


def test_an_oversized_message_names_both_sizes() -> None:
    status = Status(
        code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0],
        message="SERVER: Received message larger than max (500 vs. 100)",
    )
    error = from_status(status)
    assert isinstance(error, errors.BadInput)
    assert (error.field, error.got, error.expected) == ("message", "500 bytes", "at most 100 bytes")


@pytest.mark.parametrize(
    "message",
    [
        "SERVER: Sent message larger than max (500 vs. 100)",
        "CLIENT: Received message larger than max (500 vs. 100)",
        "received initial metadata size exceeds hard limit (20000 vs. 16384)",
    ],
)
def test_an_answer_too_large_to_arrive_is_not_worth_another_try(message: str) -> None:
    status = Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message=message)
    assert type(from_status(status)) is errors.Internal


def test_text_that_only_looks_like_an_oversized_message_is_none() -> None:
    text = "fault: SERVER: Received message larger than max (500 vs. 100)"
    status = Status(code=grpc.StatusCode.INTERNAL.value[0], message=text)
    assert type(from_status(status)) is errors.Internal


@pytest.mark.parametrize("sign", ["x", "\N{SPARKLES}"])
@pytest.mark.parametrize("kind", strategies, ids=lambda kind: kind.__name__)
def test_the_longest_error_fits_into_the_headers(
    kind: type[TalkingMachinesError], sign: str
) -> None:
    given: dict[str, Any] = {"got": sign * 20_000, "retry_after": 1.0}
    if kind is errors.TimedOut:
        given["limit"] = 1.0
    wanted = signature(kind).parameters
    error = kind(**{name: given.get(name, sign * 20_000) for name in wanted})
    status = to_status(error)
    in_headers = len(quote(status.message)) + len(b64encode(status.SerializeToString()))
    assert in_headers < 8192 - 512  # and some for what else is in the trailers


def test_an_error_of_one_s_own_arrives_under_the_nearest_name() -> None:
    class Misfit(errors.BadInput):
        pass

    again = from_status(to_status(Misfit("text", got="x", expected="y")))
    assert type(again) is errors.BadInput
    assert again.field == "text"
    assert type(from_status(to_status(TalkingMachinesError("no")))) is errors.Internal


def _forged(reason: str, **args: str) -> Status:
    info = Packed()
    info.Pack(ErrorInfo(reason=reason, domain=DOMAIN, metadata=args))
    return Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="no", details=[info])


def test_details_that_are_not_ours_leave_the_code_and_the_message() -> None:
    broken = Packed(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff")
    unavailable = grpc.StatusCode.UNAVAILABLE
    for status in (
        Status(code=unavailable.value[0], message="no", details=[broken]),
        _forged("NoCapacity", what="x", retry_after="soon"),
    ):
        assert isinstance(from_status(status), errors.Unavailable)
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff\xff"))
    failed = grpc.aio.AioRpcError(unavailable, grpc.aio.Metadata(), trailing, "no")
    assert isinstance(from_rpc_error(failed), errors.Unavailable)


def test_a_deadline_that_others_noticed_reads_well() -> None:
    code = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    error = from_status(Status(code=code, message="Deadline Exceeded"))
    assert str(error) == "the call took too long"


def test_an_error_of_a_newer_server_is_still_told() -> None:
    status = to_status(errors.Internal("out of luck"))
    info = status.details[0]
    info.value = info.value.replace(b"Internal", b"Newerrrr")
    assert isinstance(from_status(status), errors.Internal)
