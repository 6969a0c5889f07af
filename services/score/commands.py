"""Everything that a worker can be told to do, as values that cross processes.

Between `engine.py`, which says it, and `worker.py`, which does it; `parallel.py` sends one to every
rank. A command's result is rank 0's.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from services.accelerator.copies import PendingCopy
from services.score.contract import Avatar
from services.score.worker import Part, Worker


@dataclass(frozen=True, slots=True, eq=False)
class AddAvatar:
    avatar: Avatar

    def run(self, worker: Worker) -> int:
        return worker.add_avatar(self.avatar)


@dataclass(frozen=True, slots=True)
class DropAvatar:
    digest: str

    def run(self, worker: Worker) -> None:
        worker.drop_avatar(self.digest)


@dataclass(frozen=True, slots=True)
class Open:
    session: str
    digest: str
    seed: int

    def run(self, worker: Worker) -> int:
        return worker.open(self.session, self.digest, self.seed)


@dataclass(frozen=True, slots=True)
class Close:
    session: str

    def run(self, worker: Worker) -> None:
        worker.close(self.session)


@dataclass(frozen=True, slots=True)
class Forget:
    session: str

    def run(self, worker: Worker) -> None:
        worker.forget(self.session)


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    part: Part
    latents: Tensor  # [C, F, h, w]

    def run(self, worker: Worker) -> None:
        worker.replay(self.part, self.latents)


@dataclass(frozen=True, slots=True, eq=False)
class Denoise:
    batch: tuple[Part, ...]

    def run(self, worker: Worker) -> PendingCopy:
        return worker.denoise(self.batch)


@dataclass(frozen=True, slots=True)
class Remember:
    def run(self, worker: Worker) -> None:
        worker.remember()
        worker.synchronize()


@dataclass(frozen=True, slots=True)
class Answer:
    """Does nothing new: whoever is alive answers."""

    def run(self, worker: Worker) -> None:
        worker.synchronize()
