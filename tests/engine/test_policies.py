"""What the user's words decide: when errors stop the buying, what paid work that can't be found comes to, what is given up."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from streambatch.config import Config, Mode
from streambatch.configure import configure
from streambatch.core import events as e
from streambatch.core import pausing
from streambatch.core.jobs import ErrorKind
from streambatch.core.models import ShardLimits
from streambatch.core.patience import overdue
from streambatch.core.report import Summary
from streambatch.core.settling import Kind, RowClass, Rules
from streambatch.core.wire import BatchError, BatchInfo, BatchPage
from streambatch.errors import ApiError, ConfigError
from streambatch.options import BY_NAME, parse, parse_all
from tests.e2e import rig
from tests.engine.test_virtual import ids
from tests.twins.api import Call, MemoryBatchApi, Row
from tests.twins.clock import VirtualClock
from tests.twins.world import DAY_S, config, simulate, visit


def log_of(folder: Path) -> list[e.AnyEvent]:
    return rig.check_journal(config(folder, folder / "in.jsonl"))


def visits(
    folder: Path, rows: int, *changes: dict[str, Any], per_batch: int = 15, **world: Any
) -> tuple[list[Summary], MemoryBatchApi]:
    """A run of `rows` rows, visited once with each of these changes of its settings."""
    source = rig.write_requests(folder / "in.jsonl", rows)
    before, kind = world.pop("before", None), world.pop("kind", MemoryBatchApi)

    async def main() -> tuple[list[Summary], MemoryBatchApi]:
        clock = VirtualClock()
        api: MemoryBatchApi = kind(clock, **world)
        asked = config(folder, source, limits=ShardLimits(max_requests=per_batch))
        summaries = []
        for number, change in enumerate(changes):
            if before is not None:
                before(number, api)
            one: Config = msgspec.structs.replace(asked, **change)
            summaries.append(await visit(one, api, clock, random.Random(1)))
        return summaries, api

    result: tuple[list[Summary], MemoryBatchApi] = simulate(main, 1)
    return result


# -- too many errors


@pytest.mark.parametrize(
    ("done", "errors", "percent", "more"),
    [
        (0, 999, 50.0, False),
        (0, 1000, 50.0, True),
        (500, 500, 50.0, False),
        (499, 501, 50.0, True),
        (0, 10**6, 100.0, False),
        (10**6, 1, 0.0, True),
    ],
)
def test_when_errors_are_too_many(done: int, errors: int, percent: float, more: bool) -> None:
    assert pausing.too_many(done, errors, percent) is more


def test_the_commonest_kind_of_error_is_that_of_all_shards() -> None:
    few, many = ErrorKind("a", "x", 3, ((0, 1),)), ErrorKind("b", "y", 2, ((1, 5), (1, 7)))
    kind = pausing.commonest([[few], [many], [msgspec.structs.replace(many, places=((0, 2), (3, 3)))]])
    assert kind == ErrorKind("b", "y", 4, ((0, 2), (1, 5), (1, 7)))
    assert pausing.commonest([]) is None


def failing(row: Row) -> int:
    return 400


def test_a_run_of_errors_stops_buying(tmp_path: Path) -> None:
    """All batches of a burst end at once: their places stay taken until their outcomes are counted."""
    rows = 20_000
    [first, second, third], api = visits(
        tmp_path, rows, {}, {}, {"pause_on_errors": 100.0}, per_batch=1000, status_of=failing
    )
    for summary in (first, second):
        assert (summary.state, summary.exit_code) == ("paused", 4)
        assert summary.failed == 8000
        assert summary.message.startswith(
            "8000 of the first 8000 outcomes "
        )  # all that was bought, not what was known then
        assert str(summary.next_command).endswith(", but with pause_on_errors='100%'")
        assert "more than --pause-on-errors 50% allows, most of them invalid_request: as scripted" in summary.message
        assert "[row 0 (" in summary.message
        assert "in.jsonl, line 1); row 1 (" in summary.message
    assert second.batches == first.batches == 8
    assert (third.state, third.failed, third.exit_code) == ("finished", rows, 6)
    assert api.rows_executed_again == 0


@pytest.mark.parametrize(
    ("command", "errors", "beyond"),
    [
        ("streambatch run in -o out", 1000, "streambatch run in -o out --pause-on-errors 100%"),
        (
            "streambatch run in -o out --pause-on-errors 59%",
            600,
            "streambatch run in -o out --pause-on-errors 59% --pause-on-errors 70%",
        ),
        ("... | streambatch run - -o 'a b'", 599, "... | streambatch run - -o 'a b' --pause-on-errors 60%"),
        ("... | streambatch run -o 'a b' -- -", 599, "... | streambatch run -o 'a b' --pause-on-errors 60% -- -"),
        ("call run() again", 501, "call run() again, but with pause_on_errors='60%'"),
    ],
)
def test_the_command_that_goes_on_beyond_the_errors(command: str, errors: int, beyond: str) -> None:
    assert pausing.command_beyond(command, 1000 - errors, errors) == beyond


def test_a_higher_figure_goes_on_and_the_same_pauses_at_once(tmp_path: Path) -> None:
    def status(row: Row) -> int:
        return 400 if int(row.custom_id.rpartition("-")[2]) % 5 < 3 else 200  # 60 %

    [first, second, third], _ = visits(
        tmp_path,
        4000,
        {"max_batches": 2},
        {"max_batches": 2, "pause_on_errors": 59.0},
        {"max_batches": 2, "pause_on_errors": 61.0},
        per_batch=500,
        status_of=status,
    )
    assert (first.state, first.batches) == (second.state, second.batches) == ("paused", 2)
    assert (third.state, third.failed, third.done) == ("finished", 2400, 1600)


def test_a_small_run_never_pauses_for_errors(tmp_path: Path) -> None:
    [summary], _ = visits(tmp_path, 999, {"max_batches": 1}, per_batch=50, status_of=failing)
    assert (summary.state, summary.failed, summary.exit_code) == ("finished", 999, 6)


def test_a_run_with_nothing_left_to_buy_is_finished_whatever_its_errors(tmp_path: Path) -> None:
    [summary], _ = visits(tmp_path, 2000, {}, per_batch=500, status_of=failing)
    assert (summary.state, summary.failed, summary.exit_code) == ("finished", 2000, 6)


def test_errors_that_are_few_are_no_reason_to_hold_places_back(tmp_path: Path) -> None:
    [summary], api = visits(tmp_path, 6000, {"max_batches": 4}, per_batch=250)
    assert (summary.state, summary.done, api.most_in_flight) == ("finished", 6000, 4)


# -- counts that forbid buying


class Short(MemoryBatchApi):
    """Result files come with some of their lines only: as many as `lines(moment)` says, until it says None."""

    lines: Callable[[float], int | None] = staticmethod(lambda moment: None)

    async def download(self, file_id: str, target: str) -> int:
        size = await super().download(file_id, target)
        lines = type(self).lines(anyio.current_time())
        if lines is None:
            return size
        return Path(target).write_bytes(b"".join(line + b"\n" for line in rig.read_lines(target)[:lines]))


def short(lines: Callable[[float], int | None]) -> type[Short]:
    return type("Shortened", (Short,), {"lines": staticmethod(lines)})


def settled(folder: Path) -> list[e.Settled]:
    return [event for event in log_of(folder) if isinstance(event, e.Settled)]


def test_a_file_that_is_short_at_first_is_read_again(tmp_path: Path) -> None:
    [summary], api = visits(tmp_path, 30, {}, kind=short(lambda moment: 2 if moment < 250 else None))
    assert (summary.state, summary.done, summary.possibly_billed) == ("finished", 30, 0)
    assert ids(tmp_path / "out.jsonl") == ids(tmp_path / "in.jsonl")
    assert api.rows_executed_again == 0
    assert len(settled(tmp_path)) == 2
    assert sum(isinstance(event, e.Downloaded) for event in log_of(tmp_path)) == 4


def test_a_file_that_stays_short_pauses_and_buys_nothing(tmp_path: Path) -> None:
    [first, second], api = visits(tmp_path, 30, {}, {}, kind=short(lambda moment: 2 if moment < 600 else None))
    assert (first.state, first.exit_code, first.done) == ("paused", 4, 0)
    assert "counts 15 processed rows" in first.message
    assert "hold 2; nothing is bought again without your word: --accept-gone error" in first.message
    assert (second.state, second.done, second.possibly_billed) == ("finished", 30, 0)
    assert api.rows_executed_again == 0


def test_a_second_file_that_is_worse_replaces_nothing(tmp_path: Path) -> None:
    """The first download has 7 of 15 rows, all later ones 3: the 7 are kept, the others are few enough to buy again."""
    [summary], api = visits(
        tmp_path, 15, {}, kind=short(lambda moment: 7 if moment < 120 else 3 if moment < 600 else None)
    )
    assert (summary.state, summary.done, summary.possibly_billed) == ("finished", 15, 8)
    assert api.rows_executed_again == 8


def test_a_batch_that_counts_its_failed_rows_twice_has_no_gap(tmp_path: Path) -> None:
    def view(batch: BatchInfo) -> BatchInfo:
        return msgspec.structs.replace(batch, completed=batch.total, failed=1) if batch.terminal else batch

    [summary], api = visits(tmp_path, 15, {}, view=view)
    assert (summary.state, summary.done, summary.possibly_billed) == ("finished", 15, 0)
    assert api.calls["download"] == 1


def test_counts_that_were_a_slip_are_read_again_and_believed(tmp_path: Path) -> None:
    def view(batch: BatchInfo) -> BatchInfo:
        late = anyio.current_time() > 150
        return msgspec.structs.replace(batch, completed=0 if late else batch.total) if batch.terminal else batch

    [summary], _ = visits(tmp_path, 30, {}, view=view, status_of=lambda row: 200 if row.executed else None)
    assert (summary.state, summary.done) == ("finished", 30)


# -- the user's word on what can't be found


@pytest.mark.parametrize("visited", [[{"accept_gone": "error"}], [{}, {"accept_gone": "error"}]])
def test_gone_rows_become_errors_by_the_users_word(tmp_path: Path, visited: list[dict[str, Any]]) -> None:
    summaries, api = visits(tmp_path, 30, *visited, kind=short(lambda moment: 2))
    last = summaries[-1]
    assert (last.state, last.exit_code, last.done, last.failed) == ("finished", 6, 4, 26)
    assert last.possibly_billed == 26
    told = rig.errors(config(tmp_path, tmp_path / "in.jsonl"))
    assert {(line["class"], line["attempts"]) for line in told} == {("gone", 1)}
    assert api.rows_executed_again == 0


def test_gone_rows_are_bought_again_by_the_users_word(tmp_path: Path) -> None:
    """Only those: what is here stays, and what comes of the second batch counts as a second try."""
    kind = short(lambda moment: 2 if moment < 460 else None)
    [summary], api = visits(tmp_path, 15, {"accept_gone": "rebuy"}, kind=kind)
    assert (summary.state, summary.done, summary.possibly_billed) == ("finished", 15, 13)
    assert api.rows_executed_again == 13
    assert settled(tmp_path)[0].left == ((1, 13),)


@pytest.mark.parametrize("word", [None, "error", "rebuy"])
def test_a_lost_result_file_waits_for_the_users_word(tmp_path: Path, word: str | None) -> None:
    """The file is lost while the error file is there; the batch's own counts are silent, so the word alone decides."""

    async def gone(call: Call) -> None:
        if call.name == "download" and call.subject == "file-000002":
            raise ApiError("No such file (404).", status=404)

    def view(batch: BatchInfo) -> BatchInfo:
        return msgspec.structs.replace(batch, completed=0, failed=0)

    def status(row: Row) -> int:
        return 400 if row.custom_id.endswith(("-0", "-10", "-20")) else 200

    [summary], api = visits(tmp_path, 10, {"accept_gone": word}, per_batch=10, fault=gone, view=view, status_of=status)
    if word is None:
        assert (summary.state, summary.done) == ("paused", 0)
        assert "--accept-gone error, or --accept-gone rebuy" in summary.message
        return
    assert (summary.state, summary.done) == ("finished", 0 if word == "error" else 9)
    assert summary.failed == (10 if word == "error" else 1)
    assert summary.possibly_billed == 9
    assert api.rows_executed_again == (0 if word == "error" else 9)


def test_a_batch_that_the_service_forgot_waits_for_the_users_word(tmp_path: Path) -> None:
    async def forgotten(call: Call) -> None:
        if call.name == "get_batch" and call.subject == "batch-000001":
            raise ApiError("No such batch (404).", status=404)

    [paused, ended], api = visits(tmp_path, 15, {}, {"accept_gone": "error"}, fault=forgotten)
    assert (paused.state, paused.exit_code) == ("paused", 4)
    assert "no longer knows batch batch-000001" in paused.message
    assert "--accept-gone" in paused.message
    assert (ended.state, ended.failed, ended.possibly_billed) == ("finished", 15, 15)
    assert api.rows_executed_again == 0


@pytest.mark.parametrize(
    ("rows", "said"), [(15, "batch batch-000001"), (40, "any of the 3 batches that this run has in flight")]
)
def test_an_empty_service_may_be_another_one(tmp_path: Path, rows: int, said: str) -> None:
    """Before any word on paying again: is it the right server, account and project?"""

    class Two(MemoryBatchApi):
        visit = 0

        async def list_batches(self, after: str | None = None, limit: int = 100) -> BatchPage:
            page = await super().list_batches(after, limit)
            return msgspec.structs.replace(page, data=(), has_more=False) if self.visit else page

        async def get_batch(self, batch_id: str) -> BatchInfo:
            if self.visit:
                raise ApiError("No such batch (404).", status=404)
            return await super().get_batch(batch_id)

    def other(number: int, api: MemoryBatchApi) -> None:
        vars(api)["visit"] = number

    [_, paused], _ = visits(tmp_path, rows, {"once": True}, {}, before=other, kind=Two, duration_s=3600.0)
    assert (paused.state, paused.exit_code) == ("paused", 4)
    assert paused.message.startswith("The service at http")
    asked, _ = paused.message.split("--accept-gone error", 1)
    assert f" does not know {said}; is it another server, account or project than the run's?" in asked
    assert paused.batches == (rows + 14) // 15


def test_the_users_word_counts_more_than_the_users_cancel() -> None:
    """Rows that a cancelled batch had not executed keep their generation, but not where paid results may be among them."""
    plain, word = Rules(0, 3, user_cancel=True), Rules(0, 3, user_cancel=True, gone="rebuy")
    assert plain.judge(plain.unseen, found=False) == (Kind.LEFT, 0)
    assert word.judge(word.unseen, found=False) == (Kind.LEFT, 1)
    error = Rules(0, 3, user_cancel=True, gone="error")
    assert (error.unseen, error.judge(error.unseen, found=False)) == (RowClass.GONE, (Kind.ERROR, 1))


# -- stuck states


def stuck(until: Callable[[], bool], status: str = "in_progress") -> Callable[[BatchInfo], BatchInfo]:
    """The first batch looks as if it were still at work, until then."""

    def view(batch: BatchInfo) -> BatchInfo:
        if batch.id != "batch-000001" or until():
            return batch
        return msgspec.structs.replace(
            batch, status=status, output_file_id=None, error_file_id=None, completed=0, failed=0
        )

    return view


def never() -> bool:
    return False


def given_up(folder: Path) -> list[e.GivenUp]:
    return [event for event in log_of(folder) if isinstance(event, e.GivenUp)]


def test_a_batch_that_never_ends_is_given_up(tmp_path: Path) -> None:
    [summary], api = visits(tmp_path, 15, {}, view=stuck(never))
    assert (summary.state, summary.done, summary.possibly_billed, summary.batches) == ("finished", 15, 15, 2)
    assert api.rows_executed_again == 15
    assert api.calls["cancel_batch"] == 1
    [event] = given_up(tmp_path)
    assert (event.batch_id, event.gone) == ("batch-000001", "rebuy")
    made = next(x for x in log_of(tmp_path) if isinstance(x, e.RemainderSealed)).made
    assert made.generation == 1
    assert DAY_S + 7200 + 120 <= summary.elapsed_s < DAY_S + 7200 + 1200


def test_a_stuck_batch_that_lets_itself_be_cancelled_is_salvaged(tmp_path: Path) -> None:
    asked: list[str] = []

    async def listening(call: Call) -> None:
        if call.name == "cancel_batch" and call.after:
            asked.append(call.subject)

    [summary], api = visits(tmp_path, 15, {}, view=stuck(lambda: bool(asked)), fault=listening)
    assert (summary.state, summary.done, summary.possibly_billed) == ("finished", 15, 0)
    assert asked == ["batch-000001"]
    assert (api.rows_executed_again, given_up(tmp_path)) == (0, [])


def test_a_stuck_batch_whose_cancel_fails_is_given_up_all_the_same(tmp_path: Path) -> None:
    async def refused(call: Call) -> None:
        if call.name == "cancel_batch":
            raise ApiError("No (409).", status=409)

    [summary], _ = visits(tmp_path, 15, {}, view=stuck(never), fault=refused)
    assert (summary.state, summary.done, len(given_up(tmp_path))) == ("finished", 15, 1)


def test_a_visit_that_would_leave_stays_to_give_a_batch_up(tmp_path: Path) -> None:
    """Each visit of a cron job is short; the grace after the cancel is a thing to do now."""
    source = rig.write_requests(tmp_path / "in.jsonl", 15)

    async def main() -> list[Summary]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, view=stuck(never))
        asked = config(tmp_path, source, limits=ShardLimits(max_requests=15), once=True)
        summaries = []
        for _ in range(5):
            summaries.append(await visit(asked, api, clock, random.Random(1)))
            await anyio.sleep(DAY_S / 2 + 4000)
        return summaries

    summaries = simulate(main, 1)
    assert [summary.state for summary in summaries] == ["in_flight"] * 3 + ["finished"] * 2
    assert [summary.batches for summary in summaries] == [1, 1, 2, 2, 2]
    assert summaries[-1].possibly_billed == 15


def test_a_cancel_that_is_never_answered_is_given_up(tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 15)

    async def main() -> tuple[list[Summary], float]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, view=stuck(never, "cancelling"), duration_s=1000.0)
        asked = config(tmp_path, source, limits=ShardLimits(max_requests=15))
        first = await visit(msgspec.structs.replace(asked, once=True), api, clock, random.Random(1))
        second = await visit(asked, api, clock, random.Random(1), mode=Mode.CANCEL)
        passed = anyio.current_time()
        third = await visit(asked, api, clock, random.Random(1))
        return [first, second, third], passed

    [first, second, third], passed = simulate(main, 1)
    assert (first.state, second.state, second.left) == ("in_flight", "cancelled", 15)
    assert second.possibly_billed == 15
    assert 7200 + 120 <= passed < 7200 + 1200
    assert (third.state, third.done) == ("finished", 15)
    [made] = [x.made for x in log_of(tmp_path) if isinstance(x, e.RemainderSealed)]
    assert made.generation == 1


@pytest.mark.parametrize(
    ("expires", "now", "asked", "wanted"),
    [
        (1000.0, 1099.0, None, False),
        (1000.0, 1100.0, None, True),
        (None, 1100.0, None, False),
        (None, 1.0 + 7 * DAY_S + 100.0, None, True),
        (1000.0, 5.0, 99.0, False),
        (1000.0, 5.0, 100.0, True),
    ],
)
def test_when_nobody_waits_any_more(expires: float | None, now: float, asked: float | None, wanted: bool) -> None:
    batch = BatchInfo("b", "in_progress", "f", None, None, 1.0, expires, 4, 0, 0, {})
    assert overdue(batch, now, 100.0, asked) is wanted


def test_a_clock_of_ours_that_is_hours_off_gives_nothing_up(tmp_path: Path) -> None:
    """The service's clock is 30 h behind ours: its deadlines are held against its own Date."""

    class Behind(MemoryBatchApi):
        async def list_batches(self, after: str | None = None, limit: int = 100) -> BatchPage:
            page = await super().list_batches(after, limit)
            return msgspec.structs.replace(page, server_date=float(page.server_date or 0) - 30 * 3600.0)

    def view(batch: BatchInfo) -> BatchInfo:
        shown = {"created_at": batch.created_at - 30 * 3600.0, "expires_at": float(batch.expires_at or 0) - 30 * 3600.0}
        return msgspec.structs.replace(batch, **shown)

    [summary], api = visits(tmp_path, 15, {}, kind=Behind, view=view, duration_s=4 * 3600.0)
    assert (summary.state, summary.possibly_billed, api.calls["cancel_batch"]) == ("finished", 0, 0)


# -- a queue that is full though nothing of ours is in it


class Sized(MemoryBatchApi):
    """Refuses batches by their rows: as a batch that is being validated does not show them, by its file."""

    fits, limit = 4, 10
    until = float("inf")
    code = "token_limit_exceeded"

    async def create_batch(self, file_id: str, endpoint: str, metadata: dict[str, str]) -> BatchInfo:
        rows = self._files[file_id][1].count(b"\n")
        room = rows <= self.fits or anyio.current_time() >= self.until
        self._refuse = None if room else lambda batch: BatchError(self.code, f"Limit: {self.limit} enqueued tokens.")
        return await super().create_batch(file_id, endpoint, metadata)


def test_a_shard_that_finds_no_room_alone_is_halved_until_it_fits(tmp_path: Path) -> None:
    [summary], api = visits(tmp_path, 15, {}, kind=Sized)
    assert (summary.state, summary.done, summary.retried) == ("finished", 15, 15 + 7 + 7)
    assert api.rows_executed_again == 0
    returned = [event for event in log_of(tmp_path) if isinstance(event, e.Returned)]
    assert [event.max_rows for event in returned] == [7, 3, 3]


def test_a_shard_that_others_of_ours_leave_no_room_waits_and_stays_whole(tmp_path: Path) -> None:
    """The first batch runs for an hour; the second one is refused all that time."""

    class Second(Sized):
        fits = 15

        async def create_batch(self, file_id: str, endpoint: str, metadata: dict[str, str]) -> BatchInfo:
            type(self).fits = 0 if any(not batch.terminal for batch in self.batches) else 15
            return await super().create_batch(file_id, endpoint, metadata)

    [summary], _ = visits(tmp_path, 30, {}, kind=Second, duration_s=3600.0)
    log = log_of(tmp_path)
    assert (summary.state, summary.done) == ("finished", 30)
    assert sum(isinstance(event, e.Refused) for event in log) > 2
    assert not [event for event in log if isinstance(event, e.Returned)]


def test_a_shard_below_the_limit_waits_for_other_peoples_batches(tmp_path: Path) -> None:
    kind = type("Busy", (Sized,), {"fits": 0, "limit": 90_000, "until": 3 * 3600.0})
    [summary], _ = visits(tmp_path, 15, {}, kind=kind)
    assert (summary.state, summary.done, summary.retried) == ("finished", 15, 0)


@pytest.mark.parametrize(("rows", "limit"), [(1, 10), (15, 90_000)])
def test_what_can_not_be_made_smaller_pauses_after_a_day(tmp_path: Path, rows: int, limit: int) -> None:
    kind = type("Closed", (Sized,), {"fits": 0, "until": 1.2 * DAY_S, "limit": limit})
    [first, second], _ = visits(tmp_path, rows, {}, {}, kind=kind, before=None)
    assert (first.state, first.exit_code) == ("paused", 4)
    assert "has refused shard 000000-0" in first.message
    assert DAY_S <= first.elapsed_s < DAY_S + 3600
    assert second.state == "paused"  # refused once more, at once
    assert second.elapsed_s < 3600


# -- a doubt that the list can't settle


@pytest.mark.parametrize(("word", "failed", "again"), [("error", 15, 0), ("rebuy", 0, 15)])
def test_a_doubt_that_the_list_can_not_settle_waits_for_the_users_word(
    tmp_path: Path, word: str, failed: int, again: int
) -> None:
    """The answer of the first create is lost, and the list shows neither metadata nor input file."""

    async def lost(call: Call) -> None:
        if call.name == "create_batch" and call.after and call.number == 1:
            raise ApiError("The connection was cut.", retryable=True, maybe_done=True)

    def view(batch: BatchInfo) -> BatchInfo:
        return msgspec.structs.replace(batch, metadata={}, input_file_id=None)

    [first, second], api = visits(tmp_path, 15, {}, {"accept_gone": word}, fault=lost, view=view)
    assert (first.state, first.exit_code, first.batches) == ("paused", 4, 0)
    assert "nothing more is bought without your word: --accept-gone error, or --accept-gone rebuy." in first.message
    assert (second.state, second.failed, second.done) == ("finished", failed, 15 - failed)
    assert second.possibly_billed == 15
    assert api.rows_executed_again == again
    assert [event.gone for event in given_up(tmp_path)] == [word]


# -- how the words are written


def test_the_flags_reach_the_run(tmp_path: Path) -> None:
    given = {"output": str(tmp_path / "o"), "local": True}
    plain = configure(["x"], parse_all(given), {}, "c")
    assert (plain.pause_on_errors, plain.accept_gone, plain.stuck_after_s) == (50.0, None, 7200.0)
    words = {"pause_on_errors": "12.5 %", "accept_gone": "rebuy", "stuck_after": "30m"}
    said = configure(["x"], parse_all(given | words), {}, "c")
    assert (said.pause_on_errors, said.accept_gone, said.stuck_after_s) == (12.5, "rebuy", 1800.0)


@pytest.mark.parametrize("wrong", ["50", "101%", "-1%", "%", "half", 50, True, None])
def test_a_share_is_written_with_its_sign(wrong: object) -> None:
    with pytest.raises(ConfigError, match="pause_on_errors"):
        parse(BY_NAME["pause_on_errors"], wrong, "pause_on_errors")
