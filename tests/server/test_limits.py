"""Limits of the service that are not about one line: creates per hour, expiries and what they do, embedding inputs."""

import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from streambatch.server.profiles import OPENAI, PROFILES
from streambatch.server.quota import Quota
from streambatch.server.serving import ThreadedServer
from streambatch.server.settings import Settings
from tests.server.conftest import Start
from tests.server.kit import CHAT, Said, Wire, chat, jsonl, row


def create(wire: Wire, file_id: str) -> Said:
    return wire.call("POST", "/v1/batches", {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"})


def test_two_thousand_creates_an_hour() -> None:
    assert Settings(data_dir=Path()).creates_per_hour == 2000


def test_one_create_too_many_is_told_when_to_come_back(start: Start) -> None:
    wire = start(creates_per_hour=3, speed=1)
    file_id = wire.upload(chat(1)).json["id"]
    assert [create(wire, file_id).status for _ in range(3)] == [200] * 3
    said = create(wire, file_id)
    assert (said.status, said.error["code"], said.error["type"]) == (429, "rate_limit_exceeded", "requests")
    assert "3 batches per hour" in said.error["message"]
    assert 3590 < int(said.headers["retry-after"]) <= 3600
    assert wire.ledger()["batches"] == 3


def test_a_thousand_uploads_a_minute(start: Start) -> None:
    assert Settings(data_dir=Path()).uploads_per_minute == 1000
    wire = start(uploads_per_minute=2, speed=1)
    assert [wire.upload(chat(1)).status for _ in range(3)] == [200, 200, 429]
    said = wire.upload(chat(1))
    assert (said.error["code"], said.error["type"]) == ("rate_limit_exceeded", "requests")
    assert 50 < int(said.headers["retry-after"]) <= 60
    assert len(wire.call("GET", "/v1/files").json["data"]) == 2


def test_refused_creates_do_not_count(start: Start) -> None:
    wire = start(creates_per_hour=1, speed=1)
    assert wire.call("POST", "/v1/batches", {}).status == 400
    assert create(wire, "file-x").status == 200


def test_the_hour_shrinks_with_speed_and_slides(start: Start) -> None:
    wire = start(creates_per_hour=2, speed=10_000)  # 0.36 s
    file_id = wire.upload(chat(1)).json["id"]
    assert [create(wire, file_id).status for _ in range(3)] == [200, 200, 429]
    time.sleep(0.4)
    assert [create(wire, file_id).status for _ in range(3)] == [200, 200, 429]


def test_a_restart_forgets_no_create(tmp_path: Path) -> None:
    for statuses in ([200, 200], [200, 429]):
        with ThreadedServer(Settings(data_dir=tmp_path, api_key="k", speed=1, creates_per_hour=3)) as server:
            wire = Wire(server.url, "k")
            assert [create(wire, "file-x").status for _ in range(2)] == statuses


@pytest.mark.parametrize(("most", "waits"), [(None, False), (0, True), (1, True), (2, False)])
def test_the_window(most: int | None, waits: bool) -> None:
    creates = Quota(most, 3600)
    creates.count()
    assert (creates.wait_s() > 0) is waits


@pytest.mark.parametrize("seconds", [3600, 2_592_000])
def test_bounds_of_expiries_are_inclusive(wire: Wire, seconds: int) -> None:
    after = {"anchor": "created_at", "seconds": seconds}
    assert wire.create(chat(1), output_expires_after=after)["status"] == "validating"
    file = wire.upload(chat(1), **{"expires_after[anchor]": "created_at", "expires_after[seconds]": str(seconds)}).json
    assert file["expires_at"] == file["created_at"] + seconds


@pytest.mark.parametrize(
    "given", [{"seconds": 3600}, {"anchor": "created_at"}, {"anchor": "now", "seconds": 3600}, 3600, []]
)
def test_expiries_that_are_none(wire: Wire, given: Any) -> None:
    asked = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h", "output_expires_after": given}
    said = wire.call("POST", "/v1/batches", asked)
    assert (said.status, said.error["param"].partition(".")[0]) == (400, "output_expires_after")


def test_an_expired_input_is_gone_and_fails_its_batch(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILES, "openai", replace(OPENAI, shortest_expiry_s=1))
    wire = start()
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"}
    file_id = wire.upload(chat(1), **fields).json["id"]
    time.sleep(1.1)
    assert wire.call("GET", f"/v1/files/{file_id}").status == 404
    assert wire.call("GET", "/v1/files").json["data"] == []
    batch = wire.finish(create(wire, file_id).json["id"])
    assert (batch["status"], batch["errors"]["data"][0]["param"]) == ("failed", "file_id")


def test_an_expired_output_is_gone(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILES, "openai", replace(OPENAI, shortest_expiry_s=1))
    wire = start()
    batch = wire.run(chat(1), output_expires_after={"anchor": "created_at", "seconds": 1})
    time.sleep(1.1)
    assert wire.call("GET", f"/v1/files/{batch['output_file_id']}/content").status == 404
    assert wire.batch(batch["id"])["output_file_id"] == batch["output_file_id"]


def embeddings(inputs: list[Any]) -> bytes:
    body = {"model": "text-embedding-3-small"}
    return jsonl({**row(n), "url": "/v1/embeddings", "body": {**body, "input": each}} for n, each in enumerate(inputs))


@pytest.mark.parametrize(
    ("inputs", "status"),
    [
        ([["a"] * 2000] * 25, "completed"), ([["a"] * 2000] * 25 + ["b"], "failed"), ([[1, 2, 3] * 20_000], "completed"),
    ],
)  # fmt: skip
def test_embedding_inputs_are_summed_over_all_lines(wire: Wire, inputs: list[Any], status: str) -> None:
    batch = wire.run(embeddings(inputs), "/v1/embeddings")
    assert batch["status"] == status
    if status == "failed":
        [entry] = batch["errors"]["data"]
        assert (entry["code"], "50,000" in entry["message"]) == ("too_many_tasks", True)
