"""Everything that depends on the machine, decided once, from outside the model.

Last station before serving: checkpoint → **machine** → engine. Chooses number format and attention
kernel, compiles blocks, records steps, spreads the model over ranks. Model, cache and engine files
know nothing of it. On CPUs nothing is compiled or recorded: a compiler saved 14 % of a small
model's training step there and took a minute and a half. Not yet run on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from services.accelerator.dtype import fastest_dtype
from services.accelerator.replay import Capture, capture_for
from services.score.attention import Kernel, Local, attention_for, sdpa
from services.score.cache import Handed
from services.score.checkpoint.identity import identity
from services.score.checkpoint.loading import load as load_model
from services.score.checkpoint.loading import load_front_end
from services.score.checkpoint.opening import Checkpoint
from services.score.config import DitConfig
from services.score.engine import Engine, Limits
from services.score.frontend.features import FrontEnd
from services.score.model import Block, Dit
from services.score.parallel import Alone, Leader, Ranks, Solo, share_attention
from services.score.rehearsal import rehearse
from services.score.rope import table
from services.score.worker import Worker
from talkingmachines.errors import BadInput

_SHAPES = 64  # of passes: beyond this the compiler would give up in silence


@dataclass(frozen=True, slots=True)
class Speedups:
    """What makes a step faster without changing what it computes; each can be left out."""

    kernel: bool = True  # the fastest attention that is installed, else PyTorch's
    compile: bool = True  # blocks, where the device is not a CPU
    record: bool = True  # steps as graphs, where the device can


def fastest(config: DitConfig, device: torch.device) -> torch.dtype:
    """The number format in which a block of this model runs fastest here."""

    def trial(dtype: torch.dtype) -> _Trial:
        return _Trial(config, device, dtype)

    return fastest_dtype(device, (torch.float32, torch.bfloat16), trial)


def equip(model: Dit, speedups: Speedups, ranks: Ranks | None) -> Dit:
    """Give a loaded model its kernels and compile its blocks, in place."""
    device = model.patch_embedding.weight.device
    kernel: Kernel = attention_for(device) if speedups.kernel else sdpa
    for block in model.layers():
        block.self_attn.attend = Local(kernel)
        block.cross_attn.kernel = kernel
        if block.apart:
            block.audio_cross_attn.kernel = kernel
    if model.audio_injector is not None:
        model.audio_injector.use(kernel)
    if ranks is not None:
        share_attention(model, kernel, ranks)
    if speedups.compile and device.type != "cpu":
        # All layers share one compilation per shape, but every size of batch is several shapes.
        torch._dynamo.config.recompile_limit = _SHAPES
        for block in model.layers():
            block.compile(dynamic=False, fullgraph=True)
    return model


def employ(
    model: Dit,
    *,
    rows: int = 1,
    speedups: Speedups = Speedups(),
    ranks: Ranks | None = None,
    latent_dtype: torch.dtype = torch.float16,
) -> Worker:
    """This rank's worker over a loaded model; followers hand it to `parallel.follow`."""
    device = model.patch_embedding.weight.device
    capture: Capture | None = capture_for(device) if speedups.record else None
    return Worker(
        equip(model, speedups, ranks),
        rows=rows,
        team=ranks if ranks is not None else Alone(),
        capture=capture,
        latent_dtype=latent_dtype,
    )


def engine_over(
    worker: Worker, front_end: FrontEnd | None, limits: Limits, ranks: Ranks | None = None
) -> Engine:
    """Rank 0's engine, rehearsed: it has drawn every shape and knows what a chunk costs.

    Raises:
        BadInput: `limits` asks for larger batches than the worker has rows for.
    """
    if limits.rows > worker.rows:
        raise BadInput(
            "limits.rows", got=limits.rows, expected=f"at most the worker's {worker.rows}"
        )
    hands = Solo(worker) if ranks is None else Leader(worker, ranks)
    engine = Engine(worker.config, hands, front_end, limits=limits, queues=worker.queues)
    rehearse(engine)
    return engine


@dataclass(frozen=True, slots=True)
class Made:
    """What a checkpoint becomes on this machine."""

    worker: Worker
    checkpoint: str  # names weights and configuration


def make(
    checkpoint: Checkpoint,
    device: torch.device,
    *,
    rows: int,
    dtype: torch.dtype | None = None,
    ranks: Ranks | None = None,
) -> Made:
    """This rank's worker from an opened checkpoint of any known layout.

    Args:
        dtype: of the weights; the fastest here if not given. All ranks need the same.

    Raises:
        BadCheckpoint: it does not fit.
        ValueError: so many ranks cannot share this model.
    """
    dtype = dtype if dtype is not None else fastest(checkpoint.config, device)
    model = load_model(checkpoint, device=device, dtype=dtype)
    return Made(employ(model, rows=rows, ranks=ranks), identity(model))


def load(
    checkpoint: Checkpoint,
    device: torch.device,
    *,
    limits: Limits,
    wav2vec: Path | None = None,
    dtype: torch.dtype | None = None,
) -> Engine:
    """An engine on one device from an opened checkpoint of any known layout.

    Args:
        wav2vec: a wav2vec 2.0 folder, for layouts that do not hold one.
        dtype: of the weights; the fastest here if not given.

    Raises:
        BadCheckpoint: it does not fit.
    """
    made = make(checkpoint, device, rows=limits.rows, dtype=dtype)
    return engine_over(made.worker, hearing(checkpoint, device, wav2vec), limits)


def hearing(checkpoint: Checkpoint, device: torch.device, wav2vec: Path | None) -> FrontEnd | None:
    """What hears for this checkpoint, if it hears; only rank 0 needs it.

    Raises:
        BadCheckpoint: it does not fit.
    """
    if checkpoint.config.audio is None:
        return None
    return load_front_end(checkpoint, device=device, wav2vec=wav2vec)


class _Trial:
    """Self-attention and perceptron of one block over one chunk: nearly all of a model's work."""

    def __init__(self, config: DitConfig, device: torch.device, dtype: torch.dtype) -> None:
        self._block = Block(config, None).to(device, dtype).eval()
        self._x = torch.randn(1, config.chunk_tokens, config.dim, device=device, dtype=dtype)
        rows, columns = config.grid
        frames = range(config.stream.latents_per_chunk)
        rope = table(config.head_dim, frames=frames, rows=range(rows), columns=range(columns))
        self._rope = rope.to(device)

    def __call__(self) -> object:
        x = self._x + self._block.self_attn(self._x, self._rope, Handed())
        return self._block.ffn(x)
