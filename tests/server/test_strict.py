"""Facts of the wire that no other test of the server shows: files, uploads, batches, what fails them, rows, errors."""

import json
import string
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from streambatch.server.limits import MAX_EMBEDDING_REQUESTS
from streambatch.server.validation import MAX_LINE_BYTES
from tests.server import recorded
from tests.server.conftest import Start
from tests.server.kit import CHAT, Wire, chat, jsonl, row
from tests.server.recorded import unlike
from tests.server.test_parts import begun, complete, part

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
ENDPOINTS = (
    CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/moderations", "/v1/images/generations", "/v1/images/edits",
    "/v1/videos",
)  # fmt: skip
LABELS = {CHAT: "Chat Completions", "/v1/completions": "Completions", "/v1/responses": "Responses"}


def line(endpoint: str, n: int = 1, **body: Any) -> dict[str, Any]:
    asked = {"model": "m", "messages": [{"role": "user", "content": "x"}], "input": "x", "prompt": "x", **body}
    return {
        "custom_id": f"row-{n}",
        "method": "POST",
        "url": endpoint,
        "body": {k: v for k, v in asked.items() if v is not None},
    }


def entry_of(wire: Wire, data: bytes, endpoint: str = CHAT) -> Any:
    """The one thing that a batch of these lines fails for."""
    batch = wire.run(data, endpoint)
    assert batch["status"] == "failed"
    [entry] = batch["errors"]["data"]
    return entry


# ------------------------------------------------------------------------------ files


@pytest.mark.parametrize("purpose", PURPOSES)
def test_six_purposes_and_how_long_they_stay(wire: Wire, purpose: str) -> None:
    """Files for batches stay thirty days, all others until they are deleted; only those of batches are looked into."""
    name = "a.jsonl" if purpose == "batch" else "a.bin"
    file = wire.upload(chat(1) if purpose == "batch" else b"\x00\xff", name, purpose=purpose).json
    later = recorded.LOOKED_UP if purpose == "batch" else recorded.UPLOADED | {"purpose": purpose}
    assert unlike(wire.call("GET", f"/v1/files/{file['id']}").json, later) == []


@pytest.mark.parametrize("half", ["anchor", "seconds"])
def test_an_expiry_is_given_whole(wire: Wire, half: str) -> None:
    said = wire.upload(chat(1), **{f"expires_after[{half}]": {"anchor": "created_at", "seconds": "3600"}[half]})
    assert (said.status, said.error["param"].partition(".")[0]) == (400, "expires_after")


def test_any_single_file_has_a_limit(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    from streambatch.server import uploads

    assert uploads.MAX_FILE_BYTES == 512 << 20
    monkeypatch.setattr("streambatch.server.uploads.MAX_FILE_BYTES", 1000)
    said = start().upload(b"x" * 1001, "a.bin", purpose="user_data")
    assert (said.status, said.error["type"]) == (413, "invalid_request_error")


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ("limit=10001", "limit", "integer_above_max_value"), ("limit=0", "limit", "integer_below_min_value"),
        ("order=up", "order", "invalid_value"), ("after=file-x", "after", "invalid_value"),
    ],
)  # fmt: skip
def test_bad_pages_of_files(wire: Wire, query: str, param: str, code: str) -> None:
    said = wire.call("GET", f"/v1/files?{query}")
    assert (said.status, said.error["param"], said.error["code"]) == (400, param, code)


def test_pages_of_files_have_five_keys(start: Start) -> None:
    wire = start()
    ids = [wire.upload(chat(1)).json["id"] for _ in range(2)][::-1]
    page = wire.call("GET", "/v1/files?limit=10000").json
    assert list(page) == ["object", "data", "first_id", "last_id", "has_more"]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (*ids, False)
    empty: dict[str, Any] = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert wire.call("GET", "/v1/files?purpose=vision").json == empty


def test_a_deleted_file_says_so_in_three_keys(wire: Wire) -> None:
    file_id = wire.upload(chat(1)).json["id"]
    gone = wire.call("DELETE", f"/v1/files/{file_id}").json
    assert list(gone.items()) == [("id", file_id), ("object", "file"), ("deleted", True)]


# ---------------------------------------------------------------------------- uploads


def test_an_upload_field_by_field(wire: Wire) -> None:
    data = chat(2)
    upload = begun(wire, len(data))
    record = {
        "id": recorded.an_id("upload_", recorded.HEX, 32), "object": "upload", "bytes": len(data), "created_at": recorded.TIME,
        "filename": "in.jsonl", "purpose": "batch", "status": "pending", "expires_at": recorded.later(3600), "file": None,
    }  # fmt: skip
    assert unlike(upload, record) == []
    done = complete(wire, upload["id"], [part(wire, upload["id"], data)]).json
    assert unlike(done, record | {"status": "completed", "file": recorded.OBJECT}) == []
    assert unlike(done["file"], recorded.UPLOADED) == []
    other = begun(wire, 5)["id"]
    cancelled = wire.call("POST", f"/v1/uploads/{other}/cancel").json
    assert unlike(cancelled, record | {"status": "cancelled", "bytes": 5}) == []


def test_an_upload_with_an_expiry_of_its_file(wire: Wire) -> None:
    data = chat(1)
    upload = begun(wire, len(data), expires_after={"anchor": "created_at", "seconds": 7200})
    file = complete(wire, upload["id"], [part(wire, upload["id"], data)]).json["file"]
    assert unlike(file, recorded.UPLOADED | {"expires_at": recorded.later(7200)}) == []


def test_parts_may_come_at_one_time(wire: Wire) -> None:
    data = chat(400)
    pieces = [data[n : n + 10_000] for n in range(0, len(data), 10_000)]
    upload = begun(wire, len(data))
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda piece: part(wire, upload["id"], piece), pieces))
    assert {len(each) for each in ids} == {len("part_") + 32}
    done = complete(wire, upload["id"], ids).json
    assert wire.content(done["file"]["id"]) == data


def test_what_is_no_batch_input_is_refused_at_complete_too(wire: Wire) -> None:
    upload = begun(wire, 8)
    said = complete(wire, upload["id"], [part(wire, upload["id"], b"no json\n")])
    assert (said.status, said.error["param"]) == (400, "file")


# ---------------------------------------------------------------------------- batches


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_eight_endpoints(wire: Wire, endpoint: str) -> None:
    batch = wire.create(jsonl([line(endpoint)]), endpoint, metadata=None, output_expires_after=None)
    assert unlike(batch, recorded.CREATED | {"endpoint": endpoint}) == []
    assert wire.finish(batch["id"])["status"] in ("completed", "failed")


@pytest.mark.parametrize("value", [1, 1.5, True, None, {}, []])
def test_metadata_is_text_alone(wire: Wire, value: Any) -> None:
    asked = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h", "metadata": {"key": value}}
    said = wire.call("POST", "/v1/batches", asked)
    assert (said.status, said.error["code"], said.error["param"]) == (400, "invalid_type", "metadata.key")
    assert said.error["message"].startswith("Invalid type for 'metadata.key': expected a string, but got ")


@pytest.mark.parametrize(
    ("asked", "shown"),
    [("gpt-4o-mini", "gpt-4o-mini-2024-07-18"), ("gpt-4.1", "gpt-4.1-2025-04-14"), ("my-own", "my-own"),
     ("gpt-4o-2024-05-13", "gpt-4o-2024-05-13")],
)  # fmt: skip
def test_a_batch_shows_the_snapshot_of_its_model(wire: Wire, asked: str, shown: str) -> None:
    assert wire.run(jsonl([line(CHAT, model=asked)]))["model"] == shown


def test_usage_is_the_sum_over_its_rows(wire: Wire) -> None:
    batch = wire.run(chat(7))
    used = [each["response"]["body"]["usage"] for each in wire.results(batch)[0]]
    read, written = (sum(each[name] for each in used) for name in ("prompt_tokens", "completion_tokens"))
    assert unlike(batch["usage"], {
        "input_tokens": read, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": read + written,
    }) == []  # fmt: skip


def test_an_expired_batch(start: Start) -> None:
    """It went through finalizing; what was executed is kept, the rest said why not; and it can't be cancelled."""
    wire = start(faults={"batches": [{"do": "expire", "at": 0.5}]})
    batch = wire.run(chat(8))
    told = {
        "status": "expired", "completed_at": None, "expired_at": recorded.TIME, "error_file_id": recorded.FILE_ID,
        "request_counts": {"total": 8, "completed": 4, "failed": 0},
    }  # fmt: skip
    assert unlike(batch, recorded.COMPLETED | told) == []
    unexecuted = {
        "id": recorded.an_id("batch_req_", recorded.HEX, 32), "custom_id": recorded.TEXT, "response": None,
        "error": {
            "code": "batch_expired",
            "message": "This request could not be executed before the completion window expired.",
        },
    }  # fmt: skip
    assert [told for each in wire.results(batch)[1] for told in unlike(each, unexecuted)] == []
    said = wire.call("POST", f"/v1/batches/{batch['id']}/cancel")
    assert (said.status, said.error["message"]) == (409, "Cannot cancel a batch with status 'expired'.")


def test_a_batch_cannot_be_deleted(wire: Wire) -> None:
    batch = wire.run(chat(1))
    assert wire.call("DELETE", f"/v1/batches/{batch['id']}").status == 405
    assert wire.batch(batch["id"]) == batch


# ------------------------------------------------------------------ what fails a batch


@pytest.mark.parametrize("endpoint", ENDPOINTS[:5])
def test_streams_are_refused_anywhere(wire: Wire, endpoint: str) -> None:
    entry = entry_of(wire, jsonl([line(endpoint, 0), line(endpoint, stream=True)]), endpoint)
    assert (entry["code"], entry["param"], entry["line"]) == ("streaming_unsupported", "body.stream", 2)
    assert entry["message"] == f"{LABELS.get(endpoint, 'This endpoint')}: Streaming is not supported in the Batch API."


@pytest.mark.parametrize("endpoint", ["/v1/moderations", "/v1/embeddings"])
def test_lines_that_need_an_input(wire: Wire, endpoint: str) -> None:
    entry = entry_of(wire, jsonl([line(endpoint, input=None)]), endpoint)
    assert (entry["code"], entry["param"], entry["line"]) == ("invalid_request", "body.input", 1)


def test_a_model_that_is_not_there(start: Start) -> None:
    entry = entry_of(start(faults={"models": ["gpt-5"]}), chat(1))
    assert unlike(entry, {
        "code": "model_not_found", "line": 1, "message": "The provided model 'gpt-4o-mini' is not supported by the Batch API.",
        "param": "body.model",
    }) == []  # fmt: skip


def test_a_file_of_another_purpose_is_no_input(wire: Wire) -> None:
    file_id = wire.upload(chat(1), purpose="user_data").json["id"]
    asked = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    batch = wire.finish(wire.call("POST", "/v1/batches", asked).json["id"])
    [entry] = batch["errors"]["data"]
    assert (entry["code"], entry["param"], entry["line"]) == ("invalid_request", "file_id", None)


def test_results_are_no_input(wire: Wire) -> None:
    asked = {"input_file_id": wire.run(chat(1))["output_file_id"], "endpoint": CHAT, "completion_window": "24h"}
    batch = wire.finish(wire.call("POST", "/v1/batches", asked).json["id"])
    assert (batch["status"], batch["errors"]["data"][0]["param"]) == ("failed", "file_id")


def test_a_mark_of_byte_order_is_no_json(wire: Wire) -> None:
    entry = entry_of(wire, chat(1) + b"\xef\xbb\xbf" + json.dumps(row(2)).encode() + b"\n")
    assert (entry["code"], entry["line"]) == ("invalid_json_line", 2)


def test_a_queue_of_embeddings_is_full(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_EMBEDDING_REQUESTS == 1_000_000
    monkeypatch.setattr("streambatch.server.told.MAX_EMBEDDING_REQUESTS", 2)
    rows = [line("/v1/embeddings", n, model="text-embedding-3-small") for n in range(3)]
    entry = entry_of(start(tier="5"), jsonl(rows), "/v1/embeddings")
    assert (entry["code"], entry["param"], entry["line"]) == ("request_limit_exceeded", None, None)
    begins, ends = entry["message"].split("org-streambatchlocal")
    assert begins == "Enqueued request limit reached for text-embedding-3-small in organization "
    assert ends == (". Limit: 2 enqueued requests. Please try again once some in_progress batches have been completed.")


def test_a_line_may_be_long(wire: Wire) -> None:
    assert MAX_LINE_BYTES >= 1 << 20
    assert wire.run(jsonl([row(0), row(1, "x" * (1 << 20))]))["request_counts"]["completed"] == 2


# -------------------------------------------------------------------------------- rows


@pytest.mark.parametrize(
    ("more", "param"), [({"background": True}, "background"), ({"input": None, "prompt": None}, "input")]
)
def test_a_response_that_is_refused(wire: Wire, more: dict[str, Any], param: str) -> None:
    batch = wire.run(jsonl([line("/v1/responses", 0), line("/v1/responses", **more)]), "/v1/responses")
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    [refused] = wire.results(batch)[1]
    assert (unlike(refused, recorded.REFUSED), refused["response"]["body"]["error"]["param"]) == ([], param)


def test_ids_of_any_text_come_back_as_they_were(wire: Wire) -> None:
    ids = ["", " ", "0", "a" * 512, 'quote " and \\', "null", "ключ", "😀", "\u0000", string.printable]
    batch = wire.run(jsonl({**row(0), "custom_id": each} for each in ids))
    assert batch["status"] == "completed", batch["errors"]
    assert sorted(each["custom_id"] for each in wire.results(batch)[0]) == sorted(ids)


def test_fields_that_nobody_knows_are_taken(wire: Wire) -> None:
    more = {**row(0), "priority": 3, "metadata": {"a": [1]}}
    more["body"] |= {"seed": 4, "logprobs": True, "temperature": 0, "user": "u", "new": {"deep": [None]}}
    assert wire.run(jsonl([more]))["request_counts"]["completed"] == 1


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer wrong"])
def test_a_bad_key_is_told_in_an_envelope_of_four(wire: Wire, authorization: str) -> None:
    said = wire.call("GET", "/v1/batches", headers={"Authorization": authorization})
    assert (said.status, list(said.json)) == (401, ["error"])
    assert list(said.error) == ["message", "type", "param", "code"]
    assert (said.error["type"], said.error["param"]) == ("invalid_request_error", None)


def test_organization_and_project_may_be_named(wire: Wire) -> None:
    assert (
        wire.call("GET", "/v1/batches", headers={"OpenAI-Organization": "org-a", "OpenAI-Project": "proj_b"}).status
        == 200
    )


def test_every_status_keeps_its_envelope(start: Start) -> None:
    wire = start()
    for status in (400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504):
        wire.call("POST", "/control/faults", {"http": [{"do": "answer", "on": "list", "status": status}]})
        said = wire.call("GET", "/v1/batches")
        assert (said.status, list(said.error)) == (status, ["message", "type", "param", "code"])
        assert "retry-after" not in said.headers
