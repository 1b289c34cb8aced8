"""The job that makes a shard of left rows: which rows, in which order, and where it ends."""

import os
import struct
import tempfile
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.jobs import LeftRows, Remainder, RemainderMade
from streambatch.edge.jobs import run_job
from streambatch.edge.jobs.remainder import make_remainder
from streambatch.errors import StorageError
from tests.prepare.rig import contents, ids_of, request

DONE, ERROR, LEFT = 0, 1, 2


def parent(
    folder: Path,
    name: str,
    lines: list[bytes],
    kinds: list[tuple[int, int]],
    origins: list[tuple[int, int]] | None = None,
) -> str:
    """A settled shard: per line (kind, generation). With `origins` it is a remainder, else rows are 10, 11 and on."""
    stem = str(folder / name)
    Path(f"{stem}.jsonl").write_bytes(b"".join(lines))
    ids = [line.split(b'"')[3] for line in lines]
    pack = struct.Struct("<II").pack
    Path(f"{stem}.ids").write_bytes(b"".join(pack(10 + i, len(c)) + c for i, c in enumerate(ids)))
    records = [struct.pack("<BBHIQQ", kind, 0, generation, 0, 0, 0) for kind, generation in kinds]
    Path(f"{stem}.outcome").write_bytes(b"".join(records))
    if origins is not None:
        Path(f"{stem}.origins").write_bytes(b"".join(pack(*origin) for origin in origins))
    return stem


def spec(folder: Path, *sources: LeftRows, max_rows: int = 100, max_bytes: int = 1 << 20) -> Remainder:
    return Remainder(sources, str(folder / "r000000"), "m", max_rows, max_bytes, suffix=".tmp", fsync=False)


def origins_of(path: str) -> list[tuple[int, int]]:
    return list(struct.iter_unpack("<II", Path(path).read_bytes()))


def test_left_rows_of_one_generation_in_their_order(tmp_path: Path) -> None:
    lines = [request(f"r{i}") for i in range(6)]
    stem = parent(tmp_path, "000003-0", lines, [(DONE, 1), (LEFT, 1), (LEFT, 2), (LEFT, 1), (ERROR, 3), (LEFT, 1)])
    made = run_job(spec(tmp_path, LeftRows(stem, 3, True, 1, 1, 3)))
    assert isinstance(made, RemainderMade)
    out = str(tmp_path / "r000000")
    assert Path(f"{out}.jsonl.tmp").read_bytes() == lines[3] + lines[5]
    assert ids_of(f"{out}.ids.tmp") == [(13, "r3"), (15, "r5")]
    assert origins_of(f"{out}.origins.tmp") == [(3, 13), (3, 15)]
    assert (made.taken, made.segments) == ((2,), ((3, 2),))
    assert (made.shard.stem, made.shard.model, made.shard.rows) == (out, "m", 2)
    assert made.shard.hash == xxhash.xxh3_128_hexdigest(lines[3] + lines[5])
    assert made.shard.tokens > 0


def test_rows_of_a_remainder_keep_their_origins(tmp_path: Path) -> None:
    lines = [request(f"r{i}") for i in range(3)]
    stem = parent(tmp_path, "r000009", lines, [(LEFT, 2), (DONE, 2), (LEFT, 2)], [(7, 1), (2, 40), (2, 41)])
    made = make_remainder(spec(tmp_path, LeftRows(stem, None, True, 2, 0, 2)))
    assert origins_of(str(tmp_path / "r000000.origins.tmp")) == [(7, 1), (2, 41)]
    assert made.segments == ((2, 1), (7, 1))


def test_of_a_shard_given_back_every_row_is_left(tmp_path: Path) -> None:
    lines = [request(f"r{i}") for i in range(5)]
    stem = parent(tmp_path, "000000-0", lines, [])
    made = make_remainder(spec(tmp_path, LeftRows(stem, 0, False, 0, 1, 4)))
    assert Path(f"{made.shard.stem}.jsonl.tmp").read_bytes() == b"".join(lines[1:4])


def test_it_ends_before_a_custom_id_that_it_holds(tmp_path: Path) -> None:
    one = parent(tmp_path, "000000-0", [request("a"), request("b")], [])
    two = parent(tmp_path, "000001-0", [request("c"), request("a"), request("d")], [])
    made = make_remainder(spec(tmp_path, LeftRows(one, 0, False, 0, 0, 2), LeftRows(two, 1, False, 0, 0, 3)))
    assert made.taken == (2, 1)
    assert made.segments == ((0, 2), (1, 1))


@pytest.mark.parametrize(
    ("rows", "size", "taken"), [(3, 1 << 20, (2, 1)), (100, 3 * len(request("a")), (2, 1)), (100, 10, (1, 0))]
)
def test_it_ends_at_a_limit_but_takes_one_row(tmp_path: Path, rows: int, size: int, taken: tuple[int, ...]) -> None:
    one = parent(tmp_path, "000000-0", [request("a"), request("b")], [])
    two = parent(tmp_path, "000001-0", [request("c"), request("d")], [])
    left = LeftRows(one, 0, False, 0, 0, 2), LeftRows(two, 1, False, 0, 0, 2)
    assert make_remainder(spec(tmp_path, *left, max_rows=rows, max_bytes=size)).taken == taken


KINDS = st.lists(st.tuples(st.sampled_from((DONE, ERROR, LEFT)), st.integers(1, 2)), max_size=20)


@given(st.lists(KINDS, min_size=1, max_size=4), st.integers(1, 12), st.data())
def test_any_choice_of_rows(parents: list[list[tuple[int, int]]], max_rows: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, sources, expected = Path(name), [], []
        for number, kinds in enumerate(parents):
            lines = [request(f"{number}-{i}") for i in range(len(kinds))]
            stem = parent(folder, f"{number:06d}-0", lines, kinds)
            left = [line for line, kind in zip(lines, kinds, strict=True) if kind == (LEFT, 1)]
            first = data.draw(st.integers(0, len(left)))
            last = data.draw(st.integers(first, len(left)))
            sources.append(LeftRows(stem, number, True, 1, first, last))
            expected += left[first:last]
        made = make_remainder(spec(folder, *sources, max_rows=max_rows))
        assert Path(f"{made.shard.stem}.jsonl.tmp").read_bytes() == b"".join(expected[:max_rows])
        assert sum(made.taken) == made.shard.rows == min(max_rows, len(expected))


@pytest.mark.parametrize("ending", ["jsonl", "ids", "outcome"])
@pytest.mark.parametrize("harm", [os.unlink, lambda path: os.truncate(path, 12)])
def test_a_damaged_spool_is_said_and_leaves_nothing(tmp_path: Path, ending: str, harm: object) -> None:
    stem = parent(tmp_path, "000000-0", [request("a"), request("b")], [(LEFT, 1), (LEFT, 1)])
    assert callable(harm)
    harm(f"{stem}.{ending}")
    before = contents(tmp_path)
    with pytest.raises(StorageError):
        run_job(spec(tmp_path, LeftRows(stem, 0, True, 1, 0, 2)))
    assert contents(tmp_path) == before
