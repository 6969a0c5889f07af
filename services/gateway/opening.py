"""What a client asks for when it opens a session, checked; and the session's parts, put together.

Beside the path: calls → **opening** → session.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from services.gateway.attaching import Patience
from services.gateway.attachment import Attachment
from services.gateway.avatars import Character
from services.gateway.chunker import Chunker
from services.gateway.engines import Engines, Loaded
from services.gateway.lease import Grant, Lease, Leases
from services.gateway.log import Entry, SessionLog
from services.gateway.outbox import Outbox
from services.gateway.pacer import Lead, Pacer, Position
from services.gateway.parts import Parts
from services.gateway.persona import check_persona
from services.gateway.record import entry_from_proto
from services.gateway.replicas import Replicas
from services.gateway.spans import Spans
from services.gateway.wires import A, I, ScoreWire, VaeWire, Wire
from services.runtime.metrics import GatewayMetrics
from services.runtime.tracing import Tracing
from talkingmachines import duration
from talkingmachines.errors import BadInput
from talkingmachines.media import Latents
from talkingmachines.picture import VideoFormat
from talkingmachines.spec import StreamSpec
from talkingmachines.v1 import avatar_pb2

_LONGEST_WAIT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """An `Open` that can be used."""

    avatar_id: str
    mode: avatar_pb2.TalkMode.ValueType
    video: VideoFormat
    seed: int
    persona: avatar_pb2.Persona
    patience: float  # seconds in the queue
    resume_token: bytes
    playback: Position | None
    frames: bool
    sound: bool


def wanted(message: avatar_pb2.Open, *, converses: bool) -> Wanted:
    """What the client wants.

    Args:
        converses: whether a conversation model is configured.

    Raises:
        BadInput: names the field.
    """
    if not message.resume_token:
        if not message.avatar_id:
            raise BadInput("open.avatar_id", got="nothing", expected="an avatar's id")
        _check_mode(message.mode, converses=converses)
    patience = duration.from_proto(message.max_queue_time)
    if not 0 <= patience <= _LONGEST_WAIT_SECONDS:
        expected = f"0 to {_LONGEST_WAIT_SECONDS:g} s"
        raise BadInput("open.max_queue_time", got=f"{patience:g} s", expected=expected)
    check_persona(message.persona, at="open.persona")
    playback = Position(message.playback.frame, message.playback.sample)
    return Wanted(
        avatar_id=message.avatar_id,
        mode=message.mode,
        video=VideoFormat.from_proto(message.video, at="open.video"),
        seed=message.seed if message.HasField("seed") else secrets.randbits(63),
        persona=message.persona,
        patience=patience,
        resume_token=message.resume_token,
        playback=playback if message.HasField("playback") else None,
        frames=not message.no_video,
        sound=not message.no_speech,
    )


def _check_mode(mode: avatar_pb2.TalkMode.ValueType, *, converses: bool) -> None:
    names = {avatar_pb2.TALK_MODE_DRIVE: "DRIVE"}
    if converses:
        names[avatar_pb2.TALK_MODE_CONVERSE] = "CONVERSE"
    if mode not in names:
        known = avatar_pb2.TalkMode.values()
        got = avatar_pb2.TalkMode.Name(mode) if mode in known else mode
        why = "" if converses else ", as no conversation model is configured"
        raise BadInput("open.mode", got=got, expected=f"{' or '.join(names.values())}{why}")


@dataclass(frozen=True, slots=True)
class Start:
    """Where a session goes on: at the beginning, or where another connection left it."""

    entries: tuple[Entry, ...]
    turn: int
    position: Position
    decode_from: int  # first chunk whose frames are still wanted
    new_from: int  # first frame that no earlier connection can have sent

    @classmethod
    def of(cls, grant: Grant, spec: StreamSpec, playback: Position | None) -> Start:
        """From what the last owner wrote, and what the client says it played."""
        entries = tuple(entry_from_proto(message) for message in grant.log)
        if not entries:
            return cls((), 0, Position(0, 0), 0, 0)
        first, end = entries[0].chunk.chunk, entries[-1].chunk.chunk + 1
        frame = grant.log[-1].sent_frame if playback is None else playback.frame
        frame = min(max(frame, spec.first_frame(first)), spec.first_frame(end))
        decode_from = frame // spec.frames_per_chunk
        sample = spec.sample_of_frame(frame) if playback is None else playback.sample
        least, most = spec.first_sample(decode_from), spec.first_sample(decode_from + 1)
        at = Position(frame, min(max(sample, least), most))
        return cls(entries, grant.log[-1].turn, at, decode_from, spec.first_frame(end))

    @property
    def backlog(self) -> tuple[Latents, ...]:
        """What is drawn and not played."""
        drawn = [entry.latents for entry in self.entries if entry.latents is not None]
        return tuple(latents for latents in drawn if latents.chunk >= self.decode_from)


@dataclass(frozen=True, slots=True)
class Workshop:
    """Puts the parts of sessions together."""

    engines: Engines
    replicas: Replicas
    leases: Leases
    lead: Lead
    patience: Patience
    metrics: GatewayMetrics
    tracing: Tracing

    def parts(
        self,
        grant: Grant,
        character: Character,
        loaded: Loaded,
        start: Start,
        outbox: Outbox,
        video: VideoFormat,
        opened_at: float,
    ) -> tuple[Parts, Lease]:
        """The parts of one session, not attached yet."""
        spec = loaded.spec
        positions = start.entries[-1].chunk.positions if start.entries else ()
        speakers = len(character.avatar.speakers)
        log = SessionLog(spec, start.entries)
        spans = Spans(self.tracing)
        chunker = Chunker(spec, speakers=speakers, turn=start.turn, positions=positions)
        pacer = Pacer(
            spec,
            log,
            chunker,
            outbox,
            lead=self.lead,
            keep=loaded.keep,
            metrics=self.metrics,
            spans=spans,
            start=start.position,
            opened_at=opened_at,
        )
        lease = self.leases.hold(
            grant, log, keep=self._kept(loaded), at=lambda: (pacer.next, pacer.turn)
        )
        name, looks = grant.session_id, character.conditioning
        vae_wire = VaeWire(
            self.engines.vae,
            name,
            spec,
            looks.anchor,
            loaded.vae_checkpoint,
            video,
            log,
            loaded.vae_tail,
        )
        score_wire = ScoreWire(
            self.engines.score,
            name,
            looks,
            loaded.score_checkpoint,
            grant.record.seed,
            log,
            loaded.score_tail,
        )
        next_chunk, first_frame = log.next_chunk, start.position.frame
        parts = Parts(
            log=log,
            chunker=chunker,
            pacer=pacer,
            score=self._stage(score_wire, log, pacer, spans, next_chunk, next_chunk),
            vae=self._stage(vae_wire, log, pacer, spans, start.decode_from, first_frame),
            vae_wire=vae_wire,
            outbox=outbox,
            journal=lease,
            spans=spans,
        )
        return parts, lease

    def _stage(
        self,
        wire: Wire[I, A],
        log: SessionLog,
        pacer: Pacer,
        spans: Spans,
        chunk: int,
        place: int,
    ) -> Attachment[I, A]:
        """A stage that begins with this chunk and this answer."""
        return Attachment(
            wire,
            log,
            slack=pacer.slack,
            patience=self.patience,
            metrics=self.metrics,
            spans=spans,
            seen=self.replicas.seen,
            first_chunk=chunk,
            first_place=place,
        )

    def _kept(self, loaded: Loaded) -> int:
        """Entries that Redis holds: those a tail needs, and those that are not played yet."""
        ahead = self.lead.target + self.lead.viewer_lag
        return loaded.keep + int(ahead / loaded.spec.chunk_seconds) + 3
