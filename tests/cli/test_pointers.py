"""Where a run lives: `OUTPUT.run`, or where a pointer says; what can't be seen where it was is never begun anew unasked."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from streambatch.cli import main
from streambatch.config import Config
from streambatch.configure import configure
from streambatch.engine import inspect
from streambatch.errors import ConfigError
from streambatch.options import parse_all

from .tools import call

RUN = [
    "run",
    "rows.jsonl",
    "-o",
    "out.jsonl",
    "--local",
    "--model",
    "m",
    "--prompt",
    "say {{ word }}",
    "--quiet",
    "--speed",
    "100",
]
MOVED = pytest.mark.parametrize("explicit", [False, True])


def made(folder: Path, **given: Any) -> Config:
    values = parse_all({"output": folder / "out.jsonl", **given})
    return configure(["in.jsonl"], values, {"OPENAI_API_KEY": "sk-1"}, "the command")


def point(folder: Path, text: str) -> Path:
    pointer = folder / "out.jsonl.run"
    pointer.write_text(text, encoding="utf-8")
    return pointer


def run_in(folder: Path) -> Path:
    """A directory that looks like a run's."""
    folder.mkdir(parents=True)
    (folder / "journal.sqlite").touch()
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two rows, and in it."""
    (tmp_path / "rows.jsonl").write_text('{"word":"a"}\n{"word":"b"}\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.timeout(60)
@MOVED
def test_a_run_on_a_disk_that_is_away_is_not_bought_again(here: Path, explicit: bool) -> None:
    there = ["--run-dir", "far/rd"]
    first = call(main, [*RUN, *there, "--once"])
    assert first.exit_code in (0, 5)
    (here / "out.jsonl").unlink(missing_ok=True)
    (here / "out.jsonl.errors").unlink(missing_ok=True)
    shutil.move(here / "far", here / "away")
    again = call(main, [*RUN, *(there if explicit else [])])
    assert again.exit_code == 2
    for words in (f"{here}/out.jsonl.run", f"{here}/far/rd", "mount", "--run-id", "pay again"):
        assert words in again.stderr
    assert not (here / "far").exists()


@pytest.mark.timeout(60)
def test_the_pointer_is_left_before_anything_is_bought_and_leads_back(here: Path) -> None:
    (here / "deep").mkdir()
    first = call(main, [*RUN, "--run-dir", "deep/rd", "--run-id", "r1", "--json"])
    assert first.exit_code == 0
    assert (here / "out.jsonl.run").read_text(encoding="utf-8") == f"{here}/deep/rd\n"
    again = call(main, [*RUN, "--json"])
    assert (again.exit_code, json.loads(again.stdout)["run_id"]) == (0, "r1")
    assert inspect.find_run_dir("out.jsonl") == f"{here}/deep/rd"


@pytest.mark.timeout(60)
def test_a_visit_that_is_refused_leaves_no_pointer(here: Path) -> None:
    assert call(main, RUN).exit_code == 0
    other = [
        "x.jsonl" if word == "out.jsonl" else "other {{ word }}" if word == "say {{ word }}" else word for word in RUN
    ]
    refused = call(main, [*other, "--run-dir", "out.jsonl.run"])
    assert refused.exit_code == 2
    assert not (here / "x.jsonl.run").exists()


def test_the_run_directory_follows_the_pointer(tmp_path: Path) -> None:
    there = run_in(tmp_path / "elsewhere" / "rd")
    point(tmp_path, f"{there}\n")
    assert made(tmp_path).run_dir == str(there)
    point(tmp_path, "elsewhere/rd\r\n")  # by hand: from where the pointer lies
    assert made(tmp_path).run_dir == str(there)
    assert made(tmp_path, output="-", run_dir=tmp_path / "r").output == "-"


@pytest.mark.parametrize("text", ["", "\n", "two\nlines\n", "a\0b", "{\n}\n"])
def test_a_file_that_is_no_pointer(tmp_path: Path, text: str) -> None:
    pointer = point(tmp_path, text)
    for given in ({}, {"run_dir": tmp_path / "rd"}):
        with pytest.raises(ConfigError, match="names no run directory"):
            made(tmp_path, **given)
    assert pointer.read_text(encoding="utf-8") == text
    with pytest.raises(ConfigError, match="names no run directory"):
        inspect.find_run_dir(str(tmp_path / "out.jsonl"))


@pytest.mark.parametrize("text", ["hello\n", "/no/such/place\n", "elsewhere\n"])
def test_a_pointer_to_no_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    point(tmp_path, text)
    for given in ({}, {"run_dir": tmp_path / "rd"}, {"if_exists": "overwrite"}):
        with pytest.raises(ConfigError, match="where no run is now"):
            made(tmp_path, **given)
    with pytest.raises(ConfigError, match="where no run is now"):
        inspect.find_run_dir(str(tmp_path / "out.jsonl"))


def test_a_lost_run_may_be_found_again_by_its_id(tmp_path: Path) -> None:
    point(tmp_path, "/no/such/place\n")
    assert made(tmp_path, run_id="r1", run_dir=tmp_path / "rd").run_dir == str(tmp_path / "rd")
    (tmp_path / "out.jsonl").touch()
    assert made(tmp_path, if_exists="skip", run_dir=tmp_path / "rd").run_dir == str(tmp_path / "rd")


def test_a_new_run_directory_for_an_output_that_has_a_run(tmp_path: Path) -> None:
    there = run_in(tmp_path / "elsewhere")
    pointer = point(tmp_path, f"{there}\n")
    with pytest.raises(ConfigError, match="leave --run-dir out to go on with it"):
        made(tmp_path, run_dir=tmp_path / "rd")
    assert made(tmp_path, run_dir=there).run_dir == str(there)
    pointer.unlink()
    run_in(pointer)
    with pytest.raises(ConfigError, match="leave --run-dir out to go on with it"):
        made(tmp_path, run_dir=tmp_path / "rd")
    assert made(tmp_path, run_dir=tmp_path / "rd", if_exists="overwrite").run_dir == str(tmp_path / "rd")
    assert made(tmp_path, run_dir=there).run_dir == str(there)


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.run").symlink_to(tmp_path / "away")
    with pytest.raises(ConfigError, match="which does not exist; mount its disk again"):
        made(tmp_path)
    with pytest.raises(ConfigError, match="which does not exist"):
        made(tmp_path, run_dir=tmp_path / "out.jsonl.run")
    run_in(tmp_path / "away")
    assert made(tmp_path).run_dir == str(tmp_path / "out.jsonl.run")
