"""Config: everything one run needs to know, composed from the policies of core and checked once.

Built by `cli` and `api`, read by `engine` and `steps`; nothing below them sees it.
"""

from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from streambatch.core.models import ShardLimits
from streambatch.core.profiles import OPENAI, Profile
from streambatch.core.retry import RetryPolicy
from streambatch.core.shaping import Asked
from streambatch.edge.service import Service

if TYPE_CHECKING:  # it brings an event loop along
    from streambatch.edge.feeds import Rows


class ErrorAllowance(msgspec.Struct, frozen=True):
    """`--max-errors`: a number of rows, or a percentage of all rows."""

    rows: int = 0
    percent: float | None = None

    def exceeded(self, errors: int, rows: int) -> bool:
        """Whether `errors` of `rows` rows are more than allowed."""
        if self.percent is None:
            return errors > self.rows
        return errors * 100 > rows * self.percent


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """One visit to one run, resolved: paths absolute, defaults filled, numbers checked. Times in seconds, sizes in bytes."""

    inputs: tuple[str, ...]  # as the user typed them; "-" is stdin
    output: str  # an absolute path, or "-" for stdout
    run_dir: str  # absolute
    service: Service  # with `local`, replaced once the embedded server runs
    command: str  # what to type to go on, shown when a visit ends early
    rows: "Rows | None" = None  # what a program gives in place of `inputs`
    asked: Asked = Asked()  # how rows become requests; resolved at the first row
    limits: ShardLimits = ShardLimits()
    run_id: str | None = None
    local: bool = False
    local_speed: float = 10.0
    local_seed: int = 0
    profile: Profile = OPENAI
    max_batches: int = 64  # in flight at once
    max_transfers: int = 4  # uploads and downloads at once
    workers: int = 2  # 0: jobs run in a thread of this process
    poll_interval_s: float | None = None  # None: adaptive, 5 to 60
    max_attempts: int = 3
    on_bad_row: str = "skip"  # skip | stop
    max_errors: ErrorAllowance = ErrorAllowance()
    pause_on_errors: float = 50.0  # percent of the outcomes; 100: never
    accept_gone: str | None = None  # error | rebuy: the word on paid work that can't be found
    stuck_after_s: float = 7200.0
    adopt_grace_s: float = 120.0
    pool_wait_s: float = 600.0
    once: bool = False
    stop_after_s: float | None = None
    limit: int | None = None
    if_exists: str = "fail"  # fail | skip | overwrite
    remote_files: str = "inputs"  # inputs | keep | delete | expire:SECONDS
    max_spool_bytes: int | None = None  # None: no bound but the disk
    keep_spool: bool = False  # the files of merged rows stay in the spool
    retry: RetryPolicy = RetryPolicy()
    labels: tuple[tuple[str, str], ...] = ()
    # capacities of the engine's queues
    prepared_ahead: int = 2  # segments a worker may be ahead of sealing, times workers
    sealed_ahead: int = 0  # shards sealed and not submitted; 0: max_batches + 2 x max_transfers

    @property
    def expire_s(self) -> int | None:
        """How long the service shall keep each file; None: as long as it does."""
        word, _, seconds = self.remote_files.partition(":")
        return int(seconds) if word == "expire" else None


class Mode(Enum):
    """What a visit to a run is for: `RUN` goes on to the end, `CANCEL` cancels what is in flight and salvages."""

    RUN = "run"
    CANCEL = "cancel"
