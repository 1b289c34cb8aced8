"""Every scenario of the matrix ends as it says, shows that its fault fired, and stands in docs/faults.md; no kind is left out."""

from pathlib import Path

import pytest

from tests.e2e.faults.catalogue import CHAPTERS, SCENARIOS, kinds, used
from tests.e2e.faults.driving import drive, mismatches
from tests.e2e.faults.page import PAGE, page
from tests.marks import broken


def _marked(name: str) -> object:
    why = SCENARIOS[name].broken
    return pytest.param(name, marks=[] if why is None else [broken(why)])


@pytest.mark.parametrize("name", [*map(_marked, SCENARIOS)])
def test_the_run_takes_it(name: str, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    assert mismatches(scenario, drive(scenario, tmp_path)) == []


def test_every_kind_of_misbehaviour_has_a_scenario() -> None:
    shown = {kind for scenario in SCENARIOS.values() for kind in used(scenario)}
    assert [kind for kind in kinds() if kind not in shown] == []


def test_names_are_unique() -> None:
    assert sum(len(scenarios) for _, scenarios in CHAPTERS) == len(SCENARIOS)


def test_the_page_is_what_the_scenarios_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.e2e.faults"
