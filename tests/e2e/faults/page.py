"""docs/faults.md, written from the scenarios. Says nothing that a test of them does not check."""

from collections.abc import Iterator
from pathlib import Path

from tests.e2e.faults.catalogue import CHAPTERS, kinds, used
from tests.e2e.faults.scenario import FINISHED, Scenario, Visit

PAGE = Path(__file__).parents[3] / "docs" / "faults.md"
HEAD = """# Faults and what becomes of them

What a service can do to a run, and what the run makes of it. Each row is a scenario of [tests/e2e/faults](../tests/e2e/faults):
the real client and engine against the [local server](server.md), which is told to misbehave and must show that it did. In each
of them every row ends in exactly one result or error, in input order, or is still there for the next visit; the journal folds
to its state; what is said is one sentence, and holds no key.

*Exit*: the exit code, and what the same command comes to afterwards, once the fault is over. *Again*: rows (of 40) that were
executed again, and how many executions the summary reports as possibly billed. A row is executed again only where the service
failed it, lost it, or sent a result that can't be read. *Says*: the sentence of the first visit that does not finish, or the
reason in the errors file; … stands for names and figures.

This page is written by `python -m tests.e2e.faults`, which runs all scenarios (`--only TEXT`: those that have it in their name, and
nothing is written).
"""
TABLE = "| fault | the service | the run | exit | again | says |\n|---|---|---|---|---|---|"


def page() -> str:
    chapters = [f"## {title}\n\n{TABLE}\n" + "\n".join(map(_row, scenarios)) for title, scenarios in CHAPTERS]
    return "\n".join([HEAD, "\n\n".join(chapters), "", *_kinds()])


def _row(scenario: Scenario) -> str:
    name = scenario.name if scenario.broken is None else f"{scenario.name} (**broken**: {scenario.broken})"
    cells = (name, scenario.service, scenario.run, _exits(scenario), _again(scenario), _says(scenario))
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _exits(scenario: Scenario) -> str:
    return ", then ".join(map(_exit, scenario.visits))


def _exit(visit: Visit) -> str:
    cancelled = visit.cancel or visit.cancel_after_s is not None
    return f"{visit.code} after `cancel`" if cancelled else str(visit.code)


def _again(scenario: Scenario) -> str:
    billed = f" ({scenario.billed} possibly billed)" if scenario.billed else ""
    return f"{scenario.again}{billed}"


def _says(scenario: Scenario) -> str:
    if scenario.failed:
        return "<br>".join(f"`{ended.row_class}`: {ended.reason}" for ended in scenario.failed)
    return next((visit.says for visit in scenario.visits if visit.says != FINISHED), "")


def _kinds() -> Iterator[str]:
    """Which scenario shows which kind of the server's script."""
    yield "## Every kind of misbehaviour\n"
    yield "What a script of the local server can ask for (`table do`), and in how many scenarios it is shown to fire.\n"
    yield "| kind | scenarios |\n|---|---|"
    scenarios = [scenario for _, chapter in CHAPTERS for scenario in chapter]
    for kind in kinds():
        yield f"| `{kind}` | {sum(kind in set(used(scenario)) for scenario in scenarios)} |"
    yield ""
