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
    assert "1 bad rows in" in told.stderr


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


@pytest.mark.parametrize(
    "words", [["preview", "rows.jsonl", *ASK], ["shard", "rows.jsonl", "-o", "cut", "--quiet", *ASK]]
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
