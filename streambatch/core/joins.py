"""The jobs of the `merge` command: joining result files with inputs by custom_id. Specs and manifests, like those of `core.jobs`.

The fast way: one `JoinSlice` per result file whose rows lie together in the input. The general way, through disk: rows and
results are indexed by the hash of their ids, each partition is matched, and chunk after chunk of the input is written.
"""

import msgspec


class RowNames(msgspec.Struct, frozen=True):
    """By what rows are called: ready-made requests by `custom_id`, others by `field`, or (None) by their ordinal."""

    ready_made: bool
    field: str | None = None

    @property
    def by_ordinal(self) -> bool:
        return not self.ready_made and self.field is None


class Span(msgspec.Struct, frozen=True):
    """Whole lines of one file. `file` is its index among the inputs, or among the result files; `name` what messages show."""

    file: int
    path: str
    name: str
    start: int
    end: int


class Section(msgspec.Struct, frozen=True):
    """A part of a file that another job wrote, by its number."""

    path: str
    index: int


class Form(msgspec.Struct, frozen=True):
    """What is written: `emit` is `results` or `rows` (then with `column`, and answers as `endpoint` gives them)."""

    emit: str = "results"
    column: str = "answer"
    endpoint: str = "/v1/chat/completions"


# -- the general way


class CountLines(msgspec.Struct, frozen=True, tag="count_lines"):
    """Count the lines of a span."""

    span: Span


class LinesCounted(msgspec.Struct, frozen=True, tag="lines_counted"):
    lines: int


class IndexRows(msgspec.Struct, frozen=True, tag="index_rows"):
    """Write `out`: for each partition (id, line of the span) of each row, then the bad rows."""

    span: Span
    names: RowNames
    first_ordinal: int  # used where rows are called by it
    partitions: int
    out: str


class RowsIndexed(msgspec.Struct, frozen=True, tag="rows_indexed"):
    lines: int
    rows: int


class IndexResults(msgspec.Struct, frozen=True, tag="index_results"):
    """Write `out`: for each partition (id, offset, length, class) of each result line."""

    span: Span
    partitions: int
    out: str


class ResultsIndexed(msgspec.Struct, frozen=True, tag="results_indexed"):
    """`nameless` lines carry no id; `torn` is an unfinished last line."""

    lines: int
    nameless: int
    torn: bool


class MatchPart(msgspec.Struct, frozen=True, tag="match_part"):
    """Match one partition: `rows` by chunk of the input, `results` by span with the index of its file. Write `out` by chunk."""

    rows: tuple[Section, ...]
    results: tuple[tuple[int, Section], ...]
    out: str


class PartMatched(msgspec.Struct, frozen=True, tag="part_matched"):
    """`done_bytes` is what the results of each chunk will take, newlines included."""

    done_bytes: tuple[int, ...]
    duplicate: int
    unknown: int


class WriteChunk(msgspec.Struct, frozen=True, tag="write_chunk"):
    """Write the lines of one chunk of the input to `out` at `at` (made by the caller) and its errors to `err`."""

    span: Span
    lines: int
    first_ordinal: int
    first_line: int
    matched: tuple[Section, ...]
    bad: Section
    results: tuple[str, ...]
    form: Form
    out: str
    at: int
    err: str


class ChunkWritten(msgspec.Struct, frozen=True, tag="chunk_written"):
    out_bytes: int
    err_bytes: int
    done: int
    errors: int
    missing: int
    reasons: tuple[tuple[str, str, int], ...]


# -- the fast way


class JoinSlice(msgspec.Struct, frozen=True, tag="join_slice"):
    """Find the rows of one result file, which lie together, and write to `spill` the places of its successes in their order,
    and what is open afterwards.

    `inputs` are whole files, one after the other; `guess` is a place among their bytes.
    """

    inputs: tuple[Span, ...]
    names: RowNames
    result: Span
    guess: int
    spill: str


class SliceJoined(msgspec.Struct, frozen=True, tag="slice_joined"):
    """Rows `start` to `end` (of all input bytes) are those of the file, or `fits` is False: the general way must be gone.

    `lines` are (input, lines in the slice); `holes` rows of it have no success here, `others` lines of the file are none.
    """

    fits: bool
    start: int = 0
    end: int = 0
    lines: tuple[tuple[int, int], ...] = ()
    done: int = 0
    holes: int = 0
    others: int = 0
    torn: bool = False


JoinJob = CountLines | IndexRows | IndexResults | MatchPart | WriteChunk | JoinSlice
Joined = LinesCounted | RowsIndexed | ResultsIndexed | PartMatched | ChunkWritten | SliceJoined
