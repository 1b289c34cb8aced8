"""One row of the matrix as data: a fault, and all that a user must see of it. Knows no server and no engine."""

import re
from typing import Any

import msgspec

ROWS = 40
FINISHED = "Finished."
TOO_MANY = "Finished, with more row errors than allowed; they are in ….errors."
SECRET = "sk-proj-fault0matrix0secret"  # what a careless service may put into its messages


class Visit(msgspec.Struct, frozen=True, kw_only=True):
    """What one call of the command comes to. In `says` the sign … stands for any text; `done` None is not looked at."""

    state: str = "finished"
    code: int = 0
    says: str = FINISHED
    done: int | None = None
    cancel: bool = False  # the user cancels the run instead of going on with it
    cancel_after_s: float | None = None  # the user cancels the run while this visit works on it
    mend: bool = False  # the fault is over before this visit


class Ended(msgspec.Struct, frozen=True):
    """Rows that end in an error: the class and the reason that the errors file gives, … as above."""

    row_class: str
    reason: str
    rows: int


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """A fault, what the service does, what the run makes of it, and the figures at its end.

    `again` counts executions of rows that were executed before, by the server's ledger; `billed` is what the summary reports
    as possibly billed; `executed` all executions (None: one of each row, and those again). `least` is how often all rules
    together must hit. `broken` says why a scenario does not hold yet: it must fail until that is mended.
    """

    name: str
    service: str
    run: str
    script: dict[str, Any]
    visits: tuple[Visit, ...] = (Visit(),)
    failed: tuple[Ended, ...] = ()
    again: int = 0
    billed: int = 0
    executed: int | None = None
    rows: int = ROWS
    extra_bytes: int = 0  # in each request
    least: int = 1
    odd: str = ""  # custom_ids of rows whose answer is not the right one, by the service's own fault
    silent: str = ""  # custom_ids of rows in OUTPUT whose answer holds no text
    config: dict[str, Any] = {}
    stall_s: float | None = None  # how long the client waits for a silent service; None: as always
    keys: str = "fixed"  # fixed | renewed | same: what a second look at the source of the key gives
    broken: str | None = None


def told(says: str) -> re.Pattern[str]:
    """The sentences that a text with … stands for."""
    return re.compile(".*".join(map(re.escape, says.split("…"))), re.DOTALL)


def script(*rules: tuple[str, dict[str, Any]], **whole: Any) -> dict[str, Any]:
    """A script of rules, each with its table."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for table, rule in rules:
        tables.setdefault(table, []).append(rule)
    return {**tables, **whole}


def http(do: str, *on: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "http", {"do": do, "on": "*" if on == ("*",) else list(on), **more}


def rows(do: str, match: str | None = None, **more: Any) -> tuple[str, dict[str, Any]]:
    return "rows", {"do": do, **({} if match is None else {"match": match}), **more}


def batches(do: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "batches", {"do": do, **more}
