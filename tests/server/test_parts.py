"""Files that arrive in parts: by a bare client field by field, by the official SDK, and in constant memory."""

import asyncio
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from msgspec.structs import replace

from streambatch.server.profiles import OPENAI, PROFILES
from streambatch.server.records import Part, Upload
from streambatch.server.serving import ThreadedServer
from streambatch.server.settings import Settings
from streambatch.server.store import Store
from streambatch.testing import LocalServer, local_server
from tests.server.conftest import Start
from tests.server.kit import CHAT, Said, Wire, chat, multipart
from tests.server.process import Process


def begun(wire: Wire, size: int, **more: Any) -> Any:
    asked = {"filename": "in.jsonl", "purpose": "batch", "bytes": size, "mime_type": "application/jsonl", **more}
    said = wire.call("POST", "/v1/uploads", asked)
    assert said.status == 200, said
    return said.json


def send(wire: Wire, upload_id: str, data: bytes) -> Said:
    body, headers = multipart(data, "blob", {}, "data")
    return wire.call("POST", f"/v1/uploads/{upload_id}/parts", body, headers)


def part(wire: Wire, upload_id: str, data: bytes) -> str:
    said = send(wire, upload_id, data)
    assert said.status == 200, said
    return str(said.json["id"])


def complete(wire: Wire, upload_id: str, ids: Any, **more: Any) -> Said:
    return wire.call("POST", f"/v1/uploads/{upload_id}/complete", {"part_ids": ids, **more})


def contents(folder: Path) -> int:
    return len(list((folder / "contents").iterdir()))


def test_parts_become_a_file_in_the_order_of_the_ids(start: Start, tmp_path: Path) -> None:
    wire, data = start(), chat(100)
    upload = begun(wire, len(data))
    assert abs(upload.pop("created_at") - time.time()) < 5
    assert upload["id"].startswith("upload_")
    assert {name: value for name, value in upload.items() if name not in ("id", "expires_at")} == {
        "object": "upload", "bytes": len(data), "filename": "in.jsonl", "purpose": "batch", "status": "pending", "file": None,
    }  # fmt: skip
    last = part(wire, upload["id"], data[5000:])
    said = send(wire, upload["id"], data[:5000]).json
    assert (said["object"], said["upload_id"], sorted(said)) == (
        "upload.part", upload["id"], ["created_at", "id", "object", "upload_id"],
    )  # fmt: skip
    done = complete(wire, upload["id"], [said["id"], last], md5=hashlib.md5(data).hexdigest()).json
    assert (done["status"], done["file"]["bytes"], done["file"]["filename"]) == ("completed", len(data), "in.jsonl")
    assert wire.content(done["file"]["id"]) == data
    asked = {"input_file_id": done["file"]["id"], "endpoint": CHAT, "completion_window": "24h"}
    assert wire.finish(wire.call("POST", "/v1/batches", asked).json["id"])["request_counts"]["completed"] == 100
    assert not [path for path in (tmp_path / "data" / "contents").iterdir() if path.stat().st_size in (5000, 0)]


def test_an_upload_lives_an_hour(wire: Wire) -> None:
    upload = begun(wire, 5)
    assert upload["expires_at"] == upload["created_at"] + 3600


def test_an_upload_that_has_expired(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("streambatch.server.parts.LIFE_S", 3)  # of whole seconds: at least two
    wire = start()
    upload = begun(wire, 5)
    part(wire, upload["id"], b"{}\n")
    time.sleep(upload["expires_at"] + 0.1 - time.time())
    for said in (send(wire, upload["id"], b"x"), complete(wire, upload["id"], [])):
        assert (said.status, "is expired" in said.error["message"]) == (400, True)
    assert contents(tmp_path / "data") == 1
    begun(wire, 5)  # the next one sweeps
    assert contents(tmp_path / "data") == 0


def test_a_cancelled_upload_takes_no_more_parts(start: Start, tmp_path: Path) -> None:
    wire = start()
    upload = begun(wire, 5)
    first = part(wire, upload["id"], b"12345")
    assert wire.call("POST", f"/v1/uploads/{upload['id']}/cancel").json["status"] == "cancelled"
    again = wire.call("POST", f"/v1/uploads/{upload['id']}/cancel")
    for said in (send(wire, upload["id"], b"x"), complete(wire, upload["id"], [first]), again):
        assert (said.status, "is cancelled" in said.error["message"]) == (400, True)
    assert contents(tmp_path / "data") == 0


def test_what_a_complete_is_refused_for(start: Start, tmp_path: Path) -> None:
    wire = start()
    upload = begun(wire, 6)
    one, two = part(wire, upload["id"], b"{}\n"), part(wire, upload["id"], b"{}\n")
    foreign = part(wire, begun(wire, 6)["id"], b"{}\n")
    for ids, more, param in (
        ([one], {}, "part_ids"), ([one, one], {}, "part_ids"), ([one, foreign], {}, "part_ids[1]"), ([7], {}, "part_ids[0]"),
        (None, {}, "part_ids"), ("x", {}, "part_ids"), ([one, two], {"md5": "0" * 32}, "md5"),
    ):  # fmt: skip
        said = complete(wire, upload["id"], ids, **more)
        assert (said.status, said.error["param"]) == (400, param)
    assert contents(tmp_path / "data") == 3
    assert complete(wire, upload["id"], [one, two]).status == 200
    assert "is completed" in complete(wire, upload["id"], [one, two]).error["message"]
    assert complete(wire, "upload_x", []).status == 404


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"bytes": 0}, "bytes"), ({"bytes": (8 << 30) + 1}, "bytes"), ({"bytes": "5"}, "bytes"), ({"bytes": True}, "bytes"),
        ({"purpose": "poetry"}, "purpose"), ({"filename": None}, "filename"), ({"mime_type": None}, "mime_type"),
        ({"expires_after": {"anchor": "created_at", "seconds": 60}}, "expires_after.seconds"),
        ({"expires_after": {"anchor": "now", "seconds": 3600}}, "expires_after.anchor"),
    ],
)  # fmt: skip
def test_uploads_that_do_not_begin(wire: Wire, change: dict[str, Any], param: str) -> None:
    asked = {"filename": "in.jsonl", "purpose": "batch", "bytes": 5, "mime_type": "application/jsonl", **change}
    said = wire.call("POST", "/v1/uploads", asked)
    assert (said.status, said.error["param"]) == (400, param)


def test_a_part_and_a_batch_input_have_limits(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from streambatch.server import parts

    assert (parts.MAX_PART_BYTES, parts.MAX_UPLOAD_BYTES) == (67_108_864, 8_589_934_592)
    monkeypatch.setattr("streambatch.server.parts.MAX_PART_BYTES", 1000)
    monkeypatch.setitem(PROFILES, "openai", replace(OPENAI, max_bytes=1500))
    wire = start()
    upload = begun(wire, 2000)
    assert send(wire, upload["id"], b"x" * 1001).status == 413
    ids = [part(wire, upload["id"], b"x" * 1000) for _ in range(2)]
    assert complete(wire, upload["id"], ids).status == 413
    body, headers = multipart(b"x", "blob", {}, "other")
    assert wire.call("POST", f"/v1/uploads/{upload['id']}/parts", body, headers).error["param"] == "data"
    assert contents(tmp_path / "data") == 2


def test_a_restart_keeps_the_parts_of_a_pending_upload(tmp_path: Path) -> None:
    with ThreadedServer(Settings(data_dir=tmp_path, api_key="k")) as server:
        wire = Wire(server.url, "k")
        upload = begun(wire, len(chat(2)))
        first = part(wire, upload["id"], chat(1))
        gone = begun(wire, 5)["id"]
        part(wire, gone, b"12345")
    with Store(tmp_path / "server.sqlite")._transaction() as db:
        db.execute("UPDATE uploads SET status = 'cancelled' WHERE id = ?", (gone,))
    with ThreadedServer(Settings(data_dir=tmp_path, api_key="k")) as server:
        wire = Wire(server.url, "k")
        assert contents(tmp_path) == 1
        second = part(wire, upload["id"], chat(1, first=1))
        done = complete(wire, upload["id"], [first, second]).json
        assert wire.content(done["file"]["id"]) == chat(2)
    assert contents(tmp_path) == 1


def test_a_part_that_comes_too_late_is_not_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    upload = store.add_upload(Upload(None, "upload_1", "a", "batch", 1, 0, int(time.time()) + 60))
    late = Part(None, "part_1", "upload_1", 1, 0, "content")
    assert store.cancel_upload(upload)
    assert not store.add_part(late)
    assert store.parts("upload_1") == []
    store.close()


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with local_server(speed=1e5) as running:
        yield running


def test_the_official_sdk_uploads_in_chunks(server: LocalServer, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(chat(3000))
    with openai.OpenAI(base_url=server.url, api_key=server.api_key, max_retries=0, timeout=20) as client:
        upload = client.uploads.upload_file_chunked(
            file=path, mime_type="application/jsonl", purpose="batch", part_size=100_000,
            md5=hashlib.md5(path.read_bytes()).hexdigest(),
        )  # fmt: skip
        assert (upload.status, upload.file is not None) == ("completed", True)
        assert upload.file is not None
        assert client.files.wait_for_processing(upload.file.id).bytes == path.stat().st_size
        assert client.files.content(upload.file.id).content == path.read_bytes()
        batch = client.batches.create(input_file_id=upload.file.id, endpoint=CHAT, completion_window="24h")
        assert Wire(server.url, server.api_key).finish(batch.id)["request_counts"]["completed"] == 3000
        other = client.uploads.create(bytes=5, filename="b.jsonl", mime_type="application/jsonl", purpose="batch")
        client.uploads.parts.create(other.id, data=b"12345")
        assert client.uploads.cancel(other.id).status == "cancelled"
        with pytest.raises(openai.BadRequestError, match="is cancelled"):
            client.uploads.complete(other.id, part_ids=[])


async def _by_async_client(server: LocalServer) -> bytes:
    async with openai.AsyncOpenAI(base_url=server.url, api_key=server.api_key, max_retries=0, timeout=20) as client:
        upload = await client.uploads.upload_file_chunked(
            file=chat(50), filename="b.jsonl", bytes=len(chat(50)), mime_type="application/jsonl", purpose="batch", part_size=1000
        )  # fmt: skip
        assert upload.file is not None
        return (await client.files.content(upload.file.id)).content


def test_the_official_async_sdk_too(server: LocalServer) -> None:
    assert asyncio.run(_by_async_client(server)) == chat(50)


@pytest.mark.process
def test_memory_does_not_grow_with_parts(tmp_path: Path) -> None:
    """Four parts of 30 MB each, put together."""
    with Process(tmp_path) as running:
        wire, block = running.wire, chat(1) + b"x" * (30 << 20)
        part(wire, begun(wire, 5)["id"], b"12345")
        idle = running.resident_mib
        upload = begun(wire, 4 * len(block), purpose="user_data")
        peak = idle
        ids = []
        for _ in range(4):
            ids.append(part(wire, upload["id"], block))
            peak = max(peak, running.resident_mib)
        done = complete(wire, upload["id"], ids).json
        assert done["file"]["bytes"] == 4 * len(block)
        assert max(peak, running.resident_mib) - idle < 25
