"""A whole run on each service that the local server can be like: by the profile's name, with its key and its dialect."""

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

import streambatch
from streambatch import configure
from streambatch.core import events as e
from streambatch.core.profiles import PROFILES
from streambatch.errors import ConfigError
from streambatch.testing import local_server
from tests.e2e import rig

pytestmark = pytest.mark.anyio
NAMES = configure.LOCAL_PROFILES
ROWS, BATCHES = 40, 4
QUICK: dict[str, Any] = {"max_requests": 10, "workers": 0, "poll_interval": 0.05, "adopt_grace": 0.3, "max_batches": 3}
LOST_CREATE = {"http": [{"do": "act_and_drop", "on": "create", "times": 1}], "foreign": 150}


def model_of(profile: str) -> str:
    return "gpt-4-turbo" if profile == "openai-2024" else "gpt-4o-mini"


def write(folder: Path, profile: str, **changes: Any) -> Path:
    """Ready-made rows for a profile."""
    rows = [json.loads(rig.request_line(k, model=model_of(profile))) | changes for k in range(ROWS)]
    path = folder / "in.jsonl"
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    return path


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("OPENAI_BASE_URL", "OPENAI_ORG_ID", *(profile.key_env for profile in PROFILES.values())):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("profile", NAMES)
async def test_a_run(tmp_path: Path, key: pytest.MonkeyPatch, profile: str) -> None:
    source, output = write(tmp_path, profile), tmp_path / "out.jsonl"
    with local_server(seed=7, speed=500, profile=profile) as server:
        key.setenv(PROFILES[profile].key_env, server.api_key)
        summary = await streambatch.run(source, output, base_url=server.url, profile=profile, **QUICK)
        ledger = server.ledger()
    assert (summary.exit_code, summary.done, summary.batches) == (0, ROWS, BATCHES)
    assert [json.loads(line)["custom_id"] for line in rig.read_lines(output)] == [
        json.loads(line)["custom_id"] for line in rig.read_lines(source)
    ]
    assert (ledger["rows_executed"], ledger["rows_executed_again"]) == (ROWS, 0)


@pytest.mark.parametrize("profile", NAMES)
async def test_a_resume_after_a_lost_create_behind_other_peoples_batches(
    tmp_path: Path, key: pytest.MonkeyPatch, profile: str
) -> None:
    """The list has more than a page before ours; whoever stops at its first page would buy the batch again."""
    source, output = write(tmp_path, profile), tmp_path / "out.jsonl"
    with local_server(seed=7, speed=500, profile=profile, faults=LOST_CREATE) as server:
        key.setenv(PROFILES[profile].key_env, server.api_key)
        with anyio.CancelScope() as life:

            def die(notice: Any) -> None:
                if isinstance(notice, e.Doubted):
                    life.cancel()

            await streambatch.run(source, output, base_url=server.url, profile=profile, on_event=die, **QUICK)
        assert life.cancelled_caught
        summary = await streambatch.run(source, output, base_url=server.url, profile=profile, **QUICK)
        ledger = server.ledger()
    assert (summary.exit_code, summary.done) == (0, ROWS)
    assert (ledger["rows_executed"], ledger["rows_executed_again"], ledger["batches"]) == (ROWS, 0, BATCHES)


async def test_azures_older_endpoint(tmp_path: Path, key: pytest.MonkeyPatch) -> None:
    source = write(tmp_path, "azure", url="/chat/completions")
    with local_server(seed=7, speed=500, profile="azure") as server:
        key.setenv("AZURE_OPENAI_API_KEY", server.api_key)
        summary = await streambatch.run(source, tmp_path / "out.jsonl", base_url=server.url, profile="azure", **QUICK)
    assert (summary.exit_code, summary.done) == (0, ROWS)


async def test_the_embedded_server_is_like_the_profile(tmp_path: Path) -> None:
    source = write(tmp_path, "openai-2024")
    options: dict[str, Any] = {**QUICK, "local": True, "speed": 500, "profile": "openai-2024"}
    summary = await streambatch.run(source, tmp_path / "out.jsonl", **options)
    assert (summary.exit_code, summary.done) == (0, ROWS)
    source = write(tmp_path, "openai")
    with pytest.raises(ConfigError, match="gpt-4o-mini' is not supported"):
        await streambatch.run(source, tmp_path / "other.jsonl", **options)


async def test_a_service_that_takes_chat_alone_is_asked_for_nothing_else(
    tmp_path: Path, key: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path, "openai-2024", url="/v1/embeddings")
    with local_server(seed=7, profile="openai-2024") as server:
        key.setenv("OPENAI_API_KEY", server.api_key)
        with pytest.raises(ConfigError) as caught:
            await streambatch.run(source, tmp_path / "out.jsonl", base_url=server.url, profile="openai-2024", **QUICK)
    said = "Requests for /v1/embeddings can't be sent: the profile openai-2024 takes /v1/chat/completions alone"
    assert str(caught.value).startswith(said)
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl"}


# -- a profile of one's own

MINE = """
base_url = "{url}"
key_env = "MY_KEY"
key_header = "Authorization"
purpose = "batch-api"
window = "24h"
max_requests = 8
max_bytes = 50_000
endpoints = ["/v1/chat/completions"]
"""


async def test_a_file_says_it_all(tmp_path: Path, key: pytest.MonkeyPatch) -> None:
    source, output, mine = write(tmp_path, "azure"), tmp_path / "out.jsonl", tmp_path / "mine.toml"
    quick = {name: value for name, value in QUICK.items() if name != "max_requests"}
    with local_server(seed=7, speed=500, profile="together") as server:
        mine.write_text(MINE.format(url=server.url), encoding="utf-8")
        key.setenv("MY_KEY", server.api_key)
        summary = await streambatch.run(source, output, profile=str(mine), **quick)
    assert (summary.exit_code, summary.done, summary.batches) == (0, ROWS, ROWS // 8)


async def test_what_a_profile_says_is_fixed_and_where_it_stands_is_not(tmp_path: Path, key: pytest.MonkeyPatch) -> None:
    source, output = write(tmp_path, "together"), tmp_path / "out.jsonl"
    first, moved, changed = (tmp_path / f"{name}.toml" for name in ("first", "moved", "changed"))
    with local_server(seed=7, speed=500, profile="together") as server:
        key.setenv("MY_KEY", server.api_key)
        said = MINE.format(url=server.url)
        first.write_text(said, encoding="utf-8")
        moved.write_text(said, encoding="utf-8")
        changed.write_text(said.replace("batch-api", "batch"), encoding="utf-8")
        quick = {name: value for name, value in QUICK.items() if name != "max_requests"}
        part = await streambatch.run(source, output, profile=str(first), once=True, **quick)
        assert part.exit_code in (0, 5)
        with pytest.raises(ConfigError, match='started with purpose "batch-api", now it is "batch"'):
            await streambatch.run(source, output, profile=str(changed), **quick)
        summary = await streambatch.run(source, output, profile=str(moved), **quick)
    assert (summary.exit_code, summary.done) == (0, ROWS)


async def test_a_cancel_speaks_the_runs_dialect(tmp_path: Path, key: pytest.MonkeyPatch) -> None:
    """It knows the run directory alone: the key's variable comes from there."""
    source, output = write(tmp_path, "azure"), tmp_path / "out.jsonl"
    with local_server(
        seed=7, speed=500, profile="azure", faults={"batches": [{"do": "stuck", "state": "in_progress"}]}
    ) as server:
        key.setenv("AZURE_OPENAI_API_KEY", server.api_key)
        await streambatch.run(source, output, base_url=server.url, profile="azure", stop_after=0.5, **QUICK)
        summary = await streambatch.cancel(output, poll_interval=0.05)
    assert (summary.exit_code, summary.state, summary.in_flight) == (0, "cancelled", 0)
