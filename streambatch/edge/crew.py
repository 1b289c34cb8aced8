"""Workers for a blocking caller: each with a thread that waits for its process, and the caller, which lends a hand."""

import threading
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from streambatch.core.jobs import Job, Manifest
from streambatch.edge.jobs import run_job
from streambatch.edge.processes import Worker


class Answer:
    """What became of one job, once somebody has done it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._done: SimpleQueue[Manifest | BaseException] = SimpleQueue()

    @property
    def done(self) -> bool:
        """Whether it can be had without waiting."""
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
    """So many worker processes; with 0 each job is done where it is submitted. Leaving it kills what is still at work."""

    def __init__(self, workers: int) -> None:
        self._jobs: SimpleQueue[Answer | None] = SimpleQueue()
        self._workers = [Worker() for _ in range(workers)]
        self._threads = [threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in self._workers]

    def submit(self, job: Job) -> Answer:
        """Jobs begin in the order of their coming."""
        answer = Answer(job)
        if self._workers:
            self._jobs.put(answer)
        else:
            _do(answer)
        return answer

    def help(self) -> bool:
        """Do one of the jobs that nobody has begun, here. False if there is none."""
        answer = self._unbegun()
        if answer is not None:
            _do(answer)
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
        try:
            for worker in self._workers:
                worker.start()
        except BaseException:
            for worker in self._workers:
                worker.close()
            raise
        for thread in self._threads:
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


def _do(answer: Answer) -> None:
    try:
        answer.put(run_job(answer.job))
    except Exception as error:  # noqa: BLE001 - raised where the answer is taken
        answer.put(error)
