"""What shape a VAE has: every width, depth and stride, read strictly from `config.json`.

Owned by the checkpoint. The model is built from this alone, and so are its reach back in time, the
memory of a session and the cost of a chunk.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from services.runtime import ranges, strict_json
from services.runtime.ranges import Range
from services.runtime.weights import BadCheckpoint

FILE = "config.json"

# Far beyond any VAE that is known, and small enough to be built in a moment: a file that lies is
# refused by the name of its field, not by a process that builds layers until it is killed.
Width = Annotated[int, Range(1, 8192)]
Depth = Annotated[int, Range(1, 16)]
Taps = Annotated[int, Range(1, 3)]
Moderate = Annotated[float, Range(-1e4, 1e4)]
_MOST_STAGES = 8
_MOST_LATENT_CHANNELS = 256

# Normalisation of the Wan2.1 latents, from the public repository (`wan/modules/vae.py`).
_WAN_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_WAN_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


@dataclass(frozen=True, slots=True)
class TowerConfig:
    """One half of the VAE: a row of stages with a resampling between each two.

    Stages are listed in the order in which the picture passes them: from pixels to latents in the
    encoder, from latents to pixels in the decoder.
    """

    widths: tuple[Width, ...]  # channels that each stage puts out
    blocks: Depth  # residual blocks per stage
    taps: tuple[Taps, ...]  # frames that the convolutions of each stage see: 3, or 1 for none past
    temporal: tuple[bool, ...]  # per resampling: whether it halves (doubles) time as well
    middle_taps: Taps  # like `taps`, for the middle and the convolution beside the latent
    attention: bool  # whether the middle attends within each frame

    def check(self, name: str) -> None:
        """Refuse numbers that contradict each other.

        Raises:
            ValueError: names the field, under `name`.
        """
        stages = len(self.widths)
        per_stage, per_step = f"one per stage ({stages})", f"one per resampling ({stages - 1})"
        known = f"1 to {_MOST_STAGES} stages"
        _require(1 <= stages <= _MOST_STAGES, f"{name}.widths", f"{stages} stages", known)
        _require(len(self.taps) == stages, f"{name}.taps", len(self.taps), per_stage)
        steps = len(self.temporal)
        _require(steps == stages - 1, f"{name}.temporal", steps, per_step)
        for taps in (*self.taps, self.middle_taps):
            _require(taps != 2, f"{name}.taps", taps, "1 or 3")


@dataclass(frozen=True, slots=True)
class FoldConfig:
    """Frames that both towers draw one by one, and that share a latent: a linear bottleneck."""

    frames: Annotated[int, Range(2, 16)]  # of the towers' latent side, per latent
    channels: Annotated[int, Range(1, _MOST_LATENT_CHANNELS)]  # of each of these frames


@dataclass(frozen=True, slots=True)
class VaeConfig:
    """The whole VAE.

    Raises:
        ValueError: the numbers contradict each other; the message names the field.
    """

    encoder: TowerConfig
    decoder: TowerConfig
    latent_mean: tuple[Moderate, ...]  # per latent channel; model latents are (z - mean) / std
    latent_std: tuple[Annotated[float, Range(1e-4, 1e4)], ...]
    patch: Annotated[int, Range(1, 16)] = (
        1  # pixels per side folded into channels before the encoder, after the decoder
    )
    norm_groups: Annotated[int, Range(0, 8192)] = (
        0  # 0: RMS norm over channels; else group norm within each frame
    )
    fold: FoldConfig | None = None  # None: the towers see latents, and halve time themselves

    def __post_init__(self) -> None:
        self.encoder.check("config.encoder")
        self.decoder.check("config.decoder")
        channels = len(self.latent_mean)
        known = f"1 to {_MOST_LATENT_CHANNELS} channels"
        _require(1 <= channels <= _MOST_LATENT_CHANNELS, "config.latent_mean", channels, known)
        same = f"{channels} numbers, one per latent channel"
        stds = len(self.latent_std)
        _require(stds == channels, "config.latent_std", stds, same)
        ranges.check(self, "config")
        _require(
            self.decoder.temporal == self.encoder.temporal[::-1],
            "config.decoder.temporal",
            self.decoder.temporal,
            "the encoder's in reverse order",
        )
        for width in self.decoder.widths[:-1]:
            even = "even widths before a resampling"
            _require(width % 2 == 0, "config.decoder.widths", width, even)
        self._check_groups()

    def _check_groups(self) -> None:
        if self.norm_groups == 0:
            return
        halves = [width // 2 for width in self.decoder.widths[:-1]]
        for width in (*self.encoder.widths, *self.decoder.widths, *halves):
            _require(
                width % self.norm_groups == 0,
                "config.norm_groups",
                self.norm_groups,
                f"a divisor of every width and of half of it after an upsampling (not of {width})",
            )

    @property
    def latent_channels(self) -> int:
        return len(self.latent_mean)

    @property
    def frame_channels(self) -> int:
        """Channels on the latent side of the towers."""
        return self.latent_channels if self.fold is None else self.fold.channels

    @property
    def folded_frames(self) -> int:
        """Frames on the latent side of the towers that share a latent."""
        return 1 if self.fold is None else self.fold.frames

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent, along each side."""
        return int(self.patch * 2 ** len(self.decoder.temporal))

    @property
    def frames_per_latent(self) -> int:
        """Frames that every latent but the first decodes to; the first is one frame."""
        return int(2 ** sum(self.decoder.temporal) * self.folded_frames)

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the latent of a picture.

        Raises:
            ValueError: a side is not a multiple of `spatial_stride`.
        """
        stride = self.spatial_stride
        _require(height > 0 and height % stride == 0, "height", height, f"a multiple of {stride}")
        _require(width > 0 and width % stride == 0, "width", width, f"a multiple of {stride}")
        return height // stride, width // stride

    @classmethod
    def read(cls, directory: Path) -> VaeConfig:
        """The config beside a checkpoint's weights.

        Raises:
            BadCheckpoint: no such file, not JSON, unknown or missing fields, or contradictions.
        """
        path = directory / FILE
        try:
            return strict_json.read(cls, json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise BadCheckpoint(str(path), why=str(error)) from error
        except RecursionError as error:
            raise BadCheckpoint(str(path), why="nested too deep to be a config") from error

    def write(self, directory: Path) -> None:
        """Put the config beside a checkpoint's weights."""
        (directory / FILE).write_text(json.dumps(strict_json.write(self), indent=2) + "\n")


def wan21() -> VaeConfig:
    """Wan2.1: 8 x 8 pixels and 4 frames per latent, 16 channels."""
    return VaeConfig(
        encoder=TowerConfig(
            widths=(96, 192, 384, 384),
            blocks=2,
            taps=(3, 3, 3, 3),
            temporal=(False, True, True),
            middle_taps=3,
            attention=True,
        ),
        decoder=TowerConfig(
            widths=(384, 384, 192, 96),
            blocks=3,
            taps=(3, 3, 3, 3),
            temporal=(True, True, False),
            middle_taps=3,
            attention=True,
        ),
        latent_mean=_WAN_MEAN,
        latent_std=_WAN_STD,
    )


def tiny() -> VaeConfig:
    """A size that two CPU cores decode in real time beside a small transformer (docs/vae.md)."""
    return VaeConfig(
        encoder=TowerConfig(
            widths=(32, 64, 128),
            blocks=1,
            taps=(1, 3, 3),
            temporal=(True, True),
            middle_taps=3,
            attention=False,
        ),
        decoder=TowerConfig(
            widths=(128, 96, 64),
            blocks=1,
            taps=(3, 3, 1),
            temporal=(True, True),
            middle_taps=3,
            attention=False,
        ),
        latent_mean=(0.0,) * 16,
        latent_std=(1.0,) * 16,
        patch=2,
        norm_groups=8,
    )


def _require(holds: bool, field: str, got: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{field}: expected {expected}, got {got}")
