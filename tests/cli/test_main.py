"""The program as a whole: quick help, exit codes, one sentence, and what it does not load."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from streambatch.cli import COMMANDS, ending, main
from streambatch.errors import ApiError, ConfigError, JournalError, Paused, SourceError, StorageError

from .tools import call, environment, process

HEAVY = ["aiohttp", "anyio", "asyncio", "rich", "msgspec", "sqlite3", "streambatch.engine", "streambatch.server"]


def test_help_names_every_command() -> None:
    told = call(main, ["--help"])
    assert told.exit_code == 0
    assert all(f"\n  {name} " in told.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "serve"])
def test_each_command_explains_itself(command: str) -> None:
    told = call(main, [command, "--help"])
    assert told.exit_code == 0
    assert told.stdout.startswith(f"Usage: streambatch {command} ")


def test_version() -> None:
    assert call(main, ["--version"]).stdout.startswith("streambatch, version ")


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"]])
def test_help_is_quick_and_light(words: list[str]) -> None:
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: sys.stderr.write(' '.join(m for m in {HEAVY!r} if m in sys.modules)))\n"
        f"sys.argv[1:] = {words!r}\nfrom streambatch.cli import main\nmain()"
    )
    best = float("inf")
    for _ in range(5):
        before = _cpu_of_children()
        told = subprocess.run(
            [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=30, check=True
        )
        best = min(best, _cpu_of_children() - before)
        assert told.stderr == ""
    assert best < 0.15, f"{words} took {best:.3f} s of a core"  # a quiet machine shows the same figure on its clock


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["bogus"], "No such command 'bogus' (see streambatch --help).\n"),
        (["run", "--bogus"], "No such option '--bogus'"),
        (["run", "a", "--max-bytes", "12XB"], "Invalid value for '--max-bytes'"),
        (["run", "-o", "x"], "No input is named"),
        (["run", "a"], "No output is named"),
        (["run", "a", "-o", "-"], "--run-dir"),
        (["run", "a", "-o", "-", "--run-dir", "r", "--json"], "Both --json and -o - would write to stdout"),
        (["run", "a", "-o", "no/such/x"], "lies in a folder that does not exist"),
        (["run", "a", "-o", "."], "is a folder"),
        (["run", "a", "-o", "b", "--local", "--summary-file", "no/such/x"], "The summary file no/such/x lies in a folder"),
        (["run", "a", "-o", "a", "--local"], "is also an input"),
        (["run", "a", "-o", "b"], "the variable OPENAI_API_KEY is not set"),
        (["run", "a", "-o", "b", "--api-key-env", "MY_KEY"], "the variable MY_KEY is not set"),
        (["run", "a", "-o", "b", "--api-key-file", "none"], "The key file none can't be read"),
        (["run", "a", "-o", "b", "--local", "--base-url", "https://x"], "Both local and another service"),
        (["run", "a", "-o", "b", "--local", "--profile", "poe"], "There is no profile 'poe'; known: openai, openai-2024, azure, "),
        (["run", "a", "-o", "b", "--local", "--run-id", "a/b"], "The run id 'a/b' must be"),
        (["run", "a", "-o", "b", "--local", "--max-requests", "50001"], "more than the 50000"),
        (["run", "a", "-o", "b", "--local", "--prompt", "x", "--prompt-file", "y"], "Both prompt and prompt_file"),
        (["run", "a", "-o", "b", "--local", "--prompt-file", "none"], "The prompt file none can't be read"),
        (["run", "a", "-o", "b", "--local", "--label", "streambatch=x"], "must not begin with streambatch"),
        (["run", "a", "-o", "b", "--local", "--label", "a=1", *[w for k in range(8) for w in ("--label", f"k{k}=1")]], "9 labels"),
        (["run", "a", "-o", "b", "--local", "--job", "none.toml"], "The job file none.toml can't be read"),
        (["status", "nowhere"], "There is no run at nowhere"),
        (["peek", "nowhere"], "There is no run at nowhere"),
        (["cancel", "nowhere"], "There is no run at nowhere"),
        (["shard", "-o", "d"], "Name at least one INPUT"),
    ],
)  # fmt: skip
def test_usage_and_settings_end_with_one_sentence_and_code_2(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = call(main, words)
    assert told.exit_code == 2
    assert sentence.lower() in told.stderr.lower()
    assert told.stderr.count("\n") == 1
    assert told.stderr.endswith(".\n")
    assert told.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "variables", "sentence"),
    [
        (["--base-url", "http://example.com/v1"], {"OPENAI_API_KEY": "sk-secret"}, "clear text"),
        (["--header", "X-Team=plain"], {"OPENAI_API_KEY": "sk-secret"}, "X-Team=env:VAR"),
        (["--header", "X-Team=env:TEAM"], {"OPENAI_API_KEY": "sk-secret"}, "the variable TEAM, which is not set"),
        ([], {"OPENAI_API_KEY": "sk-secret\u00e9"}, "The key holds"),
        ([], {"STREAMBATCH_MAX_BATCHES": "many", "OPENAI_API_KEY": "sk-secret"}, "STREAMBATCH_MAX_BATCHES"),
    ],
)
def test_the_key_is_never_shown(words: list[str], variables: dict[str, str], sentence: str) -> None:
    told = call(main, ["run", "a", "-o", "b", *words], env=variables)
    assert told.exit_code == 2
    assert sentence in told.stderr
    assert "secret" not in told.output


def test_python_m() -> None:
    told = process(["--help"], Path.cwd())
    assert told.returncode == 0
    assert told.stdout.startswith("Usage: streambatch ")


# -- endings


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x."), 2),
        (SourceError("x."), 2),
        (ApiError("x."), 3),
        (JournalError("x."), 3),
        (StorageError("x."), 3),
        (Paused("x."), 4),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 0),
    ],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, ending.ended():
        raise error
    assert left.value.code == code
    assert capsys.readouterr().err.count("\n") == (0 if code == 0 else 1)


def test_a_bug_is_told_in_a_sentence_after_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, ending.ended():
        raise ZeroDivisionError("x\x1b[2J")
    assert left.value.code == 1
    told = capsys.readouterr().err.split("\n")
    assert told[0] == "Traceback (most recent call last):"
    assert told[-2].startswith("This is a bug in streambatch (ZeroDivisionError: x [2J)")


def test_a_bug_in_a_run_is_kept_beside_it(tmp_path: Path) -> None:
    try:
        raise ZeroDivisionError("x")
    except ZeroDivisionError as error:
        sentence = ending.bug_sentence(error, str(tmp_path))
    assert "bug.txt" in sentence
    assert "Traceback" in (tmp_path / "bug.txt").read_text(encoding="utf-8")
    assert (tmp_path / "bug.txt").stat().st_mode & 0o777 == 0o600
