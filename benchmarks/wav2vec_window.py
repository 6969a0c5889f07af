"""How far wav2vec 2.0 heard in windows is from wav2vec 2.0 that hears the whole clip.

`python -m benchmarks.wav2vec_window [--folder WAV2VEC2] [--wav SPEECH.wav]` prints, per window, the
RMS difference of the last hidden state relative to how much that state varies over time. Without a
folder the weights are random at the size of wav2vec2-base: they attend everywhere alike, so this
bounds the error from above. The defaults of `Wav2Vec2FrontEnd` were chosen from it.
"""

from __future__ import annotations

import argparse
import time
import wave
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from services.score.frontend.config import Wav2Vec2FrontEnd
from services.score.frontend.pcm import samples_of
from services.score.frontend.wav2vec import Wav2Vec, load_wav2vec, normalised


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="a local wav2vec 2.0 folder")
    parser.add_argument("--wav", type=Path, help="16 kHz mono 16-bit speech, 5 s or more")
    parser.add_argument("--left", type=int, nargs="+", default=[50, 100, 150])
    parser.add_argument("--right", type=int, nargs="+", default=[0, 10, 25])
    options = parser.parse_args()
    torch.manual_seed(0)
    network, clip = _network(options.folder), _clip(options.wav)
    with torch.inference_mode():
        whole = network(normalised(torch.nn.functional.pad(clip, (0, 80)))).last_hidden_state
        print("left s  right s  relative error  ms per 20 ms of speech")
        for left in options.left:
            for right in options.right:
                config = Wav2Vec2FrontEnd(states="last", left=left, right=right)
                error, cost = _measured(Wav2Vec(network, config), clip, whole)
                print(
                    f"{left / 50:6.1f}  {right / 50:7.1f}  {error:14.3f}  {cost:6.1f}", flush=True
                )


def _measured(front_end: Wav2Vec, clip: Tensor, whole: Tensor) -> tuple[float, float]:
    state = front_end.start(0)  # knows nothing before the clip: every window lies inside it
    first, start = state.feature, time.perf_counter()
    features, _ = front_end.push(clip, state)
    seconds = time.perf_counter() - start
    same = whole[:, first : first + features.shape[1]]
    varies = (same - same.mean(1, keepdim=True)).square().mean().sqrt()
    differs = (features - same).square().mean().sqrt()
    return float(differs / varies), 1000 * seconds / features.shape[1]


def _network(folder: Path | None) -> torch.nn.Module:
    if folder is not None:
        config = Wav2Vec2FrontEnd(states="last")
        loaded: torch.nn.Module = load_wav2vec(folder, config, torch.device("cpu")).network
        return loaded
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    network: torch.nn.Module = Wav2Vec2Model(Wav2Vec2Config()).eval()
    return network


def _clip(file: Path | None) -> Tensor:
    """[1, N]: the file, or noise and a gliding tone under the rhythm of syllables."""
    if file is not None:
        with wave.open(str(file)) as sound:
            shape = (sound.getframerate(), sound.getnchannels(), sound.getsampwidth())
            if shape != (16_000, 1, 2):
                raise SystemExit(f"{file}: expected 16 kHz mono 16-bit, got {shape}")
            return samples_of(np.frombuffer(sound.readframes(sound.getnframes()), np.int16))
    time_ = torch.arange(16_000 * 5) / 16_000
    tone = 0.3 * torch.sin(2 * torch.pi * (120 + 20 * torch.sin(3 * time_)) * time_)
    rhythm = (0.5 + 0.5 * torch.sin(2 * torch.pi * 1.3 * time_)).square()
    return ((0.05 * torch.randn_like(time_) + tone) * rhythm)[None]


if __name__ == "__main__":
    main()
