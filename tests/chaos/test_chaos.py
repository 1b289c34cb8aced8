"""The short form of `make chaos`, and that its checks can fail."""

import contextlib
import json
import sqlite3
from pathlib import Path

import msgspec
import pytest

from streambatch.core import events as e
from streambatch.edge.journal import Store
from tests.chaos import firing, life, plan, table, verify

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]


def test_the_gaps_are_those_of_the_journal() -> None:
    plan.check_names()


def test_a_seed_is_always_the_same_plan() -> None:
    assert [plan.plan(seed) for seed in range(50)] == [plan.plan(seed) for seed in range(50)]


def test_every_gap_and_every_kind_has_its_turn() -> None:
    plans = [plan.plan(seed) for seed in range(200)]
    named = [name for each in plans for one in each.disturbances for name in one.failpoints.split(",") if name]
    assert {name.partition(":")[0] for name in named} == set(plan.GAPS)
    kinds = {one.kind for each in plans for one in each.disturbances}
    assert kinds >= {plan.KILL, plan.GAP, plan.SERVER}
    assert len(plan.kinds()) > 30


@pytest.mark.parametrize("seed", [1, 73])
def test_a_run_survives(tmp_path: Path, seed: int) -> None:
    found = life.live(seed, tmp_path)
    assert not found.failure, found.failure
    assert (found.bought_again, found.rows_lost, found.orphans) == (0, 0, 0)
    assert found.fired
    assert "| 0 | 0 |" in table.table([found], plan.kinds())


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
    verify.check_output(calm)
    for wrong, gone in ((calm.rows[:-1], 1), ([*calm.rows, calm.rows[0]], 0), (calm.rows[::-1], 0)):
        calm.output.write_bytes(b"".join(wrong))
        with pytest.raises(AssertionError, match="OUTPUT differs"):
            verify.check_output(calm)
        assert verify.missing(calm) == gone


def test_a_row_that_was_bought_again_is_seen(tmp_path: Path) -> None:
    calm = seen(tmp_path)
    assert verify.bought_again(calm) == {}
    calm.ledger[3]["executed"] = 2
    assert verify.bought_again(calm) == {calm.ledger[3]["custom_id"]: 1}
    scripted = plan.Rule(plan.FAILING[0], "rows", {"match": f"^{calm.ledger[3]['custom_id']}$"})
    excused = msgspec.structs.replace(calm, plan=msgspec.structs.replace(calm.plan, rules=(scripted,)))
    assert verify.bought_again(excused) == {}


def journal(run_dir: Path, *entries: tuple[float, str, str | None, bytes]) -> None:
    run_dir.mkdir()
    with contextlib.closing(sqlite3.connect(run_dir / "journal.sqlite")) as db:
        db.execute("CREATE TABLE events(seq INTEGER PRIMARY KEY, at REAL, kind TEXT, shard TEXT, body BLOB)")
        db.executemany("INSERT INTO events(at, kind, shard, body) VALUES(?,?,?,?)", entries)
        db.commit()


def test_a_batch_that_nobody_knows_or_that_goes_on_is_an_orphan(tmp_path: Path) -> None:
    calm = seen(tmp_path)
    told = b'{"batch_id":"batch_1"}'
    journal(
        tmp_path / "out.jsonl.run",
        (1.0, "Submitted", "000000-0", told),
        (2.0, "GivenUp", "000001-0", b'{"b":"batch_3"}'),
    )
    batches = [
        {"id": f"batch_{k}", "status": status, "metadata": {"streambatch": f"chaos-{run}/000000-0/1"}}
        for k, status, run in ((1, "completed", 0), (2, "completed", 0), (3, "cancelling", 0), (4, "completed", 9))
    ]
    assert verify.orphan_batches(msgspec.structs.replace(calm, batches=batches)) == ["batch_2"]
    live = [{**batches[0], "status": "in_progress"}]
    assert verify.orphan_batches(msgspec.structs.replace(calm, batches=live)) == ["batch_1"]


def test_a_journal_that_is_not_the_sum_of_its_events_is_seen(tmp_path: Path) -> None:
    calm = seen(tmp_path)
    (tmp_path / "out.jsonl.run").mkdir()
    path = tmp_path / "out.jsonl.run" / "journal.sqlite"
    store = Store(str(path))
    store.append([e.Found("batch_1", "000000-0", 1, "file-1", "hash", "0+10", "completed", 1.0)])
    store.close()
    verify.check_journal(calm)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("DELETE FROM found")
        db.commit()
    with pytest.raises(AssertionError):
        verify.check_journal(calm)
    assert any("AssertionError: found" in problem for problem in verify.check(calm).problems)


def test_a_fault_counts_only_when_an_event_of_its_shard_follows(tmp_path: Path) -> None:
    rules = (plan.Rule("cut", "http", {}), plan.Rule("", "http", {}), plan.Rule("expired", "batches", {}))
    drawn = msgspec.structs.replace(plan.plan(0), rules=rules)
    batch = {"id": "batch_1", "metadata": {"streambatch": "run/000001-0/1"}, "input_file_id": "file-1"}
    run_dir = tmp_path / "run"
    journal(run_dir, (5.0, "Settled", "000001-0", b"{}"), (7.0, "Settled", "000002-0", b"{}"))
    events = firing.entries(run_dir)

    def fired(table: str, rule: int, at: float, what: str) -> dict[str, int]:
        return dict(firing.fired(drawn, [{"table": table, "rule": rule, "at": at, "what": what}], [batch], events))

    assert fired("http", 0, 4.0, "file-1") == {"cut": 1}
    assert fired("http", 0, 6.0, "batch_1") == {}, "nothing of its shard followed"
    assert fired("http", 0, 6.0, "run.000002-0.0123456789abcdef.jsonl") == {"cut": 1}
    assert fired("http", 0, 6.0, "file-unknown") == {}
    assert (fired("http", 0, 6.0, ""), fired("http", 0, 8.0, "")) == ({"cut": 1}, {})
    assert fired("batches", 0, 4.0, "run/000001-0/1") == {"expired": 1}
    assert fired("http", 1, 4.0, "file-1") == {}, "it has no kind"
