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
MAP_BYTES = 16 << 20  # of a source, mapped at a time: random reads from there cost half of a system call
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
        for source, offset, length in zip(self._sources(), self.offsets, self.lengths, strict=True):
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

    def _sources(self) -> Sequence[int]:
        return [0] * len(self.offsets) if self.sources is None else self.sources


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
                data = read(spans, first, last)
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


def _reader(files: Sequence[int], map_bytes: int, stack: ExitStack) -> Callable[[Spans, int, int], bytes]:
    """How to read a chunk of short spans: from a mapping of the beginning of the largest file, the rest by calls."""
    if not map_bytes:
        return lambda spans, first, last: _join([read_span(files[s], o, n) for s, o, n in _picked(spans, first, last)])
    sizes = [os.fstat(fd).st_size for fd in files]
    biggest = sizes.index(max(sizes))
    mapped = min(sizes[biggest], map_bytes)
    view = stack.enter_context(mmap.mmap(files[biggest], mapped, flags=_MAP_FLAGS, prot=mmap.PROT_READ))

    def of_any(source: int, offset: int, length: int) -> bytes:
        whole = source == biggest and offset + length <= mapped
        return view[offset : offset + length] if whole else read_span(files[source], offset, length)

    def read(spans: Spans, first: int, last: int) -> bytes:
        if spans.sources is not None:
            return _join([of_any(*span) for span in _picked(spans, first, last)])
        fd, pread = files[0], os.pread
        pairs = zip(spans.offsets[first:last], spans.lengths[first:last], strict=True)
        data = _join([view[at : at + n] if at + n <= mapped else pread(fd, n, at) for at, n in pairs])
        if len(data) != sum(spans.lengths[first:last]) + last - first:
            raise OSError("a result file became shorter while it was read")
        return data

    return read


_MAP_FLAGS = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)


def _picked(spans: Spans, first: int, last: int) -> Iterator[tuple[int, int, int]]:
    sources = [0] * (last - first) if spans.sources is None else spans.sources[first:last]
    return zip(sources, spans.offsets[first:last], spans.lengths[first:last], strict=True)


def _join(lines: list[bytes]) -> bytes:
    lines.append(b"")
    return b"\n".join(lines)


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
