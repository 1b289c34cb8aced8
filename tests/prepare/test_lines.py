"""Cutting blocks into lines, at every place where a block can end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.lines import BOM, Line, LineCutter, LongLine, is_blank

PIECES = (
    b"a",
    b"\n",
    b"\r\n",
    b"\r",
    b" ",
    b"\t",
    "\u2028".encode(),
    "\u2029".encode(),
    "\u0085".encode(),
    BOM,
    b"\x0c",
)
TEXTS = st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join)


def obvious(text: bytes, max_bytes: int = 1 << 30) -> list[Line]:
    """Splits a whole file at once, and holds it too."""
    *whole, rest = text.removeprefix(BOM).split(b"\n")
    lines = [line + b"\n" for line in whole] + ([rest] if rest else [])
    return [line if len(line) <= max_bytes else LongLine(len(line)) for line in lines]


def cut(blocks: list[bytes], max_bytes: int = 1 << 30) -> list[Line]:
    cutter = LineCutter(max_bytes)
    return [line for block in blocks for line in cutter.feed(block)] + cutter.finish()


@given(TEXTS)
def test_every_cut_point_gives_the_same_lines(text: bytes) -> None:
    for at in range(len(text) + 1):
        assert cut([text[:at], text[at:]]) == obvious(text)


@given(TEXTS, st.integers(1, 5))
def test_any_size_of_block_gives_the_same_lines(text: bytes, size: int) -> None:
    assert cut([text[i : i + size] for i in range(0, len(text), size)]) == obvious(text)


@given(TEXTS, st.integers(1, 4), st.integers(1, 6))
def test_a_line_above_the_bound_is_its_length(text: bytes, size: int, max_bytes: int) -> None:
    assert cut([text[i : i + size] for i in range(0, len(text), size)], max_bytes) == obvious(text, max_bytes)


def test_a_long_line_is_not_held() -> None:
    cutter = LineCutter(10)
    for _ in range(1000):
        assert cutter.feed(b"x" * 1000) == []
        assert sum(map(len, cutter._parts)) <= 10
    assert cutter.feed(b"\nshort\n") == [LongLine(1_000_001), b"short\n"]


def test_other_line_ends_are_data() -> None:
    text = "one\u2028two\u2029three\u0085four\rfive\r\nsix".encode()
    assert cut([text]) == ["one\u2028two\u2029three\u0085four\rfive\r\n".encode(), b"six"]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (b"", []),
        (BOM, []),
        (BOM + b"a\n", [b"a\n"]),
        (BOM[:2], [BOM[:2]]),
        (b"a\n" + BOM + b"b\n", [b"a\n", BOM + b"b\n"]),
        (b"\n\n", [b"\n", b"\n"]),
    ],
)
def test_beginnings_and_ends(text: bytes, lines: list[bytes]) -> None:
    assert cut([text]) == lines
    assert cut([bytes([byte]) for byte in text]) == lines


def test_a_cutter_in_the_middle_of_a_file_expects_no_bom() -> None:
    cutter = LineCutter(100, at_start=False)
    assert cutter.feed(BOM + b"a\n") == [BOM + b"a\n"]


@pytest.mark.parametrize("line", [b"", b"\n", b" \t\r\n", b"\x0b\x0c\n"])
def test_blank(line: bytes) -> None:
    assert is_blank(line)


@pytest.mark.parametrize("line", [b"x\n", "\u0085\n".encode(), "\u2028\n".encode(), BOM + b"\n", b"\x00\n"])
def test_not_blank(line: bytes) -> None:
    assert not is_blank(line)
