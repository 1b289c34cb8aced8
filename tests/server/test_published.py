"""Published batch clients, as they come from the package index, complete batches here, in environments of their own.

The lean three are always tried. The heavy two (minutes to install, hundreds of megabytes) are behind STREAMBATCH_PUBLISHED=all.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xxhash import xxh3_64_hexdigest

from streambatch.testing import LocalServer, local_server
from tests.server.outside import cache_of, python_with, ran

pytestmark = [pytest.mark.published, pytest.mark.process, pytest.mark.timeout(400)]
SCRIPTS = Path(__file__).parent / "published"
LEAN = ("batchwork-ai==0.3.0", "autobatcher==0.12.0", "batch-openai==0.4.0")
HEAVY = {"litellm": ("litellm==1.110.2",), "inspect": ("inspect-ai==0.3.285", "openai==3.57.0")}
heavy = pytest.mark.skipif(
    os.environ.get("STREAMBATCH_PUBLISHED") != "all",
    reason="takes more than a minute to install; STREAMBATCH_PUBLISHED=all tries it",
)
Runs = Callable[..., Any]


@pytest.fixture(scope="module")
def cache(pytestconfig: pytest.Config) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return cache_of(pytestconfig, "published-clients") / version


@pytest.fixture(scope="module")
def lean(cache: Path) -> Path:
    return python_with(cache, " ".join(LEAN), *LEAN)


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with local_server(speed=1e4) as running:
        yield running


def told(python: Path, script: str, server: LocalServer, tmp_path: Path, *flags: str) -> Any:
    """What a script says on its last line, as JSON. It has loopback alone, a home of its own, and no key but ours."""
    env = {
        "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": server.api_key, "HOME": str(tmp_path), "NO_PROXY": "127.0.0.1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONWARNINGS": "default",
    }  # fmt: skip
    said = ran([str(python), str(SCRIPTS / script), *flags], tmp_path, 120, env)
    return json.loads(said.rstrip("\n").rpartition("\n")[2])


def right(answers: dict[str, str], count: int, but: int | None = None) -> bool:
    """Whether each of the rows (but one) has the answer to its own question."""
    wanted = {f"row-{n}": xxh3_64_hexdigest(f"question {n}".encode()) for n in range(count) if n != but}
    return {name: text.split(" ")[0] for name, text in answers.items()} == wanted


def test_batchwork(lean: Path, server: LocalServer, tmp_path: Path) -> None:
    said = told(lean, "with_batchwork.py", server, tmp_path, "openai")
    assert (said["texts"]["status"], right(said["texts"]["answers"], 5)) == ("completed", True)
    assert said["vectors"] == [8, 8, 8]
    assert sorted(said["verdicts"]) == ["row-0", "row-1", "row-2"]
    ledger = server.ledger()
    assert (ledger["batches"], ledger["rows_executed"], ledger["rows_executed_again"]) == (3, 11, 0)


def test_batchwork_with_another_service(lean: Path, tmp_path: Path) -> None:
    with local_server(speed=1e4, profile="groq") as server:
        said = told(lean, "with_batchwork.py", server, tmp_path, "groq")
    assert (said["texts"]["status"], right(said["texts"]["answers"], 5)) == ("completed", True)


def test_autobatcher(lean: Path, server: LocalServer, tmp_path: Path) -> None:
    assert right(told(lean, "with_autobatcher.py", server, tmp_path)["answers"], 10)
    ledger = server.ledger()
    assert (ledger["batches"], ledger["rows_executed"], ledger["rows_executed_again"]) == (3, 10, 0)


def test_batch_openai(lean: Path, server: LocalServer, tmp_path: Path) -> None:
    """A row that fails comes from the error file, the others from the output file."""
    server.set_faults({"rows": [{"do": "answer", "custom_id": "row-2", "status": 400}]})
    said = told(lean, "with_batch_openai.py", server, tmp_path)
    for way in (said["sync"], said["async"]):
        assert (right(way["answers"], 5, but=2), way["failed"]) == (True, ["row-2"])
    assert server.ledger()["rows_executed"] == 10


@heavy
def test_litellm(cache: Path, server: LocalServer, tmp_path: Path) -> None:
    python = python_with(cache, " ".join(HEAVY["litellm"]), *HEAVY["litellm"])
    said = told(python, "with_litellm.py", server, tmp_path)
    assert {(way["status"], right(way["answers"], 5)) for way in said.values()} == {("completed", True)}
    assert (said["sync"]["newest"], said["sync"]["deleted"]) == (True, True)


@heavy
def test_inspect(cache: Path, server: LocalServer, tmp_path: Path) -> None:
    python = python_with(cache, " ".join(HEAVY["inspect"]), *HEAVY["inspect"])
    said = told(python, "with_inspect.py", server, tmp_path, str(tmp_path / "logs"))
    assert (said["status"], right(said["answers"], 6)) == ("success", True)
    assert server.ledger()["rows_executed"] == 6
