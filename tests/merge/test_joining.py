"""The `merge` command's engine against the obvious model: any files, any order, and every way a result can be amiss."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streambatch.core.joins import RowNames
from streambatch.edge import diskjoin, fastjoin, joinfiles
from streambatch.edge.joining import join
from streambatch.edge.jointask import JoinReport
from streambatch.errors import ConfigError, SourceError
from tests.merge.rig import Line, encode, failure, model_class, success, unanswered


def request(custom_id: str, text: str = "t") -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line).encode()


class Model:
    """What a join must find, read in the obvious way."""

    def __init__(self, rows: list[bytes], results: list[bytes], name: Any) -> None:
        best: dict[str, tuple[str, bytes]] = {}
        self.nameless = self.duplicate = 0
        for data in results:
            *whole, last = data.split(b"\n")
            for raw in [*whole, *([last] if last.endswith(b"}") else [])]:
                if not raw.strip():
                    continue
                try:
                    line = json.loads(raw)
                    key, label = line["custom_id"], model_class(line).label
                except (ValueError, KeyError):
                    self.nameless += 1
                    continue
                self.duplicate += key in best
                if key not in best or (best[key][0] != "ok" and label == "ok"):
                    best[key] = (label, raw)
        self.out: list[bytes] = []
        self.errors: list[tuple[int, str | None, str]] = []
        self.rows = 0
        used: set[str] = set()
        for ordinal, row in enumerate(rows):
            if not row.strip():
                continue
            self.rows += 1
            key = name(row, ordinal)
            if key is None:
                self.errors.append((ordinal, key, "bad_row"))
                continue
            label, raw = ("missing", b"") if key in used else best.get(key, ("missing", b""))
            used |= {key} if key in best else set()
            if label == "ok":
                self.out.append(raw)
            else:
                self.errors.append((ordinal, key, label))
        self.unknown = len(best.keys() - used)


def by_custom_id(row: bytes, ordinal: int) -> str | None:
    try:
        key = json.loads(row)["custom_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return key if isinstance(key, str) else None


def by_ordinal(row: bytes, ordinal: int) -> str | None:
    try:
        return str(ordinal) if isinstance(json.loads(row), dict) else None
    except ValueError:
        return None


def check(
    folder: Path, inputs: list[list[bytes]], results: list[bytes], name: Any = by_custom_id, **options: Any
) -> JoinReport:
    names = []
    for k, rows in enumerate(inputs):
        (folder / f"in{k}.jsonl").write_bytes(b"".join(row + b"\n" for row in rows))
        names.append(str(folder / f"in{k}.jsonl"))
    paths = []
    for k, data in enumerate(results):
        (folder / f"res{k}.jsonl").write_bytes(data)
        paths.append(str(folder / f"res{k}.jsonl"))
    out = folder / "out.jsonl"
    report = join(names, paths, str(out), **{"workers": 1, "if_exists": "overwrite", "emit": "results", **options})
    model = Model([row for rows in inputs for row in rows], results, name)
    assert out.read_bytes() == b"".join(line + b"\n" for line in model.out)
    errors = []
    if report.errors_path is not None:
        errors = [json.loads(line) for line in Path(report.errors_path).read_bytes().split(b"\n")[:-1]]
    assert [(e["ordinal"], e["class"]) for e in errors] == [(o, c) for o, _, c in model.errors]
    assert [e["custom_id"] for e in errors if e["class"] != "bad_row"] == [
        k for _, k, c in model.errors if c != "bad_row"
    ]
    firsts = [0]
    for rows in inputs:
        firsts.append(firsts[-1] + len(rows))
    for error in errors:
        file = int(error["file"].removesuffix(".jsonl")[-1])
        assert firsts[file] + error["line"] - 1 == error["ordinal"]
    found = (report.rows, report.done, report.errors, report.unknown, report.duplicate, report.nameless)
    assert found == (model.rows, len(model.out), len(model.errors), model.unknown, model.duplicate, model.nameless)
    assert report.missing == sum(c == "missing" for _, _, c in model.errors)
    assert sorted(path.name for path in folder.iterdir() if "merging" in path.name) == []
    return report


def write(lines: list[bytes], *, last: bytes = b"\n") -> bytes:
    return b"\n".join(lines) + last if lines else b""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and partitions so small that a few rows make many."""
    monkeypatch.setattr(joinfiles, "CHUNK_BYTES", 700)
    monkeypatch.setattr(diskjoin, "ROWS_PER_PARTITION", 3)


@pytest.fixture
def only_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the general way was gone")

    monkeypatch.setattr("streambatch.edge.joining.join_on_disk", fail)


def ids(count: int, *, padded: bool = True) -> list[str]:
    return [f"row-{(k * 7919) % 10007:06d}" if padded else f"r{k * k}" for k in range(count)]


# -- the usual case


@pytest.mark.usefixtures("only_fast")
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("order", [1, -1])
def test_one_file_per_batch_goes_the_fast_way(tmp_path: Path, padded: bool, order: int) -> None:
    names, shuffled = ids(900, padded=padded), random.Random(2)
    files = []
    for at in range(0, 900, 300):
        lines = [encode(success(name, "x" * (k % 50))) for k, name in enumerate(names[at : at + 300])]
        shuffled.shuffle(lines)
        files.append(write(lines, last=b"" if at == 300 else b"\n"))
    rows = [request(name, "y" * (k % 40)) for k, name in enumerate(names)]
    report = check(tmp_path, [rows[:450], rows[450:]], files[::order])
    assert (report.done, report.errors_path) == (900, None)


@pytest.mark.usefixtures("only_fast")
def test_errors_and_missing_rows_go_the_fast_way_too(tmp_path: Path) -> None:
    names = ids(400)
    good: list[bytes] = []
    bad: list[bytes] = []
    for k, name in enumerate(names):
        if k % 50 == 7:
            bad.append(encode(failure(name, 400)))
        elif k % 90 != 5:
            good.append(encode(success(name)))
    rows: list[bytes] = [request(name) for name in names]
    rows[100:100] = [b"", b"no json", b'{"custom_id": 5}', b" \t"]
    half = len(good) // 2
    files = [write(good[:half]), write(bad), write(good[half:]), b""]
    check(tmp_path, [rows[:130], rows[130:]], files)


@pytest.mark.usefixtures("only_fast")
def test_ids_that_are_escaped_differently_are_the_same(tmp_path: Path) -> None:
    names = [f"é\u2028{k}🙂" for k in range(50)]
    lines = [encode(success(name), ascii_only=bool(k % 2)) for k, name in enumerate(names)]
    rows = [json.dumps(json.loads(request(name)), ensure_ascii=bool(k % 3)).encode() for k, name in enumerate(names)]
    check(tmp_path, [rows], [write(lines)])


# -- any case


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[bytes]], list[bytes]]:
    names = draw(st.lists(st.sampled_from(["a", "b", "row-1", "row-2", "row-10", 'q"', "é", "\u2028"]), max_size=14))
    names += [f"n{k}" for k in range(draw(st.sampled_from([0, 0, 40])))]
    rows = [request(name, draw(st.sampled_from(["", "text" * 9]))) for name in names]
    for junk in draw(st.lists(st.sampled_from([b"", b" ", b"[]", b"x", b'{"custom_id": null}']), max_size=3)):
        rows.insert(draw(st.integers(0, len(rows))), junk)
    if rows and not rows[0].startswith(b'{"custom_id": "'):
        rows.insert(0, request("first"))
    lines: list[bytes] = []
    for name in dict.fromkeys([*names, *draw(st.sampled_from([[], ["stranger"]]))]):
        kinds: list[Line] = [
            success(name),
            success(name, "t" * 200),
            failure(name, 500),
            unanswered(name, "batch_expired"),
        ]
        some = draw(st.sampled_from([[0], [0], [1], [2], [3], [], [0, 0], [2, 0], [0, 3], [2, 3]]))
        if names.count(name) > 1:
            some = some[:1]  # of two, either may go to either row
        lines += [encode(kinds[k], ascii_only=draw(st.booleans())) for k in some]
    lines += draw(st.sampled_from([[], [b"garbage"], [b"", b'{"a": 1}']]))
    if draw(st.booleans()):
        draw(st.randoms(use_true_random=False)).shuffle(lines)
    cut, half = draw(st.integers(0, len(lines))), draw(st.integers(0, len(rows)))
    files = [write(lines[:cut], last=draw(st.sampled_from([b"", b"\n"]))), write(lines[cut:])]
    return [rows[:half], rows[half:]], files


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases())
def test_joining_is_what_the_model_says(
    small: None, tmp_path: Path, case: tuple[list[list[bytes]], list[bytes]]
) -> None:
    check(tmp_path, *case)


def test_results_in_no_order_across_files(small: None, tmp_path: Path) -> None:
    names = ids(300)
    lines = [encode(success(name)) for name in names]
    random.Random(5).shuffle(lines)
    check(tmp_path, [[request(name) for name in names]], [write(lines[:100]), write(lines[100:])])


def test_with_worker_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("streambatch.edge.joining.SMALL_BYTES", 0)
    names = ids(400)
    lines = [encode(success(name)) for name in names]
    rows = [request(name) for name in names]
    check(tmp_path, [rows], [write(lines[:200]), write(lines[200:])], workers=2)
    random.Random(5).shuffle(lines)
    check(tmp_path, [rows], [write(lines[:200]), write(lines[200:])], workers=2)


@pytest.mark.usefixtures("small")
def test_plain_rows_are_called_by_their_ordinal(tmp_path: Path) -> None:
    rows = [b'{"n": %d}' % k for k in range(40)]
    rows[3:3] = [b"", b"[]"]
    lines = [encode(success(str(k))) for k in range(41, -1, -1) if k % 7]
    check(tmp_path, [rows[:9], rows[9:]], [write(lines)], by_ordinal)


def test_plain_rows_are_called_by_a_field(tmp_path: Path) -> None:
    rows = [b'{"key": "%d", "n": 1}' % k if k % 2 else b'{"n": 1, "key": %d}' % k for k in range(40)] + [b'{"n": 2}']
    lines = [encode(success(str(k))) for k in range(40)]

    def by_key(row: bytes, _: int) -> str | None:
        key = json.loads(row).get("key")
        return None if key is None else str(key)

    check(tmp_path, [rows], [write(lines)], by_key, id_field="key")


@pytest.mark.usefixtures("small")
def test_rows_with_their_answers(tmp_path: Path) -> None:
    rows = [b'{"n": %d}' % k for k in range(30)] + [b"no json", b"", b'{"answer": 1}']
    (tmp_path / "in").write_bytes(write(rows))
    lines = [encode(success(str(k), f"t{k}")) for k in range(30) if k != 4] + [encode(failure("4", 404))]
    (tmp_path / "res").write_bytes(write(lines))
    report = join([str(tmp_path / "in")], [str(tmp_path / "res")], str(tmp_path / "out"))  # plain rows: `rows`
    out = [json.loads(line) for line in (tmp_path / "out").read_bytes().split(b"\n")[:-1]]
    expected = [
        {"n": k, "answer": f"t{k}" if k != 4 else None, "answer_error": None if k != 4 else "no"} for k in range(30)
    ]
    assert out == [*expected, {"answer": 1}]
    assert (report.rows, report.done, report.errors, report.missing) == (32, 29, 3, 1)


def test_long_lines_on_both_sides(tmp_path: Path) -> None:
    names = ids(6)
    rows = [request(name, "y" * (2 << 20 if k == 2 else 9)) for k, name in enumerate(names)]
    lines = [encode(success(name, "x" * (3 << 20 if k % 2 else 9))) for k, name in enumerate(names)]
    check(tmp_path, [rows], [write(lines[::-1])])
    check(tmp_path, [rows], [write(lines[:3]), write(lines[3:], last=b"")])


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(write([request("a"), request("b")]))
    (tmp_path / "res").write_bytes(encode(success("a")) + b"\n" + encode(success("b"))[:-9])
    report = join([str(tmp_path / "in")], [str(tmp_path / "res")], str(tmp_path / "out"))
    assert (report.done, report.missing, report.torn) == (1, 1, (str(tmp_path / "res"),))


@pytest.mark.parametrize("pad", [0, 2 << 20])
def test_a_malformed_line_is_told_apart_from_a_missing_one(tmp_path: Path, pad: int) -> None:
    broken = encode(success("b", "x" * pad))[: pad + 80]
    (tmp_path / "in").write_bytes(write([request("a"), request("b"), request("c")]))
    (tmp_path / "res").write_bytes(write([broken, encode(success("a"))]))
    report = join([str(tmp_path / "in")], [str(tmp_path / "res")], str(tmp_path / "out"))
    assert (report.done, report.errors, report.missing) == (1, 2, 1)
    told = [json.loads(line) for line in (tmp_path / "out.errors").read_bytes().split(b"\n")[:-1]]
    assert [(line["custom_id"], line["class"]) for line in told] == [("b", "malformed"), ("c", "missing")]


# -- what may not be


def test_existing_output(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(write([request("a")]))
    (tmp_path / "res").write_bytes(encode(failure("a", 400)))
    paths = ([str(tmp_path / "in")], [str(tmp_path / "res")], str(tmp_path / "out"))
    assert join(*paths).errors == 1
    assert (tmp_path / "out").read_bytes() == b""
    with pytest.raises(ConfigError, match="exists"):
        join(*paths)
    assert join(*paths, if_exists="skip") == JoinReport(existed=True)
    (tmp_path / "res").write_bytes(encode(success("a")))
    assert join(*paths, if_exists="overwrite").errors_path is None
    assert not (tmp_path / "out.errors").exists()


def test_nothing_that_is_read_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(write([request("a")]))
    (tmp_path / "res").write_bytes(write([encode(success("a"))]))
    with pytest.raises(ConfigError, match="is read"):
        join([str(tmp_path / "in")], [str(tmp_path / "res")], str(tmp_path / "res"), if_exists="overwrite")
    with pytest.raises(SourceError, match="gone"):
        join([str(tmp_path / "gone")], [str(tmp_path / "res")], str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="can be written"):
        join([str(tmp_path / "in")], [str(tmp_path / "res")], str(tmp_path / "no" / "out"))


def test_an_empty_input(tmp_path: Path) -> None:
    check(tmp_path, [[]], [write([encode(success("a"))])])
    check(tmp_path, [[b""]], [b""])


def test_slices_hold_names_of_one_file_at_most(tmp_path: Path) -> None:
    """A scattered file is given up before the whole input is searched for it."""
    from streambatch.core.joins import JoinSlice
    from streambatch.edge.jobs.locating import MAX_GAP
    from streambatch.edge.jobs.slicing import join_slice

    names = ids(2 * MAX_GAP + 10)
    (tmp_path / "in").write_bytes(write([request(name) for name in names]))
    (tmp_path / "res").write_bytes(write([encode(success(names[0])), encode(success(names[-1]))]))
    spans = joinfiles.row_spans([str(tmp_path / "in")]), joinfiles.result_spans([str(tmp_path / "res")])
    spec = JoinSlice(spans[0], RowNames(True), spans[1][0], 0, str(tmp_path / "spill"))
    assert not join_slice(spec).fits
    assert fastjoin.MAX_GAP_BYTES < 1 << 30
