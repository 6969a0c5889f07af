"""Settings of a service process: one frozen class each, read once, every mistake told at once.

A service derives from `ServiceSettings` with its own prefix and calls `read` in its `__main__`:

    class Settings(ServiceSettings):
        model_config = SettingsConfigDict(env_prefix="TM_GATEWAY_")

        listen: Listen = Listen(port=50050)

    settings = read(Settings)

Nested names are joined by two underscores: `TM_GATEWAY_LISTEN__TLS__KEY=/etc/tls/tls.key`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from ipaddress import ip_address
from typing import Annotated, Any, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FilePath,
    NonNegativeFloat,
    PositiveFloat,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from talkingmachines.channel import Limits

Port = Annotated[int, Field(ge=0, le=65535)]

_NESTED = "__"
_KUBERNETES_LINKS = (  # what a Kubernetes Service called like one of ours puts into every container
    "Kubernetes injects names like these for Services; set enableServiceLinks: false"
)


class BadSettings(ValueError):
    """The environment does not make valid settings; `mistakes` has a line for each variable."""

    def __init__(self, prefix: str, mistakes: Sequence[str], hint: str = "") -> None:
        count = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}"
        lines = [f"{prefix}* settings have {count}:", *(f"  {line}" for line in mistakes)]
        super().__init__("\n".join([*lines, *([f"  ({hint})"] if hint else [])]))
        self.mistakes = list(mistakes)


class Nested(BaseModel):
    """A group of settings within a service's class."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerTls(Nested):
    """Certificate files of a listening port; read again when they change."""

    certificate: FilePath  # PEM, leaf first, then intermediates
    key: FilePath  # PEM
    client_authorities: FilePath | None = None  # PEM; given: clients must show a certificate


class PeerTls(Nested):
    """How a connection to another service is secured; read when the channel is opened."""

    authorities: FilePath | None = None  # PEM; not given: the system's own
    certificate: FilePath | None = None  # PEM; what we show to a peer that asks (mutual TLS)
    key: FilePath | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together")
        return self


class ListeningPort(Nested):
    """A port that others connect to; beyond this machine only with TLS, unless told otherwise."""

    host: str = "127.0.0.1"
    port: Port = 0  # 0: any free one, told by the server and in the log
    tls: ServerTls | None = None
    # Set where an ingress, a mesh or a network policy closes the gap.
    plaintext_beyond_loopback: bool = False

    @model_validator(mode="after")
    def _nothing_in_the_clear(self) -> Self:
        if self.tls is None and not self.plaintext_beyond_loopback and not is_loopback(self.host):
            raise ValueError(
                f"refusing to listen on {self.host} without TLS: give tls, "
                "or set plaintext_beyond_loopback where something else protects the connection"
            )
        return self


class Listen(ListeningPort):
    """A listening gRPC port."""

    reflection: bool = False
    limits: Limits = Limits()
    unary_deadline_seconds: PositiveFloat = 30.0  # for unary calls that came without a deadline
    drain_seconds: NonNegativeFloat = 60.0  # what streams get to finish after SIGTERM
    # How long NOT_SERVING can be seen before the port closes: load balancers must look in between.
    notice_seconds: NonNegativeFloat = 2.0


class Peer(Nested):
    """Another service that this one calls."""

    address: str  # host:port, or any gRPC name
    tls: PeerTls | None = None
    limits: Limits = Limits()
    unary_deadline_seconds: PositiveFloat = 30.0
    # A name may come to mean other machines: a long-lived caller opens its connection anew so
    # often, and leaves the last one when the calls on it are over.
    renew_seconds: PositiveFloat = 300.0


class Endpoint(Nested):
    """The HTTP port for Prometheus and liveness probes. It tells nothing about anyone's session."""

    host: str = "127.0.0.1"
    port: Port = 0
    # How many ports from `port` on are tried: replicas that share a machine take one each, and
    # whoever scrapes knows where to look.
    ports: Annotated[int, Field(ge=1, le=1000)] = 1


class Telemetry(Nested):
    log_level: Annotated[str, Field(pattern="^(debug|info|warning|error)$")] = "info"
    otlp_endpoint: str | None = None  # http://host:4317; not given: no spans are exported
    trace_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01  # of turns without a traced caller
    trace_chunk_every: Annotated[int, Field(ge=1)] = 50  # a span for one chunk in this many


class ServiceSettings(BaseSettings):
    """What every service can be told; derive with an `env_prefix` of your own."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_nested_delimiter=_NESTED, env_ignore_empty=True
    )

    endpoint: Endpoint = Endpoint()
    telemetry: Telemetry = Telemetry()


S = TypeVar("S", bound=BaseSettings)


def read(settings: type[S], given: Mapping[str, Any] | None = None) -> S:
    """The environment as an instance of `settings`.

    Args:
        given: values by field, which go before the environment's.

    Raises:
        BadSettings: with every malformed, missing and unknown variable of the class's prefix.
    """
    prefix = settings.model_config["env_prefix"]
    known = {prefix + name for name in _names(settings)}
    unknown = sorted(
        name for name in os.environ if name.upper().startswith(prefix) and name.upper() not in known
    )
    mistakes = dict.fromkeys(unknown, "no such setting")
    value = None
    try:
        value = settings(**(given or {}))
    except ValidationError as error:
        for detail in error.errors():
            name = prefix + _NESTED.join(str(part) for part in detail["loc"]).upper()
            mistakes.setdefault(name, _explained(settings, detail["loc"], detail))
    except SettingsError as error:
        mistakes[f"{prefix}*"] = str(error)
    if mistakes or value is None:
        linked = any(os.environ.get(name, "").startswith("tcp://") for name in os.environ)
        lines = [f"{name.removesuffix(_NESTED)}: {text}" for name, text in sorted(mistakes.items())]
        raise BadSettings(prefix, lines, _KUBERNETES_LINKS if linked else "")
    return value


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host` (an address, `localhost`, or a Unix socket)."""
    if host == "localhost" or host.startswith("unix:"):
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _names(group: Any) -> Iterator[str]:
    """Every variable that a settings class knows, without its prefix."""
    for name, annotation in _members(group):
        yield name.upper()
        for inner in _groups(annotation):
            yield from (f"{name.upper()}{_NESTED}{rest}" for rest in _names(inner))


def _members(group: Any) -> list[tuple[str, Any]]:
    if is_dataclass(group):
        return [(field.name, None) for field in fields(group)]
    return [(name, field.annotation) for name, field in group.model_fields.items()]


def _groups(annotation: Any) -> list[Any]:
    """The nested groups among the types that `annotation` admits."""
    admitted = get_args(annotation) or (annotation,)
    return [
        kind
        for kind in admitted
        if isinstance(kind, type) and (issubclass(kind, BaseModel) or is_dataclass(kind))
    ]


def _explained(settings: Any, loc: tuple[int | str, ...], detail: Any) -> str:
    message: str = detail["msg"]
    got = detail["input"]
    # A group's own complaint has all its members as input, and a secret is nobody's business.
    if detail["type"] == "missing" or isinstance(got, dict | BaseModel) or _secret(settings, loc):
        return message
    return f"{message}, got {got!r}"


def _secret(settings: Any, loc: tuple[int | str, ...]) -> bool:
    """Whether what `loc` names may hold a secret; what is not understood is taken for one."""
    owners: list[Any] = [settings]
    for part in loc:
        found = [kind for owner in owners for name, kind in _members(owner) if name == part]
        if not found:
            return True
        if _mentions(found[0], SecretStr):
            return True
        owners = _groups(found[0])
    return False


def _mentions(annotation: Any, kind: type) -> bool:
    return annotation is kind or any(_mentions(part, kind) for part in get_args(annotation))
