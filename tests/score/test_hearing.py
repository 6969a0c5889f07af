"""An ear hears a function of the samples around a chunk, however it got there."""

from __future__ import annotations

import numpy as np
import torch

from services.score.contract import Mode, Speech
from services.score.hearing import Ear, audible
from tests.score import calls, small
from tests.score.calls import Call

CONFIG = small.config()


def ear() -> Ear:
    front_end = calls.ears(CONFIG)
    assert front_end is not None
    assert CONFIG.hearing is not None
    return Ear(front_end, CONFIG.hearing, CONFIG.spec)


def said(chunk: int) -> Speech:
    return Call(CONFIG).speech(chunk)[0]


def test_running_on_equals_beginning_anew_at_any_chunk() -> None:
    running = ear()
    heard = [running.hear(chunk, said(chunk)) for chunk in range(7)]
    for chunk in range(7):
        anew = ear()
        for past in range(max(0, chunk - 3), chunk):
            anew.remember(said(past))
        embeddings, flags = anew.hear(chunk, said(chunk))
        torch.testing.assert_close(embeddings, heard[chunk][0], rtol=1e-5, atol=1e-5)
        assert torch.equal(flags, heard[chunk][1])


def test_who_is_heard_follows_the_chunks_modes() -> None:
    """Four before, twelve of its own, two after; chunk 3 is listened through."""
    one = ear()
    flags = [one.hear(chunk, said(chunk))[1].tolist() for chunk in range(5)]
    assert flags[0] == [False] * 4 + [True] * 14, "before a call there is silence"
    assert flags[1] == [True] * 18
    assert flags[3] == [True] * 4 + [False] * 14
    assert flags[4] == [False] * 4 + [True] * 14


def test_a_change_of_mind_within_the_lookahead_is_heard() -> None:
    """The same chunk gives the same embeddings, whatever was promised in its place."""
    changed = said(0)
    pcm = changed.pcm.copy()
    pcm[CONFIG.spec.samples_per_chunk :] = 0
    kept, misled = ear(), ear()
    kept.hear(0, changed)
    misled.remember(changed)
    expected, _ = misled.hear(1, said(1))
    got, _ = kept.hear(1, said(1))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    liar = ear()
    liar.hear(0, Speech(Mode.SPEAKING, pcm))
    got, _ = liar.hear(1, said(1))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_listener_is_silent() -> None:
    speech = said(3)
    assert speech.mode is Mode.LISTENING
    assert speech.pcm.any()
    assert not audible(speech).any()
    assert np.array_equal(audible(said(0)), said(0).pcm)
