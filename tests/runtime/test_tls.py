"""Who may connect: TLS, mutual TLS, and the refusal to speak in the clear."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.runtime.endpoint import CannotListen
from services.runtime.settings import Listen, PeerTls, is_loopback
from talkingmachines.errors import Unavailable
from tests.runtime.certificates import Authority
from tests.runtime.echo import EchoStub, Running, running, text


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "theirs")


async def reaches(there: Running, tls: PeerTls | None) -> bool:
    """Whether a client with this security gets its answer, on a unary call and on a stream."""
    async with there.channel(tls=tls) as channel:
        stub = EchoStub(channel)
        try:
            assert await stub.say(text("hello"), timeout=5) == text("hello")
            call = stub.chat()
            await call.write(text("hello"))
            assert await call.read() == text("hello")
            call.cancel()
        except Unavailable:
            return False
        return True


async def test_tls_answers_who_trusts_it_and_refuses_plaintext(
    ours: Authority, theirs: Authority
) -> None:
    async with running(tls=ours.server()) as there:
        assert await reaches(there, ours.client())
        assert not await reaches(there, None)
        assert not await reaches(there, theirs.client())


async def test_mutual_tls_answers_known_clients_alone(ours: Authority, theirs: Authority) -> None:
    async with running(tls=ours.server(clients=ours)) as there:
        assert await reaches(there, ours.client(shows=ours))
        assert not await reaches(there, ours.client(shows=theirs, name="stranger"))
        assert not await reaches(there, ours.client())
        assert not await reaches(there, None)


async def test_renewed_certificates_are_used_without_a_restart(
    ours: Authority, theirs: Authority
) -> None:
    files = ours.server("renewed")
    async with running(tls=files) as there:
        assert await reaches(there, ours.client())
        theirs.issue("renewed")
        os.utime(files.certificate, ns=(1, 1))  # however coarse the file system's clock is
        assert await reaches(there, theirs.client())
        assert not await reaches(there, ours.client())
        files.key.unlink()
        os.utime(files.certificate, ns=(2, 2))
        assert await reaches(there, theirs.client())  # half written: the old ones go on


async def test_files_that_are_no_certificates_are_named(ours: Authority, tmp_path: Path) -> None:
    good, other = ours.server(clients=ours), ours.server("other")
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("garbage")
    for wrong, named in (
        ({"certificate": garbage}, "garbage.pem"),
        ({"key": other.key}, "other.key"),
        ({"client_authorities": garbage}, "garbage.pem"),
    ):
        with pytest.raises(CannotListen, match=named):
            async with running(tls=good.model_copy(update=wrong)):
                pass


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "gateway.example", "127.example"])
def test_no_port_beyond_this_machine_without_tls(host: str, ours: Authority) -> None:
    assert not is_loopback(host)
    with pytest.raises(ValidationError, match="without TLS"):
        Listen(host=host)
    Listen(host=host, plaintext_beyond_loopback=True)
    Listen(host=host, tls=ours.server())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_no_tls(host: str) -> None:
    assert is_loopback(host)
    Listen(host=host)


def test_a_client_certificate_needs_its_key(ours: Authority) -> None:
    certificate, key = ours.issue("alone")
    for half in ({"certificate": certificate}, {"key": key}):
        with pytest.raises(ValidationError, match="belong together"):
            PeerTls.model_validate(half)
