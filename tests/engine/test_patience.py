"""What the service does not show yet, or never: waited for, then a pause in one sentence, and never a second purchase."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from streambatch.core import events as e
from streambatch.core import lifecycle
from streambatch.core.adoption import Reading, stuck, turned
from streambatch.core.models import Shard, ShardState
from streambatch.core.patience import Told, forbids, lost_wait_s, told, waits
from streambatch.core.report import Summary
from streambatch.core.wire import BatchError, BatchInfo, BatchPage
from streambatch.edge import files
from streambatch.edge.journal import Journal, Store
from streambatch.edge.workers import InlineExecutor
from streambatch.errors import ApiError
from streambatch.steps import Order, Steps
from tests.e2e import rig
from tests.engine.test_found import log_of
from tests.engine.test_virtual import ids
from tests.twins.api import Call, MemoryBatchApi
from tests.twins.clock import VirtualClock
from tests.twins.world import config, simulate, visit

ROWS = 30
Fault = Callable[[Call], Any]


def run(folder: Path, rows: int = ROWS, again: int = 0, **world: Any) -> tuple[list[Summary], MemoryBatchApi, float]:
    """A run of `rows` rows in batches of 15, visited 1 + `again` times; its summaries, the service, and how long it took."""
    source = rig.write_requests(folder / "in.jsonl", rows)

    async def main() -> tuple[list[Summary], MemoryBatchApi, float]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, **world)
        asked = config(folder, source)
        asked = msgspec.structs.replace(asked, limits=msgspec.structs.replace(asked.limits, max_requests=15))
        summaries = [await visit(asked, api, clock, random.Random(1)) for _ in range(1 + again)]
        return summaries, api, anyio.current_time()

    result: tuple[list[Summary], MemoryBatchApi, float] = simulate(main, 1)
    return result


def hidden_until(moment: float, *names: str) -> Fault:
    """These calls answer 404 until then."""

    async def fault(call: Call) -> None:
        if call.name in names and not call.after and anyio.current_time() < moment:
            raise ApiError(f"The service does not know the file {call.subject} (404).", status=404)

    return fault


# -- completed before its files are visible


@pytest.mark.parametrize("names", [("file_info",), ("download",), ("file_info", "download")])
def test_files_that_show_late_are_waited_for(tmp_path: Path, names: tuple[str, ...]) -> None:
    [summary], api, _ = run(tmp_path, fault=hidden_until(250.0, *names))
    assert (summary.state, summary.done) == ("finished", ROWS)
    assert ids(tmp_path / "out.jsonl") == ids(tmp_path / "in.jsonl")
    assert api.rows_executed_again == 0


def test_files_that_never_show_pause_the_run_and_a_later_visit_finds_them(tmp_path: Path) -> None:
    [first, second], api, passed = run(tmp_path, again=1, fault=hidden_until(450.0, "file_info"))
    assert (first.state, first.exit_code, first.done) == ("paused", 4, 0)
    assert "no longer has the result file" in first.message
    assert (second.state, second.done) == ("finished", ROWS)
    assert api.rows_executed_again == 0
    assert passed > 450
    assert api.calls["file_info"] < 40


def test_an_error_file_that_is_late_does_not_fetch_the_output_again(tmp_path: Path) -> None:
    async def late(call: Call) -> None:
        if call.name == "file_info" and call.subject.endswith("4") and anyio.current_time() < 200 and not call.after:
            raise ApiError("No such file (404).", status=404)

    [summary], api, _ = run(
        tmp_path, 15, fault=late, status_of=lambda row: 400 if row.custom_id.endswith("-3") else 200
    )
    assert (summary.done, summary.failed) == (14, 1)
    downloads = api.calls["download"]
    assert downloads == 2


def test_ids_that_change_between_two_looks_are_followed(tmp_path: Path) -> None:
    """The first look names a file that never is; the next one the right one."""

    def view(batch: BatchInfo) -> BatchInfo:
        early = batch.terminal and anyio.current_time() < 200
        return msgspec.structs.replace(batch, output_file_id="file-early") if early else batch

    [summary], api, _ = run(tmp_path, view=view)
    assert (summary.state, summary.done) == ("finished", ROWS)
    assert api.rows_executed_again == 0
    late = {x.output_id for x in log_of(tmp_path) if isinstance(x, e.Downloaded)}
    assert "file-early" not in late


# -- counts without files


def without_files(until: float, **lies: Any) -> Callable[[BatchInfo], BatchInfo]:
    def view(batch: BatchInfo) -> BatchInfo:
        if not batch.terminal or anyio.current_time() >= until:
            return batch
        return msgspec.structs.replace(batch, output_file_id=None, error_file_id=None, **lies)

    return view


def test_ids_that_come_late_are_waited_for(tmp_path: Path) -> None:
    [summary], api, _ = run(tmp_path, view=without_files(300.0))
    assert (summary.state, summary.done, summary.possibly_billed) == ("finished", ROWS, 0)
    assert ids(tmp_path / "out.jsonl") == ids(tmp_path / "in.jsonl")
    assert api.rows_executed_again == 0
    rig.check_journal(config(tmp_path, tmp_path / "in.jsonl"))


def test_counted_results_that_no_file_has_are_not_bought_again(tmp_path: Path) -> None:
    [first, second], api, passed = run(tmp_path, again=1, view=without_files(600.0))
    assert (first.state, first.exit_code) == ("paused", 4)
    assert "counts 15 results" in first.message
    assert (second.state, second.done) == ("finished", ROWS)
    assert api.rows_executed_again == 0
    looks = [x for x in log_of(tmp_path) if isinstance(x, e.Settled)]
    assert len(looks) == 2
    assert passed > 120 * 3


def test_a_small_gap_is_possibly_billed(tmp_path: Path) -> None:
    [summary], _, _ = run(tmp_path, 15, view=once(without_files(1e9, completed=5)))
    assert (summary.state, summary.done, summary.possibly_billed) == ("finished", 15, 15)


def once(view: Callable[[BatchInfo], BatchInfo]) -> Callable[[BatchInfo], BatchInfo]:
    """Of the first batch alone."""
    return lambda batch: view(batch) if batch.id.endswith("1") else batch


def test_no_files_and_no_counts_are_rows_that_were_lost(tmp_path: Path) -> None:
    """Nothing says that they ran: they are tried again without a wait."""
    [summary], _, passed = run(tmp_path, 15, view=once(without_files(1e9, completed=0, failed=0)))
    assert (summary.state, summary.done, summary.possibly_billed) == ("finished", 15, 15)
    assert passed < 300


def test_what_counts_and_ids_say_together() -> None:
    seen = BatchInfo("b", "completed", "i", None, None, 0.0, None, 10, 7, 3, {})
    nothing = Told(None, None)
    assert told(seen, nothing) == Told(None, None, 10)
    assert told(msgspec.structs.replace(seen, error_file_id="x"), nothing) == Told(None, "x", 7)
    assert told(msgspec.structs.replace(seen, output_file_id="o"), nothing) == Told("o", None, 0)
    assert told(seen, Told("o", "x", 0)) == Told("o", "x", 0)
    assert [forbids(*pair) for pair in ((10, 15), (11, 15), (400, 50_000), (501, 50_000))] == [False, True, False, True]
    assert sum(waits(100)) > 250
    assert sum(wait >= 100 for wait in waits(100)) == 2
    assert [lost_wait_s(n) for n in (1, 2, 3, 20)] == [0.0, 10.0, 20.0, 600.0]


# -- an input file that can't be found


GONE = BatchError(
    "invalid_request", "Cannot find file file-x, or organization org-x does not have access to it.", None, "file_id"
)


def test_a_file_that_is_lost_a_few_times_is_sent_again_after_longer_and_longer_waits(tmp_path: Path) -> None:
    [summary], api, passed = run(tmp_path, 15, refuse=lambda batch: GONE if int(batch.id[-2:]) <= 4 else None)
    assert (summary.state, summary.done) == ("finished", 15)
    assert api.calls["upload"] == 5
    assert passed > 10 + 20 + 40


def test_a_file_that_is_lost_again_and_again_pauses(tmp_path: Path) -> None:
    [summary], api, passed = run(tmp_path, 15, refuse=lambda batch: GONE)
    assert (summary.state, summary.exit_code) == ("paused", 4)
    assert "could not find it each time" in summary.message
    assert api.calls["upload"] == 7
    assert passed < 3600


# -- what was refused before this visit


@pytest.mark.parametrize(
    "refusal",
    [BatchError("model_not_found", "Not supported.", 1, "body.model"), BatchError("insufficient_quota", "Pay.")],
)
def test_what_an_earlier_visit_was_refused_for_does_not_stop_the_next_one(tmp_path: Path, refusal: BatchError) -> None:
    """Its batches are found refused once the user has mended it; what is created now is what tells."""
    source = rig.write_requests(tmp_path / "in.jsonl", 40)
    mended: list[bool] = []

    async def main() -> Summary:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, validation_s=60.0, refuse=lambda batch: None if mended else refusal)
        asked = config(tmp_path, source)
        with anyio.move_on_after(50.0) as life:
            await visit(asked, api, clock, random.Random(1))
        assert life.cancelled_caught
        assert len(api.batches) == 4
        await anyio.sleep(100.0)
        mended.append(True)
        return await visit(asked, api, clock, random.Random(1))

    summary = simulate(main, 1)
    assert (summary.state, summary.done) == ("finished", 40)


# -- creates in doubt


def test_three_doubted_creates_of_a_shard_end_the_visit(tmp_path: Path) -> None:
    async def lost(call: Call) -> None:
        if call.name == "create_batch" and not call.after and call.number <= 3:
            raise ApiError("The connection was cut.", retryable=True, maybe_done=True)

    with pytest.raises(ApiError, match="left 3 creates of shard 000000-0 without an answer"):
        run(tmp_path, 15, fault=lost)
    [summary], api, _ = run(tmp_path, 15, fault=None)
    assert (summary.state, summary.done) == ("finished", 15)
    assert api.rows_executed_again == 0


def test_a_create_that_begins_while_the_run_is_stopped_has_an_end_too(tmp_path: Path) -> None:
    async def silent(call: Call) -> None:
        await anyio.sleep(80_000)

    async def main() -> tuple[e.ShardEvent, float]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, fault=silent)
        steps = Steps(
            Order("r", rig.URL, "cut", (), 3, 1.0), api, Journal(Store(":memory:"), files.inline, lambda event: None),
            files.RunFiles(str(tmp_path)), InlineExecutor(), files.inline, clock, anyio.CapacityLimiter(1), nobody, lambda *_: None,
        )  # fmt: skip
        steps.hurry()
        shard = Shard("r000000", None, 0, 0, 0, "m", 1, 10, 1, "h", ShardState.INTENDED, "file-1", 1)
        with anyio.CancelScope() as scope:
            scope.cancel()
            return await steps.perform(lifecycle.Create(shard)), anyio.current_time()
        raise AssertionError("not shielded")

    event, passed = simulate(main, 1)
    assert isinstance(event, e.Doubted)
    assert passed < 60


async def nobody(shard: Shard) -> e.ShardEvent:
    raise AssertionError("nobody searches here")


# -- lists that don't turn their pages


def test_absence_from_a_list_that_ends_too_early_proves_nothing(tmp_path: Path) -> None:
    """The first create is lost, its batch is behind a page full of others, and the service ignores `after`."""
    source = rig.write_requests(tmp_path / "in.jsonl", 10)

    async def main() -> tuple[Summary, Counter[str], int]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, turns_pages=False)
        upload = tmp_path / "foreign.jsonl"
        upload.write_bytes(rig.request_line(0))
        info = await api.upload(str(upload), "foreign.jsonl")

        async def lost(call: Call) -> None:
            if call.name == "create_batch" and call.after and call.number == 1:
                api.fault = None
                for _ in range(120):
                    await api.create_batch(info.id, rig.URL, {})
                raise ApiError("The connection was cut.", retryable=True, maybe_done=True)

        api.fault = lost
        summary = await visit(config(tmp_path, source), api, clock, random.Random(1))
        ours = sum("streambatch" in batch.metadata for batch in api.batches)
        return summary, api.calls, ours

    summary, calls, ours = simulate(main, 1)
    assert (summary.state, summary.exit_code) == ("paused", 4)
    assert "does not go on behind its first pages" in summary.message
    assert ours == 1
    assert calls["list_batches"] < 60


def test_a_lost_batch_whose_id_is_not_said_is_not_bought_again(tmp_path: Path) -> None:
    async def lost(call: Call) -> None:
        if call.name == "create_batch" and call.after and call.number == 1:
            raise ApiError("The connection was cut.", retryable=True, maybe_done=True)

    [summary], api, _ = run(tmp_path, 15, fault=lost, view=lambda batch: msgspec.structs.replace(batch, id=""))
    assert (summary.state, summary.exit_code) == ("paused", 4)
    assert "without saying its id" in summary.message
    assert api.calls["create_batch"] == 1


def page(first: int, last: int, *, more: bool = True) -> BatchPage:
    data = tuple(BatchInfo(f"b{k}", "x", None, None, None, 0.0, None, 0, 0, 0, {}) for k in range(first, last, -1))
    return BatchPage(data, more, data[-1].id if data else None)


def test_which_pages_turn() -> None:
    first = turned(Reading(), page(100, 90))
    assert not stuck(Reading(), page(100, 90))
    assert not stuck(first, page(90, 80))
    assert not stuck(first, page(91, 81)), "some services repeat the last one of the page before"
    assert stuck(first, page(100, 90)), "the same page again"
    assert stuck(first, page(102, 92)), "the same page, with new batches before it"
    assert stuck(turned(first, page(90, 80)), page(100, 90)), "back to the beginning"
    assert stuck(first, page(90, 90)), "it says that there is more and shows none"
    assert not stuck(first, page(90, 90, more=False))
