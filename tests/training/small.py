"""Models small enough to be trained inside a test."""

from __future__ import annotations

from dataclasses import replace

from services.score.config import (
    AnchorConfig,
    AudioConfig,
    DitConfig,
    LatentConfig,
    PaperAudio,
    StreamConfig,
)
from services.score.frontend.config import MelFrontEnd

FRONT_END = MelFrontEnd(width=4, controls=("open", "press"))


def dit(**changes: object) -> DitConfig:
    """4 x 4 latents of 4 channels, 2 x 2 tokens per frame."""
    made = DitConfig(
        dim=24,
        ffn_dim=32,
        heads=2,
        layers=2,
        freq_dim=16,
        prediction="clean",
        latent=LatentConfig(channels=4, stride=(4, 8, 8)),
        text=None,
        anchor=AnchorConfig(mask_channels=0, fill="anchor"),
        audio=AudioConfig(
            adapter=PaperAudio(width=8, depth=1, heads=2),
            front_end=FRONT_END,
            embedding_dim=FRONT_END.outputs,
            per_latent=4,
            before=4,
            after=2,
        ),
        stream=StreamConfig(fps=25, width=32, height=32),
    )
    return replace(made, **changes)  # type: ignore[arg-type]
