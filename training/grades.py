"""What makes a good answer, in numbers, and the table they stand in.

exam → **grades** → evaluate. Everything here is a function of mouths over time, seen and asked for.

Legend: B characters, T video frames, 6 controls in the order of `faces.expression.MOUTH`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.faces.expression import MOUTH
from training.measure import correlation, lag
from training.mouth_reader import PRESS, lips_apart


@dataclass(frozen=True, slots=True)
class Sync:
    """How well mouths follow speech; means over characters."""

    apart: float  # correlation of how far the lips are apart
    lowest: float  # of the characters
    lag_frames: float  # mean
    in_time: float  # share of characters with a lag of at most one frame
    gain: float  # how wide mouths open, beside the truth
    closures: float  # share of p, b, m on which the lips are seen to close
    teeth: float  # correlation
    round: float  # correlation


@dataclass(frozen=True, slots=True)
class Grades:
    """One row of the table."""

    model: str
    sync: Sync
    stillness: float  # motion of a listening mouth, as a share of a speaking one's
    reaction_frames: float
    kept_first: float  # dB, background against the reference picture, first tenth of the stream
    kept_last: float  # last tenth
    shift_last: float  # mean change of colour in the last tenth, of the full range
    chunk_seconds: float  # one character's share of a batch: drawing, context pass and decoding


def sync(seen: Tensor, asked: Tensor) -> Sync:
    """Mouths as they are seen beside mouths as the speech asks for them, [B, T, 6] each."""
    made, true = lips_apart(seen), lips_apart(asked)
    rows = range(len(made))
    each = [correlation(made[row], true[row]) for row in rows]
    lags = [lag(made[row], true[row]) for row in rows]

    def mean_of(name: str) -> float:
        k = MOUTH.index(name)
        return sum(correlation(seen[row, :, k], asked[row, :, k]) for row in rows) / len(made)

    return Sync(
        apart=sum(each) / len(each),
        lowest=min(each),
        lag_frames=sum(lags) / len(lags),
        in_time=sum(abs(one) <= 1 for one in lags) / len(lags),
        gain=float((made.std(1) / true.std(1).clamp(min=1e-6)).mean()),
        closures=closures(made, asked),
        teeth=mean_of("teeth"),
        round=mean_of("round"),
    )


def closures(made: Tensor, asked: Tensor) -> float:
    """Share of the closures in `asked` [B, T, 6] on which `made` [B, T] closes, a frame's grace.

    Closed is a fifth of how far the same mouth opens at its widest. 1 where nothing is to close.
    """
    hits: list[bool] = []
    for row, wanted in zip(made, asked[..., PRESS] > 0.6, strict=True):
        limit = 0.2 * float(row.quantile(0.95))
        edges = torch.diff(wanted.int(), prepend=torch.zeros(1), append=torch.zeros(1))
        starts, ends = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            hits.append(float(row[max(0, start - 1) : end + 1].min()) < limit)
    return sum(hits) / len(hits) if hits else 1.0


def reaction(seen: Tensor, asked: Tensor) -> float:
    """Frames from the moment a mouth should begin to open until it does; means over characters.

    Opening is a quarter of how far the same mouth opens later; a mouth that never does counts to
    the end.
    """
    waits = [
        _first_above(made, 0.25) - _first_above(true, 0.25)
        for made, true in zip(lips_apart(seen), lips_apart(asked), strict=True)
    ]
    return sum(waits) / len(waits)


def table(rows: Sequence[Grades]) -> str:
    """Markdown."""
    head = (
        "| model | lips apart r (lowest) | lag, frames | within 1 | gain | p b m closed | teeth r"
        " | round r | silent / speaking motion | reaction, frames | background dB first → last"
        " | colour shift | s per chunk |"
    )
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for row in rows:
        s = row.sync
        lines.append(
            f"| {row.model} | {s.apart:.3f} ({s.lowest:.2f}) | {s.lag_frames:+.1f} "
            f"| {s.in_time:.0%} | {s.gain:.2f} | {s.closures:.2f} | {s.teeth:.2f} | {s.round:.2f} "
            f"| {row.stillness:.3f} | {row.reaction_frames:.1f} "
            f"| {row.kept_first:.1f} → {row.kept_last:.1f} | {row.shift_last:.4f} "
            f"| {row.chunk_seconds:.3f} |"
        )
    return "\n".join(lines)


def _first_above(x: Tensor, share: float) -> int:
    above = (x > share * x.quantile(0.95)).nonzero()
    return int(above[0, 0]) if len(above) else len(x)
