"""Last job of the general join: the lines of one chunk of the input, in order, and a line for each of its errors.

Blocking, bounded memory: of a chunk's results only the places are held.
"""

import os
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import compress

import msgspec

from streambatch.core.joins import ChunkWritten, Section, Span, WriteChunk
from streambatch.core.matching import AGAIN
from streambatch.core.merging import Ended, Reasons, ended_line
from streambatch.core.replies import NULL, AnswerColumn, AnswerReader
from streambatch.core.settling import RowClass
from streambatch.edge.gathering import Spans, gather, read_span
from streambatch.edge.jobs.sections import BadLine, MatchedPart, read_section
from streambatch.edge.openfiles import OpenFiles
from streambatch.edge.placing import Sink
from streambatch.edge.sources import read_lines

NO_ROW = 0xFF
MAX_ROW_BYTES = 32 << 20
MAX_ERROR_BYTES = 1 << 20


def write_chunk(spec: WriteChunk) -> ChunkWritten:
    """Write a chunk's lines and errors. Raises SourceError, OSError."""
    with ExitStack() as stack:
        chunk = _Chunk(spec, stack)
        if spec.form.emit == "rows":
            chunk.write_rows()
        else:
            chunk.write_results()
        return chunk.finish()


class _Chunk:
    """What is known of each line of the chunk, on its way into two files."""

    def __init__(self, spec: WriteChunk, stack: ExitStack) -> None:
        self._spec = spec
        self._classes = bytearray((NO_ROW,)) * spec.lines
        self._sources = array("I", bytes(4 * spec.lines))
        self._offsets = array("Q", bytes(8 * spec.lines))
        self._lengths = array("Q", bytes(8 * spec.lines))
        self._names: dict[int, str] = {}
        for section in spec.matched:
            self._lay(read_section(section, MatchedPart))
        self._bad = {bad.row: bad.reason for bad in _bad_lines(spec.bad)}
        self._files = stack.enter_context(OpenFiles(spec.results))
        self._out = Sink(stack.enter_context(_writable(spec.out, create=False)), spec.at)
        self._err = Sink(stack.enter_context(_writable(spec.err, create=True)))
        self._reasons = Reasons()
        self._errors = 0

    def _lay(self, part: MatchedPart) -> None:
        columns = zip(part.rows, part.classes, part.files, part.offsets, part.lengths, strict=True)
        names = iter(part.names)
        for row, row_class, file, offset, length in columns:
            self._classes[row] = row_class
            self._sources[row] = file
            self._offsets[row] = offset
            self._lengths[row] = length
            if row_class:
                self._names[row] = next(names).decode()

    def write_results(self) -> None:
        """The successes, byte for byte; then the errors."""
        done = self._classes.translate(_IS_DONE)
        spans = Spans(
            array("Q", compress(self._offsets, done)),
            array("Q", compress(self._lengths, done)),
            array("I", compress(self._sources, done)),
        )
        self._out.end = gather(self._out.fd, self._out.end, self._files.all_or_self(), spans, map_bytes=0)
        for row in sorted(self._names.keys() | self._bad.keys()):
            self._write_error(row)

    def write_rows(self) -> None:
        """The user's rows with their answers; a row that has such a field already is passed on as it is."""
        answers, column = AnswerReader(self._spec.form.endpoint), AnswerColumn(self._spec.form.column)
        for row, line in enumerate(_source_lines(self._spec.span)):
            if self._classes[row] == RowClass.OK and line is not None:
                result = read_span(self._files[self._sources[row]], self._offsets[row], self._lengths[row])
                self._out.add(column.add_to_any(line, *answers.read(result)))
            elif row in self._names or row in self._bad:
                reason = self._write_error(row)
                self._out.add(b"" if line is None else column.add_to_any(line, NULL, reason))

    def _write_error(self, row: int) -> str:
        spec = self._spec
        line = ended_line(
            Ended(
                ordinal=spec.first_ordinal + row,
                file=spec.span.name,
                line=spec.first_line + row + 1,
                name=self._names.get(row),
                row_class=self._classes[row],
                bad=self._bad.get(row),
                text=self._service_line(row),
            )
        )
        self._err.add(msgspec.json.encode(line) + b"\n")
        self._reasons.add(line.class_, line.reason)
        self._errors += 1
        return line.reason

    def _service_line(self, row: int) -> bytes | None:
        length = min(self._lengths[row], MAX_ERROR_BYTES)
        return read_span(self._files[self._sources[row]], self._offsets[row], length) if length else None

    def finish(self) -> ChunkWritten:
        self._out.flush()
        self._err.flush()
        return ChunkWritten(
            out_bytes=self._out.end - self._spec.at,
            err_bytes=self._err.end,
            done=self._classes.count(RowClass.OK),
            errors=self._errors,
            missing=self._classes.count(RowClass.MISSING) + self._classes.count(AGAIN),
            reasons=self._reasons.top(),
        )


_IS_DONE = bytes((1,)) + bytes(255)


def _bad_lines(section: Section) -> list[BadLine]:
    return read_section(section, list[BadLine])


def _source_lines(span: Span) -> Iterator[bytes | None]:
    for chunk in read_lines(span.path, span.name, span.start, span.end, max_line_bytes=MAX_ROW_BYTES):
        yield from chunk.lines
        if chunk.long_bytes:
            yield None


@contextmanager
def _writable(path: str, *, create: bool) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if create else 0), 0o666)
    try:
        yield fd
    finally:
        os.close(fd)
