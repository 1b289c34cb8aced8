"""The files of a join: what it reads, as spans of whole lines; and the folder beside OUTPUT where it works until it is done."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Self

from streambatch.core.joins import Span
from streambatch.core.lines import BOM
from streambatch.edge import sources
from streambatch.edge.gathering import copy_span
from streambatch.edge.resultfiles import cut_points
from streambatch.errors import ConfigError

CHUNK_BYTES = 32 << 20


def row_spans(inputs: Sequence[str]) -> tuple[Span, ...]:
    """Each input as a whole, without its byte order mark. Raises SourceError."""
    spans = []
    for index, file in enumerate(sources.discover_plain(inputs, "merge")):
        with sources.open_input(file.path, file.name) as fd:
            start = len(BOM) if os.pread(fd, len(BOM), 0) == BOM else 0
        spans.append(Span(index, file.path, file.name, start, file.size))
    return tuple(spans)


def result_spans(results: Sequence[str]) -> tuple[Span, ...]:
    """Each result file as a whole; one that is named twice is read once. Raises SourceError."""
    files = {file.path: file for file in sources.discover_plain(results, "merge")}
    return tuple(Span(index, file.path, file.name, 0, file.size) for index, file in enumerate(files.values()))


def chunks_of(spans: Sequence[Span], step: int = CHUNK_BYTES) -> Iterator[Span]:
    """The same bytes in pieces of whole lines. Raises SourceError."""
    for span in spans:
        with sources.open_input(span.path, span.name) as fd:
            points = cut_points(fd, span.start, span.end, step)
        for start, end in pairwise(points):
            if start < end:
                yield Span(span.file, span.path, span.name, start, end)


class Workplace:
    """A folder beside OUTPUT, removed at the end. `publish` moves what is complete to its final names."""

    def __init__(self, output: str) -> None:
        self._output = output
        self._folder = f"{output}.merging-{os.getpid()}"
        self.out = self.path("out")
        self.err = self.path("err")

    def path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def __enter__(self) -> Self:
        try:
            os.mkdir(self._folder, 0o700)
        except OSError as error:
            folder = os.path.dirname(self._output)
            raise ConfigError(
                f"Nothing can be written to {folder}: {error.strerror}; choose another --output."
            ) from error
        self.clear()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(
            OSError
        ):  # what is left behind is named after us, and the error on its way matters more
            self._remove_all()
            os.rmdir(self._folder)

    def clear(self) -> None:
        """Nothing but an empty output, and no errors."""
        self._remove_all()
        for path in (self.out, self.err):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))

    def append(self, target: str, pieces: Sequence[tuple[str, int, int]]) -> None:
        """Put pieces of files (path, start, end), one after the other, at the end of another."""
        fd = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
        try:
            at = os.fstat(fd).st_size
            for path, start, end in pieces:
                source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    copy_span(source, start, end - start, fd, at)
                finally:
                    os.close(source)
                at += end - start
        finally:
            os.close(fd)

    def publish(self) -> tuple[int, str | None]:
        """Errors first, OUTPUT last. Bytes of OUTPUT, and the path of the errors if there are any."""
        errors = f"{self._output}.errors"
        size = os.path.getsize(self.out)
        if os.path.getsize(self.err):
            os.replace(self.err, errors)
        else:
            with contextlib.suppress(FileNotFoundError):  # of an earlier join
                os.unlink(errors)
        os.replace(self.out, self._output)
        return size, errors if os.path.exists(errors) else None

    def _remove_all(self) -> None:
        with os.scandir(self._folder) as entries:
            for entry in entries:
                os.unlink(entry.path)
