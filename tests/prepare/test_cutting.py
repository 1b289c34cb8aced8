"""The `shard` command's engine: nothing lost, nothing out of order, for any number of workers."""

import json
import os
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streambatch.core.models import ShardLimits
from streambatch.core.shaping import Asked
from streambatch.edge import cutting, sources
from streambatch.edge.cutting import CutReport, cut
from streambatch.errors import ConfigError, SourceError, StorageError
from tests.prepare.rig import contents, request, write

LINES = st.one_of(
    st.integers(0, 500).map(lambda n: request(f"id-{n}", "mk"[n % 7 == 0])),
    st.sampled_from((b"\n", b" \r\n", b"{}\n")),
)
FIRST = request("first")
BOM = b"\xef\xbb\xbf"


def shards(folder: Path) -> list[bytes]:
    """What the shards hold, in the order of their names."""
    names = sorted(name for name in os.listdir(folder) if name.startswith("shard-"))
    assert names == [f"shard-{number:06d}.jsonl" for number in range(len(names))]
    return [(folder / name).read_bytes() for name in names]


def errors(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "errors.jsonl").read_bytes().split(b"\n")[:-1]]


def run(texts: list[bytes], folder: Path, **options: Any) -> tuple[CutReport, dict[str, bytes]]:
    report = cut(write(folder, *texts), str(folder / "out"), **options)
    return report, contents(folder / "out")


@given(st.lists(st.lists(LINES, max_size=20).map(b"".join), min_size=1, max_size=3), st.integers(1, 6))
def test_shards_are_the_good_rows_in_order_within_limits(texts: list[bytes], rows: int) -> None:
    texts[0] = FIRST + texts[0]
    with tempfile.TemporaryDirectory() as name:
        limits = ShardLimits(max_requests=rows, max_bytes=1000)
        report, made = run(texts, Path(name), limits=limits)
        held = [BytesIO(shard).readlines() for shard in shards(Path(name) / "out")]
        bad = [row["ordinal"] for row in errors(Path(name) / "out")] if report.bad else []
    for shard in held:
        assert len(shard) <= rows
        assert sum(map(len, shard)) <= 1000
        assert len(set(map(model_of, shard))) == 1
    lines = [line for text in texts for line in BytesIO(text).readlines()]
    good = [line for at, line in enumerate(lines) if line.strip() and at not in bad]
    for model in "mk":
        assert [line for shard in held for line in shard if model_of(line) == model] == [
            line for line in good if model_of(line) == model
        ]
    assert (report.rows, report.good, report.bad) == (len(good) + len(bad), len(good), len(bad))
    assert len(made) == report.shards + bool(bad)


def model_of(line: bytes) -> Any:
    return json.loads(line)["body"]["model"]


@pytest.mark.process
@settings(max_examples=8, deadline=None)
@given(st.lists(st.lists(LINES, max_size=60).map(b"".join), min_size=1, max_size=3), st.integers(1, 9))
def test_any_number_of_workers_makes_the_same(texts: list[bytes], rows: int) -> None:
    texts[0] = FIRST + texts[0]
    limits = ShardLimits(max_requests=rows)
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "SMALL_BYTES", 0)
        for workers in (0, 1, 3):
            with tempfile.TemporaryDirectory() as name:
                report, made = run(texts, Path(name), limits=limits, workers=workers)
                made.pop("errors.jsonl", None)  # names its input, which differs
                results.append((report.rows, report.good, report.bad, report.shards, report.bytes, made))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("block", [150, 1 << 20])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.process)])
def test_blank_lines_do_not_change_where_it_cuts(
    tmp_path: Path, workers: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "SMALL_BYTES", 0)
    monkeypatch.setattr(sources, "BLOCK_BYTES", block)  # in a small one only newlines are counted
    lines = [request(f"r{i}") for i in range(40)]
    text = (
        BOM
        + b"".join(lines[:4])
        + b"\n"
        + b"".join(lines[4:10])
        + b"\n\n \n"
        + b"".join(lines[10:13])
        + b"\n"
        + b"".join(lines[13:])
    )
    report, made = run([text], tmp_path, limits=ShardLimits(max_requests=10), workers=workers)
    assert shards(tmp_path / "out") == [b"".join(lines[i : i + 10]) for i in range(0, 40, 10)]
    assert (report.rows, report.shards, len(made)) == (40, 4, 4)


def test_bad_rows_are_listed_with_their_places(tmp_path: Path) -> None:
    one = request("a") + b"\nbroken\n"
    two = request("b") + request("b") + request("c")
    report, _ = run([one, two], tmp_path)
    first, second = errors(tmp_path / "out")
    file = str(tmp_path / "in-0.jsonl")
    assert list(first) == ["ordinal", "file", "line", "custom_id", "class", "reason", "attempts", "result"]
    assert (first["ordinal"], first["file"], first["line"], first["custom_id"]) == (2, file, 3, None)
    assert (second["ordinal"], second["line"], second["custom_id"]) == (4, 2, "b")
    assert {(row["class"], row["attempts"], row["result"]) for row in (first, second)} == {("bad_row", 0, None)}
    assert (report.rows, report.good, report.bad, report.errors) == (5, 3, 2, str(tmp_path / "out" / "errors.jsonl"))
    assert report.first_bad is not None
    assert report.first_bad.line == 3


def test_plain_rows_and_skipped_ones(tmp_path: Path) -> None:
    asked = Asked(model="m", prompt="{{ x }}", null="skip", emit="results")
    report, made = run([b'{"x":1}\n{"x":null}\n{"x":2}\n'], tmp_path, asked=asked)
    assert (report.rows, report.good, report.skipped, report.bad) == (3, 2, 1, 0)
    assert list(made) == ["shard-000000.jsonl"]


def test_a_limit_ends_it(tmp_path: Path) -> None:
    report, _ = run([b"".join(request(f"r{i}") for i in range(10))], tmp_path, limit=7, limits=ShardLimits(5))
    assert (report.rows, report.shards) == (7, 2)


def test_an_empty_input_makes_an_empty_folder(tmp_path: Path) -> None:
    report, made = run([b"", b"\n"], tmp_path)
    assert (report, made) == (CutReport(), {})


def test_progress_is_told_after_each_segment(tmp_path: Path) -> None:
    seen: list[int] = []
    text = b"".join(request(f"r{i}") for i in range(10))
    run([text], tmp_path, limits=ShardLimits(4), on_progress=lambda report: seen.append(report.good))
    assert seen == [4, 8, 10]


# -- what is there already


def test_old_shards_are_kept_or_skipped_or_replaced(tmp_path: Path) -> None:
    many, few = [request(f"r{i}") for i in range(4)], [request("x"), b"{}\n"]
    run([b"".join(many)], tmp_path, limits=ShardLimits(1))
    before = contents(tmp_path / "out")
    with pytest.raises(ConfigError, match="holds shards already"):
        run([b"".join(few)], tmp_path)
    report, made = run([b"".join(few)], tmp_path, if_exists="skip")
    assert report.existed
    assert made == before
    (tmp_path / "out" / "notes.txt").write_text("mine")
    report, made = run([b"".join(few)], tmp_path, if_exists="overwrite")
    assert set(made) == {"shard-000000.jsonl", "errors.jsonl", "notes.txt"}
    assert made["shard-000000.jsonl"] == few[0]


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "shard-000000.jsonl").write_bytes(request("a"))
    with pytest.raises(ConfigError, match="is an input and would be overwritten"):
        cut([str(tmp_path / "shard-000000.jsonl")], str(tmp_path), if_exists="overwrite")
    assert contents(tmp_path) == {"shard-000000.jsonl": request("a")}


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_an_output_that_is_no_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (path,) = write(tmp_path, request("a"))
    with pytest.raises(ConfigError, match=r"file.* Not a directory|file.*\(Not a directory\)"):
        cut([path], str(tmp_path / name))


# -- it leaves nothing behind when it fails


GOOD = [request(f"r{i}") for i in range(20)]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.process)])
def test_an_interrupt_leaves_nothing(tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "SMALL_BYTES", 0)

    def interrupt(report: CutReport) -> None:
        if report.shards == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([b"".join(GOOD)], tmp_path, limits=ShardLimits(2), workers=workers, on_progress=interrupt)
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.process)])
def test_a_bad_row_can_stop_it(tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "SMALL_BYTES", 0)
    text = b"".join(GOOD[:9]) + b"{}\n" + b"".join(GOOD[9:])
    with pytest.raises(SourceError, match="line 10: no custom_id; mend the row") as caught:
        run([text], tmp_path, limits=ShardLimits(2), workers=workers, on_bad_row="stop")
    assert (caught.value.path, caught.value.line) == (str(tmp_path / "in-0.jsonl"), 10)
    assert contents(tmp_path / "out") == {}


def test_a_hundred_bad_rows_first_mean_that_the_settings_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="The first 100 rows are all bad"):
        run([request(1) * 100 + GOOD[0]], tmp_path)
    report, _ = run([request(1) * 99 + GOOD[0]], tmp_path)
    assert report.bad == 99


def test_a_missing_input_is_said_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="can't be read"):
        cut([str(tmp_path / "missing")], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fails_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(old: str, new: str) -> None:
        raise OSError(28, os.strerror(28), new)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(StorageError, match="No space left on device"):
        run([b"".join(GOOD)], tmp_path)
    monkeypatch.undo()
    assert contents(tmp_path / "out") == {}
