"""The general join: rows and results in any order, matched partition by partition through files beside OUTPUT.

Composes the jobs of `core.joins`; memory is that of one job per worker, whatever the sizes.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TypeVar

from streambatch.core.jobs import Job
from streambatch.core.joins import (
    ChunkWritten,
    CountLines,
    IndexResults,
    IndexRows,
    LinesCounted,
    MatchPart,
    PartMatched,
    ResultsIndexed,
    RowsIndexed,
    Section,
    Span,
    WriteChunk,
)
from streambatch.edge.hands import Hands
from streambatch.edge.joinfiles import Workplace, chunks_of
from streambatch.edge.jointask import Tally, Task

ROWS_PER_PARTITION = 50_000
MAX_PARTITIONS = 4096
SAMPLE_BYTES = 64 << 10

T = TypeVar("T")
Progress = Callable[[int, int], None]


def join_on_disk(task: Task, place: Workplace, hands: Hands, on_progress: Progress | None) -> Tally:
    """Write both files of the workplace. Raises SourceError, OSError."""
    return _DiskJoin(task, place, hands, on_progress).run()


class _DiskJoin:
    """One join, phase by phase."""

    def __init__(self, task: Task, place: Workplace, hands: Hands, on_progress: Progress | None) -> None:
        self._task = task
        self._place = place
        self._hands = hands
        self._on_progress = on_progress
        self._chunks = [*chunks_of(task.inputs)]
        self._spans = [*chunks_of(task.results)]
        self._partitions = _partitions((*task.inputs, *task.results))
        self._jobs = 2 * len(self._chunks) + len(self._spans) + self._partitions
        self._done = 0
        self._tally = Tally()

    def run(self) -> Tally:
        rows = self._index()
        sizes = self._match()
        self._write(rows, sizes)
        return self._tally

    def _each(self, jobs: Iterable[Job], kind: type[T]) -> Iterator[T]:
        for made in self._hands.run(jobs):
            assert isinstance(made, kind)
            self._done += 1
            if self._on_progress is not None:
                self._on_progress(self._done, self._jobs)
            yield made

    # -- phases

    def _index(self) -> list[RowsIndexed]:
        firsts = self._first_ordinals()
        jobs = (
            IndexRows(span, self._task.names, first, self._partitions, self._path("rows", k))
            for k, (span, first) in enumerate(zip(self._chunks, firsts, strict=True))
        )
        rows = [*self._each(jobs, RowsIndexed)]
        results = (IndexResults(span, self._partitions, self._path("results", k)) for k, span in enumerate(self._spans))
        for span, made in zip(self._spans, self._each(results, ResultsIndexed), strict=True):
            self._tally.nameless += made.nameless
            if made.torn:
                self._tally.torn[span.name] = None
        self._tally.rows = sum(made.rows for made in rows)
        return rows

    def _first_ordinals(self) -> Sequence[int]:
        """Of each chunk, where rows are called by their ordinal."""
        if not self._task.names.by_ordinal:
            return [0] * len(self._chunks)
        self._jobs += len(self._chunks)
        counted = self._each((CountLines(span) for span in self._chunks), LinesCounted)
        return [*accumulate((made.lines for made in counted), initial=0)][:-1]

    def _match(self) -> list[int]:
        """What the results of each chunk will take."""
        jobs = (
            MatchPart(
                tuple(Section(self._path("rows", c), part) for c in range(len(self._chunks))),
                tuple((span.file, Section(self._path("results", k), part)) for k, span in enumerate(self._spans)),
                self._path("matched", part),
            )
            for part in range(self._partitions)
        )
        sizes = [0] * len(self._chunks)
        for made in self._each(jobs, PartMatched):
            sizes = [a + b for a, b in zip(sizes, made.done_bytes, strict=True)]
            self._tally.duplicate += made.duplicate
            self._tally.unknown += made.unknown
        for k in range(len(self._spans)):
            os.unlink(self._path("results", k))
        return sizes

    def _write(self, rows: Sequence[RowsIndexed], sizes: Sequence[int]) -> None:
        """All chunks: results straight to their places; rows and errors in pieces, put together in order."""
        in_place = self._task.form.emit == "results"
        jobs = self._write_jobs(rows, [*accumulate(sizes, initial=0)] if in_place else None)
        for k, made in enumerate(self._each(jobs, ChunkWritten)):
            if not in_place:
                self._place.append(self._place.out, [(self._path("out", k), 0, made.out_bytes)])
                os.unlink(self._path("out", k))
            self._place.append(self._place.err, [(self._path("err", k), 0, made.err_bytes)])
            for name in ("err", "rows"):
                os.unlink(self._path(name, k))
            self._count(made)

    def _write_jobs(self, rows: Sequence[RowsIndexed], places: Sequence[int] | None) -> Iterator[Job]:
        ordinal = 0
        line: dict[int, int] = {}
        for k, (span, made) in enumerate(zip(self._chunks, rows, strict=True)):
            out = self._place.out if places is not None else self._path("out", k)
            if places is None:
                os.close(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
            yield WriteChunk(
                span=span,
                lines=made.lines,
                first_ordinal=ordinal,
                first_line=line.get(span.file, 0),
                matched=tuple(Section(self._path("matched", part), k) for part in range(self._partitions)),
                bad=Section(self._path("rows", k), self._partitions),
                results=tuple(result.path for result in self._task.results),
                form=self._task.form,
                out=out,
                at=0 if places is None else places[k],
                err=self._path("err", k),
            )
            ordinal += made.lines
            line[span.file] = line.get(span.file, 0) + made.lines

    def _count(self, made: ChunkWritten) -> None:
        self._tally.done += made.done
        self._tally.errors += made.errors
        self._tally.missing += made.missing
        self._tally.reasons.include(made.reasons)

    def _path(self, name: str, number: int) -> str:
        return self._place.path(f"{name}-{number}")


def _partitions(spans: Sequence[Span]) -> int:
    """So many that each holds few enough names, by the length of the first lines of each file."""
    lines = sum(map(_lines, spans)) / 2
    return max(1, min(MAX_PARTITIONS, int(lines / ROWS_PER_PARTITION) + 1))


def _lines(span: Span) -> float:
    fd = os.open(span.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sample = os.pread(fd, SAMPLE_BYTES, span.start)
    finally:
        os.close(fd)
    return sample.count(b"\n") * (span.end - span.start) / len(sample) if sample else 0.0
