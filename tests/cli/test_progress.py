"""What is shown: lines, JSON, a live display, the summary and the closing sentence."""

import io
import json

import msgspec
import pytest

from streambatch import progress
from streambatch.core import events as e
from streambatch.core.models import Settings, Shaping, ShardLimits, Usage
from streambatch.core.report import Progress, Reason, Status, Summary

LOOK = Progress(
    run_id="r1", phase="running", bytes_read=50, bytes_total=200, rows=1234, bad=2, done=1000, failed=3, left=4, merged=900,
    shards={"submitted": 5, "merged": 0}, batches=9, in_flight=5, elapsed_s=61.0, eta_s=183.0,
)  # fmt: skip
STARTED = e.Started(
    run_id="r1", server_date=0.0, known_id=False, inputs=(),
    settings=Settings("local", None, None, "openai", Shaping(ready_made=True), ShardLimits(), "results", "answer"),
)  # fmt: skip


def summary(**changes: object) -> Summary:
    """A finished run of ten rows."""
    plain = Summary(
        schema_version=1, run_id="r1", state="finished", exit_code=0, message="Finished.", next_command=None, output="/d/out.jsonl",
        errors="/d/out.jsonl.errors", run_dir="/d/out.jsonl.run", rows=10, done=8, failed=2, skipped=0, left=0, retried=0,
        possibly_billed=0, reasons=(), segments=1, shards=1, batches=1, in_flight=0, usage=Usage(1000, 0, 20), elapsed_s=3.25,
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# -- which listener


def test_the_listener_fits() -> None:
    plain, terminal = io.StringIO(), Terminal()
    assert isinstance(progress.listener(quiet=True, log_format="json", stream=terminal), progress.Silent)
    assert isinstance(progress.listener(quiet=False, log_format="json", stream=terminal), progress.JsonLines)
    assert isinstance(progress.listener(quiet=False, log_format="text", stream=plain), progress.Lines)
    assert isinstance(progress.listener(quiet=False, log_format="text", stream=terminal), progress.Live)


def test_silence() -> None:
    with progress.Silent() as listener:
        listener(LOOK)


# -- JSON


def test_json_lines() -> None:
    stream = io.StringIO()
    with progress.JsonLines(stream, now=lambda: 1_700_000_000.5) as listener:
        listener(STARTED)
        listener(e.Submitted(shard="000000-0", batch_id="b\n1", file_id=None, create=1))
        listener(LOOK)
    lines = [json.loads(line) for line in stream.getvalue().split("\n")[:-1]]
    assert [line["event"] for line in lines] == ["Started", "Submitted", "Progress"]
    assert {line["at"] for line in lines} == {"2023-11-14T22:13:20.500Z"}
    assert lines[1]["batch_id"] == "b\n1"
    assert lines[2]["rows"] == 1234


# -- lines


def test_a_line_when_the_phase_changes_and_every_ten_seconds() -> None:
    stream, now = io.StringIO(), [0.0]
    with progress.Lines(stream, clock=lambda: now[0]) as listener:
        for at, phase in (
            (0.0, "starting"),
            (1.0, "starting"),
            (2.0, "running"),
            (11.9, "running"),
            (12.0, "running"),
            (13.0, "running"),
        ):
            now[0] = at
            listener(msgspec.structs.replace(LOOK, phase=phase, rows=int(at * 10)))
    shown = stream.getvalue().split("\n")[:-1]
    assert [line.split()[0] for line in shown] == ["Run", "starting", "running", "running"]
    assert "prepared 120 rows" in shown[3]


def test_a_line_says_where_it_stands() -> None:
    line = progress.progress_line(LOOK)
    assert line == (
        "running  prepared 1,234 rows (25 %)  batches 5 in flight of 9 (5 submitted)"
        "  done 1,000, failed 5, merged 900, 4 to try again  1 min 1 s, about 3 min 3 s to go"
    )


def test_the_run_id_is_told_at_the_start() -> None:
    stream = io.StringIO()
    with progress.Lines(stream) as listener:
        listener(STARTED)
    assert "Run r1" in stream.getvalue()


def test_service_text_moves_no_cursor() -> None:
    evil = "wait\x1b[2J\u202e\x07\r\nfor it"
    line = progress.progress_line(msgspec.structs.replace(LOOK, note=evil))
    assert line.isprintable()
    text = progress.summary_text(summary(reasons=(Reason("bad_row", evil, 2),)))
    assert all(c.isprintable() or c == "\n" for c in text)
    assert progress.closing_sentence(summary(message=evil)).isprintable()


def test_a_run_goes_on_when_nobody_reads() -> None:
    stream = io.StringIO()
    stream.close()
    for listener in (progress.Lines(stream), progress.JsonLines(stream)):
        listener(LOOK)


# -- the terminal


def test_the_live_display_makes_room_for_the_summary() -> None:
    stream = Terminal()
    with progress.Live(stream) as listener:
        listener(STARTED)
        listener(msgspec.structs.replace(LOOK, phase="finished"))
    shown = stream.getvalue()
    assert "1,234 rows" in shown
    assert "Run r1" in shown
    assert shown.rfind("\x1b[2K") > shown.rfind("1,234 rows")  # its lines are erased after the last look


# -- the end


def test_the_summary_in_words() -> None:
    text = progress.summary_text(summary(reasons=(Reason("invalid_request", "too long", 2),), retried=1))
    head, *rest = text.split("\n")
    lines = [line.split() for line in rest]
    assert head == "Finished."
    assert lines[0] == ["rows", "10", "in,", "8", "done,", "2", "failed,", "1", "tried", "again"]
    assert lines[1] == ["2", "invalid_request:", "too", "long"]
    assert "1,000 in, 20 out" in text
    assert "3.2 s" in text
    assert "/d/out.jsonl.errors" in text
    assert text.endswith("head -n 3 /d/out.jsonl")


def test_the_next_command_can_be_pasted() -> None:
    assert progress.next_text(summary(output="/d/my out.jsonl")) == "head -n 3 '/d/my out.jsonl'"


def test_the_summary_leaves_to_the_closing_sentence_what_that_says() -> None:
    ended = summary(state="interrupted", exit_code=130, message="Interrupted.", next_command="streambatch run a -o b")
    assert "Interrupted" not in progress.summary_text(ended)
    assert "streambatch run" not in progress.summary_text(ended)
    assert progress.summary_text(summary(state="cancelled", next_command="again")).endswith("again")


def test_states_are_shown_in_the_order_of_a_shards_life() -> None:
    look = msgspec.structs.replace(LOOK, shards={"settled": 1, "submitted": 2, "uploaded": 3, "sealed": 4})
    assert "(4 sealed, 3 uploaded, 2 submitted, 1 settled)" in progress.progress_line(look)


@pytest.mark.parametrize("phase", ["starting", "sweeping", "finished", "stopped"])
def test_only_a_run_at_work_has_time_to_go(phase: str) -> None:
    assert "to go" in progress.progress_line(LOOK)
    assert "to go" not in progress.progress_line(msgspec.structs.replace(LOOK, phase=phase))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"message": "Interrupted.", "in_flight": 3, "next_command": "streambatch run a -o b"},
            "Interrupted; 3 batches go on at the service and will be billed; to go on: streambatch run a -o b",
        ),
        (
            {"message": "Paused.", "in_flight": 1, "next_command": "x"},
            "Paused; 1 batch goes on at the service and will be billed; to go on: x",
        ),
        (
            {"message": "Finished, with more row errors than allowed."},
            "Finished, with more row errors than allowed; nothing runs or costs any more",
        ),
    ],
)
def test_the_closing_sentence(changes: dict[str, object], sentence: str) -> None:
    assert progress.closing_sentence(summary(**changes)) == sentence


def test_a_refusal_tells_of_batches_only_where_they_cost() -> None:
    refused = summary(state="error", exit_code=2, message="Another process has it.", in_flight=2)
    told = progress.closing_sentence(refused)
    assert told == "Another process has it; 2 batches go on at the service and will be billed"
    assert progress.closing_sentence(refused, local=True) == "Another process has it"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (250.4, "4 min 10 s"), (21_900, "6 h 5 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert progress.duration(seconds) == words


def test_status_in_words() -> None:
    text = progress.status_text(
        Status("r1", "/d/out.jsonl.run", "/d/out.jsonl", "running", True, LOOK, (Reason("bad_row", "no JSON", 2),))
    )
    assert text.startswith("Run r1: running (an engine works on it now)\n")
    assert "bad_row: no JSON" in text
    assert text.endswith("/d/out.jsonl.run")
