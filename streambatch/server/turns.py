"""Whose turn it is, and when: a heap of due times, one per batch, safe to plan from any thread."""

import heapq
import itertools
import threading
import time


class Turns:
    """At most one planned turn per batch; the latest plan counts."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, int]] = []
        self._due: dict[int, float] = {}
        self._ticket = itertools.count()
        self._closed = False
        self._nudged = False

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """No more turns; whoever waits returns."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def plan(self, seq: int, after_s: float) -> None:
        """The batch's next turn is then, whatever was planned."""
        with self._changed:
            self._due[seq] = time.monotonic() + after_s
            heapq.heappush(self._heap, (self._due[seq], next(self._ticket), seq))
            self._changed.notify_all()

    def plan_if_none(self, seq: int, after_s: float) -> None:
        """The batch's next turn is then, unless one is planned."""
        with self._changed:
            if seq not in self._due:
                self.plan(seq, after_s)

    def nudge(self) -> None:
        """There is something to do beside the turns; whoever rests, or is about to, doesn't."""
        with self._changed:
            self._nudged = True
            self._changed.notify_all()

    def take(self) -> int | None:
        """The batch that has been due for longest; None if none is due."""
        with self._changed:
            wait = self._wait()
            if wait is None or wait > 0:
                return None
            _, _, seq = heapq.heappop(self._heap)
            del self._due[seq]
            return seq

    def rest(self, most_s: float) -> None:
        """Sleep until the next turn, a change, or so long."""
        with self._changed:
            wait = self._wait()
            if not self._closed and not self._nudged and (wait is None or wait > 0):
                self._changed.wait(most_s if wait is None else min(wait, most_s))
            self._nudged = False

    def _wait(self) -> float | None:
        """Seconds to the next turn; None if nothing is planned. Drops plans that were replaced."""
        while self._heap:
            due, _, seq = self._heap[0]
            if self._due.get(seq) == due:
                return due - time.monotonic()
            heapq.heappop(self._heap)
        return None
