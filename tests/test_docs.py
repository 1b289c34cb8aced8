"""What can rot: flags = variables = job file = library keywords = docs, and the links of the pages."""

import re
import sys
from pathlib import Path
from typing import get_type_hints

import click
import pytest

import streambatch
from streambatch.cli import COMMANDS, main
from streambatch.options import BY_NAME, OPTIONS, Option, parse_all, read_job

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "cli.md"
BEGIN, END = "<!-- options:", "<!-- end of options -->"
SAMPLES = {
    "FLAG": True, "COUNT": 3, "NUMBER": 2.5, "SIZE": "64MiB", "DURATION": "1h30m", "ALLOWANCE": "5%", "PERCENT": "40%",
    "REMOTE": "expire:7d", "TEXT": "x", "PATH": "x",
    "PARAM": {"temperature": 0.2}, "LABEL": {"team": "a"}, "HEADER": {"X-Team": "env:TEAM"},
}  # fmt: skip


def table() -> str:
    """The options as the page shows them."""
    head = ["| option | default | |", "|---|---|---|"]
    return "\n".join([*head, *map(_line, OPTIONS)])


def _line(option: Option) -> str:
    value = " ".join(option.choices) if option.choices else option.kind.value.replace("|", " or ")
    name = ", ".join(filter(None, (option.short, option.flag))) + (f" {value}" if value else "")
    where = "" if option.on == "run" else f" *{option.on.replace(' ', ', ')}*"
    return f"| `{name}` | {option.default} | {option.help}{where}{' *terminal*' if option.terminal else ''} |"


def with_table(page: str) -> str:
    before, rest = page.split(BEGIN, 1)
    comment, rest = rest.split("\n", 1)
    return f"{before}{BEGIN}{comment}\n\n{table()}\n\n{END}{rest.split(END, 1)[1]}"


def test_the_page_shows_the_options() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "run python -m tests.test_docs"


def test_flags_are_the_options() -> None:
    flags: dict[str, set[str]] = {}
    for command in ("run", "preview", "shard", "merge", "cancel", "check", "purge"):
        for name in _names(command):
            flags.setdefault(name, set()).add(command)
    own = {"n", "inputs", "run", "input_path", "results", "dry_run", "everything", "local_state", "receipt"}
    assert {name: on for name, on in flags.items() if name not in own} == {o.name: set(o.on.split()) for o in OPTIONS}


def _names(command: str) -> set[str]:
    return {parameter.name for parameter in _command(command).params if parameter.name is not None}


def _command(name: str) -> click.Command:
    assert isinstance(main, click.Group)
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_variables_and_the_job_file_are_the_options(
    option: Option, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = _sample(option)
    command = _command(option.on.split()[0])
    read = click.Context(command, auto_envvar_prefix="STREAMBATCH")
    parameter = next(p for p in command.params if p.name == option.name)
    text = _written(value)
    monkeypatch.setenv(option.variable, text)
    assert parameter.value_from_envvar(read) not in (None, ())
    if option.name != "job":
        job = tmp_path / "job.toml"
        job.write_text(f"{option.name} = {_toml(value)}\n", encoding="utf-8")
        assert read_job(str(job)) == parse_all({option.name: value})


def _sample(option: Option) -> object:
    return option.choices[0] if option.choices else SAMPLES[option.kind.name]


def _written(value: object) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}={text}" for name, text in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{name}" = {_toml(inner)}' for name, inner in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


def test_library_keywords_are_the_options() -> None:
    from streambatch import api

    keywords = set(get_type_hints(api.RunOptions)) | {"prompt", "output"}  # these two are parameters of run()
    assert keywords == {option.name for option in OPTIONS if "run" in option.on.split() and not option.terminal}
    shaping = set(get_type_hints(api.ShapeOptions)) | {"prompt"}
    assert shaping == {option.name for option in OPTIONS if "preview" in option.on.split()}
    reach = set(get_type_hints(api.ServiceOptions))
    assert reach == {
        option.name for option in OPTIONS if "cancel" in option.on.split() and "merge" not in option.on
    } - {"log_format"}
    reaching = set(get_type_hints(api.ReachOptions))
    assert reaching == {o.name for o in OPTIONS if "purge" in o.on.split() and not o.terminal}
    asked = set(get_type_hints(api.CheckOptions))
    assert asked == {option.name for option in OPTIONS if "check" in option.on.split() and not option.terminal}


def test_the_page_names_every_command() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert {c for c in COMMANDS if f"\nstreambatch {c} " in page} | {"serve"} == set(COMMANDS)


@pytest.mark.parametrize("page", ["README.md", "docs/library.md"])
def test_the_names_in_the_examples_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert set(re.findall(r"\bstreambatch\.([A-Za-z_]+)\(", text)) <= set(streambatch.__all__)


def test_names_are_written_one_way() -> None:
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) for name in BY_NAME)
    assert len(BY_NAME) == len(OPTIONS)


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "docs/cli.md", "docs/library.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [t.split("#")[0] for t in re.findall(r"\]\(([^)]+)\)", text) if "://" not in t]
    assert [t for t in targets if t and not ((ROOT / page).parent / t).exists()] == []


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
