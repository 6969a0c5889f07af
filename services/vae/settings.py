"""What an operator can tell a VAE replica: `TM_VAE_*`, or the arguments of its Serve app."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, FilePath, PositiveFloat, PositiveInt
from pydantic_settings import SettingsConfigDict

from services.runtime.attachments import Terms
from services.runtime.replicas import Replicas
from services.runtime.settings import Endpoint, Listen, Nested, ServiceSettings


class Encoding(Nested):
    """How frames are encoded where the caller leaves it open."""

    bitrate: Annotated[int, Field(ge=50_000, le=50_000_000)] = 1_500_000  # bits per second
    key_frame_interval: Annotated[int, Field(ge=1, le=1_000)] = 250  # frames
    quality: Annotated[int, Field(ge=1, le=100)] = 85  # of JPEG


class Rehearsal(Nested):
    """A stream that is tried before anybody comes: compiled, recorded and timed. Others work as
    well, but the first of them pays for that. Score owns these numbers; here they are a hint."""

    width: PositiveInt
    height: PositiveInt
    latents_per_chunk: PositiveInt = 3
    fps: PositiveInt = 25


class Settings(ServiceSettings):
    """The settings of a VAE replica."""

    model_config = SettingsConfigDict(env_prefix="TM_VAE_")

    # Replicas that share a machine each take one port of these.
    endpoint: Endpoint = Endpoint(port=9440, ports=20)
    listen: Listen = Listen(port=50052)  # of `python -m services.vae`; Serve has its own

    model: Path  # our directory, a diffusers directory or Wan2.1_VAE.pth

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    # auto: the fastest here by a timing at start.
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: PositiveInt | None = None  # of a CPU's computing; not given: torch's own choice
    rehearsal: Rehearsal | None = None

    sessions: PositiveInt = 8  # at most; fewer where a chunk takes too long for so many
    memory_bytes: PositiveInt | None = None  # for sessions; not given: most of what is free
    load: Annotated[float, Field(gt=0, le=1)] = 0.9  # share of the device's time for sessions
    batch: Annotated[int, Field(ge=1, le=64)] = 1  # sessions in one pass; where measured to gain

    encoding: Encoding = Encoding()
    terms: Terms = Terms()
    token_file: FilePath | None = None  # the fleet's shared token
    unary_deadline_seconds: PositiveFloat = 30.0
    hang_seconds: PositiveFloat = 20.0  # a step that takes longer is taken for hung

    replicas: Replicas = Replicas()
