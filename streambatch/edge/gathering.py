"""Lines of files put one after the other into another file: the copying side of a merge. Bounded memory, whatever the lines.

Knows nothing of rows: a span is (source, offset, length), without its newline; each is written with a newline after it.
"""

import mmap
import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import accumulate

from streambatch.edge.placing import pwrite_all

COPY_BYTES = 64 << 10  # from this length on, spans are copied in the kernel
CHUNK_BYTES = 512 << 10
MAP_BYTES = 12 << 20  # of a source, mapped at a time: random reads from there cost half of a system call
SEQUENTIAL = 8  # with so many neighbours together on average, spans are copied by runs
SAMPLE = 1000


class Spans:
    """Spans in the order in which they are to be written; `sources` is None where all are of source 0."""

    def __init__(self, offsets: "array[int]", lengths: "array[int]", sources: Sequence[int] | None = None) -> None:
        self.offsets = offsets
        self.lengths = lengths
        self.sources = sources

    @property
    def bytes(self) -> int:
        """What they make in all."""
        return sum(self.lengths) + len(self.lengths)

    def runs(self) -> "Spans":
        """The same with neighbours in one file made one."""
        offsets, lengths, sources = array("Q"), array("Q"), array("I")
        end, last = -1, -1
        for source, offset, length in self.part(0, len(self.offsets)):
            if offset == end and source == last:
                lengths[-1] += 1 + length
            else:
                offsets.append(offset)
                lengths.append(length)
                sources.append(source)
            end, last = offset + length + 1, source
        return Spans(offsets, lengths, sources)

    def are_sequential(self) -> bool:
        """Whether most of the first ones follow the one before in its file."""
        some = range(1, min(len(self.offsets), SAMPLE))
        follow = sum(self.offsets[k - 1] + self.lengths[k - 1] + 1 == self.offsets[k] for k in some)
        return follow * SEQUENTIAL > len(some) * (SEQUENTIAL - 1)

    def part(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Some of them: source, offset, length."""
        sources = [0] * (last - first) if self.sources is None else self.sources[first:last]
        return zip(sources, self.offsets[first:last], self.lengths[first:last], strict=True)


def gather(target: int, at: int, files: Sequence[int], spans: Spans, *, map_bytes: int = MAP_BYTES) -> int:
    """Write the spans of `files` to `target` from `at` on; where they end. Raises OSError where a file is too short."""
    if not spans.offsets:
        return at
    if spans.are_sequential():
        spans = spans.runs()
    with ExitStack() as stack:
        read = _reader(files, map_bytes if len(spans.offsets) > 1 else 0, stack)
        ends = array("Q", accumulate(spans.lengths))  # without newlines: good enough to know how many make a chunk
        long = max(spans.lengths) >= COPY_BYTES
        first = 0
        while first < len(ends):
            if spans.lengths[first] >= COPY_BYTES:
                at = _copy_one(target, at, files, spans, first)
                first += 1
            else:
                last = bisect_right(ends, ends[first] + CHUNK_BYTES, first)
                last = _before_long(spans, first, last) if long else last
                data = _joined(read(spans, first, last), spans, first, last)
                pwrite_all(target, data, at)
                at, first = at + len(data), last
    return at


def _before_long(spans: Spans, first: int, last: int) -> int:
    """Where a chunk of short spans ends."""
    return next((k for k in range(first, last) if spans.lengths[k] >= COPY_BYTES), last)


def _copy_one(target: int, at: int, files: Sequence[int], spans: Spans, which: int) -> int:
    source = files[0 if spans.sources is None else spans.sources[which]]
    copy_span(source, spans.offsets[which], spans.lengths[which], target, at)
    end = at + spans.lengths[which]
    pwrite_all(target, b"\n", end)
    return end + 1


# -- short spans


def _reader(files: Sequence[int], map_bytes: int, stack: ExitStack) -> Callable[[Spans, int, int], list[bytes]]:
    """How to read a chunk of short spans: from a mapping of the beginning of the largest file, the rest by calls."""
    pread = os.pread
    if not map_bytes:
        return lambda spans, first, last: [pread(files[s], n, at) for s, at, n in spans.part(first, last)]
    sizes = [os.fstat(fd).st_size for fd in files]
    big = sizes.index(max(sizes))
    mapped = min(sizes[big], map_bytes)
    view = stack.enter_context(mmap.mmap(files[big], mapped, flags=_MAP_FLAGS, prot=mmap.PROT_READ))

    def read(spans: Spans, first: int, last: int) -> list[bytes]:
        return [
            view[at : at + n] if s == big and at + n <= mapped else pread(files[s], n, at)
            for s, at, n in spans.part(first, last)
        ]

    def read_one(spans: Spans, first: int, last: int) -> list[bytes]:
        fd = files[0]
        pairs = zip(spans.offsets[first:last], spans.lengths[first:last], strict=True)
        return [view[at : at + n] if at + n <= mapped else pread(fd, n, at) for at, n in pairs]

    return read if len(files) > 1 else read_one


_MAP_FLAGS = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)


def _joined(lines: list[bytes], spans: Spans, first: int, last: int) -> bytes:
    """The lines, a newline after each. Raises OSError where one is too short."""
    lines.append(b"")
    data = b"\n".join(lines)
    if len(data) != sum(spans.lengths[first:last]) + last - first:
        raise OSError("a result file became shorter while it was read")
    return data


def read_span(fd: int, offset: int, length: int) -> bytes:
    """The bytes of a span that is known to be there. Raises OSError where they are not."""
    data = os.pread(fd, length, offset)
    if len(data) < length:
        raise OSError(f"a result file ends at byte {offset + len(data)}, inside of a line")
    return data


# -- long spans


def copy_span(source: int, offset: int, length: int, target: int, at: int) -> None:
    """Copy a span of any length between files, in the kernel where it can. Raises OSError where the source is too short."""
    while length:
        copied = _copy_some(source, offset, min(length, 64 << 20), target, at)
        if not copied:
            raise OSError(f"a result file ends at byte {offset}, inside of a line")
        offset, at, length = offset + copied, at + copied, length - copied


def _copy_some(source: int, offset: int, length: int, target: int, at: int) -> int:
    try:
        return os.copy_file_range(source, target, length, offset, at)
    except (AttributeError, OSError):  # not on this system, or not between these file systems
        return os.pwrite(target, os.pread(source, min(length, CHUNK_BYTES), offset), at)
