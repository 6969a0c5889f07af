"""Let a character say a recording: a picture and a wav in, an mp4 out, sound in sync.

    python -m training.stream --model models/tiny --picture face.png --speech hello.wav --out a.mp4

One session, as a fleet would run it, in one process: speech in chunks with their look-ahead →
score engine → latents → VAE engine → frames → H.264 beside the same speech in AAC.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.score import machine
from services.score.checkpoint.opening import open_checkpoint
from services.score.contract import Avatar, Chunk, Drawn, LogTail, Mode, Rectangle, Speech
from services.score.engine import Engine as ScoreEngine
from services.score.engine import Limits as ScoreLimits
from services.vae import checkpoint
from services.vae.admission import Limits as VaeLimits
from services.vae.engine import Engine as VaeEngine
from services.vae.pixels import Pixels
from services.vae.runner import place
from services.vae.session import Chunk as LatentChunk
from services.vae.session import Decoded, Failed, Opening
from talkingmachines.spec import StreamSpec

Pcm16 = NDArray[np.int16]

_NAME = "stream"
_UNHURRIED = 3600.0  # seconds of slack: a file is nobody's deadline
# Where a face is when nobody says so: as our characters sit in their pictures.
_FACE = (0.18, 0.22, 0.82, 0.97)


def talk(
    score: ScoreEngine,
    vae: VaeEngine,
    picture: Tensor,
    face: Rectangle,
    speech: Pcm16,
    *,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Frames uint8 [F, H, W, 3] of latent after latent, until the speech [samples] is said.

    Raises:
        BadInput: a picture that does not fit the model.
        EngineFailure: the session ended early.
    """
    spec = score.spec
    anchor = vae.encode(picture[None])
    digest = hashlib.sha256(anchor.numpy().tobytes()).hexdigest()
    score.open(_NAME, Avatar(digest, anchor, faces=(face,)), seed=seed, tail=LogTail())
    vae.open(
        _NAME,
        Opening(
            spec=spec,
            pixels=Pixels.RGB24,
            anchor=anchor,
            tail=anchor[:, :0],
            next_chunk=0,
            deadline=time.monotonic() + _UNHURRIED,
        ),
    )
    for number, pcm in enumerate(pieces(speech, spec)):
        heard = (Speech(Mode.SPEAKING, pcm),)
        score.submit(_NAME, Chunk(turn=0, chunk=number, speech=heard, slack=_UNHURRIED))
        for drawn in score.step():
            if not isinstance(drawn, Drawn):
                raise drawn.error
            due = time.monotonic() + _UNHURRIED
            vae.submit(_NAME, LatentChunk(drawn.chunk, drawn.latents, due))
        score.settle()
        while vae.busy:
            for decoded in vae.step():
                match decoded:
                    case Failed(error=error):
                        raise error
                    case Decoded(frames=frames):
                        yield frames


def pieces(speech: Pcm16, spec: StreamSpec) -> Iterator[Pcm16]:
    """The speech of every chunk with the look-ahead behind it, silence after the end."""
    length = spec.samples_per_chunk
    chunks = -(-len(speech) // length)
    padded = np.pad(speech, (0, chunks * length + spec.lookahead_samples - len(speech)))
    for number in range(chunks):
        yield padded[number * length : (number + 1) * length + spec.lookahead_samples]


def read_speech(path: Path, rate: int) -> Pcm16:
    """Any sound file as mono samples at `rate` Hz."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
    parts: list[Pcm16] = []
    with av.open(str(path)) as file:
        for frame in file.decode(audio=0):
            parts += [part.to_ndarray()[0] for part in resampler.resample(frame)]
    parts += [part.to_ndarray()[0] for part in resampler.resample(None)]
    return np.concatenate(parts).astype(np.int16)


def read_picture(path: Path, width: int, height: int) -> Tensor:
    """A picture's middle, cut to the stream's shape and brought to its size: uint8 [H, W, 3]."""
    with av.open(str(path)) as file:
        frame = next(file.decode(video=0))
    across = min(frame.width, frame.height * width // height)
    down = min(frame.height, frame.width * height // width)
    left, top = (frame.width - across) // 2, (frame.height - down) // 2
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24").astype(np.uint8)
    pixels = pixels[top : top + down, left : left + across]
    cut = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    resized = cut.reformat(width=width, height=height, interpolation="AREA")
    return torch.from_numpy(resized.to_ndarray(format="rgb24"))


class Mp4:
    """An mp4 being written: frames from time 0, speech from time 0."""

    def __init__(self, path: Path, spec: StreamSpec) -> None:
        self._file = av.open(str(path), "w")
        self._spec, self._frames = spec, 0
        self._video = self._file.add_stream("libx264", rate=spec.fps, options={"crf": "18"})
        self._video.width, self._video.height = spec.width, spec.height
        self._video.pix_fmt = "yuv420p"
        self._audio = self._file.add_stream("aac", rate=spec.sample_rate, layout="mono")

    def show(self, frames: Tensor) -> None:
        """Append frames uint8 [F, H, W, 3]."""
        for pixels in frames.numpy():
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = self._frames, Fraction(1, self._spec.fps)
            self._frames += 1
            self._file.mux(self._video.encode(frame))

    def close(self, speech: Pcm16) -> None:
        """Add the speech, as long as the picture, and finish the file."""
        length = self._frames * self._spec.sample_rate // self._spec.fps
        sound = np.pad(speech, (0, max(0, length - len(speech))))[None, :length]
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="s16", layout="mono")
        frame.sample_rate, frame.pts = self._spec.sample_rate, 0
        frame.time_base = Fraction(1, self._spec.sample_rate)
        for part in av.AudioResampler("fltp", "mono", self._spec.sample_rate).resample(frame):
            self._file.mux(self._audio.encode(part))
        self._file.mux(self._audio.encode(None))
        self._file.mux(self._video.encode(None))
        self._file.close()


def engines(model: Path) -> tuple[ScoreEngine, VaeEngine]:
    """Both engines of the model folder, on the CPU."""
    device = torch.device("cpu")
    score = machine.load(open_checkpoint(model / "score"), device, limits=ScoreLimits())
    runner = place(checkpoint.load(model / "vae"), device)
    vae = VaeEngine(runner, VaeLimits(memory_bytes=1 << 30))
    vae.prepare(score.spec)
    return score, vae


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="a folder with score/ and vae/")
    add("--picture", type=Path, required=True)
    add("--speech", type=Path, required=True, help="any sound file")
    add("--out", type=Path, required=True, help="the mp4")
    add("--face", type=float, nargs=4, default=_FACE, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"))
    add("--seed", type=int, default=0)
    asked = parser.parse_args()
    score, vae = engines(asked.model)
    spec = score.spec
    speech = read_speech(asked.speech, spec.sample_rate)
    picture = read_picture(asked.picture, spec.width, spec.height)
    began, shown, film = time.monotonic(), 0, Mp4(asked.out, spec)
    for frames in talk(score, vae, picture, Rectangle(*asked.face), speech, seed=asked.seed):
        film.show(frames)
        shown += len(frames)
    film.close(speech)
    seconds = time.monotonic() - began
    sys.stdout.write(f"{shown} frames in {seconds:.1f} s: {shown / seconds:.1f} a second\n")


if __name__ == "__main__":
    main()
