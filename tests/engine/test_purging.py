"""Files at the service: what the engine and `purge` delete, and what they must never touch. On twins, under the virtual clock."""

import contextlib
import random
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from streambatch.config import Config
from streambatch.core import events as e
from streambatch.core import tags
from streambatch.core.models import ShardState
from streambatch.core.purging import LIVE, Facts, Receipt, Remote, rows_lost, why_kept
from streambatch.core.report import Summary
from streambatch.core.wire import BatchInfo
from streambatch.edge import files, remotes
from streambatch.edge.client import BatchApi
from streambatch.edge.files import RunFiles
from streambatch.edge.journal import Store, read_only
from streambatch.edge.locking import RunLock
from streambatch.edge.retrying import RetryingApi
from streambatch.edge.workers import InlineExecutor
from streambatch.engine import House
from streambatch.engine.purging import Asked, purge
from streambatch.errors import ApiError, ConfigError, StreambatchError
from tests.e2e import rig
from tests.engine.test_journal import a_whole_log, life, sealed
from tests.engine.test_virtual import check, duration, ids
from tests.twins.api import Call, MemoryBatchApi
from tests.twins.clock import VirtualClock
from tests.twins.world import DAY_S, Weather, config, simulate, visit, world

ROWS = 60
INPUT_NAME = "input"


def kinds(api: MemoryBatchApi) -> set[str]:
    """Which kinds of files are at the service."""
    words = ((".jsonl", "output"), ("_output.jsonl", "output"), ("_error.jsonl", "error"))
    return {next((word for end, word in words[1:] if info.filename.endswith(end)), INPUT_NAME) for info in api.files}


def journal_of(config: Config) -> str:
    return str(RunFiles(config.run_dir).journal)


async def purged(config: Config, api: BatchApi, clock: VirtualClock, **asked: bool) -> Receipt:
    @contextlib.asynccontextmanager
    async def connect(config: Config) -> AsyncIterator[BatchApi]:
        yield RetryingApi(api, config.retry, clock, random.Random(1).random)

    house = House(clock, files.inline, lambda config, size: InlineExecutor(), lambda run: str(run.journal))
    return await purge(config, connect, Asked(**asked), house)


class Struck(StreambatchError):  # noqa: N818  it is no error of the run's
    """The process would have died here."""


def strike_at(kind: type[e.Event], nth: int = 1) -> Callable[[Any], None]:
    """A listener that ends the visit at the n-th event of a kind."""
    seen: list[e.Event] = []

    def listen(notice: Any) -> None:
        if isinstance(notice, kind):
            seen.append(notice)
            if len(seen) == nth:
                raise Struck

    return listen


# -- the rules


SETTLED = Remote("file-1", "output", "000001-0", "", ShardState.SETTLED, 10, True)
OPEN = msgspec.structs.replace(SETTLED, merged=False)
QUIET = Facts(False, {}, {})
OVER = Facts(True, {}, {})


@pytest.mark.parametrize(
    ("file", "facts", "goes", "goes_with_all"),
    [
        (SETTLED, QUIET, True, True),
        (OPEN, QUIET, False, True),
        (OPEN, OVER, True, True),
        (SETTLED, Facts(False, {"000001-0": "batch-1"}, {}), False, False),
        (SETTLED, Facts(True, {"000001-0": "batch-1"}, {}), False, False),
        (SETTLED, Facts(True, {}, {"file-1": "batch-1"}), False, False),
        (SETTLED, Facts(False, {"000002-0": "batch-1"}, {"file-2": "batch-1"}), True, True),
        (OPEN, Facts(False, {}, {}, {"000001-0": "batch-1"}), False, False),
        (SETTLED, Facts(False, {}, {}, {"000001-0": "batch-1"}), True, True),
        *((msgspec.structs.replace(OPEN, state=state), OVER, False, False) for state in LIVE),
        *(
            (msgspec.structs.replace(OPEN, state=state), QUIET, False, True)
            for state in ShardState
            if state not in LIVE
        ),
        (Remote("file-1", "input", "000001-0"), QUIET, False, False),
        (Remote("file-1", "input", "000001-0"), OVER, True, True),
        (Remote("file-1", "output", "000001-0", "batch-2", ShardState.SETTLED), QUIET, False, False),
        (Remote("file-1", "output", "000001-0", "batch-2", ShardState.SETTLED), OVER, True, True),
    ],
)
def test_which_files_may_go(file: Remote, facts: Facts, goes: bool, goes_with_all: bool) -> None:
    assert (why_kept(file, facts, everything=False) == "") is goes
    assert (why_kept(file, facts, everything=True) == "") is goes_with_all


def test_which_paid_rows_would_be_lost() -> None:
    unread = [msgspec.structs.replace(OPEN, state=state, shard=state.value) for state in ShardState]
    assert rows_lost(unread) == 20  # finished, admitted
    assert rows_lost([msgspec.structs.replace(file, kind="input") for file in unread]) == 0
    both = [msgspec.structs.replace(OPEN, state=ShardState.FINISHED, kind=kind) for kind in ("output", "error")]
    assert rows_lost(both) == 10


# -- the engine


class Guard:
    """Weather that also holds each deletion against the journal and the service, at the moment it arrives."""

    def __init__(self, config: Config, weather: Weather) -> None:
        self.config = config
        self.weather = weather
        self.api: MemoryBatchApi
        self.deleted = 0
        self.missed: list[str] = []

    async def fault(self, call: Call) -> None:
        if call.name == "create_batch" and not call.after and call.subject not in {f.id for f in self.api.files}:
            self.missed.append(f"create of {call.subject}, which was deleted")
        if call.name == "delete_file" and not call.after:
            self.deleted += 1
            self._check(call.subject)
        await self.weather.fault(call)

    def _check(self, file_id: str) -> None:
        with read_only(journal_of(self.config)) as store:
            ((name,),) = store.ask("SELECT shard FROM remote WHERE file_id=?", file_id)
            shard, merged = store.shard(name), store.totals().get("segments_merged", 0)
        assert shard is not None
        if shard.last_segment >= merged or shard.state not in (ShardState.SETTLED, ShardState.RETURNED):
            self.missed.append(f"{file_id} of {name}: {shard.state}, segment {shard.last_segment} of {merged} merged")
        for batch in self.api.batches:
            ours = tags.parse_tag(batch.metadata)
            if not batch.terminal and (batch.input_file_id == file_id or (ours and ours.shard == name)):
                self.missed.append(f"{file_id} while {batch.id} is {batch.status}")


@pytest.mark.parametrize("policy", ["inputs", "delete"])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_that_is_needed_is_deleted_in_any_weather(tmp_path: Path, seed: int, policy: str) -> None:
    """Killed and resumed at random moments: no create meets a deleted file, no row is bought again."""
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    asked = config(tmp_path, source, max_attempts=9, remote_files=policy)
    guard = Guard(asked, Weather(seed, lost=0.05, refused=0.05, failing=0.15, expiring=0.2))
    chance = random.Random(seed)

    async def main() -> MemoryBatchApi:
        clock = VirtualClock()
        guard.api = api = world(
            clock, guard.weather, list_lag_s=30.0, window_s=3600.0, duration_s=lambda b: duration(b, seed)
        )
        api.fault = guard.fault
        for _ in range(400):
            with anyio.move_on_after(chance.expovariate(1 / 600.0)):
                summary = await visit(asked, api, clock, chance)
                if summary.state == "finished":
                    break
        check(tmp_path, api, guard.weather)
        api.fault = None
        await purged(asked, api, clock)  # what a kill in the last moment left
        return api

    api = simulate(main, seed)
    assert guard.missed == []
    assert guard.deleted >= ROWS // 10
    assert INPUT_NAME not in kinds(api)
    rig.check_journal(asked)


@pytest.mark.parametrize(
    ("policy", "left"), [("inputs", {"output"}), ("keep", {INPUT_NAME, "output"}), ("delete", set())]
)
def test_what_is_left_after_a_run(tmp_path: Path, policy: str, left: set[str]) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)

    async def main() -> MemoryBatchApi:
        clock = VirtualClock()
        api = MemoryBatchApi(clock)
        summary = await visit(config(tmp_path, source, remote_files=policy), api, clock, random.Random(1))
        assert (summary.message, summary.done) == ("Finished.", ROWS)
        return api

    assert kinds(simulate(main, 1)) == left


def published_at(tmp_path: Path, policy: str, fault: Callable[[Call], Any] | None) -> tuple[float, Summary, Receipt]:
    """When a long run was published, its summary, and what a purge did afterwards."""
    tmp_path.mkdir()
    source = rig.write_requests(tmp_path / "in.jsonl", 200)
    moments: list[float] = []

    async def main() -> tuple[Summary, Receipt]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, duration_s=900.0, fault=fault)

        def listen(notice: Any) -> None:
            if isinstance(notice, e.Published):
                moments.append(anyio.current_time())

        asked = config(tmp_path, source, remote_files=policy, max_batches=4)
        summary = await visit(asked, api, clock, random.Random(1), listen=listen)
        api.fault = None
        return summary, await purged(asked, api, clock)

    summary, receipt = simulate(main, 1)
    return moments[0], summary, receipt


async def failing(call: Call) -> None:
    if call.name == "delete_file":
        raise ApiError("The service is overloaded (503).", status=503, retryable=True)


async def refusing(call: Call) -> None:
    if call.name == "delete_file" and not call.after:
        raise ApiError("The file may not be deleted (403).", status=403)


async def hanging(call: Call) -> None:
    if call.name == "delete_file":
        await anyio.sleep(DAY_S)


@pytest.mark.parametrize("fault", [failing, refusing, hanging])
def test_deletions_that_fail_neither_stop_nor_slow_a_run(tmp_path: Path, fault: Callable[[Call], Any]) -> None:
    plain, _, _ = published_at(tmp_path / "plain", "keep", None)
    at, summary, receipt = published_at(tmp_path / "failing", "inputs", fault)
    assert (summary.state, summary.exit_code, summary.done) == ("finished", 0, 200)
    assert at == plain
    assert "20 files of merged rows stay at the service; streambatch purge " in summary.message
    assert (receipt.deleted + receipt.gone, receipt.kept) == (40, 0)


def test_inputs_go_while_the_run_goes_on(tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 200)
    deleted: list[float] = []
    ended: list[float] = []

    async def main() -> None:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, duration_s=900.0)

        def listen(notice: Any) -> None:
            if isinstance(notice, e.Deleted):
                deleted.append(anyio.current_time())
            if isinstance(notice, e.Published):
                ended.append(anyio.current_time())

        await visit(config(tmp_path, source, max_batches=4), api, clock, random.Random(1), listen=listen)

    simulate(main, 1)
    assert len(deleted) == 20
    assert sum(at < ended[0] for at in deleted) >= 12  # all but those of the last batches


async def failing_at_first(call: Call) -> None:
    if call.name == "delete_file" and anyio.current_time() < 1500.0:  # with a wait that no retry takes
        raise ApiError("The service is overloaded (503).", status=503, retryable=True, retry_after_s=1e6)


async def hanging_at_first(call: Call) -> None:
    if call.name == "delete_file" and call.number == 1:
        await anyio.sleep(DAY_S)


@pytest.mark.parametrize("fault", [failing_at_first, hanging_at_first])
def test_what_could_not_be_deleted_is_tried_again_while_the_run_goes_on(
    tmp_path: Path, fault: Callable[[Call], Any]
) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 200)
    heard: list[type[Any]] = []

    async def main() -> Summary:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, duration_s=900.0, fault=fault)
        asked = config(tmp_path, source, max_batches=4)
        return await visit(asked, api, clock, random.Random(1), listen=lambda notice: heard.append(type(notice)))

    assert simulate(main, 1).message == "Finished."
    assert heard.count(e.Deleted) == 20
    assert heard[: heard.index(e.Published)].count(e.Deleted) >= 8


def test_a_file_that_would_expire_before_its_create_is_uploaded_again(tmp_path: Path) -> None:
    """Batches run one after the other, so that uploads wait for longer than the service keeps them."""
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    asked = config(tmp_path, source, max_batches=1, remote_files="expire:7200")

    async def main() -> list[BatchInfo]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, duration_s=3000.0, file_life_s=7200.0)
        summary = await visit(asked, api, clock, random.Random(1))
        assert summary.done == ROWS
        return api.batches

    batches = simulate(main, 1)
    assert {batch.status for batch in batches} == {"completed"}
    log = rig.check_journal(asked)
    assert {x.reason for x in log if isinstance(x, e.InputLost)} == {"the file would expire before it is used"}


# -- purge


def finished(
    tmp_path: Path, then: Callable[[Config, MemoryBatchApi, VirtualClock], Any], fault: Any = None, **changes: Any
) -> Any:
    """A run that finished with all its files kept, and what comes then."""
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    asked = config(tmp_path, source, remote_files="keep", **changes)

    async def main() -> Any:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, fault=fault)
        assert (await visit(asked, api, clock, random.Random(1))).done == ROWS
        api.fault = None
        return await then(asked, api, clock)

    return simulate(main, 1)


def test_a_purge_deletes_all_once_and_says_so(tmp_path: Path) -> None:
    async def then(asked: Config, api: MemoryBatchApi, clock: VirtualClock) -> None:
        gone = api.files[3].id
        api.lose_file(gone)
        dry = await purged(asked, api, clock, dry_run=True)
        assert (dry.message, len(api.files), api.calls["delete_file"]) == ("12 files would be deleted.", 11, 0)
        assert {file.state for file in dry.files} == {"would_delete"}
        first = await purged(asked, api, clock)
        assert (first.deleted, first.gone, first.kept, first.exit_code, api.files) == (11, 1, 0, 0, [])
        assert first.message == "Deleted 12 files, of which the service no longer had 1."
        assert {file.id for file in first.files if file.state == "gone"} == {gone}
        assert {(file.kind, file.deleted_at is not None) for file in first.files} == {("input", True), ("output", True)}
        calls = api.calls["delete_file"]
        second = await purged(asked, api, clock)
        assert second.message == "Nothing to delete: 12 files were deleted before."
        assert (second.deleted, second.gone, second.earlier, api.calls["delete_file"]) == (0, 0, 12, calls)
        assert {file.id for file in second.files} == {file.id for file in first.files}
        assert (await visit(asked, api, clock, random.Random(1))).exit_code == 0  # nothing to do
        rig.check_journal(asked)

    finished(tmp_path, then)


def test_orphans_are_known_by_the_whole_of_their_name(tmp_path: Path) -> None:
    async def lost(call: Call) -> None:
        if call.name == "upload" and call.after and call.number in (1, 4):
            raise ApiError("The connection was cut.", retryable=True)

    async def then(asked: Config, api: MemoryBatchApi, clock: VirtualClock) -> None:
        name = api.files[0].filename
        run, shard, digest, _ = name.split(".")
        upload = tmp_path / "other.jsonl"
        upload.write_bytes(rig.request_line(0))
        others = [
            f"x{name}",
            f"{run}2.{shard}.{digest}.jsonl", f"{name}.jsonl", f"{run}.jsonl", name.upper(), f"{run}.{shard}.{digest[:15]}.jsonl",
            "other.jsonl", f"{run}/{shard}.{digest}.jsonl",
        ]  # fmt: skip
        foreign = {(await api.upload(str(upload), other)).id for other in others}
        receipt = await purged(asked, api, clock)
        assert (receipt.deleted, receipt.kept) == (14, 0)  # six shards, two orphans
        assert {file.id for file in api.files} == foreign

    finished(tmp_path, then, lost)


def test_an_orphan_of_other_content_waits_for_the_end_of_the_run(tmp_path: Path) -> None:
    """Its name is this run's and its hash is none of ours: it may belong to another copy of the run."""
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    asked = config(tmp_path, source, remote_files="keep")

    async def main() -> None:
        clock = VirtualClock()
        api = MemoryBatchApi(clock)
        with pytest.raises(Struck):
            await visit(asked, api, clock, random.Random(1), listen=strike_at(e.Merged))
        upload = tmp_path / "other.jsonl"
        upload.write_bytes(rig.request_line(0))
        run, shard, *_ = api.files[0].filename.split(".")
        odd = await api.upload(str(upload), f"{run}.{shard}.{'0' * 16}.jsonl")
        receipt = await purged(asked, api, clock, everything=True)
        assert [file.why for file in receipt.files if file.id == odd.id] == [
            "it belongs to a batch or a shard that this run has not come to yet"
        ]
        await visit(asked, api, clock, random.Random(1))
        await purged(asked, api, clock)
        assert api.files == []

    simulate(main, 1)


def interrupted(tmp_path: Path, kind: type[e.Event], then: Callable[..., Any], fault: Any = None, **world: Any) -> Any:
    """A run whose process dies at the first event of a kind, and what comes then."""
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    asked = config(tmp_path, source, remote_files="keep")

    async def main() -> Any:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, fault=fault, **world)
        with pytest.raises(Struck):
            await visit(asked, api, clock, random.Random(1), listen=strike_at(kind))
        api.fault = None
        return await then(asked, api, clock)

    return simulate(main, 1)


@pytest.mark.parametrize("kind", [e.Intended, e.Doubted, e.Submitted])
def test_a_create_in_doubt_or_alive_keeps_its_files_whatever_is_asked(tmp_path: Path, kind: type[e.Event]) -> None:
    async def lost(call: Call) -> None:
        if call.name == "create_batch" and call.after and kind is e.Doubted:
            raise ApiError("The connection was cut.", retryable=True, maybe_done=True)

    async def then(asked: Config, api: MemoryBatchApi, clock: VirtualClock) -> None:
        with read_only(journal_of(asked)) as store:
            needed = {
                str(s.file_id) for s in store.shards((ShardState.INTENDED, ShardState.DOUBTED, ShardState.SUBMITTED))
            }
        assert needed
        receipt = await purged(asked, api, clock, everything=True, local=True)
        assert needed <= {file.id for file in api.files}
        assert not receipt.local_removed
        summary = await visit(asked, api, clock, random.Random(1))
        assert (summary.done, api.rows_executed_again) == (ROWS, 0)
        assert ids(tmp_path / "out.jsonl") == ids(tmp_path / "in.jsonl")

    interrupted(tmp_path, kind, then, lost)


def test_what_is_not_merged_stays_and_goes_with_all(tmp_path: Path) -> None:
    """Uploads without a batch cost nothing: the resume sends them again."""

    async def then(asked: Config, api: MemoryBatchApi, clock: VirtualClock) -> None:
        before = api.files
        receipt = await purged(asked, api, clock)
        assert (receipt.deleted, receipt.kept, api.files) == (0, len(before), before)
        assert receipt.message.endswith("its rows are not merged yet.") or "not come to yet" in receipt.message
        receipt = await purged(asked, api, clock, everything=True)
        assert (receipt.deleted, receipt.rows_lost) == (1, 0)
        summary = await visit(asked, api, clock, random.Random(1))
        assert (summary.done, api.rows_executed_again) == (ROWS, 0)

    interrupted(tmp_path, e.Uploaded, then)


def test_all_says_how_many_paid_rows_are_lost_and_none_is_bought_again_unasked(tmp_path: Path) -> None:
    async def then(asked: Config, api: MemoryBatchApi, clock: VirtualClock) -> None:
        with read_only(journal_of(asked)) as store:
            unread = store.count(ShardState.FINISHED, ShardState.ADMITTED)
        assert unread
        assert (await purged(asked, api, clock)).deleted == 0
        dry = await purged(asked, api, clock, everything=True, dry_run=True)
        assert dry.rows_lost == 10 * unread
        assert f"{10 * unread} rows had paid results that are not in the output: they would be lost." in dry.message
        receipt = await purged(asked, api, clock, everything=True)
        assert receipt.rows_lost == 10 * unread
        summary = await visit(asked, api, clock, random.Random(1))
        assert (summary.state, summary.exit_code, api.rows_executed_again) == ("paused", 4, 0)

    interrupted(tmp_path, e.BatchFinished, then)


def test_a_second_batch_of_a_merged_shard_keeps_its_files_while_it_lives(tmp_path: Path) -> None:
    """One that the journal does not know at all: the directory may be an old copy."""

    async def then(asked: Config, api: MemoryBatchApi, clock: VirtualClock) -> None:
        first = api.batches[0]
        second = await api.create_batch(str(first.input_file_id), rig.URL, first.metadata)
        receipt = await purged(asked, api, clock)
        kept = {file.id: file.why for file in receipt.files if file.state == "kept"}
        assert kept == dict.fromkeys(
            (first.input_file_id, first.output_file_id), f"batch {second.id} needs it or may still run its shard"
        )
        await clock.sleep(3600)
        receipt = await purged(asked, api, clock)
        (left,) = (file for file in receipt.files if file.state == "kept")  # paid, and nobody's yet
        assert left.why == f"the journal does not know its batch {second.id}"
        assert [file.id for file in api.files] == [left.id]

    finished(tmp_path, then)


def test_a_find_that_is_not_settled_keeps_the_files_of_its_shard(tmp_path: Path) -> None:
    """A batch that was found beside the one that ran: the engine leaves it alone, purge asks what became of it."""
    source = rig.write_requests(tmp_path / "in.jsonl", 20)
    asked = config(tmp_path, source)
    twin: list[BatchInfo] = []

    async def main() -> None:
        clock = VirtualClock()
        lives = {"batch-000003": DAY_S / 2}
        api = MemoryBatchApi(clock, duration_s=lambda b: lives.get(b.id, 60.0), cancelling_s=DAY_S / 4)

        async def again(call: Call) -> None:
            if call.name == "create_batch" and call.after and not twin and call.number == 2:
                first = api.batches[0]
                api.calls["create_batch"] += 10
                twin.append(api._create(str(first.input_file_id), rig.URL, dict(first.metadata)))

        api.fault = again
        await visit(asked, api, clock, random.Random(1))
        with read_only(journal_of(asked)) as store:
            assert store.found(tags.parse_tag(twin[0].metadata).shard)  # type: ignore[union-attr]
        assert twin[0].input_file_id in {file.id for file in api.files}
        await purged(asked, api, clock)
        assert twin[0].input_file_id in {file.id for file in api.files}
        await clock.sleep(DAY_S)
        await purged(asked, api, clock)
        assert api.files == []

    simulate(main, 1)


def test_an_old_copy_of_a_run_directory_deletes_nothing_that_a_newer_one_needs(tmp_path: Path) -> None:
    async def then(asked: Config, api: MemoryBatchApi, clock: VirtualClock) -> None:
        old = tmp_path / "old.run"
        shutil.copytree(asked.run_dir, old)
        with pytest.raises(Struck):
            await visit(asked, api, clock, random.Random(1), listen=strike_at(e.Submitted, 3))
        needed = {str(batch.input_file_id) for batch in api.batches}
        receipt = await purged(msgspec.structs.replace(asked, run_dir=str(old)), api, clock, everything=True)
        assert needed <= {file.id for file in api.files}
        assert receipt.kept >= len(needed)

    interrupted(tmp_path, e.Uploaded, then)


@pytest.mark.parametrize("status", [500, 403])
def test_a_purge_that_the_service_cuts_short_goes_on_later(tmp_path: Path, status: int) -> None:
    async def tired(call: Call) -> None:
        if call.name == "delete_file" and not call.after and call.number > 5:
            raise ApiError(f"Not now ({status}).", status=status, retryable=status == 500)

    async def then(asked: Config, api: MemoryBatchApi, clock: VirtualClock) -> None:
        api.fault = tired
        asked = msgspec.structs.replace(asked, retry=msgspec.structs.replace(asked.retry, max_elapsed_s=5.0))
        receipt = await purged(asked, api, clock, local=True)
        assert (receipt.exit_code, receipt.deleted, receipt.kept, receipt.local_removed) == (3, 5, 7, False)
        assert f"Not now ({status})" in receipt.message
        assert "Run the same command again" in receipt.message
        api.fault = None
        receipt = await purged(asked, api, clock)
        assert (receipt.exit_code, receipt.deleted, receipt.earlier, api.files) == (0, 7, 5, [])

    finished(tmp_path, then)


def test_one_file_that_the_service_will_not_delete_does_not_keep_the_others(tmp_path: Path) -> None:
    async def then(asked: Config, api: MemoryBatchApi, clock: VirtualClock) -> None:
        stubborn = api.files[4].id

        async def refuse(call: Call) -> None:
            if call.name == "delete_file" and call.subject == stubborn:
                raise ApiError("The file is in use (409).", status=409)

        api.fault = refuse
        receipt = await purged(asked, api, clock)
        assert (receipt.exit_code, receipt.deleted, receipt.kept) == (3, 11, 1)
        assert [file.id for file in api.files] == [stubborn]

    finished(tmp_path, then)


def test_a_service_without_a_list_of_files_is_purged_by_the_journal(tmp_path: Path) -> None:
    async def then(asked: Config, api: MemoryBatchApi, clock: VirtualClock) -> None:
        async def none(call: Call) -> None:
            if call.name == "list_files":
                raise ApiError("Not found (404).", status=404)

        api.fault = none
        assert (await purged(asked, api, clock)).deleted == 12

    finished(tmp_path, then)


def test_a_run_that_a_process_holds_is_not_purged(tmp_path: Path) -> None:
    async def then(asked: Config, api: MemoryBatchApi, clock: VirtualClock) -> None:
        lock = RunLock(RunFiles(asked.run_dir))
        lock.acquire()
        try:
            with pytest.raises(ConfigError, match=r"This process has the run in .* already"):
                await purged(asked, api, clock)
        finally:
            lock.release()
        assert len(api.files) == 12

    finished(tmp_path, then)


def test_local_state_goes_when_all_is_done_and_the_output_stays(tmp_path: Path) -> None:
    async def then(asked: Config, api: MemoryBatchApi, clock: VirtualClock) -> None:
        answers = Path(asked.output).read_bytes()
        receipt = await purged(asked, api, clock, local=True, dry_run=True)
        assert Path(journal_of(asked)).exists()
        receipt = await purged(asked, api, clock, local=True)
        assert receipt.local_removed
        assert not Path(asked.run_dir).exists()
        assert Path(asked.output).read_bytes() == answers

    finished(tmp_path, then)


def test_local_state_of_an_unfinished_run_stays_and_partial_answers_outlive_even_all(tmp_path: Path) -> None:
    async def then(asked: Config, api: MemoryBatchApi, clock: VirtualClock) -> None:
        receipt = await purged(asked, api, clock, local=True)
        assert not receipt.local_removed
        assert Path(journal_of(asked)).exists()
        await clock.sleep(DAY_S)
        with pytest.raises(Struck):  # by now nothing is in flight
            await visit(asked, api, clock, random.Random(1), listen=strike_at(e.Publishing))
        partial = RunFiles(asked.run_dir).output.read_bytes()
        assert partial
        receipt = await purged(asked, api, clock, local=True)
        assert not receipt.local_removed
        receipt = await purged(asked, api, clock, local=True, everything=True)
        assert receipt.local_removed
        assert not Path(journal_of(asked)).exists()
        assert RunFiles(asked.run_dir).output.read_bytes() == partial

    interrupted(tmp_path, e.Merged, then)


# -- the journal


def test_a_journal_of_an_earlier_version_knows_its_files(tmp_path: Path) -> None:
    import sqlite3

    async def then(asked: Config, api: MemoryBatchApi, clock: VirtualClock) -> None:
        with contextlib.closing(sqlite3.connect(journal_of(asked))) as db:
            db.executescript("DROP TABLE remote; PRAGMA user_version=1;")
        assert (await purged(asked, api, clock)).deleted == 12
        assert api.files == []

    finished(tmp_path, then)


def merged_store(*events: e.Event) -> Store:
    """One segment whose shard is settled, and that is merged; `events` came in between."""
    store = Store(":memory:")
    store.append([sealed(0), *life("000000-0", 0, done=4, errors=0, left=0)])
    store.append([*events, e.Merged(0, 400, 0, 4, 0, 0, ())])
    return store


def due(store: Store) -> list[str]:
    found = [file.file_id for file in remotes.disposable(store, ("input", "output"), 10)]
    store.close()
    return found


def test_the_engine_deletes_what_no_batch_can_need() -> None:
    find = e.Found("batch-x", "000000-0", 2, "file-x", "", "0+4", "in_progress", 11.0)
    assert due(merged_store()) == ["file-000000-0", "file-o"]
    assert due(merged_store(find)) == []
    assert due(merged_store(find, e.SpareRead("batch-x", 1, 4))) == []
    ended = e.SpareEnded("batch-x", "completed", "file-y", None)
    store = merged_store(find, e.SpareRead("batch-x", 1, 4), ended)
    assert {(x.file_id, x.batch) for x in remotes.every(store) if x.batch} == {
        ("file-x", "batch-x"),
        ("file-y", "batch-x"),
    }
    assert due(store) == ["file-000000-0", "file-o"]
    other = merged_store(e.Found("batch-z", "r000009", 1, "file-000000-0", "", "-", "in_progress", 11.0))
    other.append([e.SpareRead("batch-z", 1, 4)])
    assert due(other) == ["file-o"]  # its file is run by a batch that carries another name


def test_a_batch_that_was_given_up_may_still_run() -> None:
    store = Store(":memory:")
    name = "000000-0"
    *before, _, _, _, settled = life(name, 0, done=0, errors=4, left=0)
    store.append([sealed(0), *before])
    store.append(
        [e.GivenUp(name, f"batch-{name}", "nobody knows it", "error"), settled, e.Merged(0, 0, 9, 0, 4, 0, ())]
    )
    assert [loose.batch_id for loose in remotes.loose(store)] == [f"batch-{name}"]
    assert due(store) == []


@pytest.mark.parametrize("listed", [True, False])
def test_a_spare_that_lives_keeps_its_files(tmp_path: Path, listed: bool) -> None:
    """A find that became a spare is looked up by id, also where the list no longer shows it."""

    async def then(asked: Config, api: MemoryBatchApi, clock: VirtualClock) -> None:
        first = api.batches[0]
        if not listed:
            await clock.sleep(3600)
        pairs = first.metadata if listed else {}
        second = await api.create_batch(str(first.input_file_id), rig.URL, pairs)
        shard = str(first.metadata["streambatch"]).split("/")[1]
        store = Store(journal_of(asked))
        store.append([e.Found(second.id, shard, 7, first.input_file_id, "", "0+10", "validating", 0.0)])
        store.append([e.SpareRead(second.id, 1, 10)])
        store.close()
        receipt = await purged(asked, api, clock)
        assert {file.id for file in receipt.files if file.state == "kept"} == {
            first.input_file_id,
            first.output_file_id,
        }
        await clock.sleep(3600)
        await purged(asked, api, clock)
        assert api.files == []  # its results too, by its id in the journal

    finished(tmp_path, then)


def test_late_result_ids_are_known_too(tmp_path: Path) -> None:
    """A batch that names its files only after it was seen to be finished: `Downloaded` has the ids."""
    shown: dict[str, int] = {}

    def view(batch: BatchInfo) -> BatchInfo:
        if batch.status != "completed":
            return batch
        shown[batch.id] = shown.get(batch.id, 0) + 1
        return batch if shown[batch.id] > 4 else msgspec.structs.replace(batch, output_file_id=None)

    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    asked = config(tmp_path, source, remote_files="delete")

    async def main() -> list[str]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, view=view)
        assert (await visit(asked, api, clock, random.Random(1))).done == ROWS
        return [info.filename for info in api.files]

    assert simulate(main, 1) == []
    assert any(x.output_id for x in rig.check_journal(asked) if isinstance(x, e.Downloaded))


def test_the_names_of_uploads_are_read_exactly() -> None:
    name = "run_1-x.000012-0.0123456789abcdef.jsonl"
    assert tags.parse_upload_name(name, "run_1-x") == ("000012-0", "0123456789abcdef")
    assert tags.parse_upload_name("r.r000003.0123456789abcdef.jsonl", "r") == ("r000003", "0123456789abcdef")
    for other in (
        name.replace("run_1", "run_2"),
        f"{name}\n",
        name.upper(),
        name[1:],
        name.replace(".jsonl", "xjsonl"),
    ):
        assert tags.parse_upload_name(other, "run_1-x") is None


def test_what_was_deleted_is_in_the_log(tmp_path: Path) -> None:
    store = Store(":memory:")
    store.append([e.Deleted(file_id="file-1", kind="input", shard="000000-0", gone=False)])
    assert [type(x).__name__ for x in store.events()] == ["Deleted"]
    assert store.totals()["files_deleted"] == 1
    store.close()


def test_a_remainders_input_stays_until_the_run_is_published() -> None:
    """A run directory that is lost before then learns from it which rows the remainder carries."""
    store = Store(":memory:")
    store.append([event for event in a_whole_log() if not isinstance(event, e.Found)])
    assert [file.file_id for file in remotes.disposable(store, ("input",), 10)] == ["file-000000-0", "file-000001-0"]
    whole = {file.file_id: file.merged for file in remotes.every(store) if file.kind == "input"}
    assert whole == {"file-000000-0": True, "file-000001-0": True, "file-r000000": False}
    store.append([e.Publishing(0, "", 0, ""), e.Published(exit_code=0)])
    assert "file-r000000" in due(store)
