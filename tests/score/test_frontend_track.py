"""A session's speech on the stream's grid: the same from a tail as when heard from the start."""

import numpy as np
import pytest
import torch

from services.score.frontend.config import MelFrontEnd, Wav2Vec2FrontEnd
from services.score.frontend.features import begin
from services.score.frontend.grid import EmbeddingGrid
from services.score.frontend.pcm import Pcm16, samples_of
from services.score.frontend.track import SpeechTrack
from services.score.presets import NAMES, preset
from tests.score.frontends import SMALL, WINDOWED, front_end, speech


def grid(
    front: MelFrontEnd | Wav2Vec2FrontEnd,
    *,
    rate: int = 16_000,
    step_ms: float = 40,
    before: int = 8,
    after: int = 4,
    via: int = 0,
) -> EmbeddingGrid:
    return EmbeddingGrid(rate, round(step_ms * rate / 1000), 12, before, after, front, via)


def pcm(samples: int) -> Pcm16:
    return (speech(samples)[0] * 32_767).clamp(-32_768, 32_767).numpy().astype(np.int16)


CASES = [
    pytest.param(grid(SMALL), id="same grids"),
    pytest.param(grid(SMALL, rate=24_000), id="24 kHz"),
    pytest.param(grid(SMALL, rate=44_100, step_ms=62.5), id="44.1 kHz, 16 fps"),
    pytest.param(grid(WINDOWED, step_ms=62.5), id="wav2vec2, 16 fps"),
    pytest.param(grid(WINDOWED, step_ms=62.5, before=5, after=0, via=30), id="via 30 a second"),
    pytest.param(grid(WINDOWED, rate=48_000, before=0, after=0), id="wav2vec2, 48 kHz"),
]


def samples_per_chunk(grid: EmbeddingGrid) -> int:
    return grid.step * grid.per_chunk


@pytest.mark.parametrize("grid", CASES)
def test_from_a_tail_equals_continued(grid: EmbeddingGrid) -> None:
    front, period = front_end(grid.front_end), samples_per_chunk(grid)
    speech_ = pcm(period * 8)
    continued = SpeechTrack(front, grid)
    continued.hear(speech_)
    for chunk in range(7):
        expected = continued.embeddings(chunk)
        assert expected.shape == (grid.before + 12 + grid.after, front.feature_shape[0])
        at = max(0, chunk * period - grid.history_samples - chunk)
        entered = SpeechTrack(front, grid, at=at)
        entered.hear(speech_[at : (chunk + 1) * period + grid.lookahead_samples])
        torch.testing.assert_close(entered.embeddings(chunk), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("grid", CASES)
def test_pieces_of_20_ms_give_what_the_whole_gives(grid: EmbeddingGrid) -> None:
    front, period = front_end(grid.front_end), samples_per_chunk(grid)
    speech_ = pcm(period * 3)
    whole, pieces = SpeechTrack(front, grid), SpeechTrack(front, grid)
    whole.hear(speech_)
    for piece in np.split(speech_, range(grid.sample_rate // 50, len(speech_), 320)):
        pieces.hear(piece)
    for chunk in range(2):
        torch.testing.assert_close(
            pieces.embeddings(chunk), whole.embeddings(chunk), atol=2e-5, rtol=0
        )


@pytest.mark.parametrize("grid", CASES)
def test_a_chunk_is_known_when_its_lookahead_has_come(grid: EmbeddingGrid) -> None:
    track, period = SpeechTrack(front_end(grid.front_end), grid), samples_per_chunk(grid)
    speech_ = pcm(period * 8)
    heard = 0
    for chunk in range(6):
        end = (chunk + 1) * period
        while heard < end + grid.lookahead_samples:
            piece = speech_[heard : min(heard + 500, end + grid.lookahead_samples)]
            track.hear(piece)
            heard += len(piece)
            assert heard > end - grid.step or not track.knows(chunk)
        assert track.knows(chunk)
        track.embeddings(chunk)


def test_where_grids_coincide_an_embedding_is_a_feature() -> None:
    shape = grid(SMALL, before=3, after=0)
    assert shape.coincides
    assert shape.lookahead_samples == SMALL.lookahead_samples
    assert shape.history_samples == 3 * 640 + SMALL.history_samples
    front, speech_ = front_end(SMALL), pcm(640 * 12 * 3)
    track = SpeechTrack(front, shape)
    track.hear(speech_)
    features, _ = front.push(samples_of(speech_), begin(front))
    torch.testing.assert_close(track.embeddings(1), features[0, 9:24], atol=2e-5, rtol=0)


def test_elsewhere_it_lies_between_two_features() -> None:
    shape = EmbeddingGrid(16_000, 1_000, 12, 0, 0, Wav2Vec2FrontEnd())
    # The middle of embedding 0 is sample 500; features of 320 have theirs at 160, 480, 800.
    assert shape.feature(0) == (1, 20 / 320)
    assert shape.feature(1) == (4, 60 / 320)
    assert shape.feature(-1) == (-3, 300 / 320)
    thinned = EmbeddingGrid(16_000, 640, 12, 0, 0, Wav2Vec2FrontEnd(every=2, left=10))
    assert [thinned.feature(e) for e in (-2, 0, 5)] == [(-2, 0.0), (0, 0.0), (5, 0.0)]


def test_layers_lie_side_by_side() -> None:
    config = Wav2Vec2FrontEnd(states="transformer", every=2, left=4, right=1)
    shape = EmbeddingGrid(16_000, 640, 4, 0, 0, config)
    front, speech_ = front_end(config), pcm(8_000)
    track = SpeechTrack(front, shape)
    track.hear(speech_)
    features, _ = front.push(samples_of(speech_), begin(front))
    expected = features[0, :4].flatten(1)
    assert expected.shape == (4, 3 * 16)
    torch.testing.assert_close(track.embeddings(0), expected, atol=2e-5, rtol=0)


def test_before_the_call_there_was_silence() -> None:
    shape = grid(SMALL)
    track = SpeechTrack(front_end(SMALL), shape)
    track.hear(np.zeros(40_000, np.int16))
    quiet = track.embeddings(0)
    torch.testing.assert_close(quiet, quiet[:1].expand_as(quiet), atol=2e-5, rtol=0)


def test_memory_stays_flat_when_chunks_are_asked_for() -> None:
    shape = grid(SMALL, before=2, after=1)
    track, kept = SpeechTrack(front_end(SMALL), shape), set()
    speech_ = pcm(640 * 12)
    for chunk in range(60):
        track.hear(speech_)
        if track.knows(chunk - 1) and chunk:
            assert torch.isfinite(track.embeddings(chunk - 1)).all()
            kept.add(len(track._features))
    assert max(kept) <= 2 + 2 * 12 + 1


def test_speech_that_has_not_come_is_not_made_up() -> None:
    track = SpeechTrack(front_end(SMALL), grid(SMALL))
    assert not track.knows(0)
    with pytest.raises(AssertionError, match="has not come yet"):
        track.embeddings(0)


@pytest.mark.parametrize("name", NAMES)
def test_presets_state_their_reach(name: str) -> None:
    config = preset(name)
    assert config.hearing is not None
    assert config.spec.lookahead_samples == config.hearing.lookahead_samples > 0
    assert config.history_samples <= 4 * config.stream.sample_rate
