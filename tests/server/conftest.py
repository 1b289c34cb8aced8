"""A quick server per module, and one per test where a test needs its own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from streambatch.server.script import parse_script
from streambatch.server.serving import ThreadedServer
from streambatch.server.settings import Settings
from tests.server.kit import Wire

Start = Callable[..., Wire]


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    """A server where nothing takes time."""
    with ThreadedServer(Settings(data_dir=tmp_path_factory.mktemp("data"), speed=1e5)) as server:
        yield Wire(server.url, server.api_key)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers with settings of the test's own."""
    with ExitStack() as stack:

        def begin(faults: dict[str, Any] | None = None, answer: Any = None, **settings: Any) -> Wire:
            given = {"data_dir": tmp_path / "data", "speed": 1e5, **settings}
            script = parse_script({} if faults is None else faults, "faults")
            server = stack.enter_context(ThreadedServer(Settings(**given), script, answer))
            return Wire(server.url, server.api_key)

        yield begin
