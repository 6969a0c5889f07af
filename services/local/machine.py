"""What this machine can give, and what each part gets of it.

Number formats are not chosen here: each engine tries them on its device when it loads.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

# Measured with the small model: Ray 0.6 GB, each replica 0.6 GB, gateway and Redis 0.2 GB; the
# bridge, if there is one, 0.3 GB.
NEEDED_BYTES = 2 * 1024**3

_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is."""

    cores: int  # that this process may use
    free_bytes: int | None  # of memory; None where the system does not say

    @classmethod
    def here(cls) -> Machine:
        return cls(len(os.sched_getaffinity(0)), _free_bytes())

    @property
    def score_threads(self) -> int:
        """The transformer has most of the work; the decoder works beside it all the time."""
        return max(1, self.cores - self.vae_threads)

    @property
    def vae_threads(self) -> int:
        return max(1, self.cores // 3)


def _free_bytes() -> int | None:
    """Memory that could be used without swapping."""
    if not _MEMINFO.exists():
        return None
    for line in _MEMINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None
