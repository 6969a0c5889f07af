"""The way in, for gRPC and HTTP alike: who calls, and whether they do so too often.

On the path: client → **entrance** → servicer or web → calls, avatars.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.gateway.auth import Caller, Door
from services.gateway.calls import refusal
from services.gateway.limits import Allowance
from services.runtime.metrics import GatewayMetrics, Refusal
from talkingmachines.errors import QuotaExceeded, TalkingMachinesError, Unauthenticated

_MOST_ALLOWANCES = 10_000


@dataclass
class Entrance:
    """Lets callers in; a request over gRPC counts like one over HTTP."""

    door: Door
    metrics: GatewayMetrics
    _allowances: dict[str, Allowance] = field(default_factory=dict)

    async def enter(self, metadata: Mapping[str, str]) -> Caller:
        """The caller behind one request.

        Args:
            metadata: with `authorization`, as it was sent; names are lower case.

        Raises:
            Unauthenticated: nobody we know.
            QuotaExceeded: the caller asks too often.
            Unavailable: the issuer's keys cannot be fetched.
        """
        try:
            caller = await self.door.enter(metadata)
            if not self._allowance(caller).take(asyncio.get_running_loop().time()):
                rate = caller.limits.requests_per_second
                raise QuotaExceeded("requests", limit=f"{rate:g} a second")
        except TalkingMachinesError as error:
            credentials = isinstance(error, Unauthenticated)
            reason = Refusal.CREDENTIALS if credentials else refusal(error)
            self.metrics.refusals.labels(reason).inc()
            raise
        return caller

    def _allowance(self, caller: Caller) -> Allowance:
        allowance = self._allowances.pop(caller.name, None)
        if allowance is None:
            allowance = Allowance(caller.limits.requests_per_second)
        self._allowances[caller.name] = allowance  # the last one used comes last
        while len(self._allowances) > _MOST_ALLOWANCES:
            del self._allowances[next(iter(self._allowances))]
        return allowance
