"""What every rank does: hold caches on its device and run the passes it is told to run.

Under `engine.py`, which decides; with one device it calls directly, with several `parallel.py`
sends every command to all ranks. A worker knows nothing of time, turns or deadlines, and nothing in
it cannot be rebuilt from the log.

Legend: B rows of a batch, S speakers, T audio embeddings around a chunk, C latent channels,
F latent frames, h and w rows and columns of a latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from services.accelerator.copies import HostCopies, PendingCopy
from services.accelerator.replay import Capture, Replay
from services.score.attention import KeysValues
from services.score.avatars import beyond_others, face_mask, padded
from services.score.cache import Context, Handed, Tape, WindowLayer
from services.score.config import S2vAudio
from services.score.contract import Avatar
from services.score.denoise import levels, sample
from services.score.model import Dit, Given, Times
from services.score.noise import noise
from services.score.passes import Passes, Places, Scene
from services.score.stage import Portrait, Stage

R_co = TypeVar("R_co", covariant=True)


class Team(Protocol):
    """The ranks that draw one picture together: each a band of its rows."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def cut(self, x: Tensor, dim: int) -> Tensor:
        """This rank's band of `x` along `dim`."""
        ...

    def join(self, x: Tensor, dim: int) -> Tensor:
        """All bands, one after the other, on every rank."""
        ...


class Command(Protocol[R_co]):
    """Something that all ranks do, each with its own worker; crosses processes by pickle."""

    def run(self, worker: Worker) -> R_co: ...


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """Speech around a chunk, for all speakers of a session."""

    embeddings: Tensor  # [S, T, E] float32
    heard: Tensor  # [S, T] bool


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One session's part of a batch."""

    session: str
    chunk: int
    audio: Heard | None
    listening: bool  # nobody speaks: use the prompt for listening


Kind = Literal["denoise", "context"]


@dataclass(frozen=True, slots=True)
class _Stand:
    """What makes a step the same step: everything that its shapes depend on."""

    rows: int
    speakers: int
    chunks: int  # finished chunks that the sessions see


@dataclass(slots=True)
class _Session:
    portrait: Portrait
    seed: int
    contexts: Sequence[Context]  # one for each window of the stage
    noises: tuple[int, Tensor] | None = None  # of a chunk, drawn before it is needed


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """A batch between `denoise` and `remember`."""

    batch: Sequence[Part]
    stand: _Stand
    latents: Tensor  # [B, C, F, h, w]
    audio: tuple[Tensor, ...]


class Worker:
    """Caches of avatars and sessions on one device, and the passes over them."""

    def __init__(
        self,
        model: Dit,
        *,
        rows: int,
        team: Team,
        capture: Capture | None,
        latent_dtype: torch.dtype,
    ) -> None:
        """`latent_dtype` is what latents leave in; what the log holds is what the model goes on
        with, so a session that moves sees the same numbers as one that stays.
        """
        weight = model.patch_embedding.weight
        self.config, self._model, self._team = model.config, model, team
        self._device, self._dtype, self._latent_dtype = weight.device, weight.dtype, latent_dtype
        band = team.cut(torch.arange(self.config.grid[0]), 0)
        rope_rows = range(int(band[0]), int(band[-1]) + 1)
        self._passes = Passes(model, Places(self.config, self._device, rope_rows))
        self._stage = Stage(
            self.config, rows=rows, ranks=team.size, device=self._device, dtype=self._dtype
        )
        self._levels = levels(self.config.schedule)
        with torch.inference_mode():
            self._times = [self._embed_time(level) for level in self._levels]
            self._clean_time = self._embed_time(self.config.context.level)
            self._anchor_time = self._embed_time(0.0)
        self._copies = HostCopies(self._device)
        self._capture = capture
        self._steps: dict[tuple[Kind, _Stand], Replay] = {}
        self._portraits: dict[str, Portrait] = {}
        self._sessions: dict[str, _Session] = {}
        self._drawn: _Drawn | None = None

    @torch.inference_mode()
    def add_avatar(self, avatar: Avatar) -> int:
        """Compute and keep what an avatar needs in every pass; its bytes on this rank."""
        anchor = self._team.cut(avatar.anchor.float().to(self._device)[None], 3)
        speaking = self._describe(avatar.text, avatar.clip)
        listening = speaking
        if avatar.listening_text is not None:
            other = self._describe(avatar.listening_text, avatar.clip)
            pairs = zip(other, speaking, strict=True)
            listening = [given._replace(image=same.image) for given, same in pairs]
        faces = self._faces(avatar) if self.config.audio is not None else None
        layers = [Handed() for _ in range(self.config.layers)]
        scene = Scene(anchor, speaking, faces)
        self._passes.anchor(scene, self._anchor_time, layers)
        portrait = Portrait(avatar.digest, anchor, Tape.of(layers), speaking, listening, faces)
        self._portraits[avatar.digest] = portrait
        return portrait.nbytes

    def drop_avatar(self, digest: str) -> None:
        del self._portraits[digest]

    @torch.inference_mode()
    def open(self, session: str, digest: str, seed: int) -> int:
        """Make room for a session; its bytes on this rank."""
        contexts = [Context(self.config, window) for window in self._stage.windows]
        self._sessions[session] = _Session(self._portraits[digest], seed, contexts)
        return sum(context.nbytes for context in contexts)

    def close(self, session: str) -> None:
        """Forget a session; none of that name is fine."""
        self._sessions.pop(session, None)

    def forget(self, session: str) -> None:
        """Drop a session's finished chunks, as if it were new."""
        for context in self._sessions[session].contexts:
            context.forget()

    @torch.inference_mode()
    def denoise(self, batch: Sequence[Part]) -> PendingCopy:
        """Draw a chunk of every session of `batch`: [B, C, F, h, w] on its way to the host.

        All must have as many speakers and as many finished chunks. `remember` comes next.
        """
        self._seat(batch)
        noises = torch.stack([self._noises(part) for part in batch], 1).to(self._device)
        stand, audio = self._stand(batch), self._audio(batch)
        drawn = self._run("denoise", stand, noises, audio)
        self._drawn = _Drawn(batch, stand, drawn, audio)
        return self._copies.start(self._team.join(drawn, 3))

    @torch.inference_mode()
    def remember(self) -> None:
        """Turn the chunks just drawn into context, of those sessions that are still open.

        Where this fails, `replay` of each chunk does the same, session by session.
        """
        assert self._drawn is not None, "nothing was drawn"
        drawn, self._drawn = self._drawn, None
        if not self._keeps:
            self._run("context", drawn.stand, drawn.latents, drawn.audio)
        alive = [
            (row, part) for row, part in enumerate(drawn.batch) if part.session in self._sessions
        ]
        for _, part in alive:
            # While a device computes the context, the host draws the next chunk's noise.
            session = self._sessions[part.session]
            session.noises = part.chunk + 1, self._draw(session.seed, part.chunk + 1)
        # Last, and nothing but copies: what fails above leaves every session as it was.
        for row, part in alive:
            self._take(part, row)

    @torch.inference_mode()
    def replay(self, part: Part, latents: Tensor) -> None:
        """Take a finished chunk [C, F, h, w] from the log into a session's context.

        Where keys and values of denoising steps are kept, the chunk is drawn again instead: what
        these steps were given is not in the log, but all that led to it is.
        """
        self._seat([part])
        stand, audio = self._stand([part]), self._audio([part])
        if self._keeps:
            self._run("denoise", stand, self._noises(part)[:, None].to(self._device), audio)
        else:
            clean = self._team.cut(latents.to(self._latent_dtype).to(self._device)[None], 3)
            self._run("context", stand, clean, audio)
        self._take(part, 0)

    def synchronize(self) -> None:
        """Wait until the device has done all it was told."""
        if self.queues:
            torch.accelerator.synchronize(self._device)

    @property
    def queues(self) -> bool:
        """Whether the device takes orders and carries them out later."""
        return self._device.type != "cpu"

    @property
    def rows(self) -> int:
        """Most sessions in one batch."""
        return self._stage.windows[0].rows

    @property
    def window_bytes(self) -> int:
        return sum(window.nbytes for window in self._stage.windows)

    # What a step computes; recorded where the device records.

    def _denoise(self, stand: _Stand, noises: Tensor, *audio: Tensor) -> Tensor:
        scene, windows = self._seen(stand, stand.chunks)
        speech = self._hear(audio)

        def predict(x: Tensor, step: int) -> Tensor:
            parts = windows[step if len(windows) > 1 else 0]
            return self._passes.denoise(x, scene, self._times[step], speech, parts)

        clean = sample(self.config, predict, noises.unbind(0), scene.anchor)
        return clean.to(self._latent_dtype)

    def _context(self, stand: _Stand, clean: Tensor, *audio: Tensor) -> Tensor:
        chunks = 0 if self.config.context.policy == "own" else stand.chunks
        scene, (parts,) = self._seen(stand, chunks)
        self._passes.context(clean.float(), scene, self._clean_time, self._hear(audio), parts)
        return clean

    def _run(self, kind: Kind, stand: _Stand, x: Tensor, audio: tuple[Tensor, ...]) -> Tensor:
        """One step over the rows where a batch is seated."""
        if (kind, stand) not in self._steps:
            step = self._denoise if kind == "denoise" else self._context
            self._steps[kind, stand] = Replay(partial(step, stand), self._capture)
        out = self._steps[kind, stand](x, *audio)
        assert isinstance(out, Tensor)
        return out

    def _stand(self, batch: Sequence[Part]) -> _Stand:
        session = self._sessions[batch[0].session]
        return _Stand(len(batch), session.portrait.speakers, session.contexts[0].filled)

    def _seen(self, stand: _Stand, chunks: int) -> tuple[Scene, list[list[WindowLayer]]]:
        scene = self._stage.scene(stand.rows, stand.speakers)
        return scene, [window.parts(stand.rows, chunks) for window in self._stage.windows]

    @property
    def _keeps(self) -> bool:
        """Whether what denoising leaves is the context: no pass makes it."""
        return self.config.context.policy in ("kept", "levels")

    def _take(self, part: Part, row: int) -> None:
        """What the last passes left in a row becomes its session's newest chunk."""
        contexts = self._sessions[part.session].contexts
        for context, window in zip(contexts, self._stage.windows, strict=True):
            context.remember(window, row)

    def _hear(self, audio: tuple[Tensor, ...]) -> list[KeysValues] | None:
        return self._model.hear(*audio) if audio else None

    def _seat(self, batch: Sequence[Part]) -> None:
        for row, part in enumerate(batch):
            session = self._sessions[part.session]
            self._stage.seat(row, session.portrait, listening=part.listening)
            pairs = zip(session.contexts, self._stage.windows, strict=True)
            for context, window in pairs:
                window.put_context(row, context.newest_first(), self._passes.places.moves)

    def _audio(self, batch: Sequence[Part]) -> tuple[Tensor, ...]:
        """Embeddings [B, S, T, E] and who is heard [B, S, T], or nothing."""
        heard = [part.audio for part in batch if part.audio is not None]
        if not heard:
            return ()
        embeddings = torch.stack([one.embeddings for one in heard]).to(self._device, self._dtype)
        return embeddings, torch.stack([one.heard for one in heard]).to(self._device)

    def _noises(self, part: Part) -> Tensor:
        session = self._sessions[part.session]
        if session.noises is not None and session.noises[0] == part.chunk:
            return session.noises[1]
        return self._draw(session.seed, part.chunk)

    def _draw(self, seed: int, chunk: int) -> Tensor:
        """A chunk's noise for every step: [steps, C, F, h, w], the band's rows."""
        config = self.config
        shape = (config.latent.channels, config.stream.latents_per_chunk, *config.latent_size)
        drawn = [noise(seed, chunk, step, shape) for step in range(len(self._levels))]
        return self._team.cut(torch.stack(drawn), 3)

    def _describe(self, text: Tensor | None, clip: Tensor | None) -> list[Given]:
        if text is not None and self.config.text is not None:
            text = padded(text, self.config.text.tokens).to(self._device, self._dtype)[None]
        if clip is not None:
            clip = clip.to(self._device, self._dtype)[None]
        return self._model.describe(text, clip)

    def _faces(self, avatar: Avatar) -> Tensor:
        masks = torch.stack([face_mask(face, self.config.grid) for face in avatar.faces])
        audio = self.config.audio
        if audio is not None and isinstance(audio.adapter, S2vAudio):
            masks = beyond_others(masks)
        return self._team.cut(masks, 1).flatten(1)[None].to(self._device, self._dtype)

    def _embed_time(self, level: float) -> Times:
        return self._model.embed_time(torch.tensor([level], device=self._device))
