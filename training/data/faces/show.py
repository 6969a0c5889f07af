"""Pictures and films for a person to look at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from training.data.faces.behaviour import Motion
from training.data.faces.clip import Scene, render
from training.data.faces.expression import MOUTH, Expression
from training.data.faces.family import Family, renderer

_VISEMES: tuple[dict[str, float], ...] = (
    {},
    {"open": 1.0, "teeth": 0.35},
    {"open": 0.3, "spread": 0.9, "teeth": 0.8},
    {"open": 0.3, "round": 1.0},
    {"press": 1.0},
    {"open": 0.1, "press": 0.25, "teeth": 1.0},
    {"open": 0.35, "teeth": 0.5, "tongue": 1.0, "yaw": 0.2},
    {"smile": 0.9, "open": 0.3, "teeth": 0.6, "yaw": -0.22, "pitch": 0.06},
    {"blink": 1.0, "smile": 0.2},
)


def sheet(seeds: list[int], size: int) -> Tensor:
    """Identities down, visemes and expressions across, family after family: uint8 [3, H, W]."""
    rows = [_row(family, seed, size) for family in Family for seed in seeds]
    return torch.cat(rows, 1)


def portraits(family: Family, first: int, count: int, size: int, *, columns: int) -> Tensor:
    """Many identities of a family, looking about: uint8 [3, H, W]."""
    seeds = torch.arange(first, first + count)
    scene = Scene(
        family,
        seeds,
        Motion(seeds, torch.ones(count), torch.full((count,), 1.7)),
        _talking(count),
        torch.ones(count, 1),
    )
    pictures = render(scene, size).frames[:, 0]
    rows = pictures[: count // columns * columns].reshape(-1, columns, 3, size, size)
    return rows.permute(2, 0, 3, 1, 4).reshape(3, -1, columns * size)


def _talking(count: int) -> Tensor:
    """Half of the mouths at rest, the others in the middle of a word; [count, 1, 6]."""
    mouth = torch.zeros(count, 1, len(MOUTH))
    mouth[::2, 0, MOUTH.index("open")] = torch.linspace(0.1, 0.7, len(mouth[::2]))
    mouth[::2, 0, MOUTH.index("teeth")] = 0.5
    return mouth


def _row(family: Family, seed: int, size: int) -> Tensor:
    drawer = renderer(family)
    traits = drawer.traits(torch.tensor([seed]))
    pictures = []
    for viseme in _VISEMES:
        moment = replace(
            Expression.still(1), **{name: torch.tensor([v]) for name, v in viseme.items()}
        )
        with torch.no_grad():
            pictures.append(drawer.draw(traits, moment, size)[0])
    return (torch.cat(pictures, 2) * 255 + 0.5).to(torch.uint8)


def film(
    frames: Tensor, path: Path, *, fps: int, speech: tuple[np.ndarray, int] | None = None
) -> None:
    """Write uint8 [T, 3, H, W] as H.264, with `speech` (int16 mono samples, rate) as AAC."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=fps, options={"crf": "16"})
        video.height, video.width = frames.shape[-2:]
        video.pix_fmt = "yuv420p"
        sound = out.add_stream("aac", rate=speech[1]) if speech else None
        for picture in frames:
            pixels = picture.permute(1, 2, 0).contiguous().numpy()
            out.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(video.encode(None))
        if speech and sound is not None:
            samples, rate = speech
            heard = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            heard.sample_rate = rate
            out.mux(sound.encode(heard))
            out.mux(sound.encode(None))
