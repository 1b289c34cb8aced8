"""Workers for a blocking caller: each with a thread that waits for its process, and the caller, which lends a hand."""

import threading
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from streambatch.core.jobs import Job, Manifest
from streambatch.edge.jobs import run_job
from streambatch.edge.processes import Worker

AHEAD = 2  # jobs per worker that are given out before the first answer is taken


class Answer:
    """What became of one job, once somebody has done it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._done: SimpleQueue[Manifest | BaseException] = SimpleQueue()

    @property
    def done(self) -> bool:
        """Whether it can be had without waiting."""
        return not self._done.empty()

    @property
    def ready(self) -> bool:
        """Whether `get` would not wait."""
        return not self._done.empty()

    def put(self, made: Manifest | BaseException) -> None:
        self._done.put(made)

    def wait(self) -> None:
        """Waits for it, whatever it is."""
        self._done.get()

    def get(self) -> Manifest:
        """Waits for it. Raises what the job raised."""
        made = self._done.get()
        if isinstance(made, BaseException):
            raise made
        return made


class Crew:
    """Does jobs with so many hands: processes, of which the caller saves one by helping. Leaving kills what still works.

    With 0 each job is done where it is submitted; with 1 the caller has its hands free for other work.
    """

    def __init__(self, workers: int) -> None:
        self.ahead = AHEAD * workers  # how many jobs may be given out before the first answer is taken
        self._helps = workers > 1
        self._jobs: SimpleQueue[Answer | None] = SimpleQueue()
        self._workers = [Worker() for _ in range(workers - 1 if self._helps else workers)]
        self._threads = [threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in self._workers]

    def submit(self, job: Job) -> Answer:
        """Jobs begin in the order of their coming."""
        answer = Answer(job)
        if self._workers:
            self._jobs.put(answer)
        else:
            answer.put(run_job(job))
        return answer

    def help(self) -> bool:
        """Do one of the jobs that nobody has begun. False if there is none, or help is not wanted."""
        answer = self._unbegun() if self._helps else None
        if answer is not None:
            answer.put(run_job(answer.job))
        return answer is not None

    def drain(self) -> None:
        """Forget the jobs that nobody has begun: their answers are worth nothing."""
        while (answer := self._unbegun()) is not None:
            answer.put(RuntimeError("This job was dropped."))

    def _unbegun(self) -> Answer | None:
        try:
            return self._jobs.get_nowait()
        except Empty:
            return None

    def __enter__(self) -> Self:
        for worker, thread in zip(self._workers, self._threads, strict=True):
            worker.start()
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.drain()
        for worker in self._workers:
            self._jobs.put(None)
            if kind is not None:
                worker.kill()
        for thread in self._threads:
            thread.join()
        for worker in self._workers:
            worker.close()

    def _serve(self, worker: Worker) -> None:
        while (answer := self._jobs.get()) is not None:
            try:
                answer.put(worker.call(answer.job))
            except BaseException as error:  # noqa: BLE001 - raised where the answer is taken
                answer.put(error)
        worker.leave()
