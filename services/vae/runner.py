"""The VAE on its device: everything about speed that the model does not know.

Number format, memory layout, compilation, recording and the stream that work runs on are decided
here once, at load. The CUDA path was not yet run on a GPU; its logic of static buffers is tested
with `accelerator.replay.Rerun`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from services.accelerator.dtype import fastest_dtype
from services.accelerator.replay import Capture, Outputs, Replay, capture_for
from services.vae.model import Vae
from services.vae.state import State, join, part

_RECORDED_SHAPES = 4  # each recorded shape holds a session's state and its frames in memory


class Runner:
    """A placed VAE. Latents [B, Z, T, h, w], frames [B, 3, F, H, W], on the runner's device."""

    def __init__(
        self, vae: Vae, device: torch.device, *, capture: Capture | None, compiled: bool
    ) -> None:
        self.vae = vae
        self.config = vae.config
        self.device = device
        self.dtype = vae.conv2.weight.dtype
        self._capture = capture
        step = self._decode
        self._step = torch.compile(step, fullgraph=True, dynamic=False) if compiled else step
        self._recorded: dict[torch.Size, Replay] = {}
        self._stream = (
            torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            if device.type == "cuda"
            else None
        )
        # Measured on one position. (Shapes alone, on PyTorch's meta device, would tell as well, but
        # loading what works them out takes seconds.)
        channels = self.config.latent_channels
        with self.active():
            latent = vae.conv2.weight.new_zeros(1, channels, 1, 1, 1)
            self._bytes_per_position = vae.decode(latent, State())[1].bytes

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within it, work goes to the runner's own stream and no gradients are kept.

        `begin`, `decode`, `encode` and what is done with their results belong inside.
        """
        stream = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with torch.inference_mode(), stream:
            yield

    def take(self, latents: Tensor) -> Tensor:
        """Latents from anywhere, on the device in the model's format."""
        return latents.to(self.device, self.dtype, non_blocking=True)

    def session_bytes(self, rows: int, columns: int) -> int:
        """Device memory that a session of latent size `rows` x `columns` holds."""
        return rows * columns * self._bytes_per_position

    def begin(self, anchor: Tensor, tail: Tensor) -> State:
        """A fresh state after the anchor [1, Z, 1, h, w] and `tail` [1, Z, K >= 0, h, w].

        The anchor goes first, as its one-frame latent, so that every later latent gives
        `frames_per_latent` frames. After a tail of `vae.reach` latents or more the state is the
        one that the session had; frames are made for none of them.
        """
        *_, state = self.rebuild(anchor, tail, latents=max(1, tail.shape[2]))
        assert state is not None
        return state

    def rebuild(self, anchor: Tensor, tail: Tensor, *, latents: int) -> Iterator[State | None]:
        """What `begin` does, in pieces of so many latents: None after each but the last.

        No piece takes longer than decoding as many latents, and other work may go between.
        """
        anchor, tail = self.take(anchor), self.take(tail[:, :, -self.vae.reach :])
        state, left = self.vae.warm(anchor, State()), tail.shape[2]
        while left:
            yield None
            # The odd ones first: the others are cut where the stream was, and round as it did.
            count = left % latents or latents
            left -= count
            piece = tail[:, :, tail.shape[2] - left - count : tail.shape[2] - left]
            state = self.vae.warm(piece, state, following=left)
        yield state

    def decode(self, latents: Tensor, states: Sequence[State]) -> tuple[Tensor, list[State]]:
        """The next frames [B, 3, F, H, W] of B streams of one shape, and the states after.

        Both may be overwritten by the next call: `State.copy_` what must stay.
        """
        past = join(states)
        with _tuned():
            frames, *slots = self._step_for(latents.shape)(self.take(latents), *past.slots)
        return frames, part(State(tuple(slots)))

    def encode(self, frames: Tensor) -> Tensor:
        """Latents [1, Z, T, h, w] of frames [1, 3, 1 + n x frames_per_latent, H, W] in -1..1."""
        frames = frames.to(self.device, self.dtype)
        first, rest = frames[:, :, :1], frames[:, :, 1:]
        latent, state = self.vae.encode(first, State())
        latents = [latent]
        # Some latents at a time: the memory of a pass does not grow with the clip.
        for piece in torch.split(rest, 4 * self.config.frames_per_latent, dim=2):
            if piece.shape[2]:
                latent, state = self.vae.encode(piece, state)
                latents.append(latent)
        return torch.cat(latents, dim=2)

    def _decode(self, latents: Tensor, *slots: Tensor) -> tuple[Tensor, ...]:
        frames, state = self.vae.decode(latents, State(slots))
        return frames, *state.slots

    def _step_for(self, shape: torch.Size) -> Callable[..., Outputs]:
        if self._capture is None:
            return self._step
        if shape not in self._recorded and len(self._recorded) < _RECORDED_SHAPES:
            self._recorded[shape] = Replay(self._step, self._capture)
        return self._recorded.get(shape, self._decode)


@contextmanager
def _tuned() -> Iterator[None]:
    """Within it, cuDNN times its algorithms for shapes that it has not seen.

    Worth it for the one shape that comes for ever, not for tails of any length.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def place(vae: Vae, device: torch.device, *, dtype: torch.dtype | None = None) -> Runner:
    """`vae` moved to `device` in the format and layout that run fastest there.

    `dtype` fixes the number format; otherwise CPUs are timed and accelerators take bfloat16.
    """
    dtype = dtype or fastest_dtype(device, (torch.float32, torch.bfloat16), _trial(device))
    vae = vae.to(device, dtype)
    for parameter in vae.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        elif parameter.dim() == 4 and parameter.shape[-1] > 1:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    # Compiling fuses norms, activations and copies between convolutions, which GPUs are short of
    # bandwidth for. On CPUs convolutions are 90 % of the time and a compiler may not be there.
    return Runner(vae, device, capture=capture_for(device), compiled=device.type == "cuda")


def _trial(device: torch.device) -> Callable[[torch.dtype], Callable[[], object]]:
    def prepare(dtype: torch.dtype) -> Callable[[], object]:
        window = torch.randn(1, 64, 6, 32, 32, device=device, dtype=dtype)
        weight = torch.randn(64, 64, 3, 3, 3, device=device, dtype=dtype)
        window = window.contiguous(memory_format=torch.channels_last_3d)
        weight = weight.contiguous(memory_format=torch.channels_last_3d)
        return lambda: F.conv3d(window, weight, padding=(0, 1, 1))

    return prepare
