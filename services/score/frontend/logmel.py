"""Log-mel spectrum of speech, framed causally.

Legend: B streams, N samples, T frames, M bands.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from services.score.frontend.config import MelConfig

_FLOOR = 1e-8  # of band energy: below the quantisation noise of 16-bit speech
_DECADES = 4.0  # -1 is the floor, 0 is -40 dB, 1 is full scale in one band


class LogMel(nn.Module):
    """Frame t ends where hop t ends: no look-ahead, `config.history` samples of the past.

    Without parameters; what it does is given by the config alone.
    """

    window: Tensor
    bands: Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.hann_window(config.window), persistent=False)
        self.register_buffer("bands", mel_bands(config), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """[B, history + T·hop (+ rest)] float32 in [-1, 1) → [B, T, M], about -1 to 1."""
        frames = samples.unfold(-1, self.config.window, self.config.hop)  # [B, T, window]
        spectrum = torch.fft.rfft(frames * self.window, n=self.config.fft)
        energy = spectrum.real.square() + spectrum.imag.square()
        return torch.log10(energy @ self.bands.T + _FLOOR) / _DECADES + 1


def mel_bands(config: MelConfig) -> Tensor:
    """Triangular filters [M, fft/2 + 1] of height 1, equally wide on the HTK mel scale.

    Always on the host, even where a module is laid out without memory.
    """
    host = torch.device("cpu")
    frequencies = torch.linspace(0, config.sample_rate / 2, config.fft // 2 + 1, device=host)
    ends = _mel(torch.tensor([config.low, config.high], device=host))
    edges = _hertz(torch.linspace(float(ends[0]), float(ends[1]), config.bands + 2, device=host))
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (frequencies - left) / (centre - left)
    falling = (right - frequencies) / (right - centre)
    return torch.minimum(rising, falling).clamp(min=0)


def _mel(hertz: Tensor) -> Tensor:
    return 2595 * torch.log10(1 + hertz / 700)


def _hertz(mel: Tensor) -> Tensor:
    return 700 * (10 ** (mel / 2595) - 1)
