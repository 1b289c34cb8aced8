"""purge(): deletes a run's files at the provider, by the journal and by the exact names of its uploads, under the run's lock.

What is deleted is journaled, so that a second purge has nothing to do. Buys nothing, cancels nothing, collects nothing.
"""

import os
from collections import Counter
from collections.abc import AsyncIterator

import anyio
import msgspec

from streambatch.config import Config
from streambatch.core import events as e
from streambatch.core import tags
from streambatch.core.adoption import Reading, stuck, turned
from streambatch.core.purging import (
    ERROR,
    INPUT,
    OUTPUT,
    Facts,
    Loose,
    PurgedFile,
    Receipt,
    Remote,
    rows_lost,
    sentence,
    why_kept,
)
from streambatch.core.wire import BatchInfo
from streambatch.edge import failpoints, remotes
from streambatch.edge.client import BatchApi
from streambatch.edge.fetching import GONE
from streambatch.edge.files import RunFiles
from streambatch.edge.journal import Journal, Store
from streambatch.edge.locking import RunLock
from streambatch.engine.adoption import MARGIN_S
from streambatch.engine.house import REAL, Connect, House
from streambatch.errors import ApiError, ConfigError, StreambatchError

SCHEMA_VERSION = 1
AT_ONCE = 4
NO_LIST = (400, 404, 405, 501)  # of a service that has no list of files
NOBODYS = (401, 403, 408, 429)  # about who asks, or the pace: the next file would fare no better


class Asked(msgspec.Struct, frozen=True):
    """What a purge is to do. `everything`: also what is not merged; `local`: then the run's own state, too."""

    dry_run: bool = False
    everything: bool = False
    local: bool = False


async def purge(config: Config, connect: Connect, asked: Asked, house: House = REAL) -> Receipt:
    """Delete what may go. Raises ConfigError where another process has the run, ApiError, JournalError, StorageError."""
    files = RunFiles(config.run_dir)
    lock = RunLock(files)
    lock.acquire()
    try:
        store = house.store(files)
        journal = Journal(store, house.blocking, _deaf, failpoints.from_environment(os.environ))
        try:
            started = await journal.read(Store.last, e.Started)
            if started is None:
                raise ConfigError(f"The run in {config.run_dir} has not begun; there is nothing to purge.")
            async with connect(config) as api:
                receipt = await Purge(config, started, api, journal, house, asked).run()
            finished = await journal.read(Store.last, e.Published) is not None
        finally:
            await journal.aclose()
        if asked.local and not asked.dry_run:
            receipt = await _without_state(receipt, config, files, house, finished or asked.everything)
        return receipt
    finally:
        lock.release()


async def _without_state(receipt: Receipt, config: Config, files: RunFiles, house: House, allowed: bool) -> Receipt:
    """Remove the run's state, where nothing of it is needed any more."""
    if not allowed:
        why = "The run's own state stays: the run is not finished."
    elif receipt.kept or receipt.exit_code:
        why = "The run's own state stays: it names the files that are left."
    else:
        await house.blocking(files.remove_state, config.output)
        return msgspec.structs.replace(
            receipt, local_removed=True, message=f"{receipt.message} The run's own state is removed too."
        )
    return msgspec.structs.replace(receipt, message=f"{receipt.message} {why}")


class Purge:
    """One purge, under the lock."""

    def __init__(
        self, config: Config, started: e.Started, api: BatchApi, journal: Journal, house: House, asked: Asked
    ) -> None:
        self._config = config
        self._started = started
        self._api = api
        self._journal = journal
        self._house = house
        self._asked = asked
        self._entries: list[PurgedFile] = []
        self._told = ""  # by the service, when it would not go on
        self._failed = 0

    async def run(self) -> Receipt:
        self._entries = [_earlier(at, event) for at, event in await self._journal.read(remotes.deleted)]
        files, facts = await self._look()
        going: list[Remote] = []
        for file in files:
            why = why_kept(file, facts, everything=self._asked.everything)
            if why:
                self._note(file, "kept", why=why)
            else:
                going.append(file)
        if self._asked.dry_run:
            for file in going:
                self._note(file, "would_delete")
        else:
            await self._delete(going)
        return self._receipt(rows_lost(going) + await self._only_here())

    async def _only_here(self) -> int:
        """Rows that are done and not merged: their results lie in the run's own state alone."""
        if not (self._asked.local and self._asked.everything):
            return 0
        totals = await self._journal.read(Store.totals)
        return max(0, totals.get("done", 0) - totals.get("merged", 0))

    # -- what is there

    async def _look(self) -> tuple[list[Remote], Facts]:
        listed = {batch.id: batch async for batch in self._batches()}
        published = await self._journal.read(Store.last, e.Published) is not None
        files = await self._journal.read(remotes.every)
        shards: dict[str, str] = {}
        inputs: dict[str, str] = {}
        uncollected: dict[str, str] = {}
        for loose in [*await self._journal.read(remotes.loose), *await self._strangers(listed)]:
            batch = listed.get(loose.batch_id)
            batch = await self._look_up(loose.batch_id) if batch is None else batch
            if batch is None and (loose.given_up or self._asked.everything):
                continue
            if batch is None or not batch.terminal:
                shards[loose.shard] = loose.batch_id
                inputs |= {loose.file_id: loose.batch_id} if loose.file_id else {}
                continue
            uncollected[loose.shard] = loose.batch_id
            files += await self._results(loose, batch)
        return [*files, *await self._orphans()], Facts(published, shards, inputs, uncollected)

    async def _batches(self) -> AsyncIterator[BatchInfo]:
        """This run's batches in the list, back to where the run began."""
        horizon, after, reading = self._started.server_date - MARGIN_S, None, Reading()
        while True:
            page = await self._api.list_batches(after, 100)
            for batch in page.data:
                tag = tags.parse_tag(batch.metadata)
                if tag is not None and tag.run == self._started.run_id:
                    yield batch
            if not page.has_more or (page.data and page.data[-1].created_at < horizon) or stuck(reading, page):
                return
            reading, after = turned(reading, page), page.last_id

    async def _strangers(self, listed: dict[str, BatchInfo]) -> list[Loose]:
        """Batches of this run that the journal does not know: it may be an old copy."""
        found = []
        for batch in listed.values():
            tag = tags.parse_tag(batch.metadata)
            if tag is not None and not await self._journal.read(remotes.knows, batch.id):
                found.append(Loose(batch.id, tag.shard, batch.input_file_id))
                for kind, file_id in ((OUTPUT, batch.output_file_id), (ERROR, batch.error_file_id)):
                    if file_id:
                        file = Remote(file_id, kind, tag.shard)
                        self._note(file, "kept", why=f"the journal does not know its batch {batch.id}")
        return found

    async def _look_up(self, batch_id: str) -> BatchInfo | None:
        try:
            return await self._api.get_batch(batch_id)
        except ApiError as error:
            if error.status not in GONE:
                raise
            return None

    async def _results(self, loose: Loose, batch: BatchInfo) -> list[Remote]:
        """Result files of a batch in the journal that no shard runs: nobody noted them there."""
        pairs = ((OUTPUT, batch.output_file_id), (ERROR, batch.error_file_id))
        if not await self._journal.read(remotes.knows, loose.batch_id):
            return []
        return [
            Remote(file_id, kind, loose.shard, loose.batch_id)
            for kind, file_id in pairs
            if file_id and not await self._journal.read(remotes.knows_file, file_id)
        ]

    async def _orphans(self) -> list[Remote]:
        """Uploads of this run that the journal does not know: their answer was lost. Known by the whole of their name."""
        found: list[Remote] = []
        merged = (await self._journal.read(Store.totals)).get("segments_merged", 0)
        after, ends = None, {""}
        try:
            while True:
                page = await self._api.list_files(after)
                for info in page.data:
                    named = tags.parse_upload_name(info.filename, self._started.run_id)
                    if named is not None and not await self._journal.read(remotes.knows_file, info.id):
                        found.append(await self._orphan(info.id, *named, merged))
                if not page.has_more or page.last_id is None or page.last_id in ends:
                    return found
                after = page.last_id
                ends.add(after)
        except ApiError as error:
            if error.status not in NO_LIST:
                raise
            return found

    async def _orphan(self, file_id: str, name: str, digest: str, merged: int) -> Remote:
        shard = await self._journal.read(Store.shard, name)
        if shard is None or shard.hash[:16] != digest:
            return Remote(file_id, INPUT, name)
        return remotes.of_shard(file_id, INPUT, shard, merged)

    # -- deleting

    async def _delete(self, files: list[Remote]) -> None:
        """A few at once. A service that will not go on ends it: what is left is told as kept."""
        try:
            async with anyio.create_task_group() as tasks:
                for place in range(AT_ONCE):
                    tasks.start_soon(self._some, files[place::AT_ONCE])
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group

    async def _some(self, files: list[Remote]) -> None:
        for file in files:
            if self._told:
                self._note(file, "kept", why=self._told)
                self._failed += 1
                continue
            try:
                there = await self._api.delete_file(file.file_id)
            except StreambatchError as error:
                if not isinstance(error, ApiError) or error.retryable or error.status in NOBODYS:
                    self._told = str(error)
                self._note(file, "kept", why=str(error))
                self._failed += 1
                continue
            await self._journal.append(
                e.Deleted(file_id=file.file_id, kind=file.kind, shard=file.shard, gone=not there)
            )
            self._note(file, "deleted" if there else "gone", self._house.clock.wall())

    def _note(self, file: Remote, state: str, at: float | None = None, why: str = "") -> None:
        self._entries.append(PurgedFile(file.file_id, file.kind, file.shard, state, at, why))

    # -- what is told

    def _receipt(self, lost: int) -> Receipt:
        now = Counter(entry.state for entry in self._entries if not entry.earlier)
        earlier = sum(entry.earlier for entry in self._entries)
        words = sentence(self._entries, dry_run=self._asked.dry_run, lost=lost, failed=self._failed)
        return Receipt(
            schema_version=SCHEMA_VERSION,
            run_id=self._started.run_id,
            run_dir=self._config.run_dir,
            dry_run=self._asked.dry_run,
            exit_code=3 if self._failed else 0,
            message=words,
            deleted=now["deleted"],
            gone=now["gone"],
            kept=now["kept"],
            earlier=earlier,
            rows_lost=lost,
            local_removed=False,
            files=tuple(self._entries),
        )


def _earlier(at: float, event: e.Deleted) -> PurgedFile:
    state = "gone" if event.gone else "deleted"
    return PurgedFile(event.file_id, event.kind, event.shard, state, at, earlier=True)


def _deaf(event: e.Event) -> None:
    """No one listens."""
