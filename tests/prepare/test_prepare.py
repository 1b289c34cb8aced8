"""The job that makes shards: against a slow obvious model, and for every kind of bad row."""

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.jobs import BadRow, Piece, Prepare, Prepared, ShardFile
from streambatch.core.models import Shaping, ShardLimits
from streambatch.core.rows import Request
from streambatch.core.shaping import make_shaper
from streambatch.edge.jobs import appending, run_job
from streambatch.edge.jobs.prepare import prepare
from streambatch.errors import SourceError, StorageError
from tests.prepare.rig import PLAIN, READY, bad_rows, contents, cut, ids_of, job, request, whole, write

IDS = st.sampled_from(("a", "b", "é", "row-000001", "c" * 40))
READY_LINES = st.one_of(
    st.builds(request, IDS, st.sampled_from(("m", "k")), st.sampled_from(("", "x" * 50, "\u2028\u0085 é 漢"))),
    st.integers(0, 99).map(lambda n: request(f"id-{n}")),
    st.sampled_from((b"\n", b" \r\n", b"{}\n", b"nonsense\n", request(1), request("f", "m")[:-30] + b"\n", b"\xff\n")),
)
PLAIN_LINES = st.sampled_from(
    (b'{"x":"a"}\n', b'{"x":"' + b"y" * 60 + b'"}\n', b'{"x":null}\n', b"\n", b'{"z":1}\n', b"[]\n", b'{"x":"\xff"}\n')
)
LIMITS = st.builds(
    ShardLimits,
    max_requests=st.integers(1, 6),
    max_bytes=st.sampled_from((150, 400, 1000, 10_000)),
    max_line_bytes=st.sampled_from((90, 140, 300, 1 << 20)),
)


class Model:
    """Prepares with everything in memory."""

    def __init__(self, spec: Prepare) -> None:
        self._spec = spec
        self._ids: set[str] = set()
        self.shards: list[tuple[str, list[tuple[int, Request]]]] = []
        self.bad: list[BadRow] = []
        self.lines = self.leading_bad = 0
        for piece in spec.pieces:
            text = Path(piece.path).read_bytes()[piece.start : piece.end]
            lines = [line + b"\n" for line in text.split(b"\n")]
            lines[-1] = lines[-1][:-1]
            for number, line in enumerate(filter(None, lines), piece.first_line + 1):
                self._line(piece, number, line)
                self.lines += 1

    @property
    def rows(self) -> int:
        return len(self.bad) + sum(len(lines) for _, lines in self.shards)

    def _line(self, piece: Piece, number: int, line: bytes) -> None:
        if line.isspace():
            return
        limits = self._spec.limits
        shaped = make_shaper(self._spec.shaping).shape(line, self._spec.first_ordinal + self.lines)
        reason = None
        if len(line) > limits.max_line_bytes:
            reason = f"the line is {len(line)} bytes long, over the limit of {limits.max_line_bytes}"
        elif not isinstance(shaped, Request):
            reason = shaped.reason
        elif len(shaped.line) > limits.max_bytes:
            reason = f"the request is {len(shaped.line)} bytes long, over the limit of {limits.max_bytes}"
        elif shaped.custom_id in self._ids:
            reason = f"custom_id {shaped.custom_id!r} is that of an earlier row too"
        if reason is None:
            assert isinstance(shaped, Request)
            self._good(shaped)
            return
        if not self.shards:
            self.leading_bad += 1
        known = None if len(line) > limits.max_line_bytes else shaped.custom_id
        self.bad.append(BadRow(self.lines, piece.name, number, reason, known))

    def _good(self, shaped: Request) -> None:
        self._ids.add(shaped.custom_id)
        limits = self._spec.limits
        for model, lines in reversed(self.shards):
            if model == shaped.model:
                size = sum(len(made.line) for _, made in lines) + len(shaped.line)
                if len(lines) < limits.max_requests and size <= limits.max_bytes:
                    lines.append((self.lines, shaped))
                    return
                break
        self.shards.append((shaped.model, [(self.lines, shaped)]))

    def check(self, made: Prepared) -> None:
        spec = self._spec
        source = b"".join(Path(p.path).read_bytes()[p.start : p.end] for p in spec.pieces)
        assert made.source_hash == xxhash.xxh3_128_hexdigest(source)
        assert (made.lines, made.rows, made.bad, made.skipped) == (self.lines, self.rows, len(self.bad), 0)
        assert made.leading_bad == self.leading_bad
        assert made.first_bad == (self.bad[0] if self.bad else None)
        assert len(made.shards) == len(self.shards)
        for number, (shard, (model, lines)) in enumerate(zip(made.shards, self.shards, strict=True)):
            assert shard.stem == f"{spec.prefix}-{number}"
            self._check_shard(shard, model, lines)
        assert os.path.exists(f"{spec.prefix}.bad{spec.suffix}") == bool(self.bad)
        if self.bad:
            assert bad_rows(f"{spec.prefix}.bad{spec.suffix}") == self.bad

    def _check_shard(self, shard: ShardFile, model: str, lines: list[tuple[int, Request]]) -> None:
        text = b"".join(made.line for _, made in lines)
        assert Path(f"{shard.stem}.jsonl{self._spec.suffix}").read_bytes() == text
        assert ids_of(f"{shard.stem}.ids{self._spec.suffix}") == [(row, made.custom_id) for row, made in lines]
        digest = xxhash.xxh3_128_hexdigest(text)
        assert (shard.model, shard.rows, shard.bytes, shard.hash) == (model, len(lines), len(text), digest)
        assert len(lines) <= self._spec.limits.max_requests
        assert len(text) <= self._spec.limits.max_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "spool").mkdir()
    return tmp_path


def check_against_model(texts: list[bytes], shaping: Shaping, limits: ShardLimits, block_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        paths = write(Path(name), *texts)
        if any(texts):
            spec = whole(paths, shaping, Path(name) / "000007", limits=limits, suffix=".tmp", fsync=False)
            Model(spec).check(prepare(spec, block_bytes=block_bytes))


@given(st.lists(st.lists(READY_LINES, max_size=12).map(b"".join), min_size=1, max_size=2), LIMITS, st.integers(1, 900))
def test_ready_made_rows_are_prepared_as_in_the_model(texts: list[bytes], limits: ShardLimits, block: int) -> None:
    texts[-1] = texts[-1].removesuffix(b"\n")
    check_against_model(texts, READY, limits, block)


@given(st.lists(PLAIN_LINES, min_size=1, max_size=12), LIMITS, st.integers(1, 900))
def test_plain_rows_are_prepared_as_in_the_model(lines: list[bytes], limits: ShardLimits, block: int) -> None:
    check_against_model([b"".join(lines)], PLAIN, limits, block)


@given(st.integers(1, 5), st.lists(st.integers(0, 60), max_size=4), st.integers(500, 3000))
def test_long_stretches_of_good_rows_with_rare_bad_ones(models: int, bad: list[int], block: int) -> None:
    lines = [request(f"id-{i}", f"m{i // 20 % models}") for i in range(60)]
    for at in bad:
        lines.insert(at, b"{}\n")
    check_against_model([b"".join(lines)], READY, ShardLimits(max_requests=25), block)


# -- each kind of bad row, with its place


GOOD = request("good")
BAD = {
    "not JSON": (b"nonsense\n", "not valid JSON"),
    "not an object": (b"[]\n", "not a JSON object"),
    "no custom_id": (b"{}\n", "no custom_id"),
    "a number as custom_id": (request(7), "custom_id is no string"),
    "no text": (request("u").replace(b"hi", b"\xff\xfe"), "not valid UTF-8"),
    "a second one": (request("good"), "custom_id 'good' is that of an earlier row too"),
    "too long": (request("long", text="y" * 1000), "bytes long, over the limit of 900"),
    "cut off": (request("cut")[:-9] + b"\n", "not valid JSON"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named_by_file_and_line_and_the_others_go_on(folder: Path, kind: str) -> None:
    line, reason = BAD[kind]
    paths = write(folder, GOOD + b"\n", request("b") + line + request("c"))
    limits = ShardLimits(max_line_bytes=900)
    made = run_job(whole(paths, READY, folder / "spool" / "000000", limits=limits))
    assert isinstance(made, Prepared)
    (bad,) = bad_rows(str(folder / "spool" / "000000.bad"))
    assert (bad.row, bad.file, bad.line) == (3, "in-1.jsonl", 2)
    assert reason in bad.reason
    assert (made.lines, made.rows, made.bad, made.leading_bad, made.first_bad) == (5, 4, 1, 0, bad)
    assert (folder / "spool" / "000000-0.jsonl").read_bytes() == GOOD + request("b") + request("c")


@pytest.mark.parametrize("size", [200, 70_000])
def test_a_line_above_the_bound_is_passed_over_in_parts(folder: Path, size: int) -> None:
    paths = write(folder, GOOD + b"x" * size + b"\n" + request("b") + b"y" * size)
    spec = whole(paths, READY, folder / "spool" / "0", limits=ShardLimits(max_line_bytes=150))
    made = prepare(spec, block_bytes=256)
    assert [bad.line for bad in bad_rows(str(folder / "spool" / "0.bad"))] == [2, 4]
    assert made.first_bad is not None
    assert made.first_bad.reason == f"the line is {size + 1} bytes long, over the limit of 150"
    assert made.shards[0].rows == 2


def test_a_blank_line_is_none_whatever_its_length(folder: Path) -> None:
    paths = write(folder, GOOD + b" " * 700_000 + b"\n" + request("b"))
    made = prepare(whole(paths, READY, folder / "spool" / "0", limits=ShardLimits(max_line_bytes=150)), block_bytes=256)
    assert (made.lines, made.rows, made.bad) == (3, 2, 0)


def test_the_first_rows_that_are_bad_are_counted(folder: Path) -> None:
    paths = write(folder, b"{}\n" * 3 + b"\n" + GOOD + b"{}\n")
    made = prepare(whole(paths, READY, folder / "spool" / "0"))
    assert (made.leading_bad, made.bad, made.rows, made.lines) == (3, 4, 5, 6)


def test_skipped_rows_are_no_bad_rows(folder: Path) -> None:
    shaping = Shaping(ready_made=False, model="m", prompt="{{ x }}", null="skip")
    paths = write(folder, b'{"x":null}\n{"x":1}\n{}\n')
    made = prepare(whole(paths, shaping, folder / "spool" / "0"))
    assert (made.rows, made.skipped, made.bad, made.leading_bad) == (3, 1, 1, 0)
    assert [bad.skipped for bad in bad_rows(str(folder / "spool" / "0.bad"))] == [True, False]
    assert made.first_bad is not None
    assert made.first_bad.line == 3


def test_a_job_can_stop_at_the_first_bad_row(folder: Path) -> None:
    paths = write(folder, GOOD + b"{}\n" + b"".join(request(f"r{i}") for i in range(100)))
    made = prepare(whole(paths, READY, folder / "spool" / "0", stop_on_bad=True), block_bytes=200)
    assert made.first_bad is not None
    assert made.first_bad.line == 2
    assert made.rows < 50


# -- files


def test_a_shard_holds_the_bytes_written_not_those_read(folder: Path) -> None:
    text = request("a") + request("b").rstrip(b"\n")
    paths = write(folder, text)
    made = prepare(whole(paths, READY, folder / "spool" / "0", limits=ShardLimits(max_bytes=len(text))))
    assert [shard.rows for shard in made.shards] == [1, 1]


def test_everything_gets_the_suffix_and_the_same_bytes_again(folder: Path) -> None:
    paths = write(folder, GOOD + b"{}\n" + request("b", "k"))
    spool = folder / "spool"
    first = prepare(whole(paths, READY, spool / "0", suffix=".one"))
    names = {name.removesuffix(".one"): data for name, data in contents(spool).items()}
    assert set(names) == {"0-0.jsonl", "0-0.ids", "0-1.jsonl", "0-1.ids", "0.bad"}
    (spool / "0-0.jsonl.two").write_bytes(b"left by a worker that was killed" * 100)
    assert prepare(whole(paths, READY, spool / "0", suffix=".two")) == first
    assert {n.removesuffix(".two"): d for n, d in contents(spool).items() if n.endswith(".two")} == names
    assert (spool / "0-0.jsonl.one").stat().st_mode & 0o777 == 0o600


def test_bare_leaves_out_sidecars_and_hashes(folder: Path) -> None:
    paths = write(folder, GOOD + b"{}\n")
    made = prepare(whole(paths, READY, folder / "spool" / "0", bare=True))
    assert (made.source_hash, made.shards[0].hash) == ("", "")
    assert set(contents(folder / "spool")) == {"0-0.jsonl", "0.bad"}


def test_no_good_row_makes_no_shard(folder: Path) -> None:
    paths = write(folder, b"{}\n\n")
    made = prepare(whole(paths, READY, folder / "spool" / "0"))
    assert made.shards == ()
    assert set(contents(folder / "spool")) == {"0.bad"}


def test_more_models_than_open_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "OPEN_FILES", 3)
    monkeypatch.setattr(appending, "HELD_BYTES", 500)
    lines = [request(f"r{i}", f"m{i % 20}") for i in range(200)]
    paths = write(folder, b"".join(lines))
    spec = whole(paths, READY, folder / "spool" / "0")
    Model(spec).check(prepare(spec))


def test_tokens_are_a_quarter_of_the_bodies_bytes(folder: Path) -> None:
    lines = [request(f"id-{i:03}", text="y" * 100) for i in range(200)]
    paths = write(folder, b"".join(lines))
    body = lines[0].index(b'"body": ') + len(b'"body": ')
    made = prepare(whole(paths, READY, folder / "spool" / "0"))
    assert made.shards[0].tokens == -(-200 * (len(lines[0]) - body - 2) // 4)


# -- what goes wrong outside the rows


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Every write finds the disk full."""
    limits = pytest.MonkeyPatch()

    def write(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    limits.setattr(os, "write", write)
    yield
    limits.undo()


def test_an_input_that_became_shorter_stops_the_job(folder: Path) -> None:
    paths = write(folder, GOOD * 2)
    spec = whole(paths, READY, folder / "spool" / "0")
    os.truncate(paths[0], 50)
    with pytest.raises(SourceError, match=r"in-0\.jsonl ends at byte 50: it has become shorter"):
        run_job(spec)
    assert contents(folder / "spool") == {}


def test_an_input_that_is_gone_stops_the_job(folder: Path) -> None:
    paths = write(folder, GOOD)
    spec = whole(paths, READY, folder / "spool" / "0")
    os.unlink(paths[0])
    with pytest.raises(SourceError, match=r"in-0\.jsonl can't be read: No such file or directory\.") as caught:
        run_job(spec)
    assert caught.value.path == "in-0.jsonl"


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_the_runs_trouble_and_leaves_nothing(folder: Path) -> None:
    paths = write(folder, GOOD)
    with pytest.raises(StorageError, match=r"The disk failed at .*spool.0: No space left on device\. Free some space"):
        run_job(whole(paths, READY, folder / "spool" / "0"))
    assert contents(folder / "spool") == {}


def test_a_folder_that_is_not_there(folder: Path) -> None:
    paths = write(folder, GOOD)
    with pytest.raises(StorageError, match="No such file or directory"):
        run_job(whole(paths, READY, folder / "nowhere" / "0"))


def test_segments_of_a_scan_make_the_whole_input(folder: Path) -> None:
    lines = [request(f"r{i}") for i in range(50)]
    paths = write(folder, b"".join(lines[:20]), b"\xef\xbb\xbf" + b"".join(lines[20:]))
    limits = ShardLimits(max_requests=7)
    text = b""
    for segment in cut(paths, limits):
        made = prepare(job(paths, segment, READY, folder / "spool" / f"{segment.index:06d}", limits=limits))
        assert [shard.rows for shard in made.shards] == [segment.lines]
        text += Path(f"{made.shards[0].stem}.jsonl").read_bytes()
    assert text == b"".join(lines)
