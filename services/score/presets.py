"""Configurations by name: the paper's size, its small sibling, and one for a laptop.

Beside `config.py`; benchmarks, tests and training start from these. A checkpoint on disk carries
its own `config.json` and needs none of them.
"""

from __future__ import annotations

from services.score.checkpoint.recipes import RECIPES, prepared
from services.score.config import (
    AnchorConfig,
    AudioConfig,
    ClipConfig,
    DitConfig,
    LatentConfig,
    PaperAudio,
    ReferenceConfig,
    S2vAudio,
    StreamConfig,
)
from services.score.frontend.config import MelFrontEnd, Wav2Vec2FrontEnd

NAMES = ("tm-18b", "tm-1.3b", "tiny", "wan2.2-s2v", "realvideo", "liveavatar")


def preset(name: str) -> DitConfig:
    """The configuration called `name`, one of `NAMES`.

    Raises:
        KeyError: there is none of that name.
    """
    if name in RECIPES and name in NAMES:
        return prepared(name, _s2v(), name)
    return {"tm-18b": _tm_18b, "tm-1.3b": _tm_1_3b, "tiny": _tiny}[name]()


def _tm_18b() -> DitConfig:
    """Wan2.1-I2V-14B with the paper's audio module: 16.4B + 1.2B parameters."""
    return DitConfig(
        dim=5120,
        ffn_dim=13824,
        heads=40,
        layers=40,
        clip=ClipConfig(),
        anchor=AnchorConfig(),
        audio=_wav2vec2_audio(PaperAudio()),
    )


def _tm_1_3b() -> DitConfig:
    """The 1.3B transformer in image-to-video shape, with an audio module to its scale."""
    return DitConfig(
        dim=1536,
        ffn_dim=8960,
        heads=12,
        layers=30,
        clip=ClipConfig(),
        anchor=AnchorConfig(),
        audio=_wav2vec2_audio(PaperAudio(width=768, depth=4, heads=12)),
    )


def _tiny() -> DitConfig:
    """Small enough for two processor cores: 64 tokens per latent frame, no text, no CLIP."""
    return DitConfig(
        dim=256,
        ffn_dim=768,
        heads=4,
        layers=6,
        prediction="clean",
        latent=LatentConfig(channels=32, stride=(4, 16, 16)),
        text=None,
        anchor=AnchorConfig(mask_channels=0, fill="anchor"),
        audio=AudioConfig(
            adapter=PaperAudio(width=128, depth=1, heads=2),
            front_end=MelFrontEnd(),
            embedding_dim=MelFrontEnd().outputs,
            per_latent=4,
            before=8,
            after=4,
        ),
        stream=StreamConfig(fps=25, width=256, height=256),
    )


def _s2v() -> DitConfig:
    """Wan2.2-S2V-14B: 16.3B parameters, 2.0B of them for speech."""
    return DitConfig(
        dim=5120,
        ffn_dim=13824,
        heads=40,
        layers=40,
        reference=ReferenceConfig(),
        audio=AudioConfig(
            adapter=S2vAudio(),
            front_end=Wav2Vec2FrontEnd(states="all"),
            embedding_dim=25 * 1024,
            per_latent=4,
            before=5,
            after=0,
            silence="heard",
            via=30,
        ),
    )


def _wav2vec2_audio(adapter: PaperAudio) -> AudioConfig:
    """All twelve layers of wav2vec2-base; a latent frame hears itself, four before, one after."""
    return AudioConfig(
        adapter=adapter,
        front_end=Wav2Vec2FrontEnd(),
        embedding_dim=12 * 768,
        per_latent=4,
        before=16,
        after=4,
    )
