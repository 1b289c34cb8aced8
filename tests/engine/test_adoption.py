"""Nothing is bought again because it was forgotten: lost and restored run directories, several batches of one shard, odd clocks."""

import json
import math
import os
import random
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import trio
import trio.testing

from streambatch.config import Config, Mode
from streambatch.core import adoption, tags
from streambatch.core import events as e
from streambatch.core.models import Shard, ShardState
from streambatch.core.report import Summary
from streambatch.core.shaping import Asked
from streambatch.core.wire import BatchError, BatchInfo
from streambatch.edge import scratch, spares
from streambatch.edge.journal import Store
from streambatch.errors import ApiError, StorageError, StreambatchError
from tests.e2e import rig
from tests.engine.test_found import log_of
from tests.engine.test_virtual import duration, ids
from tests.twins.api import Call, MemoryBatchApi, Row
from tests.twins.clock import VirtualClock
from tests.twins.world import DAY_S, Weather, config, simulate, visit, world

ROWS = 30
FULL = BatchError("token_limit_exceeded", "Enqueued token limit reached for gpt-4o-mini in organization org-1.")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is proven here is not what survives a power cut; thousands of syncs would take most of the time."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def named(tmp_path: Path, source: Path, **changes: Any) -> Config:
    """A run that is known by its id, and tries each row often enough."""
    return config(tmp_path, source, **{"run_id": "known", "max_attempts": 9, "remote_files": "keep"} | changes)


def times(api: MemoryBatchApi) -> Counter[int]:
    """How many rows were executed how often."""
    return Counter(api.executed.values())


def odd_fail_once(row: Row) -> int:
    """Every third row fails at its first execution."""
    return 500 if not row.executed and int(row.custom_id.rsplit("-", 1)[-1]) % 3 == 0 else 200


def kinds(folder: Path) -> Counter[str]:
    return Counter(type(event).__name__ for event in log_of(folder))


async def until(asked: Config, api: MemoryBatchApi, clock: VirtualClock, kind: type[e.Event], number: int = 1) -> None:
    """A visit that is killed right after the N-th event of a kind."""
    seen = 0
    with anyio.CancelScope() as life:

        def listen(notice: object) -> None:
            nonlocal seen
            seen += isinstance(notice, kind)
            if seen == number:
                life.cancel()

        await visit(asked, api, clock, random.Random(1), listen=listen)
    assert seen >= number, f"there were only {seen} {kind.__name__}"


def lose(asked: Config) -> None:
    shutil.rmtree(asked.run_dir)


# -- storms: killed, lost, restored


def one_storm(folder: Path, seed: int) -> Counter[str]:
    """A run in bad weather whose directory is lost, and set back to an old copy, again and again."""
    chance = random.Random(seed)
    source = rig.write_requests(folder / "in.jsonl", 30)
    weather = Weather(seed, lost=0.05, refused=0.05, failing=0.2, expiring=0.3)
    happened: Counter[str] = Counter()

    def refuse(batch: BatchInfo) -> BatchError | None:
        drawn = random.Random(f"{seed}/{batch.id}/refuse").random()
        if drawn < 0.1:
            return FULL
        whole = "/r" not in batch.metadata[tags.TAG]  # a row alone would be in error for it
        return (
            BatchError("invalid_json_line", "Some line is not parseable.") if whole and drawn < 0.2 else None
        )  # halved

    def listen(notice: object) -> None:
        if isinstance(notice, e.RemainderSealed):
            happened["rows of a spare taken" if notice.seen else "remainder bought"] += 1

    async def main() -> None:
        clock = VirtualClock()
        lag = chance.choice([0.0, 30.0, 100.0])
        how_long: Callable[[BatchInfo], float] = lambda batch: duration(batch, seed)  # noqa: E731 - one line of a world
        api = world(clock, weather, refuse=refuse, list_lag_s=lag, window_s=3600.0, duration_s=how_long)
        asked = named(folder, source, max_attempts=50, max_batches=chance.choice([1, 3, 8]))
        for visits in range(400):
            with anyio.move_on_after(chance.expovariate(1 / chance.choice([60.0, 600.0, 3000.0]))):
                if await ended(visit(asked, api, clock, chance, listen=listen)):
                    break
            if visits < 40:
                happened[strike(asked, folder / "old", chance)] += 1
        assert ids(folder / "out.jsonl") == ids(source)
        executed = {custom_id: n for (custom_id, _), n in api.executed.items()}
        assert executed == {custom_id: weather.executions_of(custom_id) for custom_id in ids(source)}

    simulate(main, seed)
    return happened


async def ended(going: Awaitable[Summary]) -> bool:
    """Whether a visit finished the run; a service that was rude to it is no failure of the test."""
    try:
        return (await going).state == "finished"
    except StreambatchError:
        return False


def strike(asked: Config, old: Path, chance: random.Random) -> str:
    """What happens to the run directory between two visits."""
    drawn, here = chance.random(), Path(asked.run_dir)
    if drawn < 0.2:
        shutil.rmtree(here, ignore_errors=True)
        return "lost"
    if drawn < 0.3 and here.exists():
        shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(here, old)
        return "copied"
    if drawn < 0.4 and old.exists():
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(old, here)
        return "restored"
    return "nothing"


@pytest.mark.parametrize("seed", range(5))
def test_no_row_is_bought_twice_whatever_becomes_of_the_run_directory(tmp_path: Path, seed: int) -> None:
    one_storm(tmp_path, seed)


# -- a lost run directory with remainders


@pytest.mark.parametrize("asked_for", [True, False], ids=["as it is", "without asking the table"])
def test_remainders_of_a_lost_directory_are_found_and_none_of_their_rows_is_bought_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_for: bool
) -> None:
    """All but the last batch had ended when the directory went."""
    if not asked_for:
        monkeypatch.setattr(scratch.Lookup, "first", lambda *asked: 0)
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)

    async def main() -> tuple[Summary, int, Counter[int]]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, status_of=odd_fail_once)
        asked = named(tmp_path, source)
        await until(asked, api, clock, e.RemainderSealed)
        await until(asked, api, clock, e.Submitted)
        lose(asked)
        return await visit(asked, api, clock, random.Random(1)), len(api.batches), times(api)

    summary, batches, executed = simulate(main, 1)
    assert (summary.state, summary.done, batches) == ("finished", ROWS, 4 if asked_for else 5)
    assert executed == ({1: 20, 2: 10} if asked_for else {1: 20, 3: 10})
    assert ids(tmp_path / "out.jsonl") == ids(source)
    if not asked_for:
        return
    assert not kinds(tmp_path)["Intended"] + kinds(tmp_path)["Uploaded"], "all of it was found"


def test_a_shard_that_was_halved_before_its_directory_was_lost_is_not_created_again_whole(tmp_path: Path) -> None:
    """Nothing in the list says that its rows ran, but the batches of its halves; and this time it would be taken."""
    source = rig.write_requests(tmp_path / "in.jsonl", 10)
    odd = BatchError("invalid_json_line", "Some line is not parseable.")

    async def main() -> tuple[Summary, int, Counter[int]]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, refuse=lambda batch: odd if batch.id.endswith("1") else None)
        asked = named(tmp_path, source)
        assert (await visit(asked, api, clock, random.Random(1))).state == "finished"
        (tmp_path / "out.jsonl").unlink()
        (tmp_path / "out.jsonl.errors").unlink()
        lose(asked)
        return await visit(asked, api, clock, random.Random(1)), len(api.batches), times(api)

    summary, batches, executed = simulate(main, 1)
    assert (summary.done, batches, executed) == (10, 3, {1: 10})
    assert ids(tmp_path / "out.jsonl") == ids(source)


def plain_rows(path: Path, rows: int) -> Path:
    """Rows without ids: their custom_ids are ordinals."""
    lines = (json.dumps({"messages": [{"role": "user", "content": f"question {k}"}]}) for k in range(rows))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def of_remainders(api: MemoryBatchApi) -> list[BatchInfo]:
    return [b for b in api.batches if b.metadata[tags.TAG].split("/")[1].startswith("r")]


@pytest.mark.parametrize("ordinals", [True, False])
def test_a_remainder_without_its_input_file_is_known_by_its_results_if_ids_are_ordinals(
    tmp_path: Path, ordinals: bool
) -> None:
    make = plain_rows if ordinals else rig.write_requests
    source = make(tmp_path / "in.jsonl", ROWS)
    changes = {"asked": Asked(model="gpt-4o-mini")} if ordinals else {}

    async def main() -> tuple[Summary, int, Counter[int]]:
        clock = VirtualClock()
        api = MemoryBatchApi(
            clock, status_of=lambda row: 200 if row.executed or not row.custom_id.endswith("3") else 500
        )
        asked = named(tmp_path, source, if_exists="overwrite", **changes)
        assert (await visit(asked, api, clock, random.Random(1))).state == "finished"
        for batch in of_remainders(api):
            api.lose_file(str(batch.input_file_id))
        lose(asked)
        return await visit(asked, api, clock, random.Random(1)), len(api.batches), times(api)

    summary, batches, executed = simulate(main, 1)
    assert (batches, executed) == (4, {1: ROWS - 3, 2: 3})
    if ordinals:
        assert (summary.state, summary.done) == ("finished", ROWS)
    else:
        assert (summary.state, summary.exit_code) == ("paused", 4)
        assert "of remainder r000000" in summary.message
        assert "would be bought again" in summary.message


def test_a_remainder_that_is_gone_altogether_pauses_the_run(tmp_path: Path) -> None:
    source = plain_rows(tmp_path / "in.jsonl", ROWS)

    async def main() -> tuple[Summary, int, Counter[int]]:
        clock = VirtualClock()
        api = MemoryBatchApi(
            clock, status_of=lambda row: 200 if row.executed or not row.custom_id.endswith("3") else 500
        )
        asked = named(tmp_path, source, if_exists="overwrite", asked=Asked(model="gpt-4o-mini"))
        await visit(asked, api, clock, random.Random(1))
        for batch in of_remainders(api):
            for file_id in (batch.input_file_id, batch.output_file_id):
                api.lose_file(str(file_id))
        lose(asked)
        return await visit(asked, api, clock, random.Random(1)), len(api.batches), times(api)

    summary, batches, _ = simulate(main, 1)
    assert (summary.state, summary.exit_code, batches) == ("paused", 4, 4)


def test_equal_ids_with_other_bodies_never_share_an_answer(tmp_path: Path) -> None:
    """Two files of requests that count their ids from the same number: each row gets the answer to its own body."""
    source = tmp_path / "in.jsonl"
    lines = [json.loads(rig.request_line(k)) for k in range(20)]
    for k, line in enumerate(lines):
        line["custom_id"] = f"request-{k % 10}"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    async def main() -> tuple[Summary, int, Counter[int]]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, status_of=lambda row: 200 if row.executed or row.custom_id != "request-3" else 500)
        asked = named(tmp_path, source, if_exists="overwrite")
        await visit(asked, api, clock, random.Random(1))
        wanted.append((tmp_path / "out.jsonl").read_bytes())
        lose(asked)
        return await visit(asked, api, clock, random.Random(1)), len(api.batches), times(api)

    wanted: list[bytes] = []
    summary, _, executed = simulate(main, 1)
    assert (summary.done, executed) == (20, {1: 18, 2: 2})
    assert answers((tmp_path / "out.jsonl").read_bytes()) == answers(wanted[0])


def answers(data: bytes) -> list[str]:
    return [json.loads(line)["response"]["body"]["choices"][0]["message"]["content"] for line in data.split(b"\n")[:-1]]


def test_a_new_remainder_has_a_name_that_no_lost_one_had(tmp_path: Path) -> None:
    """Else a doubt about it would be settled by the lost one's batch, which ran other rows."""
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)

    async def main() -> int:
        clock = VirtualClock()
        api = MemoryBatchApi(
            clock, status_of=lambda row: 500 if row.executed < 2 and row.custom_id.endswith("-6") else 200
        )
        asked = named(tmp_path, source)
        await until(asked, api, clock, e.RemainderSealed)
        await until(asked, api, clock, e.Submitted)
        lose(asked)
        assert (await visit(asked, api, clock, random.Random(1))).state == "finished"
        return len(api.batches)

    batches = simulate(main, 1)
    made = [event.made for event in log_of(tmp_path) if isinstance(event, e.RemainderSealed)]
    assert [shard.name for shard in made] == ["r000001", "r000002"]
    assert batches == 5


def test_a_lost_scratch_table_stops_the_run_and_buys_nothing(tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)

    async def main() -> None:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, status_of=odd_fail_once)
        asked = named(tmp_path, source, if_exists="overwrite")
        await visit(asked, api, clock, random.Random(1))
        lose(asked)
        await until(asked, api, clock, e.SpareRead)
        (Path(asked.run_dir) / "spool" / "spares.sqlite").unlink()
        before = len(api.batches)
        with pytest.raises(StorageError, match="--run-id"):
            await visit(asked, api, clock, random.Random(1))
        assert len(api.batches) == before

    simulate(main, 1)


def test_keys_that_a_killed_process_left_under_a_number_are_not_the_next_ones(tmp_path: Path) -> None:
    table = str(tmp_path / "spares.sqlite")
    assert scratch.add(table, 1, [scratch.line_key(b"a\n"), scratch.line_key(b"b\n"), scratch.line_key(b"a\n")]) == 2
    assert scratch.add(table, 1, [scratch.line_key(b"b\n"), scratch.id_key(b"c")]) == 2
    assert scratch.add(table, 2, [scratch.line_key(b"b\n")]) == 1
    with scratch.looked_up(table, 2) as lookup:
        asked = {
            "gone": (b"a\n", b"?", 0),
            "first": (b"b\n", b"?", 0),
            "above": (b"b\n", b"?", 1),
            "id": (b"?\n", b"c", 0),
        }
        found = {name: lookup.first(*line) for name, line in asked.items()}
    assert found == {"gone": 0, "first": 1, "above": 2, "id": 1}
    with pytest.raises(StorageError, match="damaged"), scratch.looked_up(table, 3):
        pass


# -- several batches of one shard


async def twice(asked: Config, api: MemoryBatchApi, clock: VirtualClock) -> None:
    """A run whose only batch was created a second time, and whose directory is lost."""
    await until(asked, api, clock, e.Submitted)
    (first,) = api.batches
    pairs = {**first.metadata, tags.TAG: first.metadata[tags.TAG].removesuffix("1") + "2"}
    await api.create_batch(str(first.input_file_id), rig.URL, pairs)
    lose(asked)


@pytest.mark.parametrize("killed", [False, True])
def test_of_two_live_batches_of_a_shard_the_earlier_goes_on_and_the_other_is_cancelled(
    tmp_path: Path, killed: bool
) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 10)

    async def main() -> tuple[Summary, list[str], Counter[int]]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, duration_s=3600.0)
        asked = named(tmp_path, source)
        await twice(asked, api, clock)
        if killed:
            await until(asked, api, clock, e.SurplusCancelled)
        summary = await visit(asked, api, clock, random.Random(1))
        return summary, [batch.status for batch in api.batches], times(api)

    summary, statuses, executed = simulate(main, 1)
    assert (summary.done, statuses, executed) == (10, ["completed", "cancelled"], {1: 10})
    assert kinds(tmp_path)["SurplusCancelled"] == 1


def test_a_batch_that_is_not_past_validation_keeps_no_other_from_going_on(tmp_path: Path) -> None:
    """The earlier one is refused at the end of a long validation; nobody has cancelled the other."""
    source = rig.write_requests(tmp_path / "in.jsonl", 10)

    async def main() -> tuple[Summary, list[str], Counter[int]]:
        clock = VirtualClock()
        api = MemoryBatchApi(
            clock, validation_s=500.0, refuse=lambda batch: FULL if batch.id.endswith("1") else None, duration_s=900.0
        )
        asked = named(tmp_path, source)
        await twice(asked, api, clock)
        return await visit(asked, api, clock, random.Random(1)), [batch.status for batch in api.batches], times(api)

    summary, statuses, executed = simulate(main, 1)
    assert (summary.done, statuses, executed) == (10, ["failed", "completed"], {1: 10})


def test_rows_that_one_batch_of_a_shard_left_are_taken_from_another(tmp_path: Path) -> None:
    """The earlier one expires at 60 %, and a third of what it finishes fails; the other has them all."""
    source = rig.write_requests(tmp_path / "in.jsonl", 10)

    async def main() -> tuple[Summary, int, Counter[int]]:
        clock = VirtualClock()
        api = MemoryBatchApi(
            clock,
            window_s=600.0,
            status_of=odd_fail_once,
            expire_at=lambda batch_id: 0.6 if batch_id.endswith("1") else None,
        )
        asked = named(tmp_path, source)
        await twice(asked, api, clock)
        await anyio.sleep(700.0)
        assert [batch.status for batch in api.batches] == ["expired", "completed"]
        return await visit(asked, api, clock, random.Random(1)), len(api.batches), times(api)

    summary, batches, executed = simulate(main, 1)
    bought = batches - 2
    assert (summary.state, summary.done) == ("finished", 10)
    assert ids(tmp_path / "out.jsonl") == ids(source)
    failed_in_both = sum(odd_fail_once(Row(custom_id, b"", 0)) != 200 for custom_id in ids(source)[6:])
    assert bought == (1 if failed_in_both else 0)
    assert executed == {1: 4 - failed_in_both, 2: 6 + failed_in_both}


def test_a_cancelled_run_cancels_what_was_found_too(tmp_path: Path) -> None:
    """The batch of a lost remainder, which no shard runs: its rows stay left, and a resume reads it before it buys them."""
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)

    async def main() -> tuple[list[str], Summary, Counter[int]]:
        clock = VirtualClock()
        api = MemoryBatchApi(
            clock,
            duration_s=lambda batch: 9000.0 if "/r" in batch.metadata[tags.TAG] else 60.0,
            status_of=odd_fail_once,
        )
        asked = named(tmp_path, source)
        await until(asked, api, clock, e.Submitted, 4)
        lose(asked)
        await until(asked, api, clock, e.SpareRead)
        cancelled = await visit(asked, api, clock, random.Random(1), mode=Mode.CANCEL)
        assert cancelled.state == "cancelled"
        statuses = [batch.status for batch in of_remainders(api)]
        return statuses, await visit(asked, api, clock, random.Random(1)), times(api)

    statuses, summary, executed = simulate(main, 1)
    assert statuses == ["cancelled"]
    assert (summary.state, summary.done) == ("finished", ROWS)
    assert executed == {1: 20, 2: 10}


def test_a_batch_of_other_content_is_none_of_the_shards() -> None:
    """Whatever its tag says; one that was found by its input file may have no tag."""
    shard = Shard("r000003", None, 0, 0, 1, "m", 1, 10, 1, "ours")
    finds = [
        e.Found(digest, shard.name, 1, "file-1", digest, "-", "completed", 1.0) for digest in ("", "ours", "other")
    ]
    assert [find.hash for find in adoption.of_content(finds, shard)] == ["", "ours"]
    store = Store(":memory:")
    store.append([sealed_remainder(shard), *finds])
    assert [find.hash for find in spares.unread(store)] == ["other"]


def sealed_remainder(shard: Shard) -> e.RemainderSealed:
    return e.RemainderSealed(shard, (), ((0, 1),))


S = ShardState


@pytest.mark.parametrize(
    ("state", "word", "cancelled"),
    [
        (S.SEALED, None, []),
        (S.DOUBTED, None, []),
        (S.SUBMITTED, None, []),
        (S.SUBMITTED, "validating", []),
        (S.SUBMITTED, "in_progress", ["live"]),
        (S.SUBMITTED, "cancelling", []),
        (S.FINISHED, "completed", ["live"]),
        (S.SETTLED, None, ["live"]),
        (S.RETURNED, None, []),
    ],
)
def test_what_is_surplus(state: ShardState, word: str | None, cancelled: list[str]) -> None:
    finds = [
        e.Found(status, "000000-0", 2, None, "h", "0+1", {"live": "in_progress"}.get(status, status), 1.0)
        for status in ("live", "cancelling", "completed", "expired", "cancelled", "failed")
    ]
    assert [find.batch_id for find in adoption.surplus(state, word, finds)] == cancelled


# -- a directory that was restored, moved or copied


def test_create_numbers_go_on_above_what_an_old_copy_does_not_know(tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 10)

    async def main() -> list[str]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, refuse=lambda batch: FULL if batch.id.endswith("1") else None)
        asked = config(tmp_path, source)
        await until(asked, api, clock, e.Uploaded)
        shutil.copytree(asked.run_dir, tmp_path / "old")
        await until(asked, api, clock, e.Refused)
        lose(asked)
        shutil.copytree(tmp_path / "old", asked.run_dir)
        assert (await visit(asked, api, clock, random.Random(1))).state == "finished"
        return [batch.metadata[tags.TAG].rsplit("/", 1)[-1] for batch in api.batches]

    assert simulate(main, 1) == ["1", "2"]


def test_an_old_copy_adopts_later_segments_and_later_remainders(tmp_path: Path) -> None:
    """Of a run without a name: its id stands in the old journal."""
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)

    async def main() -> tuple[Summary, int, Counter[int]]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, status_of=odd_fail_once)
        asked = config(tmp_path, source, remote_files="keep", if_exists="overwrite")
        await until(asked, api, clock, e.Uploaded)
        shutil.copytree(asked.run_dir, tmp_path / "old")
        assert (await visit(asked, api, clock, random.Random(1))).state == "finished"
        lose(asked)
        shutil.copytree(tmp_path / "old", asked.run_dir)
        return await visit(asked, api, clock, random.Random(1)), len(api.batches), times(api)

    summary, batches, executed = simulate(main, 1)
    assert (summary.state, summary.done, batches, executed) == ("finished", ROWS, 4, {1: 20, 2: 10})


def test_a_copy_waits_until_what_the_other_bought_last_shows_in_the_list(tmp_path: Path) -> None:
    """The first copy submits until it is killed; the list lags almost as long as the grace."""
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)

    async def main() -> tuple[Summary, int, Counter[int]]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, list_lag_s=100.0, duration_s=900.0)
        asked = config(tmp_path, source)
        await until(asked, api, clock, e.Uploaded)
        other = msgspec.structs.replace(asked, run_dir=str(tmp_path / "copy"))
        shutil.copytree(asked.run_dir, other.run_dir)
        await until(asked, api, clock, e.Submitted, 3)
        return await visit(other, api, clock, random.Random(1)), len(api.batches), times(api)

    assert simulate(main, 1)[1:] == (3, {1: ROWS})


def test_a_moved_directory_waits_one_grace_once(tmp_path: Path) -> None:
    """Uploads go on meanwhile. Who dies in the wait leaves it to the next; a directory that was not moved does not wait."""
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    created: list[float] = []

    async def watch(call: Call) -> None:
        if call.name == "create_batch" and call.after:
            created.append(anyio.current_time())

    async def waited(asked: Config, api: MemoryBatchApi, clock: VirtualClock, number: int) -> float:
        """How long a visit takes to its first create."""
        began, before = anyio.current_time(), len(created)
        await until(asked, api, clock, e.Submitted, number)
        return created[before] - began

    async def main() -> list[float]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, duration_s=36000.0, fault=watch)
        asked = config(tmp_path, source, max_batches=1)
        there = msgspec.structs.replace(asked, run_dir=str(tmp_path / "there"))
        waits = [await waited(asked, api, clock, 1)]
        asked, there = (msgspec.structs.replace(c, max_batches=8) for c in (asked, there))
        shutil.copytree(asked.run_dir, there.run_dir)
        with anyio.move_on_after(60.0):
            await visit(there, api, clock, random.Random(1))
        waits.append(await waited(there, api, clock, 1))
        more = rig.write_requests(tmp_path / "more.jsonl", 80)
        shutil.copyfile(more, source)
        waits.append(await waited(there, api, clock, 2))
        return waits

    first, moved, again = simulate(main, 1)
    assert first < 20
    assert 120 <= moved < 140
    assert again < 20


# -- clocks


class Asleep(VirtualClock):
    """A clock whose monotonic time stands still while the machine sleeps; its wall time does not."""

    def __init__(self) -> None:
        super().__init__()
        self.slept_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() - self.slept_s

    def sleep_for(self, seconds: float) -> None:
        jump(seconds)
        self.slept_s += seconds


class Beside(VirtualClock):
    """The clock of a service that sleeps with the machine: a local one."""

    def __init__(self, asleep: Asleep) -> None:
        super().__init__()
        self._asleep = asleep

    def wall(self) -> float:
        return super().wall() - self._asleep.slept_s


def jump(seconds: float) -> None:
    """Time passes, and nobody does anything."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    clock.jump(seconds)


async def storm_of_doubts(
    tmp_path: Path, clock: VirtualClock, service: VirtualClock, at: Callable[[Call], None], life_s: float = 600.0
) -> Counter[int]:
    """Every other create loses its answer, the list lags 100 s, and the engine is killed again and again."""
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)

    async def lost(call: Call) -> None:
        at(call)
        if call.name == "create_batch" and call.after and call.number % 2:
            raise ApiError("The connection was cut.", retryable=True, maybe_done=True)

    api = MemoryBatchApi(service, list_lag_s=100.0, duration_s=900.0, fault=lost)
    asked = config(tmp_path, source, max_batches=2)
    for _ in range(40):
        with anyio.move_on_after(life_s):
            if (await visit(asked, api, clock, random.Random(1))).state == "finished":
                break
    assert ids(tmp_path / "out.jsonl") == ids(source)
    return times(api)


@pytest.mark.parametrize("off_s", [-5 * 3600.0, 5 * 3600.0, -400 * DAY_S])
def test_a_server_whose_clock_is_hours_off(tmp_path: Path, off_s: float) -> None:
    async def main() -> Counter[int]:
        clock = VirtualClock()
        return await storm_of_doubts(tmp_path, clock, VirtualClock(1_800_000_000.0 + off_s), lambda call: None)

    assert simulate(main, 1) == {1: ROWS}


@pytest.mark.parametrize("after", [False, True])
def test_a_process_that_is_frozen_for_ten_minutes_between_the_journal_and_the_service(
    tmp_path: Path, after: bool
) -> None:
    async def main() -> Counter[int]:
        clock = VirtualClock()
        frozen: list[int] = []

        def freeze(call: Call) -> None:
            if call.name == "create_batch" and call.after is after and call.number not in frozen:
                frozen.append(call.number)
                jump(600.0)

        executed = await storm_of_doubts(tmp_path, clock, clock, freeze, 3000.0)
        assert frozen
        return executed

    assert simulate(main, 1) == {1: ROWS}


@pytest.mark.parametrize("local", [False, True])
def test_a_laptop_that_sleeps_for_ten_hours_in_the_middle_of_a_doubt(tmp_path: Path, local: bool) -> None:
    """A grace is counted in waking time: a service on the same laptop slept too, and its list lags on."""

    async def main() -> Counter[int]:
        clock = Asleep()
        doubted: list[int] = []
        slept: list[int] = []

        def sleep(call: Call) -> None:
            """At the first look for a batch whose create lost its answer."""
            if call.name == "create_batch" and call.after and call.number % 2:
                doubted.append(call.number)
            if call.name == "list_batches" and call.after and doubted and len(slept) < 3:
                slept.append(doubted.pop())
                clock.sleep_for(36_000.0)

        executed = await storm_of_doubts(tmp_path, clock, Beside(clock) if local else clock, sleep, math.inf)
        assert slept
        return executed

    assert simulate(main, 1) == {1: ROWS}
