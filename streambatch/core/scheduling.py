"""Who goes next: which models may upload and submit how many shards now, what may be sealed ahead, and when to look again.

Pure arithmetic over counts; the engine asks it at every turn. Places are shared between models by filling up whoever has
fewest; within a model the oldest segment goes first.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from streambatch.core import lifecycle

HELD_AHEAD = 4  # times `sealed_ahead`: all that may wait, models that the service holds back included


class Queue(msgspec.Struct, frozen=True):
    """One model's shards, by where they stand. `oldest`: the first segment of what waits.

    `allowed` is how many creates the service is believed to take now; None: nobody has heard of a limit.
    """

    model: str
    sealed: int = 0  # not being uploaded yet
    uploading: int = 0
    uploaded: int = 0
    in_flight: int = 0
    held: int = 0  # of those in flight: the service has answered their creates
    oldest: int = 0
    allowed: int | None = None

    @property
    def waiting(self) -> int:
        """Shards that wait for a submit."""
        return self.sealed + self.uploading + self.uploaded

    @property
    def ready(self) -> int:
        """Shards that may be submitted, if there is a place."""
        return self.uploaded if self.allowed is None else min(self.uploaded, self.allowed)

    @property
    def out(self) -> int:
        """Shards that have left for the service."""
        return self.uploading + self.uploaded + self.in_flight


class Capacity(msgspec.Struct, frozen=True):
    """The run's bounds: batches in flight, transfers at once, shards that may wait for a submit."""

    max_batches: int
    max_transfers: int
    sealed_ahead: int

    def may_seal(self, queues: Sequence[Queue], *, several: bool) -> bool:
        """Whether a fresh segment may be sealed. Of several models, one that is held back must not keep the others from rows."""
        waiting = sum(queue.waiting for queue in queues)
        if not several or waiting < self.sealed_ahead:
            return waiting < self.sealed_ahead
        free = sum(queue.waiting for queue in queues if queue.allowed is None)
        return free < self.sealed_ahead and waiting < HELD_AHEAD * self.sealed_ahead

    def uploads(self, queues: Sequence[Queue]) -> dict[str, int]:
        """How many more uploads may start, by model: a few ahead of its submits, those that can't submit last."""
        room = self.max_transfers - sum(queue.uploading for queue in queues)
        ahead = self.max_transfers
        wants = ((q.allowed == 0, q.out, q, min(q.sealed, ahead - q.uploading - q.uploaded)) for q in queues)
        return _fill(room, wants)

    def submits(self, queues: Sequence[Queue], unjudged: int = 0) -> dict[str, int]:
        """How many more batches may be created now, by model; `unjudged` ones have ended and keep their places all the same."""
        room = self.max_batches - unjudged - sum(queue.in_flight for queue in queues)
        wants = ((False, queue.in_flight, queue, queue.ready) for queue in queues)
        return _fill(room, wants)

    def collects(self, collecting: int) -> int:
        """How many more finished batches may be fetched and settled now."""
        return max(0, 2 * self.max_transfers - collecting)


def _fill(room: int, wants: Iterable[tuple[bool, int, Queue, int]]) -> dict[str, int]:
    """Places one at a time, each to whoever has fewest (of equals, to the oldest): (last, has, queue, wants)."""
    heap = [(last, has, queue.oldest, queue.model, wanted) for last, has, queue, wanted in wants if wanted > 0]
    heapq.heapify(heap)
    given: dict[str, int] = {}
    for _ in range(room):
        if not heap:
            break
        last, has, oldest, model, wanted = heapq.heappop(heap)
        given[model] = given.get(model, 0) + 1
        if wanted > 1:
            heapq.heappush(heap, (last, has + 1, oldest, model, wanted - 1))
    return given


class Backoff(msgspec.Struct, frozen=True):
    """A model whose queue refused us: `most` batches of it fit, and not before `until` (monotonic seconds) more are tried.

    `most` is None until somebody has counted what the service holds; nothing is submitted before that.
    """

    until: float
    refusals: int  # since something of the model ended; a try that is not answered yet counts
    most: float | None = None
    step: int = 1  # how many more are tried at once: doubles until one is refused


def refused(previous: Backoff | None, now: float, retry_after_s: float | None) -> Backoff:
    """The wait after a refusal: the service's word, else 5 s doubling to 10 min. Refusals of one burst count once."""
    if previous is not None and now < previous.until:
        until = previous.until if retry_after_s is None else max(previous.until, now + retry_after_s)
        return Backoff(until, previous.refusals)
    count = 1 if previous is None else previous.refusals + 1
    return Backoff(now + (_wait_s(count) if retry_after_s is None else retry_after_s), count)


def counted(backoff: Backoff, held: int) -> Backoff:
    """What the service holds of a model after a refusal is what fits, as far as known."""
    return backoff if backoff.most is not None else msgspec.structs.replace(backoff, most=float(held))


def relieved(previous: Backoff) -> Backoff:
    """Something of the model ended: its place is free, and once all have ended one more is tried."""
    most = None if previous.most is None else previous.most + 1 / max(1.0, previous.most)
    return msgspec.structs.replace(previous, refusals=0, most=most)


def allowed(backoff: Backoff | None, in_flight: int, now: float) -> int | None:
    """How many more creates of a model the service is believed to take now; None: any number."""
    if backoff is None:
        return None
    if backoff.most is None:
        return 0
    room = max(0, int(backoff.most) - in_flight)
    return room if now < backoff.until else max(backoff.step, room)


def submitted(backoff: Backoff | None, in_flight: int, now: float) -> Backoff | None:
    """After creates that made it so many: more than ever fitted is a try, and the next one waits longer and is larger."""
    if backoff is None or backoff.most is None or in_flight <= int(backoff.most):
        return backoff
    count = backoff.refusals + 1
    return Backoff(now + _wait_s(count), count, float(in_flight), backoff.step * 2)


def _wait_s(count: int) -> float:
    return min(600.0, 5.0 * 2.0 ** min(count - 1, 10))


class PollPlan(msgspec.Struct, frozen=True):
    """One tick: list pages to read, single look-ups at most, and how long to wait before."""

    pages: int
    lookups: int
    wait_s: float


def poll_plan(in_flight: int, fixed_s: float | None, idle_s: float) -> PollPlan:
    """One page per 100 batches in flight, and look-ups by id for those that no page shows: 1 in 20, at least 2.

    The adaptive wait follows how long nothing has changed: a tenth of it, from 5 s to 60 s.
    """
    wait = fixed_s if fixed_s is not None else min(60.0, max(5.0, idle_s / 10))
    return PollPlan(pages=-(-in_flight // 100), lookups=max(2, in_flight // 20), wait_s=wait)


def by_model(rows: Sequence[tuple[str, str, int, int]], uploading: Mapping[str, int]) -> list[Queue]:
    """Rows of (model, state, shards, oldest segment) as one queue per model, in the order of the models' names."""
    counts: dict[str, dict[str, int]] = {}
    oldest: dict[str, int] = {}
    for model, state, count, first in rows:
        counts.setdefault(model, {})[state] = count
        if state in ("sealed", "uploaded"):
            oldest[model] = min(first, oldest.get(model, first))
    return [
        Queue(
            model=model,
            sealed=of.get("sealed", 0) - uploading.get(model, 0),
            uploading=uploading.get(model, 0),
            uploaded=of.get("uploaded", 0),
            in_flight=sum(of.get(state.value, 0) for state in lifecycle.IN_FLIGHT),
            held=of.get("submitted", 0),
            oldest=oldest.get(model, 0),
        )
        for model, of in sorted(counts.items())
    ]
