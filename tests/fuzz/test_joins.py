"""Whatever stands in the files of a `merge`: it ends, or says in our words why not; a sound success gets its place."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.edge.joining import join
from streambatch.edge.jointask import JoinReport
from streambatch.errors import ConfigError, SourceError
from tests.fuzz.bounds import bounded
from tests.fuzz.mutations import deepened, odd_bytes, odd_objects
from tests.fuzz.test_results import IDS, files, mentions, sound_successes
from tests.server.kit import row

REQUESTS = [json.dumps({**row(0), "custom_id": custom_id}).encode() for custom_id in IDS]
good_rows = st.sampled_from(REQUESTS)
odd_rows = st.one_of(
    good_rows.map(deepened),
    odd_bytes(good_rows),
    odd_objects(st.sampled_from([json.loads(line) for line in REQUESTS])).map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=30),
)


def _joined(folder: Path, rows: bytes, results: list[bytes], emit: str) -> tuple[JoinReport, list[bytes], list[bytes]]:
    (folder / "in.jsonl").write_bytes(rows)
    paths = []
    for n, data in enumerate(results):
        (folder / f"results-{n}.jsonl").write_bytes(data)
        paths.append(str(folder / f"results-{n}.jsonl"))
    report = join([str(folder / "in.jsonl")], paths, str(folder / "out.jsonl"), workers=1, emit=emit)
    errors = b"" if report.errors_path is None else Path(report.errors_path).read_bytes()
    return report, (folder / "out.jsonl").read_bytes().split(b"\n")[:-1], errors.split(b"\n")[:-1]


@bounded(80)
@given(results=st.lists(files(), max_size=3), emit=st.sampled_from(["results", "rows"]))
def test_any_results_join_their_rows(results: list[bytes], emit: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        report, out, errors = _joined(Path(name), b"\n".join(REQUESTS) + b"\n", results, emit)
    failed = {json.loads(line)["ordinal"] for line in errors}
    done = [n for n in range(len(IDS)) if n not in failed]
    assert (report.rows, report.done, report.errors) == (len(IDS), len(done), len(failed))
    assert len(out) == (len(done) if emit == "results" else len(IDS))
    for custom_id, lines in sound_successes(results).items():
        if custom_id in IDS:
            row_number = IDS.index(custom_id)
            assert row_number in done
            if emit == "results" and len(lines) == 1 and mentions(results, custom_id) == 1:
                assert out[done.index(row_number)].rstrip(b"\r") == lines[0].rstrip(b"\r")


@bounded(80)
@given(
    rows=st.lists(st.one_of(good_rows, odd_rows), max_size=6),
    results=files(),
    emit=st.sampled_from(["results", "rows"]),
)
def test_any_rows_join_or_are_refused_in_our_words(rows: list[bytes], results: bytes, emit: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        try:
            report, out, errors = _joined(Path(name), b"\n".join(rows), [results], emit)
        except (ConfigError, SourceError):
            return
    assert report.done + report.errors == report.rows
    assert len(errors) == report.errors
    assert len(out) == report.done if emit == "results" else report.done <= len(out) <= report.rows
    for line in errors:
        json.loads(line)


def test_a_refusal_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        join([str(tmp_path / "no such file")], [], str(tmp_path / "out"), workers=1, emit="results")
