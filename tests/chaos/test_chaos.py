"""The short form of `make chaos`, and that its checks can fail."""

import json
from pathlib import Path

import msgspec
import pytest

from tests.chaos import life, plan, simulate, table, verify

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]


def test_the_gaps_are_those_of_the_journal() -> None:
    plan.check_names()


def test_a_seed_is_always_the_same_plan() -> None:
    assert [plan.plan(seed) for seed in range(50)] == [plan.plan(seed) for seed in range(50)]


def test_every_gap_and_every_kind_has_its_turn() -> None:
    plans = [plan.plan(seed) for seed in range(200)]
    gaps = {one.gap.split(":")[0] for each in plans for one in each.disturbances if one.gap}
    assert gaps == set(plan.GAPS)
    kinds = {one.kind for each in plans for one in each.disturbances}
    assert kinds >= {plan.KILL, plan.GAP, plan.SERVER}
    assert len(table.kinds()) > 20


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_survives(tmp_path: Path, seed: int) -> None:
    found = life.live(seed, tmp_path)
    assert isinstance(found, life.Life), found
    assert (found.bought_again, found.rows_lost, found.orphans) == (0, 0, 0)
    assert found.fired
    assert "| 0 | 0 |" in table.table([found], table.kinds())


def test_schedules_of_the_simulation_hold() -> None:
    found = [simulate.live(seed) for seed in range(12)]
    assert [one for one in found if isinstance(one, str)] == []
    kinds = simulate.kinds([one for one in found if isinstance(one, life.Life)])
    assert {"engine killed", "run directory deleted", "lost create_batch", "expiring batch", "failing row"} <= set(
        kinds
    )


def seen(tmp_path: Path) -> verify.Seen:
    """A run of ten rows that nothing is wrong with, without a rule."""
    calm = msgspec.structs.replace(plan.plan(0), rules=(), dataset=plan.Dataset(plain=False, models=1, gzip=False))
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = life.write_input(source, calm.dataset, 10)
    output.write_bytes(b"".join(rows))
    (tmp_path / "out.jsonl.errors").write_bytes(b"")
    ledger = [{"custom_id": json.loads(row)["custom_id"], "executed": 1, "delivered": 1, "lost": 0} for row in rows]
    return verify.Seen(calm, source, output, rows, [row[:-1] for row in rows], [], ledger, 0)


def test_a_row_that_is_missing_or_doubled_is_seen(tmp_path: Path) -> None:
    calm = seen(tmp_path)
    assert verify.rows_lost(calm) == 0
    for wrong in (calm.rows[:-1], [*calm.rows, calm.rows[0]], calm.rows[::-1]):
        calm.output.write_bytes(b"".join(wrong))
        with pytest.raises(AssertionError, match="OUTPUT differs"):
            verify.rows_lost(calm)


def test_a_row_that_was_bought_again_is_seen(tmp_path: Path) -> None:
    calm = seen(tmp_path)
    assert verify.bought_again(calm) == {}
    calm.ledger[3]["executed"] = 2
    assert verify.bought_again(calm) == {calm.ledger[3]["custom_id"]: 1}
    scripted = plan.Rule(verify.FAILING[0], "rows", {"match": f"^{calm.ledger[3]['custom_id']}$"})
    excused = msgspec.structs.replace(calm, plan=msgspec.structs.replace(calm.plan, rules=(scripted,)))
    assert verify.bought_again(excused) == {}
