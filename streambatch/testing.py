"""For our users' own tests: a local batch server in a thread, and a pytest fixture around it.

Loaded by pytest as a plugin, so importing it imports nothing heavy; the server comes when one is started.
"""

import contextlib
import json
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import quote

Answer = Callable[[dict[str, Any]], str | dict[str, Any]]
Faults = Mapping[str, Any] | str | PathLike[str]


class AnswerError(Exception):
    """Raised by an `answer` of yours: that row's result is an error with this HTTP status and code."""

    def __init__(self, message: str, status: int = 500, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class LocalServer:
    """A running server: `url` ends in /v1, `api_key` opens it."""

    def __init__(self, url: str, api_key: str) -> None:
        self.url = url
        self.api_key = api_key

    def __repr__(self) -> str:
        return f"LocalServer({self.url!r})"

    def ledger(self, run: str | None = None) -> dict[str, int]:
        """What the server executed and delivered, of all batches or of one run's."""
        figures: dict[str, int] = self._call("GET", "ledger" if run is None else f"ledger?run={quote(run, safe='')}")
        return figures

    def set_faults(self, faults: Faults | None) -> None:
        """Another fault script from now on; None clears it. Raises `ConfigError` where it is no script."""
        from streambatch.server.script import parse_script, to_plain

        self._call("POST", "faults", to_plain(parse_script(_plain(faults), "faults")))

    def fault_hits(self) -> dict[str, list[int]]:
        """How often each rule of the script hit, by table (`http`, `rows`, `batches`) and in its order."""
        hits: dict[str, list[int]] = self._call("GET", "faults")["hits"]
        return hits

    def _call(self, method: str, what: str, body: Any = None) -> Any:
        url = self.url.removesuffix("/v1") + f"/control/{what}"
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"}
        call = urllib.request.Request(url, data=data, method=method, headers=headers)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy never sees loopback
        with direct.open(call, timeout=60) as answer:
            return json.load(answer)


@contextlib.contextmanager
def local_server(
    answer: Answer | None = None,
    faults: Faults | None = None,
    seed: int = 0,
    speed: float = 1000.0,
    data_dir: str | PathLike[str] | None = None,
    profile: str = "openai",
    webhook: tuple[str, str] | None = None,
) -> Iterator[LocalServer]:
    """A batch server on a free port of this machine, for as long as the context lasts.

    `answer` takes a request's body and returns the answer's text, or a whole response body, or raises (see `AnswerError`).
    `faults` is a script as docs/server.md describes it: a mapping, or the path of a TOML file. `speed` divides the service's
    durations (3 s to validate, 1 s to finalize, 1,000 rows/s a batch). Without `data_dir` nothing stays.
    `profile` is the service to be like; `webhook` is the URL that is told of each batch's end, and the secret (`whsec_...`)
    that signs it.
    """
    from streambatch.server.script import parse_script
    from streambatch.server.serving import ThreadedServer
    from streambatch.server.settings import Settings

    script = parse_script(_plain(faults), "faults")
    with tempfile.TemporaryDirectory(prefix="streambatch-test-") as scratch:
        folder = Path(scratch if data_dir is None else data_dir)
        url, secret = webhook if webhook is not None else (None, None)
        settings = Settings(
            data_dir=folder, seed=seed, speed=speed, profile=profile, webhook_url=url, webhook_secret=secret
        )
        with ThreadedServer(settings, script, answer) as server:
            yield LocalServer(server.url, server.api_key)


def _plain(faults: Faults | None) -> Any:
    """A script as plain data."""
    if faults is None or isinstance(faults, Mapping):
        return {} if faults is None else dict(faults)
    from streambatch.server.script import read_script, to_plain

    return to_plain(read_script(Path(faults)))


if "pytest" in sys.modules:
    import pytest

    @pytest.fixture
    def streambatch_server() -> Iterator[LocalServer]:
        """A local batch server with quick durations and its built-in answers."""
        with local_server() as server:
            yield server
