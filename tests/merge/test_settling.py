"""Settling: the table of classes, generations, and whole jobs against the obvious model."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streambatch.core.jobs import Outcomes, RefusedLine, SegmentCount, Settle
from streambatch.core.models import Usage
from streambatch.core.settling import LEFTABLE, Kind, RowClass, Rules, classify
from streambatch.edge.jobs.settle import settle
from streambatch.errors import JournalError
from tests.merge.rig import Settled, encode, failure, records, success, unanswered, write_ids, write_origins

CASES = [
    (200, None, None, RowClass.OK),
    (201, "whatever", None, RowClass.OK),
    (429, None, None, RowClass.RATE_LIMITED),
    (500, None, None, RowClass.SERVER_ERROR),
    (503, None, "content_policy_violation", RowClass.CONTENT_POLICY),
    (504, None, None, RowClass.SERVER_ERROR),
    (0, None, None, RowClass.SERVER_ERROR),
    (408, None, None, RowClass.SERVER_ERROR),
    (400, None, "invalid_value", RowClass.INVALID_REQUEST),
    (400, None, "content_policy_violation", RowClass.CONTENT_POLICY),
    (404, None, None, RowClass.INVALID_REQUEST),
    (422, None, None, RowClass.INVALID_REQUEST),
    (403, None, None, RowClass.INVALID_REQUEST),
    (302, None, None, RowClass.UNKNOWN),
    (None, "batch_expired", None, RowClass.EXPIRED),
    (None, "batch_cancelled", None, RowClass.CANCELLED),
    (None, "request_timeout", None, RowClass.SERVER_ERROR),
    (None, "429", None, RowClass.RATE_LIMITED),
    (None, "500", None, RowClass.SERVER_ERROR),
    (None, "200", None, RowClass.UNKNOWN),
    (None, "never_seen", None, RowClass.UNKNOWN),
    (None, None, None, RowClass.SERVER_ERROR),
]


@pytest.mark.parametrize(("status", "code", "body_code", "row_class"), CASES)
def test_classify(status: int | None, code: str | None, body_code: str | None, row_class: RowClass) -> None:
    assert classify(status, code, body_code) is row_class


def test_an_unknown_code_is_final_unless_the_service_says_try_again() -> None:
    assert classify(None, "odd", None, "Please try again later.") is RowClass.SERVER_ERROR
    assert classify(None, "odd", None, "Never.") is RowClass.UNKNOWN


@pytest.mark.parametrize("row_class", RowClass)
def test_a_row_is_left_only_while_it_may_run_again(row_class: RowClass) -> None:
    again = Rules(generation=1, max_attempts=3).judge(row_class)
    last = Rules(generation=2, max_attempts=3).judge(row_class)
    if row_class is RowClass.OK:
        assert (again, last) == ((Kind.DONE, 2), (Kind.DONE, 3))
    elif row_class in LEFTABLE:
        assert (again, last) == ((Kind.LEFT, 2), (Kind.ERROR, 3))
    elif row_class is RowClass.REFUSED:
        assert (again, last) == ((Kind.ERROR, 1), (Kind.ERROR, 2))
    else:
        assert (again, last) == ((Kind.ERROR, 2), (Kind.ERROR, 3))


def test_what_does_not_raise_a_generation() -> None:
    cancel = Rules(generation=1, max_attempts=3, user_cancel=True)
    assert cancel.judge(RowClass.CANCELLED) == (Kind.LEFT, 1)
    assert cancel.judge(RowClass.MISSING, found=False) == (Kind.LEFT, 1)
    assert cancel.judge(RowClass.EXPIRED) == (Kind.LEFT, 2)
    assert cancel.judge(RowClass.SERVER_ERROR) == (Kind.LEFT, 2)
    assert cancel.judge(RowClass.OK) == (Kind.DONE, 2)
    assert Rules(generation=1, max_attempts=3).judge(RowClass.CANCELLED) == (Kind.LEFT, 2)
    refused = Rules(generation=1, max_attempts=3, executed=False)
    assert refused.judge(RowClass.REFUSED, found=False) == (Kind.LEFT, 1)
    assert refused.judge(RowClass.REFUSED) == (Kind.ERROR, 1)


# -- whole jobs

IDS = ["0", "row-1", 'quo"te', "back\\slash", "é\u2028\u0085", "漢字", "🙂", " space "]


def run(folder: Path, ids: list[str], output: bytes | None, error: bytes | None, **more: Any) -> Outcomes:
    sizes = {name: more.pop(name) for name in ("block_bytes", "held_bytes") if name in more}
    stem = folder / "000000-0"
    write_ids(stem, ids)
    paths = []
    for ending, data in ((".output", output), (".error", error)):
        path = Path(f"{stem}{ending}")
        if data is not None:
            path.write_bytes(data)
        paths.append(None if data is None else str(path))
    given_spec = {"generation": 0, "max_attempts": 3, "segment": 4, "fsync": False, **more}
    return settle(Settle(stem=str(stem), rows=len(ids), output=paths[0], error=paths[1], **given_spec), **sizes)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    custom_id = draw(st.sampled_from([*IDS, "unknown"]))
    text = draw(st.text(max_size=10)) * draw(st.sampled_from([1, 30]))
    line = draw(
        st.sampled_from(
            [
                success(custom_id, text),
                success(custom_id, text, status=201),
                failure(custom_id, 400, message=text),
                failure(custom_id, 400, "content_policy_violation"),
                failure(custom_id, 429),
                failure(custom_id, 503),
                unanswered(custom_id, "batch_expired"),
                unanswered(custom_id, "odd"),
                {"custom_id": custom_id, "response": {"status_code": 0, "request_id": "", "body": {}}, "error": None},
                {"id": "x", "response": {"status_code": 200, "body": '{"choices": []}'}, "custom_id": custom_id},
                {"custom_id": custom_id, "error": {"code": "request_timeout", "message": text}},
                {"custom_id": custom_id, "response": None, "error": None},
            ]
        )
    )
    return encode(line, ascii_only=draw(st.booleans())) + draw(st.sampled_from([b"", b"\r", b"  "]))


@st.composite
def files(draw: st.DrawFn) -> bytes:
    junk = st.sampled_from([b"", b"  ", b"\r", b"no json", b'{"custom_id": "0"', b"{}{}"])
    data = b"".join(line + b"\n" for line in draw(st.lists(lines() | junk, max_size=9)))
    last = draw(lines())
    cut = draw(st.integers(1, len(last)))
    return data + draw(st.sampled_from([b"", last, last[:cut]]))


@settings(max_examples=150, deadline=None)
@given(files(), files(), st.sampled_from([1, 7, 64, 1 << 20]), st.sampled_from([60, 1 << 20]), st.integers(0, 2))
def test_settling_is_what_the_model_says(output: bytes, error: bytes, block: int, held: int, generation: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = run(Path(folder), IDS, output, error, generation=generation, block_bytes=block, held_bytes=held)
        got = records(Path(folder) / "000000-0")
    model = Settled(IDS, output, error, generation=generation)
    assert got == model.rows
    assert (made.missing, made.duplicate, made.unknown, made.torn) == (
        model.missing,
        model.duplicate,
        model.unknown,
        model.torn,
    )
    kinds = [row[0] for row in model.rows]
    assert (made.done, made.errors) == (kinds.count(Kind.DONE), kinds.count(Kind.ERROR))
    assert made.left == (((generation + 1, kinds.count(Kind.LEFT)),) if Kind.LEFT in kinds else ())
    assert made.segments == (SegmentCount(4, made.done, made.errors, kinds.count(Kind.LEFT)),)


def test_usage_is_summed_over_the_rows_that_won(tmp_path: Path) -> None:
    output = b"".join(encode(success(i)) + b"\n" for i in ("a", "b", "a", "stranger"))
    made = run(tmp_path, ["a", "b", "c"], output, encode(failure("c", 500)))
    assert made.usage == Usage(14, 4, 6)
    long = run(tmp_path, ["a", "b", "c"], output, None, block_bytes=16, held_bytes=16)
    assert long.usage == Usage(14, 4, 6)


def test_a_line_of_many_megabytes_is_never_held(tmp_path: Path) -> None:
    text = encode(success("a", "x" * (8 << 20)))
    made = run(tmp_path, ["a", "b"], text + b"\n" + encode(success("b")), b"")
    assert (made.done, made.usage) == (2, Usage(14, 4, 6))
    assert records(tmp_path / "000000-0")[0][4:] == (0, len(text))
    torn = run(tmp_path, ["a", "b"], encode(success("b")) + b"\n" + text[:-1], None)
    assert (torn.done, torn.torn, torn.missing) == (1, True, 1)


def test_no_files_at_all(tmp_path: Path) -> None:
    made = run(tmp_path, ["a", "b"], None, None)
    assert (made.missing, made.left) == (2, ((1, 2),))
    assert run(tmp_path, ["a"], b"", b"").missing == 1


def test_a_batch_refused_for_some_lines_costs_only_those_rows(tmp_path: Path) -> None:
    refused = (
        RefusedLine(2, "invalid_request", "no model"),
        RefusedLine(2, "other", "second word"),
        RefusedLine(9, "x", "out of range"),
    )
    made = run(tmp_path, ["a", "b", "c"], None, None, executed=False, generation=1, refused=refused)
    assert (made.errors, made.left, made.missing) == (1, ((1, 2),), 0)
    rows = records(tmp_path / "000000-0")
    assert [row[:3] for row in rows] == [
        (Kind.LEFT, RowClass.REFUSED, 1),
        (Kind.ERROR, RowClass.REFUSED, 1),
        (Kind.LEFT, RowClass.REFUSED, 1),
    ]
    notes = (tmp_path / "000000-0.notes").read_bytes()
    assert notes[rows[1][4] :][: rows[1][5]] == b'{"code":"invalid_request","message":"no model"}'


def test_the_users_cancel_burns_no_attempt(tmp_path: Path) -> None:
    error = b"".join(encode(line) + b"\n" for line in (unanswered("a", "batch_cancelled"), failure("b", 500)))
    made = run(tmp_path, ["a", "b", "c"], None, error, user_cancel=True)
    assert (made.left, made.missing) == (((0, 2), (1, 1)), 0)


def test_a_remainder_counts_by_the_segments_its_rows_came_from(tmp_path: Path) -> None:
    stem = tmp_path / "000000-0"
    write_origins(stem, [(3, 7), (1, 0), (3, 9)])
    output = encode(success("a")) + b"\n" + encode(success("b")) + b"\n"
    made = run(tmp_path, ["a", "b", "c"], output, None, segment=None, suffix=".tmp", max_attempts=1)
    assert made.segments == (SegmentCount(1, 1, 0, 0), SegmentCount(3, 1, 1, 0))
    assert Path(f"{stem}.outcome.tmp").exists()
    assert not Path(f"{stem}.notes.tmp").exists()


@pytest.mark.parametrize("cut", [1, 5, 9])
def test_a_damaged_sidecar_is_said(tmp_path: Path, cut: int) -> None:
    run(tmp_path, ["a", "b"], None, None)
    ids = tmp_path / "000000-0.ids"
    ids.write_bytes(ids.read_bytes()[:-cut])
    with pytest.raises(JournalError):
        settle(
            Settle(
                stem=str(tmp_path / "000000-0"),
                segment=0,
                rows=2,
                generation=0,
                max_attempts=3,
                output=None,
                error=None,
            )
        )
