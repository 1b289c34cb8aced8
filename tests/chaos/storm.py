"""What the service of a simulated schedule does wrong: drawn from one seed, told to the twin by its hooks, and counted.

Every draw is a pure function of the seed and of what it is about, so that asking twice gives the same answer.
"""

import random
from collections import Counter
from collections.abc import Callable

import anyio
import msgspec

from streambatch.core.wire import BatchError, BatchInfo, FileInfo
from streambatch.errors import ApiError
from tests.twins.api import Call, Row

CALM_AFTER = 40  # batches: later ones meet no fault, so that every run can end
FULL = BatchError("token_limit_exceeded", "Enqueued token limit reached for m.")
BILLING = BatchError("billing_hard_limit_reached", "Billing hard limit has been reached.")
NO_FILE = BatchError("invalid_request", "Cannot find file f.", None, "file_id")
ODD = BatchError("invalid_json_line", "This line is not parseable as valid JSON.")
WRONG = BatchError("missing_required_parameter", "Missing required parameter: 'messages'.", None, "body.messages")
OK, FAILING, REFUSED, VANISHING, GARBLED = "ok", "500, then an answer", "400", "in neither file", "line corrupted"


class Climate(msgspec.Struct, frozen=True):
    """How often what happens: probabilities per call, batch or row, and times in seconds."""

    # answers
    lost_creates: float = 0.0
    lost: float = 0.0
    refused: float = 0.0
    lag_s: float = 0.0  # of the list
    page_rows: int = 100
    denied: float = 0.0  # a young batch is "not found" by its id, for a while
    clock_off_s: float = 0.0
    # batches
    expiring: float = 0.0
    console: float = 0.0  # somebody cancels it there
    full: float = 0.0
    billing: float = 0.0
    no_file: float = 0.0
    odd: float = 0.0
    stuck: float = 0.0
    cancelling_s: float = 0.0
    # rows
    failing: float = 0.0
    bad: float = 0.0
    wrong: float = 0.0
    vanishing: float = 0.0
    garbled: float = 0.0
    # files
    late: float = 0.0  # "not found" for a while
    nameless: float = 0.0  # the batch does not name them for a while
    partial: float = 0.0  # they hold the first half for a while
    short: float = 0.0  # a download is cut
    late_s: float = 100.0
    # what is done to the engine, between visits or in them
    known: bool = False  # the run has an id that the user knows
    deleted: float = 0.0
    restored: float = 0.0
    disk: float = 0.0  # a write to the journal fails
    kill_s: float = 600.0
    killed_writing: float = 0.25
    cancelled: float = 0.05
    # how the user runs it
    batches: int = 8
    rows: int = 24
    max_requests: int = 4
    remote_files: str = "inputs"
    attempts: int = 30


class Storm:
    """The faults of one schedule. `over` says whether the run is finished: what hits it then does not count."""

    def __init__(self, seed: int, climate: Climate) -> None:
        self.climate = climate
        self.over: Callable[[], bool] = lambda: False
        self.calm = False
        self.fired: Counter[str] = Counter()
        self.operations = 0  # of the engine's disk, as a measure of how long it has tried
        self.billed = 0  # executions of rows of which the service lost the result
        self._seed = seed
        self._chance = random.Random(f"weather {seed}")
        self._ended: dict[str, float] = {}
        self._asked: Counter[tuple[str, str]] = Counter()

    def note(self, kind: str) -> None:
        if not self.calm and not self.over():
            self.fired[kind] += 1

    def _draw(self, what: str, rate: float, *key: object) -> bool:
        return bool(rate) and random.Random(f"{self._seed}/{what}/{key}").random() < rate

    def _early(self, batch_id: str) -> bool:
        return int(batch_id.rpartition("-")[2]) <= CALM_AFTER

    # -- calls

    async def fault(self, call: Call) -> None:
        """Answers lost after the effect, and refusals before it."""
        if self.calm:
            return
        await anyio.sleep(self._chance.uniform(0.0, 2.0))
        creates = call.name == "create_batch"
        rate = self.climate.lost_creates if creates else self.climate.lost
        if call.after and self._chance.random() < rate:
            self.note(f"answer lost: {call.name}")
            raise ApiError("The connection was cut.", retryable=True, maybe_done=creates)
        if not call.after and self._chance.random() < self.climate.refused:
            self.note(f"refused before its effect: {call.name}")
            raise ApiError("The service is overloaded (503).", status=503, retryable=True, maybe_done=creates)
        if call.name == "get_batch" and not call.after:
            self._deny(call.subject)

    def _deny(self, batch_id: str) -> None:
        self._asked["get", batch_id] += 1
        if self._asked["get", batch_id] <= 3 and self._draw("denied", self.climate.denied, batch_id):
            self.note("batch denied by its id for a while")
            raise ApiError(f"The service does not know the batch {batch_id} (404).", status=404)

    # -- batches

    def duration(self, batch: BatchInfo) -> float:
        return random.Random(f"{self._seed}/{batch.id}").lognormvariate(4.5, 1.0)

    def refuse(self, batch: BatchInfo) -> BatchError | None:
        if not self._early(batch.id):
            return None
        climate = self.climate
        kinds = (
            ("queue full", climate.full, FULL),
            ("billing stop", climate.billing, BILLING),
            ("input file missing", climate.no_file, NO_FILE),
            (
                "line that is not named",
                0.0 if "/r" in batch.metadata["streambatch"] else climate.odd,
                ODD,
            ),  # one row alone is lost
        )
        for what, rate, error in kinds:
            if self._draw(what, rate, batch.id):
                self.note(f"batch failed: {what}")
                return error
        return None

    def expire_at(self, batch_id: str) -> float | None:
        return self._part("expiring", self.climate.expiring, "batch expires half done", batch_id)

    def cancelled_at(self, batch_id: str) -> float | None:
        return self._part("console", self.climate.console, "batch cancelled by someone else half done", batch_id)

    def stuck(self, batch_id: str) -> tuple[float, bool] | None:
        part = self._part("stuck", self.climate.stuck, "batch stuck in a state", batch_id)
        return None if part is None else (part, self._draw("deaf", 0.3, batch_id))

    def _part(self, what: str, rate: float, kind: str, batch_id: str) -> float | None:
        if not self._early(batch_id) or not self._draw(what, rate, batch_id):
            return None
        self.note(kind)
        return 0.6

    def view(self, batch: BatchInfo) -> BatchInfo:
        """What a look at a batch shows: one that has ended may not name its files at first."""
        if not batch.terminal or not (batch.output_file_id or batch.error_file_id):
            return batch
        since = self._ended.setdefault(batch.id, anyio.current_time())
        hides = self._early(batch.id) and self._draw("nameless", self.climate.nameless, batch.id)
        if not hides or anyio.current_time() - since >= self.climate.late_s:
            return batch
        self._once("result files named late", batch.id)
        return msgspec.structs.replace(batch, output_file_id=None, error_file_id=None)

    def _once(self, kind: str, key: str) -> None:
        self._asked[kind, key] += 1
        if self._asked[kind, key] == 1:
            self.note(kind)

    # -- rows

    def outcome(self, custom_id: str, executed: int) -> str:
        """What an execution of a row gives."""
        climate = self.climate
        if self._draw("bad", climate.bad, custom_id):
            return REFUSED
        if executed >= 2:
            return OK
        for what, rate in ((FAILING, climate.failing), (VANISHING, climate.vanishing), (GARBLED, climate.garbled)):
            if self._draw(what, rate, custom_id, executed):
                return what
        return OK

    def executions_of(self, custom_id: str) -> int:
        """How often a row must run until the word on it is final."""
        if self.is_wrong(custom_id):
            return 0
        return next(n for n in range(3) if self.outcome(custom_id, n) in (OK, REFUSED)) + 1

    def status_of(self, row: Row) -> int | None:
        outcome = self.outcome(row.custom_id, row.executed)
        if outcome != OK:
            self.note(f"row: {outcome}")
        self.billed += outcome in (VANISHING, GARBLED)
        return {FAILING: 500, REFUSED: 400, VANISHING: None}.get(outcome, 200)

    def line_of(self, row: Row, line: bytes) -> bytes:
        return line[: len(line) // 2] + b"\n" if self.outcome(row.custom_id, row.executed) == GARBLED else line

    def is_wrong(self, custom_id: str) -> bool:
        return self._draw("wrong", self.climate.wrong, custom_id)

    def is_bad(self, custom_id: str) -> bool:
        """Whether it ends in error, whatever is done."""
        return self.is_wrong(custom_id) or self._draw("bad", self.climate.bad, custom_id)

    def wrong(self, custom_id: str) -> BatchError | None:
        if not self.is_wrong(custom_id):
            return None
        self.note("batch failed: one bad line")
        return WRONG

    # -- files

    def content(self, call: str, info: FileInfo, data: bytes) -> bytes:
        """What a call sees of a result file."""
        if not info.filename.startswith("batch-") or self.calm:
            return data
        climate, age_s = self.climate, anyio.current_time() - self._ended.setdefault(info.id, anyio.current_time())
        if age_s < climate.late_s and self._draw("late", climate.late, info.id):
            self._once("result file late", info.id)
            raise ApiError(f"The service does not know the file {info.id} (404).", status=404)
        if age_s < climate.late_s and self._draw("partial", climate.partial, info.id):
            self._once("result file incomplete at first", info.id)
            return data[: data.rfind(b"\n", 0, len(data) // 2) + 1]
        self._asked[call, info.id] += 1
        if call == "download" and self._asked[call, info.id] == 1 and self._draw("short", climate.short, info.id):
            self.note("download cut short")
            return data[: len(data) * 2 // 3]
        return data


# -- climates


MIXED = "mixed"


def climate(seed: int) -> tuple[str, Climate]:
    """The climate of a seed, and its name: every other seed mixes what it draws, the others go through those with a name."""
    if seed % 2 == 0:
        return MIXED, mixed(random.Random(f"climate {seed}"))
    name = NAMES[seed // 2 % len(NAMES)]
    return name, NAMED[name]


def seeds(name: str, many: int) -> list[int]:
    """The first seeds of a climate."""
    first, step = (0, 2) if name == MIXED else (2 * NAMES.index(name) + 1, 2 * len(NAMES))
    return [first + k * step for k in range(many)]


def mixed(chance: random.Random) -> Climate:
    """Some of everything: each kind is off in half of the schedules or more."""

    def some(*rates: float) -> float:
        return chance.choice((*(0.0 for _ in rates), *rates))

    known, copied = chance.random() < 0.4, chance.random() < 0.4
    stuck = not known and not copied and chance.random() < 0.5  # a spare that never ends is waited for
    return Climate(
        lost_creates=some(0.1, 0.3),
        lost=some(0.05, 0.15),
        refused=some(0.05, 0.15),
        lag_s=some(30.0, 100.0),
        page_rows=chance.choice((3, 100)),
        denied=some(0.2),
        clock_off_s=some(-18_000.0, 18_000.0),
        expiring=some(0.2, 0.5),
        console=some(0.2, 0.4),
        full=some(0.2),
        billing=some(0.1),
        no_file=some(0.1),
        odd=some(0.1),
        stuck=some(0.1, 0.2) if stuck else 0.0,
        cancelling_s=some(60.0),
        failing=some(0.2),
        bad=some(0.1),
        wrong=some(0.05),
        vanishing=some(0.1),
        garbled=some(0.1),
        late=some(0.3),
        nameless=some(0.3),
        partial=some(0.3),
        short=some(0.3),
        late_s=chance.choice((20.0, 100.0, 250.0)),
        known=known,
        deleted=0.3 if known else 0.0,
        restored=0.3 if copied else 0.0,
        disk=some(0.1),
        kill_s=chance.choice((60.0, 300.0, 1200.0)),
        killed_writing=chance.choice((0.1, 0.4)),
        cancelled=some(0.1),
        batches=chance.choice((1, 3, 8)),
        rows=chance.choice((12, 20, 30)),
        max_requests=chance.choice((3, 5)),
        remote_files=chance.choice(("inputs", "keep", "inputs" if known or copied else "delete")),  # or they are gone
    )


NAMED = {
    "doubts": Climate(lost_creates=0.4, lag_s=100.0, kill_s=60.0, killed_writing=0.5, page_rows=3),
    "lost directory": Climate(
        page_rows=3, known=True, deleted=0.5, lag_s=100.0, kill_s=250.0, failing=0.3, vanishing=0.05, max_requests=3
    ),
    "old copies": Climate(restored=0.6, lag_s=100.0, kill_s=120.0, killed_writing=0.5, max_requests=3),
    "half done": Climate(expiring=0.4, console=0.4, failing=0.3, odd=0.1, cancelled=0.15, attempts=30),
    "slow results": Climate(
        late=0.3, nameless=0.4, partial=0.4, late_s=500.0, rows=50, max_requests=25, short=0.3, kill_s=1200.0
    ),
    "refusals": Climate(full=0.2, billing=0.1, no_file=0.1, odd=0.1, wrong=0.04, bad=0.05, attempts=2, cancelled=0.2),
    "stuck": Climate(stuck=0.3, clock_off_s=-18_000.0, cancelling_s=60.0, kill_s=2400.0, rows=12, batches=3),
    "broken disk": Climate(disk=0.3, killed_writing=0.7, rows=30, max_requests=3, remote_files="delete"),
}
NAMES = tuple(NAMED)
