"""What crosses to a worker and back: small specs in, small manifests out, never rows.

A job is a pure function of the files that its spec names. Paths are absolute. Every output is written under its name
plus the spec's `suffix`; the parent alone renames it, so a worker that outlives its run can't touch the run that resumes.
"""

import msgspec

from streambatch.core.joins import Joined, JoinJob
from streambatch.core.models import Shaping, ShardLimits, Usage


class Piece(msgspec.Struct, frozen=True):
    """A `Slice` with its file: `name` is what messages show."""

    path: str
    name: str
    start: int
    end: int
    first_line: int
    first_row: int


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """Cut one segment into shard files `PREFIX-K.jsonl`, sidecars `PREFIX-K.ids`, and bad rows in `PREFIX.bad`.

    Ids sidecar: for each line of the shard, row in segment u32, id length u32, id as UTF-8; little-endian.
    Bad rows: JSONL of `BadRow`, in row order; written only if there are some.
    `stop_on_bad` asks to stop at the first bad row (the manifest then carries it); `bare` leaves out sidecars and hashes.
    """

    pieces: tuple[Piece, ...]
    first_ordinal: int
    shaping: Shaping
    limits: ShardLimits
    prefix: str
    suffix: str = ""
    fsync: bool = True
    stop_on_bad: bool = False
    bare: bool = False


class BadRow(msgspec.Struct, frozen=True):
    """A row that can't be sent: `row` in its segment, `line` of its file from 1.

    `skipped` rows (`--null skip`) are no errors: they were asked to be left out.
    """

    row: int
    file: str
    line: int
    reason: str
    custom_id: str | None = None
    skipped: bool = False


class ShardFile(msgspec.Struct, frozen=True):
    """One sealed file: `stem` is the path without ending; `tokens` an estimate of its input tokens."""

    stem: str
    model: str
    rows: int
    bytes: int
    tokens: int
    hash: str


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    """What `Prepare` made. `rows` counts all rows, `rows == sum(shards.rows) + bad + skipped`."""

    source_hash: str  # xxh3-128 over the bytes of all pieces, hex
    lines: int
    rows: int
    bad: int
    skipped: int
    leading_bad: int  # bad rows before the first good one
    first_bad: BadRow | None
    shards: tuple[ShardFile, ...]


class LeftRows(msgspec.Struct, frozen=True):
    """Some of the left rows of one settled (or returned) shard: those of `generation`, `first` <= k < `last` in their order.

    `stem` names its `.jsonl`, `.ids`, and (a remainder) `.origins`; without `.outcome` every row is left.
    `segment` is None for a remainder. Spares up to number `seen` were asked for these rows before.
    """

    stem: str
    segment: int | None
    settled: bool
    generation: int
    first: int
    last: int
    seen: int = 0


class Remainder(msgspec.Struct, frozen=True, tag="remainder"):
    """Write left rows as one shard `STEM.jsonl`, with `STEM.ids` and `STEM.origins` (segment u32, row u32 per line).

    Ends early at a limit, or before a `custom_id` that it holds already: `taken` says how many rows of each source it took.
    With spares, numbered 1 to `spares` in the table `scratch`, all rows of one remainder belong to the same spare, or to none: of
    each source it takes the first rows that belong where the very first does, and `RemainderMade.spare` says where.
    """

    sources: tuple[LeftRows, ...]
    stem: str
    model: str
    max_rows: int
    max_bytes: int
    suffix: str = ""
    fsync: bool = True
    scratch: str = ""
    spares: int = 0


class RemainderMade(msgspec.Struct, frozen=True, tag="remainder_made"):
    shard: ShardFile
    taken: tuple[int, ...]
    segments: tuple[tuple[int, int], ...]  # (segment, rows), ascending
    spare: int = 0  # the number of the batch that ran these rows; 0: none did


class RefusedLine(msgspec.Struct, frozen=True):
    """A line that the service named when it refused a whole batch at validation; `line` counts from 1."""

    line: int
    code: str
    message: str


class Settle(msgspec.Struct, frozen=True, tag="settle"):
    """Hold both result files against the ids of a shard; write `STEM.outcome` (and `STEM.notes` for rows without a result line).

    Outcome record, 24 bytes, little-endian, one per line of the shard: kind u8, class u8, generation u16, file u32,
    offset u64, length u64. `file` indexes (output, error, notes); `generation` is how often the row was executed by now.
    `executed` is False where the batch failed at validation: nothing ran. `user_cancel`: unexecuted rows keep their generation.
    `gone` is the user's word (error | rebuy) for rows without a line, of which the paid results can't be found.
    """

    stem: str
    segment: int | None
    rows: int
    generation: int
    max_attempts: int
    output: str | None
    error: str | None
    executed: bool = True
    user_cancel: bool = False
    refused: tuple[RefusedLine, ...] = ()
    suffix: str = ""
    fsync: bool = True
    gone: str | None = None


class SegmentCount(msgspec.Struct, frozen=True):
    segment: int
    done: int
    errors: int
    left: int


class ErrorKind(msgspec.Struct, frozen=True):
    """Rows of one shard that ended in the same kind of error; `places` are a few of them, as (segment, row in segment)."""

    cls: str
    reason: str
    rows: int
    places: tuple[tuple[int, int], ...]


class Outcomes(msgspec.Struct, frozen=True, tag="outcomes"):
    """What `Settle` found. `left` is (generation of the next try, rows), ascending. `missing` rows were in neither file, or all
    that came of them was malformed; `unknown` lines carry no id of this shard; `duplicate` lines repeat one; `torn` is True for an
    unfinished last line. `found` rows have a result line, whatever it says; `kinds` are the most frequent of the first errors."""

    done: int
    errors: int
    left: tuple[tuple[int, int], ...]
    segments: tuple[SegmentCount, ...]
    usage: Usage
    missing: int
    unknown: int
    duplicate: int
    torn: bool
    found: int
    kinds: tuple[ErrorKind, ...] = ()


class MergePart(msgspec.Struct, frozen=True):
    """A settled shard that touches the segment; parts come oldest generation first, a later one wins."""

    stem: str
    segment: int | None
    output: str | None
    error: str | None


class Merge(msgspec.Struct, frozen=True, tag="merge"):
    """Write one complete segment's answers in input order to `out`, its errors to `err` (the caller's temporary names).

    `emit` is `results` or `rows`; `bad` is the `.bad` file of the segment or None; `source_hash` is checked for `rows`.
    With `awaited`, the stems of its first shards that are not settled, only the rows before the first one that waits are written.
    """

    segment: int
    pieces: tuple[Piece, ...]
    first_ordinal: int
    lines: int
    source_hash: str
    parts: tuple[MergePart, ...]
    bad: str | None
    emit: str
    column: str
    endpoint: str
    id_field: str | None
    out: str
    err: str
    rows: int | None = None  # of the segment, bad and skipped ones included; checked where it is given
    awaited: tuple[str, ...] | None = None


class MergedFiles(msgspec.Struct, frozen=True, tag="merged_files"):
    """What `Merge` wrote. `reasons` counts final errors by (class, reason), most frequent first, at most 20."""

    out_bytes: int
    err_bytes: int
    done: int
    errors: int
    skipped: int
    reasons: tuple[tuple[str, str, int], ...]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """A job that could not be done: `kind` names the error class (`SourceError`, `StorageError`, `bug`)."""

    kind: str
    message: str
    path: str | None = None
    line: int | None = None


Job = Prepare | Remainder | Settle | Merge | JoinJob
Manifest = Prepared | RemainderMade | Outcomes | MergedFiles | Joined
Reply = Prepared | RemainderMade | Outcomes | MergedFiles | Joined | Failed
