"""Real Chromium without a screen, and the page as a person uses it."""

from __future__ import annotations

import shutil
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.async_api import Browser, Page, async_playwright

from tests.web.film import SIDE

MICROPHONE_RATE = 48_000
PATIENCE = 90_000  # ms for anything at all, on a machine that is busy with other things

_FLAGS = [
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-features=PreloadTopChromeWebUI,Translate,MediaRouter",
]


def installed() -> str:
    """The path of Chromium; tests that need it are skipped, loudly, where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if (path := shutil.which(name)) is not None:
            return path
    pytest.skip("NOT RUN: no Chromium; apt-get install --no-install-recommends chromium")


@asynccontextmanager
async def chromium(microphone: Path, *flags: str) -> AsyncIterator[Browser]:
    """A browser whose microphone plays a WAV file, over and over."""
    hears = f"--use-file-for-fake-audio-capture={microphone}"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=installed(), args=[*_FLAGS, hears, *flags]
        )
        try:
            yield browser
        finally:
            await browser.close()


def write_voice(path: Path, *parts: NDArray[np.float32] | float) -> Path:
    """A WAV file for the microphone: sounds (-1 to 1), and seconds of silence."""
    samples = [
        np.zeros(int(part * MICROPHONE_RATE)) if isinstance(part, float) else part for part in parts
    ]
    pcm = (np.concatenate(samples) * 32_000).astype("<i2").tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(MICROPHONE_RATE)
        file.writeframes(pcm)
    return path


def recording(path: Path) -> NDArray[np.float32]:
    """Any sound file, as the microphone would hear it."""
    resampler = av.AudioResampler("flt", "mono", MICROPHONE_RATE)
    with av.open(str(path)) as file:
        frames = [part for frame in file.decode(audio=0) for part in resampler.resample(frame)]
    sound = np.concatenate([frame.to_ndarray().ravel() for frame in frames])
    return np.asarray(0.7 * sound / np.abs(sound).max(), np.float32)


@dataclass
class Visitor:
    """Somebody before the page."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    @classmethod
    async def come(cls, browser: Browser, url: str, **given: Any) -> Visitor:
        """A visit of its own: nothing is kept from others."""
        given = {"permissions": ["microphone"], "viewport": {"width": 1000, "height": 700}} | given
        context = await browser.new_context(**given)
        context.set_default_timeout(PATIENCE)
        visitor = cls(await context.new_page())
        visitor.page.on("console", visitor._note)
        visitor.page.on("pageerror", lambda error: visitor.complaints.append(str(error)))
        await visitor.page.goto(url)
        return visitor

    def _note(self, message: Any) -> None:
        # Whatever the policy forbids, and whatever fails in the page, is said here.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    async def leave(self) -> None:
        await self.page.context.close()

    async def choose(self, name: str) -> None:
        await self.page.get_by_role("radio", name=name, exact=True).check(force=True)

    async def call(self, name: str) -> None:
        """Call, and wait for the first picture."""
        await self.choose(name)
        await self.page.get_by_role("button", name=f"Call {name}").click()
        await self.live()

    async def live(self) -> None:
        await self.page.wait_for_selector("#picture[data-state=live], #ended:not([hidden])")
        assert not await self.page.locator("#ended").is_visible(), await self.page.inner_text(
            "#ended"
        )

    async def hang_up(self) -> None:
        await self.page.get_by_role("button", name="Hang up").click()
        await self.page.wait_for_selector("#ended:not([hidden])")

    async def until(self, script: str, argument: Any = None) -> None:
        """Wait until a function of the page's gives something true."""
        await self.page.wait_for_function(script, arg=argument, polling=50)

    async def heard(self, who: str, text: str, *, kind: str = "") -> None:
        """Wait for a caption of `user` or `character` that has this text; `kind` partial or cut."""
        selector = f".caption.from-{who}{f'.{kind}' if kind else ''}"
        await self.page.locator(selector).filter(has_text=text).first.wait_for()

    async def state(self, said: str) -> None:
        await self.page.locator("#call-state").filter(has_text=said).wait_for()

    async def captions(self) -> list[str]:
        return await self.page.locator(".caption:visible .caption-text").all_inner_texts()

    async def picture(self) -> tuple[int, int]:
        """Serial number of the stream, and number of the frame, as a canvas shows them."""
        shown: Any = await self.page.wait_for_function(_SIGNED, arg=SIDE, polling=50)
        signed = int(await shown.json_value())
        return (signed >> 16) & 0xFF, signed & 0xFFFF

    async def decoded(self) -> int:
        """Pictures that the video element got, since its connection was made."""
        return int(
            await self.page.evaluate(
                "() => document.getElementById('video').getVideoPlaybackQuality().totalVideoFrames"
            )
        )


# What the squares say, read in the middle of each, row by row; 0 while there is no picture.
_SIGNED = """(side) => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 5 * side;
  const paper = canvas.getContext("2d");
  paper.drawImage(document.getElementById("video"), 0, 0, canvas.width, canvas.height);
  const { data } = paper.getImageData(0, 0, canvas.width, canvas.height);
  const middle = (square) => 5 * square + 2;
  let signed = 0;
  for (let n = 0; n < side * side; n++) {
    const at = 4 * (middle(Math.floor(n / side)) * canvas.width + middle(n % side));
    signed = 2 * signed + (data[at] > 128);
  }
  return signed >= 1 << (side * side - 1) ? signed : 0;
}"""
