"""The page's table of rules is written from the script's own types: `python -m tests.server.test_docs`."""

import re
import tomllib
import typing
from pathlib import Path

import msgspec

from streambatch.server import rules
from streambatch.server.limits import TIERS
from streambatch.server.rules import ROUTES
from streambatch.server.script import parse_script

PAGE = Path(__file__).parent.parent.parent / "docs" / "server.md"
BEGIN, END = "<!-- rules:", "<!-- end of rules -->"
TABLES = {"http": rules.HttpRule, "rows": rules.RowRule, "batches": rules.BatchRule}
SHARED = {"after", "times", "probability", "on"}


def table() -> str:
    rows = [
        f"| `{name}` | `{_do(kind)}` | {_parameters(kind)} | {_told(kind)} |"
        for name, union in TABLES.items()
        for kind in typing.get_args(union)
    ]
    return "\n".join(["| table | `do` | parameters | |", "|---|---|---|---|", *rows])


def _do(kind: type[msgspec.Struct]) -> str:
    return str(kind.__struct_config__.tag)


def _parameters(kind: type[msgspec.Struct]) -> str:
    fields = [field for field in msgspec.structs.fields(kind) if field.name not in SHARED]
    return ", ".join(f"`{field.name}`{'' if field.required else _default(field)}" for field in fields)


def _default(field: msgspec.structs.FieldInfo) -> str:
    return (
        f" ({field.default})" if isinstance(field.default, int | float) and not isinstance(field.default, bool) else ""
    )


def _told(kind: type[msgspec.Struct]) -> str:
    assert kind.__doc__ is not None
    return " ".join(kind.__doc__.split())


def with_table(page: str) -> str:
    before, rest = page.split(BEGIN, 1)
    comment, rest = rest.split("\n", 1)
    return f"{before}{BEGIN}{comment}\n\n{table()}\n\n{END}{rest.split(END, 1)[1]}"


def test_the_page_shows_every_rule() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "run python -m tests.server.test_docs"


def test_the_page_names_routes_tiers_and_flags() -> None:
    from streambatch.cli.serve import serve

    page = PAGE.read_text(encoding="utf-8")
    assert all(f"`{route}`" in page for route in ROUTES)
    assert TIERS == ("free", "1", "2", "3", "4", "5")
    flags = {option for parameter in serve.params for option in parameter.opts}
    assert set(re.findall(r"^\| `(--[a-z-]+)", page, re.M)) == flags


def test_the_example_is_a_script() -> None:
    [example] = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    parsed = parse_script(tomllib.loads(example), "the page")
    assert [len(rules) for rules in (parsed.http, parsed.rows, parsed.batches)] == [3, 1, 1]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
