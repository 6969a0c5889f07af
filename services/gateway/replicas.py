"""Which replicas the engines have, and how many sessions they take together.

Beside the path: engines, attaching → **replicas** → Redis → admission. Replicas say how many
sessions they take whenever they are asked what they have loaded, and whenever one is attached to.
All gateways write that down in the same place, because none of them sees every replica. What is
written down is never the last word: a replica that was not heard of has room too, so admission
lets the first in the queue try, and a replica that is full refuses.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from services.gateway.store import Script, Store
from services.runtime.metrics import Engine, GatewayMetrics
from talkingmachines.errors import Unavailable

_WRITE_SECONDS = 1.0
_KNOWN_SECONDS = 90.0  # longer than an attachment lasts: whoever has sessions is heard of again

# KEYS: for score and then for VAE slots by replica, and until when each is known; slots of both.
# ARGV: seconds to remember; then for each replica its engine (1 or 2), name and slots.
# Returns how many sessions both take; -1 when that is not known. The sums are kept beside the
# slots, so that this costs as much as there is news, however many replicas there are: every
# gateway runs it every second.
_SEEN = Script("""
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
for i = 2, #ARGV, 3 do
  local key, name, slots = KEYS[2 * ARGV[i] - 1], ARGV[i + 1], ARGV[i + 2]
  local before = redis.call('HGET', key, name) or 0
  if before ~= slots then
    redis.call('HSET', key, name, slots)
    redis.call('HINCRBY', key, '', slots - before)
  end
  redis.call('ZADD', KEYS[2 * ARGV[i]], now + ARGV[1], name)
end
local most = -1
for i = 1, 3, 2 do
  local slots, known = KEYS[i], KEYS[i + 1]
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', known, '-inf', now)) do
    redis.call('HINCRBY', slots, '', -(redis.call('HGET', slots, gone) or 0))
    redis.call('HDEL', slots, gone)
    redis.call('ZREM', known, gone)
  end
  if redis.call('ZCARD', known) > 0 then
    local sum = tonumber(redis.call('HGET', slots, ''))
    if most < 0 or sum < most then most = sum end
  end
end
if most < 0 then redis.call('DEL', KEYS[5])
else redis.call('SET', KEYS[5], most, 'EX', math.ceil(ARGV[1])) end
return most
""")

SLOTS = "tm:{fleet}:slots"  # sessions that the engines take together
_KEYS = [
    *(f"{SLOTS}:{engine}:{what}" for engine in ("score", "vae") for what in ("by_name", "until")),
    SLOTS,
]
_PLACE = {Engine.SCORE: 1, Engine.VAE: 2}


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica as it describes itself."""

    name: str
    slots: int  # sessions that it takes; 0: it does not say


class Replicas:
    """What this gateway heard of replicas, written down for all."""

    def __init__(self, store: Store, *, most: int, metrics: GatewayMetrics) -> None:
        self._store = store
        self._most = most  # what the operator allows; 0: as many as the engines take
        self._metrics = metrics
        self._heard: dict[tuple[Engine, str], int] = {}
        metrics.session_capacity.set(most)

    def seen(self, engine: Engine, replica: Replica) -> None:
        if replica.name and replica.slots:
            self._heard[engine, replica.name] = replica.slots

    async def write(self) -> None:
        """Write down what was heard, again and again."""
        while True:
            with suppress(Unavailable):  # then it is heard again
                await self._write()
            await asyncio.sleep(_WRITE_SECONDS)

    async def _write(self) -> None:
        heard, self._heard = self._heard, {}
        args: list[str | int | float] = [_KNOWN_SECONDS]
        for (engine, name), slots in heard.items():
            args += [_PLACE[engine], name, slots]
        slots = int(await self._store.run(_SEEN, _KEYS, args))
        known = [most for most in (self._most, slots) if most > 0]
        self._metrics.session_capacity.set(min(known, default=0))
