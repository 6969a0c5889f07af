"""Speech from wherever a caller has it, as pieces that the wire can carry.

On the path: caller → **speech** → outgoing → wire. Arrays, bytes, files and iterators of them;
nothing is resampled here, the gateway takes any rate from 8 to 96 kHz.
"""

from __future__ import annotations

import asyncio
import wave
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from talkingmachines.errors import BadInput
from talkingmachines.media import Pcm

# int16 as it is; floats from -1 to 1; bytes as little-endian int16.
Piece = Pcm | NDArray[Any] | bytes
Speech = Piece | Path | str | Iterable[Piece] | AsyncIterable[Piece]

_FILE_PIECE_SECONDS = 0.1
_LIVE_PIECE_SECONDS = 0.02


async def pieces(
    speech: Speech, *, sample_rate: int | None = None, speaker: int = 0
) -> AsyncIterator[Pcm]:
    """`speech` piece by piece.

    Args:
        speech: a path names a sound file; an iterator is asked for more as it is sent.
        sample_rate: Hz of arrays and bytes, which do not know theirs.

    Raises:
        BadInput: it is no mono sound, or its rate is not known.
    """
    match speech:
        case str() | Path():
            whole = await asyncio.to_thread(read_file, Path(speech))
            size = round(_FILE_PIECE_SECONDS * whole.sample_rate)
            for start in range(0, len(whole), size):
                yield piece(whole.part(start, start + size), speaker=speaker)
        case Pcm() | bytes() | np.ndarray():
            yield piece(speech, sample_rate=sample_rate, speaker=speaker)
        case AsyncIterable():
            async for part in speech:
                yield piece(part, sample_rate=sample_rate, speaker=speaker)
        case _:
            for part in speech:
                yield piece(part, sample_rate=sample_rate, speaker=speaker)


async def live(speech: Pcm) -> AsyncIterator[Pcm]:
    """`speech` as a microphone gives it: in real time, and silence ever after."""
    clock = asyncio.get_running_loop().time
    size, begun = round(_LIVE_PIECE_SECONDS * speech.sample_rate), clock()
    for start in count(0, size):
        await asyncio.sleep(begun + (start + size) / speech.sample_rate - clock())
        samples = speech.part(start, start + size).samples
        yield Pcm(samples.ljust(2 * size, b"\0"), speech.sample_rate)


def piece(sound: Piece, *, sample_rate: int | None = None, speaker: int = 0) -> Pcm:
    """One piece of sound as the wire has it.

    Raises:
        BadInput: it is no mono sound, or its rate is not known.
    """
    if isinstance(sound, Pcm):
        return Pcm(sound.samples, sound.sample_rate, speaker=speaker)
    if sample_rate is None:
        raise BadInput("sample_rate", got="nothing", expected="the rate of arrays and bytes, in Hz")
    if isinstance(sound, bytes):
        return Pcm(sound, sample_rate, speaker=speaker)
    return Pcm(_int16(sound).tobytes(), sample_rate, speaker=speaker)


def read_file(path: Path) -> Pcm:
    """All of a sound file, mixed down to one channel.

    16-bit WAV needs nothing else; other formats need PyAV (`talkingmachines[cli]`).

    Raises:
        BadInput: there is no such file, or it holds no sound.
    """
    try:
        with wave.open(str(path)) as file:
            if file.getsampwidth() == 2:
                data = file.readframes(file.getnframes())
                channels = file.getnchannels()
                whole = len(data) // (2 * channels)  # the file may be cut off within a sample
                frames = np.frombuffer(data, "<i2", whole * channels).reshape(-1, channels)
                return Pcm(_mixed(frames).tobytes(), file.getframerate())
    except OSError as error:
        raise BadInput("speech", got=path, expected=f"a sound file: {error.strerror}") from error
    except (wave.Error, EOFError):
        pass  # some other format, or no sound at all
    return _decoded(path)


def _decoded(path: Path) -> Pcm:
    try:
        import av
    except ImportError:
        expected = "a 16-bit WAV file; others need talkingmachines[cli]"
        raise BadInput("speech", got=path, expected=expected) from None
    try:
        with av.open(str(path)) as file:
            if not file.streams.audio:
                raise BadInput("speech", got=path, expected="a file with sound")
            rate = file.streams.audio[0].rate
            resampler = av.AudioResampler("s16", "mono", rate)
            frames = [
                out.to_ndarray()
                for frame in file.decode(audio=0)
                for out in resampler.resample(frame)
            ]
    except av.FFmpegError as error:
        raise BadInput("speech", got=path, expected="a sound file") from error
    if not frames:
        raise BadInput("speech", got=path, expected="a file with sound")
    return Pcm(np.concatenate(frames, axis=1)[0].astype("<i2").tobytes(), rate)


def _mixed(channels: NDArray[np.int16]) -> NDArray[np.int16]:
    """[samples, channels] → [samples]."""
    if channels.shape[1] == 1:
        return channels[:, 0]
    return np.asarray(channels.astype(np.int32).mean(axis=1), "<i2")


def _int16(sound: NDArray[Any]) -> NDArray[np.int16]:
    if sound.ndim != 1:
        raise BadInput("speech", got=f"shape {list(sound.shape)}", expected="[samples], mono")
    if sound.dtype == np.int16:
        return np.asarray(sound, "<i2")
    if not np.issubdtype(sound.dtype, np.floating):
        raise BadInput("speech", got=sound.dtype, expected="int16, or floats from -1 to 1")
    if not np.isfinite(sound).all():
        raise BadInput("speech", got="a value that is not a number", expected="-1 to 1")
    return np.asarray(np.round(np.clip(sound, -1.0, 1.0) * 32767.0), "<i2")
