"""JSON lines gone wrong, as strategies: what stands in them replaced, and their bytes cut, mixed and stretched."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

ODD_TEXTS = (
    "",
    "\x00",
    "\u2028\u2029\x85",
    "\ufeff",
    "漢🙂",
    'quo"te\\',
    "9" * 5000,
    "x" * 3000,
    "null",
    "{}",
    "[" * 400,
)
ODD_NUMBERS = (0, -1, 2**31, 2**63, 2**64, 10**30, 10**4000, 0.5, -0.0, 1e308)
ODD_BYTES = (
    b"\xff", b"\xfe\xff", b"\xc3", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x00", b"\r", b"\n", b"\r\n", b"\x0b\x0c",
    b"\\ud800", b"\\u0000", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b" ", b"1e999", b"NaN", b"-", b"9" * 5000,
    b"[" * 3000, b'{"a":' * 3000, b"[" * 1500 + b"]" * 1500, b'"custom_id": "0", ', b'"custom_id": null, ', b"x" * 70_000,
)  # fmt: skip

DEEP = b"[" * 5_000 + b"]" * 5_000


def deepened(line: bytes) -> bytes:
    """An object with one more field, nested deeper than any decoder follows, in its innermost last object."""
    whole = line.rstrip(b"}")
    return whole + b', "deep": ' + DEEP + b"}" * (len(line) - len(whole))


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(ODD_TEXTS),
    st.sampled_from(ODD_NUMBERS),
    st.text(max_size=8),
    st.integers(-10, 1000),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, each in inner for place in _places(each, (*at, key)))]


def _changed(value: Any, place: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    if not place:
        return change(value)
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = _changed(copy[place[0]], place[1:], change)
    return copy


def _always(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def _without(value: Any, place: tuple[Any, ...]) -> Any:
    def drop(parent: Any) -> Any:
        if isinstance(parent, dict):
            return {key: each for key, each in parent.items() if key != place[-1]}
        return [each for n, each in enumerate(parent) if n != place[-1]]

    return _changed(value, place[:-1], drop) if place else value


@st.composite
def odd_objects(draw: st.DrawFn, objects: st.SearchStrategy[Any]) -> Any:
    """An object with up to three of its values replaced by anything, or left out."""
    value = draw(objects)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(_places(value)))
        new = draw(values)
        value = _without(value, place) if draw(st.booleans()) else _changed(value, place, _always(new))
    return value


@st.composite
def odd_bytes(draw: st.DrawFn, lines: st.SearchStrategy[bytes]) -> bytes:
    """Bytes with up to three pieces put in, put over others, cut off, or said twice."""
    line = draw(lines)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(line)))
        end = min(len(line), at + draw(st.sampled_from([0, 0, 1, 5])))
        piece = draw(st.one_of(st.sampled_from(ODD_BYTES), st.binary(max_size=4)))
        line = draw(
            st.sampled_from([line[:at] + piece + line[end:], line[:at], line[at:], line[:at] + line, piece * 2 + line])
        )
    return line
