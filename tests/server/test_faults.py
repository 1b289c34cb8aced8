"""Each kind of misbehaviour that a script can ask for, shown to fire as told and to leave no trace once it is over."""

import http.client
import json
import time
from pathlib import Path
from typing import Any

import pytest
from xxhash import xxh3_64_hexdigest

from streambatch.errors import ConfigError
from streambatch.server.faults import Faults
from streambatch.server.script import parse_script, read_script
from tests.server.conftest import Start
from tests.server.kit import CHAT, Wire, chat

DROPPED = (http.client.RemoteDisconnected, ConnectionResetError)


# ------------------------------------------------------------------------------- calls


def test_a_status_with_and_without_retry_after(start: Start) -> None:
    busy = {
        "do": "answer",
        "on": "create",
        "status": 429,
        "code": "rate_limit_exceeded",
        "retry_after_s": 2,
        "times": 1,
    }
    broke = {"do": "answer", "on": "create", "status": 429, "code": "insufficient_quota", "times": 1}
    wire = start({"http": [busy, broke]})
    asked = {"input_file_id": wire.upload(chat(1)).json["id"], "endpoint": CHAT, "completion_window": "24h"}
    first, second, third = (wire.call("POST", "/v1/batches", asked) for _ in range(3))
    assert (first.status, first.headers["retry-after"], first.error["code"]) == (429, "2", "rate_limit_exceeded")
    assert (second.status, second.error["type"], second.error["code"]) == (
        429,
        "insufficient_quota",
        "insufficient_quota",
    )
    assert "retry-after" not in second.headers
    assert third.status == 200
    assert wire.ledger()["batches"] == 1


ROUTES = [
    ("upload", "POST", "/v1/files"), ("files", "GET", "/v1/files"), ("file", "GET", "/v1/files/x"),
    ("delete", "DELETE", "/v1/files/x"), ("content", "GET", "/v1/files/x/content"), ("create", "POST", "/v1/batches"),
    ("list", "GET", "/v1/batches"), ("retrieve", "GET", "/v1/batches/x"), ("cancel", "POST", "/v1/batches/x/cancel"),
    ("upload_create", "POST", "/v1/uploads"), ("part", "POST", "/v1/uploads/x/parts"),
    ("upload_complete", "POST", "/v1/uploads/x/complete"), ("upload_cancel", "POST", "/v1/uploads/x/cancel"),
    ("models", "GET", "/v1/models"), ("model", "GET", "/v1/models/x"),
]  # fmt: skip


@pytest.mark.parametrize(("route", "method", "path"), ROUTES)
def test_every_route_can_fail(wire: Wire, route: str, method: str, path: str) -> None:
    wire.call("POST", "/control/faults", {"http": [{"do": "answer", "on": route, "status": 503, "message": "busy"}]})
    said = wire.call(method, path)
    assert (said.status, said.error["message"], said.error["type"]) == (503, "busy", "server_error")
    assert wire.call("GET", "/control/faults").json["hits"]["http"] == [1]
    wire.call("DELETE", "/control/faults")
    assert wire.call(method, path).status != 503


def test_calls_count_from_after_to_times_and_by_chance(start: Start) -> None:
    def statuses(**when: Any) -> list[int]:
        wire.call(
            "POST", "/control/faults", {"seed": 3, "http": [{"do": "answer", "on": "models", "status": 500, **when}]}
        )
        return [wire.call("GET", "/v1/models").status for _ in range(8)]

    wire = start()
    assert statuses(after=2, times=3) == [200, 200, 500, 500, 500, 200, 200, 200]
    assert statuses(probability=0) == [200] * 8
    some = statuses(probability=0.5)
    assert 0 < some.count(500) < 8
    assert statuses(probability=0.5) == some


def test_a_dropped_create_did_nothing_and_a_lost_one_acted(start: Start) -> None:
    rules = [{"do": "drop", "on": "create", "times": 1}, {"do": "act_and_drop", "on": "create", "times": 1}]
    wire = start({"http": rules})
    asked = {"input_file_id": wire.upload(chat(1)).json["id"], "endpoint": CHAT, "completion_window": "24h"}
    with pytest.raises(DROPPED):
        wire.call("POST", "/v1/batches", asked)
    assert wire.ledger()["batches"] == 0
    with pytest.raises(DROPPED):
        wire.call("POST", "/v1/batches", asked)
    [batch] = wire.call("GET", "/v1/batches").json["data"]
    assert wire.finish(batch["id"])["status"] == "completed"


def test_a_lost_upload_is_there(start: Start) -> None:
    wire = start({"http": [{"do": "act_and_drop", "on": "upload", "times": 1}]})
    with pytest.raises(DROPPED):
        wire.upload(chat(1))
    assert len(wire.call("GET", "/v1/files").json["data"]) == 1


def test_a_delay(start: Start) -> None:
    wire = start({"http": [{"do": "delay", "on": "models", "seconds": 0.3, "times": 1}]})
    began = time.monotonic()
    assert wire.call("GET", "/v1/models").status == 200
    assert time.monotonic() - began >= 0.3


def test_a_server_that_stalls_still_stops_quickly(start: Start, tmp_path: Path) -> None:
    from streambatch.testing import local_server

    with local_server(faults={"http": [{"do": "delay", "on": "models", "seconds": 3600}]}) as server:
        wire = Wire(server.url, server.api_key)
        connection = http.client.HTTPConnection(wire.host, wire.port, timeout=20)
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {wire.key}"})
        time.sleep(0.05)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    connection.close()


def test_a_cut_download(start: Start) -> None:
    wire = start({"http": [{"do": "cut", "on": "content", "at": 1000, "times": 1}]})
    batch = wire.run(chat(50))
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        wire.content(batch["output_file_id"])
    assert wire.ledger()["results_delivered"] == 0
    assert len(wire.results(batch)[0]) == 50
    assert wire.ledger()["results_delivered"] == 50


def test_a_short_download_looks_whole(start: Start) -> None:
    wire = start({"http": [{"do": "short", "on": "content", "at": 1000, "times": 1}]})
    batch = wire.run(chat(50))
    said = wire.call("GET", f"/v1/files/{batch['output_file_id']}/content")
    assert (said.status, len(said.body), said.headers["content-length"]) == (200, 1000, "1000")
    assert wire.ledger()["results_delivered"] == 0


def test_a_slow_download(start: Start) -> None:
    wire = start({"http": [{"do": "slow", "on": "content", "bytes_per_s": 20_000}]})
    file_id = wire.upload(chat(40)).json["id"]
    began = time.monotonic()
    assert wire.content(file_id) == chat(40)
    assert time.monotonic() - began > 0.2


def test_garbled_json_and_other_bodies(start: Start) -> None:
    page = {"do": "answer", "on": "models", "status": 502, "body": "<html>bad</html>", "headers": {"x-who": "proxy"}}
    wire = start({"http": [{"do": "garble", "on": "models", "times": 1}, {**page, "after": 1}]})
    with pytest.raises(json.JSONDecodeError):
        _ = wire.call("GET", "/v1/models").json
    said = wire.call("GET", "/v1/models")
    assert (said.status, said.body, said.headers["x-who"]) == (502, b"<html>bad</html>", "proxy")


def test_a_key_that_is_refused_until_it_is_renewed(start: Start) -> None:
    rule = {"do": "answer", "on": "*", "status": 401, "code": "invalid_api_key", "after": 1, "times": 2}
    wire = start({"http": [rule]})
    assert [wire.call("GET", "/v1/models").status for _ in range(4)] == [200, 401, 401, 200]


def test_an_answer_that_comes_late_or_never(start: Start) -> None:
    late = {"do": "late", "on": "create", "seconds": 0.3, "times": 1}
    wire = start({"http": [late, {"do": "late", "on": "create", "after": 1}]})
    asked = {"input_file_id": wire.upload(chat(1)).json["id"], "endpoint": CHAT, "completion_window": "24h"}
    began = time.monotonic()
    assert wire.call("POST", "/v1/batches", asked).status == 200
    assert time.monotonic() - began >= 0.3
    with pytest.raises(TimeoutError):
        wire.within(0.3).call("POST", "/v1/batches", asked)
    assert wire.ledger()["batches"] == 2


def test_a_call_that_hangs_does_nothing(start: Start) -> None:
    wire = start({"http": [{"do": "hang", "on": "create", "times": 1}]})
    with pytest.raises(TimeoutError):
        wire.within(0.3).call("POST", "/v1/batches", {})
    assert wire.ledger()["batches"] == 0


def test_a_download_that_stops_in_the_middle(start: Start) -> None:
    wire = start({"http": [{"do": "hang", "on": "content", "at": 1000, "times": 1}]})
    batch = wire.run(chat(50))
    path = f"/v1/files/{batch['output_file_id']}/content"
    connection = http.client.HTTPConnection(wire.host, wire.port, timeout=0.3)
    connection.request("GET", path, headers={"Authorization": f"Bearer {wire.key}"})
    answer = connection.getresponse()
    assert len(answer.read(1000)) == 1000
    with pytest.raises(TimeoutError):
        answer.read(1)
    connection.close()
    assert wire.ledger()["results_delivered"] == 0
    assert len(wire.results(batch)[0]) == 50


def test_a_download_that_stalls_for_a_while_is_whole(start: Start) -> None:
    wire = start({"http": [{"do": "hang", "on": "content", "at": 1000, "seconds": 0.3}]})
    began = time.monotonic()
    assert len(wire.results(wire.run(chat(50)))[0]) == 50
    assert time.monotonic() - began >= 0.3


LARGE = chat(1) + b"x" * (32 << 20)  # more than all buffers between two sockets of one machine


def test_an_upload_whose_body_is_not_read_on(start: Start, tmp_path: Path) -> None:
    wire = start({"http": [{"do": "hang", "on": "upload", "at": 100_000, "times": 1}]})
    with pytest.raises(TimeoutError):
        wire.within(0.5).upload(LARGE)
    assert wire.upload(chat(1)).status == 200
    assert len(wire.call("GET", "/v1/files").json["data"]) == 1


def test_an_upload_that_stalls_for_a_while_is_whole(start: Start) -> None:
    wire = start({"http": [{"do": "hang", "on": "upload", "at": 0, "seconds": 0.3}]})
    began = time.monotonic()
    assert wire.content(wire.upload(chat(5000)).json["id"]) == chat(5000)
    assert time.monotonic() - began >= 0.3


def test_an_upload_that_is_dropped_in_the_middle(start: Start, tmp_path: Path) -> None:
    wire = start({"http": [{"do": "cut", "on": "upload", "at": 100_000, "times": 1}]})
    with pytest.raises((*DROPPED, BrokenPipeError)):
        wire.upload(LARGE)
    assert list((tmp_path / "data" / "contents").iterdir()) == []
    assert wire.call("GET", "/v1/files").json["data"] == []


def test_a_slow_upload(start: Start) -> None:
    wire, data = start({"http": [{"do": "slow", "on": "upload", "bytes_per_s": 20_000}]}), chat(40)
    began = time.monotonic()
    assert wire.content(wire.upload(data).json["id"]) == data
    assert time.monotonic() - began > 0.2


# -------------------------------------------------------------------------------- rows


def run_with(start: Start, rule: dict[str, Any], count: int = 40) -> tuple[Wire, Any, list[Any], list[Any]]:
    wire = start({"seed": 1, "rows": [rule]})
    batch = wire.run(chat(count))
    return wire, batch, *wire.results(batch)


def test_rows_that_fail_by_id(start: Start) -> None:
    rule = {
        "do": "answer",
        "custom_id": ["row-3", "row-7"],
        "status": 429,
        "code": "rate_limit_exceeded",
        "message": "slow down",
    }
    _, batch, outputs, errors = run_with(start, rule)
    assert {line["custom_id"] for line in errors} == {"row-3", "row-7"}
    assert errors[0]["response"]["status_code"] == 429
    assert errors[0]["response"]["body"]["error"]["code"] == "rate_limit_exceeded"
    assert errors[0]["error"] is None
    assert (batch["request_counts"], len(outputs)) == ({"total": 40, "completed": 38, "failed": 2}, 38)


def test_rows_that_fail_by_pattern_and_then_succeed(start: Start) -> None:
    wire, _, _, errors = run_with(start, {"do": "answer", "match": "^row-1.$", "status": 500, "times": 2})
    assert {line["custom_id"] for line in errors} == {f"row-1{n}" for n in range(10)}
    assert len(wire.results(wire.run(chat(40)))[1]) == 10
    assert len(wire.results(wire.run(chat(40)))[1]) == 0
    assert wire.call("GET", "/control/faults").json["hits"]["rows"] == [20]


def test_rows_that_fail_by_chance_are_always_the_same(start: Start) -> None:
    wire, _, _, errors = run_with(start, {"do": "answer", "probability": 0.2, "status": 500}, 500)
    assert 60 < len(errors) < 140
    again = wire.results(wire.run(chat(500)))[1]
    assert {line["custom_id"] for line in again} == {line["custom_id"] for line in errors}


def test_a_row_that_timed_out(start: Start) -> None:
    _, batch, _, errors = run_with(start, {"do": "timeout", "custom_id": "row-3"})
    assert [(line["response"], line["error"]["code"]) for line in errors] == [(None, "request_timeout")]
    assert batch["request_counts"]["failed"] == 1


def test_a_row_with_status_zero(start: Start) -> None:
    _, batch, _, errors = run_with(start, {"do": "zero", "custom_id": "row-3"})
    assert [(line["response"], line["error"]) for line in errors] == [
        ({"status_code": 0, "request_id": "", "body": {}}, None)
    ]
    assert batch["request_counts"] == {"total": 40, "completed": 39, "failed": 0}


def test_lost_rows_are_in_neither_file_but_in_the_ledger(start: Start) -> None:
    wire, batch, outputs, errors = run_with(start, {"do": "lost", "custom_id": ["row-3", "row-4"]})
    assert (len(outputs), errors) == (38, [])
    assert batch["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
    assert (wire.ledger()["rows_executed"], wire.ledger()["rows_lost"]) == (40, 2)


def test_a_duplicate_row(start: Start) -> None:
    _, _, outputs, _ = run_with(start, {"do": "duplicate", "custom_id": "row-3"})
    assert sorted(line["custom_id"] for line in outputs) == sorted([*(f"row-{n}" for n in range(40)), "row-3"])


def test_an_unknown_row(start: Start) -> None:
    _, _, outputs, _ = run_with(start, {"do": "unknown", "custom_id": "row-3"})
    assert "unknown-row-3" in [line["custom_id"] for line in outputs]
    assert len(outputs) == 41


def test_a_huge_row(start: Start) -> None:
    wire, batch, outputs, _ = run_with(start, {"do": "huge", "custom_id": "row-3", "bytes": 5_000_000})
    assert len(outputs) == 40
    assert wire.call("GET", f"/v1/files/{batch['output_file_id']}").json["bytes"] > 5_000_000


def test_a_body_that_is_text(start: Start) -> None:
    _, _, outputs, _ = run_with(start, {"do": "body_as_text"})
    assert all("error" not in line for line in outputs)
    assert json.loads(outputs[0]["response"]["body"])["object"] == "chat.completion"


@pytest.mark.parametrize("at", [None, 30, 0])
def test_a_line_that_is_no_json(start: Start, at: int | None) -> None:
    wire = start({"rows": [{"do": "malformed", "custom_id": "row-3"} | ({} if at is None else {"at": at})]})
    lines = wire.content(wire.run(chat(40))["output_file_id"]).split(b"\n")[:-1]
    bad = [line for line in lines if not _is_json(line)]
    assert (len(lines), len(bad)) == (40, 1)
    assert at is None or len(bad[0]) == at


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True


def test_a_wrong_answer(start: Start) -> None:
    _, _, outputs, _ = run_with(start, {"do": "wrong", "custom_id": "row-3"})
    right = {f"row-{n}": xxh3_64_hexdigest(f"question {n}".encode()) for n in range(40)}
    texts = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in outputs}
    assert [name for name in texts if not texts[name].startswith(right[name])] == ["row-3"]


def test_lines_and_bodies_that_lie(start: Start) -> None:
    line = {"do": "line", "custom_id": "row-3", "drop": ["error"], "set": {"id": None}}
    body = {"do": "body", "custom_id": "row-4", "drop": ["usage"], "set": {"choices": []}}
    wire = start({"rows": [line, body]})
    lines = {each["custom_id"]: each for each in wire.results(wire.run(chat(40)))[0]}
    assert (lines["row-3"]["id"], "error" in lines["row-3"], "error" in lines["row-5"]) == (None, False, True)
    told = lines["row-4"]["response"]["body"]
    assert (told["choices"], "usage" in told, told["object"]) == ([], False, "chat.completion")


# ----------------------------------------------------------------------------- batches


@pytest.mark.parametrize(
    ("rule", "message", "line"),
    [
        (
            {"code": "token_limit_exceeded", "limit": 90_000},
            "Enqueued token limit reached for gpt-4o-mini in organization ",
            None,
        ),
        ({"code": "billing_hard_limit_reached"}, "Billing hard limit has been reached", None),
        ({"code": "invalid_json_line", "line": 3}, "This line is not parseable as valid JSON.", 3),
        ({"code": "weather", "message": "It rains."}, "It rains.", None),
    ],
)
def test_validation_fails_as_told(start: Start, rule: dict[str, Any], message: str, line: int | None) -> None:
    wire = start({"batches": [{"do": "fail", "times": 1, **rule}]})
    batch = wire.run(chat(3))
    [entry] = batch["errors"]["data"]
    assert (batch["status"], entry["code"], entry["line"]) == ("failed", rule["code"], line)
    assert entry["message"].startswith(message)
    assert wire.run(chat(3))["status"] == "completed"
    assert wire.ledger()["rows_executed"] == 3


@pytest.mark.parametrize(
    ("do", "status", "code"), [("expire", "expired", "batch_expired"), ("cancel", "cancelled", "batch_cancelled")]
)
@pytest.mark.parametrize("at", [0, 0.3, 1])
def test_a_batch_ends_early_at_a_fraction(start: Start, do: str, status: str, code: str, at: float) -> None:
    wire = start({"batches": [{"do": do, "at": at, "times": 1}]})
    batch = wire.run(chat(100))
    outputs, errors = wire.results(batch)
    executed = round(100 * at)
    assert (batch["status"], batch[f"{status}_at"] is not None) == (status, True)
    assert (len(outputs), len(errors)) == (executed, 100 - executed)
    assert {line["error"]["code"] for line in errors} == ({code} if errors else set())
    assert batch["request_counts"] == {"total": 100, "completed": executed, "failed": 0}
    assert wire.run(chat(10))["status"] == "completed"


def test_unexecuted_rows_may_be_in_neither_file(start: Start) -> None:
    wire = start({"batches": [{"do": "expire", "at": 0.5}, {"do": "leave_out"}]})
    batch = wire.run(chat(100))
    outputs, errors = wire.results(batch)
    assert (len(outputs), errors, batch["error_file_id"]) == (50, [], None)


@pytest.mark.parametrize("state", ["validating", "in_progress", "finalizing"])
def test_a_batch_is_stuck_for_a_while(start: Start, state: str) -> None:
    wire = start({"batches": [{"do": "stuck", "state": state, "seconds": 0.3}]})
    began = time.monotonic()
    batch_id = wire.create(chat(3))["id"]
    time.sleep(0.15)
    assert wire.batch(batch_id)["status"] == state
    assert wire.finish(batch_id)["status"] == "completed"
    assert time.monotonic() - began > 0.3


def test_a_stuck_batch_can_be_cancelled(start: Start) -> None:
    wire = start({"batches": [{"do": "stuck", "state": "in_progress"}]})
    batch_id = wire.create(chat(3))["id"]
    time.sleep(0.1)
    assert wire.batch(batch_id)["status"] == "in_progress"
    wire.call("POST", f"/v1/batches/{batch_id}/cancel")
    assert wire.finish(batch_id)["status"] == "cancelled"


def test_the_list_lags_behind_a_create(start: Start) -> None:
    wire = start({"batches": [{"do": "hide", "seconds": 0.3, "times": 1}]})
    batch_id = wire.create(chat(1))["id"]
    assert wire.call("GET", "/v1/batches").json["data"] == []
    assert wire.batch(batch_id)["id"] == batch_id
    time.sleep(0.35)
    assert [batch["id"] for batch in wire.call("GET", "/v1/batches").json["data"]] == [batch_id]


def test_objects_that_lie(start: Start) -> None:
    bare = {"do": "view", "match": "^bare", "set": {"metadata": None}, "drop": ["usage"]}
    odd = {"do": "view", "match": "^odd", "set": {"status": "scheduling", "error_file_id": ""}, "terminal_only": True}
    wire = start({"batches": [bare, odd]})
    batch = wire.run(chat(1), metadata={"streambatch": "bare/0/1"})
    [listed] = wire.call("GET", "/v1/batches").json["data"]
    assert (batch["metadata"], "usage" in batch, listed["metadata"]) == (None, False, None)
    assert wire.ledger("bare")["batches"] == 1
    odd_id = wire.create(chat(1), metadata={"streambatch": "odd/0/1"})["id"]
    deadline = time.monotonic() + 10
    while (seen := wire.batch(odd_id))["status"] != "scheduling":
        assert time.monotonic() < deadline
        assert seen["status"] in ("validating", "in_progress", "finalizing")
    assert seen["error_file_id"] == ""


def test_a_batch_that_a_look_up_denies(start: Start) -> None:
    wire = start({"batches": [{"do": "hide", "seconds": 0.3, "by_id": True, "times": 1}]})
    batch_id = wire.create(chat(1))["id"]
    for method, path in (("GET", f"/v1/batches/{batch_id}"), ("POST", f"/v1/batches/{batch_id}/cancel")):
        said = wire.call(method, path)
        assert (said.status, said.error["message"]) == (404, f"No batch found with id '{batch_id}'.")
    time.sleep(0.35)
    assert wire.finish(batch_id)["status"] == "completed"


def test_counts_that_disagree_with_the_files(start: Start) -> None:
    view = {"do": "view", "counts": {"completed": -2, "failed": 1}, "terminal_only": True}
    wire = start({"batches": [view]})
    batch = wire.run(chat(10))
    assert batch["request_counts"] == {"total": 10, "completed": 8, "failed": 1}
    assert len(wire.results(batch)[0]) == 10
    with pytest.raises(ConfigError, match="counts"):
        parse_script({"batches": [{"do": "view", "counts": {"lost": 1}}]}, "faults")


def test_files_that_are_gone_early(start: Start) -> None:
    wire = start({"batches": [{"do": "files_gone", "after": 1}, {"do": "files_gone", "seconds": 4, "times": 1}]})
    later, at_once = wire.run(chat(1)), wire.run(chat(1))
    paths = [f"/v1/files/{batch['output_file_id']}" for batch in (later, at_once)]
    assert [wire.call("GET", path + "/content").status for path in paths] == [200, 404]
    deadline = time.monotonic() + 60
    while wire.call("GET", paths[0]).status == 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [wire.call("GET", path).status for path in paths] == [404, 404]
    ids = [file["id"] for file in wire.call("GET", "/v1/files").json["data"]]
    assert sorted(ids) == sorted(batch["input_file_id"] for batch in (later, at_once))


def test_an_input_that_is_gone_before_it_is_read_fails_its_batch(start: Start) -> None:
    wire = start({"batches": [{"do": "files_gone", "input": True, "times": 1}]})
    batch = wire.run(chat(1))
    assert (batch["status"], batch["errors"]["data"][0]["param"]) == ("failed", "file_id")
    assert wire.call("GET", f"/v1/files/{batch['input_file_id']}").status == 404
    assert wire.run(chat(1))["status"] == "completed"


# ------------------------------------------------------------------- the service as a whole


def test_a_list_full_of_other_peoples_batches(start: Start) -> None:
    wire = start({"foreign": 250})
    ours = [wire.create(chat(1, first=n))["id"] for n in range(3)][::-1]
    seen: list[Any] = []
    after, pages = "", 0
    while pages < 10:
        page = wire.call("GET", f"/v1/batches?limit=100{after}").json
        seen, pages, after = seen + page["data"], pages + 1, f"&after={page['last_id']}"
        if not page["has_more"]:
            break
    assert (pages, len(seen), len({batch["id"] for batch in seen})) == (3, 253, 253)
    assert [batch["id"] for batch in seen][-3:] == ours
    stranger = seen[7]
    assert (stranger["status"], set(stranger)) == ("completed", set(seen[-1]))
    assert wire.batch(stranger["id"])["id"] == stranger["id"]
    assert wire.call("POST", f"/v1/batches/{stranger['id']}/cancel").status == 409
    assert wire.call("GET", f"/v1/files/{stranger['output_file_id']}").status == 404
    assert wire.ledger()["batches"] == 3
    wire.call("DELETE", "/control/faults")
    assert [batch["id"] for batch in wire.call("GET", "/v1/batches").json["data"]] == ours
    assert wire.call("GET", f"/v1/batches/{stranger['id']}").status == 404


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_pages_over_strangers_and_ours_have_no_seam(start: Start, limit: int) -> None:
    wire = start({"foreign": 3})
    ours = [wire.create(chat(1, first=n))["id"] for n in range(3)][::-1]
    seen, query = [], ""
    while True:
        page = wire.call("GET", f"/v1/batches?limit={limit}{query}").json
        seen += [batch["id"] for batch in page["data"]]
        if not page["has_more"]:
            break
        query = f"&after={page['last_id']}"
    assert (len(seen), seen[3:]) == (6, ours)


def test_batches_that_advance_by_looks(start: Start) -> None:
    wire = start({"advance": {"by": "looks", "n": 3}}, speed=1)
    batch_id = wire.create(chat(5))["id"]
    time.sleep(0.1)
    states = []
    while (status := wire.batch(batch_id)["status"]) != "completed":
        states.append(status)
        time.sleep(0.05)
        assert len(states) < 50
    assert [states.count(state) for state in ("validating", "in_progress", "finalizing")] == [3, 3, 3]


def test_looks_through_the_list_count_and_a_cancel_needs_them_too(start: Start) -> None:
    wire = start({"advance": {"by": "looks", "n": 2}}, speed=1)
    batch_id = wire.create(chat(5))["id"]
    wire.call("POST", f"/v1/batches/{batch_id}/cancel")
    time.sleep(0.1)
    looks = []
    for _ in range(4):
        looks.append(wire.call("GET", "/v1/batches").json["data"][0]["status"])
        time.sleep(0.05)
    assert looks == ["cancelling", "cancelling", "cancelled", "cancelled"]


def test_a_batch_stuck_for_ever_is_not_moved_by_looks(start: Start) -> None:
    wire = start({"advance": {"by": "looks"}, "batches": [{"do": "stuck", "state": "in_progress"}]})
    batch_id = wire.create(chat(1))["id"]
    for _ in range(10):
        wire.batch(batch_id)
        time.sleep(0.02)
    assert wire.batch(batch_id)["status"] == "in_progress"


def test_batches_that_advance_at_once(start: Start) -> None:
    wire = start({"advance": {"by": "once"}}, speed=0.001)
    assert wire.run(chat(5000))["request_counts"]["completed"] == 5000


def test_files_that_come_late_or_never(start: Start) -> None:
    rules = [{"do": "late_files", "seconds": 0.3, "times": 1}, {"do": "late_files", "after": 1}]
    wire = start({"batches": rules})
    late, never = wire.run(chat(1)), wire.run(chat(1))
    paths = [f"/v1/files/{batch['output_file_id']}/content" for batch in (late, never)]
    assert [wire.call("GET", path).status for path in paths] == [404, 404]
    time.sleep(0.35)
    assert [wire.call("GET", path).status for path in paths] == [200, 404]


def test_files_that_are_odd(start: Start) -> None:
    rules = [{"do": "no_final_newline"}, {"do": "wrong_bytes", "off": 5}, {"do": "empty_error_file"}]
    wire = start({"batches": rules})
    batch = wire.run(chat(3))
    raw = wire.content(batch["output_file_id"])
    assert raw.endswith(b"}")
    assert len(raw.split(b"\n")) == 3
    assert wire.call("GET", f"/v1/files/{batch['output_file_id']}").json["bytes"] == len(raw) + 5
    assert wire.content(batch["error_file_id"]) == b""


def test_only_the_models_of_the_script(start: Start) -> None:
    wire = start({"models": ["own-1"]})
    assert [model["id"] for model in wire.call("GET", "/v1/models").json["data"]] == ["own-1"]
    assert wire.run(chat(1))["errors"]["data"][0]["code"] == "model_not_found"


# -------------------------------------------------------------------------- the script


def test_a_script_from_a_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(
        'seed = 7\n[[http]]\ndo = "drop"\non = ["create", "list"]\n[[rows]]\ndo = "lost"\nprobability = 0.5\n'
    )
    script = read_script(path)
    assert (script.seed, script.http[0].routes, script.rows[0].probability) == (7, ("create", "list"), 0.5)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ({"http": [{"do": "explode"}]}, "'explode' - at `$.http[0].do`"),
        ({"http": [{"do": "drop", "on": "moon"}]}, "unknown route 'moon'"),
        ({"http": [{"do": "drop", "sometimes": 1}]}, "unknown field `sometimes`"),
        ({"rows": [{"do": "lost", "match": "("}]}, "no regular expression"),
        ({"http": [{"do": "answer", "status": 99}]}, "status lies between 200 and 599"),
        ({"batches": [{"do": "expire", "at": 5}]}, "at lies between 0 and 1"),
        ({"batches": [{"do": "cancel", "at": -1}]}, "at lies between 0 and 1"),
        ({"rows": [{"do": "lost", "probability": 2}]}, "probability lies between 0 and 1"),
        ({"batches": [{"do": "stuck", "state": "asleep"}]}, "unknown state 'asleep'"),
        ({"advance": {"by": "wind"}}, "'wind'"),
        ({"advance": {"n": -1}}, "n is not negative"),
        ({"foreign": -1}, "foreign lies between"),
        ({"rules": []}, "unknown field `rules`"),
        ([], "Expected `object`"),
    ],
)
def test_a_bad_script_is_named(wire: Wire, script: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=r"^faults is no fault script: ") as raised:
        parse_script(script, "faults")
    assert told in str(raised.value)
    said = wire.call("POST", "/control/faults", script)
    assert (said.status, said.error["code"]) == (400, "invalid_script")


@pytest.mark.parametrize("text", ["not = = toml", None])
def test_a_file_that_is_no_script(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "f.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"f\.toml"):
        read_script(tmp_path / "f.toml")


def test_the_script_is_shown_as_it_was_given(wire: Wire) -> None:
    script = {
        "seed": 4,
        "http": [{"do": "drop", "on": "create", "after": 10**6}],
        "batches": [{"do": "hide", "seconds": 1, "times": 0}],
    }
    wire.call("POST", "/control/faults", script)
    shown = wire.call("GET", "/control/faults").json
    assert parse_script(shown["script"], "shown") == parse_script(script, "given")
    assert shown["hits"] == {"http": [0], "rows": [], "batches": [0]}
    assert wire.call("DELETE", "/control/faults").json["script"]["http"] == []


def test_rows_are_hit_by_seed_and_id_alone() -> None:
    def hit(seed: int) -> set[int]:
        faults = Faults(parse_script({"seed": seed, "rows": [{"do": "lost", "probability": 0.5}]}, "faults"))
        return {n for n in range(200) if faults.row(f"row-{n}") is not None}

    assert hit(1) == hit(1) != hit(2)
