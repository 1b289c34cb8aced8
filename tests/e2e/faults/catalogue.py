"""All scenarios, by chapter, and which kinds of the server's script each uses."""

import typing
from collections.abc import Iterator

import msgspec

from streambatch.server import rules
from tests.e2e.faults import batches, calls, connections, lines, listing, resultfiles, validating
from tests.e2e.faults.scenario import Scenario

CHAPTERS: tuple[tuple[str, tuple[Scenario, ...]], ...] = tuple(
    (part.TITLE, part.SCENARIOS) for part in (calls, connections, listing, validating, batches, lines, resultfiles)
)
SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for _, scenarios in CHAPTERS for scenario in scenarios}
TABLES = {"http": rules.HttpRule, "rows": rules.RowRule, "batches": rules.BatchRule}
WHOLE = ("models", "foreign", "advance by once", "advance by looks", "advance by time")


def kinds() -> list[str]:
    """Every kind of misbehaviour that a script can ask for."""
    tagged = [f"{table} {tag_of(kind)}" for table, union in TABLES.items() for kind in typing.get_args(union)]
    return [*tagged, *WHOLE]


def tag_of(kind: type[msgspec.Struct]) -> str:
    return str(kind.__struct_config__.tag)


def used(scenario: Scenario) -> Iterator[str]:
    """The kinds that a scenario's script asks for."""
    for table, value in scenario.script.items():
        if table in TABLES:
            yield from (f"{table} {rule['do']}" for rule in value)
        elif table == "advance":
            yield f"advance by {value['by']}"
        else:
            yield table
