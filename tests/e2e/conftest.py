"""What tests of the whole system share: one fleet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.fleet import RunningFleet, fleet


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    with fleet(tmp_path_factory.mktemp("fleet")) as one:
        yield one
