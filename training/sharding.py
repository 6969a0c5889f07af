"""Spread a model that learns over several GPUs: weights, gradients and moments, by FSDP2.

Beside `flow.py`. PyTorch FSDP (Zhao et al., arXiv 2304.11277) in its second form: every process
learns from its own rows of a batch, and gradients are averaged, so a sharded step is the step of
one process with all rows (tested with two processes; not yet run on GPUs).

    torchrun --nproc-per-node 8 ...   then, in every process:
    mesh = init_device_mesh("cuda", (8,))
    learner = Learner(sharded(Believer(dit, "causal"), mesh), Recipe(rate=1e-5))
"""

from __future__ import annotations

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from training.flow import Believer


def sharded(
    believer: Believer, mesh: DeviceMesh, policy: MixedPrecisionPolicy | None = None
) -> Believer:
    """`believer`, its parameters spread over `mesh`, in place.

    Self-attention and perceptrons, two thirds of a Wan-shaped model, are gathered when their turn
    comes. The rest belongs to the root and is gathered for a whole step: cross-attention, because
    its keys and values of speech are made outside of its own pass; and the last block, because of
    an anchor's or a context's pass only its keys and values are used, so that nothing would tell
    FSDP to gather it again for the way back.
    """
    policy = policy or MixedPrecisionPolicy()
    for block in list(believer.dit.layers())[:-1]:
        fully_shard(block.self_attn, mesh=mesh, mp_policy=policy)
        fully_shard(block.ffn, mesh=mesh, mp_policy=policy)
    fully_shard(believer, mesh=mesh, mp_policy=policy)
    return believer


def gathered(believer: Believer) -> dict[str, Tensor]:
    """Every parameter whole, by its name in `Dit`, on every process."""
    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in believer.dit.state_dict().items()
    }
