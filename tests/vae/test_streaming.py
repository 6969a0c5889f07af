"""However a stream is cut, it is the same stream; its memory is stated, exact and rebuildable."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from services.vae.config import VaeConfig, tiny, wan21
from services.vae.model import Vae
from services.vae.runner import Runner
from services.vae.state import State, join, part
from tests.vae.conftest import CONFIGS, random_vae

LATENTS = 6
SIZE = (4, 4)


def latents(count: int, seed: int = 0, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, count, *SIZE, generator=generator)


@st.composite
def splits(draw: st.DrawFn, total: int) -> list[int]:
    sizes: list[int] = []
    while (left := total - sum(sizes)) > 0:
        sizes.append(draw(st.integers(1, left)))
    return sizes


@pytest.mark.parametrize("name", sorted(CONFIGS))
@settings(deadline=None, max_examples=12)  # of 32 ways to cut 6
@given(sizes=splits(LATENTS))
def test_any_split_decodes_to_the_same_frames(name: str, sizes: list[int]) -> None:
    vae = random_vae(CONFIGS[name]())
    z = latents(LATENTS)
    whole, last = vae.decode(z, State())
    state, frames = State(), []
    for piece in torch.split(z, sizes, dim=2):
        out, state = vae.decode(piece, state)
        frames.append(out)
    torch.testing.assert_close(torch.cat(frames, 2), whole, atol=1e-5, rtol=0)
    for got, expected in zip(state.slots, last.slots, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(CONFIGS))
@settings(deadline=None, max_examples=8)
@given(sizes=splits(4))
def test_any_split_encodes_to_the_same_latents(name: str, sizes: list[int]) -> None:
    vae = random_vae(CONFIGS[name]())
    per_latent = vae.config.frames_per_latent
    pixels = [side * vae.config.spatial_stride for side in SIZE]
    video = torch.rand(1, 3, 1 + 3 * per_latent, *pixels) * 2 - 1
    whole, _ = vae.encode(video, State())
    frames = [size * per_latent for size in sizes]
    frames[0] -= per_latent - 1  # the first latent is one frame
    state, parts = State(), []
    for piece in torch.split(video, frames, dim=2):
        out, state = vae.encode(piece, state)
        parts.append(out)
    assert whole.shape == (1, 4, 4, *SIZE)
    torch.testing.assert_close(torch.cat(parts, 2), whole, atol=1e-5, rtol=0)


def test_after_the_anchor_every_chunk_has_the_same_number_of_frames(vae: Vae) -> None:
    frames, state = vae.decode(latents(1), State())
    assert frames.shape[2] == 1
    for chunk in range(3):
        frames, state = vae.decode(latents(3, chunk), state)
        assert frames.shape[2] == 3 * vae.config.frames_per_latent


def test_a_pass_leaves_the_state_it_was_given(vae: Vae) -> None:
    _, state = vae.decode(latents(1), State())
    before = state.clone()
    first, _ = vae.decode(latents(2), state)
    again, _ = vae.decode(latents(2), state)
    assert all(a.equal(b) for a, b in zip(before.slots, state.slots, strict=True))
    assert first.equal(again)


def test_streams_side_by_side_do_not_touch(vae: Vae) -> None:
    states = [vae.decode(latents(1, seed), State())[1] for seed in range(3)]
    z = latents(2, seed=9, batch=3)
    together, after = vae.decode(z, join(states))
    for row, (state, mine) in enumerate(zip(states, part(after), strict=True)):
        alone, expected = vae.decode(z[row : row + 1], state)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)
        for got, slot in zip(mine.slots, expected.slots, strict=True):
            torch.testing.assert_close(got, slot, atol=1e-4, rtol=1e-4)


def test_state_keeps_no_more_memory_than_it_says(vae: Vae) -> None:
    _, state = vae.decode(latents(4), State())
    assert sum(slot.untyped_storage().nbytes() for slot in state.slots) == state.bytes


def test_warming_gives_the_state_of_decoding(vae: Vae) -> None:
    anchor, tail = latents(1), latents(vae.reach + 3, seed=1)
    _, state = vae.decode(anchor, State())
    _, expected = vae.decode(tail, state)
    for got, slot in zip(vae.warm(tail, state).slots, expected.slots, strict=True):
        torch.testing.assert_close(got, slot, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(CONFIGS))
@settings(deadline=None, max_examples=6)
@given(data=st.data())
def test_warming_in_pieces_is_warming(name: str, data: st.DataObject) -> None:
    """However the past is cut, long pasts and short ones."""
    vae = random_vae(CONFIGS[name]())
    past = data.draw(st.integers(1, vae.reach + 2))
    sizes = data.draw(splits(past))
    anchor, tail = latents(1), latents(past, seed=1)
    state = begun = vae.warm(anchor, State())
    left = past
    for piece in torch.split(tail, sizes, dim=2):
        left -= piece.shape[2]
        state = vae.warm(piece, state, following=left)
    _, expected = vae.decode(tail, begun)
    for got, slot in zip(state.slots, expected.slots, strict=True):
        torch.testing.assert_close(got, slot, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "whole"), [(wan21(), 2.40), (tiny(), 1.43)], ids=["wan21", "tiny"]
)
def test_no_piece_of_a_rebuild_costs_more_than_a_latent(config: VaeConfig, whole: float) -> None:
    """And all of them as much as the documentation says, in chunks' worth of arithmetic."""
    with torch.device("meta"):
        runner = Runner(Vae(config), torch.device("meta"), capture=None, compiled=False)
        z = torch.empty(1, config.latent_channels, runner.vae.reach, 64, 64)
        state = runner.begin(z[:, :, :1], z[:, :, :3])
        chunk = operations(lambda: runner.decode(z[:, :, :3], [state]))
        pieces = runner.rebuild(z[:, :, :1], z, latents=1)
        count = 1 + runner.vae.reach  # the anchor's, and one per latent
        costs = [operations(lambda: next(pieces)) / chunk for _ in range(count)]
    assert max(costs) < 1 / 3
    assert sum(costs) == pytest.approx(whole, abs=0.02)


def operations(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    total: int = counter.get_total_flops()
    return total


def test_reach_is_exact(vae: Vae) -> None:
    """The oldest latent within reach changes the next frame, the one before it nothing."""
    past = latents(vae.reach + 1)
    baseline, _ = vae.decode(latents(1, 5), vae.decode(past, State())[1])
    for age, matters in ((vae.reach, True), (vae.reach + 1, False)):
        other = past.clone()
        other[:, :, -age] += 100.0
        frames, _ = vae.decode(latents(1, 5), vae.decode(other, State())[1])
        assert (not frames.equal(baseline)) == matters


def test_reaches_that_the_documentation_states() -> None:
    for config, reach in ((wan21(), 38), (tiny(), 19)):
        with torch.device("meta"):
            assert Vae(config).reach == reach
