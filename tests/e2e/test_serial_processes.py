"""Serial sources of the real command: fed through a pipe, killed in gaps, stopped while they wait, at a terminal."""

import gzip
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streambatch.edge.failpoints import EXIT_STATUS
from tests.e2e import rig
from tests.e2e.test_processes import ROWS, Server, environment

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]
PACE = ["--max-requests", "10", "--max-batches", "6", "--poll-interval", "0.05", "--adopt-grace", "0.3", "--quiet"]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, serving: Server) -> tuple[bytes, bytes]:
    """The rows, and what an undisturbed run over a plain file makes of them."""
    folder = tmp_path_factory.mktemp("calm")
    source = rig.write_requests(folder / "in.jsonl", ROWS)
    assert call(command(str(source), folder / "out.jsonl", serving.url), b"") == (0, "")
    return source.read_bytes(), (folder / "out.jsonl").read_bytes()


def command(source: str, output: Path, url: str, *more: str) -> list[str]:
    named = [sys.executable, "-m", "streambatch", "run", source, "-o", str(output), "--base-url", url]
    return [*named, *PACE, *more]


def call(args: list[str], given: bytes, **more: str) -> tuple[int, str]:
    done = subprocess.run(args, input=given, env=environment(**more), capture_output=True, timeout=60, check=False)
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize(
    "gap", ["before-SegmentSealed:3", "after-SegmentSealed:5", "after-Exhausted:1", "before-Merged:2"]
)
@pytest.mark.parametrize("kind", ["gzip", "stdin"])
def test_a_process_that_dies_in_a_gap_is_resumed_to_the_same_bytes(
    tmp_path: Path, serving: Server, calm: tuple[bytes, bytes], gap: str, kind: str
) -> None:
    data, wanted = calm
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(data, 1))
    given = data if kind == "stdin" else b""
    args = command("-" if kind == "stdin" else str(packed), tmp_path / "out.jsonl", serving.url)
    before = serving.ledger()["rows_executed"]
    assert call(args, given, STREAMBATCH_FAILPOINT=f"{gap}=exit")[0] == EXIT_STATUS
    if kind == "stdin":
        code, err = call(args, data.replace(b"question 3 ", b"question X "))
        assert (code, err.count("\n")) == (2, 1), err
        assert "stdin changed in rows that this run has already cut (rows 1 to 10 of the input)" in err
        assert "... | streambatch run - " in err
    assert call(args, given) == (0, "")
    assert (tmp_path / "out.jsonl").read_bytes() == wanted
    assert serving.ledger()["rows_executed"] - before == ROWS


def test_sigkill_while_rows_come_in(tmp_path: Path, serving: Server, calm: tuple[bytes, bytes]) -> None:
    data, wanted = calm
    args = command("-", tmp_path / "out.jsonl", serving.url)
    before = serving.ledger()["rows_executed"]
    for part in (0.4, 0.7, 0.9):
        process = feed(args, data[: int(len(data) * part)])
        wait_for(tmp_path / "out.jsonl.run" / "journal.sqlite")
        time.sleep(0.6)
        process.kill()
        finish(process)
    assert call(args, data) == (0, "")
    assert (tmp_path / "out.jsonl").read_bytes() == wanted
    assert serving.ledger()["rows_executed"] - before == ROWS


def feed(args: list[str], data: bytes) -> "subprocess.Popen[bytes]":
    """A process whose stdin brings this, and then nothing more for now."""
    process = subprocess.Popen(
        args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()
    return process


def finish(process: "subprocess.Popen[bytes]") -> str:
    assert process.stderr is not None
    assert process.stdin is not None
    process.wait(20)  # before its stdin is closed
    process.stdin.close()
    err = process.stderr.read().decode()
    process.stderr.close()
    assert process.stdout is not None
    process.stdout.close()
    return err


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_to_listen(pid: int) -> None:
    """Until the engine handles signals itself; where the system does not tell, the second that follows must do."""
    told = Path(f"/proc/{pid}/status")
    deadline = time.monotonic() + 60
    while told.exists() and time.monotonic() < deadline:
        caught = next(line for line in told.read_text().split("\n") if line.startswith("SigCgt:"))
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.02)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("part", [0.0, 0.6])
def test_a_signal_ends_a_run_that_waits_for_rows(
    tmp_path: Path, serving: Server, calm: tuple[bytes, bytes], sent: signal.Signals, code: int, part: float
) -> None:
    data, wanted = calm
    args = command("-", tmp_path / "out.jsonl", serving.url)
    process = feed(args, data[: int(len(data) * part)])
    if part:
        wait_for(tmp_path / "out.jsonl.run" / "journal.sqlite")
    wait_to_listen(process.pid)
    time.sleep(1.0)
    began = time.monotonic()
    process.send_signal(sent)
    err = finish(process)
    assert time.monotonic() - began < 10
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert (tmp_path / "out.jsonl.run").exists() is bool(part)
    assert call(args, data) == (0, "")
    assert (tmp_path / "out.jsonl").read_bytes() == wanted


def test_what_stdin_may_not_be(tmp_path: Path, serving: Server) -> None:
    args = command("-", tmp_path / "out.jsonl", serving.url)
    code, err = call(args, gzip.compress(b"{}"))
    assert (code, err.strip().partition(";")[0]) == (
        2,
        "stdin is compressed: unpack it first (gunzip -c FILE | ...), or name the file",
    ), err
    code, err = call(command("-", tmp_path / "out.jsonl", serving.url, "-"), b"{}")
    assert code == 2
    assert "named twice" in err
    closed = ["sh", "-c", '"$@" <&-', "sh", *args]
    code, err = call(closed, b"")
    assert code == 2
    assert "stdin is closed: pipe rows in, or name a file" in err
    ours, theirs = pty.openpty()
    done = subprocess.run(args, stdin=theirs, env=environment(), capture_output=True, timeout=30, check=False)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 2
    assert done.stderr.startswith(b"The input - is this terminal: pipe the rows in, or name a file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["pipe", "file", "null"])
def test_all_that_stdin_may_be(tmp_path: Path, serving: Server, how: str) -> None:
    rows = [json.dumps({"name": f"n{k}"}).encode() + b"\n" for k in range(12)]
    source = rig.write_requests(tmp_path / "in.jsonl", 0)
    source.write_bytes(b"" if how == "null" else b"".join(rows))
    more = ["--model", "m", "--prompt", "{{ name }}", "--run-dir", str(tmp_path / "run")]
    args = command("-", Path("-"), serving.url, *more)
    with open("/dev/null" if how == "null" else source, "rb") as given:
        through = subprocess.Popen(["cat"], stdin=given, stdout=subprocess.PIPE) if how == "pipe" else None
        stdin = given if through is None else through.stdout
        done = subprocess.run(args, stdin=stdin, env=environment(), capture_output=True, timeout=30, check=False)
    if through is not None and through.stdout is not None:
        through.stdout.close()
        assert through.wait(5) == 0
    assert (done.returncode, done.stderr) == (0, b"")
    assert [json.loads(line)["name"] for line in done.stdout.split(b"\n")[:-1]] == (
        [] if how == "null" else [f"n{k}" for k in range(12)]
    )


def test_shard_and_preview_read_stdin(tmp_path: Path) -> None:
    rows = b"".join(rig.request_line(k) for k in range(25))
    (tmp_path / "in.jsonl").write_bytes(rows)
    plain = [sys.executable, "-m", "streambatch"]
    for source, given in (("-", rows), (str(tmp_path / "in.jsonl"), b"")):
        folder = tmp_path / ("piped" if given else "read")
        assert call([*plain, "shard", source, "-o", str(folder), "--max-requests", "10", "--quiet"], given) == (0, "")
    assert [path.name for path in sorted((tmp_path / "piped").iterdir())] == [f"shard-00000{k}.jsonl" for k in range(3)]
    for path in (tmp_path / "read").iterdir():
        assert (tmp_path / "piped" / path.name).read_bytes() == path.read_bytes()
    done = subprocess.run(
        [*plain, "preview", "-", "-n", "2"], input=rows, env=environment(), capture_output=True, timeout=30, check=True
    )
    assert done.stdout == b"".join(rig.request_line(k) for k in range(2))
