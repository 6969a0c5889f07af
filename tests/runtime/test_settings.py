"""Settings: read once, every mistake told, no secret shown."""

import pytest
from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import BadSettings, Listen, Peer, ServiceSettings, read


class Settings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="TM_PROBE_")

    listen: Listen = Listen()
    score: Peer | None = None
    token: SecretStr
    pins: SecretStr | None = None
    slots: int = 1


def told(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> BadSettings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadSettings) as caught:
        read(Settings)
    return caught.value


def test_nested_names_and_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TM_PROBE_TOKEN", "s3cret")
    monkeypatch.setenv("TM_PROBE_LISTEN__PORT", "50051")
    monkeypatch.setenv("TM_PROBE_LISTEN__LIMITS__MAX_MESSAGE_BYTES", "1000000")
    monkeypatch.setenv("TM_PROBE_SCORE__ADDRESS", "score:9000")
    monkeypatch.setenv("TM_PROBE_SLOTS", "")  # as a chart renders a value that is not given
    settings = read(Settings)
    assert settings.listen.port == 50051
    assert settings.listen.limits.max_message_bytes == 1_000_000
    assert settings.score == Peer(address="score:9000")
    assert settings.slots == 1
    assert settings.token.get_secret_value() == "s3cret"
    assert "s3cret" not in repr(settings)
    with pytest.raises(ValidationError, match="frozen"):
        settings.slots = 2  # type: ignore[misc]


def test_all_mistakes_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    error = told(
        {
            "TM_PROBE_LISTEN__PORT": "tcp://10.0.0.7:50051",
            "TM_PROBE_LISTEN__TLS__CERTIFICATE": "/nowhere/tls.crt",
            "TM_PROBE_LISTEN__LIMITS__KEEPALIVE_SECONDS": "0",
            "TM_PROBE_SLOTS": "many",
            "TM_PROBE_COLOUR": "red",
            "TM_PROBE_LISTEN__COLOUR": "red",
        },
        monkeypatch,
    )
    names = [line.split(":")[0] for line in error.mistakes]
    assert names == [
        "TM_PROBE_COLOUR",
        "TM_PROBE_LISTEN__COLOUR",
        "TM_PROBE_LISTEN__LIMITS",
        "TM_PROBE_LISTEN__PORT",
        "TM_PROBE_LISTEN__TLS__CERTIFICATE",
        "TM_PROBE_LISTEN__TLS__KEY",
        "TM_PROBE_SLOTS",
        "TM_PROBE_TOKEN",
    ]
    message = str(error)
    assert "TM_PROBE_* settings have 8 mistakes:" in message
    assert all(f"\n  {line}" in message for line in error.mistakes)
    assert "got 'many'" in message
    assert "enableServiceLinks" in message  # what a value like tcp://... comes from


def test_a_secret_is_not_shown_in_the_mistake_it_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strict(ServiceSettings):
        model_config = SettingsConfigDict(env_prefix="TM_STRICT_")

        token: SecretStr | None = None
        pair: tuple[SecretStr, int] | None = None

    monkeypatch.setenv("TM_STRICT_PAIR", '["hunter2", "hunter3", "hunter4"]')
    with pytest.raises(BadSettings) as caught:
        read(Strict)
    assert "TM_STRICT_PAIR" in str(caught.value)
    assert "hunter" not in str(caught.value)


def test_other_services_variables_are_none_of_our_business(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TM_PROBE_TOKEN", "x")
    monkeypatch.setenv("TM_OTHER_PORT", "tcp://10.0.0.1:1")
    assert read(Settings).slots == 1


def test_text_that_is_not_json_for_a_whole_group(monkeypatch: pytest.MonkeyPatch) -> None:
    error = told({"TM_PROBE_LISTEN": "{port", "TM_PROBE_COLOUR": "red"}, monkeypatch)
    assert 'error parsing value for field "listen"' in str(error)
    assert "TM_PROBE_COLOUR: no such setting" in str(error)
