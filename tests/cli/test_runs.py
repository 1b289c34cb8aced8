"""Whole runs from the command line and the library, on the embedded server: codes, reports, signals, resume, looks from outside."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import streambatch
from streambatch.cli import main

from .tools import call, environment, process

ROWS = 40
ASK = ["--local", "--model", "m", "--prompt", "say {{ word }}", "--max-requests", "10", "--poll-interval", "0.1"]
OPTIONS: dict[str, Any] = {
    "local": True, "model": "m", "prompt": "say {{ word }}", "max_requests": 10, "poll_interval": 0.1, "speed": 100,
}  # fmt: skip
QUICK = ["--speed", "100"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rows.jsonl, and in it."""
    lines = [json.dumps({"word": f"w{k}"}) for k in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("OPENAI_", "STREAMBATCH_"))]:
        monkeypatch.delenv(name)
    return tmp_path


def answers(path: Path) -> list[str]:
    """The words of the rows that have an answer, in order."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    return [row["word"] for row in rows if row["answer"] and row["answer_error"] is None]


IN_ORDER = [f"w{k}" for k in range(ROWS)]


# -- a whole run


def test_a_run_and_its_reports(here: Path) -> None:
    words = [
        "run",
        "rows.jsonl",
        "-o",
        "out.jsonl",
        *ASK,
        *QUICK,
        "--run-id",
        "mine",
        "--summary-file",
        "s.json",
        "--json",
    ]
    told = process(words, here)
    assert told.returncode == 0, told.stderr
    assert answers(here / "out.jsonl") == IN_ORDER
    summary = json.loads(told.stdout)
    assert summary == json.loads((here / "s.json").read_text(encoding="utf-8"))
    assert (summary["state"], summary["exit_code"], summary["schema_version"], summary["run_id"]) == (
        "finished",
        0,
        1,
        "mine",
    )
    assert (summary["rows"], summary["done"], summary["failed"], summary["batches"]) == (ROWS, ROWS, 0, 4)
    assert "Run mine" in told.stderr
    assert "40 in, 40 done, 0 failed" in told.stderr
    before = (here / "out.jsonl").stat()
    again = process(words, here)
    assert (again.returncode, (here / "out.jsonl").stat()) == (0, before)
    assert again.stderr.startswith("Nothing to do: the run was finished before.\n")


def test_quiet_says_nothing(here: Path) -> None:
    told = process(["run", "rows.jsonl", "-o", "out.jsonl", *ASK, *QUICK, "--quiet"], here)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


def test_a_json_log(here: Path) -> None:
    told = process(["run", "rows.jsonl", "-o", "out.jsonl", *ASK, *QUICK, "--log-format", "json"], here)
    assert told.returncode == 0, told.stderr
    events = [json.loads(line) for line in told.stderr.split("\n")[:-1]]
    assert {"Started", "SegmentSealed", "Submitted", "Settled", "Published", "Progress"} <= {
        event["event"] for event in events
    }
    assert all(event["at"].endswith("Z") for event in events)


def test_output_on_stdout_comes_once_at_the_end(here: Path) -> None:
    told = process(["run", "rows.jsonl", "-o", "-", "--run-dir", "r", *ASK, *QUICK, "--quiet"], here)
    assert told.returncode == 0, told.stderr
    assert [json.loads(line)["word"] for line in told.stdout.split("\n")[:-1]] == IN_ORDER


def test_bad_rows_by_their_code(here: Path) -> None:
    with (here / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write("{}\nnot JSON\n")
    told = process(["run", "rows.jsonl", "-o", "out.jsonl", *ASK, *QUICK], here)
    assert told.returncode == 6
    last = told.stderr.split("\n")[-2]
    assert "more row errors than allowed" in last
    assert "out.jsonl.errors" in last
    errors = [json.loads(line) for line in (here / "out.jsonl.errors").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [(error["ordinal"], error["line"], error["class"]) for error in errors] == [
        (40, 41, "bad_row"),
        (41, 42, "bad_row"),
    ]
    assert process(["run", "rows.jsonl", "-o", "out2.jsonl", *ASK, *QUICK, "--max-errors", "5%"], here).returncode == 0


# -- what refuses, in one sentence


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["absent.jsonl", "-o", "x.jsonl", *ASK], 2, "absent.jsonl can't be read"),
        (["rows.jsonl", "-o", "there.jsonl", *ASK], 2, "there.jsonl exists"),
        (["rows.jsonl", "-o", "x.jsonl", "--local"], 2, "need --model"),
        (["rows.jsonl", "-o", "x.jsonl", "--local", "--model", "m", "--prompt", "{{ "], 2, "--prompt, line 1"),
        (["rows.jsonl", "-o", "x.jsonl", "--base-url", "http://127.0.0.1:9/v1", *ASK[1:]], 3, "127.0.0.1:9"),
    ],
)
def test_what_refuses(here: Path, words: list[str], code: int, sentence: str) -> None:
    (here / "there.jsonl").write_text("mine", encoding="utf-8")
    told = process(
        ["run", *words, "--summary-file", "s.json", "--quiet"], here,
        OPENAI_API_KEY="sk-secret", STREAMBATCH_FAILPOINT="",
    )  # fmt: skip
    assert told.returncode == code, told.stderr
    assert sentence in told.stderr
    assert told.stderr.count("\n") == 1
    assert "secret" not in told.stderr + (here / "s.json").read_text(encoding="utf-8")
    assert json.loads((here / "s.json").read_text(encoding="utf-8"))["exit_code"] == code
    assert (here / "there.jsonl").read_text(encoding="utf-8") == "mine"


def test_other_settings_of_a_run_are_refused(here: Path) -> None:
    words = ["run", "rows.jsonl", "-o", "out.jsonl", *ASK, *QUICK, "--quiet"]
    assert process(words, here).returncode == 0
    told = process([*words, "--param", "temperature=1"], here)
    assert told.returncode == 2
    assert "started without --param temperature, now it is run with --param temperature=1; use the first" in told.stderr


def test_another_input_or_another_output_is_named_as_such(here: Path) -> None:
    words = ["run", "rows.jsonl", "-o", "out.jsonl", *ASK, *QUICK, "--quiet"]
    assert process(words, here).returncode == 0
    (here / "others.jsonl").write_text('{"word": "x"}\n' * ROWS, encoding="utf-8")
    told = process(["run", "others.jsonl", *words[2:]], here)
    assert told.returncode == 2
    assert "was started with rows.jsonl, and others.jsonl, which is given now, holds other rows" in told.stderr
    assert "to go on" not in told.stderr
    told = process([*words[:3], "new.jsonl", *words[4:], "--run-dir", "out.jsonl.run"], here)
    assert told.returncode == 2
    assert f"published as {here}/out.jsonl, and {here}/new.jsonl is named now" in told.stderr
    (here / "rows.jsonl").write_text('{"word": "x"}\n' * ROWS, encoding="utf-8")
    assert "rows.jsonl changed in rows that this run has already cut" in process(words, here).stderr


@pytest.mark.parametrize("name", ["nothing.jsonl", "."])
def test_an_input_that_is_none_gives_no_command_to_repeat(here: Path, name: str) -> None:
    told = process(["run", name, "-o", "out.jsonl", *ASK], here)
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert "to go on" not in told.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text here")
def test_a_path_that_is_no_text_is_told_all_the_same(here: Path) -> None:
    assert process(["run", "rows.jsonl", "-o", "out.jsonl", *ASK, *QUICK, "--quiet"], here).returncode == 0
    odd = os.fsdecode(b"odd-\xff")
    (here / "out.jsonl.run").rename(here / odd)
    told = process(["status", odd, "--json"], here)
    assert (told.returncode, told.stderr) == (0, "")
    assert json.loads(told.stdout)["run_dir"] == f"{here}/odd-\ufffd"
    assert process(["status", odd + "x"], here).returncode == 2


def test_a_damaged_journal_is_no_reason_to_repeat_the_command(here: Path) -> None:
    words = ["run", "rows.jsonl", "-o", "out.jsonl", *ASK, *QUICK]
    assert process([*words, "--quiet"], here).returncode == 0
    with (here / "out.jsonl.run" / "journal.sqlite").open("r+b") as file:
        file.write(b"\0" * 8192)
    told = process(words, here)
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert "is damaged" in told.stderr
    assert "to go on" not in told.stderr
    assert "nothing runs" not in told.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "words",
    [
        ["preview", "rows.jsonl", *ASK[1:5]],
        ["shard", "rows.jsonl", "-o", "cut", *ASK[1:5], "--json", "--quiet"],
        ["run", "rows.jsonl", "-o", "out.jsonl", *ASK, *QUICK, "--json", "--quiet"],
    ],
)
def test_a_full_disk_under_stdout_is_no_bug(here: Path, words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        told = subprocess.run(
            [sys.executable, "-m", "streambatch", *words],
            cwd=here, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert told.returncode == 3
    assert told.stderr == "Writing to stdout failed: No space left on device; mend that, then run it again.\n"


# -- a terminal


def test_watching_on_a_terminal_leaves_the_last_look_standing(here: Path) -> None:
    assert process(["run", "rows.jsonl", "-o", "out.jsonl", *ASK, *QUICK, "--quiet"], here).returncode == 0
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "streambatch", "status", "out.jsonl", "--watch"],
        cwd=here, env=environment(TERM="xterm"), stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL,
    ) as watching:  # fmt: skip
        assert watching.wait(timeout=30) == 0
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "40 rows" in shown
    assert "\x1b[2J" not in shown  # nothing that stood on the screen is wiped


# -- signals


class Engine:
    """`streambatch run` as a process, on a server so slow that it has to wait; killed at the latest when the test ends."""

    def __init__(self, folder: Path, *more: str, speed: float = 0.02) -> None:
        self.words = ["run", "rows.jsonl", "-o", "out.jsonl", *ASK, *more]
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "streambatch", *self.words, "--speed", str(speed)],
            cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> "Engine":
        self.wait_for_batches()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=20)

    def wait_for_batches(self, count: int = 4) -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            told = call(main, ["status", str(self.folder / "out.jsonl"), "--json"])
            if told.exit_code == 0 and json.loads(told.stdout)["progress"]["shards"].get("submitted", 0) >= count:
                return
            time.sleep(0.05)
        raise AssertionError(f"no batches: {self.process.stderr}")

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@pytest.mark.process
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Stopped by SIGTERM")]
)
def test_a_signal_stops_and_the_same_command_goes_on(here: Path, number: signal.Signals, code: int, word: str) -> None:
    with Engine(here, "--summary-file", "s.json") as engine:
        began = time.monotonic()
        engine.process.send_signal(number)
        ended, _, err = engine.end()
        assert time.monotonic() - began < 10
    assert ended == code, err
    last = err.split("\n")[-2]
    assert last.startswith(
        f"{word}; 4 batches of the embedded server wait until then; to go on: streambatch run rows.jsonl"
    )
    summary = json.loads((here / "s.json").read_text(encoding="utf-8"))
    assert (summary["state"], summary["exit_code"], summary["in_flight"]) == ("interrupted", code, 4)
    assert not (here / "out.jsonl").exists()
    told = process([*engine.words, *QUICK, "--json", "--quiet"], here)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["batches"] == 4
    assert answers(here / "out.jsonl") == IN_ORDER


@pytest.mark.process
def test_a_second_engine_is_refused(here: Path) -> None:
    with Engine(here) as engine:
        told = process(engine.words, here)
        assert told.returncode == 2
        assert "Another process" in told.stderr
        assert told.stderr.count("\n") == 1


@pytest.mark.process
def test_looks_from_outside_and_cancel(here: Path) -> None:
    with Engine(here, "--quiet", speed=0.3) as engine:
        status = call(main, ["status", "out.jsonl"])
        assert "(an engine works on it now)" in status.stdout
        peeked = call(main, ["peek", "out.jsonl"])
        assert (peeked.stdout, peeked.stderr) == ("", "No answers are here yet.\n")
        assert call(main, ["cancel", "out.jsonl", "--summary-file", "no/s.json"]).exit_code == 2
        cancelled = process(["cancel", "out.jsonl", "--json"], here)
        assert cancelled.returncode == 0, cancelled.stderr
        assert json.loads(cancelled.stdout)["in_flight"] == 0
        assert cancelled.stderr.startswith("The run was cancelled")
        ended, _, err = engine.end()
        assert ended == 4, err
        assert "cancelled" in err
    resumed = process([*engine.words, *QUICK, "--quiet"], here)
    assert resumed.returncode == 0, resumed.stderr
    assert answers(here / "out.jsonl") == IN_ORDER
    first = call(main, ["peek", "out.jsonl", "-n", "2"]).stdout.split("\n")
    assert [json.loads(line)["word"] for line in first[:-1]] == ["w0", "w1"]
    finished = json.loads(call(main, ["status", "out.jsonl.run", "--json", "--watch"]).stdout)
    assert (finished["state"], finished["running"], finished["progress"]["done"]) == ("finished", False, ROWS)


# -- the library


def test_the_library_runs_and_repeats(here: Path) -> None:
    heard: list[str] = []
    summary = streambatch.run_sync(
        "rows.jsonl", "out.jsonl", on_event=lambda n: heard.append(type(n).__name__), **OPTIONS
    )
    assert (summary.state, summary.exit_code, summary.done) == ("finished", 0, ROWS)
    assert json.loads(json.dumps(summary.to_dict()))["usage"]["output_tokens"] > 0
    assert answers(here / "out.jsonl") == IN_ORDER
    assert {"Started", "Published", "Progress"} <= set(heard)
    assert streambatch.run_sync("rows.jsonl", "out.jsonl", **OPTIONS).state == "finished"
    outcomes = streambatch.peek("out.jsonl", 3)
    assert [outcome.row for outcome in outcomes] == [{"word": "w0"}, {"word": "w1"}, {"word": "w2"}]
    assert all(outcome.ok and outcome.text == outcome.unwrap() for outcome in outcomes)
    assert streambatch.status("out.jsonl").state == "finished"


def test_the_sync_twins_work_inside_a_running_loop(here: Path) -> None:
    async def notebook() -> None:
        assert streambatch.run_sync("rows.jsonl", "out.jsonl", **OPTIONS).done == ROWS
        assert [look.state async for look in streambatch.watch("out.jsonl", 0.01)] == ["finished"]
        shown = await streambatch.preview(["rows.jsonl"], 2, prompt="{{ word }}", model="m")
        assert shown == streambatch.preview_sync("rows.jsonl", 2, prompt="{{ word }}", model="m")
        assert [json.loads(line)["body"]["messages"][0]["content"] for line in shown] == ["w0", "w1"]

    asyncio.run(notebook())


def test_the_library_raises_and_writes_its_summary(here: Path) -> None:
    with pytest.raises(streambatch.SourceError, match=r"absent\.jsonl can't be read"):
        streambatch.run_sync("absent.jsonl", "out.jsonl", summary_file=here / "s.json", **OPTIONS)
    assert json.loads((here / "s.json").read_text(encoding="utf-8"))["exit_code"] == 2


@pytest.mark.parametrize("source", [[], 3, {"word": "x"}, b"rows.jsonl"])
def test_a_source_that_holds_neither_paths_nor_rows(here: Path, source: Any) -> None:
    with pytest.raises(streambatch.ConfigError, match="The source is a"):
        streambatch.run_sync(source, "out.jsonl", **OPTIONS)


def test_unknown_keywords_are_refused(here: Path) -> None:
    more: dict[str, Any] = {"max_batchs": 3}
    with pytest.raises(streambatch.ConfigError, match="did you mean max_batches"):
        streambatch.run_sync("rows.jsonl", "out.jsonl", **OPTIONS, **more)


def test_a_cancelled_task_leaves_a_run_that_resumes(here: Path) -> None:
    async def stopped() -> None:
        submitted = asyncio.Event()

        def listen(notice: object) -> None:
            if type(notice).__name__ == "Submitted":
                submitted.set()

        task = asyncio.create_task(
            streambatch.run("rows.jsonl", "out.jsonl", on_event=listen, **{**OPTIONS, "speed": 0.02})
        )
        await asyncio.wait_for(submitted.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(stopped())
    assert streambatch.status("out.jsonl").running is False
    assert streambatch.run_sync("rows.jsonl", "out.jsonl", **OPTIONS).batches == 4
    assert answers(here / "out.jsonl") == IN_ORDER
