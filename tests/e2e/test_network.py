"""A run directory on a network file system, forced: the journal is kept to the engine, and others see its snapshot."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streambatch
from streambatch.edge.mounts import VARIABLE
from streambatch.errors import ConfigError
from tests.cli.tools import environment
from tests.e2e import rig

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]
ROWS = 60
EXCLUSIVE = {VARIABLE: "exclusive"}


class Run:
    """The command on one input, as a process."""

    def __init__(self, folder: Path, server: Any) -> None:
        self.source = rig.write_requests(folder / "in.jsonl", ROWS)
        self.lines = self.source.read_bytes().split(b"\n")[:-1]
        self.output = folder / "out.jsonl"
        self.run_dir = Path(f"{self.output}.run")
        self.server = server

    def start(self, *more: str, **variables: str) -> "subprocess.Popen[str]":
        args = ["run", str(self.source), "-o", str(self.output), "--base-url", self.server.url, "--max-requests", "5"]
        args += ["--max-batches", "4", "--poll-interval", "0.1", "--adopt-grace", "0.3", *more]
        return self.command(*args, **variables)

    def command(self, *args: str, **variables: str) -> "subprocess.Popen[str]":
        env = environment(OPENAI_API_KEY=self.server.api_key, **variables)
        command = [sys.executable, "-m", "streambatch", *args]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self, process: "subprocess.Popen[str]") -> str:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return f"{out}{err}"

    def check(self) -> None:
        config = rig.config(self.output.parent, [self.source], self.server.url, "", output=self.output)
        rig.check_results(config, self.lines)
        rig.check_journal(config)
        assert self.server.ledger()["rows_executed"] == ROWS

    def until(self, ready: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
        deadline = time.monotonic() + 30
        while not ready():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def snapshot(self) -> dict[str, Any]:
        path = self.run_dir / "status.json"
        return json.loads(path.read_bytes()) if path.exists() else {}


@pytest.fixture
def run(tmp_path: Path, server: Any) -> Run:
    return Run(tmp_path, server)


@pytest.fixture
def slow(tmp_path: Path) -> Any:
    """A run on a server that takes its time."""
    from streambatch.testing import local_server

    with local_server(seed=7, speed=4) as server:
        yield Run(tmp_path, server)


def test_a_whole_run_says_so_once(run: Run) -> None:
    said = run.finish(run.start(**EXCLUSIVE))
    assert said.count("is not on a local disk") == 1
    assert not list(run.run_dir.glob("journal.sqlite-*"))
    run.check()


def test_a_local_disk_is_not_talked_about(run: Run) -> None:
    assert "not on a local disk" not in run.finish(run.start())


@pytest.mark.parametrize(
    ("first", "then"), [("exclusive", "exclusive"), ("exclusive", "shared"), ("shared", "exclusive")]
)
def test_killed_and_resumed_in_either_mode(run: Run, first: str, then: str) -> None:
    process = run.start(**{VARIABLE: first})
    run.until(
        lambda: (run.run_dir / "output.part").exists() and (run.run_dir / "output.part").stat().st_size > 0, process
    )
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    run.finish(run.start(**{VARIABLE: then}))
    run.check()


def test_others_see_the_snapshot_while_it_works(slow: Run) -> None:
    process = slow.start("--quiet", **EXCLUSIVE)
    try:
        slow.until(lambda: bool(slow.snapshot().get("batches")), process)
        began = time.monotonic()
        look = streambatch.status(slow.output)
        told = json.loads(slow.finish(slow.command("status", "--json", str(slow.output))))
        assert time.monotonic() - began < 8, "nobody waits for the lock"
        assert (look.state, look.running, look.output) == ("running", True, str(slow.output))
        assert look.progress.batches > 0
        assert told["run_id"] == look.run_id
        slow.until(lambda: slow.snapshot()["done"] > 0, process)
        assert len(streambatch.peek(slow.output, 3)) == 3
        second = slow.start("--quiet", **EXCLUSIVE)
        assert second.wait(30) == 2
        assert f"process {process.pid}" in second.communicate()[1]
        cancelled = slow.command("cancel", str(slow.output), **EXCLUSIVE)
        assert cancelled.wait(60) == 0, cancelled.communicate()
        cancelled.communicate()
    finally:
        process.communicate(timeout=60)
    assert streambatch.status(slow.output).running is False


def test_a_run_that_is_just_being_opened(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locked, and no snapshot yet: a moment's patience, and a sentence."""
    from streambatch.edge import database
    from streambatch.edge.journal import Store

    monkeypatch.setattr(database, "PATIENCE_S", 0.1)
    os.mkdir(run.run_dir)
    store = Store(str(run.run_dir / "journal.sqlite"), shared=False)
    with pytest.raises(database.HeldError, match="in use; look again"):
        streambatch.status(run.output)
    store.close()
    with pytest.raises(ConfigError, match="has not begun"):
        streambatch.peek(run.output)


@pytest.mark.anyio
async def test_outcomes_are_streamed_from_a_journal_that_the_engine_keeps(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "exclusive")
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    service = streambatch.Service(base_url=server.url, api_key=server.api_key)
    options: dict[str, Any] = {"max_requests": 5, "poll_interval": 0.05, "run_dir": tmp_path / "run"}
    async with streambatch.stream(source, service=service, **options) as results:
        ids = [outcome.ordinal async for outcome in results]
    assert len(set(ids)) == ROWS
