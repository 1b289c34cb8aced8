"""JSON objects of which only the beginning is at hand, or that are too long to hold: read by token, weighed by bracket.

Knows nothing of what the fields mean. It judges structure only: what stands inside strings and numbers is not looked at.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

import msgspec

Path = tuple[bytes, ...]

_TOKEN = re.compile(
    rb'[ \t\r\n]*(?:([{}\[\],:])|("[^"\\]*(?:\\.[^"\\]*)*")|([^\s{}\[\],:"]+)(?=[\s{}\[\],:]))',
    re.DOTALL,
)
_ESCAPE = re.compile(rb"\\.", re.DOTALL)


def pick(head: bytes, names: Mapping[Path, str]) -> dict[str, object]:
    """The scalars at the named paths of an object that may be cut anywhere; a path holds keys as JSON strings. First wins."""
    found: dict[str, object] = {}
    for path, token in _scalars(head):
        name = names.get(path)
        if name is not None and name not in found and (value := _value(token)) is not None:
            found[name] = value
    return found


def _value(token: bytes) -> object:
    try:
        return msgspec.json.decode(token)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _scalars(head: bytes) -> Iterator[tuple[Path, bytes]]:
    """Each scalar with the keys that lead to it (b"" for a list), until the object closes or is cut."""
    keys: list[bytes] = []
    objects: list[bool] = []
    naming = False
    for match in _tokens(head):
        mark, text, bare = match.groups()
        if mark is None:
            if naming and text is not None:
                keys[-1] = text
            else:
                yield tuple(keys), bare if text is None else text
        elif mark in b"{[":
            keys.append(b"")
            objects.append(mark == b"{")
            naming = mark == b"{"
        elif mark in b"}]":
            if len(keys) <= 1:
                return
            keys.pop()
            objects.pop()
            naming = False
        else:
            naming = mark == b"," and bool(objects) and objects[-1]


def _tokens(head: bytes) -> Iterator[re.Match[bytes]]:
    at = 0
    while (match := _TOKEN.match(head, at)) is not None:
        yield match
        at = match.end()


def complete(chunks: Iterable[bytes]) -> bool:
    """Whether these bytes end where all brackets that they opened are closed: true of an object, of no strict prefix of one."""
    depth, inside, escaped, closed = 0, False, False, False
    for chunk in chunks:
        if escaped:
            chunk, escaped = chunk[1:], not chunk
        chunk = _ESCAPE.sub(b"", chunk)
        if chunk.endswith(b"\\"):
            chunk, escaped = chunk[:-1], True
        parts = chunk.split(b'"')
        outside = b'"'.join(parts[inside::2]).translate(None, b" \t\r\n")
        inside ^= len(parts) % 2 == 0
        outside += b'"' * inside
        if outside and (closed or depth or outside.startswith(b"{")):
            depth += sum(map(outside.count, (b"{", b"["))) - sum(map(outside.count, (b"}", b"]")))
            closed = outside.endswith(b"}")
        elif outside:
            return False
    return closed and depth == 0 and not inside and not escaped
