"""Merging whole segments, with remainders, against the obvious model; answers, reasons, and what is refused."""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from streambatch.core.jobs import BadRow, Merge, MergedFiles, MergePart, Piece, Settle
from streambatch.core.merging import OTHERS, REASONS_HELD, Reasons
from streambatch.core.replies import AnswerColumn, AnswerReader
from streambatch.core.settling import RECORD, Kind, RowClass
from streambatch.edge.jobs.merge import merge
from streambatch.edge.jobs.settle import settle
from streambatch.errors import JournalError, SourceError
from tests.merge.rig import Line, encode, failure, records, success, unanswered, write_ids, write_origins

SEGMENT, FIRST_ORDINAL, ATTEMPTS = 3, 100, 3


class Segment:
    """A segment's files as the engine leaves them for the merge; every row is one line of `source`."""

    def __init__(self, folder: Path, source: list[bytes], *, end: bytes = b"\n") -> None:
        self.folder = folder
        self.source = source
        self.bad: dict[int, BadRow] = {}
        self.parts: list[MergePart] = []
        self.ended: dict[int, tuple[RowClass, bytes | None, int]] = {}  # class, service's line, attempts
        data = b"\n".join(source) + (end if source else b"")
        (folder / "in.jsonl").write_bytes(b"first\n" + data)
        self.hash = xxhash.xxh3_128(data).hexdigest()
        self.size = len(data)

    def custom_id(self, row: int) -> str:
        return str(FIRST_ORDINAL + row)

    def mark_bad(self, row: int, *, skipped: bool = False) -> None:
        self.bad[row] = BadRow(row, "in.jsonl", row + 2, "it is bad", "its id", skipped)

    def batch(
        self, name: str, rows: list[int], lines: dict[int, list[Line]], *, generation: int, alien: int = 0
    ) -> list[int]:
        """Settle one shard; `lines` are its results by row. The rows that are left."""
        stem, remainder = self.folder / name, generation > 0
        ids = [*(self.custom_id(row) for row in rows), *(f"alien-{n}" for n in range(alien))]
        write_ids(stem, ids, [*rows, *range(alien)])
        if remainder:
            write_origins(stem, [*((SEGMENT, row) for row in rows), *((SEGMENT + 1, n) for n in range(alien))])
        files: tuple[list[bytes], list[bytes]] = ([], [])
        for row in rows:
            for line in lines.get(row, []):
                files[row % 2].append(encode(line))
        paths = [f"{stem}.output", f"{stem}.error"]
        for path, texts in zip(paths, files, strict=True):
            Path(path).write_bytes(b"\n".join(texts[::-1]))  # no newline at the end
        made = settle(
            Settle(
                stem=str(stem), segment=None if remainder else SEGMENT, rows=len(ids), generation=generation,
                max_attempts=ATTEMPTS, output=paths[0], error=paths[1], fsync=False,
            )
        )  # fmt: skip
        assert made.missing >= alien
        self.parts.append(MergePart(str(stem), None if remainder else SEGMENT, *paths))
        return self._remember(rows, [(Path(p).read_bytes()) for p in paths], records(stem))

    def _remember(self, rows: list[int], data: list[bytes], found: list[Any]) -> list[int]:
        for row, (kind, row_class, attempts, file, offset, length) in zip(rows, found, strict=False):
            line = data[file][offset : offset + length] if length else None
            self.ended[row] = (RowClass(row_class), line, attempts)
            assert kind == Kind.LEFT or attempts <= ATTEMPTS
        return [row for row, record in zip(rows, found, strict=False) if record[0] == Kind.LEFT]

    def spec(self, emit: str = "results", **more: Any) -> Merge:
        bad = self.folder / "000003.bad"
        bad.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in self.bad.values()))
        half = len(self.source) // 2
        middle = sum(len(line) + 1 for line in self.source[:half])
        path = str(self.folder / "in.jsonl")
        pieces = (
            Piece(path, "in.jsonl", 6, 6 + middle, 1, 0),
            Piece(path, "in.jsonl", 6 + middle, 6 + self.size, 1 + half, half),
        )
        fields: dict[str, Any] = {
            "segment": SEGMENT, "pieces": pieces, "first_ordinal": FIRST_ORDINAL, "lines": len(self.source),
            "source_hash": self.hash, "parts": tuple(self.parts), "bad": str(bad) if self.bad else None, "emit": emit,
            "column": "answer", "endpoint": "/v1/chat/completions", "id_field": None,
            "out": str(self.folder / "out"), "err": str(self.folder / "err"),
            "rows": sum(1 for line in self.source if line.strip()),
        }  # fmt: skip
        return Merge(**{**fields, **more})

    def merge(self, emit: str = "results", **more: Any) -> tuple[MergedFiles, list[bytes], list[dict[str, Any]]]:
        made = merge(self.spec(emit, **more))
        out, err = ((self.folder / name).read_bytes() for name in ("out", "err"))
        assert (made.out_bytes, made.err_bytes) == (len(out), len(err))
        assert out[-1:] in (b"", b"\n")
        return made, out.split(b"\n")[:-1], [json.loads(line) for line in err.split(b"\n")[:-1]]

    # -- the model

    def errors(self) -> list[dict[str, Any]]:
        found = []
        for row in range(len(self.source)):
            place = {"ordinal": FIRST_ORDINAL + row, "file": "in.jsonl", "line": row + 2}
            bad = self.bad.get(row)
            if bad is not None and not bad.skipped:
                found.append({**place, "custom_id": "its id", "class": "bad_row", "attempts": 0, "result": None})
            elif row in self.ended and self.ended[row][0] is not RowClass.OK:
                row_class, line, attempts = self.ended[row]
                result = None if line is None else json.loads(line)
                found.append(
                    {
                        **place,
                        "custom_id": self.custom_id(row),
                        "class": row_class.label,
                        "attempts": attempts,
                        "result": result,
                    }
                )
        return found


@st.composite
def outcomes(draw: st.DrawFn, custom_id: str) -> list[Line]:
    texts = st.text(max_size=5)
    good = st.builds(success, st.just(custom_id), texts)
    poor = st.sampled_from([failure(custom_id, 429), failure(custom_id, 500), unanswered(custom_id, "batch_expired")])
    final = st.sampled_from([failure(custom_id, 400, "c"), unanswered(custom_id, "odd")])
    return draw(st.sampled_from([[draw(good)], [draw(poor)], [draw(final)], [], [draw(poor), draw(good)]]))


SOURCE = st.sampled_from(
    [
        b'{"a": 1}',
        b"{}",
        b' {"b": "\xe2\x80\xa8"} \r',
        b"",
        b" \t",
        b"[1]",
        b"no json",
        b'{"answer": 1}',
        b'{"skip": null}',
        b"{\xff}",
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(SOURCE, max_size=14), st.data(), st.booleans(), st.sampled_from([b"\n", b""]))
def test_merging_is_what_the_model_says(source: list[bytes], data: st.DataObject, rows: bool, end: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        if source and not source[-1]:
            end = b"\n"
        segment = Segment(Path(name), source, end=end)
        sent = _sort_out(segment)
        cut = data.draw(st.integers(0, len(sent)))
        left = []
        for k, shard in enumerate((sent[:cut], sent[cut:])):
            left += segment.batch(f"000003-{k}", shard, _results(segment, shard, data), generation=0)
        for generation in range(1, ATTEMPTS):
            left = segment.batch(f"r{generation}", left, _results(segment, left, data), generation=generation, alien=1)
        assert not left
        made, out, err = segment.merge("rows" if rows else "results")
        _compare(segment, made, out, err, rows=rows)


def _sort_out(segment: Segment) -> list[int]:
    """Mark bad rows as preparing would; the rows that are sent."""
    sent = []
    for row, line in enumerate(segment.source):
        if line in (b"[1]", b"no json", b'{"answer": 1}', b"{\xff}"):
            segment.mark_bad(row)
        elif line == b'{"skip": null}':
            segment.mark_bad(row, skipped=True)
        elif line.strip():
            sent.append(row)
    return sent


def _results(segment: Segment, rows: list[int], data: st.DataObject) -> dict[int, list[Line]]:
    return {row: data.draw(outcomes(segment.custom_id(row))) for row in rows}


def _compare(segment: Segment, made: MergedFiles, out: list[bytes], err: list[dict[str, Any]], *, rows: bool) -> None:
    assert [{k: v for k, v in line.items() if k != "reason"} for line in err] == segment.errors()
    assert [list(line) for line in err] == [
        ["ordinal", "file", "line", "custom_id", "class", "reason", "attempts", "result"] for _ in err
    ]
    done = {row: line for row, (row_class, line, _) in segment.ended.items() if row_class is RowClass.OK}
    skipped = sum(bad.skipped for bad in segment.bad.values())
    assert (made.done, made.errors, made.skipped) == (len(done), len(err), skipped)
    assert Counter((line["class"], line["reason"]) for line in err) == {(c, r): n for c, r, n in made.reasons}
    if not rows:
        assert out == [done[row] for row in sorted(done)]
        return
    reasons = {line["ordinal"] - FIRST_ORDINAL: line["reason"] for line in err}
    expected = []
    for row, line in enumerate(segment.source):
        if line == b'{"answer": 1}':
            expected.append(json.loads(line))
        elif (
            row in done or line == b'{"skip": null}' or (row in reasons and line not in (b"[1]", b"no json", b"{\xff}"))
        ):
            told = done.get(row)
            content = None if told is None else json.loads(told)["response"]["body"]["choices"][0]["message"]["content"]
            expected.append({**json.loads(line), "answer": content, "answer_error": reasons.get(row)})
    assert [json.loads(line) for line in out] == expected


# -- corners


def simple(folder: Path, *lines: Line, source: list[bytes] | None = None) -> Segment:
    segment = Segment(folder, source if source is not None else [b'{"n": %d}' % n for n in range(len(lines))])
    segment.batch("000003-0", list(range(len(lines))), {row: [line] for row, line in enumerate(lines)}, generation=0)
    return segment


def test_long_results_are_copied_whole(tmp_path: Path) -> None:
    lines = [success(str(FIRST_ORDINAL + n), "x" * size) for n, size in enumerate((10, 3 << 20, 70_000, 5, 9 << 20))]
    _, out, _ = simple(tmp_path, *lines).merge()
    assert out == [encode(line) for line in lines]


def test_a_segment_without_shards(tmp_path: Path) -> None:
    segment = Segment(tmp_path, [b"", b"bad"])
    segment.mark_bad(1)
    made, out, err = segment.merge()
    assert (made.done, made.errors, out, len(err)) == (0, 1, [], 1)
    assert segment.merge("rows")[1] == []


def test_done_wins_over_whatever_comes_later(tmp_path: Path) -> None:
    segment = simple(tmp_path, success("100", "first"))
    segment.batch("r1", [0], {0: [failure("100", 400)]}, generation=1)
    _, out, err = segment.merge()
    assert (json.loads(out[0])["response"]["status_code"], err) == (200, [])


def test_a_row_without_an_outcome_is_never_left_out_silently(tmp_path: Path) -> None:
    segment = simple(tmp_path, success("100"), success("101"))
    with pytest.raises(JournalError, match="has 2 rows, of which 0"):
        merge(segment.spec(parts=()))
    with pytest.raises(JournalError, match="has 3 rows, of which 2"):
        merge(segment.spec(rows=3))


def test_a_left_row_is_not_merged(tmp_path: Path) -> None:
    segment = simple(tmp_path, failure("100", 500))
    with pytest.raises(JournalError, match="another try"):
        segment.merge()


@pytest.mark.parametrize("emit", ["results", "rows"])
@pytest.mark.parametrize("how", ["awaited", "left"])
@pytest.mark.parametrize("first", [0, 2, 4, 5, 7])
def test_a_prefix_ends_before_the_first_row_that_waits(tmp_path: Path, first: int, how: str, emit: str) -> None:
    """Blank, bad and failed rows before it are as in the whole; what is behind it is left out, finished or not."""
    sent = [0, 2, 4, 5, 7]
    whole, part = (_mixed(tmp_path / name, sent, first, how) for name, how in (("whole", "whole"), ("part", how)))
    _, all_out, all_err = whole.merge(emit)
    made, out, err = part.merge(emit, awaited=(str(part.folder / "s2"),) if how == "awaited" else ())
    before = [row for row in sent if row < first and (row != 2 or emit == "rows")]
    assert out == all_out[: len(before)]
    assert err == [line for line in all_err if line["ordinal"] < FIRST_ORDINAL + first]
    assert (made.done, made.errors) == (sum(row != 2 for row in sent if row < first), len(err))


def _mixed(folder: Path, sent: list[int], first: int, how: str) -> Segment:
    """A segment with blank rows, a bad one, and one in error, of which row `first` may wait."""
    folder.mkdir()
    segment = Segment(folder, [b"{}", b"bad", b'{"a": 1}', b"", b"{}", b"{}", b"", b"{}"])
    segment.mark_bad(1)
    rows = [row for row in sent if how != "awaited" or row != first]
    lines = {row: [success(segment.custom_id(row), f"to {row}")] for row in rows}
    lines |= {2: [failure(segment.custom_id(2), 400)]} if 2 in rows else {}
    lines |= {first: [failure(segment.custom_id(first), 500)]} if how == "left" else {}
    segment.batch("s1", rows, lines, generation=0)
    write_ids(folder / "s2", [segment.custom_id(first)], [first])
    return segment


def test_a_prefix_of_a_segment_that_lost_rows_is_refused(tmp_path: Path) -> None:
    segment = _mixed(tmp_path / "part", [0, 2, 4, 5, 7], 4, "awaited")
    with pytest.raises(JournalError, match="has 6 rows, of which 5"):
        segment.merge(awaited=())
    write_ids(segment.folder / "s2", ["x"], [8])
    with pytest.raises(JournalError, match="has 6 rows, of which 5"):
        segment.merge(awaited=(str(segment.folder / "s2"),))


@pytest.mark.parametrize("change", [lambda b: b[: -RECORD.size], lambda b: b[:-1], lambda b: b + b[: RECORD.size]])
def test_a_damaged_outcome_file_is_said(tmp_path: Path, change: Any) -> None:
    segment = simple(tmp_path, success("100"), success("101"))
    outcome = tmp_path / "000003-0.outcome"
    outcome.write_bytes(change(outcome.read_bytes()))
    with pytest.raises(JournalError, match="damaged"):
        segment.merge()


@pytest.mark.parametrize(
    "change", [lambda b: b.replace(b"1", b"2"), lambda b: b[:-1], lambda b: b.replace(b"}\n{", b"} {")]
)
def test_a_changed_source_stops_the_merge(tmp_path: Path, change: Any) -> None:
    segment = simple(tmp_path, success("100"), success("101"))
    path = tmp_path / "in.jsonl"
    good = path.read_bytes()
    path.write_bytes(change(good))
    with pytest.raises(SourceError, match=r"in\.jsonl"):
        segment.merge("rows")
    path.unlink()
    with pytest.raises(SourceError, match=r"in\.jsonl"):
        segment.merge("rows")
    path.write_bytes(good)
    assert len(segment.merge("rows")[1]) == 2


def test_reasons_name_what_the_service_said(tmp_path: Path) -> None:
    lines = [
        failure("100", 400, "bad_thing", "This is\nbad."),
        unanswered("101", "odd", ""),
        failure("102", 404, None, ""),
        {"custom_id": "103", "response": None, "error": {"code": "weird", "message": "weird: x" + "y" * 400}},
    ]
    made, _, err = simple(tmp_path, *lines).merge()
    assert [line["reason"] for line in err[:3]] == [
        "bad_thing: This is bad.",
        "odd: the service gave an answer that nobody knows",
        "status 404",
    ]
    assert err[3]["reason"].startswith("weird: xyy")
    assert len(err[3]["reason"]) == 300
    assert len(made.reasons) == 4


def test_a_row_of_which_only_a_malformed_line_came_says_so(tmp_path: Path) -> None:
    segment = Segment(tmp_path, [b'{"n": 0}', b'{"n": 1}'])
    stem = tmp_path / "000003-0"
    write_ids(stem, ["100", "101"])
    broken = encode(success("100"))[:60]
    Path(f"{stem}.output").write_bytes(broken + b"\n" + encode(success("101")) + b"\n")
    spec = Settle(
        stem=str(stem), segment=SEGMENT, rows=2, generation=2, max_attempts=ATTEMPTS, output=f"{stem}.output", error=None,
        fsync=False,
    )  # fmt: skip
    assert settle(spec).missing == 1
    segment.parts.append(MergePart(str(stem), SEGMENT, f"{stem}.output", None))
    made, _, [told] = segment.merge("rows")
    reason = "the service's result for this row came back malformed"
    assert (made.done, told["class"], told["reason"], told["result"]) == (1, "malformed", reason, broken.decode())


def test_reasons_are_counted_in_bounded_memory() -> None:
    reasons = Reasons()
    for n in range(REASONS_HELD + 50):
        reasons.add("unknown", f"reason {n}")
    reasons.add("unknown", "reason 7")
    top = reasons.top()
    assert (top[0], top[1], len(top)) == (("unknown", OTHERS, 50), ("unknown", "reason 7", 2), 20)


BODIES = [
    ("/v1/chat/completions", {"choices": [{"message": {"content": "hé\n"}}]}, "hé\n", None),
    ("/v1/chat/completions", {"choices": [{"message": {"content": None, "refusal": "no"}}]}, None, "the model refused: no"),
    ("/v1/chat/completions", {"choices": [{"message": {"content": None}, "finish_reason": "tool_calls"}]}, None,
     "the service answered without a text (finish_reason tool_calls)"),
    ("/v1/chat/completions", {"choices": []}, None, "the service answered without a text"),
    ("/v1/chat/completions", {"output": []}, None, "the service answered without a text"),
    ("/v1/chat/completions", {}, None, "the service answered without a text"),
    ("/v1/chat/completions", {"choices": [{"message": {"content": "cut"}, "finish_reason": "length"}]}, "cut", None),
    ("/v1/chat/completions", {"choices": [{"message": {"content": "x", "refusal": []}, "finish_reason": {}}]}, "x", None),
    ("/v1/chat/completions", {"choices": [{"message": {"refusal": 1}, "finish_reason": 2}]}, None,
     "the service answered without a text"),
    ("/v1/chat/completions", {"choices": "none"}, None, "the service's answer has not the shape of this endpoint"),
    ("/v1/chat/completions", [], None, "the service's answer has not the shape of this endpoint"),
    ("/v1/completions", {}, None, "the service answered without a text"),
    ("/v1/embeddings", {}, None, "the service answered without an embedding"),
    ("/v1/embeddings", {"data": [{"index": 0}]}, None, "the service answered without an embedding"),
    ("/v1/moderations", {"results": []}, None, "the service answered without a moderation result"),
    ("/v1/moderations", {}, None, "the service answered without a moderation result"),
    ("/v1/responses", {"status": "incomplete"}, None, "the service answered without a text"),
    ("/v1/completions", {"choices": [{"text": "t"}]}, "t", None),
    ("/v1/embeddings", {"data": [{"embedding": [1.5, 2]}]}, [1.5, 2], None),
    ("/v1/embeddings", {"data": [{"embedding": "AAAA"}, {"embedding": "BBBB"}]}, ["AAAA", "BBBB"], None),
    ("/v1/moderations", {"results": [{"flagged": False}]}, [{"flagged": False}], None),
    ("/v1/responses", {"output": [{"type": "reasoning"}, {"type": "message", "content": [
        {"type": "output_text", "text": "a"}, {"type": "output_text", "text": "b"}]}]}, "ab", None),
    ("/v1/responses", {"output": [{"type": "message", "content": [{"type": "refusal", "refusal": "r"}]}]}, None,
     "the model refused: r"),
    ("/v1/odd", {"x": 1}, {"x": 1}, None),
]  # fmt: skip


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize(("endpoint", "body", "value", "error"), BODIES)
def test_answers_of_every_endpoint(endpoint: str, body: Any, value: Any, error: str | None, as_text: bool) -> None:
    if as_text and endpoint == "/v1/odd":
        value = json.dumps(body)
    line = {"custom_id": "a", "response": {"status_code": 200, "body": json.dumps(body) if as_text else body}}
    raw, why = AnswerReader(endpoint).read(encode(line))
    assert (json.loads(raw), why) == (value, error)


@pytest.mark.parametrize("body", [None, "no JSON", 7])
def test_a_body_that_is_none_has_no_answer(body: Any) -> None:
    line = {"custom_id": "a", "response": {"status_code": 200, "body": body}}
    assert AnswerReader("/v1/chat/completions").read(encode(line)) == (
        b"null",
        "the service's answer has not the shape of this endpoint",
    )


def test_half_a_surrogate_pair_is_replaced() -> None:
    raw, why = AnswerReader("/v1/chat/completions").read(encode(success("a", "x\ud83dy"), ascii_only=True))
    assert (json.loads(raw), why) == ("x\ufffdy", None)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (b"{}", b'{"a": 1, "a_error": null}\n'),
        (b"{ }", b'{ "a": 1, "a_error": null}\n'),
        (b' {"x": 1.50} \r\n', b'{"x": 1.50, "a": 1, "a_error": null}\n'),
        (b'{"x": "}"}', b'{"x": "}", "a": 1, "a_error": null}\n'),
    ],
)
def test_a_row_keeps_its_bytes(row: bytes, expected: bytes) -> None:
    assert AnswerColumn("a").add(row, b"1", None) == expected
