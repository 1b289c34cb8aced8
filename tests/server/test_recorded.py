"""The server beside the recorded facts of the real service: objects, states, lines, errors, headers, bytes."""

import gzip
import http.client
import json
import time
from typing import Any

import pytest
from msgspec.structs import replace

from streambatch.server.profiles import OPENAI, PROFILES
from tests.server import recorded
from tests.server.conftest import Start
from tests.server.kit import CHAT, TERMINAL, Said, Wire, chat, jsonl, multipart, row
from tests.server.recorded import unlike


def created(wire: Wire, data: bytes, **more: Any) -> Any:
    batch = wire.create(data, **more)
    assert unlike(batch, recorded.CREATED | {"metadata": more.get("metadata")}) == []
    return batch


def one_bad_of_three() -> bytes:
    rows = [row(n) for n in range(3)]
    rows[1]["body"]["messages"] = []
    return jsonl(rows)


# ------------------------------------------------------------------------------ files


def test_a_file_has_no_expiry_yet_when_it_is_uploaded_and_thirty_days_later(wire: Wire) -> None:
    uploaded = wire.upload(chat(3)).json
    looked_up = wire.call("GET", f"/v1/files/{uploaded['id']}").json
    assert unlike(uploaded, recorded.UPLOADED) == []
    assert unlike(looked_up, recorded.LOOKED_UP) == []
    [listed] = [file for file in wire.call("GET", "/v1/files").json["data"] if file["id"] == uploaded["id"]]
    assert listed == looked_up


@pytest.mark.parametrize("kind", ["application/octet-stream", "application/jsonl", "text/plain", None])
def test_any_content_type_of_a_part_and_the_name_upload_are_taken(wire: Wire, kind: str | None) -> None:
    body, headers = multipart(chat(1), "upload", {"purpose": "batch"})
    given = b"" if kind is None else f"Content-Type: {kind}\r\n".encode()
    said = wire.call("POST", "/v1/files", body.replace(b"Content-Type: application/octet-stream\r\n", given), headers)
    assert (said.status, said.json["filename"], said.json["status"]) == (200, "upload", "processed")


def test_a_bad_line_further_down_is_no_matter_of_the_upload(wire: Wire) -> None:
    assert wire.upload(chat(1) + b"no json\n").status == 200
    assert wire.upload(b"no json\n" + chat(1)).status == 400


def test_a_file_that_is_too_large_names_limit_and_model(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILES, "openai", replace(OPENAI, max_bytes=1000))
    said = start().upload(chat(10))
    assert said.status == 413
    assert "larger than the 1000 maximum for the gpt-4o-mini model" in said.error["message"]


def test_a_file_that_was_too_large_in_2024(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILES, "openai-2024", replace(PROFILES["openai-2024"], max_bytes=1000))
    said = start(profile="openai-2024").upload(chat(10))
    assert (said.status, unlike(said.json, recorded.TOO_LARGE_IN_2024)) == (400, [])


# ---------------------------------------------------------------------------- batches


def test_a_new_batch(wire: Wire) -> None:
    created(wire, chat(1), metadata={"description": "nightly"})


def test_a_small_batch_state_by_state(start: Start) -> None:
    """Each state is seen: counts grow in it, and what comes later is null until it comes."""
    wire = start(speed=1, validating_s=0.5, finalizing_s=0.5, rows_per_s=4)
    batch_id = created(wire, chat(3))["id"]
    looks: list[Any] = []
    while not looks or looks[-1]["status"] not in TERMINAL:
        looks.append(wire.batch(batch_id))
        time.sleep(0.01)
    assert list(dict.fromkeys(look["status"] for look in looks)) == list(recorded.STATES)
    records = {
        "validating": recorded.CREATED, "in_progress": recorded.RUNNING, "finalizing": recorded.FINALIZING,
        "completed": recorded.COMPLETED,
    }  # fmt: skip
    assert [told for look in looks for told in unlike(look, records[look["status"]])] == []
    counts = {name: [look["request_counts"] for look in looks if look["status"] == name] for name in recorded.STATES}
    done = [each["completed"] for each in counts["in_progress"]]
    assert {each["total"] for each in counts["validating"]} == {0}
    assert {each["total"] for each in counts["in_progress"]} == {3}
    assert (done == sorted(done), done[0], 1 in done) == (True, 0, True)
    assert counts["finalizing"][0] == counts["completed"][0] == {"total": 3, "completed": 3, "failed": 0}


def test_a_look_every_while_may_miss_states(start: Start) -> None:
    wire = start()
    batch = wire.create(chat(1))
    wire.finish(batch["id"])
    assert unlike(wire.batch(batch["id"]), recorded.COMPLETED) == []


def test_one_bad_row_of_three(wire: Wire) -> None:
    batch = wire.run(one_bad_of_three())
    assert unlike(batch, recorded.ONE_BAD_OF_THREE) == []
    for name in ("output_file_id", "error_file_id"):
        assert unlike(wire.call("GET", f"/v1/files/{batch[name]}").json, recorded.RESULT_FILE) == []
    outputs, errors = wire.results(batch)
    assert [told for line in outputs for told in unlike(line, recorded.ANSWERED)] == []
    assert [told for line in errors for told in unlike(line, recorded.REFUSED)] == []
    assert (len(outputs), len(errors)) == (2, 1)


def test_all_rows_bad(wire: Wire) -> None:
    rows = [row(n) for n in range(3)]
    for each in rows:
        each["body"]["messages"] = []
    assert unlike(wire.run(jsonl(rows)), recorded.ALL_BAD) == []


def test_a_row_cut_for_length_is_a_success(start: Start) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "length"}
    wire = start(faults={"rows": [{"do": "body", "custom_id": "row-1", "set": {"choices": [choice]}}]})
    batch = wire.run(chat(3))
    assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    [line] = [line for line in wire.results(batch)[0] if line["custom_id"] == "row-1"]
    assert unlike(line, recorded.ANSWERED) == []
    assert line["response"]["body"]["choices"][0]["finish_reason"] == "length"


def test_cancelling_and_cancelled(start: Start) -> None:
    wire = start(speed=1, validating_s=0, cancelling_s=1, rows_per_s=10)
    batch = wire.create(chat(200))
    while wire.batch(batch["id"])["status"] == "validating":
        time.sleep(0.01)
    for _ in range(2):  # the second time it is accepted again
        said = wire.call("POST", f"/v1/batches/{batch['id']}/cancel")
        assert (said.status, unlike(said.json, recorded.CANCELLING)) == (200, [])
    end = wire.finish(batch["id"])
    output = recorded.FILE_ID if end["request_counts"]["completed"] else None
    assert unlike(end, recorded.CANCELLED | {"output_file_id": output}) == []
    again = wire.call("POST", f"/v1/batches/{batch['id']}/cancel")
    assert (again.status, again.json) == (200, end)


def test_a_completed_batch_is_not_cancelled(wire: Wire) -> None:
    said = wire.call("POST", f"/v1/batches/{wire.run(chat(1))['id']}/cancel")
    assert (said.status, unlike(said.json, recorded.CANCEL_REFUSAL)) == (409, [])


def test_an_unknown_batch(wire: Wire) -> None:
    said = wire.call("GET", "/v1/batches/batch_0")
    assert (said.status, said.error["message"].startswith("No batch found with id")) == (404, True)


# ----------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("case", recorded.CREATE_REFUSALS)
def test_what_a_create_is_refused_for(wire: Wire, case: str) -> None:
    change, told = recorded.CREATE_REFUSALS[case]
    asked = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h", **change}
    for body in (asked, {name: value for name, value in asked.items() if value is not None}):
        said = wire.call("POST", "/v1/batches", body)
        assert (said.status, unlike(said.json, told)) == (400, [])


@pytest.mark.parametrize("case", recorded.BAD_LINES)
def test_what_a_batch_fails_for(wire: Wire, case: str) -> None:
    line, entry = recorded.BAD_LINES[case]
    good = json.dumps(recorded.GOOD_LINE).encode() + b"\n"
    batch = wire.run(good + (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" + chat(1))
    assert unlike(batch, recorded.FAILED | {"errors": {"object": "list", "data": [entry]}}) == []


def test_an_unknown_input_is_found_out_later(wire: Wire) -> None:
    asked = {"input_file_id": "file-nobody", "endpoint": CHAT, "completion_window": "24h"}
    said = wire.call("POST", "/v1/batches", asked)
    assert (said.status, unlike(said.json, recorded.CREATED | {"input_file_id": "file-nobody"})) == (200, [])
    [entry] = wire.finish(said.json["id"])["errors"]["data"]
    start, end = "Cannot find file file-nobody, or organization org-", " does not have access to it."
    assert (entry["code"], entry["param"], entry["line"]) == ("invalid_request", "file_id", None)
    assert (entry["message"].startswith(start), entry["message"].endswith(end)) == (True, True)


# -------------------------------------------------------------------------------- bytes


def test_result_lines_byte_by_byte(wire: Wire) -> None:
    batch = wire.run(one_bad_of_three())
    for name in ("output_file_id", "error_file_id"):
        content = wire.content(batch[name])
        assert content.endswith(b"}\n")
        for line in content[:-1].split(b"\n"):
            assert line == json.dumps(json.loads(line)).encode()  # ", " and ": ", ASCII, nothing else


@pytest.mark.parametrize("text", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
def test_no_line_end_of_any_kind_stands_inside_a_line(start: Start, text: str) -> None:
    """Several clients cut at whatever `str.splitlines` cuts at."""
    wire = start(answer=lambda body: f"one{text}two")
    lines = wire.content(wire.run(jsonl([row(f"1{text}2")]))["output_file_id"]).decode().splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == [f"row-1{text}2"]
    assert json.loads(lines[0])["response"]["body"]["choices"][0]["message"]["content"] == f"one{text}two"


def answers_of(wire: Wire, headers: dict[str, str] | None = None) -> dict[str, Said]:
    """One answer of each call of files and batches."""
    body, form = multipart(chat(1), "a.jsonl", {"purpose": "batch"})
    more = {} if headers is None else headers
    upload = wire.call("POST", "/v1/files", body, {**form, **more})
    batch = wire.create(chat(1))
    asked = {name: batch[name] for name in ("input_file_id", "endpoint", "completion_window")}
    return {
        "upload": upload,
        "file": wire.call("GET", f"/v1/files/{batch['input_file_id']}", headers=more),
        "files": wire.call("GET", "/v1/files", headers=more),
        "create": wire.call("POST", "/v1/batches", asked, more),
        "batch": wire.call("GET", f"/v1/batches/{batch['id']}", headers=more),
        "batches": wire.call("GET", "/v1/batches", headers=more),
        "no batch": wire.call("GET", "/v1/batches/batch_0", headers=more),
        "refusal": wire.call("POST", "/v1/batches", {}, more),
    }


def test_objects_are_printed_with_two_spaces(wire: Wire) -> None:
    for name, said in answers_of(wire).items():
        assert said.body.decode() == json.dumps(said.json, indent=2, ensure_ascii=False), name


def test_some_answers_are_compact(wire: Wire) -> None:
    asked = {"filename": "a.jsonl", "purpose": "batch", "bytes": 5, "mime_type": "application/jsonl"}
    body = wire.call("POST", "/v1/uploads", asked).body
    assert body == json.dumps(json.loads(body), separators=(",", ":")).encode()


def test_answers_are_chunked_and_packed_for_who_takes_it(wire: Wire) -> None:
    for name, said in answers_of(wire, {"Accept-Encoding": "gzip, deflate"}).items():
        assert said.headers["content-encoding"] == "gzip", name
        assert "content-length" not in said.headers, name
        assert said.headers["transfer-encoding"] == "chunked", name
        assert gzip.decompress(said.body).startswith(b"{\n  "), name
    for name, said in answers_of(wire).items():
        assert "content-encoding" not in said.headers, name
        assert "content-length" not in said.headers, name


@pytest.mark.parametrize(
    ("accepts", "packed"),
    [("gzip", True), ("br, gzip;q=0.5", True), ("gzip;q=0", False), ("identity", False), ("x-gzipped", False)],
)
def test_only_who_takes_gzip_gets_it(wire: Wire, accepts: str, packed: bool) -> None:
    said = wire.call("GET", "/v1/batches", headers={"Accept-Encoding": accepts})
    assert (said.headers.get("content-encoding") == "gzip") is packed


def test_headers_of_files_and_batches(wire: Wire) -> None:
    for name, said in answers_of(wire).items():
        assert said.headers["x-request-id"].startswith("req_"), name
        assert said.headers["openai-organization"], name
        assert said.headers["openai-version"] == "2020-10-01", name
        assert said.headers["openai-processing-ms"].isdecimal(), name
        assert [header for header in said.headers if header.startswith("x-ratelimit")] == [], name


def test_request_ids_are_never_the_same(wire: Wire) -> None:
    assert len({wire.call("GET", "/v1/models").headers["x-request-id"] for _ in range(5)}) == 5


def test_content_comes_with_its_length(wire: Wire) -> None:
    data = chat(50)
    path = f"/v1/files/{wire.upload(data).json['id']}/content"
    said = wire.call("GET", path, headers={"Accept": "application/binary", "Accept-Encoding": "gzip"})
    assert (said.headers["content-length"], said.body) == (str(len(data)), data)
    assert said.headers["content-type"] == "application/octet-stream"


def test_a_client_of_http_1_0_gets_an_answer_too(wire: Wire) -> None:
    connection = http.client.HTTPConnection(wire.host, wire.port, timeout=20)
    connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"  # type: ignore[attr-defined]
    try:
        connection.request("GET", "/v1/batches", headers={"Authorization": f"Bearer {wire.key}", "Host": wire.host})
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["object"]) == (200, "list")
        assert answer.getheader("transfer-encoding") is None
    finally:
        connection.close()
