"""Clips as the transformer learns them: latents, what is heard, where the mouth is.

footage → **latents** → teacher, student. Streams are encoded as a decoder meets them: the
reference picture first. Speech goes through the track that serving uses, chunk by chunk.

Legend: B clips, K chunks, C latent channels, F latent frames of a chunk, h and w rows and columns
of a latent, N tokens of a frame, W audio embeddings that a chunk hears, E numbers of each.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from torch import Tensor

from services.score.avatars import face_mask
from services.score.config import DitConfig
from services.score.contract import Rectangle
from services.score.frontend.features import FrontEnd
from services.score.frontend.track import SpeechTrack
from services.vae.model import Vae
from services.vae.runner import place
from training.data.faces.truth import mouth_weights
from training.footage import Footage, Geometry, is_heard
from training.rows import joined, picked
from training.vae import signed


@dataclass(frozen=True, slots=True)
class LatentClips:
    """B clips of K chunks."""

    latents: Tensor  # float16 [B, K, C, F, h, w]
    anchor: Tensor  # float16 [B, C, 1, h, w]
    embeddings: Tensor  # float16 [B, K, W, E]
    heard: Tensor  # bool [B, K, W]
    controls: Tensor  # float32 [B, T, 6], true mouth per video frame
    mouth: Tensor  # float32 [B, K, F, h, w]: 1 far from the mouth, 2 on it
    faces: Tensor  # float32 [B, N]: how much of the face a token shows


class Encoder:
    """Makes latent clips of footage."""

    def __init__(
        self,
        vae: Vae,
        front_end: FrontEnd,
        config: DitConfig,
        geometry: Geometry,
        device: torch.device,
    ) -> None:
        assert config.hearing is not None, "a model without audio learns nothing here"
        # As a service would: a few frames at a time in 16 bits, a third of what whole clips cost.
        self._runner = place(deepcopy(vae), device, dtype=torch.bfloat16)
        self._front_end = front_end
        self._config, self._geometry, self._hearing = config, geometry, config.hearing
        self._device = device

    @torch.no_grad()
    def encode(self, footage: Footage) -> LatentClips:
        parts = [self._one(picked(footage, slice(i, i + 1))) for i in range(len(footage))]
        return joined(parts)

    def _one(self, clip: Footage) -> LatentClips:
        per, length = self._config.latent.stride[0], self._config.stream.latents_per_chunk
        rows, columns = self._config.latent_size
        frames = signed(torch.cat([clip.anchor[:, None], clip.frames], 1).to(self._device))
        latents = self._runner.encode(frames)
        anchor, rest = latents[:, :, :1].half(), latents[:, :, 1:].half()
        weights = mouth_weights(clip.truth, rows, 2.0).to(self._device)
        weights = reduce(weights, "b (k f p) h w -> b k f h w", "mean", f=length, p=per)
        assert rows == columns, "pictures are square"
        embeddings, heard = self._hear(clip)
        return LatentClips(
            latents=rearrange(rest, "b c (k f) h w -> b k c f h w", f=length).contiguous(),
            anchor=anchor.contiguous(),
            embeddings=embeddings[None].half(),
            heard=heard[None],
            controls=clip.controls.to(self._device),
            mouth=weights,
            faces=self._faces(clip.truth.face_box[0])[None],
        )

    def _hear(self, clip: Footage) -> tuple[Tensor, Tensor]:
        """Embeddings [K, W, E] and who is heard [K, W], as an `Ear` would say in a session."""
        before, chunks = self._geometry.chunks_before, self._geometry.chunks
        track = SpeechTrack(self._front_end, self._hearing)
        track.hear(clip.speech[0].cpu().numpy())
        heard = [track.embeddings(before + chunk) for chunk in range(chunks)]
        begins = self._geometry.chunk_of(clip.begins[0].cpu())
        speaks = is_heard(torch.arange(-before, chunks), begins)
        known = speaks.repeat_interleave(self._hearing.per_chunk)
        audible = []
        for chunk in range(chunks):
            first = (before + chunk) * self._hearing.per_chunk
            past = known[first - self._hearing.before : first + self._hearing.per_chunk]
            audible.append(torch.cat([past, speaks[before + chunk].expand(self._hearing.after)]))
        return torch.stack(heard).to(self._device), torch.stack(audible).to(self._device)

    def _faces(self, box: Tensor) -> Tensor:
        left, top, right, bottom = box.tolist()
        mask = face_mask(Rectangle(left, top, right, bottom), self._config.grid)
        return mask.flatten().to(self._device)
