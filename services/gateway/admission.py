"""Who may begin a session now: places in the whole fleet, and a fair queue for them.

Beside the path: opening → **admission** → Redis. All gateways count in the same place. A place that
is not renewed is free again, so a gateway that dies takes none with it. Running sessions never pay
for new ones: their places are only ever renewed, and how many places there are is what replicas say
that they take (`replicas`), or less when the operator says so.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256

from services.gateway.replicas import SLOTS
from services.gateway.store import Script, Store
from services.runtime.metrics import GatewayMetrics
from talkingmachines.errors import NoCapacity, QuotaExceeded, Unavailable

_POLL_SECONDS = 0.5
_PLACE_SECONDS = 30.0  # a place lives so long without being renewed
_WAITING_SECONDS = 5.0  # a ticket lives so long without being asked about
_RETRY_SECONDS = 5.0
_TRIAL_MS = 2_000
_NEWEST = 0.1  # weight of the newest session in the mean of their lengths

_ACTIVE, _QUEUE, _WAITING, _COUNTER, _TRIAL, _LENGTH = (
    f"tm:{{fleet}}:{name}" for name in ("active", "queue", "waiting", "tickets", "trial", "length")
)

# KEYS: active, queue, waiting, counter, the caller's, slots of the engines, trial, mean length of
# sessions. ARGV: ticket, capacity (0: any), the caller's most, longest queue, seconds of a place,
# seconds of a ticket, order (or ''), milliseconds between trials. Whoever asks is let in when there
# is a place for everybody before it, too: if only the first were, places would be given out no
# faster than the first happens to ask, whatever became free. When as many sessions run as replicas
# are known to take, the first in the queue is let in on trial now and then: others may have come.
# Returns position (0: admitted, -1: the caller has its share, -2: the queue is full), depth, order,
# and seconds until it is let in ('': nobody knows), if sessions end as often as of late.
_ENTER = Script("""
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', now)
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[5], ARGV[1])
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now)) do
  redis.call('ZREM', KEYS[2], gone)
  redis.call('ZREM', KEYS[3], gone)
end
if redis.call('ZCARD', KEYS[5]) >= tonumber(ARGV[3]) then return {-1, 0, '', ''} end
local order = redis.call('ZSCORE', KEYS[2], ARGV[1]) or ARGV[7]
if order == '' then
  if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[4]) then return {-2, 0, '', ''} end
  order = tostring(redis.call('INCR', KEYS[4]))
end
redis.call('ZADD', KEYS[2], order, ARGV[1])
redis.call('ZADD', KEYS[3], now + ARGV[6], ARGV[1])
local rank = redis.call('ZRANK', KEYS[2], ARGV[1])
local most, active = tonumber(ARGV[2]), redis.call('ZCARD', KEYS[1])
local slots = tonumber(redis.call('GET', KEYS[6]) or '0')
local allowed = most == 0 or active + rank < most
local fits = slots == 0 or active + rank < slots
if allowed and (fits or rank == 0 and redis.call('SET', KEYS[7], ARGV[1], 'NX', 'PX', ARGV[8])) then
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
  redis.call('ZADD', KEYS[1], now + ARGV[5], ARGV[1])
  redis.call('ZADD', KEYS[5], now + ARGV[5], ARGV[1])
  redis.call('EXPIRE', KEYS[5], 86400)
  return {0, 0, order, '0'}
end
local length, wait = redis.call('GET', KEYS[8]), ''
if length and active > 0 then wait = tostring((rank + 1) * length / active) end
return {rank + 1, redis.call('ZCARD', KEYS[2]), order, wait}
""")

# KEYS: active, the caller's. ARGV: ticket, seconds.
_RENEW = Script("""
local time = redis.call('TIME')
local until_ = time[1] + time[2] / 1000000 + ARGV[2]
redis.call('ZADD', KEYS[1], until_, ARGV[1])
redis.call('ZADD', KEYS[2], until_, ARGV[1])
redis.call('EXPIRE', KEYS[2], 86400)
return 1
""")

# KEYS: active, queue, waiting, the caller's, mean length of sessions. ARGV: ticket, seconds that
# its session ran (0: it never did), weight of the newest in the mean.
_LEAVE = Script("""
for i = 1, 4 do redis.call('ZREM', KEYS[i], ARGV[1]) end
local ran = tonumber(ARGV[2])
if ran > 0 then
  local mean = tonumber(redis.call('GET', KEYS[5]) or ran)
  redis.call('SET', KEYS[5], tostring(mean + (ran - mean) * ARGV[3]), 'EX', 86400)
end
return 1
""")


@dataclass(frozen=True, slots=True)
class Waiting:
    """Where a caller stands in the queue."""

    position: int  # 1 is next
    depth: int  # callers waiting in all
    wait: float | None = None  # seconds, an estimate; None where there is none


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the fleet takes."""

    sessions: int = 0  # at once; 0: as many as the engines take
    queue: int = 1_000  # callers that may wait


class Admission:
    """Places for sessions, fleet-wide."""

    def __init__(self, store: Store, capacity: Capacity, *, metrics: GatewayMetrics) -> None:
        self._store = store
        self._capacity = capacity
        self._metrics = metrics

    def ticket(self, caller: str, *, most: int, tell: Callable[[Waiting], None]) -> Ticket:
        """A place to be asked for.

        Args:
            caller: whose sessions are counted together.
            most: sessions that the caller may have at once.
            tell: told where the caller stands, whenever that changes while it waits.
        """
        return Ticket(self, caller, most=most, tell=tell)

    async def enter(self, ticket: str, caller: str, most: int, order: str) -> tuple[Waiting, str]:
        """Where the ticket stands (position 0: it has a place), and its order in the queue."""
        keys = [_ACTIVE, _QUEUE, _WAITING, _COUNTER, _caller(caller), SLOTS, _TRIAL, _LENGTH]
        limits = [self._capacity.sessions, most, self._capacity.queue]
        args = [ticket, *limits, _PLACE_SECONDS, _WAITING_SECONDS, order, _TRIAL_MS]
        position, depth, order_, wait = await self._store.run(_ENTER, keys, args)
        waiting = Waiting(int(position), int(depth), float(wait) if wait else None)
        return waiting, order_.decode()

    async def renew(self, ticket: str, caller: str) -> None:
        keys = [_ACTIVE, _caller(caller)]
        await self._store.run(_RENEW, keys, [ticket, _PLACE_SECONDS])

    async def leave(self, ticket: str, caller: str, ran: float) -> None:
        keys = [_ACTIVE, _QUEUE, _WAITING, _caller(caller), _LENGTH]
        await self._store.run(_LEAVE, keys, [ticket, ran, _NEWEST])

    def waited(self, seconds: float) -> None:
        self._metrics.queue_wait.observe(seconds)


class Ticket:
    """One caller's claim to a place: waits for it, keeps it, gives it back."""

    def __init__(
        self, admission: Admission, caller: str, *, most: int, tell: Callable[[Waiting], None]
    ) -> None:
        self._admission = admission
        self._caller = caller
        self._most = most
        self._tell = tell
        self._name = secrets.token_hex(12)
        self._order = ""  # in the queue; kept when a place turns out to be none
        self._told = (0, 0)
        self._began: float | None = None  # loop time since which it has its place

    async def wait(self, deadline: float) -> None:
        """Return with a place.

        Args:
            deadline: loop time until which to wait.

        Raises:
            QuotaExceeded: the caller has all the sessions it may have.
            NoCapacity: there is none until the deadline, or the queue is full.
            Unavailable: Redis is away.
        """
        clock = asyncio.get_running_loop().time
        started = clock()
        while True:
            waiting, order = await self._admission.enter(
                self._name, self._caller, self._most, self._order
            )
            match waiting.position:
                case 0:
                    self._order, self._began = order, clock()
                    self._admission.waited(self._began - started)
                    return
                case -1:
                    raise QuotaExceeded("sessions at once", limit=str(self._most))
                case -2:
                    raise NoCapacity("a session", retry_after=_RETRY_SECONDS)
            self._order = order
            await self.pause(deadline, waiting)

    async def pause(self, deadline: float, waiting: Waiting = Waiting(1, 1)) -> None:
        """Tell the position, and wait a little; a place that it had was none.

        Raises:
            NoCapacity: the deadline has come.
        """
        self._began = None
        if asyncio.get_running_loop().time() + _POLL_SECONDS > deadline:
            await self.give_back()
            raise NoCapacity("a session", retry_after=_RETRY_SECONDS)
        if (waiting.position, waiting.depth) != self._told:
            self._told = (waiting.position, waiting.depth)
            self._tell(waiting)
        await asyncio.sleep(_POLL_SECONDS * random.uniform(0.7, 1.0))

    async def take(self) -> None:
        """Take a place without asking: a session that is resumed had one."""
        with suppress(Unavailable):
            await self._admission.renew(self._name, self._caller)

    async def keep(self) -> None:
        """Renew the place for as long as the session lasts."""
        while True:
            await asyncio.sleep(_PLACE_SECONDS / 3)
            await self.take()

    async def give_back(self) -> None:
        """Leave place or queue; Redis away: both are forgotten by themselves."""
        now = asyncio.get_running_loop().time()
        ran = 0.0 if self._began is None else now - self._began
        self._began = None
        with suppress(Unavailable):
            await self._admission.leave(self._name, self._caller, ran)


def _caller(name: str) -> str:
    return f"tm:{{fleet}}:caller:{sha256(name.encode()).hexdigest()[:32]}"
