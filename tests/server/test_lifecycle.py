"""A batch from create to its end: states by time, counts, files, cancel, expiry."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from xxhash import xxh3_64_hexdigest

from tests.server.conftest import Start
from tests.server.kit import Wire, chat, jsonl, row


def _seen(wire: Wire, batch_id: str, until: Callable[[Any], bool], within_s: float = 20) -> list[Any]:
    """Every look at a batch up to the one that was waited for."""
    looks, deadline = [], time.monotonic() + within_s
    while True:
        looks.append(wire.batch(batch_id))
        if until(looks[-1]):
            return looks
        assert time.monotonic() < deadline, looks[-1]
        time.sleep(0.005)


def _ended(batch: Any) -> bool:
    return batch["status"] in ("completed", "failed", "expired", "cancelled")


def test_states_follow_each_other_and_counts_grow(start: Start) -> None:
    wire = start(speed=10)
    looks = _seen(wire, wire.create(chat(2000))["id"], _ended)
    states = list(dict.fromkeys(look["status"] for look in looks))
    assert states == ["validating", "in_progress", "finalizing", "completed"]
    for look in looks:
        counts = look["request_counts"]
        assert counts["total"] == (0 if look["status"] == "validating" else 2000)
        assert (look["output_file_id"] is not None) == (look["status"] == "completed")
    done = [look["request_counts"]["completed"] for look in looks]
    assert done == sorted(done)
    assert len(set(done)) > 4
    last = looks[-1]
    times = [last[f"{state}_at"] for state in ("created", "in_progress", "finalizing", "completed")]
    assert times == sorted(times)
    assert (last["error_file_id"], last["errors"], last["model"]) == (None, None, "gpt-4o-mini-2024-07-18")


def test_durations_shrink_with_speed(start: Start) -> None:
    wire = start(speed=20)
    began = time.monotonic()
    wire.run(chat(1000))
    assert 0.2 <= time.monotonic() - began < 2  # (3 s + 1 s + 1,000 rows at 1,000 a second) / 20 is 0.25 s


def test_every_row_is_answered_once_not_in_input_order(wire: Wire) -> None:
    batch = wire.run(chat(3000))
    outputs, errors = wire.results(batch)
    ids = [line["custom_id"] for line in outputs]
    assert errors == []
    assert sorted(ids) == sorted(f"row-{n}" for n in range(3000))
    assert ids != [f"row-{n}" for n in range(3000)]
    assert batch["request_counts"] == {"total": 3000, "completed": 3000, "failed": 0}
    usage = [line["response"]["body"]["usage"] for line in outputs]
    assert batch["usage"]["input_tokens"] == sum(u["prompt_tokens"] for u in usage)
    assert batch["usage"]["total_tokens"] == sum(u["total_tokens"] for u in usage)


def test_a_result_line_byte_by_byte(wire: Wire) -> None:
    text = 'how "are"\u2028you\u2029\u0085 漢?'
    raw = wire.content(wire.run(jsonl([row("ü\u2028", text)]))["output_file_id"])
    assert raw.isascii()
    assert raw.endswith(b"}\n")
    line = json.loads(raw)
    assert raw == json.dumps(line).encode() + b"\n"  # the separators are those of json.dumps
    assert list(line) == ["id", "custom_id", "response", "error"]
    assert list(line["response"]) == ["status_code", "request_id", "body"]
    assert line["id"].startswith("batch_req_")
    assert (line["custom_id"], line["error"], line["response"]["status_code"]) == ("row-ü\u2028", None, 200)
    words = line["response"]["body"]["choices"][0]["message"]["content"].split(" ")
    assert words[0] == xxh3_64_hexdigest(text.encode())
    assert 6 <= len(words) - 1 <= 20


def test_the_same_line_gets_the_same_bytes(start: Start, tmp_path: Path) -> None:
    one, two = start(data_dir=tmp_path / "one", seed=5), start(data_dir=tmp_path / "two", seed=5)
    other = start(data_dir=tmp_path / "other", seed=6)
    texts = [wire.content(wire.run(chat(700))["output_file_id"]) for wire in (one, one, two)]
    assert texts[0] == texts[1] == texts[2]
    assert other.content(other.run(chat(700))["output_file_id"]) != texts[0]
    part = one.content(one.run(chat(10, first=300))["output_file_id"])
    assert set(part.split(b"\n")) <= set(texts[0].split(b"\n"))


def test_a_batch_whose_rows_all_fail_is_completed_without_output(wire: Wire) -> None:
    rows = [row(n) for n in range(3)]
    for each in rows:
        each["body"]["messages"] = []
    batch = wire.run(jsonl(rows))
    assert (batch["status"], batch["output_file_id"]) == ("completed", None)
    assert batch["request_counts"] == {"total": 3, "completed": 0, "failed": 3}
    _, errors = wire.results(batch)
    assert {line["response"]["status_code"] for line in errors} == {400}
    assert {line["response"]["body"]["error"]["param"] for line in errors} == {"messages"}
    assert {line["error"] for line in errors} == {None}


def test_a_bad_row_among_good_ones_gives_both_files(wire: Wire) -> None:
    rows = [row(n) for n in range(3)]
    rows[1]["body"]["messages"] = []
    batch = wire.run(jsonl(rows))
    outputs, errors = wire.results(batch)
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert ([line["custom_id"] for line in errors], len(outputs)) == (["row-1"], 2)


def test_an_unknown_input_fails_later(wire: Wire) -> None:
    asked = {"input_file_id": "file-nobody", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    said = wire.call("POST", "/v1/batches", asked)
    assert (said.status, said.json["status"]) == (200, "validating")
    batch = wire.finish(said.json["id"])
    assert batch["status"] == "failed"
    assert batch["failed_at"] >= batch["created_at"]
    [entry] = batch["errors"]["data"]
    assert (entry["code"], entry["param"], entry["line"]) == ("invalid_request", "file_id", None)
    assert entry["message"].startswith("Cannot find file file-nobody, or organization ")


def test_cancel_keeps_what_was_executed(start: Start) -> None:
    wire = start(speed=10, cancelling_s=1)
    batch_id = wire.create(chat(4000))["id"]
    _seen(wire, batch_id, lambda batch: batch["request_counts"]["completed"] > 500)
    said = wire.call("POST", f"/v1/batches/{batch_id}/cancel").json
    assert said["status"] == "cancelling"
    assert said["cancelling_at"] is not None
    assert wire.call("POST", f"/v1/batches/{batch_id}/cancel").json["status"] == "cancelling"
    batch = wire.finish(batch_id)
    outputs, errors = wire.results(batch)
    assert batch["status"] == "cancelled"
    assert 500 < len(outputs) == batch["request_counts"]["completed"] < 4000
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    assert {line["response"] for line in errors} == {None}
    assert sorted(line["custom_id"] for line in outputs + errors) == sorted(f"row-{n}" for n in range(4000))
    assert wire.ledger()["rows_executed"] == len(outputs)
    assert wire.call("POST", f"/v1/batches/{batch_id}/cancel").json["status"] == "cancelled"


def test_cancel_while_validating_executes_nothing(start: Start) -> None:
    wire = start(speed=2)
    batch_id = wire.create(chat(5))["id"]
    wire.call("POST", f"/v1/batches/{batch_id}/cancel")
    batch = wire.finish(batch_id)
    assert (batch["status"], batch["output_file_id"], batch["error_file_id"]) == ("cancelled", None, None)
    assert wire.ledger()["rows_executed"] == 0


@pytest.mark.parametrize("data", [chat(1), b'{"custom_id": "a"}\n'])
def test_a_batch_at_its_end_cannot_be_cancelled(wire: Wire, data: bytes) -> None:
    batch = wire.run(data)
    said = wire.call("POST", f"/v1/batches/{batch['id']}/cancel")
    message = f"Cannot cancel a batch with status '{batch['status']}'."
    assert said.status == 409
    assert said.error == {"message": message, "type": "invalid_request_error", "param": None, "code": None}


def test_a_window_that_ends_keeps_what_was_executed(start: Start) -> None:
    wire = start(speed=10, rows_per_s=200, window_s=2)
    batch = wire.finish(wire.create(chat(6000))["id"])
    outputs, errors = wire.results(batch)
    assert batch["status"] == "expired"
    assert batch["expired_at"] >= batch["expires_at"]
    assert 0 < len(outputs) < 6000
    assert {line["error"]["code"] for line in errors} == {"batch_expired"}
    assert len(outputs) + len(errors) == 6000


def test_small_batches_pass_a_large_one(start: Start) -> None:
    wire = start()
    large = wire.create(chat(50_000))["id"]
    _seen(wire, large, lambda batch: batch["request_counts"]["completed"] > 0)
    assert wire.run(chat(20))["status"] == "completed"
    assert wire.batch(large)["status"] == "in_progress"


def test_an_input_deleted_while_it_is_read_is_read_to_its_end(start: Start, tmp_path: Path) -> None:
    wire = start(speed=20)
    batch = wire.create(chat(2000))
    _seen(wire, batch["id"], lambda look: look["status"] == "in_progress")
    assert wire.call("DELETE", f"/v1/files/{batch['input_file_id']}").status == 200
    assert wire.finish(batch["id"])["request_counts"]["completed"] == 2000
    left = [path.name for path in (tmp_path / "data" / "contents").iterdir()]
    assert left == ["batch1.output"]


def test_output_files_expire_as_asked(wire: Wire) -> None:
    batch = wire.run(chat(1), output_expires_after={"anchor": "created_at", "seconds": 7200})
    file = wire.call("GET", f"/v1/files/{batch['output_file_id']}").json
    assert (file["purpose"], file["expires_at"] - file["created_at"]) == ("batch_output", 7200)
    assert file["bytes"] == len(wire.content(batch["output_file_id"]))
