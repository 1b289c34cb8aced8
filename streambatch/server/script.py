"""The form of a fault script: data read from TOML or JSON, checked, and told again.

Three tables: `http` (what a client's call meets), `rows` (what becomes of a request line), `batches` (what becomes of a batch);
and what concerns the service as a whole.
"""

import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from streambatch.errors import ConfigError
from streambatch.server.rules import BatchRule, HttpRule, RowRule

MOST_FOREIGN = 1_000_000


class Advance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What moves a batch from state to state: `time` (the default), `once` (nothing takes time), or `looks`.

    By looks a batch leaves a state after it was shown `n` times in it, by id or in a list; nothing takes time beside that.
    """

    by: Literal["time", "once", "looks"] = "time"
    n: int = 1

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError("n is not negative")


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole script. `models`, if given, are the only ones that the service knows; `foreign` finished batches of other people
    stand before ours in the list."""

    seed: int = 0
    models: list[str] | None = None
    foreign: int = 0
    advance: Advance = Advance()
    http: list[HttpRule] = []
    rows: list[RowRule] = []
    batches: list[BatchRule] = []

    def __post_init__(self) -> None:
        if not 0 <= self.foreign <= MOST_FOREIGN:
            raise ValueError(f"foreign lies between 0 and {MOST_FOREIGN}")


def read_script(path: Path) -> Script:
    """A script from a TOML file. Raises `ConfigError` with the place that is wrong."""
    try:
        return parse_script(tomllib.loads(path.read_text(encoding="utf-8")), f"The faults file {path}")
    except OSError as error:
        raise ConfigError(f"The faults file {path} can't be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The faults file {path} is not TOML: {error}.") from error


def parse_script(data: Any, source: str) -> Script:
    """A script from plain data. Raises `ConfigError` with the place that is wrong."""
    try:
        return msgspec.convert(data, Script)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source} is no fault script: {error}.") from error


def to_plain(script: Script) -> dict[str, Any]:
    """A script as plain data, as `parse_script` takes it."""
    plain: dict[str, Any] = msgspec.to_builtins(script)
    return plain
