"""The floor that the benchmark compares with is the published one."""

from __future__ import annotations

import pytest
import torch

from benchmarks.vae import chunk_flops
from services.vae.config import wan21
from services.vae.model import Vae


@pytest.mark.parametrize(
    ("rows", "columns", "teraflop"), [(64, 64, 26.6), (60, 80, 31.2), (60, 104, 40.7)]
)
def test_arithmetic_of_a_chunk(rows: int, columns: int, teraflop: float) -> None:
    with torch.device("meta"):
        vae = Vae(wan21())
    assert round(chunk_flops(vae, rows, columns) / 1e12, 1) == pytest.approx(teraflop, abs=0.06)
