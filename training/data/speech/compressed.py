"""Compressed sound through PyAV, cut so that nothing moves in time."""

from __future__ import annotations

import io

import numpy as np

from training.data.speech.audio import RATE, Pcm

CORPUS_BITRATE = 20_000  # bits per second: 9 MB per hour
_FRAME = 320  # samples, 20 ms


def opus_file(pcm: Pcm, bitrate: int = CORPUS_BITRATE) -> bytes:
    """An Ogg Opus file of 16 kHz speech. Such files end to end are a legal file again."""
    return _encoded(pcm, "ogg", "libopus", bitrate, frame=_FRAME)


def mp3_file(pcm: Pcm, bitrate: int) -> bytes:
    """An MP3 file of 16 kHz speech. Its header tells the decoder what the encoder's delay was."""
    return _encoded(pcm, "mp3", "libmp3lame", bitrate, frame=0)


def decoded(file: bytes, samples: int) -> Pcm:
    """The first `samples` of a compressed file at 16 kHz, where they were before encoding."""
    import av

    parts = []
    with av.open(io.BytesIO(file), "r") as container:
        resampler = av.AudioResampler("s16", "mono", RATE)
        for frame in container.decode(audio=0):
            parts += resampler.resample(frame)
        parts += resampler.resample(None)
    pcm = np.concatenate([part.to_ndarray()[0] for part in parts])[:samples]
    return np.pad(pcm, (0, samples - len(pcm))).astype(np.float32) * np.float32(1 / 32768)


def _encoded(pcm: Pcm, container_format: str, codec: str, bitrate: int, *, frame: int) -> bytes:
    import av

    whole = np.pad(pcm, (0, -len(pcm) % _FRAME))
    samples = (whole.clip(-1, 1) * 32767).astype(np.int16)
    file = io.BytesIO()
    with av.open(file, "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        assert isinstance(stream, av.AudioStream)
        stream.bit_rate = bitrate
        sound = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        sound.sample_rate = RATE
        sound.pts = 0
        cut = av.AudioResampler(stream.format.name, "mono", RATE, frame_size=frame or None)
        for part in [*cut.resample(sound), None]:
            container.mux(stream.encode(part))
    return file.getvalue()
