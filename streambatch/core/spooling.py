"""Room in the spool and on the disk: what may come in under `--max-spool-bytes`, and when a disk is too full to go on.

Pure arithmetic over byte counts. What comes is as large as the largest of its kind so far; while that is unknown, one
comes at a time.
"""

import msgspec

RESERVE_BYTES = 64 << 20  # stays free: journal, status, the end of what is under way
UNKNOWN_RATIO = 2.0  # results to requests
KEPT_S = 30 * 86_400.0  # that services keep result files
WARN_S = 10 * 86_400.0  # before they go


class Room(msgspec.Struct, frozen=True):
    """The spool of one run: bytes that lie there, and bytes that were let in and are still to come. `cap` None: no bound."""

    cap: int | None
    used: int
    promised: int = 0

    def fits(self, need: int) -> bool:
        return self.cap is None or self.used + self.promised + need <= self.cap

    def may_read(self, need: int | None, *, unsealed: int, unmerged: bool) -> bool:
        """Whether one more segment may be read and prepared: whatever its size if it is the oldest there is; of unknown size,
        alone."""
        if self.cap is None or not (unsealed or unmerged):
            return True
        return self.fits(0 if need is None else need) and (need is not None or not unsealed)

    def may_fetch(self, need: int, *, known: bool, fetching: int, in_turn: bool) -> bool:
        """Whether a finished batch may be fetched: always if the oldest unmerged segment waits for it."""
        return in_turn or self.cap is None or (self.fits(need) and (known or not fetching))


def results_bytes(request_bytes: int, ratio: float | None) -> int:
    """What the results of so many bytes of requests take, as far as known."""
    return int(request_bytes * (UNKNOWN_RATIO if ratio is None else ratio))


def needed_free(promised: int, merging: int) -> int:
    """What must be free on the disk to go on: room for what is under way and one merge, and never less than the reserve."""
    return max(RESERVE_BYTES, promised + merging)


def too_full(what: str, free: int, need: int) -> str:
    """The sentence for a disk that is nearly full."""
    return (
        f"The disk that holds {what} is nearly full: {_mib(free)} MiB are free, and {_mib(need)} MiB are kept free so that nothing"
        " is lost. Free some space, then run the same command again; what is in flight goes on at the service."
    )


def _mib(size: int) -> int:
    return size >> 20


def expiring(finished_at: float | None, now: float) -> bool:
    """Whether results that finished then are about to be deleted by the service."""
    return finished_at is not None and now >= finished_at + KEPT_S - WARN_S
