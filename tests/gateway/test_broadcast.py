"""A session's media for viewers: one RTP time for all, encoded once, silenced at once."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from services.gateway.adaptation import Adaptation, Rates
from services.gateway.broadcast import PICTURE_RATE, Broadcast
from services.gateway.microphone import Microphone
from services.gateway.opus import RTP_RATE
from services.gateway.timeline import Timeline
from services.runtime.metrics import GatewayMetrics
from talkingmachines.media import Pcm
from talkingmachines.picture import Codec, EncodedPicture, VideoFrame
from talkingmachines.spec import StreamSpec
from tests.virtual_time import run_virtual

SPEC = StreamSpec(
    sample_rate=16_000,
    fps=25,
    latents_per_chunk=3,
    frames_per_latent=4,
    width=64,
    height=64,
    lookahead_samples=0,
)


@pytest.mark.parametrize(("fps", "seconds"), [(25, 3600), (30, 300)])
def test_an_hour_with_holds_has_no_skew(fps: int, seconds: int) -> None:
    """Sound and picture of one media time have one RTP time, which is that of the clock."""
    rng, spec = random.Random(fps), replace(SPEC, fps=fps)
    timeline = Timeline(spec)
    held, before = 0.0, -1
    worst = Fraction(0)
    for frame in range(seconds * fps):
        if rng.random() < 0.01:
            late = rng.uniform(0.021, 3.0)
            timeline.held(frame, late)
            held += late
        picture = round(timeline.frame(frame) * PICTURE_RATE)
        sound = round(timeline.sample(spec.sample_of_frame(frame)) * RTP_RATE)
        worst = max(worst, abs(Fraction(picture, PICTURE_RATE) - Fraction(sound, RTP_RATE)))
        assert picture > before
        assert abs(picture / PICTURE_RATE - frame / fps - held) < 0.002
        before = picture
    assert worst < Fraction(1, 1000)


def test_rtp_time_goes_on_where_media_time_goes_back() -> None:
    timeline = Timeline(SPEC)
    shown = [timeline.frame(number) for number in (10, 11, 12, 13, 11, 12, 13, 14)]
    assert shown == [Fraction(index, SPEC.fps) for index in range(8)]
    assert timeline.sample(SPEC.sample_of_frame(14)) == shown[-1]


@dataclass
class Screen:
    """A viewer that notes when what came."""

    pictures: list[tuple[float, Any]] = field(default_factory=list)
    sounds: list[tuple[float, Any]] = field(default_factory=list)

    def picture(self, packet: av.Packet[Any], *, key: bool) -> bool:
        self.pictures.append((asyncio.get_running_loop().time(), packet))
        return True

    def sound(self, packet: av.Packet[Any]) -> None:
        self.sounds.append((asyncio.get_running_loop().time(), packet))

    def heard(self) -> NDArray[np.int16]:
        """All the sound, decoded, [samples]."""
        decoder = av.CodecContext.create("libopus", "r")
        assert isinstance(decoder, AudioCodecContext)
        decoder.sample_rate, decoder.layout = RTP_RATE, av.AudioLayout("mono")
        decoder.format = av.AudioFormat("s16")
        decoded = [frame for _, packet in self.sounds for frame in decoder.decode(packet)]
        parts = [f.to_ndarray().reshape(-1) for f in decoded]
        return np.concatenate(parts).astype(np.int16)


def broadcast() -> Broadcast:
    return Broadcast(SPEC, voice_bitrate=32_000, metrics=GatewayMetrics(CollectorRegistry()))


def picture(number: int) -> VideoFrame:
    payload = EncodedPicture(Codec.VP8, key_frame=number == 0, payload=b"picture")
    return VideoFrame(turn=0, chunk=0, frame=number, picture=payload)


def tone(first: int, end: int, *, speaker: int = 0, hertz: int = 400) -> Pcm:
    time = np.arange(first, end) / SPEC.sample_rate
    samples = (8000 * np.sin(2 * np.pi * hertz * time)).astype("<i2")
    return Pcm(samples.tobytes(), SPEC.sample_rate, first_sample=first, speaker=speaker)


def frame_of_tone(number: int, *, hertz: int = 400) -> Pcm:
    return tone(SPEC.sample_of_frame(number), SPEC.sample_of_frame(number + 1), hertz=hertz)


def test_packets_leave_at_their_rtp_time() -> None:
    """Also late ones, and after holds: of pictures and sound alike, so that nobody sees skew."""
    screens = [Screen(), Screen(), Screen()]

    async def play() -> None:
        shown, rng, late = broadcast(), random.Random(1), 0.0
        for screen in screens:
            shown.join(screen)
        sending = asyncio.create_task(shown.run())
        clock = asyncio.get_running_loop().time
        for number in range(20 * SPEC.fps):
            if number and number % 100 == 0:
                late += 0.37
                shown.held(number, 0.37)
            jitter = rng.uniform(0, 0.015) if number else 0.0
            await asyncio.sleep(max(0.0, number / SPEC.fps + late + jitter - clock()))
            shown.frame(picture(number))
            shown.say(frame_of_tone(number))
        await asyncio.sleep(0.2)
        sending.cancel()

    run_virtual(play())
    one = screens[0]
    assert len(one.pictures) == 20 * SPEC.fps
    # Where the clock stood still a piece may be cut: its rest is silence, and another begins.
    assert abs(len(one.sounds) - 20 * 50) <= 2 * 5
    offsets = {
        name: np.array([at - packet.pts / rate for at, packet in packets])
        for name, packets, rate in (
            ("picture", one.pictures, PICTURE_RATE),
            ("sound", one.sounds, RTP_RATE),
        )
    }
    for offset in offsets.values():
        assert abs(offset - np.median(offset)).max() < 0.02
        assert abs(offset[-250:].mean() - offset[:250].mean()) < 0.002  # no drift
    assert abs(np.median(offsets["picture"]) - np.median(offsets["sound"])) < 0.005
    for other in screens[1:]:  # the same packets, not others like them
        pairs = zip(one.pictures + one.sounds, other.pictures + other.sounds, strict=True)
        assert all(mine is theirs for (_, mine), (_, theirs) in pairs)


def test_what_is_not_sent_is_silenced() -> None:
    screen = Screen()

    async def play() -> None:
        shown = broadcast()
        shown.join(screen)
        sending = asyncio.create_task(shown.run())
        for number in range(25):
            shown.frame(picture(number))
            shown.say(frame_of_tone(number))
        await asyncio.sleep(0.5)  # a second was given at once: half of it is sent
        shown.interrupt()
        await asyncio.sleep(1)
        sending.cancel()

    run_virtual(play())
    heard = np.abs(screen.heard().astype(int))
    loud = np.flatnonzero(heard > 800)
    assert 0.4 < loud[-1] / RTP_RATE < 0.55
    assert len(screen.sounds) == 50  # silence is sent, so that the stream goes on


def test_two_speakers_are_heard_together() -> None:
    screen = Screen()

    async def play() -> None:
        shown = broadcast()
        shown.join(screen)
        sending = asyncio.create_task(shown.run())
        for number in range(25):
            shown.frame(picture(number))
            shown.say(frame_of_tone(number, hertz=400))
            shown.say(frame_of_tone(number, hertz=1000))
        await asyncio.sleep(1.2)
        sending.cancel()

    run_virtual(play())
    heard = screen.heard()[RTP_RATE // 4 : RTP_RATE * 3 // 4]
    spectrum = np.abs(np.fft.rfft(heard))
    strongest = sorted(np.argsort(spectrum)[-2:] * 2)  # in Hz: half a second has bins of 2
    assert strongest == pytest.approx([400, 1000], abs=4)


def sound_of(samples: int, at: int, *, level: int = 1000) -> AudioFrame:
    frame = AudioFrame.from_ndarray(
        np.full((1, 2 * samples), level, np.int16), format="s16", layout="stereo"
    )
    frame.sample_rate, frame.pts = RTP_RATE, at
    return frame


def test_a_microphone_has_no_gaps() -> None:
    microphone = Microphone()
    heard = [
        *microphone.heard(sound_of(960, 0), 0.0),
        *microphone.heard(sound_of(960, 2880), 0.06),  # two packets were lost
        *microphone.stalled(0.9),  # not for long enough
        *microphone.stalled(1.26),  # 1.2 s without any
        *microphone.heard(sound_of(960, 3840 + 57_600), 1.3),  # and it goes on there
    ]
    assert [len(pcm) for pcm in heard] == [960, 1920, 960, 57_600, 960]
    assert [int(pcm.array().max()) for pcm in heard] == [1000, 0, 1000, 0, 1000]
    microphone.on = False
    assert not microphone.heard(sound_of(960, 3840 + 58_560), 1.32)[0].array().any()


def test_the_rate_follows_the_network_in_few_steps() -> None:
    """A network of 400 kbit/s: found within seconds, kept, and left when it gets wider."""
    adaptation = Adaptation(Rates(), 0.0)
    changes = []
    for tick in range(600):
        now, takes = tick / 5, 400_000 if tick < 300 else 3_000_000
        sent = min(adaptation.rate, 1.1 * takes)
        estimate = takes if adaptation.rate > takes else min(takes, 1.5 * sent)
        if adaptation.estimated(int(estimate), sent=sent, now=now):
            changes.append((now, adaptation.rate))
    assert next(now for now, rate in changes if rate < 400_000) < 4
    assert all(rate < 400_000 for now, rate in changes if 4 < now < 60)
    assert adaptation.rate > 1_500_000
    assert len(changes) <= 10


def test_a_quiet_stream_is_not_taken_for_a_full_network() -> None:
    adaptation = Adaptation(Rates(), 0.0)
    changed = [adaptation.estimated(150_000, sent=100_000, now=tick) for tick in range(60)]
    assert not any(changed)
