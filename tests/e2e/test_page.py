"""A call as a person has it: real Chromium, the real fleet, the shipped model, a voice from a file.

One call, from the upload of a character to its end: what is true of it is told by the browser's
own clocks (RTP time of what is heard and shown), so that a slow machine makes it slow, not wrong.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.async_api import Browser

from tests.e2e.fleet import ROOT, RunningFleet, fleet
from tests.e2e.model import CHARACTERS
from tests.web.chromium import Visitor, chromium, installed, recording, write_voice

pytestmark = pytest.mark.timeout(1200)

MODEL = ROOT / "models" / "tiny"
QUESTION = ROOT / "tests" / "llm_bridge" / "clips" / "question.ogg"
SAID = re.compile("talk about today", re.IGNORECASE)
GREETING = (
    "Good morning, and welcome. I am so glad that you called, because I was about to tell someone "
    "about the long walk that I took along the river, where the willows bend over the water. "
) * 3
_VIDEO, _AUDIO = 90_000, 48_000  # RTP ticks per second
_AUDIBLE = 0.01  # of full scale
_CHUNK = 0.48  # seconds, of the shipped model
_FPS = 25
_MOST_LEFT_OUT = 5  # frames that a busy browser leaves out at once; more: the picture was held
_CLOSES = 0.2  # seconds that a mouth takes to come to rest


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    installed()
    folder = tmp_path_factory.mktemp("shipped")
    with fleet(folder, MODEL=str(MODEL), SESSIONS="1", bridge={"LOCAL__SPEECH": "flite"}) as one:
        yield one


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    voice = write_voice(tmp_path / "voice.wav", recording(QUESTION), 3.0)
    async with chromium(voice) as one:
        yield one


async def test_a_call_face_to_face(browser: Browser, real: RunningFleet) -> None:
    visitor = await Visitor.come(browser, "about:blank")
    page = visitor.page
    await page.add_init_script(_RECORDER)
    await page.goto(real.addresses.page)
    await _add_character(visitor)

    await page.get_by_role("button", name="Call Nora").click()
    await page.get_by_role("button", name="Mute").click()
    await visitor.live()
    await page.evaluate("record()")

    # It greets: lips move while it is heard, pictures come at the stream's rate.
    await visitor.state("Speaking")
    await visitor.heard("character", "Good morning")
    await _lasts(visitor, 4.0)
    greeting = await _recorded(visitor)
    assert np.median(np.diff(greeting.frame_time)) == pytest.approx(1 / _FPS, abs=0.002)
    assert greeting.lost_frames <= 0.02 * greeting.decoded

    # Talking over it stops it.
    await page.get_by_role("button", name="Unmute").click()
    await visitor.heard("character", "Good morning", kind="cut")
    said = page.locator(".caption.from-user", has_text=SAID)  # the sentence once from its start
    await said.first.wait_for()
    await page.get_by_role("button", name="Mute").click()

    # It answers, and rests when it has said all.
    await visitor.state("Speaking")
    await visitor.state("Listening")
    await _lasts(visitor, 2.5)
    talk = await _recorded(visitor)
    speaking, resting = talk.motion(audible=True), talk.motion(audible=False)
    assert speaking > 1.3 * resting > 0

    # The button stops it, too: silence within 0.3 s, a listening face within a chunk.
    await _type(visitor, "Tell me more about it, please.")
    await visitor.until(
        "() => speaks() && (mark(), document.getElementById('interrupt').click(), 1)"
    )
    await visitor.state("Listening")
    await _lasts(visitor, 2.0)
    stopped = await _recorded(visitor)
    assert 0 <= stopped.last_sound() - stopped.marked_sound <= 0.3
    assert stopped.restless(speaking, resting) <= _CHUNK + _CLOSES

    # The gateway dies: the page comes back by itself, and the conversation goes on.
    real.kill("services.gateway")
    await visitor.until("() => peers.length > 1")
    await visitor.until("() => !document.getElementById('still').checkVisibility()")
    answers = await page.locator(".caption.from-character").count()
    await _type(visitor, "Are you still there?")
    more = "(n) => document.querySelectorAll('.caption.from-character').length > n"
    await visitor.until(more, answers)
    await visitor.hang_up()
    assert visitor.complaints == []
    await visitor.leave()


async def test_two_browsers_stay_apart_and_a_reload_goes_on(
    browser: Browser, running: RunningFleet
) -> None:
    """With the small random model, of which this machine carries two calls."""
    names, visitors = ("Peter", "Maria"), list[Visitor]()
    for who, name in zip(CHARACTERS, names, strict=False):
        visitor = await Visitor.come(browser, running.addresses.page)
        visitors.append(visitor)
        await visitor.page.get_by_text(
            "Push to talk"
        ).first.click()  # the microphone says other things
        await visitor.call(who.capitalize())
        await _type(visitor, f"My name is {name}.")
    for visitor, name in zip(visitors, names, strict=True):
        await visitor.heard("character", name)
    for visitor, other in zip(visitors, reversed(names), strict=True):
        assert not [text for text in await visitor.captions() if other in text]

    first, second = visitors
    await first.page.reload()
    await first.live()
    await _type(first, "Are you still there?")
    await first.page.locator(".caption.from-character").first.wait_for()
    seen = await second.decoded()
    await second.until("(n) => video.getVideoPlaybackQuality().totalVideoFrames > n", seen + 10)
    for visitor in visitors:
        await visitor.hang_up()
        assert visitor.complaints == []
        await visitor.leave()


async def _add_character(visitor: Visitor) -> None:
    page = visitor.page
    await page.get_by_role("button", name="Add a character").click()
    await page.locator("#upload-picture").set_input_files(MODEL / "avatars" / "ada.png")
    await page.get_by_label("Name").fill("Nora")
    await page.get_by_text("Who it is").click()
    await page.get_by_label("Greeting").fill(GREETING)
    await page.get_by_role("button", name="Add", exact=True).last.click()
    await page.get_by_role("button", name="Call Nora").wait_for()


async def _type(visitor: Visitor, text: str) -> None:
    await visitor.page.get_by_label("Type instead of talking").fill(text)
    await visitor.page.keyboard.press("Enter")


async def _lasts(visitor: Visitor, seconds: float) -> None:
    """Wait until so much more of the call was shown."""
    frames = await visitor.page.evaluate("recorded.frames.length")
    await visitor.until("(n) => recorded.frames.length >= n", frames + int(seconds * _FPS * 0.8))
    await asyncio.sleep(0.2)


@dataclass(frozen=True)
class Record:
    """What was seen and heard, on RTP time; seconds."""

    frame_time: NDArray[np.float64]
    mouth: NDArray[np.float64]  # [frame, pixel]
    frame_loud: NDArray[np.bool_]  # whether something was heard while the frame was shown
    sound_time: NDArray[np.float64]
    loud: NDArray[np.bool_]
    marked_sound: float
    marked_frame: float
    decoded: int
    lost_frames: int

    @property
    def moved(self) -> NDArray[np.float64]:
        """How much the mouth changed with each frame, from the second on."""
        return np.asarray(np.abs(np.diff(self.mouth, axis=0)).mean(axis=1))

    def motion(self, *, audible: bool) -> float:
        """The mouth's mean motion while speech is heard, or in silence that lasts."""
        loud = self.frame_loud.astype(float)
        around = np.convolve(loud, np.ones(13) / 13, "same")[1:]  # half a second
        wanted = around > 0.6 if audible else around == 0
        assert wanted.sum() > 25, "too little of it to tell"
        return float(self.moved[wanted].mean())

    def last_sound(self) -> float:
        return float(self.sound_time[self.loud].max())

    def restless(self, speaking: float, resting: float) -> float:
        """Media time from the mark on until the face rested for good: a picture that is held,
        because nothing was drawn ahead of the interruption, takes none of it."""
        calm = np.convolve(self.moved, np.ones(3) / 3, "same")
        after = self.frame_time[1:] > self.marked_frame
        still_moving = np.flatnonzero(after & (calm > (speaking + resting) / 2))
        if not len(still_moving):
            return 0.0
        steps = np.diff(self.frame_time)[: still_moving.max() + 1][after[: still_moving.max() + 1]]
        frames = steps * _FPS
        left_out = (np.abs(frames - frames.round()) < 0.1) & (frames < _MOST_LEFT_OUT)
        return float(np.where(left_out, steps, 1 / _FPS).sum())


async def _recorded(visitor: Visitor) -> Record:
    raw: dict[str, Any] = await visitor.page.evaluate("takeRecord()")
    frames, sounds, mark = raw["frames"], raw["sounds"], raw["mark"]
    return Record(
        frame_time=np.array([frame["rtp"] for frame in frames]) / _VIDEO,
        mouth=np.array([frame["mouth"] for frame in frames], float),
        frame_loud=np.array([frame["level"] > _AUDIBLE for frame in frames]),
        sound_time=np.array([rtp for rtp, _ in sounds]) / _AUDIO,
        loud=np.array([level > _AUDIBLE for _, level in sounds]),
        marked_sound=mark["sound"] / _AUDIO,
        marked_frame=mark["frame"] / _VIDEO,
        decoded=raw["decoded"],
        lost_frames=raw["dropped"],
    )


# Remembers the page's connections, and writes down what they bring: for each frame its RTP time
# and the mouth as a few grey pixels, and every 10 ms which sound is heard, how loud.
_RECORDER = """
const peers = window.peers = [];
window.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(...given) { super(...given); peers.push(this); }
};
const recorded = window.recorded = { frames: [], sounds: [], mark: { sound: 0, frame: 0 } };
const ear = () => peers.at(-1).getReceivers().find(({ track }) => track?.kind === "audio");
let level = () => 0;
const listen = () => {
  const context = new AudioContext();
  const analyser = context.createAnalyser();
  analyser.fftSize = 512;
  context.createMediaStreamSource(new MediaStream([ear().track])).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  level = () => {
    if (document.getElementById("video").muted) return 0; // the page is quick to be silent itself
    analyser.getFloatTimeDomainData(samples);
    return Math.sqrt(samples.reduce((sum, it) => sum + it * it, 0) / samples.length);
  };
};
window.record = () => {
  listen();
  recorded.begun ??= begin();
};
const begin = () => {
  const video = document.getElementById("video");
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [32, 20];
  const paper = canvas.getContext("2d", { willReadFrequently: true });
  const watch = (_now, { rtpTimestamp }) => {
    const [w, h] = [video.videoWidth, video.videoHeight];
    paper.drawImage(video, 0.33 * w, 0.64 * h, 0.34 * w, 0.22 * h, 0, 0, 32, 20);
    const { data } = paper.getImageData(0, 0, 32, 20);
    const mouth = [];
    for (let at = 0; at < data.length; at += 4) mouth.push((data[at] + data[at + 1]) / 2);
    if (rtpTimestamp) recorded.frames.push({ rtp: rtpTimestamp, mouth, level: level() });
    video.requestVideoFrameCallback(watch);
  };
  video.requestVideoFrameCallback(watch);
  setInterval(() => {
    const now = ear()?.getSynchronizationSources()[0];
    if (now) recorded.sounds.push([now.rtpTimestamp, level()]);
  }, 10);
  return true;
};
let loud = 0;
window.speaks = () => (loud = level() > 0.02 ? loud + 1 : 0) > 2; // in the middle of a word
window.mark = () => {
  recorded.mark = { sound: recorded.sounds.at(-1)[0], frame: recorded.frames.at(-1).rtp };
};
window.takeRecord = async () => {
  const stats = [...(await peers.at(-1).getStats()).values()];
  const video = stats.find(({ type, kind }) => type === "inbound-rtp" && kind === "video");
  const taken = { ...recorded, decoded: video.framesDecoded, dropped: video.framesDropped };
  Object.assign(recorded, { frames: [], sounds: [] });
  return taken;
};
"""
