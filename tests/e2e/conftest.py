"""A quick local server for every end-to-end test that asks for one."""

from collections.abc import Iterator
from typing import Any

import pytest

from streambatch.testing import local_server


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def server() -> Iterator[Any]:
    with local_server(seed=7, speed=500) as running:
        yield running
