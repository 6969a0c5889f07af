"""Who holds a session: one gateway at a time, written down in Redis with the end of its log.

Beside the path: log → **lease** → Redis. A client that lost its gateway resumes on another one
with its token. Whoever took over last has the highest epoch; every write of an older owner is
refused and ends its session. When Redis is away sessions go on; what was not written is written
when it is back.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256

import structlog

from services.gateway.log import Entry, SessionLog
from services.gateway.pacer import Position
from services.gateway.record import entry_to_proto
from services.gateway.store import Script, Store
from services.gateway.wake import Wake
from services.runtime.metrics import GatewayMetrics
from talkingmachines.errors import Fenced, NotFound, Unavailable
from talkingmachines.v1 import storage_pb2

_log = structlog.stdlib.get_logger(__name__)

_RETRY_SECONDS = 1.0
_LEAVE_SECONDS = 1.0

# KEYS: session, log. ARGV: owner, epoch, token digest, tenant, record, time to live.
_OPEN = Script("""
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'epoch', ARGV[2], 'token', ARGV[3],
  'tenant', ARGV[4], 'record', ARGV[5], 'end', '0')
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('DEL', KEYS[2])
return 1
""")

# ARGV: owner, epoch, time to live, entries to keep, whether the client has its newest token (1),
# conversation (empty: as before), first chunk (-1: nothing to write), entries. The log ends with
# the entries given, whatever it held from `first` on. Returns 0: it is another's, -1: there is no
# such session, 2: entries are missing before `first`, so that those given are the whole log now.
_WRITE = Script("""
local held = redis.call('HMGET', KEYS[1], 'owner', 'epoch', 'end')
if not held[1] then return -1 end
if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] then return 0 end
if ARGV[5] == '1' then redis.call('HDEL', KEYS[1], 'token_before') end
if ARGV[6] ~= '' then redis.call('HSET', KEYS[1], 'conversation', ARGV[6]) end
local first, past, done = tonumber(ARGV[7]), tonumber(held[3]), 1
if first >= 0 then
  if first > past then done = 2 end
  if first > past or past - first >= redis.call('LLEN', KEYS[2]) then
    redis.call('DEL', KEYS[2])
  elseif first < past then
    redis.call('LTRIM', KEYS[2], 0, first - past - 1)
  end
  for i = 8, #ARGV do redis.call('RPUSH', KEYS[2], ARGV[i]) end
  redis.call('LTRIM', KEYS[2], -tonumber(ARGV[4]), -1)
  redis.call('HSET', KEYS[1], 'end', first + #ARGV - 7)
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return done
""")

# ARGV: token digest, tenant, owner, new token digest, time to live. The token that was shown stays
# valid beside the new one: nobody knows yet whether that reaches the client.
_TAKE = Script("""
local held = redis.call('HMGET', KEYS[1], 'token', 'token_before', 'tenant', 'epoch', 'record',
  'conversation')
if held[1] ~= ARGV[1] and held[2] ~= ARGV[1] or held[3] ~= ARGV[2] then return false end
local epoch = tonumber(held[4]) + 1
redis.call('HSET', KEYS[1], 'owner', ARGV[3], 'epoch', epoch, 'token', ARGV[4],
  'token_before', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return {epoch, held[5], redis.call('LRANGE', KEYS[2], 0, -1), held[6] or ''}
""")

# ARGV: owner, epoch.
_END = Script("""
local held = redis.call('HMGET', KEYS[1], 'owner', 'epoch')
if held[1] == ARGV[1] and held[2] == ARGV[2] then redis.call('DEL', KEYS[1], KEYS[2]) end
return 1
""")


@dataclass(frozen=True, slots=True)
class Grant:
    """A session that this gateway holds now."""

    session_id: str
    epoch: int
    token: bytes  # resumes it, once; a secret
    record: storage_pb2.SessionRecord
    log: tuple[storage_pb2.LogEntry, ...] = ()
    conversation: storage_pb2.Conversation = field(default_factory=storage_pb2.Conversation)

    @property
    def keys(self) -> tuple[str, str]:
        name = f"tm:session:{{{self.session_id}}}"
        return name, f"{name}:log"


class Leases:
    """Opens, takes over and ends sessions in the name of one gateway.

    Args:
        owner: this gateway, unlike any other.
        window: seconds during which a session whose gateway is gone can be resumed.
    """

    def __init__(self, store: Store, *, owner: str, window: float, metrics: GatewayMetrics) -> None:
        self._store = store
        self._owner = owner
        self._metrics = metrics
        self.holding = 0  # sessions, now
        self.window = window
        # Renewed every third of it: when a gateway dies, at least the window is left.
        self.lifetime = 1.5 * window

    async def open(self, record: storage_pb2.SessionRecord) -> Grant:
        """A new session.

        Raises:
            Unavailable: Redis is away.
        """
        session_id = secrets.token_hex(12)
        grant = Grant(session_id, 1, _token(session_id), record)
        await self._create(grant)
        return grant

    async def resume(self, token: bytes, *, tenant: str) -> Grant:
        """The session that `token` opens, taken from whoever holds it.

        The new token is in the grant. Until the client is known to have it (`Lease.told`), the one
        that was shown works again.

        Raises:
            NotFound: no session, or not with this token or tenant.
            Unavailable: Redis is away.
        """
        session_id = token.partition(b".")[0].decode("ascii", "replace")[:64]
        claim = Grant(session_id, 0, _token(session_id), storage_pb2.SessionRecord())
        args = [_digest(token), tenant, self._owner, _digest(claim.token), self._ttl]
        taken = await self._store.run(_TAKE, claim.keys, args)
        if taken is None:
            raise NotFound("session to resume", session_id)
        epoch, record, entries, conversation = taken
        return Grant(
            session_id,
            epoch,
            claim.token,
            storage_pb2.SessionRecord.FromString(record),
            tuple(storage_pb2.LogEntry.FromString(entry) for entry in entries),
            storage_pb2.Conversation.FromString(conversation),
        )

    async def end(self, grant: Grant) -> None:
        """The session is over; it cannot be resumed. Redis away: it expires by itself."""
        with suppress(Unavailable):
            await self._store.run(_END, grant.keys, [self._owner, grant.epoch])

    def hold(
        self, grant: Grant, log: SessionLog, *, keep: int, at: Callable[[], tuple[Position, int]]
    ) -> Lease:
        """Keep the session ours and its log written.

        Args:
            keep: entries of the log that another gateway needs.
            at: what is to be sent next, and the turn that the last interruption began.
        """
        return Lease(self, grant, log, keep=keep, at=at)

    async def write(
        self,
        grant: Grant,
        keep: int,
        first: int,
        entries: list[bytes],
        *,
        told: bool = False,
        said: bytes = b"",
    ) -> bool:
        """Write the log from chunk `first` on; -1: only stay the owner.

        Returns whether Redis had all that comes before `first`.

        Args:
            told: whether the client has its newest token, so that none before it is needed.
            said: a `Conversation`; b"": as before.

        Raises:
            Fenced: another connection holds the session.
            Unavailable: Redis is away.
        """
        args = [self._owner, grant.epoch, self._ttl, keep, int(told), said, first, *entries]
        match await self._store.run(_WRITE, grant.keys, args):
            case 0:
                self._metrics.leases_lost.inc()
                raise Fenced("another connection took the session over")
            case -1:  # Redis lost it, or was away for too long
                await self._create(grant)
                raise Unavailable("the session had to be written anew", retry_after=0.0)
            case done:
                return bool(done != 2)

    def held(self, change: int) -> None:
        """Count sessions that are held."""
        self.holding += change
        self._metrics.leases.inc(change)

    async def _create(self, grant: Grant) -> None:
        record = grant.record.SerializeToString()
        digest = _digest(grant.token)
        args = [self._owner, grant.epoch, digest, grant.record.tenant, record, self._ttl]
        await self._store.run(_OPEN, grant.keys, args)

    @property
    def _ttl(self) -> int:
        return round(1000 * self.lifetime)


class Lease:
    """One session's lease: a journal that writes in the background, and renews."""

    def __init__(
        self,
        leases: Leases,
        grant: Grant,
        log: SessionLog,
        *,
        keep: int,
        at: Callable[[], tuple[Position, int]],
    ) -> None:
        self._leases = leases
        self._grant = grant
        self._log = log
        self._keep = keep
        self._at = at
        self._wake = Wake()
        self._unwritten: int | None = None  # the first chunk that Redis does not have
        self._told = False  # whether the client has its newest token
        self._said = b""  # the newest `Conversation`
        self._said_unwritten = False

    def wrote(self, chunk: int) -> None:
        """A chunk was drawn, or what it holds changed; all after it were, too, or are void."""
        if self._unwritten is None or chunk < self._unwritten:
            self._unwritten = chunk
        self._wake.give()

    def told(self) -> None:
        self._told = True

    def said(self, conversation: storage_pb2.Conversation) -> None:
        """The conversation, as it is now."""
        self._said, self._said_unwritten = conversation.SerializeToString(), True
        self._wake.give()

    async def keep(self) -> None:
        """Write and renew for as long as the session lasts.

        Raises:
            Fenced: another connection took the session over.
        """
        self._leases.held(1)
        try:
            while True:
                if self._unwritten is None and not self._said_unwritten:
                    await self._wake.wait(self._leases.lifetime / 3)
                await self._try()
        finally:
            self._leases.held(-1)

    async def leave(self) -> None:
        """Write how far the client was sent, where a connection that comes after may go on."""
        drawn = [entry.chunk.chunk for entry in self._log.entries if entry.latents is not None]
        if drawn:
            self.wrote(drawn[-1])
        with suppress(Unavailable, Fenced, TimeoutError):  # then what was written last holds
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self._write()

    async def _try(self) -> None:
        first, said = self._unwritten, self._said_unwritten
        try:
            await self._write()
        except Unavailable as error:
            # What Redis was not told goes there again. When everything did, a Redis that is slow
            # would get twenty times as much of every session from then on, and stay slow.
            lost = not error.retry_after
            self._again(0 if lost else first)
            self._said_unwritten |= bool(self._said) if lost else said
            if error.retry_after:
                await asyncio.sleep(_RETRY_SECONDS)

    def _again(self, first: int | None) -> None:
        """Chunks from `first` on are not written, nor those that came meanwhile."""
        known = [chunk for chunk in (first, self._unwritten) if chunk is not None]
        self._unwritten = min(known, default=None)

    async def _write(self) -> None:
        first, self._unwritten = self._unwritten, None
        said, self._said_unwritten = self._said if self._said_unwritten else b"", False
        drawn = [entry for entry in self._log.entries if entry.latents is not None]
        if first is None:
            await self._leases.write(self._grant, self._keep, -1, [], told=self._told, said=said)
            return
        kept = drawn[-self._keep :]
        entries = [entry for entry in kept if entry.chunk.chunk >= first]
        if entries:
            first = entries[0].chunk.chunk
        written = [self._bytes(entry) for entry in entries]
        follows = await self._leases.write(
            self._grant, self._keep, first, written, told=self._told, said=said
        )
        if not follows and len(entries) < len(kept):  # it lost some, as a replica that takes over
            self._again(0)

    def _bytes(self, entry: Entry) -> bytes:
        position, turn = self._at()
        return entry_to_proto(entry, sent_frame=position.frame, turn=turn).SerializeToString()


def _token(session_id: str) -> bytes:
    return f"{session_id}.{secrets.token_urlsafe(32)}".encode()


def _digest(token: bytes) -> str:
    """What is kept of a token: enough to know it again, not to use it."""
    return sha256(token).hexdigest()
