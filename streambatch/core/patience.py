"""How long the service is given to show what it must have, and when what it does not show forbids to buy again. Pure arithmetic."""

import msgspec

from streambatch.core.jobs import Outcomes
from streambatch.core.wire import BatchInfo

PARTS = (
    1 / 16,
    1 / 8,
    1 / 4,
    1 / 2,
    1.0,
    1.0,
)  # of a grace: the waits between looks, three of them after a whole one or more
SMALL_GAP_ROWS, SMALL_GAP_PERCENT = 10, 1


WITHOUT = "without your word: --accept-gone error, or --accept-gone rebuy."
WORD = f"nothing is bought again {WITHOUT}"
LONGEST_WINDOW_S = 7 * 86_400.0  # that a service offers; for one that does not say when a batch expires
LOOKS = 3  # at counted rows that no file holds, a grace before each


class Told(msgspec.Struct, frozen=True):
    """What the service says of a batch's results: where they are, and how many rows it counts that no file of these can hold.

    `gone`: some of them can't be had, and the user's word on that is known.
    """

    output_id: str | None
    error_id: str | None
    hidden: int = 0
    gone: bool = False


class Counted(msgspec.Struct, frozen=True):
    """How many of a batch's rows the service counts as processed. `whole`: the batch has lines of rows beside those of the shard
    that is settled, and they are held against the count, too."""

    processed: int
    rows: int
    whole: bool = False

    def held(self, made: Outcomes) -> int:
        """The lines that the files have of these rows."""
        return made.found + (made.unknown + made.duplicate if self.whole else 0)

    def gap(self, held: int) -> int:
        return gap(self.processed, self.rows, held)


def waits(grace_s: float) -> tuple[float, ...]:
    """Seconds between the looks at what is not there yet; nearly three graces in all."""
    return tuple(part * grace_s for part in PARTS)


def told(batch: BatchInfo, before: Told) -> Told:
    """What one more look says. An id that was told once stays: an answer that leaves it out takes nothing back."""
    output_id = before.output_id if batch.output_file_id is None else batch.output_file_id
    error_id = before.error_id if batch.error_file_id is None else batch.error_file_id
    hidden = 0 if output_id else batch.completed
    return Told(output_id, error_id, hidden if output_id or error_id else hidden + batch.failed)


def forbids(hidden: int, rows: int) -> bool:
    """Whether so many counted rows without a result are no slip, but results that must not be bought again unasked."""
    return hidden > SMALL_GAP_ROWS and hidden * 100 > rows * SMALL_GAP_PERCENT


def gap(counted: int, rows: int, found: int) -> int:
    """How many rows are counted as processed and have no line. Some services count failed rows twice: no more than all count."""
    return max(0, min(counted, rows) - found)


def overdue(batch: BatchInfo, now: float, stuck_after_s: float, asked_s: float | None) -> bool:
    """Whether a batch that has not ended is so long past its end, by the service's clock `now`, or was asked to cancel so many
    seconds ago, that nobody waits for it any more."""
    end = batch.created_at + LONGEST_WINDOW_S if batch.expires_at is None else batch.expires_at
    return now >= end + stuck_after_s or (asked_s is not None and asked_s >= stuck_after_s)


def lost_wait_s(losses: int) -> float:
    """How long after the service could not find a shard's file it is sent again: at once, then 10 s doubling to 10 min."""
    return 0.0 if losses <= 1 else min(600.0, 10.0 * 2.0 ** min(losses - 2, 10))
