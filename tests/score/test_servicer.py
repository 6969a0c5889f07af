"""A score replica over real gRPC: what it draws, whom it refuses, how it lets go."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from services.runtime.attachments import Terms
from talkingmachines import duration
from talkingmachines.errors import (
    BadInput,
    NoCapacity,
    TimedOut,
    Unauthenticated,
    Unavailable,
)
from talkingmachines.media import spec_from_proto
from talkingmachines.v1 import media_pb2, score_pb2
from tests.score import served, small
from tests.score.calls import Call
from tests.score.served import Caller, Running, serving

CONFIG = small.config()
CHUNKS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served.write_checkpoint(tmp_path_factory.mktemp("score"))


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Tensor]:
    """What the engine draws for two calls, without any wire."""
    engine = served.engine(folder)
    drawn = {}
    for name in ("ada", "grace"):
        call = Call(CONFIG, name)
        call.open(engine)
        drawn[name] = call.draw(engine, 2 * CHUNKS).float()
    return drawn


@pytest.fixture
async def running(folder: Path) -> AsyncIterator[Running]:
    async with serving(served.settings(folder)) as there:
        yield there


async def caller(there: Running, name: str = "ada", **fields: Any) -> Caller:
    call = Call(CONFIG, name, **fields)
    return Caller(there.stub, call, (await there.describe()).checkpoint)


def same(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 2e-3 * b.abs().max())


async def test_it_says_what_it_has_loaded(running: Running) -> None:
    loaded = await running.describe()
    assert loaded.checkpoint.startswith("score-")
    assert spec_from_proto(loaded.spec, at="spec") == CONFIG.spec
    assert tuple(loaded.latent_shape) == (4, 3, *CONFIG.latent_size)
    assert (loaded.takes_prompt, loaded.max_speakers) == (True, 2)
    assert loaded.tail.speech_chunks >= loaded.tail.latent_chunks == 1
    assert loaded.capacity == media_pb2.Capacity(sessions=0, slots=loaded.capacity.slots)
    assert 1 <= loaded.capacity.slots <= 3


async def test_what_is_streamed_is_what_the_engine_draws(
    running: Running, expected: dict[str, Tensor]
) -> None:
    ada = await (await caller(running)).attach()
    assert ada.attached is not None
    assert 48 <= duration.from_proto(ada.attached.max_age) <= 72
    assert ada.attached.capacity.sessions == 1
    assert torch.equal(await ada.draw(CHUNKS), expected["ada"][:CHUNKS])


async def test_several_chunks_may_be_under_way(
    running: Running, expected: dict[str, Tensor]
) -> None:
    ada = await (await caller(running)).attach()
    for chunk in range(2 * CHUNKS):
        ada.ask(chunk)
    ada.half_close()
    drawn = [await ada.latents() for _ in range(2 * CHUNKS)]
    assert torch.equal(torch.stack(drawn), expected["ada"])
    with pytest.raises(StopAsyncIteration):
        await ada.next()
    await running.until(0)


async def test_sessions_at_once_never_mix(running: Running, expected: dict[str, Tensor]) -> None:
    both = [await (await caller(running, name)).attach() for name in expected]

    async def draw(one: Caller) -> Tensor:
        drawn = []
        for _ in range(CHUNKS):
            await asyncio.sleep(random.uniform(0, 0.02))
            drawn.append(await one.draw())
        return torch.cat(drawn)

    for one, drawn in zip(both, await asyncio.gather(*map(draw, both)), strict=True):
        assert torch.equal(drawn, expected[one.call.name][:CHUNKS])


async def test_attached_elsewhere_it_goes_on_with_the_same_chunk(
    running: Running, folder: Path, expected: dict[str, Tensor]
) -> None:
    ada = await (await caller(running)).attach()
    await ada.draw(CHUNKS)
    async with serving(served.settings(folder)) as elsewhere:
        loaded = await elsewhere.describe()
        assert loaded.checkpoint == (await running.describe()).checkpoint
        again = await Caller(elsewhere.stub, ada.call, loaded.checkpoint).attach()
        assert same(await again.draw(CHUNKS), expected["ada"][CHUNKS:])


async def test_a_rewind_forgets_what_was_not_played(
    running: Running, expected: dict[str, Tensor]
) -> None:
    ada = await (await caller(running)).attach()
    played = await ada.draw(2)
    for ahead in range(2, 6):
        ada.ask(ahead)
    ada.rewind(turn=1)
    ada.ask()
    response = await ada.next()
    while response.latents.turn == 0:  # drawn before the rewind was read
        response = await ada.next()
    assert (response.latents.turn, response.latents.chunk) == (1, 2)
    assert torch.equal(played, expected["ada"][:2])


async def test_a_rewind_in_the_same_turn_draws_the_same_again(
    running: Running, expected: dict[str, Tensor]
) -> None:
    ada = await (await caller(running)).attach()
    await ada.draw(CHUNKS)
    del ada.call.log[2:]
    ada.rewind(turn=0)
    assert same(await ada.draw(CHUNKS), expected["ada"][2 : 2 + CHUNKS])


Spoil = Callable[[Caller], None]


def _chunk(**changes: Any) -> Spoil:
    return lambda caller: caller.ask(**changes)


def _speech(change: Callable[[media_pb2.SpeakerSpeech], None]) -> Spoil:
    def spoil(caller: Caller) -> None:
        speech = served.speech_to_proto(caller.call.speech(0), CONFIG)
        change(speech[0])
        caller.ask(speech=speech)

    return spoil


def _shorten(part: media_pb2.SpeakerSpeech) -> None:
    part.speech.samples = part.speech.samples[:-2]


def _odd(part: media_pb2.SpeakerSpeech) -> None:
    part.speech.samples = part.speech.samples[:-1]


def _lengthen(part: media_pb2.SpeakerSpeech) -> None:
    part.lookahead.samples += b"\0\0"


def _rate(part: media_pb2.SpeakerSpeech) -> None:
    part.speech.sample_rate = 8000


def _stranger(part: media_pb2.SpeakerSpeech) -> None:
    part.speaker = 1


def _modeless(part: media_pb2.SpeakerSpeech) -> None:
    part.mode = media_pb2.MODE_UNSPECIFIED


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (_chunk(chunk=1), "chunk.chunk"),
        (_chunk(slack=duration.to_proto(1e6)), "chunk.slack"),
        (_speech(_shorten), "chunk.speech[0].speech.samples"),
        (_speech(_odd), "chunk.speech[0].speech.samples"),
        (_speech(_lengthen), "chunk.speech[0].lookahead.samples"),
        (_speech(_rate), "chunk.speech[0].speech.sample_rate"),
        (_speech(_stranger), "chunk.speech[0].speaker"),
        (_speech(_modeless), "chunk.speech[0].mode"),
        (lambda caller: caller.send(attach=caller.header()), "message"),
        (lambda caller: caller.send(), "message"),
        (lambda caller: caller.rewind(0, tail=media_pb2.LogTail(next_chunk=5)), "rewind.tail"),
    ],
)
async def test_whoever_breaks_the_contract_is_told_the_field(
    running: Running, spoil: Spoil, field: str
) -> None:
    ada = await (await caller(running)).attach()
    spoil(ada)
    with pytest.raises(BadInput) as refused:
        await ada.next()
    assert refused.value.field.startswith(field)
    await running.until(0)


async def test_turns_never_go_back(running: Running) -> None:
    acts: list[Spoil] = [lambda caller: caller.ask(turn=1), lambda caller: caller.rewind(1)]
    for act in acts:
        ada = await (await caller(running, turn=2)).attach()
        await ada.draw()
        act(ada)
        with pytest.raises(BadInput, match="turn"):
            await ada.next()


def _header(change: Callable[[score_pb2.DenoiseAttach], None]) -> Spoil:
    def spoil(caller: Caller) -> None:
        header = caller.header()
        change(header)
        caller.send(attach=header)

    return spoil


def _no_anchor(header: score_pb2.DenoiseAttach) -> None:
    header.conditioning.ClearField("anchor")


def _foreign(header: score_pb2.DenoiseAttach) -> None:
    header.conditioning.checkpoint = "score-other"


def _nameless(header: score_pb2.DenoiseAttach) -> None:
    header.conditioning.digest = ""


def _infinite(header: score_pb2.DenoiseAttach) -> None:
    header.conditioning.anchor.payload = b"\xff" * len(header.conditioning.anchor.payload)


def _small_anchor(header: score_pb2.DenoiseAttach) -> None:
    header.conditioning.anchor.CopyFrom(served.tensor_to_proto(torch.zeros(4, 1, 2, 2)))


def _crowd(header: score_pb2.DenoiseAttach) -> None:
    header.conditioning.faces.extend(5 * [header.conditioning.faces[0]])


def _no_face(header: score_pb2.DenoiseAttach) -> None:
    del header.conditioning.faces[:]


def _no_log(header: score_pb2.DenoiseAttach) -> None:
    header.tail.next_chunk = 3


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (_header(_no_anchor), "attach.conditioning.anchor"),
        (_header(_infinite), "attach.conditioning.anchor"),
        (_header(_small_anchor), "attach.conditioning.anchor"),
        (_header(_foreign), "attach.conditioning.checkpoint"),
        (_header(_nameless), "attach.conditioning.digest"),
        (_header(_crowd), "attach.conditioning.faces"),
        (_header(_no_face), "attach.conditioning.faces"),
        (_header(_no_log), "attach.tail"),
        (_chunk(), "message"),
        (lambda caller: caller.half_close(), "message"),
    ],
)
async def test_what_does_not_fit_is_not_attached(
    running: Running, spoil: Spoil, field: str
) -> None:
    ada = await caller(running)
    spoil(ada)
    with pytest.raises(BadInput) as refused:
        await ada.next()
    assert refused.value.field.startswith(field)
    await running.until(0)


async def test_who_says_nothing_does_not_hold_a_slot(running: Running) -> None:
    silent = await caller(running)
    with pytest.raises(TimedOut):
        await silent.next()
    await running.until(0)


async def test_a_flood_ends_alone(running: Running, expected: dict[str, Tensor]) -> None:
    ada = await (await caller(running)).attach()
    flood = await (await caller(running, "grace")).attach()
    for chunk in range(500):
        flood.ask(chunk)
    with pytest.raises(BadInput, match="unanswered"):
        await flood.read_all()
    assert torch.equal(await ada.draw(CHUNKS), expected["ada"][:CHUNKS])


async def test_who_vanishes_frees_the_slot(running: Running) -> None:
    ada = await (await caller(running)).attach()
    ada.ask()
    ada.rpc.cancel()
    await running.until(0)
    assert running.metric("tm_engine_slots_used") == 0
    assert running.metric("tm_cache_bytes", cache="session") == 0


async def test_a_full_replica_says_so(running: Running) -> None:
    loaded = await running.describe()
    slots = loaded.capacity.slots
    attached = [await (await caller(running)).attach() for _ in range(slots)]
    late = await caller(running)
    late.send(attach=late.header())
    with pytest.raises(NoCapacity):
        await late.next()
    await running.until(slots)
    await attached[0].draw()
    moved = await Caller(running.stub, attached[0].call, loaded.checkpoint).attach()
    attached[0].half_close()
    moved.half_close()
    await running.until(slots - 1)
    await (await caller(running)).attach()


async def test_an_attachment_works_on_until_its_time_is_over(
    folder: Path, expected: dict[str, Tensor]
) -> None:
    terms = Terms(max_age_seconds=0.2, time_left_seconds=0.6)
    async with serving(served.settings(folder, terms=terms)) as there:
        ada = await (await caller(there)).attach()
        order = (await ada.next()).hand_over
        assert order.reason == media_pb2.HAND_OVER_REASON_AGE
        assert duration.from_proto(order.time_left) == pytest.approx(0.6)
        assert torch.equal(await ada.draw(), expected["ada"][:1])
        with pytest.raises(Unavailable):
            await ada.next()
        await there.until(0)


async def test_a_drain_asks_to_leave_and_the_session_goes_on_elsewhere(
    folder: Path, expected: dict[str, Tensor]
) -> None:
    async with serving(served.settings(folder)) as here, serving(served.settings(folder)) as there:
        ada = await (await caller(here)).attach()
        drawn = [await ada.draw(2)]
        stopping = asyncio.create_task(here.server.stop())
        assert (await ada.next()).hand_over.reason == media_pb2.HAND_OVER_REASON_DRAINING
        checkpoint = (await there.describe()).checkpoint
        other = await Caller(there.stub, ada.call, checkpoint).attach()
        drawn.append(await ada.draw())  # it works on until it is left
        ada.half_close()
        await stopping
        other.rewind(turn=0)  # up to date with what was drawn since
        drawn.append(await other.draw(2))
        assert same(torch.cat(drawn), expected["ada"][:5])


async def test_strangers_are_kept_out(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret-of-the-fleet\n")
    async with serving(served.settings(folder, token_file=file)) as there:
        with pytest.raises(Unauthenticated):
            await there.describe()
        request = score_pb2.ScoreServiceDescribeRequest()
        known = (("authorization", "Bearer secret-of-the-fleet"),)
        loaded = await there.stub.Describe(request, metadata=known)
        stranger = Caller(there.stub, Call(CONFIG), loaded.checkpoint)
        stranger.send(attach=stranger.header())
        with pytest.raises(Unauthenticated):
            await stranger.next()
        await Caller(there.stub, Call(CONFIG), loaded.checkpoint, metadata=known).attach()


async def test_prompts_are_refused_where_nobody_reads_them(tmp_path: Path) -> None:
    bare = served.write_checkpoint(tmp_path, small.config(text=None, clip=None))
    async with serving(served.settings(bare)) as there:
        assert not (await there.describe()).takes_prompt
        with pytest.raises(BadInput) as refused:
            await there.stub.Condition(score_pb2.ConditionRequest(prompt="smiles"))
        assert refused.value.field == "prompt"
        made = await there.stub.Condition(score_pb2.ConditionRequest())
        assert made.conditioning.checkpoint == (await there.describe()).checkpoint


async def test_it_counts_what_it_does(running: Running) -> None:
    ada = await (await caller(running)).attach()
    await ada.draw(3)
    ada.ask(slack=duration.to_proto(-1))
    await ada.latents()
    ada.half_close()
    await running.until(0)
    metric = running.metric
    assert metric("tm_engine_chunks_total") == 4
    assert metric("tm_engine_late_chunks_total") >= 1
    for stage in ("wait", "denoise", "context"):
        assert metric("tm_engine_step_seconds_count", stage=stage) == 4
    assert metric("tm_engine_attach_seconds_count") == 1
    assert metric("tm_engine_batch_sessions_sum") == 4
    assert metric("tm_cache_bytes", cache="avatar") > 0
    assert metric("tm_cache_misses_total", cache="avatar") >= 1
    assert metric("tm_device_busy_seconds_total") > 0
    await (await caller(running)).attach()
    assert metric("tm_cache_hits_total", cache="avatar") >= 1
