"""What an operator can tell a score replica: `TM_SCORE_*`, or the arguments of its Serve app."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import DirectoryPath, Field, FilePath, PositiveFloat, PositiveInt, model_validator
from pydantic_settings import SettingsConfigDict

from services.runtime.attachments import Terms
from services.runtime.replicas import Replicas
from services.runtime.settings import Endpoint, Listen, Nested, ServiceSettings
from services.score.checkpoint.recipes import Recipe


class LoraFile(Nested):
    """Adapters that are merged into the model while it loads."""

    path: Path
    alpha: float | None = None  # where neither the file nor anything beside it says so


class EncoderFiles(Nested):
    """Where prompts and pictures of new avatars become what the checkpoint reads."""

    # With the files of a Wan repository; not given: the model's own, where they lie there.
    folder: DirectoryPath | None = None
    # Once per avatar, a layer at a time: seconds on a CPU, and nothing that draws waits for it.
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    dtype: Literal["file", "float32", "bfloat16"] = "file"  # what they compute in
    # For avatars that were given none.
    prompt: Annotated[str, Field(max_length=2000)] = "A character is talking."
    listening_prompt: Annotated[str, Field(max_length=2000)] = (
        "A character is looking at the camera."
    )


class Settings(ServiceSettings):
    """The settings of a score replica."""

    model_config = SettingsConfigDict(env_prefix="TM_SCORE_")

    # Replicas that share a machine each take one port of these.
    endpoint: Endpoint = Endpoint(port=9410, ports=20)
    listen: Listen = Listen(port=50051)  # of `python -m services.score`; Serve has its own

    model: Path  # a checkpoint of any known layout
    audio: FilePath | None = None  # audio weights published apart
    loras: tuple[LoraFile, ...] = ()  # in this order
    wav2vec: Path | None = None  # a wav2vec 2.0 folder, for layouts that do not hold one
    recipe: Recipe | None = None  # how a public student is drawn with; not given: as is usual
    # Width x height of the stream, for layouts that do not say.
    size: Annotated[str, Field(pattern=r"^\d{2,5}x\d{2,5}$")] | None = None
    encoders: EncoderFiles = EncoderFiles()

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    # auto: the fastest here by a timing at start. A session that moves sees the same numbers only
    # where all replicas use the same.
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: PositiveInt | None = None  # of a CPU's computing; not given: torch's own choice
    ranks: PositiveInt = 1  # devices that draw one picture together

    sessions: PositiveInt = 8  # at most; fewer where a chunk takes too long for so many
    rows: PositiveInt = 1  # chunks in one batch; more only where that was measured to gain
    faces: PositiveInt = 2  # speakers of one picture
    cache_bytes: PositiveInt = 2 << 30  # of avatars' keys and values

    terms: Terms = Terms()
    token_file: FilePath | None = None  # the fleet's shared token
    unary_deadline_seconds: PositiveFloat = 30.0
    # A step, or an answer of a rank, that takes longer is taken for hung.
    hang_seconds: PositiveFloat = 20.0
    probe_seconds: PositiveFloat = 2.0  # how often ranks are asked whether they are there

    replicas: Replicas = Replicas()

    @property
    def picture(self) -> tuple[int, int] | None:
        """Width and height that were given."""
        if self.size is None:
            return None
        width, _, height = self.size.partition("x")
        return int(width), int(height)

    @model_validator(mode="after")
    def _one_number_format(self) -> Self:
        if self.dtype == "auto" and (self.ranks > 1 or self.replicas.most > 1):
            raise ValueError(
                "give dtype where several ranks or replicas draw: each would choose its own"
            )
        return self
