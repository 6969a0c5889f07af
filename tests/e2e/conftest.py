"""What tests of the whole system share: one fleet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.fleet import RunningFleet, fleet


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    # Sessions move every few seconds: calls that last seconds see moves as long ones do.
    ageing = {"terms": {"max_age_seconds": 4.0, "headroom": 2}}
    with fleet(tmp_path_factory.mktemp("fleet"), SCORE=ageing, VAE=ageing) as one:
        yield one
