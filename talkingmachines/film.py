"""A session's pictures and sound as an MP4 file: H.264 and AAC on the session's own clock.

Needs PyAV (`talkingmachines[cli]`), and no ffmpeg.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from numpy.typing import NDArray

from talkingmachines.errors import BadInput
from talkingmachines.media import Pcm
from talkingmachines.picture import Codec, EncodedPicture, PixelFormat, RawPicture, VideoFrame
from talkingmachines.spec import StreamSpec

_LAYOUTS = {PixelFormat.RGB24: "rgb24", PixelFormat.I420: "yuv420p"}
_QUALITY = "18"  # constant rate factor of x264: hard to tell from the original


class Film:
    """Written while entered. Frames and sound come in the order of a session.

    Frames that are missing leave the one before them on the screen; speakers are mixed.
    """

    def __init__(self, path: Path, spec: StreamSpec) -> None:
        self._path = path
        self._spec = spec
        self._first: int | None = None  # frame with which the film begins
        self._mix = np.zeros(0, np.int32)  # sound that is not written yet
        self._written = 0  # samples
        self._jpeg = av.CodecContext.create("mjpeg", "r")
        self.frames = 0

    def __enter__(self) -> Self:
        self._was_there = self._path.exists()
        try:
            self._path.touch()  # PyAV opens it with the first packet only
        except OSError as error:
            expected = f"a file that can be written: {error.strerror}"
            raise BadInput("out", got=self._path, expected=expected) from error
        self._file = av.open(str(self._path), "w", format="mp4")
        spec = self._spec
        self._video: VideoStream = self._file.add_stream("libx264", rate=spec.fps)
        self._video.width, self._video.height = spec.width, spec.height
        self._video.pix_fmt = "yuv420p"
        self._video.options = {"crf": _QUALITY, "preset": "veryfast"}
        self._sound: AudioStream = self._file.add_stream("aac", rate=spec.sample_rate)
        self._sound.layout = "mono"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None and self._first is not None:
                self._flush(len(self._mix))
                self._file.mux(self._video.encode(None))
                self._file.mux(self._sound.encode(None))
        finally:
            self._file.close()
            if self._first is None and not self._was_there:
                self._path.unlink(missing_ok=True)

    @property
    def seconds(self) -> float:
        """How long it is so far."""
        return self._written / self._spec.sample_rate

    def frame(self, frame: VideoFrame) -> None:
        if self._first is None:
            self._first = frame.frame
        picture = self._picture(frame.picture)
        picture.pts = frame.frame - self._first
        picture.time_base = Fraction(1, self._spec.fps)
        self._file.mux(self._video.encode(picture))
        self._flush(self._at(self._spec.sample_of_frame(frame.frame)))
        self.frames += 1

    def sound(self, pcm: Pcm) -> None:
        start = self._at(pcm.first_sample)
        if self._first is None or start < 0:
            return  # it belongs to a frame before the first
        missing = start + len(pcm) - len(self._mix)
        if missing > 0:
            self._mix = np.concatenate([self._mix, np.zeros(missing, np.int32)])
        self._mix[start : start + len(pcm)] += pcm.array()

    def _at(self, sample: int) -> int:
        """Where a sample of the session's clock is in what waits to be written."""
        first = self._spec.sample_of_frame(self._first or 0)
        return sample - first - self._written

    def _flush(self, samples: int) -> None:
        if samples <= 0:
            return
        mixed = np.clip(self._mix[:samples], -32768, 32767).astype(np.int16)
        mixed = np.pad(mixed, (0, samples - len(mixed)))  # sound that never came
        frame = av.AudioFrame.from_ndarray(mixed[None], format="s16", layout="mono")
        frame.sample_rate = self._spec.sample_rate
        frame.pts = self._written
        frame.time_base = Fraction(1, self._spec.sample_rate)
        self._file.mux(self._sound.encode(frame))
        self._mix = self._mix[samples:]
        self._written += samples

    def _picture(self, picture: RawPicture | EncodedPicture) -> av.VideoFrame:
        if isinstance(picture, EncodedPicture):
            assert picture.codec is Codec.JPEG, "asked for by whoever makes films"
            (decoded,) = self._jpeg.decode(av.Packet(picture.payload))
            assert isinstance(decoded, av.VideoFrame)
            return decoded.reformat(format="yuv420p")
        return av.VideoFrame.from_ndarray(pixels(picture), format=_LAYOUTS[picture.pixel_format])


def pixels(picture: RawPicture) -> NDArray[np.uint8]:
    """RGB24: [height, width, 3]; I420: [height * 3 / 2, width], the planes one after the other."""
    flat = np.frombuffer(picture.pixels, np.uint8)
    if picture.pixel_format is PixelFormat.RGB24:
        return flat.reshape(picture.height, picture.width, 3)
    return flat.reshape(picture.height * 3 // 2, picture.width)


def sound_lag(film: Path, sounds: Sequence[Pcm]) -> float:
    """How much later, in seconds, a film's sound is than that of its session; mixed in order.

    Found by correlation over the clock of the film, whose pictures begin at 0.
    """
    with av.open(str(film)) as file:
        parts = [(frame.time or 0.0, frame.to_ndarray()[0]) for frame in file.decode(audio=0)]
        rate = file.streams.audio[0].rate
    end = max(pcm.end_sample for pcm in sounds)
    given, found = np.zeros(end, np.float64), np.zeros(end, np.float64)
    for pcm in sounds:
        given[pcm.first_sample : pcm.end_sample] += pcm.array()
    for time, part in parts:
        start = round(time * rate)
        kept = part[max(0, -start) :][: max(0, end - max(0, start))]
        found[max(0, start) : max(0, start) + len(kept)] = kept
    size = 2 * end
    product = np.fft.irfft(np.fft.rfft(found, size) * np.fft.rfft(given, size).conj(), size)
    peak = int(np.argmax(product))
    return (peak - size if peak > end else peak) / rate
