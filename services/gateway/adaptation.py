"""How many bits a second a call's pictures get, by what its client says that it can take.

Beside the path: webrtc → **adaptation** → session → vae. A change costs a key frame, so there are
few: at once when the network is full, rarely upwards, and none for what is noise.
"""

from __future__ import annotations

from dataclasses import dataclass

_FULL = 1.15  # times what is sent: an estimate below says that the network takes no more
_SHARE_FULL, _SHARE_FREE = 0.85, 0.9  # of an estimate that is used
_WORTH_LESS, _WORTH_MORE = 0.85, 1.25  # times the rate: changes beyond these are made
_CALM_SECONDS = 2.0  # after a change, before the next one down
_PATIENT_SECONDS = 10.0  # before one up


@dataclass(frozen=True, slots=True)
class Rates:
    """Bits per second. Pictures begin with `first` and stay between `least` and `most`."""

    first: int = 1_500_000
    least: int = 150_000
    most: int = 4_000_000
    voice: int = 32_000  # of the sound, which is not adapted

    def __post_init__(self) -> None:
        if not 50_000 <= self.least <= self.first <= self.most <= 50_000_000:
            raise ValueError("expected 50000 <= least <= first <= most <= 50000000")
        if not 6_000 <= self.voice <= 256_000:
            raise ValueError("expected voice between 6000 and 256000")


class Adaptation:
    """One call's rate."""

    def __init__(self, rates: Rates, now: float) -> None:
        self._rates = rates
        self._changed_at = now
        self.rate = rates.first

    def estimated(self, bits: int, *, sent: float, now: float) -> bool:
        """The client believes that it can take `bits` a second; returns whether the rate changes.

        Estimates grow only with what is sent: one far above that says nothing against more.

        Args:
            sent: bits a second that pictures had of late.
        """
        full = bits < _FULL * sent
        aim = bits * _SHARE_FULL if full else max(bits * _SHARE_FREE, self.rate)
        aim = min(max(round(aim), self._rates.least), self._rates.most)
        calm = now - self._changed_at
        less = full and aim <= _WORTH_LESS * self.rate and calm >= _CALM_SECONDS
        more = aim >= _WORTH_MORE * self.rate and calm >= _PATIENT_SECONDS
        if not less and not more:
            return False
        self.rate, self._changed_at = aim, now
        return True
