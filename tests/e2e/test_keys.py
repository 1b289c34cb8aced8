"""A key that the service refuses in the middle of a run: read again where it can be, else one sentence that says what goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import streambatch
from streambatch.errors import ApiError
from streambatch.testing import LocalServer, local_server
from tests.e2e import rig
from tests.e2e.front import gateway

pytestmark = pytest.mark.anyio
ROWS = 60
QUICK: dict[str, Any] = {
    "max_requests": 10, "max_batches": 3, "workers": 0, "poll_interval": 0.05, "adopt_grace": 0.5,
}  # fmt: skip


class Lock:
    """Lets one key in; after `calls` of them another one, and `turned` is told which."""

    def __init__(self, calls: int, turned: Callable[[str], object]) -> None:
        self.key = "sk-first-0123456789"
        self.refused = 0
        self._calls = calls
        self._turned = turned

    def say(self, request: web.Request) -> web.Response | None:
        self._calls -= 1
        if self._calls == 0:
            self.key = "sk-second-0123456789"
            self._turned(self.key)
        if request.headers.get("Authorization") == f"Bearer {self.key}":
            return None
        self.refused += 1
        error = {"message": "Incorrect API key provided.", "type": None, "param": None, "code": "invalid_api_key"}
        return web.json_response({"error": error}, status=401)


def finished(server: LocalServer, summary: streambatch.Summary) -> None:
    assert (summary.exit_code, summary.done) == (0, ROWS)
    ledger = server.ledger()
    assert (ledger["rows_executed"], ledger["rows_executed_again"]) == (ROWS, 0)


@pytest.mark.parametrize("calls", [4, 9, 15, 25])
async def test_a_key_file_that_changes_is_read_again(tmp_path: Path, calls: int) -> None:
    source, file = rig.write_requests(tmp_path / "in.jsonl", ROWS), tmp_path / "key"
    lock = Lock(calls, file.write_text)
    file.write_text(lock.key)
    with local_server(seed=7, speed=200) as server:
        async with gateway(server, say=lock.say) as url:
            summary = await streambatch.run(source, tmp_path / "out.jsonl", base_url=url, api_key_file=file, **QUICK)
        finished(server, summary)
    assert lock.refused > 0


async def test_a_function_that_gives_the_key_is_asked_again(tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    keys: list[str] = []
    lock = Lock(12, keys.append)
    keys.append(lock.key)

    async def key() -> str:
        return keys[-1]

    with local_server(seed=7, speed=200) as server:
        async with gateway(server, say=lock.say) as url:
            service = streambatch.Service(base_url=url, api_key=key)
            summary = await streambatch.run(source, tmp_path / "out.jsonl", service=service, **QUICK)
        finished(server, summary)
    assert lock.refused > 0


@pytest.mark.parametrize(("route", "after"), [("list", 0), ("upload", 1), ("create", 2), ("list", 5), ("content", 0)])
async def test_a_fixed_key_that_is_refused_ends_the_visit_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, route: str, after: int
) -> None:
    source, told = rig.write_requests(tmp_path / "in.jsonl", ROWS), tmp_path / "summary.json"
    refusal = {"do": "answer", "on": route, "status": 401, "code": "invalid_api_key", "after": after, "times": 1}
    held = [{"do": "stuck", "state": "in_progress", "seconds": 3.0, "times": 2}] if route == "create" else []
    with local_server(seed=7, speed=200, faults={"http": [refusal], "batches": held}) as server:
        monkeypatch.setenv("OPENAI_API_KEY", server.api_key)
        options: dict[str, Any] = {**QUICK, "base_url": server.url, "summary_file": told}
        with pytest.raises(ApiError) as caught:
            await streambatch.run(source, tmp_path / "out.jsonl", **options)
        what = "The service refused the key (401 invalid_api_key): Incorrect API key provided."
        said = f"{what} Check the key, in its variable or its file."
        assert str(caught.value) == said
        assert caught.value.exit_code == 2
        summary = json.loads(told.read_bytes())
        assert (summary["state"], summary["exit_code"], summary["message"]) == ("stopped", 2, said)
        assert summary["next_command"] == "call run() again with the same arguments"
        if route == "create":
            assert summary["in_flight"] == 2
        finished(server, await streambatch.run(source, tmp_path / "out.jsonl", **options))


async def test_a_key_file_that_does_not_change_ends_the_visit_too(tmp_path: Path) -> None:
    source, file = rig.write_requests(tmp_path / "in.jsonl", ROWS), tmp_path / "key"
    lock = Lock(15, lambda key: None)
    file.write_text(lock.key)
    with local_server(seed=7, speed=200) as server:
        async with gateway(server, say=lock.say) as url:
            options: dict[str, Any] = {**QUICK, "base_url": url, "api_key_file": file}
            with pytest.raises(ApiError, match="in its variable or its file"):
                await streambatch.run(source, tmp_path / "out.jsonl", **options)
            file.write_text(lock.key)
            finished(server, await streambatch.run(source, tmp_path / "out.jsonl", **options))
