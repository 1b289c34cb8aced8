"""`preview` and `shard`: no network, and nothing loaded that they do not need."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from streambatch.cli import main

from .tools import call, environment

ASK = ["--model", "m", "--prompt", "say {{ word }}"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Five rows, the third without the field, a line of white space before the fourth."""
    words = ["one", "two\u2028", None, "", "four", "five"]
    lines = ["  " if word == "" else json.dumps({"word": word} if word else {}, ensure_ascii=False) for word in words]
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\n".join(lines).encode())
    return path


def test_preview_shows_what_would_be_sent(rows: Path) -> None:
    told = call(main, ["preview", str(rows), "-n", "3", *ASK, "--param", "temperature=0.5"])
    assert told.exit_code == 0
    requests = [json.loads(line) for line in told.stdout.split("\n")[:-1]]
    assert [r["custom_id"] for r in requests] == ["0", "1", "4"]
    assert requests[1]["body"] == {
        "model": "m",
        "messages": [{"role": "user", "content": "say two\u2028"}],
        "temperature": 0.5,
    }
    assert told.stderr.startswith(f"Not sent: {rows}, line 3: the prompt needs a field that is missing")
    assert told.stderr.count("\n") == 1


def test_preview_is_what_shard_writes(rows: Path, tmp_path: Path) -> None:
    shown = call(main, ["preview", str(rows), "-n", "9", *ASK]).stdout_bytes
    cut = call(main, ["shard", str(rows), "-o", str(tmp_path / "cut"), "--max-errors", "1", *ASK])
    assert cut.exit_code == 0
    assert (tmp_path / "cut" / "shard-000000.jsonl").read_bytes() == shown


def test_preview_takes_a_job_file_of_run(rows: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('model = "j"\nprompt = "{{ word }}"\nmax_batches = 3\nlocal = true\n', encoding="utf-8")
    told = call(main, ["preview", str(rows), "-n", "1", "--job", str(job)])
    assert json.loads(told.stdout)["body"]["model"] == "j"


def test_shard_reports_bad_rows_by_its_code(rows: Path, tmp_path: Path) -> None:
    told = call(main, ["shard", str(rows), "-o", str(tmp_path / "cut"), "--json", "--max-requests", "2", *ASK])
    assert told.exit_code == 6
    report = json.loads(told.stdout)
    assert (report["rows"], report["good"], report["bad"], report["shards"], report["exit_code"]) == (5, 4, 1, 3, 6)
    assert told.stderr.count("\n") == 1
    assert "1 bad row in" in told.stderr


def test_shard_leaves_what_exists(rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    words = ["shard", str(rows), "-o", str(folder), "--max-errors", "20%", *ASK]
    summary = tmp_path / "summary.json"
    assert call(main, words).exit_code == 0
    refused = call(main, [*words, "--summary-file", str(summary)])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert json.loads(summary.read_text(encoding="utf-8"))["exit_code"] == 2
    assert call(main, [*words, "--if-exists", "skip"]).exit_code == 0
    assert call(main, [*words, "--if-exists", "overwrite", "--quiet"]).stderr == ""


def test_an_input_without_rows_is_said(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_bytes(b"\n \n")
    told = call(main, ["preview", str(tmp_path / "none.jsonl"), *ASK])
    assert (told.exit_code, told.stdout, told.stderr) == (0, "", "There are no rows in the input.\n")


def test_preview_does_not_drown_in_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\n" * 300, encoding="utf-8")
    told = call(main, ["preview", str(tmp_path / "bad.jsonl"), *ASK])
    assert (told.exit_code, told.stdout, told.stderr.count("\n")) == (0, "", 6)
    assert told.stderr.endswith("Not sent: 95 more of the rows looked at.\n")


def test_one_is_one(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"word": 1}\n', encoding="utf-8")
    told = call(main, ["shard", str(tmp_path / "one.jsonl"), "-o", str(tmp_path / "cut"), *ASK])
    assert told.stderr == f"1 row in 1 shard in {tmp_path / 'cut'}.\n"


@pytest.mark.parametrize("command", ["shard", "merge"])
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-o", "-"], "Only run writes to stdout"),
        (["-o", "x", "--summary-file", "no/s.json"], "The summary file no/s.json lies in a folder that does not exist"),
    ],
)
def test_what_could_not_be_written_is_refused_first(
    rows: Path, monkeypatch: pytest.MonkeyPatch, command: str, words: list[str], sentence: str
) -> None:
    monkeypatch.chdir(rows.parent)
    told = call(main, [command, *["rows.jsonl"] * (2 if command == "merge" else 1), *words])
    assert (told.exit_code, told.stderr.count("\n")) == (2, 1)
    assert told.stderr.startswith(sentence)
    assert [path.name for path in rows.parent.iterdir()] == ["rows.jsonl"]


# -- merge


def result(custom_id: str, text: str) -> str:
    body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
    return json.dumps(
        {"id": "b", "custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": None}
    )


@pytest.fixture
def merging(tmp_path: Path) -> list[str]:
    """The words of a merge of four requests with two files of results, one of them missing and one of no row."""
    body = {"model": "m", "messages": []}
    requests = [
        json.dumps({"custom_id": f"r{k}", "method": "POST", "url": "/v1/chat/completions", "body": body})
        for k in range(4)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(requests) + "\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(f"{result('r3', 'three')}\n{result('r0', 'zero')}\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(f"{result('r1', 'one')}\n{result('other', 'x')}\n", encoding="utf-8")
    return [
        "merge",
        *(str(tmp_path / name) for name in ("in.jsonl", "a.jsonl", "b.jsonl")),
        "-o",
        str(tmp_path / "out.jsonl"),
    ]


def test_merge_puts_results_into_input_order(merging: list[str], tmp_path: Path) -> None:
    told = call(main, [*merging, "--max-errors", "1", "--json", "--summary-file", str(tmp_path / "s.json")])
    assert told.exit_code == 0
    got = [
        json.loads(line)["custom_id"] for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    ]
    assert got == ["r0", "r1", "r3"]
    report = json.loads(told.stdout)
    assert report == json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    assert (report["rows"], report["done"], report["missing"], report["unknown"], report["exit_code"]) == (
        4,
        3,
        1,
        1,
        0,
    )
    assert "3 of 4 rows" in told.stderr


def test_merge_ends_by_its_codes(merging: list[str], tmp_path: Path) -> None:
    missing = call(main, merging)
    assert (missing.exit_code, missing.stderr.count("\n")) == (6, 1)
    exists = call(main, merging)
    assert (exists.exit_code, exists.stderr.count("\n")) == (2, 1)
    assert call(main, [*merging, "--if-exists", "skip"]).exit_code == 0
    assert call(main, [*merging, "--if-exists", "overwrite", "--max-errors", "25%", "--quiet"]).stderr == ""
    absent = call(main, [merging[0], merging[1], str(tmp_path / "none.jsonl"), "-o", str(tmp_path / "x.jsonl")])
    assert absent.exit_code == 2
    assert "none.jsonl" in absent.stderr
    assert not (tmp_path / "x.jsonl").exists()


def test_merge_gives_plain_rows_their_answers(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"word": "a"}\n{"word": "b"}\n', encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(f"{result('1', 'one')}\n{result('0', 'zero')}\n", encoding="utf-8")
    words = ["merge", str(tmp_path / "in.jsonl"), str(tmp_path / "a.jsonl"), "-o", str(tmp_path / "out.jsonl")]
    assert call(main, words).exit_code == 0
    got = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [(row["word"], row["answer"], row["answer_error"]) for row in got] == [
        ("a", "zero", None),
        ("b", "one", None),
    ]
    assert call(main, [*words, "--emit", "results", "--if-exists", "overwrite"]).exit_code == 0
    first = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert first["custom_id"] == "0"


@pytest.mark.parametrize(
    "words",
    [
        ["preview", "rows.jsonl", *ASK],
        ["shard", "rows.jsonl", "-o", "cut", "--quiet", *ASK],
        ["merge", "rows.jsonl", "rows.jsonl", "-o", "out.jsonl", "--quiet"],
    ],
)
def test_no_network_and_no_display_is_loaded(rows: Path, words: list[str]) -> None:
    code = (
        "import sys, atexit\n"
        "heavy = ('aiohttp', 'rich', 'asyncio')\n"
        "atexit.register(lambda: sys.stderr.write('LOADED ' + ' '.join(m for m in heavy if m in sys.modules)))\n"
        f"sys.argv[1:] = {words!r}\nfrom streambatch.cli import main\nmain()"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=rows.parent,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert told.stderr.split("LOADED ")[1] == ""


@pytest.mark.parametrize("command", ["preview", "shard"])
def test_what_a_service_does_not_take_is_refused_by_those_that_send_nothing(
    command: str, rows: Path, tmp_path: Path
) -> None:
    output = ["-o", str(tmp_path / "shards")] if command == "shard" else []
    ask = ["--model", "m", "--prompt", "hi", "--endpoint", "/v1/embeddings", "--profile", "openai-2024"]
    told = call(main, [command, str(rows), *output, *ask])
    assert (told.exit_code, told.stdout) == (2, "")
    assert (
        "Requests for /v1/embeddings can't be sent: the profile openai-2024 takes /v1/chat/completions alone"
        in told.stderr
    )
    assert not (tmp_path / "shards").exists()
