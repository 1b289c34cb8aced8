"""Keys of many lines at once: lines written by one program begin alike, and are cut in bulk where their heads agree.

Exact or nothing: a head that differs in any byte outside of its values sends the whole block to the slow way. Pure.
"""

import re
from collections.abc import Sequence
from itertools import repeat
from operator import itemgetter

_SPACE = rb"[ \t]*"
_TEXT = rb'"([^"\\]*)"'
_last_but_newline = itemgetter(-2)


class _Columns:
    """The first bytes of lines: the fixed ones, and between them values without quotes."""

    def __init__(self, head: bytes, values: Sequence[tuple[int, int]]) -> None:
        free = {place for start, end in values for place in range(start, end)}
        self._width = len(head)
        self._fixed = [(place, head[place : place + 1]) for place in range(len(head)) if place not in free]
        self._quotes = head.count(b'"')
        self._cut = itemgetter(slice(0, len(head)))

    def fit(self, lines: Sequence[bytes]) -> bool:
        """Whether all of them begin like that."""
        count, width = len(lines), self._width
        heads = b"".join(map(self._cut, lines))
        if len(heads) != count * width or heads.count(b'"') != count * self._quotes or b"\\" in heads:
            return False
        return all(heads[place::width] == byte * count for place, byte in self._fixed)


class _Shape:
    """How one line begins: what stands before its key, the key, and what stands after it."""

    def __init__(self, match: re.Match[bytes], key: int) -> None:
        values = [match.span(group) for group in range(1, match.re.groups + 1) if match[group] is not None]
        self._start, end = match.span(key)
        self._cut = itemgetter(slice(self._start, end))
        self._after = match[0][end:]
        self._whole = _Columns(match[0], values)
        self._before = _Columns(match[0][: self._start], [span for span in values if span[1] < self._start])

    def keys(self, lines: Sequence[bytes]) -> list[bytes] | None:
        """The keys if all lines begin like this one; their keys may differ in length."""
        if self._whole.fit(lines):
            return [*map(self._cut, lines)]
        if not self._before.fit(lines):
            return None
        ends = [*map(bytes.find, lines, repeat(b'"'), repeat(self._start))]
        if not all(map(bytes.startswith, lines, repeat(self._after), ends)):
            return None
        start = self._start
        keys = [line[start:end] for line, end in zip(lines, ends, strict=True)]
        return None if b"\\" in b"".join(keys) else keys


class Heads:
    """Cuts keys of lines that begin as `pattern` says; its groups are values without quotes, one of them the key."""

    def __init__(self, pattern: re.Pattern[bytes], key: int) -> None:
        self._pattern = pattern
        self._key = key
        self._shape: _Shape | None = None

    def keys(self, lines: Sequence[bytes]) -> list[bytes] | None:
        """The key of each line, or None where a line needs a closer look."""
        keys = None if self._shape is None else self._shape.keys(lines)
        if keys is None and (match := self._pattern.match(lines[0])) is not None:
            self._shape = _Shape(match, self._key)
            keys = self._shape.keys(lines)
        return keys


def request_heads(field: bytes) -> Heads:
    """Of rows that begin with the field (a JSON string) that names them."""
    pattern = rb"\{" + _SPACE + re.escape(field) + _SPACE + b":" + _SPACE + _TEXT + _SPACE + rb"[,}]"
    return Heads(re.compile(pattern), 1)


def success_heads() -> Heads:
    """Of successful result lines that begin as the service writes them."""
    colon, comma = _SPACE + b":" + _SPACE, _SPACE + b"," + _SPACE
    pattern = (
        rb"\{" + _SPACE + rb'(?:"id"' + colon + _TEXT + comma + rb")?"
        rb'"custom_id"' + colon + _TEXT + comma + rb'"response"' + colon + rb"\{" + _SPACE
        + rb'"status_code"' + colon + rb"2[0-9][0-9]" + _SPACE + rb"[,}]"
    )  # fmt: skip
    return Heads(re.compile(pattern), 2)


def all_close(lines: Sequence[bytes]) -> bool:
    """Whether each line ends with a brace before its newline."""
    try:
        return bytes(map(_last_but_newline, lines)) == b"}" * len(lines)
    except IndexError:
        return False
