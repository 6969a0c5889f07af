"""Pictures of the page for the documentation: `python -m tests.e2e.screens docs/images`.

Real Chromium on the real fleet with the shipped model.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.e2e.fleet import ROOT, fleet
from tests.web.chromium import Visitor, chromium, recording, write_voice

QUESTION = ROOT / "tests" / "llm_bridge" / "clips" / "question.ogg"
ASKED = "What would you like to talk about today?"
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
    "color_scheme": "dark",
}


async def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        there = Path(name)
        voice = write_voice(there / "voice.wav", recording(QUESTION), 8.0)
        data = there / "fleet"
        data.mkdir()
        with fleet(data, MODEL=str(ROOT / "models" / "tiny"), SESSIONS="1") as running:
            async with chromium(voice) as browser:
                page = running.addresses.page
                for device, given, who in (("desktop", DESKTOP, "Ada"), ("phone", PHONE, "Esi")):
                    visitor = await Visitor.come(browser, page, **given)
                    await visitor.page.get_by_role("button", name="Call ").wait_for()
                    await asyncio.sleep(2)  # all portraits are there
                    await _take(visitor, folder / f"page-lobby-{device}.jpg")
                    await visitor.call(who)
                    await visitor.page.get_by_role("button", name="Mute").click()
                    answers = visitor.page.locator(".caption.from-character")
                    await visitor.page.get_by_label("Type instead of talking").fill(ASKED)
                    await visitor.page.keyboard.press("Enter")
                    await answers.first.wait_for()
                    await asyncio.sleep(0.8)  # in the middle of a word
                    await _take(visitor, folder / f"page-call-{device}.jpg")
                    await visitor.hang_up()
                    await visitor.leave()


async def _take(visitor: Visitor, path: Path) -> None:
    await visitor.page.screenshot(path=path, type="jpeg", quality=82)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
