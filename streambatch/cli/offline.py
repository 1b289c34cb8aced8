"""How `shard` and `merge` end: their reports and exit codes, without network and without an event loop."""

from collections.abc import Mapping
from typing import Any

import click
import msgspec

from streambatch.cli import ending
from streambatch.configure import check_summary_file
from streambatch.errors import StreambatchError
from streambatch.reports import tell

SCHEMA_VERSION = 1
TOO_MANY = 6


def check(values: Mapping[str, Any], kind: str) -> None:
    """What both refuse before they begin. Raises UsageError, ConfigError."""
    if values["output"] == "-":
        raise click.UsageError(f"Only run writes to stdout; name a {kind} with -o.")
    check_summary_file(values)


def counted(count: int, one: str, many: str) -> str:
    """`1 row`, `1,000 rows`."""
    return f"{count:,} {one if count == 1 else many}"


def failed(error: StreambatchError, values: Mapping[str, Any]) -> None:
    """The report of a command that ends with this error."""
    tell(_document("error", error.exit_code, str(error), {}), values)


def done(words: str, report: msgspec.Struct, exceeded: bool, values: Mapping[str, Any]) -> None:
    """The report of a command that did its work; `exceeded`: with more row errors than allowed."""
    code = TOO_MANY if exceeded else 0
    tell(_document("finished", code, f"{words}.", msgspec.to_builtins(report)), values)
    if exceeded:
        ending.leave(code, f"{words}; that is more than --max-errors allows.")
    if not values.get("quiet"):
        ending.say(f"{words}.")


def _document(state: str, code: int, message: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION, "state": state, "exit_code": code, "message": message, **fields}
