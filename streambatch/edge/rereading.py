"""A second look at results: where a service counts more rows than its files hold, it is asked again before that is believed.

New files lie beside the old ones, and replace them only where they hold more. Knows no journal; what then is `steps`' to say.
"""

import os
from contextlib import ExitStack
from pathlib import Path

import msgspec

from streambatch.core import patience
from streambatch.core.jobs import Outcomes, Settle
from streambatch.core.models import Shard
from streambatch.core.patience import Counted, Told
from streambatch.edge.clock import Clock
from streambatch.edge.fetching import ERROR, OUTPUT, Results
from streambatch.edge.files import Blocking, disk
from streambatch.edge.workers import Executor
from streambatch.errors import JournalError


class Reread(msgspec.Struct, frozen=True):
    """`told` where other files hold more rows, and lie in place now; else how many rows are counted and not found."""

    told: Told | None
    gap: int


class Rereading:
    """Looks again, a grace before each look. Nobody who waits holds a transfer."""

    def __init__(self, results: Results, executor: Executor, clock: Clock, blocking: Blocking, grace_s: float) -> None:
        self._results = results
        self._executor = executor
        self._clock = clock
        self._blocking = blocking
        self._grace_s = grace_s

    async def look(self, shard: Shard, job: Settle, counted: Counted, held: int) -> Reread:
        """What becomes of a gap; `job` has settled the files that are here. Raises ApiError, StorageError, JournalError."""
        for _ in range(patience.LOOKS):
            await self._clock.sleep(self._grace_s)
            batch = await self._results.batch(shard)
            told = Told(shard.output_id, shard.error_id)
            if batch is not None:
                told = patience.told(batch, told)
                counted = msgspec.structs.replace(counted, processed=batch.completed + batch.failed)
            if not counted.gap(held):
                break
            if await self._better(shard, job, told, counted, held):
                return Reread(told, 0)
        return Reread(None, counted.gap(held))

    async def _better(self, shard: Shard, job: Settle, told: Told, counted: Counted, held: int) -> bool:
        """Whether the files, read again, hold more rows; they are in place then."""
        paths = {ending: f"{job.stem}{ending}" for ending in (OUTPUT, ERROR)}
        again = {ending: f"{path}.again{job.suffix}" for ending, path in paths.items()}
        trial = f".again{job.suffix}"
        with ExitStack() as stack:
            for path in (*again.values(), f"{job.stem}.outcome{trial}", f"{job.stem}.notes{trial}"):
                stack.callback(Path(path).unlink, missing_ok=True)
            taken = await self._results.take(shard, told, again)
            files = {OUTPUT: job.output, ERROR: job.error, **{ending: again[ending] for ending in taken}}
            if not taken or counted.held(await self._outcomes(job, files, trial)) <= held:
                return False
            for ending in taken:
                await self._blocking(_replace, again[ending], paths[ending])
        return True

    async def _outcomes(self, job: Settle, paths: dict[str, str | None], suffix: str) -> Outcomes:
        trial = msgspec.structs.replace(job, output=paths[OUTPUT], error=paths[ERROR], suffix=suffix, fsync=False)
        made = await self._executor.run(trial)
        if not isinstance(made, Outcomes):
            raise JournalError(f"Settling {job.stem} gave a {type(made).__name__}.")
        return made


def _replace(source: str, target: str) -> None:
    with disk(f"Writing {target}"):
        os.replace(source, target)
