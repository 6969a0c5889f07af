"""What one can tell the fleet on one machine: `TM_LOCAL_*`, read once, in `__main__`.

Gateway and bridge read their own `TM_GATEWAY_*` and `TM_BRIDGE_*` besides; what joins the parts
(addresses, Redis, folders) is set here and cannot be given there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.runtime.settings import Port
from talkingmachines.local import DEFAULT_PORT, data_folder

WEB_PORT = 50080
ROOT = Path(__file__).resolve().parents[2]


class Settings(BaseSettings):
    """The fleet on one machine."""

    model_config = SettingsConfigDict(
        env_prefix="TM_LOCAL_",
        frozen=True,
        extra="forbid",
        env_nested_delimiter="__",
        env_ignore_empty=True,
    )

    model: Path = ROOT / "models" / "tiny"  # score/, vae/ and avatars/ are in it
    data: Path = Field(default_factory=data_folder)  # characters, sessions, logs; made when missing
    host: str = "127.0.0.1"  # of the gateway; all other parts stay on this machine
    port: Port = DEFAULT_PORT  # of the gateway; 0: any free one
    web_port: Port = 0  # of the page, on loopback; 0: WEB_PORT if it is free, else any
    engines_port: Port = 0  # of the ingress of score and VAE; 0: any free one
    redis_port: Port = 0
    # What the gateway is to connect to instead of these: host:port of something that stands before
    # them and passes on what comes, as load tests have it.
    engines_via: str = ""
    redis_via: str = ""
    sessions: Annotated[int, Field(ge=1)] = 2  # at once
    ready_seconds: Annotated[float, Field(gt=0)] = 180.0  # after which starting is given up
    converse: bool | None = None  # hold conversations; not given: if what they need is installed
    score: dict[str, Any] = Field(default_factory=dict)  # JSON: further settings of the replicas
    vae: dict[str, Any] = Field(default_factory=dict)
