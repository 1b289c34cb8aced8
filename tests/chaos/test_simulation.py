"""The rows simulation: many seeded schedules hold, a seed replays, and each safety rule is missed when it is off."""

import pytest

from tests.chaos import simulate, storm, switches
from tests.chaos.life import Life

pytestmark = [pytest.mark.timeout(400)]
SCHEDULES = 120  # `make chaos` has more


def test_schedules_hold() -> None:
    found = simulate.run(range(SCHEDULES), jobs=2)
    assert [one for one in found if isinstance(one, str)] == []
    fired = {kind for one in found if isinstance(one, Life) for kind in one.fired}
    assert fired >= {
        simulate.KILLED,
        simulate.INTERRUPTED,
        simulate.DELETED,
        simulate.WITH_REMAINDERS,
        simulate.RESTORED,
        simulate.CANCELLED,
        simulate.DISK,
        "answer lost: create_batch",
        "batch expires half done",
        "batch cancelled by someone else half done",
        "batch stuck in a state",
        "row: in neither file",
        "result file late",
    }


def test_a_seed_replays() -> None:
    first, second = simulate.run([4, 4], jobs=1)
    assert isinstance(first, Life)
    assert isinstance(second, Life)
    assert (first.fired, first.visits) == (second.fired, second.visits)


def test_every_climate_has_its_turn() -> None:
    assert {storm.climate(seed)[0] for seed in range(100)} == {storm.MIXED, *storm.NAMES}
    for name in (storm.MIXED, *storm.NAMES):
        assert {storm.climate(seed)[0] for seed in storm.seeds(name, 5)} == {name}


@pytest.mark.parametrize("name", [rule.name for rule in switches.RULES])
def test_a_rule_that_is_off_is_missed(name: str) -> None:
    """Within 300 seeds of its climate; the one that shows it holds with the rule on."""
    rule = next(rule for rule in switches.RULES if rule.name == name)
    assert switches.find(rule, switches.written()[1].get(name)) is not None


def test_the_table_of_rules_is_current() -> None:
    """But for the seeds, which move with every change of the engine."""
    said, seeds = switches.written()
    assert said == switches.table(dict(seeds)), "run `python -m tests.chaos.switches`"


@pytest.mark.parametrize("one", switches.ELSEWHERE)
def test_what_is_shown_elsewhere_is_there(one: switches.Elsewhere) -> None:
    path, _, name = one.test.partition("::")
    assert f"def {name}(" in (switches.ARCHITECTURE.parent / path).read_text(encoding="utf-8")
