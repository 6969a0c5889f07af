"""What is decided per machine changes how fast, never what."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from services.accelerator.replay import Rerun
from services.score.attention import Local, attention_for, sdpa
from services.score.checkpoint.loading import save, save_front_end
from services.score.checkpoint.opening import open_checkpoint
from services.score.engine import Limits
from services.score.machine import Speedups, employ, engine_over, fastest, load
from services.score.parallel import Alone, Solo
from services.score.worker import Worker
from tests.score import calls, small
from tests.score.calls import Call


def drawn(worker: Worker, chunks: int = 4) -> torch.Tensor:
    engine = calls.engine(worker.config, hands=Solo(worker))
    call = Call(worker.config)
    call.open(engine)
    first = call.draw(engine, chunks)
    engine.rewind(call.name, turn=0, tail=call.tail(engine))
    return torch.cat([first, call.draw(engine)])


def test_recorded_steps_draw_the_same() -> None:
    """With a graph's manners: fixed memory in and out, steps run again while they are recorded."""
    config = small.config()
    recorded = Worker(
        small.model(config), rows=1, team=Alone(), capture=Rerun(), latent_dtype=torch.float32
    )
    assert torch.equal(drawn(recorded), drawn(calls.worker(config)))


def test_blocks_compile_whole_and_once_for_all_layers() -> None:
    config = small.config(layers=3)
    worker = calls.worker(config)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = small.model(config)
    for block in model.layers():
        block.compile(backend="eager", fullgraph=True, dynamic=False)
    compiled = Worker(model, rows=1, team=Alone(), capture=None, latent_dtype=torch.float32)
    torch.testing.assert_close(drawn(compiled), drawn(worker), rtol=1e-5, atol=1e-5)
    # Anchor, anchor with chunk, and with a finished chunk: three shapes, whatever the layers.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
    torch._dynamo.reset()


def test_sixteen_bits_draw_nearly_the_same() -> None:
    config = small.config()
    model = small.model(config)
    for name, module in model.named_modules():
        if not name.startswith("time_"):
            for key, parameter in module.named_parameters(recurse=False):
                if key != "modulation":
                    parameter.data = parameter.data.bfloat16()
    assert model.audio_proj is not None
    model.audio_proj.silence = model.audio_proj.silence.bfloat16()
    half = Worker(model, rows=1, team=Alone(), capture=None, latent_dtype=torch.float16)
    expected, got = drawn(calls.worker(config), 2), drawn(half, 2)
    assert got.dtype == torch.float16
    assert (got - expected).std() < 0.05 * expected.std()


def test_a_processor_gets_pytorchs_kernel() -> None:
    assert attention_for(torch.device("cpu")) is sdpa
    worker = employ(small.model(small.config()), speedups=Speedups(compile=False))
    assert isinstance(next(worker._model.layers()).self_attn.attend, Local)


def test_the_format_is_one_of_two() -> None:
    chosen = fastest(small.config(), torch.device("cpu"))
    assert chosen in (torch.float32, torch.bfloat16)


def test_an_engine_is_rehearsed_before_it_is_handed_over() -> None:
    config = small.config()
    engine = engine_over(employ(small.model(config), rows=2), calls.ears(config), Limits(rows=2))
    stats = engine.stats()
    assert stats.sessions == 0
    assert set(stats.chunk_seconds) == {1, 2}
    assert all(seconds > 0 for seconds in stats.chunk_seconds.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_from_files_to_latents(tmp_path: Path, dtype: torch.dtype) -> None:
    config = small.config()
    model, ears = small.model(config), calls.ears(config)
    assert ears is not None
    save(tmp_path, config, model.state_dict().items())
    save_front_end(tmp_path, ears)
    engine = load(open_checkpoint(tmp_path), small.CPU, limits=Limits(), dtype=dtype)
    call = Call(config)
    call.open(engine)
    expected = drawn(calls.worker(config), 2)[:2]
    close = 1e-3 if dtype == torch.float32 else 0.05
    assert (call.draw(engine, 2).float() - expected).std() < close * expected.std()
