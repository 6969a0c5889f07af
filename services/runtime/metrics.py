"""Every number the system reports: name, meaning, unit, labels and buckets, in this one place.

A process builds the sets it needs on a registry of its own and hands them to whoever counts.
Names start with `tm_` and use base units (seconds, bytes, ratios of 1). Labels never name a
session, an avatar or a tenant: their values come from the closed sets below, or are as few as the
methods of our contracts. Series of closed labels exist from the start, so that a rate over
something that has not happened yet is 0 and not missing.

`python -m services.runtime.metrics` prints the reference that `docs/metrics.md` holds.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import product
from typing import Any, Generic, Self, TypeVar, overload

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

M = TypeVar("M", Counter, Gauge, Histogram)


@dataclass(frozen=True)
class Declared(Generic[M]):
    """A metric as a line of the table: the declaration on the class, the metric on an instance."""

    kind: type[M]
    name: str
    help: str
    labels: Mapping[str, type[StrEnum] | None] = field(default_factory=dict)  # None: open set
    buckets: Sequence[float] = ()

    @overload
    def __get__(self, owner: None, kind: type) -> Self: ...
    @overload
    def __get__(self, owner: MetricSet, kind: type) -> M: ...
    def __get__(self, owner: MetricSet | None, kind: type) -> Self | M:
        if owner is None:
            return self
        built = owner.built[self.name]
        assert isinstance(built, self.kind)
        return built

    def build(self, registry: CollectorRegistry) -> M:
        buckets: dict[str, Any] = {"buckets": self.buckets} if self.buckets else {}
        metric = self.kind(self.name, self.help, tuple(self.labels), registry=registry, **buckets)
        closed = [kind for kind in self.labels.values() if kind is not None]
        if closed and len(closed) == len(self.labels):
            for values in product(*closed):
                metric.labels(*values)
        return metric


class MetricSet:
    """The metrics of one part of the system on `registry`; building a set twice is an error."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.built = {line.name: line.build(registry) for line in self.declared()}

    @classmethod
    def declared(cls) -> Iterator[Declared[Counter] | Declared[Gauge] | Declared[Histogram]]:
        for value in vars(cls).values():
            if isinstance(value, Declared):
                yield value


def _counter(name: str, help_: str, **labels: type[StrEnum] | None) -> Declared[Counter]:
    return Declared(Counter, name, help_, labels)


def _gauge(name: str, help_: str, **labels: type[StrEnum] | None) -> Declared[Gauge]:
    return Declared(Gauge, name, help_, labels)


def _histogram(
    name: str, help_: str, buckets: Sequence[float], **labels: type[StrEnum] | None
) -> Declared[Histogram]:
    return Declared(Histogram, name, help_, labels, buckets)


# Buckets are close together around the number that decides whether a user notices.
RPC_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
START_BUCKETS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20)
WAIT_BUCKETS = (0.1, 0.5, 1, 2, 5, 10, 20, 40, 60, 120, 300)
# A chunk is 0.375 s to 0.75 s of media; half of that is a comfortable step.
CHUNK_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.15, 0.2, 0.3, 0.375, 0.5, 0.75, 1, 1.5, 3)
RATIO_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2)
SILENCE_BUCKETS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 2)
SKEW_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.5)
STALL_BUCKETS = (0.04, 0.1, 0.2, 0.4, 0.75, 1.5, 3, 6, 12)
LENGTH_BUCKETS = (1, 5, 15, 60, 180, 600, 1800, 3600, 7200, 14400)
BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16)


class SessionMode(StrEnum):
    CONVERSE = "converse"
    DRIVE = "drive"


class SessionState(StrEnum):
    QUEUED = "queued"
    OPENING = "opening"
    SPEAKING = "speaking"
    LISTENING = "listening"
    DETACHED = "detached"  # the client is gone and may still resume


class SessionEnd(StrEnum):
    CLIENT = "client"  # hung up
    VANISHED = "vanished"  # went silent and did not resume in time
    IDLE = "idle"
    SLOW = "slow"  # never read what it was sent
    LIMIT = "limit"  # session length or quota
    BAD_INPUT = "bad_input"
    FENCED = "fenced"  # another gateway holds the session
    MOVED = "moved"  # resumed elsewhere, as asked
    DRAIN = "drain"
    FAILURE = "failure"  # ours


class Refusal(StrEnum):
    CAPACITY = "capacity"
    QUOTA = "quota"
    RATE = "rate"
    CREDENTIALS = "credentials"
    BAD_INPUT = "bad_input"
    DRAINING = "draining"
    STORE = "store"  # Redis or the blob store is down


class Outcome(StrEnum):
    OK = "ok"
    FAILED = "failed"


class Mode(StrEnum):
    SPEAKING = "speaking"
    LISTENING = "listening"


class Stage(StrEnum):
    """Where a chunk's time goes, seen from the gateway."""

    SPEECH = "speech"  # waiting for speech enough to fill it
    SCORE = "score"
    VAE = "vae"
    PLAYOUT = "playout"  # waiting for its presentation time


class DropReason(StrEnum):
    LATE = "late"
    SLOW_VIEWER = "slow_viewer"
    INTERRUPTED = "interrupted"


class Engine(StrEnum):
    SCORE = "score"
    VAE = "vae"


class HandOverReason(StrEnum):
    AGE = "age"
    DRAIN = "drain"
    OVERLOAD = "overload"
    UNHEALTHY = "unhealthy"  # by the replica's own account
    FAILURE = "failure"
    STALL = "stall"


class Transport(StrEnum):
    GRPC = "grpc"
    WEBRTC = "webrtc"


class WebRtcRole(StrEnum):
    """What a WebRTC connection is for."""

    CALL = "call"
    VIEWER = "viewer"
    MICROPHONE = "microphone"


class WebRtcEnd(StrEnum):
    """Why a call over WebRTC ended."""

    HUNG_UP = "hung_up"
    LOST = "lost"  # the client may still resume
    NEVER_CONNECTED = "never_connected"
    REFUSED = "refused"  # told why before media flowed
    FAILED = "failed"  # told why, afterwards


class EngineStage(StrEnum):
    """Where a step's time goes on the device."""

    WAIT = "wait"  # for the device
    AUDIO = "audio"
    DENOISE = "denoise"
    CONTEXT = "context"
    DECODE = "decode"
    COPY = "copy"
    ENCODE = "encode"


class EngineFault(StrEnum):
    NOT_A_NUMBER = "not_a_number"
    MEMORY = "memory"
    RANK = "rank"
    OTHER = "other"


class Cache(StrEnum):
    SESSION = "session"  # keys and values, convolution history
    AVATAR = "avatar"  # shared by all sessions of an avatar


class Memory(StrEnum):
    USED = "used"
    TOTAL = "total"


class SpeechStage(StrEnum):
    ENDPOINT = "endpoint"  # from the user's last sound to the decision that the turn is over
    RECOGNISE = "recognise"
    REPLY = "reply"  # to the chat model's first sentence
    SYNTHESISE = "synthesise"  # to the first sound


class TurnOutcome(StrEnum):
    COMPLETED = "completed"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class InterruptionKind(StrEnum):
    REAL = "real"
    FALSE = "false"  # speech went on afterwards


class RpcMetrics(MetricSet):
    """Every gRPC server."""

    started = _counter("tm_rpc_started_total", "RPCs that reached a servicer.", method=None)
    handled = _counter(
        "tm_rpc_handled_total", "RPCs that ended, by status code.", method=None, code=None
    )
    in_flight = _gauge("tm_rpc_in_flight", "RPCs running now.", method=None)
    seconds = _histogram(
        "tm_rpc_seconds", "Duration of unary RPCs in the servicer.", RPC_BUCKETS, method=None
    )
    stream_seconds = _histogram(
        "tm_rpc_stream_seconds", "Length of streaming RPCs.", LENGTH_BUCKETS, method=None
    )
    draining = _gauge("tm_draining", "1 while this process drains, else 0.")


class GatewayMetrics(MetricSet):
    """The hub: what users feel, and what the fleet does for it."""

    sessions = _gauge("tm_sessions", "Sessions by state.", state=SessionState)
    session_capacity = _gauge("tm_session_capacity", "Sessions the fleet can carry at once.")
    sessions_opened = _counter("tm_sessions_opened_total", "Sessions opened.", mode=SessionMode)
    session_ends = _counter("tm_session_end_total", "Sessions ended, by reason.", reason=SessionEnd)
    session_seconds = _histogram("tm_session_seconds", "Length of ended sessions.", LENGTH_BUCKETS)
    queue_sessions = _gauge("tm_queue_sessions", "Sessions waiting for a slot.")
    queue_wait = _histogram("tm_queue_wait_seconds", "Time spent in the queue.", WAIT_BUCKETS)
    refusals = _counter("tm_refusals_total", "Callers turned away, by reason.", reason=Refusal)
    resumes = _counter("tm_resumes_total", "Attempts to resume a session.", outcome=Outcome)
    viewers = _gauge("tm_viewers", "Clients that receive a session's picture.", transport=Transport)

    first_frame = _histogram(
        "tm_first_frame_seconds", "From a session's opening to its first frame.", START_BUCKETS
    )
    answer = _histogram(
        "tm_answer_seconds",
        "From the end of the user's speech to the answer's first frame.",
        START_BUCKETS,
    )
    interrupt_to_silence = _histogram(
        "tm_interrupt_to_silence_seconds",
        "Sound sent beyond the place where an interruption cut: the longest it can still be heard.",
        SILENCE_BUCKETS,
    )
    av_skew = _histogram(
        "tm_av_skew_seconds", "Absolute distance of sound and picture when sent.", SKEW_BUCKETS
    )
    stalls = _counter("tm_playout_stalls_total", "Times the picture had to be held.")
    stall_seconds = _counter("tm_playout_stall_seconds_total", "Time the picture was held.")
    stall_length = _histogram(
        "tm_playout_stall_length_seconds", "Length of each hold.", STALL_BUCKETS
    )
    playout_lead = _histogram(
        "tm_playout_lead_seconds",
        "Media ready beyond what was played, at each chunk.",
        CHUNK_BUCKETS,
    )

    chunks = _counter("tm_chunks_total", "Chunks released for playout.", mode=Mode)
    deadline_misses = _counter(
        "tm_chunk_deadline_misses_total", "Chunks that were not ready when they should play."
    )
    chunk_seconds = _histogram(
        "tm_chunk_seconds", "A chunk's time by stage.", CHUNK_BUCKETS, stage=Stage
    )
    chunk_interarrival = _histogram(
        "tm_chunk_interarrival_seconds",
        "Between the arrival of a session's chunks.",
        CHUNK_BUCKETS,
    )
    realtime_ratio = _histogram(
        "tm_chunk_realtime_ratio",
        "Time to make a chunk over the media time it covers.",
        RATIO_BUCKETS,
    )
    frames = _counter("tm_frames_total", "Frames sent to clients.", transport=Transport)
    frames_dropped = _counter(
        "tm_frames_dropped_total", "Frames dropped before sending.", reason=DropReason
    )

    webrtc_connections = _gauge("tm_webrtc_connections", "WebRTC connections.", role=WebRtcRole)
    webrtc_connect_seconds = _histogram(
        "tm_webrtc_connect_seconds",
        "From our answer to an offer to the connection's being up.",
        START_BUCKETS,
        role=WebRtcRole,
    )
    webrtc_ends = _counter(
        "tm_webrtc_call_end_total", "Calls over WebRTC that ended, by reason.", reason=WebRtcEnd
    )
    webrtc_encode_seconds = _counter(
        "tm_webrtc_encode_seconds_total", "Time spent encoding sound, once for all viewers."
    )
    webrtc_key_frames = _counter("tm_webrtc_key_frames_total", "Key frames sent.")
    webrtc_key_frame_requests = _counter(
        "tm_webrtc_key_frame_requests_total", "Key frames that viewers asked for."
    )
    webrtc_bitrate_changes = _counter(
        "tm_webrtc_bitrate_changes_total", "Changes of an encoder's bit rate to suit a network."
    )
    webrtc_round_trip = _histogram(
        "tm_webrtc_round_trip_seconds",
        "Round trip of a call's pictures, every second.",
        RPC_BUCKETS,
    )
    webrtc_packets = _counter("tm_webrtc_packets_total", "Packets of pictures sent in calls.")
    webrtc_packets_lost = _counter(
        "tm_webrtc_packets_lost_total", "Packets of pictures that clients say they never got."
    )

    attachments = _gauge("tm_attachments", "Attachments held to engines.", engine=Engine)
    attach_seconds = _histogram(
        "tm_attach_seconds",
        "From asking for an attachment to its being ready.",
        START_BUCKETS,
        engine=Engine,
    )
    hand_overs = _counter(
        "tm_hand_overs_total",
        "Moves of a session from one replica to another.",
        engine=Engine,
        reason=HandOverReason,
        outcome=Outcome,
    )
    rebuilds = _counter(
        "tm_rebuilds_total",
        "Engine states rebuilt from the session log.",
        engine=Engine,
        reason=HandOverReason,
    )
    log_bytes = _gauge("tm_session_log_bytes", "Memory held by the tails of session logs.")

    avatars_created = _counter("tm_avatars_created_total", "Avatars created.", outcome=Outcome)
    avatar_seconds = _histogram(
        "tm_avatar_create_seconds", "Time to create an avatar.", START_BUCKETS
    )
    store_up = _gauge("tm_store_up", "1 while Redis answers, else 0.")
    store_seconds = _histogram("tm_store_seconds", "Duration of Redis commands.", RPC_BUCKETS)
    store_errors = _counter("tm_store_errors_total", "Redis commands that failed.")
    leases = _gauge("tm_leases", "Session leases held by this gateway.")
    leases_lost = _counter("tm_leases_lost_total", "Leases that another gateway took over.")


class BridgeMetrics(MetricSet):
    """Speech to speech."""

    conversations = _gauge("tm_conversations", "Conversations held now.")
    turns = _counter("tm_turns_total", "Answers given, by how they ended.", outcome=TurnOutcome)
    stage_seconds = _histogram(
        "tm_speech_stage_seconds", "An answer's time by stage.", START_BUCKETS, stage=SpeechStage
    )
    interruptions = _counter(
        "tm_interruptions_total", "User speech during an answer.", kind=InterruptionKind
    )
    provider_up = _gauge("tm_provider_up", "1 while the speech model can be used, else 0.")
    provider_connects = _counter(
        "tm_provider_connects_total", "Connections made to the speech model.", outcome=Outcome
    )
    provider_errors = _counter("tm_provider_errors_total", "Errors the speech model reported.")


class EngineMetrics(MetricSet):
    """A process with a model on a device: score or vae."""

    slots = _gauge("tm_engine_slots", "Sessions this replica takes at once.", engine=Engine)
    slots_used = _gauge("tm_engine_slots_used", "Sessions attached now.", engine=Engine)
    chunks = _counter("tm_engine_chunks_total", "Chunks computed.", engine=Engine)
    late_chunks = _counter(
        "tm_engine_late_chunks_total", "Chunks done after their playout deadline.", engine=Engine
    )
    step_seconds = _histogram(
        "tm_engine_step_seconds",
        "A step's time by stage.",
        CHUNK_BUCKETS,
        engine=Engine,
        stage=EngineStage,
    )
    batch_sessions = _histogram(
        "tm_engine_batch_sessions",
        "Sessions computed together in a step.",
        BATCH_BUCKETS,
        engine=Engine,
    )
    attach_seconds = _histogram(
        "tm_engine_attach_seconds",
        "Time to build a session's state from its log tail.",
        START_BUCKETS,
        engine=Engine,
    )
    refusals = _counter(
        "tm_engine_refusals_total", "Attachments turned away.", engine=Engine, reason=Refusal
    )
    faults = _counter(
        "tm_engine_faults_total", "Steps that failed, by kind.", engine=Engine, kind=EngineFault
    )
    device_waiting = _gauge(
        "tm_device_waiting", "Pieces of work waiting for the device.", engine=Engine
    )
    device_stalled = _gauge(
        "tm_device_stalled_seconds", "Time since a running step last gave a sign.", engine=Engine
    )
    device_busy = _counter(
        "tm_device_busy_seconds_total", "Time the device thread spent in steps.", engine=Engine
    )
    device_memory = _gauge("tm_device_memory_bytes", "Device memory.", engine=Engine, kind=Memory)
    cache_bytes = _gauge("tm_cache_bytes", "Bytes held by caches.", engine=Engine, cache=Cache)
    cache_hits = _counter(
        "tm_cache_hits_total", "Look-ups that found their entry.", engine=Engine, cache=Cache
    )
    cache_misses = _counter(
        "tm_cache_misses_total", "Look-ups that had to compute it.", engine=Engine, cache=Cache
    )
    cache_evictions = _counter(
        "tm_cache_evictions_total", "Entries given up for others.", engine=Engine, cache=Cache
    )


ALL_SETS: tuple[type[MetricSet], ...] = (
    RpcMetrics,
    GatewayMetrics,
    BridgeMetrics,
    EngineMetrics,
)


def reference() -> str:
    """The table of all metrics in Markdown."""
    lines = ["# Metrics", "", "Rendered by `python -m services.runtime.metrics`.", ""]
    for kind in ALL_SETS:
        lines += [f"## {inspect.getdoc(kind)}", "", "| name | kind | labels | meaning |"]
        lines += ["|---|---|---|---|", *(_row(line) for line in kind.declared()), ""]
    return "\n".join(lines)


def _row(line: Declared[Counter] | Declared[Gauge] | Declared[Histogram]) -> str:
    labels = "; ".join(
        f"`{name}`: {', '.join(values) if values else 'any'}"
        for name, values in line.labels.items()
    )
    return f"| `{line.name}` | {line.kind.__name__.lower()} | {labels} | {line.help} |"


if __name__ == "__main__":
    print(reference())
