"""Each service that the server can be like: what it takes, what it refuses, how it looks, and that our client works on it."""

import asyncio
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from streambatch.core.wire import BatchInfo, Refusal, refusal_of_batch, token_limit
from streambatch.edge.client import HttpBatchApi
from streambatch.edge.service import Service
from streambatch.errors import ConfigError
from streambatch.server.limits import TIERS, enqueued_tokens_2024
from streambatch.server.profiles import MODELS_2024, PROFILES
from streambatch.server.settings import Settings
from tests.server.conftest import Start
from tests.server.kit import CHAT, Wire, chat, jsonl, row

MODEL = {name: "gpt-4-turbo" if name == "openai-2024" else "gpt-4o-mini" for name in PROFILES}


def rows(profile: str, count: int) -> bytes:
    return jsonl(row(n, model=MODEL[profile]) for n in range(count))


# ------------------------------------------------------------------ the engine's own client


async def _through(wire: Wire, data: bytes, folder: Path) -> tuple[BatchInfo, bytes, list[BatchInfo]]:
    """A batch from upload to download, with the calls that the engine makes."""
    api = HttpBatchApi(Service(base_url=f"http://{wire.host}:{wire.port}/v1", api_key=wire.key))
    try:
        source = folder / "in.jsonl"
        source.write_bytes(data)
        file = await api.upload(str(source), "in.jsonl")
        assert (await api.file_info(file.id)).bytes == len(data)
        batch = await api.create_batch(file.id, CHAT, {"streambatch": "r/s/1"})
        assert (batch.status, batch.total, batch.metadata) == ("validating", 0, {"streambatch": "r/s/1"})
        while not batch.terminal:
            batch = await api.get_batch(batch.id)
        listed = (await api.list_batches()).data
        assert batch.output_file_id is not None
        await api.download(batch.output_file_id, str(folder / "out.jsonl"))
        assert await api.delete_file(file.id)
        assert (await api.cancel_batch(batch.id)).status == "completed"
        return batch, (folder / "out.jsonl").read_bytes(), list(listed)
    finally:
        await api.aclose()


@pytest.mark.parametrize("profile", PROFILES)
def test_the_engines_client_works_on_every_profile(start: Start, tmp_path: Path, profile: str) -> None:
    wire = start(profile=profile)
    batch, output, listed = asyncio.run(_through(wire, rows(profile, 30), tmp_path))
    assert batch.status == "completed"
    assert output.count(b"\n") == 30
    assert [each.id for each in listed] == [batch.id]
    assert listed[0].metadata == {"streambatch": "r/s/1"}
    assert batch.expires_at is not None
    assert 86_395 < batch.expires_at - batch.created_at < 86_405


@pytest.mark.parametrize("profile", PROFILES)
def test_a_bad_line_fails_on_every_profile(start: Start, profile: str) -> None:
    wire = start(profile=profile)
    created = wire.create(rows(profile, 3) + rows(profile, 1))
    batch_id = created.get("job", created)["id"]
    while wire.batch(batch_id)["status"].lower() != "failed":
        continue
    [entry] = wire.batch(batch_id)["errors"]["data"]
    assert (entry["code"], entry["line"]) == ("duplicate_custom_id", 4)


# ------------------------------------------------------------------------------ openai-2024


def test_2024_knows_chat_alone(start: Start) -> None:
    wire = start(profile="openai-2024")
    for endpoint in ("/v1/embeddings", "/v1/responses", "/v1/completions"):
        asked = {"input_file_id": "file-x", "endpoint": endpoint, "completion_window": "24h"}
        said = wire.call("POST", "/v1/batches", asked)
        assert (said.status, said.error["param"]) == (400, "endpoint")
        assert said.error["message"] == f"Invalid value: '{endpoint}'. Supported values are: '/v1/chat/completions'."


def test_2024_knows_its_models_alone(start: Start) -> None:
    wire = start(profile="openai-2024")
    assert [model["id"] for model in wire.call("GET", "/v1/models").json["data"]] == list(MODELS_2024)
    for model, code in (("gpt-4o-mini", "model_not_found"), ("gpt-3.5-turbo-0125", None)):
        batch = wire.run(jsonl([row(1, model=model)]))
        assert (batch["errors"] and batch["errors"]["data"][0]["code"]) == code
        assert not {"usage", "model"} & set(batch)


def test_the_table_of_2024() -> None:
    families = {
        "gpt-3.5-turbo": [200_000, 200_000, 400_000, 10_000_000, 100_000_000, 300_000_000],
        "gpt-4": [0, 100_000, 200_000, 5_000_000, 30_000_000, 45_000_000],
        "gpt-4-turbo": [0, 900_000, 1_350_000, 40_000_000, 80_000_000, 250_000_000],
    }
    of = dict.fromkeys(MODELS_2024, "gpt-4-turbo")
    of |= {model: "gpt-3.5-turbo" for model in MODELS_2024 if model.startswith("gpt-3.5")}
    of |= dict.fromkeys(["gpt-4", "gpt-4-0314", "gpt-4-0613", "gpt-4-32k", "gpt-4-32k-0314", "gpt-4-32k-0613"], "gpt-4")
    for model in MODELS_2024:
        assert [enqueued_tokens_2024(model, tier) for tier in TIERS] == families[of[model]], model
    assert enqueued_tokens_2024("own-1", "1") is None


def test_a_queue_of_2024_is_full(start: Start) -> None:
    wire = start(profile="openai-2024", tier="1")
    batch = wire.run(jsonl([row(1, "x" * 410_000, model="gpt-4")]))
    [entry] = batch["errors"]["data"]
    assert (entry["code"], "Limit: 100,000 enqueued tokens" in entry["message"]) == ("token_limit_exceeded", True)


@pytest.mark.parametrize(
    ("profile", "most"), [("openai-2024", 104_857_600), ("together", 104_857_600), ("groq", 209_715_200)]
)
def test_sizes(profile: str, most: int) -> None:
    assert PROFILES[profile].max_bytes == most


# ------------------------------------------------------------------------------------ azure

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{7}\+00:00")


def test_azure_looks_different(start: Start) -> None:
    wire = start(profile="azure")
    new = wire.create(chat(3))
    assert new["status"] == "Validating"
    assert new["request_counts"] == {"total": None, "completed": None, "failed": None}
    assert ISO.fullmatch(new["created_at"])
    assert datetime.fromisoformat(new["created_at"]).tzinfo is not None
    assert re.fullmatch(r"batch_[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}", new["id"])
    assert re.fullmatch(r"file-[0-9a-f]{32}", new["input_file_id"])
    batch = _ended(wire, new["id"])
    assert (batch["status"], batch["in_progress_at"] is None, batch["cancelled_at"]) == ("Completed", False, None)
    assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert wire.content(batch["error_file_id"]) == b""


def _ended(wire: Wire, batch_id: str) -> Any:
    while (batch := wire.batch(batch_id))["status"].lower() not in ("completed", "failed", "expired", "cancelled"):
        continue
    return batch


@pytest.mark.parametrize("endpoint", ["/chat/completions", CHAT])
@pytest.mark.parametrize("url", ["/chat/completions", CHAT])
def test_azure_takes_the_older_endpoint_too(start: Start, endpoint: str, url: str) -> None:
    wire = start(profile="azure")
    new = wire.create(jsonl([{**row(1), "url": url}]), endpoint)
    assert (new["endpoint"], _ended(wire, new["id"])["request_counts"]["completed"]) == (endpoint, 1)


def test_azure_has_words_of_its_own(start: Start) -> None:
    wire = start(profile="azure")
    batch = _ended(wire, wire.create(jsonl([row(1), row(2, model="other"), {**row(3), "url": "/v1/poems"}]))["id"])
    assert [entry["code"] for entry in batch["errors"]["data"]] == ["model_mismatch", "url_mismatch"]
    wire.call("POST", "/control/faults", {"batches": [{"do": "fail", "code": "token_limit_exceeded", "limit": 30_000}]})
    [entry] = _ended(wire, wire.create(chat(1))["id"])["errors"]["data"]
    assert "limit of 30K for the deployment" in entry["message"]
    assert token_limit(entry["message"]) == 30_000


def test_azure_takes_a_key_in_a_header_of_its_own(start: Start) -> None:
    azure = start(profile="azure")
    no_bearer = {"Authorization": ""}
    assert azure.call("GET", "/v1/models", headers={**no_bearer, "api-key": azure.key}).status == 200
    assert azure.call("GET", "/v1/models", headers={**no_bearer, "api-key": "wrong"}).status == 401
    assert azure.call("GET", "/v1/models", headers=no_bearer).status == 401


def test_azure_does_not_expire_and_keeps_files_longer(start: Start) -> None:
    wire = start(profile="azure", window_s=0)
    assert _ended(wire, wire.create(chat(1))["id"])["status"] == "Completed"
    for seconds, status in ((3600, 400), (1_209_600, 200), (2_592_000, 200)):
        fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(seconds)}
        assert wire.upload(chat(1), **fields).status == status


# --------------------------------------------------------------------------------- together


def test_together_looks_different(start: Start) -> None:
    wire = start(profile="together")
    said = wire.create(chat(4))
    assert set(said) == {"job", "warning"}
    new = said["job"]
    assert (new["status"], new["progress"], "request_counts" in new) == ("VALIDATING", 0, False)
    assert new["created_at"].endswith("Z")
    batch = _ended(wire, new["id"])
    assert (batch["status"], batch["progress"]) == ("COMPLETED", 100)
    listed = wire.call("GET", "/v1/batches").json
    assert listed == [batch]
    assert wire.upload(chat(1), purpose="batch-api").json["purpose"] == "batch-api"


# ------------------------------------------------------------------------------------- groq


def test_groq_takes_several_models_in_a_file(start: Start) -> None:
    wire = start(profile="groq")
    batch = wire.run(jsonl([row(1), row(2, model="other")]), completion_window="7d")
    assert (batch["status"], batch["model"], batch["request_counts"]["completed"]) == ("completed", None, 2)
    assert batch["expires_at"] - batch["created_at"] == 7 * 86_400
    models = {line["custom_id"]: line["response"]["body"]["model"] for line in wire.results(batch)[0]}
    assert models == {"row-1": "gpt-4o-mini", "row-2": "other"}
    assert re.fullmatch(r"batch_01[0-9a-z]{24}", batch["id"])
    assert re.fullmatch(r"file_01[0-9a-z]{24}", batch["output_file_id"])
    asked = {"input_file_id": "x", "endpoint": CHAT, "completion_window": "1h"}
    assert wire.call("POST", "/v1/batches", asked).error["param"] == "completion_window"


def test_the_others_take_one_model(start: Start) -> None:
    batch = start().run(jsonl([row(1), row(2, model="other")]))
    assert batch["errors"]["data"][0]["code"] == "mismatched_model"


def test_tiers_belong_to_services_that_have_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="groq has no usage tiers"):
        Settings(data_dir=tmp_path, profile="groq", tier="1")


@pytest.mark.parametrize("profile", PROFILES)
def test_a_full_queue_is_understood_on_every_profile(start: Start, tmp_path: Path, profile: str) -> None:
    wire = start({"batches": [{"do": "fail", "code": "token_limit_exceeded", "limit": 2_000_000}]}, profile=profile)

    async def refused() -> BatchInfo:
        api = HttpBatchApi(Service(base_url=f"http://{wire.host}:{wire.port}/v1", api_key=wire.key))
        created = wire.create(rows(profile, 1))
        while not (batch := await api.get_batch(created.get("job", created)["id"])).terminal:
            continue
        await api.aclose()
        return batch

    batch = asyncio.run(refused())
    assert refusal_of_batch(batch.errors) is Refusal.QUEUE_FULL
    assert token_limit(batch.errors[0].message) == 2_000_000
