"""What an operator can tell the bridge: `TM_BRIDGE_*`, read once, in `__main__`."""

from __future__ import annotations

import shutil
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    FilePath,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    model_validator,
)
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import Listen, Nested, ServiceSettings


class Turns(Nested):
    """Patience of characters that bring none of their own, in seconds."""

    end_silence: Annotated[float, Field(ge=0.1, le=10)] = 0.6
    min_interruption: Annotated[float, Field(ge=0, le=5)] = 0.5
    silence_timeout: NonNegativeFloat = 60.0  # 0: never


class Realtime(Nested):
    """A server that speaks the OpenAI Realtime protocol."""

    url: str  # wss://...: with the query the server wants, such as ?model=...
    key: SecretStr | None = None  # sent as a bearer token
    model: str = ""  # for session.update, where a server wants it there
    voice: str = ""  # for characters that name none
    transcription: str = "whisper-1"  # model that writes down the user's words; empty: nobody does
    connect_seconds: PositiveFloat = 10.0
    answer_seconds: PositiveFloat = 15.0  # for the first sign of an answer
    renew_seconds: PositiveFloat = 1500.0  # age at which an idle connection is made anew
    last_backoff: PositiveFloat = 15.0  # between attempts to connect


class Chat(Nested):
    """A chat model behind an OpenAI-compatible URL."""

    url: str  # http://host:port/v1
    model: str
    key: SecretStr | None = None
    first_word_seconds: PositiveFloat = 10.0
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    max_tokens: PositiveInt = 300


class Local(Nested):
    """Recognition and synthesis on this machine, and who writes the answers."""

    chat: Chat | None = None  # not given: `writer` does
    writer: Literal["script", "smollm"] = "script"
    # Hibari needs a fortieth of Kokoro's work; Kokoro has more voices.
    speech: Literal["hibari", "kokoro", "flite"] = "hibari"
    threads: PositiveInt = 1  # of recognition and of synthesis, each

    @model_validator(mode="after")
    def _there(self) -> Self:
        if self.speech == "flite" and shutil.which("flite") is None:
            raise ValueError("speech by flite needs the program: apt-get install flite")
        return self


class Settings(ServiceSettings):
    """The bridge's settings. With `realtime`, `local` is not used."""

    model_config = SettingsConfigDict(env_prefix="TM_BRIDGE_")

    listen: Listen = Listen(port=50053)
    token_file: FilePath | None = None  # the fleet's shared token; not given: anyone may call
    realtime: Realtime | None = None
    local: Local = Local()
    turns: Turns = Turns()
    conversations: PositiveInt = 20  # at once
