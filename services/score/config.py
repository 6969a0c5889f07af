"""Everything that belongs to a score checkpoint, as read from the `config.json` beside its weights.

Stands before all of `services/score`: no other file there holds a number of a model. Sizes are
those of the Wan2.1 diffusion transformer (github.com/Wan-Video/Wan2.1, `wan/configs`); visibility,
positions and the audio window are this system's own.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from services.runtime import ranges, strict_json
from services.runtime.ranges import Range
from services.runtime.strict_json import Misfit
from services.runtime.weights import BadCheckpoint
from services.score.frontend.config import MelFrontEnd, Wav2Vec2FrontEnd
from services.score.frontend.grid import EmbeddingGrid
from talkingmachines.errors import BadInput
from talkingmachines.spec import StreamSpec

# Far beyond any model that was ever published, and small enough to be laid out in seconds.
Width = Annotated[int, Range(1, 1 << 17)]
Depth = Annotated[int, Range(1, 512)]
Heads = Annotated[int, Range(1, 1024)]
Tokens = Annotated[int, Range(1, 1 << 14)]
Pixels = Annotated[int, Range(1, 1 << 14)]
Stride = Annotated[int, Range(1, 64)]
Chunks = Annotated[int, Range(1, 64)]
Reach = Annotated[int, Range(0, 1 << 12)]  # audio embeddings
Position = Annotated[int, Range(0, 1 << 20)]  # latent frames

_CHUNK_TOKENS = 1 << 20
_STEPS = 256  # what the noise of a chunk counts


@dataclass(frozen=True, slots=True)
class TextConfig:
    """Prompt embeddings that the cross-attention reads; made elsewhere, once per avatar."""

    dim: Width = 4096
    tokens: Tokens = 512  # shorter prompts are padded with zeros, which are attended to


@dataclass(frozen=True, slots=True)
class ClipConfig:
    """CLIP tokens of the reference picture: a second set of keys in every cross-attention."""

    dim: Width = 1280
    tokens: Tokens = 257


@dataclass(frozen=True, slots=True)
class AnchorConfig:
    """The reference latent as extra input channels: `mask_channels`, then a copy of the latent.

    Wan's image-to-video models take 16 noise + 4 mask + 16 picture = 36 channels. The mask is one
    on the anchor and zero elsewhere; the other frames carry zeros or, with `fill: anchor`, the
    anchor itself, which hands a small model identity and background for nothing.
    """

    mask_channels: Annotated[int, Range(0, 1024)] = 4
    fill: Literal["zero", "anchor"] = "zero"


@dataclass(frozen=True, slots=True)
class ReferenceConfig:
    """The reference picture as tokens of a kind of their own (Wan2.2-S2V).

    Tokens are told by an added vector whether they are of the picture drawn, of the reference or of
    the frames before the first one. These are packed, the older the coarser (`frame_packer`).
    """

    # Frames before the first: none, or the reference standing still.
    motion: Literal["none", "still"] = "none"
    pose: bool = True  # the absent pose's encoder still adds its bias


@dataclass(frozen=True, slots=True)
class PaperAudio:
    """TalkingMachines: a projection module, then keys and values in every cross-attention.

    Low & Wang (arXiv 2506.03099) give the size (1.2B) and the place; the module's inside is ours.
    """

    kind: Literal["paper"] = "paper"
    width: Width = 2048  # of an audio token
    depth: Annotated[int, Range(0, 512)] = 7  # transformer blocks over the tokens of one window
    heads: Heads = 16


@dataclass(frozen=True, slots=True)
class FantasyTalkingAudio:
    """FantasyTalking (github.com/Fantasy-AMAP/fantasy-talking): one linear layer, shared query."""

    kind: Literal["fantasytalking"] = "fantasytalking"
    width: Width = 2048


@dataclass(frozen=True, slots=True)
class MultiTalkAudio:
    """MultiTalk and InfiniteTalk (github.com/MeiGen-AI): an attention of its own in every block."""

    kind: Literal["multitalk"] = "multitalk"
    hidden: Width = 512
    tokens: Tokens = 32  # per latent frame
    width: Width = 768  # of an audio token


@dataclass(frozen=True, slots=True)
class S2vAudio:
    """Wan2.2-S2V (github.com/Wan-Video/Wan2.2, `wan/modules/s2v`): attentions after some blocks.

    A causal convolution stack over the hidden states of wav2vec 2.0 makes a few tokens per latent
    frame, which its picture tokens attend to, and one vector that styles their queries (AdaIN).
    Speech moves the whole picture, apart from the faces of others.
    """

    kind: Literal["s2v"] = "s2v"
    states: Annotated[int, Range(1, 256)] = 25  # hidden states, weighed against each other
    tokens: Annotated[int, Range(1, 256)] = 4  # per latent frame, besides a learned padding token
    layers: tuple[Annotated[int, Range(0, 511)], ...] = (
        0,
        4,
        8,
        12,
        16,
        20,
        24,
        27,
        30,
        33,
        36,
        39,
    )
    # What is before a chunk: what was heard, or its first embedding over and over, as models that
    # were given one chunk's speech at a time know it.
    past: Literal["heard", "repeated"] = "heard"


@dataclass(frozen=True, slots=True)
class AudioConfig:
    """How speech reaches the picture.

    A latent frame hears the audio embeddings of its own time and some on both sides; as in the
    paper, usually those of itself and five adjacent latent frames.
    """

    adapter: PaperAudio | FantasyTalkingAudio | MultiTalkAudio | S2vAudio
    front_end: MelFrontEnd | Wav2Vec2FrontEnd
    embedding_dim: Width  # numbers per audio embedding
    per_latent: Annotated[int, Range(1, 1 << 12)]  # audio embeddings in a latent frame's time
    before: Reach  # audio embeddings before a latent frame's own that it hears
    after: Reach  # audio embeddings after them; they delay every answer by as much
    # What a silent speaker's embeddings are; heard: what the front end hears in silence.
    silence: Literal["zero", "learned", "heard"] = "zero"
    # Hz; above 0, features are first brought to this rate, and an embedding is the one at or before
    # its start instead of the features at its middle (Wan2.2-S2V: 30).
    via: Annotated[int, Range(0, 1000)] = 0

    @property
    def window(self) -> int:
        """Audio embeddings that one latent frame hears."""
        return self.before + self.per_latent + self.after


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """Time and picture of the stream; `DitConfig.spec` derives the rest."""

    sample_rate: Annotated[int, Range(1_000, 384_000)] = 16_000  # Hz
    fps: Annotated[int, Range(1, 240)] = 16
    latents_per_chunk: Chunks = 3
    width: Pixels = 512
    height: Pixels = 512


@dataclass(frozen=True, slots=True)
class LatentConfig:
    """The latent space of the video VAE that belongs to this checkpoint."""

    channels: Annotated[int, Range(1, 1024)] = 16
    stride: tuple[Stride, Stride, Stride] = (4, 8, 8)  # frames, rows, columns per latent


@dataclass(frozen=True, slots=True)
class ContextConfig:
    """What of finished chunks the next one sees.

    - `own`: a pass over the clean latents that sees the anchor and the chunk alone. A session is
      then a function of its last chunk.
    - `window`: the same pass, but it also sees the chunks before (public checkpoints).
    - `kept`: no pass; the keys and values of the last denoising step stay.
    - `levels`: no pass; those of every step stay, and a step sees those of its own noise level.

    With the last three, hidden states carry history; attaching replays the last `replay` chunks.
    What remains of an error falls about thirtyfold (`window`), sevenfold (`kept`) and twofold
    (`levels`, with three chunks visible) per chunk replayed, with random weights
    (`benchmarks/replay.py`).
    """

    policy: Literal["own", "window", "kept", "levels"] = "own"
    chunks: Chunks = 1  # finished chunks that a chunk being denoised sees
    replay: Chunks = 1  # finished chunks that rebuild a session's cache
    level: Annotated[float, Range(0, 0.999)] = 0.0  # noise level that the context pass is told


@dataclass(frozen=True, slots=True)
class PositionsConfig:
    """Latent-frame positions (rotary embedding) by role; fixed, so that no stream runs out."""

    anchor: Position = 0
    context: Position = 1  # first frame of the oldest visible finished chunk
    own: Position = 4  # first frame of the chunk being denoised


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """Noise levels of the few denoising steps, falling, before the shift toward noise."""

    levels: tuple[Annotated[float, Range(1e-6, 1)], ...] = (1.0, 0.5)
    shift: Annotated[float, Range(1e-3, 1e3)] = 3.0
    # From one level to the next: the clean latents with fresh noise, or a straight line (Euler).
    between: Literal["renoise", "euler"] = "renoise"


@dataclass(frozen=True, slots=True)
class DitConfig:
    """One score checkpoint. Every field is a fact about its weights, none about a machine."""

    dim: Width
    ffn_dim: Width
    heads: Heads
    layers: Depth
    freq_dim: Width = 256
    patch: tuple[Stride, Stride, Stride] = (1, 2, 2)
    eps: Annotated[float, Range(1e-12, 1)] = 1e-6
    prediction: Literal["velocity", "clean"] = "velocity"  # clean: x0 minus the anchor
    latent: LatentConfig = field(default_factory=LatentConfig)
    text: TextConfig | None = field(default_factory=TextConfig)
    clip: ClipConfig | None = None
    anchor: AnchorConfig | None = None
    reference: ReferenceConfig | None = None
    audio: AudioConfig | None = None
    stream: StreamConfig = field(default_factory=StreamConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    positions: PositionsConfig = field(default_factory=PositionsConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        ranges.check(self, "config")
        _check_sizes(self)
        _check_stream(self)
        _check_roles(self)
        _check_schedule(self.schedule)
        if self.audio is not None:
            _check_audio(self, self.audio)

    @property
    def windows(self) -> int:
        """Sets of keys and values that a session keeps of a finished chunk."""
        return len(self.schedule.levels) if self.context.policy == "levels" else 1

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def in_channels(self) -> int:
        extra = self.latent.channels + self.anchor.mask_channels if self.anchor else 0
        return self.latent.channels + extra

    @property
    def out_channels(self) -> int:
        return self.latent.channels

    @property
    def latent_size(self) -> tuple[int, int]:
        """Rows and columns of a latent frame."""
        _, rows, columns = self.latent.stride
        return self.stream.height // rows, self.stream.width // columns

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens in a latent frame."""
        rows, columns = self.latent_size
        return rows // self.patch[1], columns // self.patch[2]

    @property
    def frame_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def anchor_tokens(self) -> int:
        """Tokens of the reference picture, and of the frames that are packed beside it."""
        if self.reference is None or self.reference.motion == "none":
            return self.frame_tokens
        return self.frame_tokens + sum(math.prod(shape) for shape in self.packed)

    @property
    def packed(self) -> tuple[tuple[int, int, int], ...]:
        """Frames, rows and columns of the tokens of packed frames, the newest first."""
        rows, columns = self.latent_size
        scales = zip((1, 1, 4), (2, 4, 8), strict=True)
        return tuple((frames, rows // size, columns // size) for frames, size in scales)

    @property
    def chunk_tokens(self) -> int:
        return self.frame_tokens * self.stream.latents_per_chunk

    @property
    def samples_per_embedding(self) -> int:
        """Samples of speech from one audio embedding to the next; 0 for a model without audio."""
        if self.audio is None:
            return 0
        per_second = self.audio.per_latent * self.stream.fps
        return self.stream.sample_rate * self.latent.stride[0] // per_second

    @property
    def hearing(self) -> EmbeddingGrid | None:
        """Which embeddings a chunk hears, and what speech they are made of."""
        if self.audio is None:
            return None
        return EmbeddingGrid(
            sample_rate=self.stream.sample_rate,
            step=self.samples_per_embedding,
            per_chunk=self.audio.per_latent * self.stream.latents_per_chunk,
            before=self.audio.before,
            after=self.audio.after,
            front_end=self.audio.front_end,
            via=self.audio.via,
        )

    @property
    def history_samples(self) -> int:
        """Samples of speech before a chunk's start that shape its picture."""
        return self.hearing.history_samples if self.hearing else 0

    @property
    def lookahead_samples(self) -> int:
        """Samples of speech after a chunk's end that shape its picture."""
        return self.hearing.lookahead_samples if self.hearing else 0

    @property
    def spec(self) -> StreamSpec:
        """Geometry of the stream, with the look-ahead that the audio window implies."""
        stream = self.stream
        return StreamSpec(
            sample_rate=stream.sample_rate,
            fps=stream.fps,
            latents_per_chunk=stream.latents_per_chunk,
            frames_per_latent=self.latent.stride[0],
            width=stream.width,
            height=stream.height,
            lookahead_samples=self.lookahead_samples,
        )

    @staticmethod
    def read(path: Path) -> DitConfig:
        """Read a `config.json`.

        Raises:
            BadCheckpoint: it cannot be read, or a field is unknown, missing or out of range.
        """
        try:
            return strict_json.read(DitConfig, strict_json.parse(path))
        except (OSError, ValueError) as error:
            raise BadCheckpoint(str(path), why=str(error)) from error

    def write(self, path: Path) -> None:
        """Write a `config.json` that `read` reads back as an equal object."""
        path.write_text(json.dumps(strict_json.write(self), indent=2) + "\n")


def _check_sizes(config: DitConfig) -> None:
    fits = config.dim % config.heads == 0 and config.head_dim % 2 == 0
    _require(fits, "heads", config.heads, f"a divisor of dim {config.dim} with an even head size")
    _require(config.freq_dim % 2 == 0, "freq_dim", config.freq_dim, "an even number")
    _require(config.patch[0] == 1, "patch[0]", config.patch[0], "1: frames are never merged")
    if config.reference is not None:
        alone = config.anchor is None
        _require(alone, "anchor", "channels", "none: the reference has tokens of its own")
        packs = config.patch == (1, 2, 2)
        _require(packs, "patch", config.patch, "(1, 2, 2): packed frames are multiples of it")


def _check_stream(config: DitConfig) -> None:
    pixels = (config.stream.height, config.stream.width)
    for size, stride, patch in zip(pixels, config.latent.stride[1:], config.patch[1:], strict=True):
        _require(size % (stride * patch) == 0, "stream", pixels, f"multiples of {stride * patch}")
    tokens = config.chunk_tokens
    _require(tokens <= _CHUNK_TOKENS, "stream", f"{tokens} tokens in a chunk", f"{_CHUNK_TOKENS}")
    try:
        _ = config.spec
    except BadInput as error:
        raise Misfit("config.stream", got=error.got, expected=error.expected) from error


def _check_roles(config: DitConfig) -> None:
    context, positions, length = config.context, config.positions, config.stream.latents_per_chunk
    alone = context.policy != "own" or context.chunks == context.replay == 1
    _require(alone, "context.chunks", context.chunks, "1 chunk and 1 replay with policy own")
    end = positions.context + context.chunks * length
    _require(positions.own >= end, "positions.own", positions.own, f"at least {end}")


def _check_schedule(schedule: ScheduleConfig) -> None:
    levels = schedule.levels
    falling = all(a > b for a, b in pairwise(levels))
    good = 1 <= len(levels) <= _STEPS and levels[0] == 1 and falling
    _require(good, "schedule.levels", levels, f"1 to {_STEPS} levels that fall from 1")


def _check_audio(config: DitConfig, audio: AudioConfig) -> None:
    samples = config.stream.sample_rate * config.latent.stride[0]
    whole = samples % (audio.per_latent * config.stream.fps) == 0
    _require(whole, "audio.per_latent", audio.per_latent, "a whole number of samples per embedding")
    if isinstance(audio.front_end, MelFrontEnd):
        outputs = audio.front_end.outputs
        fits = audio.embedding_dim == outputs
        _require(fits, "audio.embedding_dim", audio.embedding_dim, f"the front end's {outputs}")
    if isinstance(audio.adapter, S2vAudio):
        _check_s2v(config, audio, audio.adapter)
    if isinstance(audio.adapter, PaperAudio):
        width, heads = audio.adapter.width, audio.adapter.heads
        _require(width % heads == 0, "audio.adapter.heads", heads, f"a divisor of {width}")


def _check_s2v(config: DitConfig, audio: AudioConfig, adapter: S2vAudio) -> None:
    shape = (audio.before, audio.per_latent, audio.after)
    _require(
        shape == (5, 4, 0), "audio.before", shape, "5 before 4 and none after, as it convolves"
    )
    split = audio.embedding_dim % adapter.states == 0
    _require(split, "audio.embedding_dim", audio.embedding_dim, f"{adapter.states} equal states")
    _require(config.dim % 4 == 0, "dim", config.dim, "a multiple of 4")
    rising = all(a < b for a, b in pairwise(adapter.layers))
    inside = bool(adapter.layers) and adapter.layers[-1] < config.layers
    expected = f"rising numbers below {config.layers}"
    _require(rising and inside, "audio.adapter.layers", adapter.layers, expected)


def _require(good: bool, name: str, got: object, expected: str) -> None:
    if not good:
        raise Misfit(f"config.{name}", got=got, expected=expected)
