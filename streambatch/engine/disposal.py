"""Disposal: deletes the run's files at the provider once nobody needs them, as `--remote-files` says.

One at a time and with pauses; what can't be deleted now is tried later, and never stops or slows the run.
"""

import anyio

from streambatch.core import events as e
from streambatch.core.purging import KINDS, Remote
from streambatch.edge import remotes
from streambatch.edge.journal import Store
from streambatch.engine.context import Visit
from streambatch.errors import ApiError, StreambatchError

LOOK_S = 60.0  # between two looks; nobody waits for it
LONGEST_S = 600.0  # after a service that would not
PAUSE_S = 0.1
PATIENCE_S = 20.0  # for one file
CLOSING_S = 60.0  # for what is left at the end of a visit
AT_ONCE = 2  # then
BLOCK = 50
MOST_REFUSED = 100  # files that the service won't delete: then it is not asked again by this visit


class Disposal:
    """Looks at the journal alone. A deletion needs no intent: done twice, it is done once."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._kinds = KINDS.get(visit.config.remote_files, ())
        self._refused: set[str] = set()
        self._wait_s = LOOK_S
        self._cleared = 0  # so many segments were merged at the last look that left nothing

    async def run(self) -> None:
        """Delete what is merged, while the visit goes on."""
        clock = self._visit.world.clock
        while self._kinds:
            calm = await self._round()
            self._wait_s = LOOK_S if calm else min(LONGEST_S, 2 * self._wait_s)
            await clock.sleep(self._wait_s)

    async def _round(self) -> bool:
        """Delete what can be deleted now; False where the service has no ear for it just now."""
        merged = (await self._visit.journal.read(Store.totals)).get("segments_merged", 0)
        if merged == self._cleared:
            return True
        while files := await self._due(BLOCK):
            for file in files:
                if not await self._delete(file):
                    return False
                await self._visit.world.clock.sleep(PAUSE_S)
        self._cleared = merged
        return True

    async def last(self) -> int:
        """Try once more what is left; how many files stay."""
        if not self._kinds:
            return 0
        with anyio.move_on_after(CLOSING_S):
            while files := await self._due(BLOCK):
                if not await self._together(files):
                    break
        return len(await self._due(BLOCK * BLOCK)) + len(self._refused)

    async def _together(self, files: list[Remote]) -> bool:
        calm = [True] * AT_ONCE

        async def some(place: int) -> None:
            for file in files[place::AT_ONCE]:
                if all(calm):
                    calm[place] = await self._delete(file)

        async with anyio.create_task_group() as tasks:
            for place in range(AT_ONCE):
                tasks.start_soon(some, place)
        return all(calm)

    async def _due(self, limit: int) -> list[Remote]:
        if len(self._refused) >= MOST_REFUSED:
            return []
        return await self._visit.journal.read(remotes.disposable, self._kinds, limit, frozenset(self._refused))

    async def _delete(self, file: Remote) -> bool:
        """Delete one file; False where later is better. A file that the service won't delete is left to `purge`."""
        there = None
        try:
            with anyio.move_on_after(PATIENCE_S):
                there = await self._visit.world.api.delete_file(file.file_id)
        except ApiError as error:
            if error.retryable:
                return False
            self._refused.add(file.file_id)
            return True
        except StreambatchError:  # a key that is refused, say: the run's own calls tell of it
            return False
        if there is None:
            return False
        deleted = e.Deleted(file_id=file.file_id, kind=file.kind, shard=file.shard, gone=not there)
        await self._visit.journal.append(deleted)
        return True
