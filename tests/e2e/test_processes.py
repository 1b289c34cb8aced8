"""The real command as a process against the real server as another: killed in every gap, stopped by signals, run twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streambatch.edge.failpoints import EXIT_STATUS
from tests.e2e import rig

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

ROWS = 120
KEY = "sk-test-0123456789abcdef"


class Server:
    """`streambatch serve` in a process of its own; `restart` kills it without a word first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ready = folder / "ready"
        self.port = "0"
        self.start()

    def start(self) -> None:
        self.ready.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "streambatch",
            "serve",
            "--port",
            self.port,
            "--data-dir",
            str(self.folder / "data"),
        ]
        command += ["--ready-file", str(self.ready), "--speed", "100", "--seed", "7"]
        self.log = open(self.folder / "serve.log", "ab")  # noqa: SIM115 - closed in stop
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 20
        while not self.ready.exists():
            assert self.process.poll() is None, (self.folder / "serve.log").read_text()
            assert time.monotonic() < deadline, "the server did not become ready"
            time.sleep(0.02)
        self.url = self.ready.read_text().strip()
        self.port = self.url.split(":")[2].split("/")[0]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        code = self.process.wait(20)
        self.log.close()
        return code

    def restart(self) -> None:
        self.stop(signal.SIGKILL)
        self.start()

    def ledger(self) -> dict[str, int]:
        origin = self.url.removesuffix("/v1")
        request = urllib.request.Request(f"{origin}/control/ledger", headers={"Authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return dict(json.load(answer))


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    assert server.stop() == 0


def command(source: Path, output: Path, url: str, *more: str) -> list[str]:
    plain = [sys.executable, "-m", "streambatch", "run", str(source), "-o", str(output), "--base-url", url, "--quiet"]
    pace = ["--max-requests", "10", "--max-batches", "6", "--poll-interval", "0.05", "--adopt-grace", "0.3"]
    return [*plain, *pace, *more]


def environment(**more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
    return {**kept, "OPENAI_API_KEY": KEY, "PYTHONHASHSEED": "0", **more}


def start(args: list[str], **more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(args, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]", timeout: float = 60) -> tuple[int, str]:
    _, err = process.communicate(timeout=timeout)
    return process.returncode, err


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, serving: Server) -> tuple[Path, bytes]:
    """The input, and what an undisturbed run makes of it."""
    folder = tmp_path_factory.mktemp("calm")
    source = rig.write_requests(folder / "in.jsonl", ROWS)
    before = serving.ledger()["rows_executed"]
    assert finish(start(command(source, folder / "out.jsonl", serving.url)))[0] == 0
    assert serving.ledger()["rows_executed"] - before == ROWS
    return source, (folder / "out.jsonl").read_bytes()


GAPS = [
    "before-SegmentSealed:3",
    "after-SegmentSealed:12",
    "before-Uploaded:4",
    "after-Intended:5",
    "before-Submitted:2",
    "after-Submitted:7",
    "before-BatchFinished:3",
    "before-Downloaded:5",
    "after-Downloaded:9",
    "before-Settled:6",
    "after-Settled:12",
    "before-Merged:4",
    "after-Merged:12",
    "after-Publishing:1",
    "before-Published:1",
]


@pytest.mark.parametrize("gap", GAPS)
def test_a_process_that_dies_in_a_gap_is_resumed_to_the_same_bytes(
    tmp_path: Path, serving: Server, calm: tuple[Path, bytes], gap: str
) -> None:
    source, wanted = calm
    args = command(source, tmp_path / "out.jsonl", serving.url)
    before = serving.ledger()["rows_executed"]
    assert finish(start(args, STREAMBATCH_FAILPOINT=f"{gap}=exit"))[0] == EXIT_STATUS
    code, err = finish(start(args))
    assert code == 0, err
    assert (tmp_path / "out.jsonl").read_bytes() == wanted
    assert serving.ledger()["rows_executed"] - before == ROWS


@pytest.mark.parametrize("lost", [False, True], ids=["kept", "lost"])
def test_sigkill_at_random_moments(tmp_path: Path, serving: Server, calm: tuple[Path, bytes], lost: bool) -> None:
    """Twenty kills; with `lost`, the run directory is deleted after every second one and only --run-id is left."""
    source, wanted = calm
    chance = random.Random(11)
    kills = storm = 0
    while kills < 20:
        storm += 1
        assert storm < 15, f"only {kills} kills in {storm} runs"
        output = tmp_path / f"out{storm}.jsonl"
        args = command(source, output, serving.url, "--run-id", f"storm-{lost}-{storm}")
        before = serving.ledger()["rows_executed"]
        for k in range(8):
            process = start(args)
            try:
                process.wait(chance.uniform(0.3, 1.2))
                process.communicate()
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
            if lost and k % 2 == 0:
                _delete(output)
        code, err = finish(start(args))
        assert code == 0, err
        assert output.read_bytes() == wanted
        assert serving.ledger()["rows_executed"] - before == ROWS


def _delete(output: Path) -> None:
    import shutil

    for path in output.parent.glob(f"{output.name}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def test_the_server_dies_and_comes_back(tmp_path: Path, calm: tuple[Path, bytes]) -> None:
    source, wanted = calm
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    try:
        process = start(command(source, tmp_path / "out.jsonl", server.url))
        for _ in range(3):
            time.sleep(0.4)
            server.restart()
        code, err = finish(process)
        assert code == 0, err
        assert (tmp_path / "out.jsonl").read_bytes() == wanted
        assert server.ledger()["rows_executed_again"] == 0
    finally:
        server.stop()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_in_time_and_the_same_command_goes_on(
    tmp_path: Path, calm: tuple[Path, bytes], sent: signal.Signals, code: int
) -> None:
    source, wanted = calm
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    try:
        args = command(source, tmp_path / "out.jsonl", server.url)
        process = start(args)
        journal = tmp_path / "out.jsonl.run" / "journal.sqlite"
        while not journal.exists():
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(sent)
        began = time.monotonic()
        got, err = finish(process, 15)
        assert time.monotonic() - began < 10
        assert got == code, err
        assert "streambatch run" in err.strip().split("\n")[-1]
        assert "Traceback" not in err
        got, err = finish(start(args))
        assert got == 0, err
        assert (tmp_path / "out.jsonl").read_bytes() == wanted
        assert server.ledger()["rows_executed"] == ROWS
    finally:
        server.stop()


def test_a_locked_run_is_refused_in_one_sentence(tmp_path: Path, serving: Server, calm: tuple[Path, bytes]) -> None:
    source, wanted = calm
    args = command(source, tmp_path / "out.jsonl", serving.url)
    first = start(args, STREAMBATCH_FAILPOINT="before-Settled:1=sleep(1500)")
    while not (tmp_path / "out.jsonl.run" / "lock").exists():
        time.sleep(0.01)
    time.sleep(0.3)
    code, err = finish(start(args))
    assert code == 2
    assert "Another process" in err
    assert finish(first)[0] == 0
    assert (tmp_path / "out.jsonl").read_bytes() == wanted


def test_cancel_from_another_terminal_keeps_what_is_finished(tmp_path: Path, calm: tuple[Path, bytes]) -> None:
    source, wanted = calm
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    try:
        args = command(source, tmp_path / "out.jsonl", server.url)
        process = start(args)
        deadline = time.monotonic() + 20
        while _done(tmp_path / "out.jsonl") < 10 and time.monotonic() < deadline:
            time.sleep(0.05)
        cancelling = start([sys.executable, "-m", "streambatch", "cancel", str(tmp_path / "out.jsonl"), "--quiet"])
        assert finish(cancelling)[0] == 0
        assert finish(process)[0] in (0, 4)
        executed = server.ledger()["rows_executed"]
        code, err = finish(start(args))
        assert code == 0, err
        assert (tmp_path / "out.jsonl").read_bytes() == wanted
        assert server.ledger()["rows_executed"] == ROWS
        assert executed <= ROWS
    finally:
        server.stop()


def _done(output: Path) -> int:
    from streambatch.engine import inspect
    from streambatch.errors import StreambatchError

    try:
        looked: Any = inspect.status(str(output)).progress.done
    except StreambatchError:
        return 0
    return int(looked)
