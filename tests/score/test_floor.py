"""The floor agrees with figures computed by hand for the published sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.score.config import ContextConfig, MultiTalkAudio
from services.score.floor import chunk_floor, pass_floor
from services.score.presets import preset


def test_18b_at_512() -> None:
    """3,072 tokens that see 7,168, 769 of text and picture: TFLOP by part."""
    floor = pass_floor(preset("tm-18b"), chunks=1)
    assert floor.projections / 1e12 == pytest.approx(25.8, abs=0.05)
    assert floor.attention / 1e12 == pytest.approx(18.0, abs=0.05)
    assert floor.cross / 1e12 == pytest.approx(12.9 + 1.9, abs=0.1)
    assert floor.perceptron / 1e12 == pytest.approx(34.8, abs=0.05)
    assert floor.audio / 1e12 == pytest.approx(0.06, abs=0.02)
    assert floor.total / 1e12 == pytest.approx(93.5, abs=0.2)


def test_multitalk_has_a_query_of_its_own() -> None:
    config = preset("tm-18b")
    assert config.audio is not None
    other = replace(config, audio=replace(config.audio, adapter=MultiTalkAudio()))
    assert pass_floor(other, chunks=1).audio / 1e12 == pytest.approx(12.9, abs=0.2)


def test_a_chunk_is_two_steps_and_a_context_pass_that_sees_less() -> None:
    config = preset("tm-18b")
    both = 2 * pass_floor(config, chunks=1).total
    assert chunk_floor(config) == both + pass_floor(config, chunks=0).total
    assert chunk_floor(config) / 1e12 == pytest.approx(273, abs=1)
    kept = replace(config, context=ContextConfig(policy="kept"))
    assert chunk_floor(kept) == both
