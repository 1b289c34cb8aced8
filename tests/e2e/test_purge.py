"""`purge` and `--remote-files` against the local server: what is there before and after, what is told, and what is refused."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import streambatch
from streambatch import configure
from streambatch.cli.purge import purge
from streambatch.core.events import Deleted
from streambatch.core.profiles import PROFILES
from streambatch.errors import ConfigError
from streambatch.options import parse_all
from streambatch.server.profiles import PROFILES as SERVED
from streambatch.testing import LocalServer, local_server
from tests.cli.tools import call, process
from tests.e2e import rig

pytestmark = pytest.mark.anyio
MODEL = "gpt-4o-mini"


def listed(server: Any) -> list[dict[str, Any]]:
    """All files at the server, through its own API."""
    asked = urllib.request.Request(
        f"{server.url}/files", headers={"Authorization": f"Bearer {server.api_key}", "api-key": server.api_key}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=30) as answer:
        told = json.load(answer)
    return list(told if isinstance(told, list) else told["data"])


def purposes(server: Any) -> list[str]:
    return sorted(file["purpose"] for file in listed(server))


def service(server: Any) -> streambatch.Service:
    return streambatch.Service(base_url=server.url, api_key=server.api_key)


async def made(tmp_path: Path, server: Any, **options: Any) -> str:
    """A small run that finished; its output."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"".join(rig.request_line(k, model=options.pop("model", MODEL)) for k in range(30)))
    output = str(tmp_path / "out.jsonl")
    given: Any = {"max_requests": 10, "poll_interval": 0.05, "adopt_grace": 0.2, **options}
    summary = await streambatch.run(source, output, service=service(server), **given)
    assert (summary.done, summary.message) == (30, "Finished.")
    return output


# -- what is left behind


@pytest.mark.parametrize(
    ("policy", "left"),
    [
        (None, ["batch_output"] * 3),
        ("inputs", ["batch_output"] * 3),
        ("keep", ["batch"] * 3 + ["batch_output"] * 3),
        ("delete", []),
    ],
)
async def test_remote_files(tmp_path: Path, server: Any, policy: str | None, left: list[str]) -> None:
    await made(tmp_path, server, **({} if policy is None else {"remote_files": policy}))
    assert purposes(server) == left


async def test_files_that_expire(tmp_path: Path, server: Any) -> None:
    await made(tmp_path, server, remote_files="expire:2h")
    assert purposes(server) == ["batch"] * 3 + ["batch_output"] * 3
    assert {file["expires_at"] - file["created_at"] for file in listed(server)} == {7200}


@pytest.mark.parametrize("asked", ["expire:3599", "expire:31d"])
def test_an_expiry_that_the_service_does_not_offer(asked: str) -> None:
    values = parse_all({"output": "out.jsonl", "remote_files": asked})
    with pytest.raises(ConfigError, match="from 3600 to 2592000 seconds"):
        configure.configure(["in.jsonl"], values, {"OPENAI_API_KEY": "sk-x"}, "again")
    values = parse_all({"output": "out.jsonl", "remote_files": "expire:15d", "profile": "together"})
    with pytest.raises(ConfigError, match="profile together"):
        configure.configure(["in.jsonl"], values, {"TOGETHER_API_KEY": "x"}, "again")


def test_expiries_are_those_of_the_service() -> None:
    for name, served in SERVED.items():
        mine = PROFILES[name].expiry_s
        assert mine is None or mine == (served.shortest_expiry_s, served.longest_expiry_s), name


async def test_cancel_keeps_to_what_the_run_said(tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 30)
    output = str(tmp_path / "out.jsonl")
    with local_server(seed=7, speed=2) as server:
        given: Any = {"max_requests": 10, "poll_interval": 0.05, "adopt_grace": 0.2, "remote_files": "keep"}
        await streambatch.run(source, output, service=service(server), once=True, stop_after=0, **given)
        await streambatch.cancel(output, service=service(server), poll_interval=0.05)
        assert purposes(server).count("batch") >= 1
        assert not any(isinstance(x, Deleted) for x in _log(output))


def _log(output: str) -> list[Any]:
    from streambatch.edge.journal import read_only

    with read_only(f"{output}.run/journal.sqlite") as store:
        return list(store.events())


# -- the library


async def test_purge_and_its_receipt(tmp_path: Path, server: Any) -> None:
    output = await made(tmp_path, server, remote_files="keep")
    path = tmp_path / "receipt.json"
    receipt = await streambatch.purge(output, service=service(server), receipt=path)
    assert (receipt.deleted, receipt.gone, receipt.kept, receipt.exit_code) == (6, 0, 0, 0)
    assert listed(server) == []
    told = json.loads(path.read_text(encoding="utf-8"))
    assert told == json.loads(json.dumps(receipt.to_dict()))
    assert told["schema_version"] == 1
    assert sorted((file["kind"], file["shard"], file["state"]) for file in told["files"]) == sorted(
        (kind, f"00000{k}-0", "deleted") for kind in ("input", "output") for k in range(3)
    )
    again = streambatch.purge_sync(output, service=service(server))
    assert (again.deleted, again.earlier) == (0, 6)
    with pytest.raises(ConfigError, match="receipt"):
        await streambatch.purge(output, service=service(server), receipt=tmp_path / "none" / "r.json")
    with pytest.raises(ConfigError, match="no run at"):
        await streambatch.purge(tmp_path / "nothing", service=service(server))


@pytest.mark.parametrize("profile", ["together", "azure", "groq"])
async def test_purge_at_other_services(tmp_path: Path, profile: str) -> None:
    model = {"together": "meta-llama/Llama-3.3-70B-Instruct-Turbo", "groq": "llama-3.1-8b-instant"}.get(profile, MODEL)
    with local_server(seed=7, speed=500, profile=profile) as server:
        output = await made(tmp_path, server, profile=profile, remote_files="keep", model=model)
        upload = listed(server)[-1]
        assert upload["filename"].endswith(".jsonl")
        receipt = await streambatch.purge(output, service=service(server))
        assert receipt.kept == 0
        assert receipt.deleted >= 6
        assert listed(server) == []


async def test_a_streamed_run_is_purged_like_any_other(tmp_path: Path, server: Any) -> None:
    folder = tmp_path / "run"
    given: Any = {"max_requests": 5, "poll_interval": 0.05, "adopt_grace": 0.2, "remote_files": "keep"}
    rows = ({"q": k} for k in range(20))
    async with streambatch.stream(
        rows, run_dir=folder, prompt="{{ q }}", model=MODEL, service=service(server), **given
    ) as results:
        texts = [outcome.text async for outcome in results]
    assert len(texts) == 20
    assert len(listed(server)) == 8
    receipt = await streambatch.purge(folder, service=service(server), local=True)
    assert (receipt.deleted, receipt.local_removed) == (8, True)
    assert listed(server) == []
    assert sorted(entry.name for entry in folder.iterdir()) == ["output.jsonl", "output.jsonl.errors"]


# -- the command


def key(server: LocalServer) -> dict[str, str]:
    return {"OPENAI_API_KEY": server.api_key}


async def test_the_command(tmp_path: Path, server: Any) -> None:
    output = await made(tmp_path, server)
    dry = call(purge, [output, "--dry-run"], env=key(server))
    assert dry.exit_code == 0
    assert sorted(line.split()[0] for line in dry.stdout.split("\n")[:-1]) == ["output"] * 3
    assert len(listed(server)) == 3
    told = call(purge, [output, "--receipt", str(tmp_path / "r.json"), "--json"], env=key(server))
    assert told.exit_code == 0
    assert json.loads(told.stdout) == json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert "Deleted 3 files." in told.stderr
    assert listed(server) == []
    again = call(purge, [output], env=key(server))
    assert "Nothing to delete: 6 files were deleted before." in again.stderr


async def test_a_variable_that_means_the_embedded_server_removes_nothing(tmp_path: Path, server: Any) -> None:
    output = await made(tmp_path, server)
    env = {**key(server), "STREAMBATCH_LOCAL": "1", "STREAMBATCH_LOCAL_STATE": "1", "STREAMBATCH_EVERYTHING": "1"}
    assert call(purge, [output], env=env).exit_code == 0
    assert Path(f"{output}.run", "journal.sqlite").exists()
    assert call(purge, [output, "--local"], env=key(server)).exit_code == 0
    assert not Path(f"{output}.run").exists()
    assert len(rig.read_lines(output)) == 30


async def test_all_asks_before_paid_results_are_lost(tmp_path: Path, server: Any) -> None:
    """A process that dies once its batches have ended leaves results that nobody has fetched."""
    source = rig.write_requests(tmp_path / "in.jsonl", 30)
    output = tmp_path / "out.jsonl"
    args = [
        "run",
        str(source),
        "-o",
        str(output),
        "--max-requests",
        "10",
        "--poll-interval",
        "0.05",
        "--adopt-grace",
        "0.2",
    ]
    env = {"OPENAI_BASE_URL": server.url, "STREAMBATCH_FAILPOINT": "before-Admitted=exit", **key(server)}
    process([*args, "--max-batches", "1", "--yes"], tmp_path, **env)
    before = listed(server)
    assert "batch_output" in purposes(server)
    refused = process(["purge", str(output), "--all"], tmp_path, OPENAI_API_KEY=server.api_key)
    assert (refused.returncode, listed(server)) == (2, before)
    assert "rows have paid results that are not in the output" in refused.stderr
    plain = process(["purge", str(output)], tmp_path, OPENAI_API_KEY=server.api_key)
    assert (plain.returncode, listed(server)) == (0, before)
    gone = process(["purge", str(output), "--all", "--yes"], tmp_path, OPENAI_API_KEY=server.api_key)
    assert gone.returncode == 0
    assert "10 rows had paid results that are not in the output: they are lost." in gone.stderr
    assert "batch_output" not in purposes(server)
