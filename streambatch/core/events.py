"""What the journal can say: one frozen struct per kind of event, tagged by its name.

An event is a fact that has happened, or an intent that goes before an effect. Folding the events in order gives the state.
"""

import msgspec

from streambatch.core.jobs import BadRow, ErrorKind, RefusedLine, SegmentCount
from streambatch.core.models import InputFile, Segment, Settings, Shard, Usage


class Event(msgspec.Struct, frozen=True, tag=True):
    """Any entry of the journal."""


class ShardEvent(Event, frozen=True):
    """An event of one shard, named by `shard`."""

    shard: str


# -- the run


class Started(Event, frozen=True):
    """The run began: what every resume must agree with. `server_date` is the service's clock, unix seconds."""

    run_id: str
    settings: Settings
    inputs: tuple[InputFile, ...]
    server_date: float
    known_id: bool  # the user named the run: the list is swept before anything is bought


class Opened(Event, frozen=True):
    """A process took the run; the settings it may change are in `options` (JSON). `exclusive`: it keeps the journal to itself."""

    host: str
    boot_id: str
    inode: int
    options: str
    inputs: tuple[InputFile, ...]
    output: str
    command: str
    exclusive: bool = False


class Swept(Event, frozen=True):
    """The list was read as far as this run can reach, a grace passed, and it was read again: what is not recorded does not exist.

    Where the run directory stood meanwhile: one that stands elsewhere later waits once more.
    """

    host: str = ""
    inode: int = 0


class Exhausted(Event, frozen=True):
    """The inputs, as they were then, were read to their end, or to `--limit` (`limited`): `ordinals` lines in all."""

    ordinals: int
    limited: bool
    inputs: tuple[InputFile, ...] = ()


class Merged(Event, frozen=True):
    """A segment's answers are durable in the sinks, which now end at these offsets."""

    segment: int
    output_end: int
    errors_end: int
    done: int
    errors: int
    skipped: int
    reasons: tuple[tuple[str, str, int], ...]


class Publishing(Event, frozen=True):
    """Both partials are complete, with these sizes and xxh3-128 hashes, and are about to get their final names."""

    output_bytes: int
    output_hash: str
    errors_bytes: int
    errors_hash: str


class Published(Event, frozen=True):
    """Both files stand under their final names, as `Publishing` said."""

    exit_code: int


class Reopened(Event, frozen=True):
    """A published run goes on: both files were copied back as partials."""


# -- making shards


class PoolTake(msgspec.Struct, frozen=True):
    """Left rows `first` <= k < `last` of one parent, in their order, that a remainder carries from now on."""

    parent: str
    generation: int
    first: int
    last: int


class SegmentSealed(Event, frozen=True):
    """A segment was cut; its shards are durable. `bad` says that a file of bad rows exists."""

    segment: Segment
    source_hash: str
    rows: int
    bad: int
    skipped: int
    first_bad: BadRow | None
    shards: tuple[Shard, ...]


class RemainderSealed(Event, frozen=True):
    """Left rows of the pool became a shard; `segments` is (segment, rows), ascending."""

    made: Shard
    takes: tuple[PoolTake, ...]
    segments: tuple[tuple[int, int], ...]
    seen: int = 0  # the highest number of a spare that was asked for its rows


# -- one shard


class Uploaded(ShardEvent, frozen=True):
    """The provider has the file; `created_at` is its clock, and so is `expires_at`, where it says when the file goes."""

    file_id: str
    created_at: float
    expires_at: float | None = None


class InputLost(ShardEvent, frozen=True):
    """The provider no longer has the input file; no batch ran it."""

    reason: str


class Intended(ShardEvent, frozen=True):
    """A create with this number is about to be sent; `alone`: nothing else of its model is at the service."""

    create: int
    alone: bool = False


class Doubted(ShardEvent, frozen=True):
    """Nobody can say whether the create took effect."""

    create: int
    reason: str


class Absent(ShardEvent, frozen=True):
    """The list was swept after a full grace: the doubted create did not take effect."""

    create: int


class Submitted(ShardEvent, frozen=True):
    """A batch runs this shard: our create's answer, or a batch found by its tag or input file."""

    batch_id: str
    file_id: str | None
    create: int
    found: bool = False


class Refused(ShardEvent, frozen=True):
    """The service would not take it now; the uploaded file stays. `limit` is the figure it named, in tokens; `alone`: its queue
    was full though nothing of ours was in it."""

    reason: str
    limit: int | None = None
    alone: bool = False


class CancelAsked(ShardEvent, frozen=True):
    """We are about to ask the service to cancel its batch."""

    batch_id: str


class BatchFinished(ShardEvent, frozen=True):
    """The batch reached a terminal state, confirmed by id."""

    batch_id: str
    status: str
    output_id: str | None
    error_id: str | None
    total: int
    completed: int
    failed: int
    refused: tuple[RefusedLine, ...] = ()


class Admitted(ShardEvent, frozen=True):
    """Its results may be fetched now."""


class Downloaded(ShardEvent, frozen=True):
    """Both result files are here, synced, as `STEM.output` and `STEM.error`, where the batch has them; under these ids, where they
    were not known before."""

    output: bool
    error: bool
    output_id: str | None = None
    error_id: str | None = None
    gone: str | None = (
        None  # the user's word (error | rebuy), where some of them can't be had: what is missing stands as empty
    )


class GivenUp(ShardEvent, frozen=True):
    """Nothing of its batch can be had, and maybe it was paid: the rows end as the word `gone` (error | rebuy) says."""

    batch_id: str | None
    reason: str
    gone: str


class Settled(ShardEvent, frozen=True):
    """Every row has an outcome record; `left` is (generation, rows) and goes to the pool. `kinds` tells of its errors."""

    done: int
    errors: int
    left: tuple[tuple[int, int], ...]
    segments: tuple[SegmentCount, ...]
    usage: Usage
    missing: int
    unknown: int
    duplicate: int
    kinds: tuple[ErrorKind, ...] = ()


class Returned(ShardEvent, frozen=True):
    """The whole shard goes back to the pool, to be cut into shards of at most `max_rows`; nothing of it ran."""

    max_rows: int
    reason: str


class Found(Event, frozen=True):
    """A batch of this run that the journal did not know; `shard` is the name in its tag."""

    batch_id: str
    shard: str
    create: int
    file_id: str | None
    hash: str
    rows: str  # the metadata `streambatch-rows`
    status: str
    created_at: float
    generation: int = 0


class SpareRead(Event, frozen=True):
    """A found batch that no shard runs: which lines it has stands in the scratch table, under this number. `missing`: so many rows
    of it may have been billed, and by the user's word are bought again, for nobody can say which they are."""

    batch_id: str
    number: int
    rows: int
    missing: int = 0


class SpareEnded(Event, frozen=True):
    """Such a batch has ended, confirmed by id; its results may be taken for rows that wait in the pool."""

    batch_id: str
    status: str
    output_id: str | None
    error_id: str | None


class SurplusCancelled(Event, frozen=True):
    """We are about to ask the service to cancel a found batch, because another one runs the same shard, or the user cancels
    the run."""

    batch_id: str
    shard: str


class Deleted(Event, frozen=True):
    """A file of this run is no longer at the provider: we deleted it, or (`gone`) it was not there. `kind`: input, output or
    error; `shard` is the name that its batch or its upload carries."""

    file_id: str
    kind: str
    shard: str
    gone: bool


AnyEvent = (
    Started | Opened | Swept | Exhausted | Merged | Publishing | Published | Reopened | SegmentSealed | RemainderSealed | Uploaded
    | InputLost | Intended | Doubted | Absent | Submitted | Refused | CancelAsked | BatchFinished | Admitted | Downloaded | GivenUp
    | Settled | Returned | Found | SpareRead | SpareEnded | SurplusCancelled | Deleted
)  # fmt: skip
