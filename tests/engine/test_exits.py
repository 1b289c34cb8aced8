"""The way out of every state: late results, counts that forbid buying, spares that never end, leftovers of finished runs."""

import random
from pathlib import Path

import anyio
import msgspec
import pytest

from streambatch.config import Config, ErrorAllowance
from streambatch.configure import resume
from streambatch.core import events as e
from streambatch.core import tags
from streambatch.core.report import Summary
from streambatch.core.wire import BatchInfo
from streambatch.edge.files import RunFiles
from streambatch.engine import opening
from streambatch.errors import ConfigError
from tests.e2e import rig
from tests.engine.test_adoption import lose, named, odd_fail_once, quick, until
from tests.engine.test_policies import given_up, stuck, visits
from tests.engine.test_virtual import ids
from tests.twins.api import MemoryBatchApi
from tests.twins.clock import VirtualClock
from tests.twins.world import DAY_S, config, simulate, visit

__all__ = ["quick"]  # a fixture that all tests here use

# -- a batch that was given up ends after all


def test_what_a_given_up_batch_finishes_late_is_taken_and_its_replacement_cancelled(tmp_path: Path) -> None:
    """The second batch would need twelve hours; the first shows its results an hour after it was given up."""
    late = DAY_S + 7200 + 3600 + 600

    def how_long(batch: BatchInfo) -> float:
        return 60.0 if batch.id.endswith("1") else 43_200.0

    [summary], api = visits(tmp_path, 15, {}, view=stuck(lambda: anyio.current_time() > late), duration_s=how_long)
    assert len(given_up(tmp_path)) == 1
    assert (summary.state, summary.done) == ("finished", 15)
    assert api.rows_executed_again < 2, "the second one had executed a row when it was cancelled, at most"
    assert [batch.ending for batch in api._batches.values()] == ["completed", "cancelled"]
    assert ids(tmp_path / "out.jsonl") == ids(tmp_path / "in.jsonl")
    assert summary.elapsed_s < late + 1200


def test_late_results_of_a_given_up_batch_after_its_replacement_change_nothing(tmp_path: Path) -> None:
    [summary], api = visits(tmp_path, 15, {}, view=stuck(lambda: anyio.current_time() > 2 * DAY_S))
    assert (summary.state, summary.done, summary.possibly_billed) == ("finished", 15, 15)
    assert api.rows_executed_again == 15


# -- two batches of a shard


def test_a_find_that_has_ended_is_read_and_the_live_batch_of_the_same_rows_cancelled(tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 10)

    async def main() -> tuple[Summary, list[str], int]:
        clock = VirtualClock()

        def how_long(batch: BatchInfo) -> float:
            return 40_000.0 if batch.id.endswith("1") else 60.0

        api = MemoryBatchApi(clock, duration_s=how_long)
        asked = named(tmp_path, source)
        await until(asked, api, clock, e.Submitted)
        (first,) = api.batches
        pairs = {**first.metadata, tags.TAG: first.metadata[tags.TAG].removesuffix("1") + "2"}
        await api.create_batch(str(first.input_file_id), rig.URL, pairs)
        await anyio.sleep(100.0)
        summary = await visit(asked, api, clock, random.Random(1))
        return summary, [batch.status for batch in api.batches], api.rows_executed_again

    summary, statuses, again = simulate(main, 1)
    assert (summary.state, summary.done) == ("finished", 10)
    assert (statuses, again) == (["cancelled", "completed"], 0)
    assert summary.elapsed_s < 3600


# -- a failed batch that counts rows


def test_counts_of_a_failed_batch_without_files_forbid_buying(tmp_path: Path) -> None:
    def view(batch: BatchInfo) -> BatchInfo:
        if not batch.terminal or batch.id != "batch-000001":
            return batch
        return msgspec.structs.replace(batch, status="failed", output_file_id=None, error_file_id=None)

    [first, second], _ = visits(tmp_path, 15, {}, {"accept_gone": "rebuy"}, view=view)
    assert (first.state, first.exit_code, first.batches) == ("paused", 4, 1)
    assert "counts 15 results" in first.message
    assert (second.state, second.done, second.possibly_billed) == ("finished", 15, 15)


# -- what cancel remembers


def test_cancel_knows_how_many_errors_the_run_allows(tmp_path: Path) -> None:
    asked: Config = config(tmp_path, tmp_path / "in.jsonl", max_errors=ErrorAllowance(3, 2.5))
    settings = opening.settings_of(asked, b'{"url":"/v1/chat/completions","body":{"model":"m","messages":[]}}')
    started = e.Started(run_id="r", settings=settings, inputs=(), server_date=0.0, known_id=False)
    opened = opening.opened(asked, RunFiles(str(tmp_path)), ())
    again = resume(started, opened, asked.run_dir, {}, {"OPENAI_API_KEY": "sk-0123456789"})
    assert again.max_errors == ErrorAllowance(3, 2.5)


# -- a spare that never ends


@pytest.mark.parametrize("readable", [True, False])
def test_a_spare_that_never_ends_is_given_up(tmp_path: Path, readable: bool) -> None:
    """The batch of a lost remainder runs on for ever; where nobody can say what it has, the user's word is needed besides."""
    source = rig.write_requests(tmp_path / "in.jsonl", 30)

    def view(batch: BatchInfo) -> BatchInfo:
        if batch.id != "batch-000004":
            return batch
        return msgspec.structs.replace(
            batch, status="in_progress", output_file_id=None, error_file_id=None, completed=0, failed=0
        )

    async def main() -> list[Summary]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, status_of=odd_fail_once, view=view)
        asked = named(tmp_path, source)
        await until(asked, api, clock, e.Submitted, 4)
        lose(asked)
        if not readable:
            api.lose_file(str(api.batches[3].input_file_id))
        words = [None] if readable else [None, "rebuy"]
        return [
            await visit(msgspec.structs.replace(asked, accept_gone=word), api, clock, random.Random(1))
            for word in words
        ]

    summaries = simulate(main, 1)
    last = summaries[-1]
    assert (last.state, last.done, last.possibly_billed) == ("finished", 30, 10)
    assert DAY_S < sum(summary.elapsed_s for summary in summaries) < DAY_S + 7200 + 3000
    if not readable:
        assert (summaries[0].state, summaries[0].exit_code) == ("paused", 4)
        assert "--accept-gone rebuy" in summaries[0].message


# -- killed around publishing, and the directory lost


@pytest.mark.parametrize("kind", [e.Publishing, e.Published])
def test_an_output_that_an_earlier_life_of_the_run_published_is_its_own(tmp_path: Path, kind: type[e.Event]) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 30)

    async def main() -> tuple[Summary, int]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, status_of=odd_fail_once)
        asked = named(tmp_path, source)
        assert (await visit(asked, api, clock, random.Random(1))).state == "finished"
        if kind is e.Publishing:
            (tmp_path / "out.jsonl").unlink()
        lose(asked)
        return await visit(asked, api, clock, random.Random(1)), len(api.batches)

    summary, batches = simulate(main, 1)
    assert (summary.state, summary.done, batches) == ("finished", 30, 4)
    assert ids(tmp_path / "out.jsonl") == ids(source)


def test_an_output_that_differs_is_refused_and_stays(tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 10)
    output = tmp_path / "out.jsonl"

    async def main() -> int:
        clock = VirtualClock()
        api = MemoryBatchApi(clock)
        asked = named(tmp_path, source)
        output.write_bytes(b"somebody's\n")
        with pytest.raises(ConfigError, match="exists and was not made by this run"):
            await visit(asked, api, clock, random.Random(1))
        assert not api.batches, "nothing is bought for it"
        output.unlink()
        await visit(asked, api, clock, random.Random(1))
        lose(asked)
        output.write_bytes(b"somebody's\n")
        with pytest.raises(ConfigError, match="was not made by it"):
            await visit(asked, api, clock, random.Random(1))
        return len(api.batches)

    assert simulate(main, 1) == 1
    assert output.read_bytes() == b"somebody's\n"


# -- what a finished run left at the service


def test_the_next_visit_to_a_finished_run_deletes_what_a_killed_one_left(tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 30)

    async def main() -> tuple[int, Summary, int]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, status_of=odd_fail_once)
        asked = config(tmp_path, source, remote_files="delete")
        await until(asked, api, clock, e.Published)
        before = len(api.files)
        return before, await visit(asked, api, clock, random.Random(1)), len(api.files)

    before, summary, after = simulate(main, 1)
    assert (summary.state, summary.exit_code, after) == ("finished", 0, 0)
    assert before


# -- a visit that comes once


def test_a_spare_in_flight_counts_as_one(tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 30)

    async def main() -> Summary:
        clock = VirtualClock()
        api = MemoryBatchApi(
            clock, status_of=odd_fail_once, duration_s=lambda batch: 9000.0 if batch.id.endswith("4") else 60.0
        )
        asked = named(tmp_path, source, once=True)
        await until(msgspec.structs.replace(asked, once=False), api, clock, e.Submitted, 4)
        lose(asked)
        return await visit(asked, api, clock, random.Random(1))

    summary = simulate(main, 1)
    assert (summary.state, summary.exit_code) == ("in_flight", 5)
    assert summary.message.startswith("1 batch is in flight.")
