"""Results: the files of a finished batch, fetched with patience, because they may show late, or under ids that come late.

How long, and what then, is `core.patience`'s to say; knows no journal and no turns.
"""

import os
from collections.abc import Mapping

import anyio
import msgspec

from streambatch.core import patience
from streambatch.core.models import Shard
from streambatch.core.patience import Told
from streambatch.core.wire import BatchInfo
from streambatch.edge.client import BatchApi
from streambatch.edge.clock import Clock
from streambatch.edge.files import Blocking, disk
from streambatch.errors import ApiError, Paused

OUTPUT, ERROR = ".output", ".error"
GONE = (404, 410)


class Results:
    """Fetches results. `transfers` is shared with the uploads; nobody who waits holds one."""

    def __init__(
        self,
        api: BatchApi,
        clock: Clock,
        blocking: Blocking,
        transfers: anyio.CapacityLimiter,
        grace_s: float,
        *,
        accept_gone: bool = False,
    ) -> None:
        self._api = api
        self._clock = clock
        self._blocking = blocking
        self._transfers = transfers
        self._grace_s = grace_s
        self._accept_gone = accept_gone

    async def fetch(self, shard: Shard, paths: Mapping[str, str]) -> Told:
        """Write the result files to `paths`, by ending; where they were in the end. Raises Paused where paid results can't be
        found and the user has not said a word on that, ApiError, StorageError. A file that is accepted as gone is empty."""
        told = Told(shard.output_id, shard.error_id)
        if told.output_id is None:
            told = await self._look(shard, told)
        have: dict[str, str] = {}
        for wait_s in patience.waits(self._grace_s):
            gone = await self._take(shard, told, have, paths)
            if gone is None and not told.hidden:
                return told
            await self._clock.sleep(wait_s)
            told = await self._look(shard, told)
        gone = await self._take(shard, told, have, paths)
        hidden = patience.forbids(told.hidden, shard.rows)
        if gone is None and not hidden:
            return told
        if not self._accept_gone:
            raise Paused(_hidden(shard, told.hidden) if gone is None else _gone(shard, gone))
        for ending, file_id in _files(told):
            if have.get(ending) != file_id:
                await self._blocking(_make_empty, paths[ending])
        return msgspec.structs.replace(told, gone=True)

    async def _look(self, shard: Shard, told: Told) -> Told:
        """What the service says now; what it said before, where it does not know the batch any more."""
        batch = await self.batch(shard)
        return told if batch is None else patience.told(batch, told)

    async def batch(self, shard: Shard) -> BatchInfo | None:
        """The batch by its id; None where the service does not know it any more."""
        try:
            return await self._api.get_batch(str(shard.batch_id))
        except ApiError as error:
            if error.status not in GONE:
                raise
            return None

    async def take(self, shard: Shard, told: Told, paths: Mapping[str, str]) -> set[str]:
        """Fetch what is there now; the endings of what was fetched."""
        have: dict[str, str] = {}
        await self._take(shard, told, have, paths)
        return set(have)

    async def _take(self, shard: Shard, told: Told, have: dict[str, str], paths: Mapping[str, str]) -> str | None:
        """Fetch what we do not have yet; the first file that is not there, if one is not."""
        gone = None
        async with self._transfers:
            for ending, file_id in _files(told):
                if have.get(ending) == file_id:
                    continue
                try:
                    await self._fetch(shard, file_id, paths[ending])
                except ApiError as error:
                    if error.status not in GONE:
                        raise
                    gone = file_id if gone is None else gone
                else:
                    have[ending] = file_id
        return gone

    async def _fetch(self, shard: Shard, file_id: str, path: str) -> None:
        """Fetch one file; a length that is wrong twice in the same way is taken as it is."""
        said = (await self._api.file_info(file_id)).bytes
        got = await self._api.download(file_id, f"{path}.part")
        if got != said:
            twice = await self._api.download(file_id, f"{path}.part")
            if twice not in (got, said):
                raise ApiError(
                    f"The result file {file_id} of shard {shard.name} came with {got}, then {twice} bytes where the service"
                    f" says {said}; run the same command again later.",
                    retryable=True,
                )
        await self._blocking(os.replace, f"{path}.part", path)


def _files(told: Told) -> list[tuple[str, str]]:
    """(ending, id) of the files that the service names."""
    return [(ending, x) for ending, x in ((OUTPUT, told.output_id), (ERROR, told.error_id)) if x is not None]


def _make_empty(path: str) -> None:
    with disk(f"Writing {path}"), open(path, "wb"):
        pass


def _gone(shard: Shard, file_id: str) -> str:
    return (
        f"The service no longer has the result file {file_id} of batch {shard.batch_id}: {shard.rows} rows of shard"
        f" {shard.name} were paid and are gone there; {patience.WORD}"
    )


def _hidden(shard: Shard, rows: int) -> str:
    return (
        f"The service counts {rows} results of batch {shard.batch_id} (shard {shard.name}) and names no file that has them;"
        f" {patience.WORD}"
    )
