"""Serial inputs: the same cuts as of the plain file for any block and any member, raw files, and what breaks a reader."""

import asyncio
import gzip
import os
import tempfile
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streambatch.core.models import InputFile, Segment, ShardLimits
from streambatch.core.shaping import Asked
from streambatch.core.sharding import MAX_LINES, SegmentScanner, after
from streambatch.edge import cutting, feeds, files, looking, serial, sources
from streambatch.edge.feeds import OwnThread, RowBlocks, row_blocks, split_source
from streambatch.edge.files import inline
from streambatch.edge.rawfiles import RawWriter, pieces_in
from streambatch.edge.scanning import Scan
from streambatch.edge.serial import ROWS, GzipBlocks, Serial, Serials
from streambatch.errors import ConfigError, SourceError
from streambatch.previewing import preview, preview_async
from tests.prepare.rig import contents, request, write

BOM = b"\xef\xbb\xbf"
PIECES = st.lists(st.sampled_from((b"a", b"bcd", b"\n", b" ", b"\r\n", b"e" * 40)), max_size=20).map(b"".join)
TEXTS = st.lists(st.tuples(st.sampled_from((b"", BOM)), PIECES).map(b"".join), min_size=1, max_size=4)


def members(data: bytes, size: int) -> bytes:
    """A gzip file in members of so many bytes."""
    return b"".join(gzip.compress(data[k : k + size], 1) for k in range(0, max(1, len(data)), size))


class Fed:
    """A stream in blocks of one size."""

    def __init__(self, data: bytes, size: int) -> None:
        self._blocks = iter([data[k : k + size] for k in range(0, len(data), size)])

    def read(self) -> bytes:
        return next(self._blocks, b"")

    async def fetch(self, blocking: Any) -> bytes:
        return self.read()

    def close(self) -> None:
        """Nothing to close."""


class Streams(Serials):
    """Serial inputs from memory."""

    def __init__(self, texts: Sequence[bytes], size: int) -> None:
        super().__init__()
        self._texts, self._size = texts, size

    def at(self, index: int, file: InputFile, start: int = 0) -> Serial:
        if index not in self._open:
            self._open[index] = Serial(file, Fed(self._texts[index], self._size))
        return self._open[index]


def stream(name: str = "stdin") -> InputFile:
    return InputFile(name, "-", 0, 0, "stdin")


def raw_of(folder: str, inputs: Sequence[InputFile]) -> RawWriter:
    return RawWriter(lambda index: f"{folder}/{index}.raw", f"{folder}/raw.tmp", inputs)


def content(folder: str, inputs: Sequence[InputFile], segment: Segment) -> list[bytes]:
    found = []
    for piece in pieces_in(lambda index: f"{folder}/{index}.raw", inputs, segment):
        found.append(Path(piece.path).read_bytes()[piece.start : piece.end])
    return found


# -- the same cuts


@settings(deadline=None, max_examples=60)
@given(TEXTS, st.data(), st.integers(1, 4), st.integers(1, 60), st.integers(1, 50), st.integers(1, 30))
def test_any_kind_any_block_and_any_member_cut_the_same(
    texts: list[bytes], data: st.DataObject, rows: int, size: int, block: int, member: int
) -> None:
    """Positions, ordinals and lines are those of plain files; raw files hold the very bytes of the slices."""
    limits = ShardLimits(max_requests=rows, max_bytes=size)
    limit = data.draw(st.none() | st.integers(0, 12), "limit")
    kinds = [data.draw(st.sampled_from(("plain", "gzip", "stdin")), "kind") for _ in texts]
    with tempfile.TemporaryDirectory() as folder:
        plain = sources.discover(write(Path(folder), *texts))
        inputs = []
        for number, (file, kind, text) in enumerate(zip(plain, kinds, texts, strict=True)):
            if kind == "gzip":
                path = Path(folder, f"{number}.gz")
                path.write_bytes(members(text, member))
                (file,) = sources.discover([str(path)])
                assert file.kind == "gzip"
            inputs.append(stream() if kind == "stdin" else file)
        wanted = list(Scan(plain, limits, limit=limit))
        mixed = _Mixed(texts, block)
        scan = Scan(inputs, limits, limit=limit, block_bytes=block, serials=mixed, raw=raw_of(folder, inputs))
        got = list(scan)
        assert got == wanted
        for segment in got:
            assert content(folder, inputs, segment) == [texts[s.input][s.start : s.end] for s in segment.slices]
        assert not [name for name in os.listdir(folder) if "tmp" in name]
        mixed.close()


class _Mixed(Streams):
    """Streams from memory, gzip files from disk in small blocks."""

    def at(self, index: int, file: InputFile, start: int = 0) -> Serial:
        return Serials.at(self, index, file, start) if file.kind == "gzip" else super().at(index, file, start)


@given(TEXTS, st.integers(1, 3), st.integers(1, 40), st.integers(0, 5))
def test_a_scan_goes_on_behind_any_segment(texts: list[bytes], rows: int, block: int, place: int) -> None:
    limits = ShardLimits(max_requests=rows)
    inputs = [stream() for _ in texts]
    whole = list(Scan(inputs, limits, serials=Streams(texts, 64)))
    if place < len(whole):
        point = after(whole[place], 0)
        assert list(Scan(inputs, limits, point=point, serials=Streams(texts, block))) == whole[place + 1 :]


@given(PIECES, st.integers(1, 30), st.integers(1, 30))
def test_what_was_looked_at_comes_again(text: bytes, block: int, bound: int) -> None:
    inputs, streams = [stream()], Streams([text], block)
    with tempfile.TemporaryDirectory() as folder:
        plain = sources.discover(write(Path(folder), text))
        assert looking.first_row(inputs, bound, streams) == looking.first_row(plain, bound)
        assert list(Scan(inputs, ShardLimits(max_requests=2), serials=streams)) == list(
            Scan(plain, ShardLimits(max_requests=2))
        )


def test_rows_may_follow_a_last_line_without_newline_but_it_may_not_grow() -> None:
    limits, inputs = ShardLimits(), [stream()]
    (sealed,) = Scan(inputs, limits, serials=Streams([b"1\n2"], 9))
    (added,) = Scan(inputs, limits, point=after(sealed, 2), serials=Streams([b"1\n2\n3\n"], 1))
    assert (added.slices[0].start, added.slices[0].first_line, added.first_ordinal) == (4, 2, 2)
    with pytest.raises(SourceError, match="stdin, line 2: this row was sent already and has been made longer"):
        list(Scan(inputs, limits, point=after(sealed, 2), serials=Streams([b"1\n22"], 1)))
    with pytest.raises(SourceError, match="stdin ends before rows that this run has cut already"):
        list(Scan(inputs, limits, point=after(sealed, 2), serials=Streams([b"1\n"], 1)))


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 7), st.data())
def test_a_stream_is_taken_in_any_parts(sizes: list[int], block: int, data: st.DataObject) -> None:
    text = bytes(range(sum(sizes)))
    source = Serial(stream(), Fed(text, block))

    async def take() -> None:
        at = 0
        for size in sizes:
            start = at + data.draw(st.integers(0, size))
            parts = [part async for part in source.take(start, at + size, inline)]
            assert b"".join(parts) == text[start : at + size]
            at += size
            assert (source.position, source.last) == (at, text[at - 1 : at])

    drive(take())


def drive(work: Any) -> None:
    asyncio.run(work)


# -- gzip


def gz(folder: Path, data: bytes) -> GzipBlocks:
    path = folder / "in.gz"
    path.write_bytes(data)
    return serial.open_gzip(InputFile("in.gz", str(path), len(data), 0, "gzip"))


def unpacked(blocks: GzipBlocks) -> bytes:
    try:
        return b"".join(iter(blocks.read, b""))
    finally:
        blocks.close()


@pytest.mark.parametrize("packed", [1, 7, 1 << 17])
def test_members_and_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: int) -> None:
    monkeypatch.setattr(serial, "PACKED_BYTES", packed)
    data = os.urandom(5000) + b"text " * 2000
    for file in (
        members(data, 1234),
        members(data, 99999) + bytes(700),
        members(data, 4000) + bytes(3) + members(b"x", 9),
    ):
        assert unpacked(gz(tmp_path, file)) in (data, data + b"x")
    assert unpacked(gz(tmp_path, gzip.compress(b""))) == b""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file[:-1], "in.gz ends in the middle, near byte 1"),
        (lambda file: file[: len(file) // 2], "in.gz ends in the middle, near byte"),
        (lambda file: file[:5], "in.gz ends in the middle, near byte 5 of the file and behind byte 0"),
        (lambda file: file + b"{}\n", "in.gz goes on with something that is no gzip, near byte"),
        (lambda file: file[:40] + bytes(60) + file[100:], "in.gz is damaged, near byte"),
        (lambda file: file[:-6] + bytes(6), "in.gz is damaged, near byte"),
    ],
)
def test_a_damaged_file_is_named_with_its_place(tmp_path: Path, change: Any, words: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        unpacked(gz(tmp_path, change(gzip.compress(os.urandom(100_000), 1))))
    assert caught.value.path == "in.gz"


def test_a_bomb_is_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gigabyte of one letter: a line that has no end is refused once no batch could hold it."""
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join([*(packer.compress(b"a" * (1 << 20)) for _ in range(64)), packer.flush()])
    assert len(bomb) < 100_000
    blocks = gz(tmp_path, bomb)
    assert max(len(block) for block in iter(blocks.read, b"")) <= serial.BLOCK_BYTES
    blocks.close()
    limits = ShardLimits(max_bytes=1 << 20, max_line_bytes=1 << 16)
    inputs = sources.discover([str(tmp_path / "in.gz")])
    with pytest.raises(SourceError, match="line 1 is longer than 1048576 bytes: this is no JSONL"):
        list(Scan(inputs, limits, raw=raw_of(str(tmp_path), inputs)))
    assert looking.first_row(inputs, limits.max_line_bytes) == b""
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 4 << 20


def test_blank_lines_without_end_are_many_segments() -> None:
    scanner = SegmentScanner(ShardLimits())
    block = b"\n" * (1 << 19)
    segments = [segment for _ in range(3) for segment in scanner.feed(block)] + scanner.finish()
    assert [segment.lines for segment in segments] == [MAX_LINES, MAX_LINES // 2]


# -- stdin


def test_stdin_is_looked_for_once_and_merge_takes_files(tmp_path: Path) -> None:
    assert [file.kind for file in sources.discover(["-"])] == ["stdin"]
    with pytest.raises(ConfigError, match="named twice"):
        sources.discover(["-", "-"])
    with pytest.raises(SourceError, match="stdin can't be read by merge: save it to a file first"):
        sources.discover_plain(["-"], "merge")
    gz(tmp_path, gzip.compress(b"{}")).close()
    with pytest.raises(SourceError, match=r"in\.gz is compressed, and can't be read by merge: unpack it first"):
        sources.discover_plain([str(tmp_path / "in.gz")], "merge")


@pytest.mark.parametrize("fed", ["pipe", "non-blocking", "file"])
def test_stdin_is_read_as_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fed: str) -> None:
    """By a blocking caller and by an event loop, whatever it is."""
    (tmp_path / "in").write_bytes(b"{}\n" * 5)
    ours = os.open(tmp_path / "in", os.O_RDONLY)
    theirs = -1
    if fed != "file":
        os.close(ours)
        ours, theirs = os.pipe()
        os.set_blocking(ours, fed == "pipe")
    monkeypatch.setattr(serial, "at_terminal", lambda: False)
    blocks = serial.StdinBlocks()
    blocks._fd = ours

    def give() -> None:
        for _ in range(5):
            time.sleep(0.02)
            os.write(theirs, b"{}\n")
        os.close(theirs)

    async def loop() -> bytes:
        return b"".join([block async for block in until_end(blocks)])

    ways: list[Callable[[], bytes]] = [lambda: read_all(blocks), lambda: asyncio.run(loop())]
    for read in ways:
        giver = threading.Thread(target=give if theirs >= 0 else int)
        giver.start()
        assert read() == b"{}\n" * 5
        giver.join()
        os.close(ours)
        if theirs >= 0:
            ours, theirs = os.pipe()
            os.set_blocking(ours, fed == "pipe")
        else:
            ours = os.open(tmp_path / "in", os.O_RDONLY)
        blocks._fd = ours
    os.close(ours)
    if theirs >= 0:
        os.close(theirs)


async def until_end(blocks: Any) -> AsyncIterator[bytes]:
    while block := await blocks.fetch(files.in_thread):
        yield block


@pytest.mark.parametrize(
    ("head", "name"), [(b"(\xb5/\xfd$", "zstd"), (b"BZh9", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"PK\x03\x04", "zip")]
)
def test_what_is_packed_otherwise_is_named(tmp_path: Path, head: bytes, name: str) -> None:
    with pytest.raises(SourceError, match=f"in-0.jsonl is packed with {name}, which is not read"):
        sources.discover(write(tmp_path, head + b"..."))


# -- rows of a program


def read_all(blocks: Any) -> bytes:
    return b"".join(iter(blocks.read, b""))


def test_rows_become_lines() -> None:
    rows: list[Any] = [{"a": 1, "b": float("nan"), "c": [None, {"d": "ü"}]}, '{"x": 1}', b'{"y": 2}\n', "", " \n"]
    assert read_all(row_blocks(rows)) == '{"a":1,"b":null,"c":[null,{"d":"ü"}]}\n{"x": 1}\n{"y": 2}\n\n \n'.encode()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"a": {1, 2}}, "rows, row 3 has no form in JSON"),
        ({1: "a"}, "rows, row 3 has no form in JSON"),
        ({"a": b"x"}, "rows, row 3 has no form in JSON"),
        (17, "rows, row 3 is a int; give mappings"),
        (["a"], "rows, row 3 is a list"),
        ("a\nb", "rows, row 3 is text with a newline inside"),
    ],
)
def test_a_row_that_json_has_no_word_for_is_named(row: Any, words: str) -> None:
    blocks = row_blocks([{"a": 1}, {"b": 2}, row, {"c": 3}])
    assert blocks.read() == b'{"a":1}\n', "the first row is enough to begin with"
    assert blocks.read() == b'{"b":2}\n'
    for _ in range(2):  # and it stays so: it is never taken for the end
        with pytest.raises(SourceError, match=words) as caught:
            blocks.read()
    assert caught.value.line == 3


def test_blocks_are_bounded_by_bytes_and_by_time() -> None:
    taken = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal taken
        while True:
            taken += 1
            yield {"text": "x" * 1000}

    blocks = RowBlocks(rows(), inline)
    blocks.read()
    taken = 0
    block = blocks.read()
    assert feeds.BLOCK_BYTES <= len(block) < feeds.BLOCK_BYTES + 2000
    assert taken == block.count(b"\n")

    def slow() -> Iterator[dict[str, Any]]:
        for k in range(4):
            yield {"k": k}
            time.sleep(1.5 * feeds.BLOCK_S)

    blocks = RowBlocks(slow(), inline)
    assert [blocks.read(), blocks.read()] == [b'{"k":0}\n', b'{"k":1}\n{"k":2}\n']


def test_async_rows_and_an_error_behind_them() -> None:
    async def rows() -> AsyncIterator[dict[str, int]]:
        yield {"a": 1}
        await asyncio.sleep(0)
        raise KeyError("b")

    async def main() -> None:
        source = Serial(ROWS, row_blocks(rows()))
        assert await source.fetch(inline) == b'{"a":1}\n'
        for _ in range(2):
            with pytest.raises(SourceError, match=r"rows, row 2: .* \(KeyError: 'b'\)") as caught:
                await source.fetch(inline)
            assert isinstance(caught.value.__cause__, KeyError)

    asyncio.run(main())


def test_an_async_iterable_is_advanced_by_one_task_and_only_on_demand() -> None:
    seen: list[Any] = []

    async def rows() -> AsyncIterator[dict[str, Any]]:
        async with asyncio.timeout(30):  # belongs to the task that entered it
            for k in range(5):
                seen.append(asyncio.current_task())
                yield {"k": k}
                if k == 2:
                    await asyncio.sleep(5 * feeds.BLOCK_S)

    async def main() -> None:
        blocks = row_blocks(rows())
        parts = [await asyncio.ensure_future(blocks.fetch(inline)), await blocks.fetch(inline)]
        assert parts == [b'{"k":0}\n', b'{"k":1}\n{"k":2}\n'], "nobody waits for the row that is late"
        parts += [block async for block in until_end(blocks)]
        assert b"".join(parts).count(b"\n") == 5
        blocks.close()

    asyncio.run(main())
    assert len(set(seen)) == 1


def test_an_endless_async_iterable_stands_still_while_nobody_asks() -> None:
    taken = 0

    async def rows() -> AsyncIterator[dict[str, Any]]:
        nonlocal taken
        while True:
            taken += 1
            yield {"text": "x" * 1000}

    async def main() -> None:
        blocks = row_blocks(rows())
        for _ in range(3):
            await blocks.fetch(inline)
        before = taken
        await asyncio.sleep(0.05)
        assert taken == before
        blocks.close()

    asyncio.run(main())


def test_an_iterable_is_advanced_on_one_thread_that_may_be_left() -> None:
    seen: list[int] = []
    gate = threading.Event()

    def rows() -> Iterator[dict[str, int]]:
        for k in range(3):
            seen.append(threading.get_ident())
            yield {"k": k}
        gate.wait(30)

    async def main() -> None:
        blocks = RowBlocks(rows(), OwnThread())
        assert await blocks.fetch(inline) == b'{"k":0}\n'
        waiting = asyncio.ensure_future(blocks.fetch(inline))
        while len(seen) < 3:  # noqa: ASYNC110  another thread fills it
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        blocks.close()

    asyncio.run(main())
    assert len(set(seen)) == 1
    assert seen[0] != threading.get_ident()
    gate.set()


def test_what_a_source_may_be(tmp_path: Path) -> None:
    assert split_source("a.jsonl") == (["a.jsonl"], None)
    paths: list[str | Path] = [tmp_path, "b"]
    assert split_source(paths) == ([str(tmp_path), "b"], None)
    rows: Iterable[dict[str, int]] = iter([{"a": 1}])
    assert split_source(rows) == ([], rows)
    assert split_source([{"a": 1}]) == ([], [{"a": 1}])
    wrong: Any
    for wrong in ([], {"a": 1}, b"a.jsonl", 7, None):
        with pytest.raises(ConfigError, match="The source is a"):
            split_source(wrong)


# -- the other commands


def test_shard_writes_the_same_files_of_a_packed_input(tmp_path: Path) -> None:
    rows = [request(f"id-{k}") if k % 5 else b"broken\n" for k in range(1, 60)]
    (plain,) = write(tmp_path, b"".join(rows))
    packed = tmp_path / "in.gz"
    packed.write_bytes(members(b"".join(rows), 100))
    made = []
    for name, source in (("a", plain), ("b", str(packed))):
        report = cutting.cut([source], str(tmp_path / name), limits=ShardLimits(max_requests=7), workers=0)
        assert (report.good, report.bad) == (48, 11)
        made.append({k: v.replace(source.encode(), b"NAME") for k, v in contents(tmp_path / name).items()})
    assert made[0] == made[1]


def test_preview_looks_into_all_kinds(tmp_path: Path) -> None:
    gz(tmp_path, gzip.compress(b"{broken\n" + request("a") + request("b"))).close()
    looked = preview([str(tmp_path / "in.gz")], Asked(), ShardLimits(), 1)
    assert looked.requests == (request("a"),)
    assert "in.gz, line 1" in looked.unfit[0]
    asked = Asked(model="m", prompt="{{ x }}")
    assert len(preview([], asked, ShardLimits(), 2, ({"x": k} for k in range(5))).requests) == 2


def test_preview_takes_no_more_of_an_async_iterable_than_it_needs() -> None:
    taken = 0

    async def rows() -> AsyncIterator[Any]:
        nonlocal taken
        for k in range(50):
            taken += 1
            yield {"x": k} if k != 1 else {"y": k}

    asked = Asked(model="m", prompt="{{ x }}")
    looked = asyncio.run(preview_async(rows(), asked, ShardLimits(), 3))
    assert (len(looked.requests), len(looked.unfit), taken) == (3, 1, 4)


def test_raw_files_of_unsealed_and_merged_segments_are_swept(tmp_path: Path) -> None:
    run = files.RunFiles(str(tmp_path / "run"))
    run.create()
    for index in range(6):
        Path(run.raw(index)).write_bytes(b"x")
    run.sweep_raw(2, 4)
    assert sorted(path.name for path in run.spool.iterdir()) == ["000002.raw", "000003.raw"]
    run.sync_raw(2)
    run.sync_raw(5)
    run.remove(["000002"])
    assert [path.name for path in run.spool.iterdir()] == ["000003.raw"]
