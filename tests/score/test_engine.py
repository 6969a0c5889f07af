"""Sessions are caches over a log: they move, rewind, share and fail alone."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
import torch

from services.score.attention import Local, sdpa
from services.score.commands import AddAvatar, Close, Denoise, Finish, Open, Remember, Replay
from services.score.config import ContextConfig, PositionsConfig
from services.score.contract import (
    Chunk,
    Drawn,
    Ended,
    LogTail,
    Mode,
    PastChunk,
    RankLost,
    Rectangle,
)
from services.score.engine import Limits
from services.score.parallel import Alone, Solo
from services.score.worker import Command, Worker
from talkingmachines.errors import BadInput, EngineFailure, NoCapacity, NotFound
from tests.score import calls, small
from tests.score.calls import Call

R = TypeVar("R")


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def latents_of(call: Call) -> torch.Tensor:
    """[chunks, C, F, h, w]"""
    return torch.stack([past.latents for past in call.log if past.latents is not None])


@pytest.mark.parametrize("moved_at", [0, 1, 2, 7])
@pytest.mark.parametrize("faces", [1, 2])
def test_a_session_that_moves_goes_on_as_if_it_had_stayed(moved_at: int, faces: int) -> None:
    config = small.config()
    stays, moves = Call(config, faces=faces), Call(config, faces=faces)
    first, second = calls.engine(config), calls.engine(config)
    stays.open(first)
    expected = stays.draw(first, moved_at + 3)
    assert expected.std() > 0.1
    moves.log = stays.log[:moved_at]
    moves.open(second)
    same(moves.draw(second, 3), expected[moved_at:])


def test_a_rewound_session_goes_on_from_there() -> None:
    config = small.config()
    engine, fresh = calls.engine(config), calls.engine(config)
    call = Call(config)
    call.open(engine)
    call.draw(engine, 5)
    engine.submit(call.name, call.next())  # waits, and will never be seen
    del call.log[3:]
    call.turn = 1
    engine.rewind(call.name, turn=1, tail=call.tail(engine))
    other = Call(config, turn=1, log=list(call.log))
    other.open(fresh)
    same(call.draw(engine, 3), other.draw(fresh, 3))


def test_a_chunk_of_an_earlier_turn_is_dropped() -> None:
    config = small.config()
    engine = calls.engine(config)
    call = Call(config)
    call.open(engine)
    late = call.next()
    engine.rewind(call.name, turn=3, tail=LogTail())
    engine.submit(call.name, late)
    assert engine.step() == []
    with pytest.raises(BadInput, match=r"rewind\.turn"):
        engine.rewind(call.name, turn=2, tail=LogTail())


def test_what_a_listener_says_is_not_heard() -> None:
    config = small.config()
    engine = calls.engine(config)
    call = Call(config)
    call.open(engine)
    quiet = call.next()
    quiet = replace(quiet, speech=(replace(quiet.speech[0], mode=Mode.LISTENING),))
    noisy = replace(quiet, speech=(replace(quiet.speech[0], pcm=quiet.speech[0].pcm // 2),))
    drawn = []
    for chunk in (quiet, noisy):
        engine.submit(call.name, chunk)
        drawn += engine.step()
        engine.rewind(call.name, turn=0, tail=LogTail())
    spoken = call.draw(engine)[0]
    first, second = (one.latents for one in drawn if isinstance(one, Drawn))
    assert torch.equal(first, second)
    assert (first - spoken).abs().max() > 1e-3


def test_speech_that_was_not_what_the_lookahead_promised_is_heard() -> None:
    """Silence, and then somebody speaks: the first syllable must not be lost."""
    config = small.config()
    engine, fresh = calls.engine(config), calls.engine(config)
    call = Call(config)
    call.open(engine)
    hushed = call.next()
    own = config.spec.samples_per_chunk
    pcm = hushed.speech[0].pcm.copy()
    pcm[own:] = 0
    hushed = replace(hushed, speech=(replace(hushed.speech[0], pcm=pcm),))
    engine.submit(call.name, hushed)
    call.take(engine.step())
    call.log[0] = replace(call.log[0], speech=hushed.speech)
    moved = Call(config, log=list(call.log))
    moved.open(fresh)
    same(call.draw(engine, 2), moved.draw(fresh, 2))


def test_sessions_do_not_touch_each_other() -> None:
    config = small.config()
    together, alone = calls.engine(config), {}
    names = ["ann", "bob", "cy"]
    sessions = [Call(config, name, seed=n) for n, name in enumerate(names)]
    for call in sessions:
        call.open(together)
    for _ in range(3):
        for call in sessions:
            call.draw(together)
    for n, name in enumerate(names):
        lonely, own = calls.engine(config), Call(config, name, seed=n)
        own.open(lonely)
        alone[name] = own.draw(lonely, 3)
    for call in sessions:
        assert torch.equal(latents_of(call), alone[call.name])


def test_a_batch_draws_what_each_would_draw_alone() -> None:
    config = small.config()
    engine = calls.engine(config, limits=Limits(rows=3))
    sessions = [Call(config, name, seed=n) for n, name in enumerate(["ann", "bob", "cy"])]
    for call in sessions:
        call.open(engine)
    engine.expect({1: 0.1, 3: 0.15})
    for _ in range(3):
        for call in sessions:
            engine.submit(call.name, call.next())
        outcomes = engine.step()
        assert len(outcomes) == 3, "one batch"
        for call in sessions:
            call.take(outcomes)
    for call in sessions:
        own, lonely = Call(config, call.name, seed=call.seed), calls.engine(config)
        own.open(lonely)
        drawn = latents_of(call)
        same(drawn, own.draw(lonely, 3))


def test_avatars_of_different_looks_share_a_batch() -> None:
    config = small.config()
    engine = calls.engine(config, limits=Limits(rows=2))
    ann, bob = Call(config, "ann"), Call(config, "bob")
    engine.open("ann", calls.avatar(config, "ann"), seed=calls.SEED, tail=LogTail())
    engine.open("bob", calls.avatar(config, "bob"), seed=calls.SEED, tail=LogTail())
    for call in (ann, bob):
        engine.submit(call.name, call.next())
    outcomes = engine.step()
    lonely = calls.engine(config)
    lonely.open("bob", calls.avatar(config, "bob"), seed=calls.SEED, tail=LogTail())
    same(bob.take(outcomes), Call(config, "bob").draw(lonely)[0])
    assert engine.stats().avatars.avatars == 2


class Watched(Solo):
    """Notes what was told."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        self.told: list[str] = []

    def perform(self, command: Command[R]) -> R:
        self.told.append(type(command).__name__)
        return super().perform(command)


def test_latents_leave_before_the_context_pass() -> None:
    config = small.config()
    hands = Watched(calls.worker(config))
    engine = calls.engine(config, hands=hands)
    call = Call(config)
    call.open(engine)
    engine.submit(call.name, call.next())
    call.take(engine.step())
    assert hands.told[-1] == "Denoise"
    engine.settle()
    assert hands.told[-2:] == ["Remember", "Finish"]


def test_a_device_with_a_queue_gets_the_context_pass_at_once_and_draws_the_same() -> None:
    config = small.config()
    hands = Watched(calls.worker(config))
    engine, other = calls.engine(config, hands=hands, queues=True), calls.engine(config)
    call, same_call = Call(config), Call(config)
    call.open(engine)
    same_call.open(other)
    engine.submit(call.name, call.next())
    call.take(engine.step())
    assert hands.told[-2:] == ["Denoise", "Remember"]
    engine.settle()
    assert hands.told[-1] == "Finish"
    assert torch.equal(call.draw(engine, 3), same_call.draw(other, 4)[1:])


def test_a_session_whose_numbers_break_ends_alone() -> None:
    config = small.config()

    class Breaking(Solo):
        """Numbers out of all proportion come into the context of "bad" when it is rebuilt."""

        def perform(self, command: Command[R]) -> R:
            told: object = command
            result = super().perform(command)
            if isinstance(told, Replay) and told.part.session == "bad":
                worker.replay(told.part, torch.full_like(told.latents, 3e38))
            return result

    worker = calls.worker(config, rows=2)
    engine = calls.engine(config, hands=Breaking(worker), limits=Limits(rows=2))
    good, bad = Call(config, "good"), Call(config, "bad")
    good.open(engine)
    bad.open(engine)
    engine.expect({1: 0.1, 2: 0.15})
    for call in (good, bad):
        engine.submit(call.name, call.next())
    outcomes = engine.step()
    good.take(outcomes)
    bad.take(outcomes)
    engine.rewind("bad", turn=0, tail=bad.tail(engine))
    for call in (good, bad):
        engine.submit(call.name, call.next())
    outcomes = engine.step()
    (ended,) = [one for one in outcomes if isinstance(one, Ended)]
    assert ended.session == "bad"
    assert isinstance(ended.error, EngineFailure)
    assert "not a number" in str(ended.error)
    good.take(outcomes)
    good.draw(engine, 2)
    with pytest.raises(NotFound):
        engine.submit("bad", bad.next())
    own, lonely = Call(config, "good"), calls.engine(config)
    own.open(lonely)
    drawn = latents_of(good)
    same(drawn, own.draw(lonely, 4))


def test_out_of_memory_in_a_batch_ends_only_whom_it_hits_alone() -> None:
    config = small.config()

    class Short(Solo):
        """Memory for one row, and none for "big"."""

        def perform(self, command: Command[R]) -> R:
            told: object = command
            batch = told.batch if isinstance(told, Denoise) else ()
            if len(batch) > 1 or any(part.session == "big" for part in batch):
                raise torch.OutOfMemoryError("as a device would say")
            return super().perform(command)

    hands = Short(calls.worker(config, rows=3))
    engine = calls.engine(config, hands=hands, limits=Limits(rows=3))
    sessions = [Call(config, name) for name in ("ann", "big", "cy")]
    for call in sessions:
        call.open(engine)
        engine.submit(call.name, call.next())
    outcomes = engine.step()
    assert {one.session: type(one) for one in outcomes} == {"ann": Drawn, "big": Ended, "cy": Drawn}
    for call in (sessions[0], sessions[2]):
        call.take(outcomes)
        own, lonely = Call(config, call.name), calls.engine(config)
        own.open(lonely)
        same(call.draw(engine, 2), own.draw(lonely, 3)[1:])


class Faulty:
    """An attention that fails in the middle of a pass, once armed."""

    armed = False

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if self.armed:
            raise RuntimeError("as a device would say")
        return sdpa(q, k, v)


CONTEXTS = {
    "own": (ContextConfig(), PositionsConfig()),
    "window": (ContextConfig(policy="window", chunks=2, replay=6), PositionsConfig(own=7)),
}


@pytest.mark.parametrize("queues", [False, True], ids=["host", "queue"])
@pytest.mark.parametrize("policy", ["own", "window"])
def test_a_context_pass_that_fails_in_a_batch_ends_only_whom_it_hits_alone(
    policy: str, queues: bool
) -> None:
    context, positions = CONTEXTS[policy]
    config = small.config(context=context, positions=positions)
    fault, model = Faulty(), small.model(config)
    list(model.layers())[1].self_attn.attend = Local(fault)
    worker = Worker(model, rows=3, team=Alone(), capture=None, latent_dtype=torch.float32)

    class Failing(Solo):
        """Context passes fail for "big", from its third chunk on, and so for its batch."""

        hit = False

        def perform(self, command: Command[R]) -> R:
            told: object = command
            if isinstance(told, Denoise):
                self.hit = any(part.session == "big" and part.chunk > 1 for part in told.batch)
            mine = isinstance(told, Replay) and told.part.session == "big"
            fault.armed = mine or (isinstance(told, Remember) and self.hit)
            return super().perform(command)

    engine = calls.engine(config, hands=Failing(worker), limits=Limits(rows=3), queues=queues)
    sessions = [Call(config, name, seed=n) for n, name in enumerate(("ann", "big", "cy"))]
    for call in sessions:
        call.open(engine)
    engine.expect({1: 0.1, 3: 0.15})
    ended: list[Ended] = []
    for chunk in range(5):
        alive = [call for call in sessions if chunk < 3 or call.name != "big"]
        for call in alive:
            engine.submit(call.name, call.next())
        outcomes: list[Drawn | Ended] = []
        while sum(one.session != "big" for one in outcomes) < 2:
            outcomes += engine.step()
        for call in alive:
            if call.name != "big" or not (chunk == 2 and queues):
                call.take(outcomes)
        ended += [one for one in [*outcomes, *engine.settle()] if isinstance(one, Ended)]
    assert [(one.session, type(one.error)) for one in ended] == [("big", EngineFailure)]
    for call in (sessions[0], sessions[2]):
        own, lonely = Call(config, call.name, seed=call.seed), calls.engine(config)
        own.open(lonely)
        same(latents_of(call), own.draw(lonely, 5))


def test_a_session_may_leave_between_step_and_settle() -> None:
    config = small.config()
    engine = calls.engine(config)
    call = Call(config)
    call.open(engine)
    engine.submit(call.name, call.next())
    call.take(engine.step())
    engine.close(call.name)
    assert engine.settle() == []
    engine.close(call.name)
    assert engine.stats().sessions == 0
    call.open(engine)
    call.draw(engine)


def test_a_context_pass_that_fails_does_not_ask_for_sessions_that_left() -> None:
    config = small.config()

    class Short(Solo):
        """No memory for a context pass."""

        def perform(self, command: Command[R]) -> R:
            if isinstance(command, Remember):
                raise torch.OutOfMemoryError("as a device would say")
            return super().perform(command)

    engine = calls.engine(config, hands=Short(calls.worker(config)))
    call = Call(config)
    call.open(engine)
    engine.submit(call.name, call.next())
    call.take(engine.step())
    engine.close(call.name)
    assert engine.settle() == []
    assert engine.stats().sessions == 0


Log = tuple[PastChunk, ...]
BROKEN_TAILS: dict[str, Callable[[Log], Log]] = {
    "gap": lambda log: (log[0], log[2]),
    "too short": lambda log: log[2:],
    "no latents": lambda log: (*log[:2], replace(log[2], latents=None)),
    "wrong shape": lambda log: (*log[:2], replace(log[2], latents=torch.zeros(4, 3, 8, 5))),
    "not a number": lambda log: (
        *log[:2],
        replace(log[2], latents=torch.full((4, 3, 8, 4), torch.nan)),
    ),
    "no speech": lambda log: (*log[:2], replace(log[2], speech=())),
}


@pytest.mark.parametrize("broken", BROKEN_TAILS)
def test_tails_that_do_not_fit_are_refused(broken: str) -> None:
    config = small.config()
    engine = calls.engine(config)
    call = Call(config)
    call.open(engine)
    call.draw(engine, 3)
    tail = LogTail(BROKEN_TAILS[broken](tuple(call.log)))
    with pytest.raises(BadInput, match=r"tail\.chunks"):
        engine.open("other", calls.avatar(config), seed=1, tail=tail)
    with pytest.raises(BadInput, match=r"tail\.chunks"):
        engine.rewind(call.name, turn=1, tail=tail)
    call.draw(engine)  # refused before it cost anything


def test_chunks_that_do_not_fit_are_refused() -> None:
    config = small.config()
    engine = calls.engine(config)
    call = Call(config)
    call.open(engine)
    good = call.next()
    one = good.speech[0]
    wrong = {
        r"chunk\.chunk": replace(good, chunk=1),
        r"chunk\.speech: .*0 speakers": replace(good, speech=()),
        r"speech\[0\]\.pcm: .*samples": replace(good, speech=(replace(one, pcm=one.pcm[:-1]),)),
        r"speech\[0\]\.pcm: .*int16": replace(
            good,
            speech=(replace(one, pcm=one.pcm.astype("float32")),),
        ),
    }
    for message, chunk in wrong.items():
        with pytest.raises(BadInput, match=message):
            engine.submit(call.name, chunk)
    engine.submit(call.name, good)
    engine.submit(call.name, replace(good, chunk=1))
    with pytest.raises(BadInput, match="at most 2"):
        engine.submit(call.name, replace(good, chunk=2))


def test_more_faces_than_steps_are_prepared_for_are_refused() -> None:
    config = small.config()
    engine = calls.engine(config, limits=Limits(faces=1))
    with pytest.raises(BadInput, match=r"avatar\.faces: expected at most 1"):
        Call(config, faces=2).open(engine)


def test_a_second_session_of_a_name_and_a_bad_seed_are_refused() -> None:
    config = small.config()
    engine = calls.engine(config)
    Call(config).open(engine)
    with pytest.raises(BadInput, match=r"attach\.session"):
        Call(config).open(engine)
    for seed in (-1, 2**64, 10**5000, 1.5, True, "7", None):
        with pytest.raises(BadInput, match=r"attach\.seed"):
            Call(config, "other", seed=seed).open(engine)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"attach\.turn"):
        Call(config, "other", turn=-1).open(engine)
    assert engine.stats().sessions == 1


@pytest.mark.parametrize(
    "number",
    [-1, 1.5, 2**48, 2**56, 2**64, 10**5000, True],
    ids=["negative", "part", "48", "56", "64", "huge", "truth"],
)
def test_chunk_numbers_that_no_stream_has_are_refused(number: object) -> None:
    config = small.config()
    engine = calls.engine(config)
    call = Call(config)
    call.open(engine)
    call.draw(engine)
    tail = LogTail((replace(call.log[0], chunk=number),))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"tail\.chunks"):
        engine.open("other", calls.avatar(config), seed=1, tail=tail)
    with pytest.raises(BadInput, match=r"tail\.chunks"):
        engine.rewind(call.name, turn=1, tail=tail)
    with pytest.raises(BadInput, match=r"chunk\.chunk"):
        engine.submit(call.name, replace(call.next(), chunk=number))  # type: ignore[arg-type]
    call.draw(engine)


@pytest.mark.parametrize(
    "broken", [{"sessions": 0}, {"rows": 0}, {"faces": 0}, {"rows": 2.0}, {"headroom": -1}]
)
def test_limits_that_let_nobody_in_are_refused(broken: dict[str, int]) -> None:
    with pytest.raises(BadInput, match=rf"limits\.{next(iter(broken))}"):
        Limits(**broken)
    with pytest.raises(BadInput, match=r"limits\.rows: expected at most 1 sessions, got 2"):
        Limits(sessions=1, rows=2)
    with pytest.raises(BadInput, match=r"limits\.avatar_bytes"):
        Limits(avatar_bytes=-1)


@pytest.mark.parametrize("beyond", [400_000, 2**48 - 4])
def test_positions_never_run_out(beyond: int) -> None:
    """Public models end at latent 1,024; a far chunk here is chunk 3 with other noise."""
    config = small.config()
    first, second = calls.engine(config), calls.engine(config)
    call = Call(config)
    call.open(first)
    call.draw(first, 3)
    far = [replace(past, chunk=past.chunk + beyond) for past in call.log]
    second.open("far", calls.avatar(config), seed=calls.SEED, tail=LogTail(tuple(far)))
    chunk = replace(call.next(), chunk=beyond + 3)
    second.submit("far", chunk)
    (drawn,) = second.step()
    assert isinstance(drawn, Drawn)
    assert bool(drawn.latents.isfinite().all())
    assert (drawn.latents - call.draw(first)[0]).abs().max() > 1e-3, "the noise is another"


def test_two_thousand_chunks_in_flat_memory() -> None:
    config = small.config(adapter=small.ADAPTERS[1], text=None, clip=None, layers=1)
    engine = calls.engine(config)
    call = Call(config)
    call.open(engine)
    said = [call.speech(chunk) for chunk in range(8)]
    sizes = []
    for n in range(2000):
        engine.submit(call.name, Chunk(turn=0, chunk=n, speech=said[n % 8], slack=1.0))
        (drawn,) = engine.step()
        assert isinstance(drawn, Drawn)
        assert bool(drawn.latents.isfinite().all())
        engine.settle()
        if n % 400 == 399:
            gc.collect()
            tensors = sum(type(thing) is torch.Tensor for thing in gc.get_objects())
            sizes.append((tensors, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
    assert len({tensors for tensors, _ in sizes}) == 1, sizes
    assert sizes[-1][1] - sizes[0][1] < 16 * 1024, sizes


def moved_error(context: ContextConfig, *, layers: int) -> float:
    """Of the first chunk after a move, relative to its spread."""
    config = replace(small.config(context=context), layers=layers)
    first, second = calls.engine(config), calls.engine(config)
    stays = Call(config)
    stays.open(first)
    expected = stays.draw(first, 9)[8]
    moves = Call(config, log=stays.log[:8])
    moves.open(second)
    return float((moves.draw(second)[0] - expected).std() / expected.std())


def test_a_context_that_saw_earlier_chunks_is_rebuilt_by_as_many_chunks_as_layers() -> None:
    """Each layer carries history one chunk further, so replaying less leaves an error."""
    one, two, three = (
        moved_error(ContextConfig(policy="window", replay=replay), layers=3) for replay in (1, 2, 3)
    )
    assert one > 3 * two > 9e-6 > three


def test_several_finished_chunks_can_be_seen() -> None:
    context = ContextConfig(policy="window", chunks=2, replay=6)
    positions = PositionsConfig(own=7)
    config = small.config(context=context, positions=positions)
    first, second = calls.engine(config), calls.engine(config)
    stays = Call(config)
    stays.open(first)
    expected = stays.draw(first, 8)
    moves = Call(config, log=stays.log[:6])
    moves.open(second)
    same(moves.draw(second, 2), expected[6:])


def test_keys_kept_from_the_last_step_are_rebuilt_by_drawing_again() -> None:
    one, two, four = (
        moved_error(ContextConfig(policy="kept", replay=replay), layers=2) for replay in (1, 2, 4)
    )
    assert one > 3 * two
    assert four < 1e-5


def test_capacity_is_refused_before_running_sessions_pay() -> None:
    config, clock = small.config(), calls.Clock()
    engine = calls.engine(config, limits=Limits(sessions=9), clock=clock)
    period = config.spec.chunk_seconds
    engine.expect({1: 0.4 * period})
    Call(config, "one").open(engine)
    Call(config, "two").open(engine)
    with pytest.raises(NoCapacity) as refused:
        Call(config, "three").open(engine)
    assert refused.value.retry_after > 0
    assert engine.stats().load == pytest.approx(0.8)
    engine.close("one")
    Call(config, "three").open(engine)


def test_one_stall_does_not_lock_an_empty_engine() -> None:
    config = small.config()
    engine = calls.engine(config)
    engine.expect({1: 5 * config.spec.chunk_seconds})
    Call(config, "one").open(engine)
    with pytest.raises(NoCapacity):
        Call(config, "two").open(engine)


def test_another_avatar_under_a_kept_digest_is_refused() -> None:
    config = small.config()
    engine = calls.engine(config)
    engine.open("one", calls.avatar(config), seed=1, tail=LogTail())
    kept = calls.avatar(config)
    same_numbers = replace(kept, anchor=kept.anchor.double())
    engine.open("same", same_numbers, seed=1, tail=LogTail())
    others = (
        calls.avatar(config, faces=2),
        replace(kept, anchor=kept.anchor + 1e-3),
        replace(kept, clip=kept.clip.flip(0) if kept.clip is not None else None),
        replace(kept, listening_text=None),
        replace(kept, faces=(Rectangle(0, 0, 1, 1),)),
        replace(kept, faces=(torch.ones(config.grid),)),
    )
    for other in others:
        with pytest.raises(BadInput) as caught:
            engine.open("two", other, seed=1, tail=LogTail())
        assert caught.value.field == "avatar.digest"
    assert engine.stats().sessions == 2
    assert engine.stats().avatars.hits == 1


def test_a_deadline_that_is_not_a_number_is_refused() -> None:
    config = small.config()
    engine = calls.engine(config)
    call = Call(config)
    call.open(engine)
    with pytest.raises(BadInput) as caught:
        engine.submit(call.name, replace(call.next(), slack=float("nan")))
    assert caught.value.field == "chunk.slack"


def test_slots_are_limited() -> None:
    config = small.config()
    engine = calls.engine(config, limits=Limits(sessions=1))
    Call(config, "one").open(engine)
    with pytest.raises(NoCapacity):
        Call(config, "two").open(engine)


def test_memory_for_a_session_that_is_not_there_is_no_capacity() -> None:
    config = small.config()

    class Full(Solo):
        def perform(self, command: Command[R]) -> R:
            told: object = command
            if isinstance(told, Open) and told.session == "two":
                raise torch.OutOfMemoryError("as a device would say")
            return super().perform(command)

    engine = calls.engine(config, hands=Full(calls.worker(config)))
    one = Call(config, "one")
    one.open(engine)
    with pytest.raises(NoCapacity, match="memory"):
        Call(config, "two").open(engine)
    assert engine.stats().sessions == 1
    one.draw(engine)


@pytest.mark.parametrize("error", [RuntimeError("alloc"), torch.OutOfMemoryError("device")])
@pytest.mark.parametrize("kind", [AddAvatar, Replay])
def test_memory_that_is_short_is_told_by_a_typed_error_to_one_alone(
    kind: type, error: Exception
) -> None:
    config = small.config()

    class Short(Solo):
        full = False

        def perform(self, command: Command[R]) -> R:
            if self.full and isinstance(command, kind):
                raise error
            return super().perform(command)

    hands = Short(calls.worker(config))
    engine = calls.engine(config, hands=hands)
    one, two = Call(config, "one"), Call(config, "two")
    one.open(engine)
    one.draw(engine)
    two.open(engine)
    two.draw(engine)
    hands.full = True
    typed = NoCapacity if isinstance(error, torch.OutOfMemoryError) else EngineFailure
    for _ in range(2):
        with pytest.raises(typed):
            engine.open("new", calls.avatar(config, "new"), seed=1, tail=two.tail(engine))
    left = 2
    if kind is Replay:
        with pytest.raises(EngineFailure):
            engine.rewind("two", turn=1, tail=two.tail(engine))
        with pytest.raises(NotFound):
            engine.submit("two", two.next())
        left = 1
    hands.full = False
    assert engine.stats().sessions == left
    one.draw(engine)
    engine.open("new", calls.avatar(config, "new"), seed=1, tail=two.tail(engine))


def test_the_most_urgent_chunk_goes_first() -> None:
    config = small.config()
    engine = calls.engine(config)
    order = []
    for name, slack in (("slow", 3.0), ("soon", 1.0), ("next", 2.0)):
        call = Call(config, name)
        call.open(engine)
        engine.submit(name, call.next(slack))
    for _ in range(3):
        order += [one.session for one in engine.step()]
    assert order == ["soon", "next", "slow"]


def test_lateness_is_told_and_counted() -> None:
    config, clock = small.config(), calls.Clock()
    engine = calls.engine(config, clock=clock)
    call = Call(config)
    call.open(engine)
    engine.submit(call.name, call.next(slack=1.0))
    clock.now += 1.5
    (drawn,) = engine.step()
    assert isinstance(drawn, Drawn)
    assert drawn.late == pytest.approx(0.5)
    assert engine.stats().late == 1


def test_health_sees_work_that_does_not_end() -> None:
    config, clock = small.config(), calls.Clock()
    seen: list[str | None] = []

    class Slow(Solo):
        def perform(self, command: Command[R]) -> R:
            clock.now += 6
            seen.append(engine.health(limit=5))
            return super().perform(command)

    engine = calls.engine(config, hands=Slow(calls.worker(config)), clock=clock)
    engine.probe()
    assert seen[0] is not None
    assert "busy" in seen[0]
    assert engine.health(limit=5) is None


class Losing(Solo):
    """Loses a rank at the first command of one kind."""

    def __init__(self, worker: Worker, kind: type) -> None:
        super().__init__(worker)
        self._kind = kind
        self.lost = False

    def perform(self, command: Command[R]) -> R:
        assert not self.lost, "nothing may be asked of a team that lost a rank"
        if isinstance(command, self._kind):
            self.lost = True
            raise RankLost("a rank does not answer")
        return super().perform(command)


@pytest.mark.parametrize("kind", [Denoise, Remember, Close, AddAvatar, Replay, Finish])
def test_a_lost_rank_ends_every_session_and_each_is_told_once(kind: type) -> None:
    config = small.config()
    other = calls.engine(config)
    moved = Call(config, "moved")
    moved.open(other)
    moved.draw(other)
    hands = Losing(calls.worker(config), kind)
    engine = calls.engine(config, hands=hands)
    one, two = Call(config, "one"), Call(config, "two")
    told: list[Drawn | Ended] = []

    def live() -> None:
        one.open(engine)
        two.open(engine)
        engine.submit("one", one.next())
        told.extend([*engine.step(), *engine.settle(), *engine.probe()])
        if kind is Replay:
            moved.open(engine)
        if kind is Close:
            engine.close("one")
        engine.rewind("two", turn=0, tail=LogTail())

    with pytest.raises(RankLost):
        live()
    caught = []
    for _ in range(2):
        with pytest.raises(RankLost) as again:
            engine.open("late", calls.avatar(config), seed=1, tail=LogTail())
        caught.append(again.value)
    assert caught[0] is not caught[1], "raised twice, one error would carry both tracebacks"
    told += engine.step()
    ended = [item for item in told if isinstance(item, Ended)]
    expected = {AddAvatar: [], Close: ["two"]}.get(kind, ["one", "two"])
    assert sorted(item.session for item in ended) == expected
    assert all(isinstance(item.error, RankLost) for item in ended)
    assert len({id(item.error) for item in ended}) == len(ended)
    assert engine.stats().sessions == 0
    assert engine.health(limit=60) == "a rank does not answer"


def test_the_callers_time_between_step_and_settle_is_not_the_devices() -> None:
    config, clock = small.config(), calls.Clock()

    class Steady(Solo):
        def perform(self, command: Command[R]) -> R:
            clock.now += 0.01
            return super().perform(command)

    engine = calls.engine(config, hands=Steady(calls.worker(config)), clock=clock)
    call = Call(config)
    call.open(engine)
    engine.submit(call.name, call.next())
    call.take(engine.step())
    clock.now += 5
    engine.settle()
    assert engine.stats().chunk_seconds == {1: pytest.approx(0.03)}
