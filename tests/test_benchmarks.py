"""The harness itself: its data, its figures, its checks and its arithmetic, each held against something known."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from benchmarks import __main__ as bench
from benchmarks import checking, commands, data, machine, report
from benchmarks.contenders import Bench
from benchmarks.contest import Contender, Mark, Record, Section, Turn, compete, ratios
from benchmarks.jobs import JOBS
from benchmarks.loading import MARK, Load, queue, request_lines
from benchmarks.measuring import KNOWS_MEMORY, Figures, Started, measure

needs_proc = pytest.mark.skipif(not KNOWS_MEMORY, reason="memory is read from /proc")
ROOT = Path(__file__).parent.parent


def lines(path: str | Path) -> list[bytes]:
    with Path(path).open("rb") as file:
        return list(file)


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


# -- data


def test_requests_are_seeded_about_a_kilobyte_awkward_and_out_of_order(tmp_path: Path) -> None:
    made = data.requests(tmp_path / "a", 500, 7)
    rows = [json.loads(line) for line in lines(made.paths[0])]
    assert len(rows) == made.rows == 500
    assert 900 * 500 < made.bytes < 1100 * 500
    ids = [row["custom_id"] for row in rows]
    assert len(set(ids)) == 500
    assert ids != sorted(ids)
    texts = "".join(row["body"]["messages"][0]["content"] for row in rows)
    assert {"\u2028", "\u0085", "漢", '"', "\\", "\n"} <= set(texts)
    assert data.requests(tmp_path / "b", 500, 7).digest == made.digest
    assert data.requests(tmp_path / "b", 500, 8).digest != made.digest


def test_results_are_shuffled_inside_their_files_and_their_digest_is_of_the_right_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "RESULTS_IN_FILE", 200)
    asked = [json.loads(line)["custom_id"] for line in lines(data.requests(tmp_path, 500, 7).paths[0])]
    made = data.results(tmp_path, 500, 7)
    assert len(made.paths) == 3
    found: dict[str, bytes] = {}
    for number, path in enumerate(made.paths):
        group = {json.loads(line)["custom_id"]: line for line in lines(path)}
        expected = asked[number * 200 : number * 200 + 200]
        assert set(group) == set(expected)
        assert list(group) != expected
        found |= group
    ordered = b"".join(found[name] for name in asked)
    assert (made.bytes, made.digest) == (len(ordered), xxhash.xxh3_128_hexdigest(ordered))


def test_data_is_made_once_and_again_when_a_file_is_gone(tmp_path: Path) -> None:
    path = Path(data.plain_rows(tmp_path, 10, 7).paths[0])
    before = path.stat().st_mtime_ns
    made = data.plain_rows(tmp_path, 10, 7)
    assert path.stat().st_mtime_ns == before
    path.unlink()
    assert data.plain_rows(tmp_path, 10, 7) == made
    assert len(lines(path)) == 10


@needs_proc
def test_making_data_takes_no_more_memory_for_more_rows(tmp_path: Path) -> None:
    def peak(rows: int) -> float:
        words = f"import sys, pathlib; from benchmarks import data; data.requests(pathlib.Path(sys.argv[1]), {rows}, 7)"
        figures = measure((*python(words), str(tmp_path)), cwd=ROOT)
        assert figures.exit_code == 0, figures.said
        assert figures.peak_mib is not None
        return figures.peak_mib

    assert peak(60_000) < peak(15_000) + 8  # 45 MB more are written


# -- figures


@needs_proc
def test_memory_and_cpu_of_a_grandchild_count() -> None:
    inner = "b = bytearray(60 << 20); n = sum(i & 1 for i in range(5_000_000))"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    figures = measure(python(outer))
    alone = measure(python("pass"))
    assert figures.exit_code == 0
    assert figures.peak_mib is not None
    assert figures.peak_mib > 60
    assert figures.cpu_s > alone.cpu_s + 0.05
    assert figures.wall_s >= 0.05


def test_the_exit_code_and_the_last_words_are_told() -> None:
    figures = measure(python("import sys; print('nobody reads this'); sys.exit('the last words')"))
    assert (figures.exit_code, figures.said) == (1, "the last words")


def test_what_takes_too_long_is_killed_with_all_it_started() -> None:
    outer = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    figures = Started(python(outer)).wait(timeout_s=0.3)
    assert figures.exit_code == -9
    assert figures.wall_s < 30


# -- checks


def test_wrong_bytes_are_seen(tmp_path: Path) -> None:
    made = data.requests(tmp_path, 50, 7)
    source = Path(made.paths[0])
    assert checking.same_lines([source], made) == []
    kept = lines(source)
    parts = [tmp_path / "a", tmp_path / "b"]
    parts[0].write_bytes(b"".join(kept[:20]))
    parts[1].write_bytes(b"".join(kept[20:]))
    assert checking.same_lines(parts, made) == []
    assert checking.same_lines(parts[::-1], made) != []
    assert checking.same_lines(parts[:1], made) != []
    assert checking.within_limits(parts, 30, 1 << 20) == []
    assert checking.within_limits(parts, 29, 1 << 20) == [f"b holds 30 rows in {parts[1].stat().st_size} bytes"]
    assert len(checking.within_limits(parts, 30, 1000)) == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda rows: rows[:-1],
        lambda rows: [*rows, rows[0]],
        lambda rows: [rows[1], rows[0], *rows[2:]],
        lambda rows: [],
    ],
    ids=["short", "long", "swapped", "empty"],
)
def test_rows_out_of_place_are_seen(tmp_path: Path, spoil: Callable[[list[bytes]], list[bytes]]) -> None:
    source, output = Path(data.requests(tmp_path, 20, 7).paths[0]), tmp_path / "answers.jsonl"
    assert checking.in_order(source, output, checking.ID) == ["answers.jsonl is not there"]
    rows = [b'{"id":"x","custom_id":"%s"}\n' % json.loads(line)["custom_id"].encode() for line in lines(source)]
    output.write_bytes(b"".join(rows))
    assert checking.in_order(source, output, checking.ID) == []
    output.write_bytes(b"".join(spoil(rows)))
    assert len(checking.in_order(source, output, checking.ID)) == 1


# -- the contest


def turn(wall_s: float, *problems: str) -> Turn:
    return Turn(Figures(wall_s, wall_s, 10.0, 0), problems)


def contender(
    name: str, turns: list[Turn], calls: list[str], *, ours: bool = True, missing: str | None = None
) -> Contender:
    def perform() -> Turn:
        calls.append(name)
        return turns[calls.count(name) - 1]

    return Contender(name, 10, (name,), perform, ours, missing)


def test_pairs_of_one_round_are_compared_and_rounds_alternate() -> None:
    calls: list[str] = []
    us = contender("us", [turn(2), turn(9), turn(3)], calls)
    them = contender("them", [turn(1), turn(3), turn(1)], calls, ours=False)
    records = compete([us, them], 3)
    assert calls == ["us", "them", "them", "us", "us", "them"]
    (ratio,) = ratios(records)
    assert (ratio.pairs, ratio.median) == ((2.0, 3.0, 3.0), 3.0)
    assert records[0].median(lambda t: t.figures.wall_s) == 3
    assert records[0].cpu_us() == 300_000


def test_who_goes_wrong_or_is_missing_takes_no_further_part() -> None:
    calls: list[str] = []
    wrong = contender("wrong", [turn(1), turn(1, "lost a row")], calls)
    away = contender("away", [], calls, ours=False, missing="not installed")
    records = compete([wrong, away], 5)
    assert calls == ["wrong", "wrong"]
    assert ratios(records) == []
    section = Section("s", "title", 10, 10, records)
    assert section.problems == ["wrong: lost a row"]
    text = report.shown(section)
    assert "WRONG: lost a row" in text
    assert "skipped: not installed" in text


def test_peers_do_not_go_on_once_all_of_ours_went_wrong() -> None:
    calls: list[str] = []
    wrong = contender("wrong", [turn(1, "exit code 1")], calls)
    compete([wrong, contender("peer", [turn(1)] * 3, calls, ours=False)], 3)
    assert calls == ["wrong", "peer"]


def test_a_peer_that_fails_is_shown_and_is_no_problem_of_ours() -> None:
    section = Section("s", "title", 10, 10, compete([contender("peer", [turn(1, "exit code 3")], [], ours=False)], 2))
    assert section.problems == []
    assert "WRONG: exit code 3" in report.shown(section)


def test_unknown_memory_is_not_available_rather_than_nothing() -> None:
    record = Record("us", 10, True, (), None, [Turn(Figures(1.0, 1.0, None, 0))])
    assert "n/a" in report.shown(Section("s", "title", 10, 10, [record]))


@pytest.mark.parametrize(
    ("mark", "verdict"),
    [
        (Mark("m", 2.5, 2.5), "met"),
        (Mark("m", 2.6, 2.5), "MISSED"),
        (Mark("m", 2.6, 2.5, goal=True), "not yet"),
        (Mark("m", 2.6, 2.5, applies=False), "for another size"),
        (Mark("m", None, 2.5), "not measured"),
    ],
)
def test_a_mark_says_how_it_stands(mark: Mark, verdict: str) -> None:
    assert mark.verdict == verdict


# -- the server under load


@pytest.mark.process
def test_a_queue_is_driven_to_its_end_and_what_is_wrong_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, notes = Load(3, 20, 0.5), list[str]()
    turn = queue(tmp_path / "right", 7, load, notes)
    assert (load.executed, turn.problems, turn.figures.exit_code) == (30, (), 0)
    assert sum("downloaded 30 result lines" in note for note in notes) == 1
    monkeypatch.setattr(Load, "script", {})  # all rows are executed, where half of them are expected
    wrong = queue(tmp_path / "wrong", 7, load, [])
    assert len(wrong.problems) == 4
    assert "'rows_executed': 60" in wrong.problems[-1]


def test_request_lines_are_short_and_told_apart() -> None:
    rows = [json.loads(line) for line in request_lines(100).split(b"\n")[:-1]]
    assert len({row["custom_id"] for row in rows}) == 100
    assert all(row["custom_id"].startswith(MARK.decode()) for row in rows)


# -- all of it


@pytest.mark.process
def test_a_fast_run_measures_every_job_and_finds_nothing_wrong(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    words = (
        "--fast",
        "--only",
        "shard,merge,run,memory,load",
        "--json",
        str(target),
        "--workdir",
        str(tmp_path / "work"),
    )
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    told = json.loads(target.read_bytes())
    assert told["schema_version"] == 1
    assert told["machine"]["cores"] >= 1
    assert [section["name"] for section in told["sections"]] == ["shard", "merge", "run", "memory", "load"]
    for section in told["sections"]:
        assert section["name"] in done.stdout
        for record in section["records"]:
            assert record["missing"] is not None or len(record["turns"]) == 1
            assert not any(turn["problems"] or turn["figures"]["exit_code"] for turn in record["turns"])
    ours = [record["name"] for section in told["sections"] for record in section["records"] if record["ours"]]
    assert len(ours) == 2 + 2 + 3 + 3 + 3
    assert not (tmp_path / "work" / "out").exists()


def test_a_job_that_is_unknown_and_no_rows_at_all_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--only", "shard,dance"], ["--rows", "0"]):
        with pytest.raises(SystemExit) as left:
            bench.main(words)
        assert left.value.code == 2
    assert "dance is none of shard, merge, run, memory, load" in capsys.readouterr().err


def test_a_full_disk_is_said_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--rows", "1_000_000_000_000", "--workdir", str(tmp_path)]) == 2
    assert "are needed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_settings_of_the_person_who_measures_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMBATCH_MAX_REQUESTS", "3")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://example.invalid/v1")
    kept = commands.environment()
    assert "STREAMBATCH_MAX_REQUESTS" not in kept
    assert "OPENAI_BASE_URL" not in kept
    assert commands.environment("http://127.0.0.1:1/v1")["OPENAI_BASE_URL"] == "http://127.0.0.1:1/v1"


def test_the_machine_is_described(tmp_path: Path) -> None:
    here = machine.describe()
    text = report.heading(here, Bench(tmp_path, 1000, 1, 7))
    assert here.python in text
    assert "1,000 rows, seed 7" in text


def test_the_page_names_every_option_and_every_job() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    flags = {flag for action in bench.parser()._actions for flag in action.option_strings if flag.startswith("--")}
    assert {flag for flag in flags if f"| `{flag}" not in page} == {"--help"}
    assert [name for name in JOBS if f"| `{name}` |" not in page] == []
