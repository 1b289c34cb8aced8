"""Where a visit lives: clock, threads, workers and the way to the service. Real, or made of twins under a virtual clock."""

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import msgspec

from streambatch.config import Config
from streambatch.edge import files as disk
from streambatch.edge import mounts, spooling, workers
from streambatch.edge.client import BatchApi
from streambatch.edge.clock import Clock, SystemClock
from streambatch.edge.feeds import OwnThread
from streambatch.edge.files import Blocking, RunFiles
from streambatch.edge.journal import Journal, Store
from streambatch.edge.workers import Executor
from streambatch.engine.brake import Brake

Connect = Callable[[Config], AbstractAsyncContextManager[BatchApi]]
SMALL_INPUT = 8 << 20  # bytes: below it a worker process costs more than it saves


class House(msgspec.Struct, frozen=True):
    """Makes what a visit needs: an executor for this many bytes of input, and the journal's path."""

    clock: Clock
    blocking: Blocking
    executor: Callable[[Config, int], Executor]
    journal: Callable[[RunFiles], str]
    look_every_s: float = 0.5  # how often progress is told, and a request to cancel is seen
    brake: Brake | None = None  # of one visit, whose results somebody takes
    free: Callable[[str], int] = spooling.free_bytes  # on the file system of a folder
    patient: Callable[[], Blocking] = OwnThread  # where rows of a program may take their time
    opened: Callable[[Journal], None] | None = None  # hears of the journal, which nobody else may be able to read

    def store(self, files: RunFiles) -> Store:
        """The journal's tables, shared with readers where the file system allows it. Raises ConfigError, JournalError."""
        return Store(self.journal(files), shared=mounts.may_share(files.folder, os.environ), now=self.clock.wall)


def _executor(config: Config, size: int) -> Executor:
    if config.workers == 0 or size < SMALL_INPUT:
        return workers.ThreadExecutor()
    return workers.ProcessExecutor(config.workers)


REAL = House(SystemClock(), disk.in_thread, _executor, lambda files: str(files.journal))
