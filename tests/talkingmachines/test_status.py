"""A domain error is the same error on both ends of the wire."""

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from talkingmachines import errors
from talkingmachines.errors import TalkingMachinesError
from talkingmachines.status import from_status, to_status

seconds = st.floats(min_value=0, max_value=86_400)
names = st.text(max_size=40)

strategies: dict[type[TalkingMachinesError], st.SearchStrategy[TalkingMachinesError]] = {
    errors.BadInput: st.builds(errors.BadInput, names, got=names, expected=names),
    errors.NotFound: st.builds(errors.NotFound, names, names),
    errors.NoCapacity: st.builds(errors.NoCapacity, names, retry_after=seconds),
    errors.QuotaExceeded: st.builds(errors.QuotaExceeded, names, limit=names),
    errors.Unavailable: st.builds(errors.Unavailable, names, retry_after=seconds),
    errors.TimedOut: st.builds(errors.TimedOut, names, limit=seconds),
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


def test_an_error_of_a_newer_server_is_still_told() -> None:
    status = to_status(errors.Internal("out of luck"))
    info = status.details[0]
    info.value = info.value.replace(b"Internal", b"Newerrrr")
    assert isinstance(from_status(status), errors.Internal)
