"""The fast join: one job per result file finds the rows of the input that lie together in it; this process writes them.

Where a job says that its file is not so simple, or the slices don't make up the input, it gives up: nothing that it wrote counts.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import accumulate

import msgspec

from streambatch.core.joins import JoinSlice, Section, SliceJoined
from streambatch.core.merging import Ended, ended_line
from streambatch.core.naming import RowNamer
from streambatch.core.settling import RowClass
from streambatch.edge.gathering import Spans, gather, read_span
from streambatch.edge.hands import Hands
from streambatch.edge.jobs.locating import MAX_ROW_BYTES, Hole
from streambatch.edge.jobs.sections import opened, read_section
from streambatch.edge.jobs.slicing import Other, unpacked
from streambatch.edge.joinfiles import Workplace
from streambatch.edge.jointask import Tally, Task
from streambatch.edge.openfiles import OpenFiles
from streambatch.edge.placing import Sink
from streambatch.edge.sources import read_lines

MAX_OPEN = 100_000  # rows without a success and lines that are none: they are held in memory
MAX_GAP_BYTES = 16 << 20  # of rows that no slice holds
MAX_ERROR_BYTES = 1 << 20
MAP_BYTES = 34 << 20  # of one result file: reads at random places cost half of a system call there
Progress = Callable[[int, int], None]


class _Piece(msgspec.Struct, frozen=True):
    """A stretch of the input: its lines by input, and its rows without a success."""

    lines: tuple[tuple[int, int], ...]
    holes: list[Hole]


def join_slices(task: Task, place: Workplace, hands: Hands, on_progress: Progress | None) -> Tally | None:
    """Write both files of the workplace; None where the general way must be gone. Raises SourceError, OSError."""
    return _FastJoin(task, place, hands).run(on_progress)


class _FastJoin:
    """All slices of one join, and what is open between them."""

    def __init__(self, task: Task, place: Workplace, hands: Hands) -> None:
        self._task = task
        self._place = place
        self._hands = hands
        self._bases = [*accumulate((span.end - span.start for span in task.inputs), initial=0)]
        self._tally = Tally()
        self._jobs = [*self._plan()]
        self._written: list[tuple[int, int, int]] = []  # first byte of the rows; from and to in OUTPUT
        self._end = 0

    def run(self, on_progress: Progress | None) -> Tally | None:
        if not self._jobs:
            return None
        made = self._slices(on_progress)
        if made is None:
            return None
        pieces = self._pieces(made)
        if pieces is None or not self._write_errors(pieces, made):
            return None
        self._assemble()
        return self._tally

    # -- slices

    def _plan(self) -> Iterator[JoinSlice]:
        """The rows of a file lie about where its share of all bytes is."""
        ends = [*accumulate((span.end for span in self._task.results), initial=0)]
        total = max(1, ends[-1])
        for k, result in enumerate(self._task.results):
            guess = self._bases[-1] * (ends[k] + ends[k + 1]) // (2 * total)
            guess = max(0, min(guess, self._bases[-1] - 1))
            yield JoinSlice(self._task.inputs, self._task.names, result, guess, self._spill(k))

    def _spill(self, number: int) -> str:
        return self._place.path(f"open-{number}")

    def _slices(self, on_progress: Progress | None) -> list[SliceJoined] | None:
        """What the jobs made, or None as soon as one does not fit. The results of each are written as soon as it is known."""
        found: list[SliceJoined] = []
        is_open = 0
        with closing(self._hands.run(self._jobs)) as answers, open(self._place.out, "r+b") as out:
            for made in answers:
                assert isinstance(made, SliceJoined)
                is_open += made.holes + made.others
                if not made.fits or is_open > MAX_OPEN:
                    return None
                self._write(len(found), made, out.fileno())
                found.append(made)
                if on_progress is not None:
                    on_progress(len(found), len(self._jobs))
        return found

    def _write(self, number: int, made: SliceJoined, out: int) -> None:
        """This process writes all slices, one after the other: only one result file is mapped at a time."""
        result = self._task.results[number]
        if made.torn:
            self._tally.torn[result.name] = None
        if made.done:
            spans = Spans(*unpacked(read_section(Section(self._spill(number), 2), bytes)))
            with opened(result.path) as fd:
                end = gather(out, self._end, [fd], spans, map_bytes=MAP_BYTES)
            self._written.append((made.start, self._end, end))
            self._end = end

    # -- what lies where

    def _pieces(self, made: Sequence[SliceJoined]) -> list[_Piece] | None:
        """Slices and the gaps between them, from the first byte of the input to the last; None where they don't fit together."""
        pieces, at = [], 0
        slices = sorted((s.start, s.end, k) for k, s in enumerate(made) if s.done)
        gap_bytes = self._bases[-1] - sum(end - start for start, end, _ in slices)
        if gap_bytes > MAX_GAP_BYTES:
            return None
        for start, end, k in slices:
            if start < at:
                return None
            pieces += [
                self._gap(at, start),
                _Piece(made[k].lines, read_section(Section(self._spill(k), 0), list[Hole])),
            ]
            at = end
        return [*pieces, self._gap(at, self._bases[-1])]

    def _gap(self, start: int, end: int) -> _Piece:
        """Rows that no slice holds: each of them is a hole."""
        namer = RowNamer(self._task.names)
        lines: dict[int, int] = {}
        holes = []
        for which, line in self._lines(start, end):
            name = None if line is None else namer.name(line, 0)
            bad = "the line is too long" if line is None else None if name is not None else namer.fault(line)
            if name is not None or bad is not None:
                text = None if name is None else name.decode()
                holes.append(Hole(which, lines.get(which, 0), sum(lines.values()), text, bad))
            lines[which] = lines.get(which, 0) + 1
        return _Piece(tuple(lines.items()), holes)

    def _lines(self, start: int, end: int) -> Iterator[tuple[int, bytes | None]]:
        for which, span in enumerate(self._task.inputs):
            base = self._bases[which] - span.start
            first, last = max(start - base, span.start), min(end - base, span.end)
            if first < last:
                for chunk in read_lines(span.path, span.name, first, last, max_line_bytes=MAX_ROW_BYTES):
                    yield from ((which, line) for line in chunk.lines)
                    if chunk.long_bytes:
                        yield which, None

    # -- errors

    def _write_errors(self, pieces: Sequence[_Piece], made: Sequence[SliceJoined]) -> bool:
        """A line for each hole; False where a line that is no success has no hole to go to."""
        others = self._others(made)
        if others is None:
            return False
        with OpenFiles([span.path for span in self._task.results]) as files, open(self._place.err, "r+b") as err:
            sink = Sink(err.fileno())
            for row in self._ended(pieces, others, files):
                line = ended_line(row)
                sink.add(msgspec.json.encode(line) + b"\n")
                self._tally.reasons.add(line.class_, line.reason)
                self._tally.errors += 1
                self._tally.missing += line.class_ == RowClass.MISSING.label
            sink.flush()
        self._tally.done = sum(s.done for s in made)
        self._tally.rows = self._tally.done + self._tally.errors
        return not others

    def _others(self, made: Sequence[SliceJoined]) -> dict[str, tuple[int, Other]] | None:
        """By name, the lines that are no success; None where one name has several."""
        others: dict[str, tuple[int, Other]] = {}
        for k, slice_ in enumerate(made):
            for other in read_section(Section(self._spill(k), 1), list[Other]) if slice_.others else []:
                if other.name is None:
                    self._tally.nameless += 1
                elif others.setdefault(other.name, (k, other)) != (k, other):
                    return None
        return others

    def _ended(
        self, pieces: Sequence[_Piece], others: dict[str, tuple[int, Other]], files: OpenFiles
    ) -> Iterator[Ended]:
        """The holes in the order of the input; each takes its line from `others`."""
        ordinal = 0
        first_lines: dict[int, int] = {}
        for piece in pieces:
            for hole in piece.holes:
                k, other = others.pop(hole.name, (0, None)) if hole.name is not None else (0, None)
                yield Ended(
                    ordinal=ordinal + hole.ordinal,
                    file=self._task.inputs[hole.input].name,
                    line=first_lines.get(hole.input, 0) + hole.line + 1,
                    name=hole.name,
                    row_class=RowClass.MISSING if other is None else other.row_class,
                    bad=hole.bad,
                    text=None
                    if other is None
                    else read_span(files[k], other.offset, min(other.length, MAX_ERROR_BYTES)),
                )
            for which, lines in piece.lines:
                ordinal += lines
                first_lines[which] = first_lines.get(which, 0) + lines

    # -- output

    def _assemble(self) -> None:
        """OUTPUT as it must be: nothing to do where the files came in the order of their rows, else copied in that order."""
        order = sorted(self._written)
        if order == self._written:
            return
        scattered = self._place.path("scattered")
        os.rename(self._place.out, scattered)
        os.close(os.open(self._place.out, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
        self._place.append(self._place.out, [(scattered, at, end) for _, at, end in order])
