"""Input files: what can be read, the first row, lines of a range, and scanning from any point."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.models import ShardLimits
from streambatch.core.sharding import CutPoint
from streambatch.edge import looking, scanning, sources
from streambatch.errors import SourceError, StreambatchError
from tests.prepare.rig import cut, write

BOM = b"\xef\xbb\xbf"
PIECES = st.lists(st.sampled_from((b"a", b"bcd", b"\n", b" ", b"\r\n", b"e" * 40)), max_size=20).map(b"".join)


# -- discovery


def test_inputs_are_as_they_are_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_bytes(b"{}\n")
    (found,) = sources.discover(["in.jsonl"])
    state = os.stat("in.jsonl")
    assert (found.name, found.path) == ("in.jsonl", str(tmp_path / "in.jsonl"))
    assert (found.size, found.mtime_ns) == (3, state.st_mtime_ns)


@pytest.mark.parametrize(("name", "told"), [("", "name of an input is empty"), ("b\udcff", r"'b\\udcff' is no text")])
def test_a_name_that_is_none_is_refused(name: str, told: str) -> None:
    with pytest.raises(StreambatchError, match=told) as raised:
        sources.discover([name])
    str(raised.value).encode()


def test_what_can_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, words in (
        ("missing", "missing can't be read: No such file or directory."),
        ("folder", "folder is a directory: name the files in it."),
        ("loop", "loop can't be read: Too many levels of symbolic links."),
        ("pipe", "pipe is no regular file: save its rows to one, or pipe them to -."),
    ):
        path = str(tmp_path / name)
        with pytest.raises(SourceError) as caught:
            sources.discover([path])
        assert str(caught.value) == str(tmp_path / words)
        assert caught.value.path == path


# -- the first row


@pytest.mark.parametrize(
    ("texts", "row"),
    [
        ([b""], None),
        ([b"\n \n", b""], None),
        ([b"\n", b'\n{"a":1}\n{"b":2}\n'], b'{"a":1}\n'),
        ([BOM + b'{"a":1}'], b'{"a":1}'),
        ([b'broken\n{"a":1}\n'], b'{"a":1}\n'),
        ([b"[]\nbroken"], b"[]\n"),
        ([b"x" * 300 + b'\n{"a":1}\n'], b'{"a":1}\n'),
        ([b"x" * 300 + b"\n"], b""),
        ([b"broken\n" * 100 + b'{"a":1}\n'], b"broken\n"),
        ([b"broken\n" * 99 + b'{"a":1}\n'], b'{"a":1}\n'),
    ],
)
def test_the_first_object_says_how_rows_are_shaped(tmp_path: Path, texts: list[bytes], row: bytes | None) -> None:
    assert looking.first_row(sources.discover(write(tmp_path, *texts)), 200) == row


# -- lines of a range


@given(PIECES, st.integers(1, 60), st.integers(1, 60))
def test_lines_of_any_range(text: bytes, block: int, max_line_bytes: int) -> None:
    *whole, rest = text.split(b"\n")
    expected = [line + b"\n" for line in whole] + ([rest] if rest else [])
    starts = [sum(map(len, expected[:n])) for n in range(len(expected) + 1)]
    with tempfile.TemporaryDirectory() as name:
        (path,) = write(Path(name), text)
        for first in range(0, len(expected) + 1, 3):
            read = b""
            lines: list[bytes | int] = []
            bound = {"max_line_bytes": max_line_bytes, "block_bytes": block}
            for chunk in sources.read_lines(path, "in", starts[first], len(text), **bound):
                read += chunk.data
                lines += chunk.lines
                lines += [chunk.long_bytes] if chunk.long_bytes else []
            assert read == text[starts[first] :]
            held = max(max_line_bytes, block)
            assert lines == [len(line) if len(line) > held else line for line in expected[first:]]


def test_a_range_may_end_before_the_file(tmp_path: Path) -> None:
    (path,) = write(tmp_path, b"one\ntwo\nthree\n")
    (chunk,) = sources.read_lines(path, "in", 4, 8, max_line_bytes=100)
    assert chunk.lines == [b"two\n"]


# -- scanning


def test_a_bom_belongs_to_no_segment(tmp_path: Path) -> None:
    paths = write(tmp_path, BOM + b"one\n", BOM, BOM + b"two", BOM[:2] + b"\n")
    (segment,) = cut(paths)
    assert [(s.input, s.start, s.end) for s in segment.slices] == [(0, 3, 7), (2, 3, 6), (3, 0, 3)]


@given(st.lists(PIECES, max_size=3), st.integers(1, 4), st.integers(1, 80))
def test_any_block_size_scans_the_same(texts: list[bytes], rows: int, block: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        inputs = sources.discover(write(Path(name), *texts))
        limits = ShardLimits(max_requests=rows)
        assert list(scanning.scan(inputs, limits, block_bytes=block)) == list(scanning.scan(inputs, limits))


def test_a_scan_goes_on_after_a_segment_and_says_how_it_ended(tmp_path: Path) -> None:
    inputs = sources.discover(write(tmp_path, BOM + b"1\n2\n\n", b"3\n4\n5"))
    limits = ShardLimits(max_requests=2)
    scan = scanning.scan(inputs, limits)
    segments = list(scan)
    assert (scan.ordinals, scan.rows, scan.limited) == (6, 5, False)
    for number in range(len(segments)):
        rest = scanning.scan(inputs, limits, after=segments[number], rows_before=0)
        assert list(rest) == segments[number + 1 :]
    limited = scanning.scan(inputs, limits, limit=3)
    first = list(limited)
    assert (limited.rows, limited.limited) == (3, True)
    rest = scanning.scan(inputs, limits, after=first[-1], rows_before=3)
    assert sum(segment.lines for segment in [*first, *rest]) == 6


def test_a_scan_can_begin_at_the_first_line_behind_a_bom(tmp_path: Path) -> None:
    inputs = sources.discover(write(tmp_path, BOM + b"1\n2\n"))
    assert list(scanning.Scan(inputs, ShardLimits(), point=CutPoint(offset=3))) == cut([inputs[0].path])


def test_rows_may_be_added_after_a_last_line_without_newline(tmp_path: Path) -> None:
    paths = write(tmp_path, b"1\n2")
    (sealed,) = cut(paths)
    Path(paths[0]).write_bytes(b"1\n2\n3\n")
    (added,) = scanning.scan(sources.discover(paths), ShardLimits(), after=sealed, rows_before=2)
    assert (added.slices[0].start, added.slices[0].first_line, added.first_ordinal, added.lines) == (4, 2, 2, 1)


def test_a_sealed_last_line_may_not_become_longer(tmp_path: Path) -> None:
    paths = write(tmp_path, b"1\n2")
    (sealed,) = cut(paths)
    Path(paths[0]).write_bytes(b"1\n2222\n")
    with pytest.raises(SourceError, match="line 2: this row was sent already and has been made longer"):
        list(scanning.scan(sources.discover(paths), ShardLimits(), after=sealed, rows_before=2))


def test_a_file_that_shrinks_during_the_scan_is_named(tmp_path: Path) -> None:
    paths = write(tmp_path, b"1\n2\n")
    inputs = sources.discover(paths)
    os.truncate(paths[0], 2)
    with pytest.raises(SourceError, match="ends at byte 2: it has become shorter"):
        list(scanning.scan(inputs, ShardLimits()))
