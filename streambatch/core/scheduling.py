"""Who goes next: how many shards may be uploaded ahead, submitted now, sealed ahead, and when to look again.

Pure arithmetic over counts; the engine asks it at every turn.
"""

import msgspec


class Capacity(msgspec.Struct, frozen=True):
    """The run's bounds: batches in flight, transfers at once, shards that may wait for a submit."""

    max_batches: int
    max_transfers: int
    sealed_ahead: int

    def may_seal(self, waiting: int) -> bool:
        """Whether a fresh segment may be sealed while `waiting` shards wait for a submit."""
        return waiting < self.sealed_ahead

    def uploads(self, uploaded: int, uploading: int) -> int:
        """How many more uploads may start: ahead of the submits, but not all of the run."""
        return max(0, min(self.max_transfers - uploading, 2 * self.max_transfers - uploaded - uploading))

    def submits(self, in_flight: int) -> int:
        """How many more batches may be created now."""
        return max(0, self.max_batches - in_flight)

    def collects(self, collecting: int) -> int:
        """How many more finished batches may be fetched and settled now."""
        return max(0, 2 * self.max_transfers - collecting)


class Backoff(msgspec.Struct, frozen=True):
    """A model whose queue refused us: no submit before `until` (monotonic seconds), unless something of it ended."""

    until: float
    refusals: int


def refused(previous: Backoff | None, now: float, retry_after_s: float | None) -> Backoff:
    """The wait after one more refusal: the service's word, else 5 s doubling to 10 min."""
    count = 1 if previous is None else previous.refusals + 1
    wait = retry_after_s if retry_after_s is not None else min(600.0, 5.0 * 2 ** (count - 1))
    return Backoff(now + wait, count)


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
