"""Every front end: streamed equals whole, entered equals continued, and reaches as far as it says.

Tolerance: float32 rounding, 2e-5 of features whose size is about 1.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.runtime.strict_json import Misfit
from services.score.frontend.config import MelConfig, MelFrontEnd, Wav2Vec2FrontEnd
from services.score.frontend.features import AudioState, FrontEnd, begin, whole_clip
from talkingmachines.errors import BadInput
from tests.score.frontends import SMALL, WINDOWED, front_end, pieces, speech

CONFIGS: list[MelFrontEnd | Wav2Vec2FrontEnd] = [
    SMALL,
    MelFrontEnd(width=8, kernel=3, dilations=(1, 3), stride=1, lookahead=0, controls=("open",)),
    MelFrontEnd(width=8, mel=MelConfig(bands=20, window=512, hop=200), stride=3, lookahead=7),
    WINDOWED,
    Wav2Vec2FrontEnd(states="all", every=2, left=4, right=0, block=1),
]
FRONT_ENDS = [front_end(config) for config in CONFIGS]
NAMES = ["mel", "mel, no look-ahead", "mel, odd sizes", "wav2vec2", "wav2vec2, thinned"]
each = pytest.mark.parametrize("front", FRONT_ENDS, ids=NAMES)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)


def streamed(front: FrontEnd, parts: list[Tensor], state: AudioState) -> Tensor:
    """Features of the pieces joined; checks the count that the state keeps."""
    out = []
    for piece in parts:
        before = state
        features, state = front.push(piece, state)
        assert state.feature == before.feature + features.shape[1]
        assert state.sample == before.sample + piece.shape[1]
        out.append(features)
    return torch.cat(out, dim=1)


@each
@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 12_000), max_size=8))
def test_pieces_of_any_size_give_what_the_whole_gives(front: FrontEnd, cuts: list[int]) -> None:
    clip = speech(12_000, streams=2)
    parts = list(torch.tensor_split(clip, sorted(cuts), dim=1))
    whole, _ = front.push(clip, begin(front, streams=2))
    close(streamed(front, parts, begin(front, streams=2)), whole)


@each
def test_twenty_millisecond_pieces_give_the_features_of_the_clip(front: FrontEnd) -> None:
    clip = speech(16_000)
    padded = torch.nn.functional.pad(clip, (0, front.config.lookahead_samples))
    got = streamed(front, pieces(padded, 320), begin(front))
    whole = whole_clip(front, clip)
    assert whole.shape == (1, 16_000 // front.config.hop, *front.feature_shape)
    close(got[:, : whole.shape[1]], whole)


@each
@settings(max_examples=15, deadline=None)
@given(at=st.integers(0, 9_000))
def test_entered_anywhere_equals_continued(front: FrontEnd, at: int) -> None:
    clip = speech(24_000)
    whole, _ = front.push(clip, begin(front))
    state = front.start(at)
    first = state.feature
    entered, _ = front.push(clip[:, at:], state)
    assert first <= -(-(at + front.config.history_samples) // front.config.hop)
    close(entered, whole[:, first:])
    assert entered.shape[1] > 0


@each
def test_a_feature_comes_out_when_its_lookahead_has_come(front: FrontEnd) -> None:
    hop, state = front.config.hop, begin(front)
    for piece in pieces(speech(8_000), 80):
        _, state = front.push(piece, state)
        known = (state.sample - front.config.lookahead_samples) // hop
        assert state.feature >= known


@each
def test_features_depend_on_what_the_config_says_and_no_more(front: FrontEnd) -> None:
    clip = speech(24_000)
    plain = whole_clip(front, clip)
    hop, feature = front.config.hop, 12_000 // front.config.hop
    last = (feature + 1) * hop + front.config.lookahead_samples
    first = feature * hop - front.config.history_samples
    later, earlier = clip.clone(), clip.clone()
    later[:, last:] = speech(24_000, seed=1)[:, last:]
    earlier[:, : max(0, first)] = 0
    close(whole_clip(front, later)[:, : feature + 1], plain[:, : feature + 1])
    close(whole_clip(front, earlier)[:, feature:], plain[:, feature:])


def test_the_stated_reach_of_the_mel_front_end_is_its_true_reach() -> None:
    front = front_end(SMALL)
    clip = torch.randn(1, 16_000, requires_grad=True)
    feature = 14
    total = whole_clip(front, clip)[0, feature].sum()
    touched = torch.autograd.grad(total, clip)[0][0].nonzero()
    start = feature * SMALL.hop
    # A Hann window is zero at its first sample.
    assert int(touched[0]) == start - SMALL.history_samples + 1
    assert int(touched[-1]) == start + SMALL.hop + SMALL.lookahead_samples - 1


@each
def test_a_state_is_never_changed(front: FrontEnd) -> None:
    clip = speech(4_000)
    _, state = front.push(clip[:, :1_700], begin(front))
    once, _ = front.push(clip[:, 1_700:], state)
    again, _ = front.push(clip[:, 1_700:], state)
    assert torch.equal(once, again)


@each
def test_memory_does_not_grow(front: FrontEnd) -> None:
    state, sizes = begin(front), set()
    for piece in pieces(speech(32_000), 640):
        _, state = front.push(piece, state)
        sizes.add(sum(tensor.untyped_storage().nbytes() for tensor in state.carry))
    reach = front.config.history_samples + front.config.lookahead_samples + 2 * front.config.hop
    inside = sum(t.numel() for t in state.carry[1:])
    assert max(sizes) <= 4 * (reach + 640 + inside)


@each
def test_what_is_not_finite_is_refused(front: FrontEnd) -> None:
    with pytest.raises(BadInput, match="samples: expected finite samples"):
        front.push(torch.full((1, 320), float("nan")), begin(front))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MelConfig(hop=500), "hop 500, window 400"),
        (lambda: MelConfig(high=9_000.0), "half the sample rate"),
        (lambda: MelFrontEnd(dilations=()), "front_end.dilations"),
        (lambda: MelFrontEnd(stride=0), "front_end.stride: expected a number from 1 to 64, got 0"),
        (lambda: Wav2Vec2FrontEnd(left=5, every=2), "a multiple of every"),
        (lambda: Wav2Vec2FrontEnd(block=0), "front_end.block"),
    ],
)
def test_impossible_configs_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(Misfit, match=message):
        make()
