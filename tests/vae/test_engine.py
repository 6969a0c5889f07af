"""Sessions share a device without seeing each other, and live exactly as long as they should."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from services.accelerator.replay import Rerun
from services.vae.admission import Limits
from services.vae.engine import Engine
from services.vae.pixels import Pixels
from services.vae.runner import Runner, place
from services.vae.session import Chunk, Decoded, Event, Failed, Opening, Ready
from services.vae.state import State
from talkingmachines.errors import BadInput, NoCapacity, NotFound
from talkingmachines.spec import StreamSpec
from tests.vae.conftest import CONFIGS, folded, random_vae

CPU = torch.device("cpu")
SPEC = StreamSpec(
    sample_rate=16000, fps=25, latents_per_chunk=3, frames_per_latent=4, width=32, height=32
)
PLENTY = Limits(memory_bytes=2**30, load=1e9)


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def engine(limits: Limits = PLENTY, name: str = "folded", *, clock: Clock | None = None) -> Engine:
    runner = place(random_vae(CONFIGS[name]()), CPU, dtype=torch.float32)
    return Engine(runner, limits, clock=clock or Clock())


def latents(count: int, seed: int) -> Tensor:
    return torch.randn(4, count, 4, 4, generator=torch.Generator().manual_seed(seed))


def stream(count: int, seed: int = 0) -> list[Tensor]:
    """The anchor and the chunks of a stream."""
    return [latents(1, 1000 * seed), *(latents(3, 1000 * seed + 1 + k) for k in range(count))]


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def opening(
    anchor: Tensor, *, tail: Tensor | None = None, next_chunk: int = 0, deadline: float = 0.0
) -> Opening:
    tail = anchor[:, :0] if tail is None else tail
    return Opening(SPEC, Pixels.RGB24, anchor, tail, next_chunk, deadline)


def drain(vae: Engine) -> list[Event]:
    events: list[Event] = []
    while vae.busy:
        events += vae.step()
    return events


def frames(events: list[Event], session: str) -> dict[int, Tensor]:
    """A session's frames by chunk, put together from those of its latents."""
    came: dict[int, list[Decoded]] = {}
    for event in events:
        if isinstance(event, Decoded) and event.session == session:
            came.setdefault(event.chunk, []).append(event)
    for number, parts in came.items():
        numbers = [SPEC.first_frame(number) + 4 * at for at in range(len(parts))]
        assert [part.first_frame for part in parts] == numbers
        assert [part.last for part in parts] == [at == 2 for at in range(len(parts))]
    return {number: torch.cat([part.frames for part in parts]) for number, parts in came.items()}


def finished(events: list[Event]) -> list[str]:
    """Sessions in the order in which their chunks were done."""
    return [event.session for event in events if isinstance(event, Decoded) and event.last]


def play(vae: Engine, session: str, chunks: list[Tensor], first: int = 0) -> dict[int, Tensor]:
    for number, chunk in enumerate(chunks, first):
        vae.submit(session, Chunk(number, chunk, deadline=float(number)))
    return frames(drain(vae), session)


def close_to(got: dict[int, Tensor], expected: dict[int, Tensor]) -> None:
    """Equal up to a rounding step of 8-bit colour."""
    assert got.keys() == expected.keys()
    for number, picture in got.items():
        difference = (picture.int() - expected[number].int()).abs().max()
        assert difference <= 1, f"chunk {number} differs by {difference}"


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_session_is_the_stream_of_the_model(name: str) -> None:
    vae = random_vae(CONFIGS[name]())
    spec = StreamSpec(16000, 25, 3, 4, 4 * vae.config.spatial_stride, 4 * vae.config.spatial_stride)
    anchor, *chunks = stream(3)
    session = engine(name=name)
    session.open("a", Opening(spec, Pixels.RGB24, anchor, anchor[:, :0], 0, 0.0))
    got = play(session, "a", chunks)
    whole, _ = vae.decode(torch.cat([anchor, *chunks], 1)[None], State())
    expected = ((whole[0, :, 1:].clamp(-1, 1) + 1) * 127.5).round()
    assert list(got) == [0, 1, 2]
    for number, picture in got.items():
        assert picture.shape == (12, spec.height, spec.width, 3)
        reference = expected[:, 12 * number : 12 * number + 12].permute(1, 2, 3, 0)
        assert (picture.float() - reference).abs().max() <= 1


def test_batched_sessions_equal_single_ones() -> None:
    streams = {name: stream(3, seed) for seed, name in enumerate("abc")}
    together = engine(Limits(memory_bytes=2**30, batch=3, load=1e9))
    for name, (anchor, *chunks) in streams.items():
        together.open(name, opening(anchor))
        for number, chunk in enumerate(chunks):
            together.submit(name, Chunk(number, chunk, deadline=1.0 + number))
    events = drain(together)
    for name, (anchor, *chunks) in streams.items():
        alone = engine()
        alone.open("x", opening(anchor))
        close_to(frames(events, name), play(alone, "x", chunks))


def test_static_buffers_change_nothing() -> None:
    """Recorded steps overwrite their results; sessions in turn must not notice."""
    streams = {name: stream(3, seed) for seed, name in enumerate("ab")}
    placed = place(random_vae(folded()), CPU, dtype=torch.float32)
    recorded = Engine(Runner(placed.vae, CPU, capture=Rerun(), compiled=False), PLENTY)
    plain = engine()
    for name, (anchor, *_) in streams.items():
        recorded.open(name, opening(anchor))
        plain.open(name, opening(anchor))
    for number in range(3):
        for name, (_, *chunks) in streams.items():
            close_to(
                play(recorded, name, [chunks[number]], number),
                play(plain, name, [chunks[number]], number),
            )


def test_a_session_goes_on_anywhere_from_the_tail_of_its_log() -> None:
    anchor, *chunks = stream(12)
    first = engine()
    first.open("a", opening(anchor))
    expected = play(first, "a", chunks)
    other = engine()
    tail = torch.cat(chunks[:10], 1)[:, -other.reach :]
    other.open("b", opening(anchor, tail=tail, next_chunk=10))
    continued = play(other, "b", chunks[10:], 10)
    close_to(continued, {number: expected[number] for number in (10, 11)})


def test_rewind_goes_on_from_an_earlier_chunk() -> None:
    anchor, *chunks = stream(6)
    vae = engine()
    vae.open("a", opening(anchor))
    expected = play(vae, "a", chunks)
    vae.submit("a", Chunk(6, latents(3, 77), deadline=0.0))  # dropped by the rewind
    vae.rewind("a", torch.cat(chunks[:4], 1), next_chunk=4, deadline=0.0)
    again = play(vae, "a", chunks[4:], 4)
    close_to(again, {number: expected[number] for number in (4, 5)})


def test_what_waits_is_bounded_and_due_at_a_time() -> None:
    vae, anchor = engine(), stream(0)[0]
    with pytest.raises(BadInput, match=r"attach\.deadline"):
        vae.open("a", opening(anchor, deadline=math.nan))
    with pytest.raises(BadInput, match=r"attach\.tail\.next_chunk"):
        vae.open("a", opening(anchor, next_chunk=-1))
    vae.open("a", opening(anchor))
    with pytest.raises(BadInput, match=r"chunk\.deadline"):
        vae.submit("a", Chunk(0, latents(3, 0), deadline=math.inf))
    room = 31  # and the rebuild
    for number in range(room):
        vae.submit("a", Chunk(number, latents(3, 0), deadline=0.0))
    with pytest.raises(BadInput, match="waiting"):
        vae.submit("a", Chunk(room, latents(3, 0), deadline=0.0))


def test_the_most_urgent_chunk_goes_first() -> None:
    vae = engine()
    due = {"a": 5.0, "b": 1.0, "c": 3.0}
    for name, deadline in due.items():
        anchor, chunk = stream(1)
        vae.open(name, opening(anchor, deadline=deadline))
        vae.submit(name, Chunk(0, chunk, deadline))
    assert finished(drain(vae)) == ["b", "c", "a"]


def test_a_chunk_that_begins_later_goes_between_the_latents_of_another() -> None:
    """Frames are due one after the other: the first of one chunk before the last of another."""
    vae = engine()
    for name, deadline in {"a": 1.0, "b": 1.1}.items():
        anchor, chunk = stream(1)
        vae.open(name, opening(anchor))
        vae.submit(name, Chunk(0, chunk, deadline))
    events = drain(vae)
    order = [event.session for event in events if isinstance(event, Decoded)]
    assert order == ["a", "b"] * 3
    assert len(frames(events, "a")[0]) == len(frames(events, "b")[0]) == 12


def test_a_busy_session_does_not_starve_another() -> None:
    vae = engine()
    for name in "ab":
        vae.open(name, opening(stream(0)[0]))
    drain(vae)
    for number in range(8):
        vae.submit("a", Chunk(number, latents(3, number), deadline=number + 0.5))
    vae.submit("b", Chunk(0, latents(3, 9), deadline=1.0))
    assert finished(drain(vae)).index("b") == 1


def test_due_chunks_go_between_the_pieces_of_a_rebuild() -> None:
    vae = engine()
    anchor, *chunks = stream(8)
    vae.open("busy", opening(anchor))
    drain(vae)
    tail = torch.cat(chunks, 1)[:, -vae.reach :]
    vae.open("new", opening(anchor, tail=tail, next_chunk=8, deadline=1.0))
    told: list[Event] = []
    for number in range(vae.reach):  # a piece each, after the anchor's
        assert vae.step() == []  # one piece; the session is not there yet
        vae.submit("busy", Chunk(number, chunks[number % 8], deadline=0.5))
        told += [event for _ in range(3) for event in vae.step()]
    assert "new" not in {event.session for event in told}
    told += drain(vae)
    assert told[-1] == Ready("new", 0)
    assert len(frames(told, "busy")) == vae.reach


def test_a_rebuild_in_pieces_is_the_stream_to_the_bit() -> None:
    """What the pieces leave out is nowhere in the pictures, though others ran in between."""
    anchor, *chunks = stream(12)
    first = engine(name="folded")
    first.open("a", opening(anchor))
    expected = play(first, "a", chunks)
    first.open("b", opening(anchor, tail=torch.cat(chunks[:10], 1), next_chunk=10, deadline=50.0))
    for number in range(12, 16):
        first.submit("a", Chunk(number, chunks[0], deadline=float(number)))
        first.step()
    again = play(first, "b", chunks[10:], 10)
    assert all(again[number].equal(expected[number]) for number in (10, 11))


def test_lateness_is_told_and_counted() -> None:
    clock = Clock()
    vae = engine(clock=clock)
    anchor, *chunks = stream(2)
    vae.open("a", opening(anchor))
    drain(vae)
    clock.now = 5.0
    for number, deadline in enumerate((4.0, 6.0)):
        vae.submit("a", Chunk(number, chunks[number], deadline))
    told = [event for event in drain(vae) if isinstance(event, Decoded)]
    assert [event.chunk for event in told if event.late] == [0]
    assert all(event.last for event in told if event.late)
    assert vae.statistics().late_total == 1


class Fragile(Runner):
    """Fails, in the way it was told to, at latents that are all above 100."""

    how = "memory"

    def decode(self, latents: Tensor, states: Sequence[State]) -> tuple[Tensor, list[State]]:
        fatal = (latents > 100).flatten(1).all(dim=1)
        if self.how == "memory" and fatal.any():
            raise RuntimeError("out of memory")
        frames, fresh = super().decode(latents, states)
        frames[fatal] = math.nan
        return frames, fresh

    def rebuild(self, anchor: Tensor, tail: Tensor, *, latents: int) -> Iterator[State | None]:
        for state in super().rebuild(anchor, tail, latents=latents):
            if state is not None and (anchor > 100).all():
                state.slots[0].fill_(math.nan)
            yield state


def fragile(limits: Limits, how: str = "memory") -> Engine:
    vae = place(random_vae(folded()), CPU, dtype=torch.float32).vae
    runner = Fragile(vae, CPU, capture=None, compiled=False)
    runner.how = how
    return Engine(runner, limits, clock=Clock())


@pytest.mark.parametrize("how", ["memory", "nan"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_failing_session_ends_alone(batch: int, how: str) -> None:
    vae = fragile(Limits(memory_bytes=2**30, batch=batch, load=1e9), how)
    good, bad = stream(2), stream(2, seed=1)
    bad[1] = torch.full_like(bad[1], 101.0)
    for name, (anchor, *chunks) in {"good": good, "bad": bad}.items():
        vae.open(name, opening(anchor))
        for number, chunk in enumerate(chunks):
            vae.submit(name, Chunk(number, chunk, deadline=1.0 + number))
    events = drain(vae)
    failed = [event for event in events if isinstance(event, Failed)]
    assert [event.session for event in failed] == ["bad"]
    assert frames(events, "good").keys() == {0, 1}
    with pytest.raises(NotFound):
        vae.submit("bad", Chunk(2, bad[1], 0.0))
    statistics = vae.statistics()
    assert (statistics.sessions, statistics.failures_total) == (1, 1)


def test_a_rebuild_that_fails_ends_its_session_alone() -> None:
    vae = fragile(PLENTY)
    vae.open("good", opening(stream(0)[0]))
    vae.open("bad", opening(torch.full((4, 1, 4, 4), 101.0)))
    ready, failed = drain(vae)
    assert ready == Ready("good", 0)
    assert isinstance(failed, Failed)
    assert failed.session == "bad"
    assert vae.statistics().sessions == 1


def test_preparing_times_a_chunk_before_the_first_session() -> None:
    runner = place(random_vae(folded()), CPU, dtype=torch.float32)
    vae = Engine(runner, Limits(memory_bytes=2**30, load=1e9, batch=2))
    vae.prepare(SPEC)
    statistics = vae.statistics()
    assert 0 < statistics.chunk_seconds < 10
    assert statistics.load == 0
    vae.open("a", opening(stream(0)[0]))
    assert vae.statistics().load == statistics.chunk_seconds / SPEC.chunk_seconds


def test_memory_is_stated_before_it_is_taken_and_refused_when_it_is_not_there() -> None:
    size = engine().session_bytes(SPEC.height, SPEC.width)
    vae = engine(Limits(memory_bytes=2 * size, load=1e9))
    anchor = stream(0)[0]
    vae.open("a", opening(anchor))
    vae.open("b", opening(anchor))
    with pytest.raises(NoCapacity) as refused:
        vae.open("c", opening(anchor))
    assert refused.value.retry_after > 0
    drain(vae)
    held = [slot for session in vae._sessions.values() for slot in session.state.slots]
    assert sum(slot.untyped_storage().nbytes() for slot in held) == 2 * size
    vae.close("a")
    vae.open("c", opening(anchor))
    assert vae.statistics().refusals_total == 1


def test_for_how_many_there_is_time_and_memory() -> None:
    """By what chunks took and what states take; a device too slow for one still serves one."""
    size = engine().session_bytes(SPEC.height, SPEC.width)
    clock = Clock()
    vae = engine(Limits(memory_bytes=5 * size, load=0.9), clock=clock)
    assert vae.statistics().fitting > 5  # nothing is known yet
    anchor, chunk = stream(1)
    vae.open("a", opening(anchor))
    drain(vae)
    assert vae.statistics().fitting == 5
    for share, fitting in ((0.6, 1), (0.28, 3), (0.1, 5), (2.0, 1)):
        for _ in range(60):  # a running mean
            vae._admission.measured(SPEC, share * SPEC.chunk_seconds)
        statistics = vae.statistics()
        assert statistics.fitting == fitting
        assert math.isclose(statistics.load, share, rel_tol=1e-3)
    play(vae, "a", [chunk])
    assert math.isclose(vae.statistics().load, 2.0 * 0.8, rel_tol=1e-3)  # the chunk took no time


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (torch.zeros(4, 2, 4, 4), "chunk.latents.tensor"),
        (torch.zeros(5, 3, 4, 4), "chunk.latents.tensor"),
        (torch.zeros(4, 3, 4, 4, dtype=torch.int32), "chunk.latents.tensor"),
        (torch.full((4, 3, 4, 4), math.nan), "chunk.latents.tensor"),
        (torch.full((4, 3, 4, 4), 1e38), "chunk.latents.tensor"),
        (torch.full((4, 3, 4, 4), -2e4), "chunk.latents.tensor"),
    ],
    ids=["too-few", "channels", "integers", "nan", "overflowing", "huge"],
)
def test_latents_that_do_not_fit_are_refused(bad: Tensor, field: str) -> None:
    vae = engine()
    anchor, chunk = stream(1)
    vae.open("a", opening(anchor))
    with pytest.raises(BadInput) as caught:
        vae.submit("a", Chunk(0, bad, 0.0))
    assert caught.value.field == field
    assert play(vae, "a", [chunk]).keys() == {0}  # the session is none the worse


def test_the_largest_latents_that_are_taken_overflow_nowhere() -> None:
    for name in CONFIGS:
        for dtype in (torch.float32, torch.bfloat16):
            vae = random_vae(CONFIGS[name]())
            side = 4 * vae.config.spatial_stride
            there = Engine(place(vae, CPU, dtype=dtype), PLENTY, clock=Clock())
            anchor, chunk = (torch.full((4, count, 4, 4), 1e4) for count in (1, 3))
            spec = StreamSpec(16000, 25, 3, 4, side, side)
            there.open("a", Opening(spec, Pixels.RGB24, anchor, -anchor, 0, 0.0))
            assert play(there, "a", [chunk]).keys() == {0}


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("memory_bytes", 0), ("memory_bytes", -1), ("load", 0.0), ("load", math.nan),
        ("load", math.inf), ("batch", 0), ("batch", -1), ("batch", 2**63),
        ("retry_after", -1.0), ("retry_after", math.nan),
    ],
)  # fmt: skip
def test_limits_without_sense_are_refused(field: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: expected"):
        replace(PLENTY, **{field: wrong})


def test_chunks_out_of_order_are_refused() -> None:
    vae = engine()
    anchor, chunk = stream(1)
    vae.open("a", opening(anchor, next_chunk=7))
    with pytest.raises(BadInput, match=r"chunk\.latents\.chunk: expected 7, got 8"):
        vae.submit("a", Chunk(8, chunk, 0.0))


def test_a_picture_size_that_does_not_fit_is_refused() -> None:
    spec = StreamSpec(16000, 25, 3, 4, 36, 32)
    anchor = stream(0)[0]
    with pytest.raises(BadInput, match="36x32"):
        engine().open("a", Opening(spec, Pixels.RGB24, anchor, anchor[:, :0], 0, 0.0))


def test_closing_drops_what_waits() -> None:
    vae = engine()
    anchor, chunk = stream(1)
    vae.open("a", opening(anchor))
    vae.submit("a", Chunk(0, chunk, 0.0))
    vae.close("a")
    assert not vae.busy
    assert drain(vae) == []
    assert vae.statistics().session_bytes == 0


def test_pictures_and_clips_become_latents() -> None:
    vae = engine()
    clip = torch.randint(0, 256, (21, 32, 32, 3), dtype=torch.uint8)
    latent = vae.encode(clip)
    assert latent.shape == (4, 6, 4, 4)
    torch.testing.assert_close(vae.encode(clip[:1]), latent[:, :1], atol=1e-5, rtol=1e-5)
    for bad in (clip[:3], clip[:, :30], clip.float(), clip[..., :2]):
        with pytest.raises(BadInput):
            vae.encode(bad)


@pytest.mark.timeout(300)  # seconds when alone on the machine
def test_two_thousand_chunks_in_flat_memory() -> None:
    vae = engine()
    spec = StreamSpec(16000, 25, 3, 4, 16, 16)
    anchor, *chunks = (piece[..., :2, :2] for piece in stream(4))
    vae.open("a", Opening(spec, Pixels.RGB24, anchor, anchor[:, :0], 0, 0.0))

    def run(count: int, first: int) -> int:
        for number in range(first, first + count):
            vae.submit("a", Chunk(number, chunks[number % 4], float(number)))
            assert len(drain(vae)) == 3
        return resident_bytes()

    drain(vae)
    before = run(200, 0)
    assert run(1800, 200) - before < 4 * 2**20
    assert vae.statistics().frames_total == 24000
