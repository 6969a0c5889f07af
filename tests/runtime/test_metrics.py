"""Every metric keeps the conventions, exists from the start, is documented and can be scraped."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from services.runtime import metrics
from services.runtime.endpoint import Check, HttpEndpoint
from services.runtime.metrics import ALL_SETS, EngineMetrics, GatewayMetrics, Stage
from services.runtime.settings import Endpoint

LINES = [line for kind in ALL_SETS for line in kind.declared()]
PRIVATE = {"session", "session_id", "avatar", "tenant", "user", "key", "peer", "address", "turn"}
OPEN = {"method", "code"}  # as few as our contracts have methods, and gRPC has codes


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.name)
def test_a_metric_keeps_the_conventions(
    line: metrics.Declared[Counter] | metrics.Declared[Gauge] | metrics.Declared[Histogram],
) -> None:
    assert re.fullmatch(r"tm_[a-z]+(_[a-z]+)*", line.name)
    assert line.help.endswith(".")
    assert len(line.help) > 10
    assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|percent)\b", line.name)
    assert not PRIVATE & line.labels.keys()
    assert {name for name, values in line.labels.items() if values is None} <= OPEN
    assert (line.kind is Counter) == line.name.endswith("_total")
    if line.kind is Histogram:
        assert list(line.buckets) == sorted(set(line.buckets))
        assert 5 <= len(line.buckets) <= 16
        assert line.name.endswith(("_seconds", "_ratio", "_sessions"))


def test_no_two_metrics_share_a_name_so_one_process_can_hold_all_sets() -> None:
    registry = CollectorRegistry()
    for kind in ALL_SETS:
        kind(registry)
    assert len({line.name for line in LINES}) == len(LINES)


def test_closed_labels_exist_from_the_start() -> None:
    registry = CollectorRegistry()
    gateway = GatewayMetrics(registry)
    for stage in Stage:
        assert registry.get_sample_value("tm_chunk_seconds_count", {"stage": stage}) == 0
    gateway.chunk_seconds.labels(Stage.VAE).observe(0.2)
    assert registry.get_sample_value("tm_chunk_seconds_count", {"stage": "vae"}) == 1


def test_registries_do_not_know_of_each_other() -> None:
    first, second = CollectorRegistry(), CollectorRegistry()
    GatewayMetrics(first).queue_sessions.set(3)
    GatewayMetrics(second)
    assert second.get_sample_value("tm_queue_sessions") == 0


def test_the_reference_is_fresh() -> None:
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert page.read_text() == metrics.reference() + "\n", (
        "run: python -m services.runtime.metrics > docs/metrics.md"
    )


# Over HTTP


@asynccontextmanager
async def endpoint(
    registry: CollectorRegistry, checks: dict[str, Check] | None = None
) -> AsyncIterator[int]:
    async with HttpEndpoint(Endpoint(), registry=registry, checks=checks or {}) as there:
        yield there.port


async def ask(port: int, request: str) -> tuple[str, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    return head, body


async def test_metrics_are_scraped_over_http() -> None:
    registry = CollectorRegistry()
    engine = EngineMetrics(registry)
    engine.cache_bytes.labels("score", "session").set(1234)
    async with endpoint(registry) as port:
        head, body = await ask(port, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert head.startswith("HTTP/1.1 200 OK")
        assert f"Content-Length: {len(body)}" in head
        samples = [
            sample for family in text_string_to_metric_families(body) for sample in family.samples
        ]
        (cache,) = [
            sample.value
            for sample in samples
            if sample.name == "tm_cache_bytes"
            and sample.labels == {"engine": "score", "cache": "session"}
        ]
        assert cache == 1234
        openmetrics = "Accept: application/openmetrics-text; version=1.0.0\r\n"
        head, body = await ask(port, f"GET /metrics HTTP/1.1\r\nHost: x\r\n{openmetrics}\r\n")
        assert "application/openmetrics-text" in head
        assert body.endswith("# EOF\n")


async def test_healthz_says_what_is_wrong() -> None:
    wrong: list[str] = []
    checks: dict[str, Check] = {
        "device": lambda: wrong[0] if wrong else None,
        "store": lambda: None,
    }
    async with endpoint(CollectorRegistry(), checks) as port:
        head, body = await ask(port, "GET /healthz HTTP/1.1\r\n\r\n")
        assert (head.split("\r\n")[0], json.loads(body)) == ("HTTP/1.1 200 OK", {})
        wrong.append("stalled for 31 s")
        head, body = await ask(port, "GET /healthz HTTP/1.1\r\n\r\n")
        assert head.startswith("HTTP/1.1 503")
        assert json.loads(body) == {"device": "stalled for 31 s"}


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405"),
        ("HEAD /healthz HTTP/1.1\r\n\r\n", "HTTP/1.1 200"),
        ("nonsense\r\n\r\n", "HTTP/1.1 405"),
        ("GET /" + "x" * 20_000, ""),  # too long: cut off without an answer
    ],
    ids=["unknown", "method", "head", "nonsense", "too long"],
)
async def test_what_is_not_ours_is_turned_away(request_: str, answer: str) -> None:
    async with endpoint(CollectorRegistry()) as port:
        head, body = await ask(port, request_)
        assert head.startswith(answer)
        assert body in ("", "/metrics or /healthz\n")
        head, _ = await ask(port, "GET /healthz HTTP/1.1\r\n\r\n")
        assert head.startswith("HTTP/1.1 200")
