"""How well the encoder hears a mouth: per voice and control, on speech it never learned from.

Heard through the served front end (`whole_clip`), look-ahead and all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from services.score.frontend.features import whole_clip
from services.score.frontend.speech_encoder import SpeechEncoder
from training.audio.batches import mouths
from training.data.speech.crops import Clip, SpeechSet
from training.data.speech.mouth import CONTROLS
from training.data.speech.split import Test

_OPEN, _PRESS = CONTROLS.index("open"), CONTROLS.index("press")
_LAGS = range(-3, 4)  # features

Mouths = NDArray[np.float32]  # [n, K]


@dataclass(frozen=True, slots=True)
class Row:
    voice: str
    seconds: float
    correlation: dict[str, float]  # Pearson's r by control
    opening: float  # r of open · (1 - press), what a viewer sees
    lag: int  # features by which the heard opening is late, where r is highest
    closures: float  # share of true closures at whose middle or next to it the lips are felt closed


def report(encoder: SpeechEncoder, speech: SpeechSet[Test]) -> Iterator[Row]:
    for voice in speech.voices:
        clips = speech.of_voice(voice)
        heard = np.concatenate([hear(encoder, clip) for clip in clips])
        true = np.concatenate([mouths(clip, encoder.config).numpy() for clip in clips])
        seconds = len(true) * encoder.config.hop / encoder.config.sample_rate
        yield compared(voice, seconds, heard, true)


@torch.no_grad()
def hear(encoder: SpeechEncoder, clip: Clip) -> Mouths:
    """The controls that the encoder predicts for a clip, [n, K], not standardised."""
    features = whole_clip(encoder, torch.from_numpy(clip.pcm)[None])[0]
    controls = (features / encoder.scale + encoder.offset)[:, encoder.config.width :]
    return controls.numpy()


def compared(voice: str, seconds: float, heard: Mouths, true: Mouths) -> Row:
    """Predicted against true controls, both [n, K]."""
    correlation = {name: _r(heard[:, index], true[:, index]) for index, name in enumerate(CONTROLS)}
    gap, wanted = (side[:, _OPEN] * (1 - side[:, _PRESS].clip(0, 1)) for side in (heard, true))
    lag = max(_LAGS, key=lambda lag: _r(np.roll(gap, -lag), wanted))
    return Row(voice, seconds, correlation, _r(gap, wanted), lag, _closures(heard, true))


def table(rows: list[Row]) -> str:
    """Markdown."""
    names = ["voice", "s", *CONTROLS, "opening", "lag", "closures"]
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    for row in rows:
        scores = [f"{row.correlation[name]:.2f}" for name in CONTROLS]
        scores += [f"{row.opening:.2f}", str(row.lag), f"{row.closures:.2f}"]
        lines.append(" | ".join([row.voice, f"{row.seconds:.0f}", *scores]))
    return "\n".join(f"| {line} |" for line in lines)


def _closures(heard: Mouths, true: Mouths) -> float:
    closed = np.flatnonzero(true[:, _PRESS] > 0.8)
    if not len(closed):
        return float("nan")
    near = np.stack([np.roll(heard[:, _PRESS], shift) for shift in (-1, 0, 1)]).max(0)
    return float((near[closed] > 0.5).mean())


def _r(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Not a number where one of them never changes."""
    if not (np.ptp(first) and np.ptp(second)):
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])
