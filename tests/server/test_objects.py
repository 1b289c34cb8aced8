"""The objects, errors and headers of the wire, field by field."""

import gzip
import json
import time
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from msgspec.structs import replace

from streambatch.server.profiles import OPENAI, PROFILES
from tests.server.conftest import Start
from tests.server.kit import CHAT, Wire, chat, multipart

NEW_BATCH = {
    "object": "batch", "endpoint": CHAT, "model": None, "errors": None, "completion_window": "24h", "status": "validating",
    "output_file_id": None, "error_file_id": None, "in_progress_at": None, "finalizing_at": None, "completed_at": None,
    "failed_at": None, "expired_at": None, "cancelling_at": None, "cancelled_at": None,
    "request_counts": {"total": 0, "completed": 0, "failed": 0},
    "usage": {
        "input_tokens": 0, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 0,
    },
}  # fmt: skip


def test_an_upload_answers_with_the_whole_file(wire: Wire) -> None:
    data = chat(3)
    said = wire.upload(data, "my input.jsonl")
    assert said.status == 200
    file = said.json
    assert len(file["id"]) == 27
    assert file["id"].startswith("file-")
    assert file["id"][5:].isalnum()
    assert abs(file["created_at"] - time.time()) < 5
    rest = {name: value for name, value in file.items() if name not in ("id", "created_at")}
    assert rest == {
        "object": "file", "purpose": "batch", "filename": "my input.jsonl", "bytes": len(data), "expires_at": None,
        "status": "processed", "status_details": None,
    }  # fmt: skip
    later = wire.call("GET", f"/v1/files/{file['id']}").json
    assert later == {**file, "expires_at": file["created_at"] + 2_592_000}
    assert wire.content(file["id"]) == data


def test_an_expiry_that_was_asked_for_is_told_at_once(wire: Wire) -> None:
    file = wire.upload(chat(1), **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}).json
    assert file["expires_at"] == file["created_at"] + 3600


@pytest.mark.parametrize("name", ["upload", "a.jsonl", "Ünï.jsonl"])
def test_names_that_clients_use_are_taken(wire: Wire, name: str) -> None:
    assert wire.upload(chat(1), name).json["filename"] == name


def _expiry(anchor: str, seconds: str) -> dict[str, str]:
    return {"expires_after[anchor]": anchor, "expires_after[seconds]": seconds}


@pytest.mark.parametrize(
    ("data", "name", "fields", "status", "param", "code"),
    [
        (chat(1), "a.csv", {}, 400, "file", None),
        (b"", "a.jsonl", {}, 400, "file", None),
        (b"no json\n", "a.jsonl", {}, 400, "file", None),
        (b"[1]\n", "a.jsonl", {}, 400, "file", None),
        (b"\xef\xbb\xbf{}\n", "a.jsonl", {}, 400, "file", None),
        (chat(1), "a.jsonl", {"purpose": "poetry"}, 400, "purpose", "invalid_value"),
        (chat(1), None, {}, 400, "file", "missing_required_parameter"),
        (chat(1), "a.jsonl", _expiry("now", "3600"), 400, "expires_after.anchor", "invalid_value"),
        (chat(1), "a.jsonl", _expiry("created_at", "60"), 400, "expires_after.seconds", "invalid_value"),
    ],
)  # fmt: skip
def test_uploads_that_are_refused(
    wire: Wire, data: bytes, name: str | None, fields: dict[str, str], status: int, param: str, code: str | None
) -> None:
    body, headers = multipart(data, name, {"purpose": "batch", **fields})
    said = wire.call("POST", "/v1/files", body, headers)
    assert (said.status, said.error["type"], said.error["param"], said.error["code"]) == (
        status,
        "invalid_request_error",
        param,
        code,
    )


@pytest.mark.parametrize(
    "body", [b"", b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}', b"\x00" * 99]
)
def test_a_broken_multipart_body_is_refused_and_leaves_nothing(start: Start, tmp_path: Any, body: bytes) -> None:
    wire = start()
    said = wire.call("POST", "/v1/files", body, {"Content-Type": "multipart/form-data; boundary=b"})
    assert said.status == 400
    assert list((tmp_path / "data" / "contents").iterdir()) == []
    assert wire.call("POST", "/v1/files", b"{}", {"Content-Type": "application/json"}).status == 400


def test_a_batch_file_has_a_limit(start: Start, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert OPENAI.max_bytes == 209_715_200
    monkeypatch.setitem(PROFILES, "openai", replace(OPENAI, max_bytes=10_000))
    wire = start()
    said = wire.upload(chat(1000))
    assert said.status == 413
    assert "10000" in said.error["message"]
    assert list((tmp_path / "data" / "contents").iterdir()) == []


def test_a_new_batch_has_every_key(wire: Wire) -> None:
    file_id = wire.upload(chat(1)).json["id"]
    asked = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", "metadata": {"a": "b"}}
    batch = wire.call("POST", "/v1/batches", asked).json
    assert len(batch["id"]) == 38
    assert batch["id"].startswith("batch_")
    assert set(batch["id"][6:]) <= set("0123456789abcdef")
    assert batch["expires_at"] == batch["created_at"] + 86_400
    rest = {name: value for name, value in batch.items() if name not in ("id", "created_at", "expires_at")}
    assert rest == {**NEW_BATCH, "input_file_id": file_id, "metadata": {"a": "b"}}
    assert wire.finish(batch["id"])["metadata"] == {"a": "b"}


def _without(name: str) -> dict[str, Any]:
    asked = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}
    return {key: value for key, value in asked.items() if key != name}


@pytest.mark.parametrize(
    ("asked", "param", "code", "message"),
    [
        ({**_without(""), "endpoint": "/v1/poems"}, "endpoint", "invalid_value", "Invalid value: '/v1/poems'. Supported"),
        (
            {**_without(""), "completion_window": "1h"}, "completion_window", "invalid_value",
            "Invalid value: '1h'. Supported values are: '24h'.",
        ),
        ({**_without(""), "input_file_id": 7}, "input_file_id", "invalid_type", "Invalid type for 'input_file_id'"),
        (
            {**_without(""), "metadata": {"tags": ["a"]}}, "metadata.tags", "invalid_type",
            "Invalid type for 'metadata.tags': expected a string, but got an array instead.",
        ),
        ({**_without(""), "metadata": "x"}, "metadata", "invalid_type", "Invalid type for 'metadata'"),
        (
            {**_without(""), "metadata": dict.fromkeys("abcdefghijklmnopq", "")}, "metadata", "object_above_max_properties",
            "Invalid 'metadata': too many properties.",
        ),
        ({**_without(""), "metadata": {"k" * 65: ""}}, "metadata", "string_above_max_length", "Invalid 'metadata' key"),
        ({**_without(""), "metadata": {"k": "v" * 513}}, "metadata.k", "string_above_max_length", "Invalid 'metadata.k'"),
        (
            {**_without(""), "output_expires_after": {"anchor": "created_at", "seconds": 1}},
            "output_expires_after.seconds", "invalid_value", "Invalid value for 'output_expires_after.seconds'",
        ),
    ],
)  # fmt: skip
def test_creates_that_are_refused_at_once(
    wire: Wire, asked: dict[str, Any], param: str, code: str, message: str
) -> None:
    said = wire.call("POST", "/v1/batches", asked)
    assert (said.status, said.error["type"], said.error["param"], said.error["code"]) == (
        400,
        "invalid_request_error",
        param,
        code,
    )
    assert said.error["message"].startswith(message)


@pytest.mark.parametrize("name", ["input_file_id", "endpoint", "completion_window"])
def test_a_create_needs_three_fields(wire: Wire, name: str) -> None:
    said = wire.call("POST", "/v1/batches", _without(name))
    told = {"message": f"Missing required parameter: '{name}'.", "type": "invalid_request_error", "param": name}
    assert (said.status, said.error) == (400, {**told, "code": "missing_required_parameter"})


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 100_000])
def test_a_create_that_is_no_object_is_refused(wire: Wire, body: bytes) -> None:
    assert wire.call("POST", "/v1/batches", body).status == 400


def test_bounds_of_metadata_are_inclusive(wire: Wire) -> None:
    pairs = {f"{n:064d}": "v" * 512 for n in range(16)}
    assert wire.create(chat(1), metadata=pairs)["metadata"] == pairs


def test_batches_are_listed_newest_first_in_pages(start: Start) -> None:
    wire = start()
    ids = [wire.create(chat(1, first=n))["id"] for n in range(5)][::-1]
    first = wire.call("GET", "/v1/batches?limit=2").json
    assert [batch["id"] for batch in first["data"]] == ids[:2]
    assert (first["object"], first["first_id"], first["last_id"], first["has_more"]) == ("list", ids[0], ids[1], True)
    rest = wire.call("GET", f"/v1/batches?limit=3&after={ids[1]}").json
    assert ([batch["id"] for batch in rest["data"]], rest["has_more"]) == (ids[2:], False)
    beyond = wire.call("GET", f"/v1/batches?after={ids[-1]}").json
    assert beyond == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


def test_the_list_has_twenty_entries_unless_told(start: Start) -> None:
    wire = start()
    file_id = wire.upload(chat(1)).json["id"]
    for _ in range(21):
        wire.call("POST", "/v1/batches", {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"})
    page = wire.call("GET", "/v1/batches").json
    assert (len(page["data"]), page["has_more"]) == (20, True)


def test_files_are_listed_by_purpose_and_order(start: Start) -> None:
    wire = start()
    ids = [wire.upload(chat(1)).json["id"] for _ in range(3)]
    other = wire.upload(b"text", "a.txt", purpose="user_data").json["id"]
    assert [file["id"] for file in wire.call("GET", "/v1/files").json["data"]] == [other, *ids[::-1]]
    page = wire.call("GET", "/v1/files?purpose=batch&order=asc&limit=2").json
    assert ([file["id"] for file in page["data"]], page["has_more"]) == (ids[:2], True)
    page = wire.call("GET", f"/v1/files?purpose=batch&order=asc&after={ids[1]}").json
    assert ([file["id"] for file in page["data"]], page["has_more"]) == (ids[2:], False)
    assert wire.call("GET", "/v1/files?order=up").error["param"] == "order"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=101", "integer_above_max_value"), ("limit=0", "integer_below_min_value"), ("limit=-1", "integer_below_min_value"),
        ("limit=many", "invalid_type"), ("after=batch_0", "invalid_value"),
    ],
)  # fmt: skip
def test_bad_pages_are_refused(wire: Wire, query: str, code: str) -> None:
    said = wire.call("GET", f"/v1/batches?{query}")
    assert (said.status, said.error["code"]) == (400, code)


def test_a_deleted_file_is_gone(wire: Wire) -> None:
    file_id = wire.upload(chat(1)).json["id"]
    assert wire.call("DELETE", f"/v1/files/{file_id}").json == {"object": "file", "id": file_id, "deleted": True}
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        said = wire.call(method, f"/v1/files/{file_id}{path}")
        assert (said.status, said.error["message"]) == (404, f"No such File object: {file_id}")
    assert file_id not in [file["id"] for file in wire.call("GET", "/v1/files").json["data"]]


@pytest.mark.parametrize(
    "file_id", ["file-unknown", "..%2F..%2Fserver.sqlite", "%2Fetc%2Fpasswd", "batch1.output", "%00"]
)
def test_ids_are_looked_up_and_never_joined(wire: Wire, file_id: str) -> None:
    assert wire.call("GET", f"/v1/files/{file_id}/content").status == 404


def test_unknown_things_answer_in_the_services_form(wire: Wire) -> None:
    said = wire.call("GET", "/v1/batches/batch_x")
    assert (said.status, said.error["message"]) == (404, "No batch found with id 'batch_x'.")
    said = wire.call("GET", "/v1/poems")
    assert (said.status, said.error["message"]) == (404, "Invalid URL (GET /v1/poems)")
    assert wire.call("DELETE", "/v1/batches").status == 405
    assert wire.call("POST", "/v1/batches/batch_x/cancel").status == 404


def test_models(wire: Wire) -> None:
    page = wire.call("GET", "/v1/models").json
    assert page["object"] == "list"
    assert "gpt-4o-mini" in [model["id"] for model in page["data"]]
    assert wire.call("GET", "/v1/models/gpt-4o-mini").json["object"] == "model"
    said = wire.call("GET", "/v1/models/poet-1")
    assert (said.status, said.error["code"]) == (404, "model_not_found")


def test_headers_of_every_answer(wire: Wire) -> None:
    for path, status in (("/v1/batches", 200), ("/v1/poems", 404), ("/v1/batches/x", 404)):
        said = wire.call("GET", path)
        assert said.status == status
        assert said.headers["x-request-id"].startswith("req_")
        assert said.headers["openai-version"] == "2020-10-01"
        assert int(said.headers["openai-processing-ms"]) >= 1
        assert abs(parsedate_to_datetime(said.headers["date"]).timestamp() - time.time()) < 5
        assert said.headers["content-type"].startswith("application/json")
        assert said.headers["transfer-encoding"] == "chunked"
        assert not [name for name in said.headers if name.startswith("access-control")]


def test_json_is_pretty_and_compressed_for_who_takes_it(wire: Wire) -> None:
    plain = wire.call("GET", "/v1/models")
    assert plain.body.startswith(b'{\n  "object": "list"')
    packed = wire.call("GET", "/v1/models", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body


def test_a_key_is_needed(wire: Wire) -> None:
    for value in ("", "Bearer", "Bearer  ", "Basic abc"):
        assert wire.call("GET", "/v1/models", headers={"Authorization": value}).status == 401
    said = wire.call("GET", "/control/ledger", headers={"Authorization": "Bearer wrong"})
    assert (said.status, said.error["code"]) == (401, "invalid_api_key")
    assert wire.key not in said.body.decode()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "[::1", "a:b:c"])
def test_only_this_machines_names_are_answered(wire: Wire, host: str) -> None:
    assert wire.call("GET", "/v1/models", headers={"Host": host}).status == 403


@pytest.mark.parametrize("host", ["localhost:8377", "127.0.0.1", "[::1]:80", "127.3.2.1:9", "me.localhost"])
def test_names_of_loopback_are_answered(wire: Wire, host: str) -> None:
    assert wire.call("GET", "/v1/models", headers={"Host": host}).status == 200


def test_content_has_a_length_and_no_ranges(wire: Wire) -> None:
    data = chat(5)
    path = f"/v1/files/{wire.upload(data).json['id']}/content"
    said = wire.call("GET", path, headers={"Range": "bytes=0-9"})
    assert (said.status, said.body) == (200, data)
    assert said.headers["content-length"] == str(len(data))
    assert "accept-ranges" not in said.headers
    assert "etag" not in said.headers


def test_ranges_where_they_are_switched_on(start: Start) -> None:
    wire, data = start(ranges=True), chat(5)
    path = f"/v1/files/{wire.upload(data).json['id']}/content"
    whole = wire.call("GET", path)
    assert (whole.status, whole.headers["accept-ranges"], whole.body) == (200, "bytes", data)
    part = wire.call("GET", path, headers={"Range": "bytes=100-", "If-Range": whole.headers["etag"]})
    assert (part.status, part.body) == (206, data[100:])
    assert part.headers["content-range"] == f"bytes 100-{len(data) - 1}/{len(data)}"
    assert wire.call("GET", path, headers={"Range": "bytes=100-", "If-Range": '"other"'}).body == data
    assert wire.call("GET", path, headers={"Range": f"bytes={len(data)}-"}).status == 416


def test_without_a_key_any_bearer_is_accepted(tmp_path: Any) -> None:
    import asyncio

    from streambatch.server.app import running
    from streambatch.server.settings import Settings

    async def ask() -> list[int]:
        async with running(Settings(data_dir=tmp_path)) as url:
            calls = [asyncio.to_thread(Wire(url, key).call, "GET", "/v1/models") for key in ("anything", "")]
            return [said.status for said in await asyncio.gather(*calls)]

    assert asyncio.run(ask()) == [200, 401]


def test_json_of_metadata_survives(wire: Wire) -> None:
    pairs = {"ключ": 'värde "quoted" \u2028 \\', "streambatch": "r/s/1"}
    batch = wire.create(chat(1), metadata=pairs)
    assert json.loads(wire.call("GET", f"/v1/batches/{batch['id']}").body)["metadata"] == pairs
