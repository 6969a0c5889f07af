"""The two programs that the chart carries, run as pods run them."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.gateway.fleet import fleet, valkey
from tests.helm.chart import file


async def run(script: str, *arguments: str) -> tuple[int | None, str]:
    command = [sys.executable, str(file(f"files/{script}")), *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


async def test_models_come_whole_and_once(tmp_path: Path) -> None:
    source, target = tmp_path / "bucket", tmp_path / "models"
    for name, content in (("score/config.json", b"{}"), ("score/a/weights", b"w" * 100_000)):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    assert (await run("fetch.py", f"file://{source}", str(target)))[0] == 0
    assert (target / "score/a/weights").read_bytes() == b"w" * 100_000
    assert not list(target.rglob("*.part"))
    (target / "score/a/weights").write_bytes(b"w")  # a pod that was killed
    code, said = await run("fetch.py", f"file://{source}", str(target))
    assert code == 0
    assert "100000 bytes fetched" in said
    assert "config.json" not in said


async def test_an_empty_bucket_stops_the_pod(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    code, said = await run("fetch.py", f"file://{tmp_path / 'bucket'}", str(tmp_path / "models"))
    assert code == 1
    assert "nothing is at" in said


@pytest.mark.parametrize("there", [True, False], ids=["with a character", "without any"])
async def test_the_call_of_helm_test_sees_frames(tmp_path: Path, there: bool) -> None:
    """Against the real gateway, with engines that draw quickly."""
    with valkey() as store:
        async with fleet(store, tmp_path) as running:
            gateway = await running.gateway()
            if there:
                await gateway.avatar()
            code, said = await run("call.py", f"127.0.0.1:{gateway.server.port}")
            assert code == 0, said
            assert "frames" in said


async def test_a_call_that_nobody_answers_fails() -> None:
    code, said = await run("call.py", "127.0.0.1:1")
    assert code == 1, said
