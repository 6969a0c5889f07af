"""Small random models and the speech they hear, for every test of the area."""

from __future__ import annotations

import torch
from torch import Tensor

from services.score.config import (
    AnchorConfig,
    AudioConfig,
    ClipConfig,
    DitConfig,
    FantasyTalkingAudio,
    LatentConfig,
    MultiTalkAudio,
    PaperAudio,
    StreamConfig,
    TextConfig,
)
from services.score.frontend.config import MelFrontEnd
from services.score.model import Dit
from services.score.passes import Passes, Places, Scene

CPU = torch.device("cpu")
SOUND = MelFrontEnd(width=4)  # 10 numbers per embedding
ADAPTERS = (
    PaperAudio(width=24, depth=1, heads=2),
    FantasyTalkingAudio(width=20),
    MultiTalkAudio(hidden=16, tokens=3, width=12),
)


def config(
    *,
    adapter: PaperAudio | FantasyTalkingAudio | MultiTalkAudio = ADAPTERS[0],
    **changes: object,
) -> DitConfig:
    """4 x 2 tokens per frame, two layers, everything conditioned on."""
    made: dict[str, object] = {
        "dim": 48,
        "ffn_dim": 64,
        "heads": 4,
        "layers": 2,
        "freq_dim": 16,
        "latent": LatentConfig(channels=4),
        "text": TextConfig(dim=12, tokens=6),
        "clip": ClipConfig(dim=10, tokens=5),
        "anchor": AnchorConfig(mask_channels=2),
        "audio": AudioConfig(
            adapter=adapter,
            front_end=SOUND,
            embedding_dim=SOUND.outputs,
            per_latent=4,
            before=4,
            after=2,
        ),
        "stream": StreamConfig(fps=25, width=32, height=64),
    }
    return DitConfig(**(made | changes))  # type: ignore[arg-type]


def model(made: DitConfig, seed: int = 0) -> Dit:
    torch.manual_seed(seed)
    dit = Dit(made).eval()
    with torch.no_grad():
        for parameter in dit.parameters():
            # Biases and norms too: nothing may hide behind a zero or a one.
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return dit


def passes(dit: Dit) -> Passes:
    return Passes(dit, Places(dit.config, CPU))


def scene(dit: Dit, rows: int = 1, speakers: int = 1, seed: int = 1) -> Scene:
    """A picture, a prompt and faces that cover different halves of it."""
    made, generator = dit.config, torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    faces = torch.zeros(rows, speakers, made.frame_tokens)
    for speaker in range(speakers):
        faces[:, speaker, speaker :: speakers + 1] = 1
    return Scene(
        anchor=draw(rows, made.latent.channels, 1, *made.latent_size),
        given=dit.describe(
            draw(rows, made.text.tokens, made.text.dim) if made.text else None,
            draw(rows, made.clip.tokens, made.clip.dim) if made.clip else None,
        ),
        faces=faces if made.audio else None,
    )


def latents(made: DitConfig, *lead: int, seed: int = 2) -> Tensor:
    """[*lead, C, F, h, w]."""
    shape = (made.latent.channels, made.stream.latents_per_chunk, *made.latent_size)
    return torch.randn(*lead, *shape, generator=torch.Generator().manual_seed(seed))


def speech(made: DitConfig, rows: int, speakers: int = 1, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Embeddings and who is heard, for one chunk per row."""
    assert made.audio is not None
    generator = torch.Generator().manual_seed(seed)
    length = made.audio.before + made.audio.after
    length += made.stream.latents_per_chunk * made.audio.per_latent
    shape = (rows, speakers, length)
    embeddings = torch.randn(*shape, made.audio.embedding_dim, generator=generator)
    return embeddings, torch.rand(shape, generator=generator) < 0.7
