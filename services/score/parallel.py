"""Several devices draw one picture: Ulysses sequence parallelism, wrapped around the model.

Beside `worker.py`, of which every rank has one. Each rank computes a horizontal band of the
picture; only in self-attention they meet, where every rank takes all tokens of some heads (Jacobs
et al., arXiv 2309.14509), so the caches of keys and values are sharded by head. The model knows
nothing of it: its `attend` is another one, its input a smaller picture.

Rank 0 leads: it sends every command to all, and all answer. A rank that dies or hangs is found out
within `timeout` seconds, and then nothing is drawn here any more. Not yet run on GPUs.

Legend: B batch, P ranks, L tokens of a pass, H heads, D head size, M tokens seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor
from torch.distributed import _functional_collectives as collectives

from services.score.attention import Kernel, Memory
from services.score.contract import RankLost
from services.score.model import Dit
from services.score.worker import Command, Worker

R = TypeVar("R")

# Followers wait for a command as long as a fleet may idle; rank 0 never waits that long for them.
_IDLE = timedelta(days=30)


class Alone:
    """A team of one."""

    rank, size = 0, 1

    def cut(self, x: Tensor, dim: int) -> Tensor:  # noqa: ARG002
        return x

    def join(self, x: Tensor, dim: int) -> Tensor:  # noqa: ARG002
        return x


@dataclass(frozen=True, slots=True)
class Ranks:
    """A team of processes."""

    tensors: dist.ProcessGroup  # on the devices
    orders: dist.ProcessGroup  # on the hosts, from rank 0
    answers: dist.ProcessGroup  # on the hosts, to rank 0

    @staticmethod
    def gather(*, timeout: float, backend: str | None = None) -> Ranks:
        """All processes of the default group, which must exist; every rank calls this.

        Args:
            timeout: seconds after which a rank that does not answer is taken for lost.
            backend: of the devices' group; that of the default group if not given.
        """
        limit, leads = timedelta(seconds=timeout), dist.get_rank() == 0
        return Ranks(
            tensors=dist.new_group(timeout=limit, backend=backend),
            orders=dist.new_group(timeout=limit if leads else _IDLE, backend="gloo"),
            answers=dist.new_group(timeout=limit, backend="gloo"),
        )

    @property
    def rank(self) -> int:
        return self.tensors.rank()

    @property
    def size(self) -> int:
        return self.tensors.size()

    def cut(self, x: Tensor, dim: int) -> Tensor:
        return x.chunk(self.size, dim)[self.rank]

    def join(self, x: Tensor, dim: int) -> Tensor:
        bands = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(bands, x.contiguous(), group=self.tensors)
        return torch.cat(bands, dim)


class Ulysses:
    """Self-attention in which this rank has some tokens of all heads, and sees all of some."""

    def __init__(self, kernel: Kernel, group: dist.ProcessGroup) -> None:
        self._kernel, self._group, self._size = kernel, group, group.size()

    def start(self, x: Tensor) -> Tensor:
        """Begin to exchange; the transfer runs while the next projection computes.

        [B, L/P, H, D] → [P, B, L/P, H/P, D], by rank that it came from; waited for when it is used.
        """
        return self._exchange(rearrange(x, "b l (p h) d -> p b l h d", p=self._size))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, memory: Memory) -> Tensor:
        q, k, v = (rearrange(x, "p b l h d -> b (p l) h d") for x in (q, k, v))
        seen = memory.extend(k, v)
        out = self._kernel(q, seen.k, seen.v)
        back = self._exchange(rearrange(out, "b (p l) h d -> p b l h d", p=self._size))
        return rearrange(back, "p b l h d -> b l (p h) d")

    def _exchange(self, x: Tensor) -> Tensor:
        return collectives.all_to_all_single(x.contiguous(), None, None, self._group)


def share_attention(model: Dit, kernel: Kernel, ranks: Ranks) -> None:
    """Let `ranks` compute the model's self-attention together."""
    config = model.config
    if config.heads % ranks.size or config.grid[0] % ranks.size:
        raise ValueError(
            f"{ranks.size} ranks: expected a divisor of {config.heads} heads "
            f"and of {config.grid[0]} rows of tokens"
        )
    if config.anchor_tokens > config.frame_tokens and config.latent_size[0] % (8 * ranks.size):
        raise ValueError(
            f"{ranks.size} ranks: expected {8 * ranks.size} to divide {config.latent_size[0]} rows "
            "of latents, since frames before the first are packed by eight rows"
        )
    for block in model.layers():
        block.self_attn.attend = Ulysses(kernel, ranks.tensors)


class Solo:
    """One device: commands are carried out here."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def perform(self, command: Command[R]) -> R:
        return command.run(self._worker)


class Leader:
    """Rank 0: every command is carried out by all ranks, and all have answered when it returns."""

    def __init__(self, worker: Worker, ranks: Ranks) -> None:
        self._worker, self._ranks = worker, ranks

    def perform(self, command: Command[R]) -> R:
        self._order(command)
        result, failure = _attempt(command, self._worker)
        answers = self._answers(failure)
        if any(answers) and len(set(answers)) > 1:
            # Ranks that disagree about what happened no longer hold the same caches.
            raise RankLost(f"ranks disagree: {answers}")
        if failure is not None:
            raise failure
        return cast(R, result)

    def dismiss(self) -> None:
        """Let the followers go; all have heard of it when this returns.

        A leader that left at once could close the connection before its last word was read.

        Raises:
            RankLost: a rank does not answer.
        """
        self._order(None)
        self._answers(None)

    def _order(self, command: Command[object] | None) -> None:
        try:
            dist.broadcast_object_list([command], src=0, group=self._ranks.orders)
        except RuntimeError as error:
            raise RankLost(f"a rank does not take orders: {_line(error)}") from error

    def _answers(self, failure: Exception | None) -> list[str]:
        answers: list[str] = [""] * self._ranks.size
        try:
            dist.gather_object(_name(failure), answers, dst=0, group=self._ranks.answers)
        except RuntimeError as error:
            raise RankLost(f"a rank does not answer: {_line(error)}") from error
        return answers


def follow(worker: Worker, ranks: Ranks) -> None:
    """Every other rank: do what rank 0 says until it says that this is all.

    Raises:
        RuntimeError: rank 0 is gone.
    """
    while True:
        order: list[Command[object] | None] = [None]
        dist.broadcast_object_list(order, src=0, group=ranks.orders)
        command = order[0]
        failure = None if command is None else _attempt(command, worker)[1]
        dist.gather_object(_name(failure), None, dst=0, group=ranks.answers)
        if command is None:
            return


def _attempt(command: Command[R], worker: Worker) -> tuple[R | None, Exception | None]:
    try:
        return command.run(worker), None
    except Exception as error:  # noqa: BLE001 - all ranks must hear of it, then it is raised
        return None, error


def _name(failure: Exception | None) -> str:
    return "" if failure is None else type(failure).__name__


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]
