"""Blocks of one file in, whole lines out, with no I/O.

A line ends at LF only: CR, U+0085, U+2028 and U+2029 are data. A BOM at the start of a file is skipped. A line above
the bound is counted and dropped, so memory is at most one line of the allowed length and one block.
"""

from io import BytesIO

import msgspec

BOM = b"\xef\xbb\xbf"


class LongLine(msgspec.Struct, frozen=True):
    """A line above the bound: all that was kept of it is its length, newline included."""

    bytes: int


Line = bytes | LongLine


def is_blank(line: bytes) -> bool:
    """Whether a line holds white space only: it uses up an ordinal but is no row."""
    return not line or line.isspace()


class LineCutter:
    """Cuts the blocks that it is fed; lines keep their newline. `at_start`: the first block may begin with a BOM."""

    def __init__(self, max_line_bytes: int, *, at_start: bool = True) -> None:
        self._max_bytes = max_line_bytes
        self._parts: list[bytes] = []  # of the line that is not whole yet; empty once it is too long
        self._part_bytes = 0
        self._at_start = at_start
        self._head = b""  # the first bytes, while they may be the beginning of a BOM

    def feed(self, block: bytes) -> list[Line]:
        """The lines that this block makes whole."""
        if self._at_start:
            self._head += block
            if len(self._head) < len(BOM) and BOM.startswith(self._head):
                return []
            block = self._first_block()
        return self._cut(block)

    def finish(self) -> list[Line]:
        """The last line, if the file does not end with a newline."""
        lines = self._cut(self._first_block()) if self._at_start else []
        return [*lines, self._whole(b"")] if self._part_bytes else lines

    def _first_block(self) -> bytes:
        self._at_start = False
        return self._head.removeprefix(BOM)

    def _cut(self, block: bytes) -> list[Line]:
        lines = BytesIO(block).readlines()
        rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        whole: list[Line] = []
        if lines and self._part_bytes:
            whole.append(self._whole(lines.pop(0)))
        whole.extend(lines if max(map(len, lines), default=0) <= self._max_bytes else map(self._bounded, lines))
        self._hold(rest)
        return whole

    def _bounded(self, line: bytes) -> Line:
        return line if len(line) <= self._max_bytes else LongLine(len(line))

    def _whole(self, end: bytes) -> Line:
        size = self._part_bytes + len(end)
        line: Line = LongLine(size) if size > self._max_bytes else b"".join((*self._parts, end))
        self._parts.clear()
        self._part_bytes = 0
        return line

    def _hold(self, part: bytes) -> None:
        self._part_bytes += len(part)
        if self._part_bytes > self._max_bytes:
            self._parts.clear()
        elif part:
            self._parts.append(part)
