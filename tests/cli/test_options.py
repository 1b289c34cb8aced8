"""How options are written, and which of flag, variable and job file wins."""

from pathlib import Path
from typing import Any

import pytest

from streambatch.cli.flags import takes
from streambatch.errors import ConfigError
from streambatch.options import BY_NAME, parse, parse_all, read_job

from .tools import call


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [
        ("max_bytes", "200MB", 200_000_000),
        ("max_bytes", "64 MiB", 64 << 20),
        ("max_bytes", "1000", 1000),
        ("max_bytes", 1000, 1000),
        ("max_bytes", "2kib", 2048),
        ("stop_after", "6h", 21600.0),
        ("stop_after", "1h30m", 5400.0),
        ("stop_after", 90, 90.0),
        ("poll_interval", "0.25", 0.25),
        ("poll_interval", "500ms", 0.5),
        ("poll_interval", ".5", 0.5),
        ("max_errors", "12", (12, None)),
        ("max_errors", 12, (12, None)),
        ("max_errors", "0.5%", (0, 0.5)),
        ("max_errors", "100%", (0, 100.0)),
        ("remote_files", "keep", "keep"),
        ("remote_files", "expire:7d", "expire:604800"),
        ("remote_files", "expire:3600", "expire:3600"),
        ("local", "yes", True),
        ("local", "0", False),
        ("local", True, True),
        ("workers", "0", 0),
        ("speed", 2, 2.0),
        ("null", "skip", "skip"),
        ("prompt", "", ""),
        ("param", "temperature=0.2", (("temperature", "0.2"),)),
        ("param", ["a=1", 'b={"c": "d=e"}'], (("a", "1"), ("b", '{"c": "d=e"}'))),
        ("param", {"temperature": 0.2, "stop": ["é"]}, (("temperature", "0.2"), ("stop", '["é"]'))),
        ("label", {"team": "a=b"}, (("team", "a=b"),)),
        ("header", ["X-Team=env:TEAM"], (("X-Team", "env:TEAM"),)),
    ],
)
def test_a_value_in_its_plain_form(name: str, written: object, value: object) -> None:
    plain = parse(BY_NAME[name], written, name)
    assert plain == value
    assert type(plain) is type(value)
    assert parse(BY_NAME[name], plain, name) == value  # a plain value is written like itself


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("max_bytes", "200XB"),
        ("max_bytes", "-1"),
        ("max_bytes", "1.5MB"),
        ("max_bytes", True),
        ("max_requests", "0"),
        ("max_requests", "ten"),
        ("max_requests", 2.5),
        ("max_requests", True),
        ("poll_interval", "0"),
        ("poll_interval", 0),
        ("stop_after", "soon"),
        ("stop_after", "5 parsecs"),
        ("stop_after", -3),
        ("stop_after", float("nan")),
        ("max_errors", "101%"),
        ("max_errors", "-1"),
        ("max_errors", -1),
        ("remote_files", "never"),
        ("remote_files", "expire"),
        ("remote_files", "expire:soon"),
        ("remote_files", 7),
        ("local", "maybe"),
        ("speed", 0),
        ("speed", "inf"),
        ("null", "nothing"),
        ("model", 3),
        ("output", ""),
        ("output", "a\0b"),
        ("param", "temperature"),
        ("param", "=1"),
        ("param", "stop=word"),
        ("param", "x=NaN"),
        ("param", {"x": float("inf")}),
        ("param", {"x": object()}),
        ("param", 3),
        ("label", {"team": 3}),
    ],
)
def test_a_value_that_is_none(name: str, written: object) -> None:
    with pytest.raises(ConfigError, match=r"^the name: .*\.$"):
        parse(BY_NAME[name], written, "the name")


def test_an_unknown_name_is_told_with_its_neighbour() -> None:
    with pytest.raises(ConfigError, match="did you mean max_batches"):
        parse_all({"max_batchs": 3})
    with pytest.raises(ConfigError, match=r"no option 'zzz' in the library\.$"):
        parse_all({"zzz": 3}, " in the library")


def test_none_is_not_given() -> None:
    assert parse_all({"model": None, "limit": 0}) == {"limit": 0}


# -- job files


def test_a_job_file(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('model = "m"\nmax_bytes = "64MiB"\nparam = {temperature = 0.2}\nlabel = ["a=b"]\n', encoding="utf-8")
    values = read_job(str(job))
    assert values == {"model": "m", "max_bytes": 64 << 20, "param": (("temperature", "0.2"),), "label": (("a", "b"),)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model = ", "no TOML"),
        ("bogus = 1", "no option 'bogus' in"),
        ('job = "x"', "another job file"),
        ("limit = -1", "limit in"),
    ],
)
def test_a_bad_job_file(tmp_path: Path, text: str, words: str) -> None:
    job = tmp_path / "job.toml"
    job.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        read_job(str(job))


def test_a_job_file_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        read_job(str(tmp_path / "none.toml"))


# -- precedence


def given(args: list[str], **env: str) -> dict[str, Any]:
    """What a command with the options of `run` gets."""
    seen: dict[str, Any] = {}

    @takes("run")
    def probe(**values: Any) -> None:
        seen.update(values)

    assert call(probe, args, env=env).exit_code == 0
    return seen


def test_flags_win_over_variables_over_the_job_file(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('max_batches = 1\nmodel = "job"\nlimit = 1\nlocal = true\nmax_errors = "5%"\n', encoding="utf-8")
    seen = given(
        ["--job", str(job), "--max-batches", "3"],
        STREAMBATCH_MAX_BATCHES="2",
        STREAMBATCH_MODEL="variable",
        STREAMBATCH_LOCAL="0",
    )
    assert seen == {"max_batches": 3, "model": "variable", "limit": 1, "local": False, "max_errors": (0, 5.0)}


def test_the_job_file_may_come_from_a_variable(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text("limit = 7\n", encoding="utf-8")
    assert given([], STREAMBATCH_JOB=str(job)) == {"limit": 7}


def test_several_in_one_variable_stand_in_lines() -> None:
    seen = given([], STREAMBATCH_PARAM='a=1\nb={"c": "d e"}\n', STREAMBATCH_LABEL="x=y z")
    assert seen == {"param": (("a", "1"), ("b", '{"c": "d e"}')), "label": (("x", "y z"),)}


def test_flags_may_be_repeated() -> None:
    assert given(["--param", "a=1", "--param", 'b="x"']) == {"param": (("a", "1"), ("b", '"x"'))}


def test_what_is_not_given_is_absent() -> None:
    assert given([]) == {}


def test_flags_of_one_word() -> None:
    assert given(["--local", "--once", "--quiet", "--yes", "--json", "--allow-http"]) == dict.fromkeys(
        ("local", "once", "quiet", "yes", "json", "allow_http"), True
    )
