"""What an operator can tell the gateway: `TM_GATEWAY_*`, read once, in `__main__`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, FilePath, PositiveFloat, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from services.gateway.admission import Capacity
from services.gateway.attaching import Patience
from services.gateway.deletion_cost import Pod
from services.gateway.images import ImageLimits
from services.gateway.limits import CallerLimits, SessionLimits
from services.gateway.outbox import Room
from services.gateway.pacer import Lead
from services.runtime.settings import Listen, Nested, Peer, PeerTls, ServiceSettings, is_loopback
from talkingmachines.channel import Limits as ConnectionLimits


class Jwt(Nested):
    """Signed tokens: exactly one of `jwks_url` and `key_file`."""

    jwks_url: str | None = None  # where the issuer publishes its keys
    key_file: FilePath | None = None  # PEM of one public key, or a shared secret
    issuer: str | None = None  # given: tokens must name it
    audience: str | None = None  # given: tokens must be for it
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    tenant_claim: str = "tenant"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.jwks_url is None) == (self.key_file is None):
            raise ValueError("give one of jwks_url and key_file")
        return self


class Auth(Nested):
    """Who may enter. Neither keys nor tokens: everybody, which is refused beyond loopback."""

    keys_file: FilePath | None = None  # as `services.gateway.auth.ApiKeys` says
    jwt: Jwt | None = None
    anyone: bool = False  # set where something else keeps strangers out


class Limits(Nested):
    """Of one caller; API keys may have their own."""

    sessions: Annotated[int, Field(ge=1)] = 10
    avatars: Annotated[int, Field(ge=0)] = 100
    requests_per_second: PositiveFloat = 20.0


class Redis(Nested):
    """Where sessions and the index of avatars are kept."""

    url: SecretStr  # redis://, rediss://, unix://, redis+cluster://, redis+sentinel://
    tls: PeerTls = PeerTls()  # with rediss:// only


class EnginePeer(Peer):
    """Score or VAE, behind Ray Serve's gRPC ingress or any other."""

    # The ingress has gRPC's own limits for pings, and cannot be given others.
    limits: ConnectionLimits = ConnectionLimits(ping_without_calls=False)
    # An old cluster is deleted when the longest attachment, and this, are over.
    renew_seconds: PositiveFloat = 30.0


class Settings(ServiceSettings):
    """The gateway's settings."""

    model_config = SettingsConfigDict(env_prefix="TM_GATEWAY_")

    listen: Listen = Listen(port=50050)
    score: EnginePeer
    vae: EnginePeer
    bridge: Peer | None = None  # to a speech model; not given: only DRIVE is offered
    engine_token_file: FilePath | None = None  # the fleet's shared token
    redis: Redis
    blobs_url: str  # file:///..., s3://..., gs://...: pictures and conditioning of avatars
    auth: Auth = Auth()
    limits: Limits = Limits()
    image: ImageLimits = ImageLimits()
    session: SessionLimits = SessionLimits()
    capacity: Capacity = Capacity()
    lead: Lead = Lead()
    patience: Patience = Patience()
    room: Room = Room()
    pod: Pod | None = None  # in Kubernetes: tells it which gateway has the fewest sessions
    resume_seconds: PositiveFloat = 30.0  # how long a session without a gateway can be resumed

    @model_validator(mode="after")
    def _nobody_unknown(self) -> Self:
        known = self.auth.keys_file or self.auth.jwt or self.auth.anyone
        if not known and not is_loopback(self.listen.host):
            raise ValueError(
                f"refusing to let everybody in on {self.listen.host}: give auth keys_file or jwt, "
                "or set auth anyone where something else keeps strangers out"
            )
        return self

    @property
    def caller_limits(self) -> CallerLimits:
        """What callers may use who have no limits of their own."""
        return CallerLimits(
            sessions=self.limits.sessions,
            avatars=self.limits.avatars,
            requests_per_second=self.limits.requests_per_second,
            image=self.image,
            session=self.session,
        )
