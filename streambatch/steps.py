"""The things we do to the world for one shard: upload, create, search, download, settle.

Each step performs one effect and returns the event that says what happened. Knows nothing of tasks, turns or budgets.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import anyio
import msgspec

from streambatch.core import events as e
from streambatch.core import jobs, lifecycle, patience, tags, verdicts
from streambatch.core.models import Shard
from streambatch.core.patience import Counted, Told
from streambatch.edge.client import BatchApi
from streambatch.edge.clock import Clock
from streambatch.edge.fetching import ERROR, OUTPUT, Results
from streambatch.edge.files import Blocking, RunFiles, sync_folder
from streambatch.edge.journal import Journal, Store
from streambatch.edge.rereading import Rereading
from streambatch.edge.workers import Executor
from streambatch.errors import ApiError, JournalError, Paused

DOUBTS_PER_SHARD = 3
CREATE_PATIENCE_S = 8.0  # how long a stop waits for the answer of a create that is on its way


class Order(msgspec.Struct, frozen=True):
    """What all batches of a run have in common."""

    run_id: str
    endpoint: str
    cut: str
    labels: tuple[tuple[str, str], ...]
    max_attempts: int
    grace_s: float
    accept_gone: str | None = None


class Steps:
    """Performs steps. `verdict` is told of refusals, `search` looks for a doubted create's batch."""

    def __init__(
        self,
        order: Order,
        api: BatchApi,
        journal: Journal,
        files: RunFiles,
        executor: Executor,
        blocking: Blocking,
        clock: Clock,
        transfers: anyio.CapacityLimiter,
        search: Callable[[Shard], Awaitable[e.ShardEvent]],
        refused: Callable[[Shard, verdicts.Verdict], None],
    ) -> None:
        self._order = order
        self._api = api
        self._journal = journal
        self._files = files
        self._executor = executor
        self._blocking = blocking
        self._transfers = transfers
        self._search = search
        self._refused = refused
        accepts = order.accept_gone is not None
        self._results = Results(api, clock, blocking, transfers, order.grace_s, accept_gone=accepts)
        self._rereading = Rereading(self._results, executor, clock, blocking, order.grace_s)
        self._doubts: Counter[str] = Counter()  # creates of a shard that this process left in doubt
        self._patient: set[anyio.CancelScope] = set()
        self._deadline = math.inf  # of creates, once the run is being stopped

    async def perform(self, step: lifecycle.Step) -> e.ShardEvent:
        """Do one step. Raises ApiError, StorageError, JournalError or Paused."""
        match step:
            case lifecycle.Upload(shard=shard):
                return await self._upload(shard)
            case lifecycle.Create(shard=shard):
                return await self._create(shard)
            case lifecycle.Search(shard=shard):
                self._check_doubts(shard)
                return await self._search(shard)
            case lifecycle.Download(shard=shard):
                return await self._download(shard)
            case lifecycle.Settle(shard=shard):
                return await self._settle(shard)
        raise JournalError(f"No one knows how to do {type(step).__name__} for shard {step.shard.name}.")

    # -- to the provider

    async def _upload(self, shard: Shard) -> e.ShardEvent:
        path = self._files.path(shard.name, ".jsonl")
        try:
            async with self._transfers:
                info = await self._api.upload(path, tags.upload_name(self._order.run_id, shard))
        except ApiError as error:
            unpaid = verdicts.of_unpaid_upload(error)
            if unpaid is not None:
                raise Paused(unpaid) from error
            returned = verdicts.of_refused_upload(shard, error)
            if returned is None:
                raise
            return returned
        return e.Uploaded(shard=shard.name, file_id=info.id, created_at=info.created_at, expires_at=info.expires_at)

    async def _create(self, shard: Shard) -> e.ShardEvent:
        """The create is the one call that must not be repeated blindly: without a clear answer it is doubted."""
        order = self._order
        batch = None
        try:
            with self._patience():  # the intent is in the journal: a stop from here on would leave a doubt
                pairs = tags.metadata(order.run_id, shard, await self._span(shard), order.cut, order.labels)
                batch = await self._api.create_batch(str(shard.file_id), order.endpoint, pairs)
        except ApiError as error:
            return self._not_created(shard, error)
        if batch is None:
            return self._doubted(shard, "the engine was stopped before the answer came")
        return e.Submitted(shard=shard.name, batch_id=batch.id, file_id=shard.file_id, create=shard.create)

    def _not_created(self, shard: Shard, error: ApiError) -> e.ShardEvent:
        if error.maybe_done:
            return self._doubted(shard, str(error))
        verdict = verdicts.of_refused_create(shard, error)
        if verdict is None:
            # Certainly not created: the shard goes back to where the next process finds it, then the run ends.
            verdict = verdicts.Verdict(e.Refused(shard=shard.name, reason=str(error)), stop=error)
        self._refused(shard, verdict)
        return verdict.event

    def _doubted(self, shard: Shard, reason: str) -> e.Doubted:
        self._doubts[shard.name] += 1
        return e.Doubted(shard=shard.name, create=shard.create, reason=reason)

    def _check_doubts(self, shard: Shard) -> None:
        """A service that leaves create after create without an answer is not asked on and on."""
        if self._doubts[shard.name] >= DOUBTS_PER_SHARD:
            raise ApiError(
                f"The service left {DOUBTS_PER_SHARD} creates of shard {shard.name} without an answer; run the same command"
                " again when it answers."
            )

    async def _span(self, shard: Shard) -> str:
        if shard.segment is None:
            return "-"
        row = await self._journal.read(Store.segment, shard.segment)
        if row is None:
            raise JournalError(f"The journal has no segment {shard.segment}, which shard {shard.name} belongs to.")
        return f"{row.segment.first_ordinal}+{row.segment.lines}"

    @contextlib.contextmanager
    def _patience(self) -> Iterator[None]:
        """Shields a create from a stop, until the deadline that `hurry` sets or has set."""
        with anyio.CancelScope(shield=True, deadline=self._deadline) as scope:
            self._patient.add(scope)
            try:
                yield
            finally:
                self._patient.discard(scope)

    def hurry(self) -> None:
        """The run is being stopped: creates on their way get a last few seconds for their answer."""
        self._deadline = anyio.current_time() + CREATE_PATIENCE_S
        for scope in self._patient:
            scope.deadline = self._deadline

    # -- from the provider

    async def _download(self, shard: Shard) -> e.ShardEvent:
        paths = {ending: self._files.path(shard.name, ending) for ending in (OUTPUT, ERROR)}
        return await self._downloaded(shard, await self._results.fetch(shard, paths))

    async def _downloaded(self, shard: Shard, told: Told) -> e.Downloaded:
        await self._blocking(sync_folder, self._files.spool)
        return e.Downloaded(
            shard=shard.name,
            output=told.output_id is not None,
            error=told.error_id is not None,
            output_id=told.output_id,
            error_id=told.error_id,
            gone=self._order.accept_gone if told.gone else None,
        )

    async def _settle(self, shard: Shard) -> e.ShardEvent:
        """What came of each row; first, counted rows that the files do not hold are looked for, and may forbid all buying."""
        end = await self._journal.read(Store.ending, shard.name)
        job = self._settle_job(shard, end)
        made = await self._outcomes(job)
        counted = await self._counted(shard, job, end, made)
        gap = counted.gap(counted.held(made))
        if gap:
            seen = await self._rereading.look(shard, job, counted, counted.held(made))
            if seen.told is not None:
                return await self._downloaded(shard, seen.told)
            gap = min(seen.gap, made.missing) if counted.whole else seen.gap
        if patience.forbids(gap, shard.rows):
            if self._order.accept_gone is None:
                raise Paused(verdicts.uncounted(shard, made.found + gap, made.found))
            made = await self._outcomes(msgspec.structs.replace(job, gone=self._order.accept_gone))
        names = [f"{job.stem}{ending}" for ending in (".outcome", ".notes")]
        await self._blocking(self._files.settle_names, names)
        return _settled(shard, made, gap)

    async def _counted(
        self, shard: Shard, job: jobs.Settle, end: e.BatchFinished | None, made: jobs.Outcomes
    ) -> Counted:
        """What the service counts. Of a batch that a remainder claimed rows of, it is asked where one is missing."""
        if end is None or not job.executed or job.gone:
            return Counted(0, shard.rows)
        if end.total or not made.missing:
            return Counted(end.completed + end.failed, shard.rows)
        batch = await self._results.batch(shard)
        return Counted(0, 0) if batch is None else Counted(batch.completed + batch.failed, batch.total, whole=True)

    async def _outcomes(self, job: jobs.Settle) -> jobs.Outcomes:
        made = await self._executor.run(job)
        if not isinstance(made, jobs.Outcomes):
            raise JournalError(f"Settling {job.stem} gave a {type(made).__name__}.")
        return made

    def _settle_job(self, shard: Shard, end: e.BatchFinished | None) -> jobs.Settle:
        stem = self._files.stem(shard.name)
        return jobs.Settle(
            stem=stem,
            segment=shard.segment,
            rows=shard.rows,
            generation=shard.generation,
            max_attempts=self._order.max_attempts,
            output=f"{stem}.output" if shard.output_id else None,
            error=f"{stem}.error" if shard.error_id else None,
            executed=_executed(shard, end),
            user_cancel=shard.cancel_asked,
            refused=() if end is None else end.refused,
            suffix=self._files.suffix,
            gone=shard.gone,
        )


def _executed(shard: Shard, end: e.BatchFinished | None) -> bool:
    """Whether its batch may have run any row: not one that failed without files, unless it counts rows beside those it named."""
    if shard.status != "failed" or shard.output_id or shard.error_id:
        return True
    return end is not None and not end.refused and bool(end.completed + end.failed)


def _settled(shard: Shard, made: jobs.Outcomes, gap: int) -> e.Settled:
    """The event; counted rows that could not be found may be billed, whatever else is known of them."""
    return e.Settled(
        shard=shard.name,
        done=made.done,
        errors=made.errors,
        left=made.left,
        segments=made.segments,
        usage=made.usage,
        missing=max(made.missing, gap),
        unknown=made.unknown,
        duplicate=made.duplicate,
        kinds=made.kinds,
    )
