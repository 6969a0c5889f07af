"""What a VAE remembers of a stream: the last input frames of every temporal convolution.

Passed into a tower and out again, never kept in it, so one model serves any number of sessions.
The public decoders keep this in the module and lose it (or mix it up) between calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class State:
    """The past of one stream, or of several of one size side by side.

    `slots[i]` is [B, C, 2 or 1, H, W]: what convolution `i` sees of the past. A state without
    slots is the beginning of a stream, whose first frame has no past and is a picture alone.
    """

    slots: tuple[Tensor, ...] = ()

    @property
    def started(self) -> bool:
        return bool(self.slots)

    @property
    def bytes(self) -> int:
        return sum(slot.numel() * slot.element_size() for slot in self.slots)

    def copy_(self, other: State) -> None:
        """Take over the contents of a state of the same shape, in the memory held already."""
        for mine, theirs in zip(self.slots, other.slots, strict=True):
            mine.copy_(theirs)

    def clone(self) -> State:
        return State(tuple(slot.clone() for slot in self.slots))


def join(states: Sequence[State]) -> State:
    """Several streams side by side along the batch."""
    if len(states) == 1:
        return states[0]
    columns = zip(*(state.slots for state in states), strict=True)
    return State(tuple(torch.cat(column) for column in columns))


def part(state: State) -> list[State]:
    """The streams of a joint state, as views into it."""
    rows = zip(*(torch.split(slot, 1) for slot in state.slots), strict=True)
    return [State(tuple(row)) for row in rows]


class History:
    """One pass of new frames through a tower: hands out the past, collects the next state."""

    def __init__(self, state: State) -> None:
        self._past = state.slots
        self._next: dict[int, Tensor] = {}
        self.first = not state.started  # whether the leading frame of `x` is a picture alone

    def extend(self, slot: int, x: Tensor, frames: int) -> Tensor:
        """`x` [B, C, T, H, W] behind the last `frames` frames that came before it."""
        past = self._past[slot] if self._past else _zeros(x, frames)
        return self.remember(slot, append([past, x]), frames)

    def remember(self, slot: int, window: Tensor, frames: int) -> Tensor:
        """Keep the last frames of `window` for the next pass; `window` itself is handed back."""
        # A copy: a view would keep the memory of the whole window.
        kept = window[:, :, window.shape[2] - frames :]
        self._next[slot] = kept.clone(memory_format=torch.channels_last_3d)
        return window

    def newest(self, x: Tensor, frames: int) -> Tensor:
        """The last `frames` frames of `x`, for layers that need no more."""
        if x.shape[2] <= frames:
            return x
        self.first = False
        return x[:, :, x.shape[2] - frames :]

    def state(self) -> State:
        """The state after the pass; where no layer looked, the past is what it was."""
        if not self._past:
            return State(tuple(self._next[slot] for slot in range(len(self._next))))
        return State(tuple(self._next.get(slot, past) for slot, past in enumerate(self._past)))


def append(pieces: Sequence[Tensor]) -> Tensor:
    """[B, C, T, H, W] pieces one after the other, laid out in memory as [B, T, H, W, C].

    Concatenating what lies that way as it lies keeps it so; PyTorch's own rule for the layout of a
    result gives up on pieces of a single frame, and every later convolution pays for the change.
    """
    rows = torch.cat([piece.permute(0, 2, 3, 4, 1) for piece in pieces], dim=1)
    return rows.permute(0, 4, 1, 2, 3)


def _zeros(x: Tensor, frames: int) -> Tensor:
    batch, channels, _, height, width = x.shape
    return x.new_zeros((batch, frames, height, width, channels)).permute(0, 4, 1, 2, 3)
