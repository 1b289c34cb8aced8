"""The nouns of a run: slices, segments, shards, their states, and the settings that fix how input is cut.

Frozen values only; nothing here reads, writes or decides.
"""

from enum import Enum

import msgspec

from streambatch.core.profiles import Dialect


class ShardState(Enum):
    """Where a shard stands. The arrows between the states are `core.lifecycle.TRANSITIONS`."""

    SEALED = "sealed"  # on disk, not at the provider
    UPLOADED = "uploaded"  # waits for the scheduler
    INTENDED = "intended"  # a create may be on its way
    DOUBTED = "doubted"  # nobody knows whether that create took effect
    SUBMITTED = "submitted"  # the provider runs it; waits for the poller
    FINISHED = "finished"  # terminal at the provider; waits for the collector
    ADMITTED = "admitted"  # its results may be fetched
    DOWNLOADED = "downloaded"  # its result files are here
    SETTLED = "settled"  # every row is done, an error, or left (and then in the pool)
    RETURNED = "returned"  # given back whole to the pool; this shard runs no more


class Slice(msgspec.Struct, frozen=True):
    """A byte range of one input that holds whole lines: `input` indexes the run's inputs."""

    input: int
    start: int
    end: int
    first_line: int  # line of the file, from 0, at `start`
    first_row: int  # row in the segment, from 0, of that line


class Segment(msgspec.Struct, frozen=True):
    """A run of consecutive lines: the unit of preparing, ordering, merging and fingerprinting.

    `lines` counts lines of white space too: they use up an ordinal. A row in a segment is
    `ordinal - first_ordinal`.
    """

    index: int
    slices: tuple[Slice, ...]
    first_ordinal: int
    lines: int
    bytes: int

    @property
    def end(self) -> tuple[int, int]:
        """(input index, byte offset) after the last line."""
        last = self.slices[-1]
        return last.input, last.end


class Shard(msgspec.Struct, frozen=True):
    """One sealed file of requests for one model, and where it stands.

    `name` is unique in the run: `SSSSSS-K` for shard K of segment S, `rNNNNNN` for a remainder.
    `generation` counts how often its rows were executed before. Paths are names in the spool folder, derived from `name`.
    """

    name: str
    segment: int | None  # None: a remainder
    first_segment: int  # the oldest and the newest segment it touches
    last_segment: int
    generation: int
    model: str
    rows: int
    bytes: int
    tokens: int
    hash: str  # xxh3-128 of the file, hex
    state: ShardState = ShardState.SEALED
    file_id: str | None = None
    create: int = 0  # the highest create number ever intended; never reused
    batch_id: str | None = None
    status: str | None = None  # the provider's word when it finished
    output_id: str | None = None
    error_id: str | None = None
    renew_at: float | None = None  # the provider's clock: from then on its file is uploaded again before a create
    cancel_asked: bool = False  # by us, before its terminal state
    refusals: int = 0
    alone: bool = False  # nothing else of its model was at the service when its last create was intended
    refused_alone: int = 0
    gone: str | None = None  # the word (error | rebuy) on rows of which paid results can't be had


class ShardLimits(msgspec.Struct, frozen=True):
    """What one batch input file may hold (OpenAI: 50,000 requests, 209,715,200 bytes), and the longest input line."""

    max_requests: int = 50_000
    max_bytes: int = 209_715_200
    max_line_bytes: int = 32 << 20


class Shaping(msgspec.Struct, frozen=True):
    """How a row becomes a request. Fixed at the first row; its hash travels with every batch.

    `params` maps a body field to its JSON text. Without `ready_made`, the body is `model`, the messages
    (from `system` and `prompt`, or the row's own `messages`), and `params`.
    """

    ready_made: bool
    endpoint: str = "/v1/chat/completions"
    model: str | None = None
    system: str | None = None
    prompt: str | None = None
    params: tuple[tuple[str, str], ...] = ()
    id_field: str | None = None
    null: str = "error"  # error | empty | skip
    column: str | None = None  # with `rows` output: the field a row must not have yet


class InputFile(msgspec.Struct, frozen=True):
    """One input as it was when last looked at. `path` is absolute; messages show `name`, as the user typed it.

    `kind`: plain | gzip | stdin | rows. All but plain files are *serial*: read from front to back, at offsets of their
    (decompressed) content. stdin and rows are *streams*: they can't be read again, and have no path, size or time.
    """

    name: str
    path: str
    size: int
    mtime_ns: int
    kind: str = "plain"

    @property
    def serial(self) -> bool:
        return self.kind != "plain"

    @property
    def stream(self) -> bool:
        return self.kind in ("stdin", "rows")


class Settings(msgspec.Struct, frozen=True):
    """What a run can't change once it has begun: journaled in `Started`, compared on every resume."""

    base_url: str
    organization: str | None
    project: str | None
    profile: str
    shaping: Shaping
    limits: ShardLimits
    emit: str  # results | rows
    column: str
    dialect: Dialect = Dialect()


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the service counted them, over the rows that reported them."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
        )
