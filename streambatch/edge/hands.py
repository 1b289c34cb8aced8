"""Worker processes, and this process as one more: for a command that has nothing else to do than its jobs."""

import contextlib
from collections import deque
from collections.abc import Generator, Iterable
from queue import Empty

from streambatch.core.jobs import Job, Manifest
from streambatch.edge.crew import Answer, Crew
from streambatch.edge.jobs import run_job

OPEN_JOBS = 64
HEAP_BYTES = 1 << 20  # freed at once: from then on malloc keeps blocks of less than this when they are freed


class Hands(Crew):
    """`workers` in all, this process among them."""

    def __init__(self, workers: int) -> None:
        super().__init__(max(0, workers - 1))
        bytes(HEAP_BYTES)

    def run(self, jobs: Iterable[Job]) -> Generator[Manifest, None, None]:
        """What the jobs made, in their order; raises what a job raised. Closed early, it ends when none is at work any more."""
        todo, waiting = iter(jobs), deque[Answer]()
        try:
            while True:
                while len(waiting) < OPEN_JOBS and (job := next(todo, None)) is not None:
                    waiting.append(self.submit(job))
                if not waiting:
                    return
                if waiting[0].done or not self._help():
                    yield waiting.popleft().get()
        finally:
            self._end(waiting)

    def _end(self, waiting: Iterable[Answer]) -> None:
        """Drop what nobody has begun, wait for the rest."""
        dropped = []
        with contextlib.suppress(Empty):  # that is when all are dropped
            while True:
                dropped.append(self._jobs.get_nowait())
        for answer in waiting:
            if answer not in dropped:
                answer.wait()

    def _help(self) -> bool:
        """Do a job that nobody has begun, if there is one."""
        try:
            answer = self._jobs.get_nowait()
        except Empty:
            return False
        if answer is None:
            return False
        try:
            answer.put(run_job(answer.job))
        except Exception as error:  # noqa: BLE001 - raised where the answer is taken
            answer.put(error)
        return True
