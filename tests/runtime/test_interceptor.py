"""What crosses the wire when a handler fails, is late, or loses its client."""

import asyncio
import io
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable
from time import monotonic

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_status import rpc_status

from services.runtime import logs
from services.runtime.tracing import trace_ids
from talkingmachines.channel import DomainChannel
from talkingmachines.errors import (
    BadInput,
    EngineFailure,
    Internal,
    NoCapacity,
    NotFound,
    TalkingMachinesError,
    TimedOut,
    Unavailable,
)
from talkingmachines.status import to_status
from tests.runtime.echo import NAME, Context, Echo, EchoStub, Running, Texts, running, text

ERRORS = [
    BadInput("open.video.width", got="-1", expected="1 to 4096"),
    NoCapacity("a session", retry_after=2.5),
    Unavailable("the speech model is down", retry_after=4.0),
]


class Failing(Echo):
    """Raises what it is given: at once, or after `late` replies."""

    def __init__(self, error: Exception, late: int = 0) -> None:
        self.error = error
        self.late = late

    async def say(self, request: StringValue, context: Context) -> StringValue:
        raise self.error

    async def join(self, requests: Texts, context: Context) -> StringValue:
        async for _ in requests:
            raise self.error
        return text("")

    async def spell(self, request: StringValue, context: Context) -> Texts:
        for letter in request.value[: self.late]:
            yield text(letter)
        raise self.error

    async def chat(self, requests: Texts, context: Context) -> Texts:
        for _ in range(self.late):
            yield await anext(requests)
        raise self.error


class FailingByWriting(Failing):
    """The same with the other way to write a handler: reading and writing on the context."""

    async def spell(self, request: StringValue, context: Context) -> None:  # type: ignore[override]
        for letter in request.value[: self.late]:
            await context.write(text(letter))
        raise self.error

    async def chat(self, requests: Texts, context: Context) -> None:  # type: ignore[override]
        for _ in range(self.late):
            await context.write(await context.read())
        raise self.error


async def some(*words: str) -> AsyncIterator[StringValue]:
    for word in words:
        yield text(word)


async def collect(replies: AsyncIterable[StringValue], into: list[str]) -> None:
    async for reply in replies:
        into.append(reply.value)  # noqa: PERF401  what came before the error counts


def same(got: TalkingMachinesError, sent: TalkingMachinesError) -> bool:
    return type(got) is type(sent) and str(got) == str(sent) and vars(got) == vars(sent)


async def settled(there: Running, method: str) -> None:
    """Wait for the server: the client may know of an end before the server is done with it."""
    async with asyncio.timeout(5):
        while there.sample("tm_rpc_in_flight", method=f"/{NAME}/{method}"):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("late", [0, 2], ids=["at once", "in the middle"])
@pytest.mark.parametrize("style", [Failing, FailingByWriting], ids=["yields", "writes"])
async def test_a_domain_error_arrives_as_itself(
    error: TalkingMachinesError, late: int, style: type[Failing]
) -> None:
    async with running(style(error, late)) as there, there.channel() as channel:
        stub = EchoStub(channel)
        got: list[str] = []
        for start in (
            lambda: stub.say(text("abc")),
            lambda: stub.join(some("a", "b", "c")),
            lambda: collect(aiter(stub.spell(text("abc"))), got),
            lambda: collect(aiter(stub.chat(some("a", "b", "c"))), got),
        ):
            with pytest.raises(type(error)) as caught:
                await start()
            assert same(caught.value, error)
        assert got == ["a", "b"][:late] * 2
        for method in ("Say", "Join", "Spell", "Chat"):
            labels = {"method": f"/{NAME}/{method}"}
            assert there.sample("tm_rpc_started_total", **labels) == 1
            await settled(there, method)
            code = rpc_status.to_status(to_status(error)).code.name
            assert there.sample("tm_rpc_handled_total", **labels, code=code) == 1


@pytest.mark.parametrize("size", [200, 201, 100_000])
async def test_an_error_about_something_long_still_arrives(size: int) -> None:
    sent = "\N{SPARKLES}" * size
    for error in (
        BadInput("text", got=sent, expected=sent),
        NotFound("avatar", sent),
        EngineFailure(sent),
    ):
        async with running(Failing(error)) as there, there.channel() as channel:
            with pytest.raises(type(error)) as caught:
                await EchoStub(channel).say(text("x"))
            assert same(caught.value, error)


async def test_an_error_within_a_task_group_arrives_as_itself() -> None:
    class Grouped(Echo):
        async def chat(self, requests: Texts, context: Context) -> Texts:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.fail())
                async for request in requests:
                    yield request

        async def fail(self) -> None:
            raise ERRORS[0]

    async with running(Grouped()) as there, there.channel() as channel:
        call = EchoStub(channel).chat()
        with pytest.raises(BadInput) as caught:
            await call.read()
        assert same(caught.value, ERRORS[0])


def stray() -> Exception:
    """What awaiting a task that somebody cancelled raises."""
    return asyncio.CancelledError()  # type: ignore[return-value]


def leaving(kind: type[BaseException]) -> Callable[[], Exception]:
    """What would end the process, or the generator that raises it."""
    return lambda: kind("hunter2")  # type: ignore[return-value]


@pytest.mark.parametrize(
    "fault",
    [
        lambda: RuntimeError("the key is hunter2"),
        stray,
        TimeoutError,
        lambda: grpc.aio.UsageError("the key is hunter2"),
        lambda: grpc.aio.InternalError("the key is hunter2"),
        leaving(SystemExit),
        leaving(GeneratorExit),
    ],
    ids=lambda fault: repr(fault()),
)
async def test_anything_else_is_internal_with_an_id_that_the_log_has_too(
    fault: Callable[[], Exception],
) -> None:
    lines = io.StringIO()
    logs.configure("test", stream=lines)
    async with running(Failing(fault())) as there, there.channel() as channel:
        for start in (EchoStub(channel).say(text("x")), EchoStub(channel).chat().read()):
            with pytest.raises(Internal, match=r"internal fault [0-9a-f]{12}") as caught:
                await start
            assert "hunter2" not in str(caught.value)
            logged = [json.loads(line) for line in lines.getvalue().splitlines()]
            fault_id = str(caught.value).split()[-1]
            assert any(line.get("fault") == fault_id and line["exception"] for line in logged)
        for method in ("Say", "Chat"):
            await settled(there, method)
            labels = {"method": f"/{NAME}/{method}", "code": "INTERNAL"}
            assert there.sample("tm_rpc_handled_total", **labels) == 1


class Misanswering(Echo):
    """Replies with nothing, or with more than a message holds."""

    def __init__(self, reply: StringValue | None) -> None:
        self.reply = reply

    async def say(self, request: StringValue, context: Context) -> StringValue:
        return self.reply  # type: ignore[return-value]

    async def chat(self, requests: Texts, context: Context) -> Texts:
        yield self.reply  # type: ignore[misc]


@pytest.mark.parametrize("reply", [None, text("x" * 70_000)], ids=["none", "too large"])
async def test_a_reply_that_cannot_be_sent_is_a_fault_of_ours(reply: StringValue | None) -> None:
    limits = {"max_message_bytes": 64 * 1024}
    async with running(Misanswering(reply), limits=limits) as there, there.channel() as channel:
        for start in (EchoStub(channel).say(text("x")), EchoStub(channel).chat().read()):
            with pytest.raises(Internal, match="internal fault"):
                await start
        for method in ("Say", "Chat"):
            await settled(there, method)
            labels = {"method": f"/{NAME}/{method}"}
            assert there.sample("tm_rpc_handled_total", **labels, code="INTERNAL") == 1
            assert there.sample("tm_rpc_handled_total", **labels, code="OK") == 0


@pytest.mark.parametrize("kind", [EngineFailure, Internal])
async def test_the_cause_of_a_failure_is_in_the_log(kind: type[TalkingMachinesError]) -> None:
    class Broken(Echo):
        async def say(self, request: StringValue, context: Context) -> StringValue:
            try:
                raise RuntimeError("out of memory")
            except RuntimeError as error:
                raise kind("the step failed") from error

    lines = io.StringIO()
    logs.configure("test", stream=lines)
    async with running(Broken()) as there, there.channel() as channel:
        with pytest.raises(kind, match="the step failed"):
            await EchoStub(channel).say(text("x"))
    (line,) = (json.loads(line) for line in lines.getvalue().splitlines() if "failed" in line)
    assert line["level"] == "error"
    assert "RuntimeError: out of memory" in line["exception"]


class Slow(Echo):
    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def say(self, request: StringValue, context: Context) -> StringValue:
        try:
            await asyncio.sleep(60)
        finally:
            self.ended.set()
        return request


async def test_a_unary_call_without_a_deadline_gets_one() -> None:
    echo = Slow()
    async with running(echo, unary_deadline_seconds=0.1) as there:
        async with grpc.aio.insecure_channel(there.address) as plain:
            # Straight through gRPC: our own channel would have put a deadline on the call.
            stub = EchoStub(DomainChannel(plain, deadline_seconds=None))  # type: ignore[arg-type]
            with pytest.raises(TimedOut) as caught:
                await stub.say(text("x"))
        assert caught.value.limit == 0.1
        assert echo.ended.is_set()


async def test_a_streaming_call_has_no_deadline() -> None:
    async with running(unary_deadline_seconds=0.05) as there, there.channel() as channel:
        call = EchoStub(channel).chat()
        await asyncio.sleep(0.2)
        await call.write(text("still here"))
        assert await call.read() == text("still here")
        call.cancel()


async def test_a_client_s_own_deadline_is_kept() -> None:
    echo = Slow()
    async with running(echo) as there, there.channel() as channel:
        with pytest.raises(TimedOut):
            await EchoStub(channel).say(text("x"), timeout=0.1)
        async with asyncio.timeout(5):
            await echo.ended.wait()
        await settled(there, "Say")
        labels = {"method": f"/{NAME}/Say", "code": "DEADLINE_EXCEEDED"}
        assert there.sample("tm_rpc_handled_total", **labels) == 1


class Waiting(Echo):
    """Notes when its `finally` ran, having waited in one of three places."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.ended = asyncio.Event()

    async def chat(self, requests: Texts, context: Context) -> Texts:
        try:
            yield text("attached")
            match self.where:
                case "reading":
                    async for request in requests:
                        yield request
                    await asyncio.sleep(60)
                case "working":
                    await asyncio.sleep(60)
                case "writing":
                    while True:  # until flow control stops us: nobody reads
                        yield text("x" * 50_000)
        finally:
            self.ended.set()


@pytest.mark.parametrize("where", ["reading", "working", "writing"])
@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_a_client_that_goes_away_is_noticed_within_100_ms(where: str, how: str) -> None:
    # The best of three: a busy machine may take a breath just then, three times is a fault.
    seconds = [await _seconds_to_notice(where, how) for _ in range(3)]
    assert min(seconds) < 0.1


async def _seconds_to_notice(where: str, how: str) -> float:
    echo = Waiting(where)
    async with running(echo) as there, there.channel() as channel:
        call = EchoStub(channel).chat()
        assert await call.read() == text("attached")
        await asyncio.sleep(0.05)
        assert not echo.ended.is_set()
        began = monotonic()
        if how == "cancel":
            call.cancel()
        else:
            await channel.close()
        async with asyncio.timeout(5):
            await echo.ended.wait()
        seconds = monotonic() - began
        await settled(there, "Chat")
        method = f"/{NAME}/Chat"
        assert there.sample("tm_rpc_handled_total", method=method, code="CANCELLED") == 1
    return seconds


async def test_a_caller_s_trace_goes_on_in_the_handler_and_in_what_it_calls() -> None:
    class Traced(Echo):
        async def say(self, request: StringValue, context: Context) -> StringValue:
            return text(trace_ids().get("trace", ""))

        async def chat(self, requests: Texts, context: Context) -> Texts:
            async with there.channel() as inner:
                yield await EchoStub(inner).say(text("inner"))

    trace = "0af7651916cd43dd8448eb211c80319c"
    metadata = (("traceparent", f"00-{trace}-b7ad6b7169203331-01"),)
    async with running(Traced()) as there, there.channel() as channel:
        assert (await EchoStub(channel).say(text("x"), metadata=metadata)).value == trace
        call = EchoStub(channel).chat(metadata=metadata)
        assert [reply.value async for reply in call] == [trace]
