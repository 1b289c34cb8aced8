"""Executors: where jobs run. In place, on a thread, or in worker processes; only specs and manifests cross.

Jobs that free the spool go first: merge before settle before remainder before prepare.
"""

import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Protocol

import anyio
import anyio.to_thread
from anyio.lowlevel import checkpoint

from streambatch.core.jobs import Job, Manifest, Merge, Prepare, Remainder, Settle
from streambatch.edge.jobs import run_job
from streambatch.edge.processes import Worker

RANKS: dict[type[Job], int] = {Merge: 0, Settle: 1, Remainder: 2, Prepare: 3}  # the lowest goes first
OTHERS = 4


class Executor(Protocol):
    """Does jobs. Raises what the job raises; a cancelled job leaves no output that counts."""

    async def run(self, job: Job) -> Manifest: ...

    async def aclose(self) -> None: ...


class InlineExecutor:
    """In place, one at a time: for tests under a virtual clock."""

    async def run(self, job: Job) -> Manifest:
        """Yields once, then does it."""
        await checkpoint()
        return run_job(job)

    async def aclose(self) -> None:
        """Nothing to close."""


class ThreadExecutor:
    """On a thread of this process, one at a time: for small inputs. A cancelled caller waits for its job."""

    def __init__(self) -> None:
        self._turns = _Turns(1)

    async def run(self, job: Job) -> Manifest:
        """Waits for its turn, then does it."""
        async with self._turns.turn(RANKS.get(type(job), OTHERS)):
            return await anyio.to_thread.run_sync(run_job, job)

    async def aclose(self) -> None:
        """Nothing to close."""


class ProcessExecutor:
    """In up to `workers` processes, started when they are needed. A cancelled job's process is killed."""

    def __init__(self, workers: int) -> None:
        self._turns = _Turns(workers)
        self._limiter = anyio.CapacityLimiter(workers)
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()

    @property
    def pids(self) -> list[int]:
        """The processes there are."""
        return [pid for worker in (*self._busy, *self._idle) if (pid := worker.pid) is not None]

    async def run(self, job: Job) -> Manifest:
        """Waits for its turn, then has a process do it."""
        async with self._turns.turn(RANKS.get(type(job), OTHERS)):
            worker = self._idle.pop() if self._idle else Worker()
            self._busy.add(worker)
            try:
                return await anyio.to_thread.run_sync(worker.call, job, abandon_on_cancel=True, limiter=self._limiter)
            except anyio.get_cancelled_exc_class():
                worker.kill()  # its answer would be taken for that of the next job
                raise
            finally:
                self._busy.discard(worker)
                if not worker.killed:
                    self._idle.append(worker)

    async def aclose(self) -> None:
        """Lets idle processes leave; kills those that are at work."""
        for worker in self._busy:
            worker.kill()
        with anyio.CancelScope(shield=True):
            while self._idle:
                await anyio.to_thread.run_sync(self._idle.pop().close)


class _Turns:
    """So many at once; of those that wait the most urgent is next, of equals the one that came first."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: list[tuple[int, int, anyio.Event]] = []
        self._arrivals = count()

    @asynccontextmanager
    async def turn(self, rank: int) -> AsyncIterator[None]:
        """Inside, one of the places is taken."""
        await self._take(rank)
        try:
            yield
        finally:
            self._give()

    async def _take(self, rank: int) -> None:
        if self._free and not self._waiting:
            self._free -= 1
            return
        entry = (rank, next(self._arrivals), anyio.Event())
        heapq.heappush(self._waiting, entry)
        try:
            await entry[2].wait()
        except BaseException:
            if entry[2].is_set():
                self._give()
            else:
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)
            raise

    def _give(self) -> None:
        if self._waiting:
            heapq.heappop(self._waiting)[2].set()
        else:
            self._free += 1
