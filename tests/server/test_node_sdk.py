"""The official Node SDK, as it comes from the npm registry, drives the server; skipped where node or the package can't be had."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xxhash import xxh3_64_hexdigest

from streambatch.testing import local_server
from tests.server.outside import cache_of, node_with, ran
from tests.server.test_objects import NEW_BATCH

pytestmark = [pytest.mark.published, pytest.mark.process, pytest.mark.timeout(240)]
PACKAGE = "openai@6.49.0"  # the last one for the node of Debian 13
SCRIPT = Path(__file__).parent / "node" / "drive.mjs"


@pytest.fixture(scope="module")
def seen(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What the SDK saw of a server of its own."""
    installed = node_with(cache_of(pytestconfig, "node-clients"), PACKAGE, PACKAGE)
    folder = tmp_path_factory.mktemp("drive")
    (folder / "node_modules").symlink_to(installed / "node_modules")  # modules are looked for beside the script
    script = shutil.copy(SCRIPT, folder)
    with local_server(speed=1e5) as server:
        env = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": server.api_key, "NO_PROXY": "127.0.0.1"}
        yield json.loads(ran(["node", str(script)], folder, 90, env))


def test_files(seen: Any) -> None:
    files = seen["files"]
    assert files["file"].keys() >= {
        "id",
        "object",
        "bytes",
        "created_at",
        "filename",
        "purpose",
        "status",
        "expires_at",
    }
    assert (files["file"]["filename"], files["processed"], files["expires"]) == ("rows.jsonl", "processed", 3600)
    assert files["same"]
    assert files["deleted"] == {"object": "file", "id": files["made"][0], "deleted": True}


def test_lists_page_by_themselves(seen: Any) -> None:
    assert seen["files"]["listed"] == seen["files"]["made"]
    assert seen["batches"]["listed"] == seen["batches"]["made"]


def test_headers(seen: Any) -> None:
    assert seen["files"]["headers"] == {"id": True, "version": "2020-10-01", "limits": []}


def test_a_batch_from_create_to_content(seen: Any) -> None:
    created, batch = seen["batches"]["created"], seen["batches"]["batch"]
    assert created.keys() >= NEW_BATCH.keys()
    assert {name: created[name] for name in NEW_BATCH} == NEW_BATCH
    assert (batch["status"], batch["metadata"]) == ("completed", {"by": "node"})
    assert batch["request_counts"] == {"total": 20, "completed": 20, "failed": 0}
    answers = {name: text.split(" ")[0] for name, text in seen["batches"]["answers"].items()}
    assert answers == {f"row-{n}": xxh3_64_hexdigest(f"question {n}".encode()) for n in range(20)}


def test_cancel(seen: Any) -> None:
    assert seen["cancel"]["first"] in ("cancelling", "cancelled")
    assert (seen["cancel"]["last"], seen["cancel"]["again"]) == ("cancelled", "cancelled")


def test_uploads_in_parts(seen: Any) -> None:
    parts = seen["parts"]
    assert (parts["states"], parts["object"]) == (["pending", "completed", "cancelled"], "upload.part")
    assert parts["counts"] == {"total": 50, "completed": 50, "failed": 0}
    assert parts["refused"]["kind"] == "BadRequestError"


@pytest.mark.parametrize(
    ("what", "kind", "status", "code", "param", "message"),
    [
        ("no_batch", "NotFoundError", 404, None, None, "No batch found with id 'batch_x'."),
        ("no_file", "NotFoundError", 404, None, "id", "No such File object: file-x"),
        ("bad_endpoint", "BadRequestError", 400, "invalid_value", "endpoint", "Invalid value: '/v1/poems'."),
        ("bad_metadata", "BadRequestError", 400, "invalid_type", "metadata.tags", "Invalid type for 'metadata.tags'"),
        ("conflict", "ConflictError", 409, None, None, "Cannot cancel a batch with status 'completed'."),
        ("bad_key", "AuthenticationError", 401, "invalid_api_key", None, "Incorrect API key provided"),
        ("too_many", "RateLimitError", 429, "rate_limit_exceeded", None, "Rate limit reached"),
        ("no_money", "RateLimitError", 429, "insufficient_quota", None, ""),
        ("forbidden", "PermissionDeniedError", 403, None, None, ""),
        ("unprocessable", "UnprocessableEntityError", 422, None, None, ""),
        ("broken", "InternalServerError", 503, None, None, ""),
    ],
)
def test_errors_become_the_sdks_own(
    seen: Any, what: str, kind: str, status: int, code: str | None, param: str | None, message: str
) -> None:
    told = seen["failures"][what]
    assert (told["kind"], told["status"], told["code"], told["param"]) == (kind, status, code, param)
    assert told["message"].startswith(f"{status} {message}")
    assert told["traced"]


def test_a_dropped_connection(seen: Any) -> None:
    assert seen["failures"]["dropped"]["kind"] == "APIConnectionError"


def test_it_retries_what_it_may(seen: Any) -> None:
    assert seen["retried"] == 1
