"""What an operator can tell the gateway: `TM_GATEWAY_*`, read once, in `__main__`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    FilePath,
    IPvAnyAddress,
    PositiveFloat,
    SecretStr,
    model_validator,
)
from pydantic_settings import SettingsConfigDict

from services.gateway.adaptation import Rates
from services.gateway.admission import Capacity
from services.gateway.attaching import Patience
from services.gateway.deletion_cost import Pod
from services.gateway.ice import Ice, Turn
from services.gateway.images import ImageLimits
from services.gateway.limits import CallerLimits, SessionLimits
from services.gateway.outbox import Room
from services.gateway.pacer import Lead
from services.runtime.settings import (
    Listen,
    ListeningPort,
    Nested,
    Peer,
    PeerTls,
    ServiceSettings,
    is_loopback,
)
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
    # Behind Ray Serve, where one ingress has several models; not given: `score`, `vae`.
    application: str | None = None


class TurnServers(Nested):
    """TURN servers that share a secret with us (coturn: `use-auth-secret`)."""

    urls: Annotated[tuple[str, ...], Field(min_length=1)]  # turn:host:3478, turns:host:5349
    secret: SecretStr
    seconds: PositiveFloat = 3600.0  # how long credentials hold

    @property
    def shared(self) -> Turn:
        return Turn(self.urls, self.secret.get_secret_value(), self.seconds)


class Web(ListeningPort):
    """Calls from browsers: HTTP, WebRTC and the page."""

    stun_urls: tuple[str, ...] = ()  # stun:host:3478
    turn: TurnServers | None = None
    public_address: IPvAnyAddress | None = None  # where this machine's ports are reached from
    codecs: Annotated[tuple[Literal["VP8", "H264"], ...], Field(min_length=1)] = ("VP8", "H264")
    rates: Rates = Rates()
    viewers: Annotated[int, Field(ge=0)] = 20  # of one call, besides its caller
    connect_seconds: PositiveFloat = 20.0  # for a client to connect after our answer

    @property
    def ice(self) -> Ice:
        return Ice(
            stun_urls=self.stun_urls,
            turn=None if self.turn is None else self.turn.shared,
            public_address=None if self.public_address is None else str(self.public_address),
        )


class Settings(ServiceSettings):
    """The gateway's settings."""

    model_config = SettingsConfigDict(env_prefix="TM_GATEWAY_")

    listen: Listen = Listen(port=50050)
    web: Web | None = None  # not given: gRPC alone
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
        hosts = [self.listen.host, *([self.web.host] if self.web else [])]
        open_to = [host for host in hosts if not is_loopback(host)]
        if not known and open_to:
            raise ValueError(
                f"refusing to let everybody in on {open_to[0]}: give auth keys_file or jwt, "
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
