"""State on disk: a stop, a SIGKILL or a torn write at any time costs no row and executes none twice."""

import http.client
import itertools
import json
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from xxhash import xxh3_64_hexdigest

from streambatch.server.serving import ThreadedServer
from streambatch.server.settings import Settings
from tests.server.kit import Wire, chat
from tests.server.process import Process


def begun(folder: Path, **settings: Any) -> ThreadedServer:
    return ThreadedServer(Settings(data_dir=folder, api_key="k", **settings))


def until(wire: Wire, batch_id: str, status: str, completed: int = 0) -> None:
    deadline = time.monotonic() + 20
    while (batch := wire.batch(batch_id))["status"] != status or batch["request_counts"]["completed"] < completed:
        assert time.monotonic() < deadline, batch
        time.sleep(0.005)


def check_all_answered(wire: Wire, batch: Any, count: int) -> None:
    outputs, errors = wire.results(batch)
    assert (batch["status"], errors) == ("completed", [])
    assert batch["request_counts"] == {"total": count, "completed": count, "failed": 0}
    assert sorted(line["custom_id"] for line in outputs) == sorted(f"row-{n}" for n in range(count))
    assert (wire.ledger()["rows_executed"], wire.ledger()["rows_executed_again"]) == (count, 0)


@pytest.mark.parametrize(
    ("status", "speed", "completed"),
    [("validating", 10, 0), ("in_progress", 10, 1000), ("finalizing", 3, 0), ("completed", 100, 0)],
)
def test_a_restart_goes_on_from_any_state(tmp_path: Path, status: str, speed: float, completed: int) -> None:
    with begun(tmp_path, speed=speed, validating_s=1, finalizing_s=1, rows_per_s=3000) as server:
        wire = Wire(server.url, "k")
        batch_id = wire.create(chat(2000), metadata={"streambatch": "r/s/1"})["id"]
        until(wire, batch_id, status, completed)
    _tear(tmp_path)
    with begun(tmp_path, speed=1e5) as server:
        wire = Wire(server.url, "k")
        check_all_answered(wire, wire.finish(batch_id), 2000)
        assert wire.ledger("r")["batches"] == 1


def _tear(folder: Path) -> None:
    """Leave behind what a killed process may have written and not committed."""
    for path in [*(folder / "contents").glob("batch*"), *(folder / "ledger").iterdir()]:
        with path.open("ab") as file:
            file.write(b"torn" * 1000)
    (folder / "contents" / "upload-that-never-ended").write_bytes(b"x" * 100)


def test_a_restart_removes_uploads_that_never_ended(tmp_path: Path) -> None:
    with begun(tmp_path) as server:
        file_id = Wire(server.url, "k").upload(chat(2)).json["id"]
    _tear(tmp_path)
    with begun(tmp_path) as server:
        assert Wire(server.url, "k").content(file_id) == chat(2)
    assert len(list((tmp_path / "contents").iterdir())) == 1


def test_a_cancel_is_finished_after_a_restart(tmp_path: Path) -> None:
    with begun(tmp_path, speed=10, cancelling_s=1000) as server:
        wire = Wire(server.url, "k")
        batch_id = wire.create(chat(3000))["id"]
        until(wire, batch_id, "in_progress", 500)
        assert wire.call("POST", f"/v1/batches/{batch_id}/cancel").json["status"] == "cancelling"
    with begun(tmp_path, speed=1e5) as server:
        wire = Wire(server.url, "k")
        outputs, errors = wire.results(wire.finish(batch_id))
        assert wire.batch(batch_id)["status"] == "cancelled"
        assert len(outputs) == wire.ledger()["rows_executed"] >= 500
        assert len(outputs) + len(errors) == 3000


@pytest.mark.process
def test_sigkill_at_any_moment_loses_and_repeats_nothing(tmp_path: Path) -> None:
    draw, files = random.Random(11), 4
    with Process(tmp_path, "--speed", "30", "--seed", "4") as server:
        calm = [chat(1500, first=1500 * n) for n in range(files)]
        ids = [server.wire.create(data)["id"] for data in calm]
        time.sleep(draw.uniform(0.1, 0.3))
        server.end(signal.SIGKILL)
    for _ in range(3):
        with Process(tmp_path, "--speed", "60", "--seed", "4") as server:
            time.sleep(draw.uniform(0.0, 0.15))
            server.end(signal.SIGKILL)
    with Process(tmp_path, "--speed", "100000", "--seed", "4") as server:
        batches = [server.wire.finish(batch_id) for batch_id in ids]
        ledger = server.wire.ledger()
        texts = b"".join(server.wire.content(batch["output_file_id"]) for batch in batches)
        again = b"".join(server.wire.content(server.wire.run(data)["output_file_id"]) for data in calm)
        assert server.end()[0] == 0
    assert (ledger["rows_executed"], ledger["rows_executed_again"], ledger["batches"]) == (6000, 0, files)
    assert texts == again


ROWS = 2_500


def _feed(wire: Wire, made: dict[str, int], numbers: "itertools.count[int]") -> None:
    """Create batches, one after the other, until the server is gone."""
    try:
        for n in numbers:
            batch = wire.create(chat(ROWS, first=n * ROWS), metadata={"streambatch": f"load/{n}/1"})
            made[batch["id"]] = n
    except (OSError, http.client.HTTPException, AssertionError, ValueError):  # the call that the kill hit
        return


def _all_batches(wire: Wire) -> dict[str, Any]:
    found: dict[str, Any] = {}
    after, more = "", True
    while more:
        page = wire.call("GET", f"/v1/batches?limit=100{after}").json
        found |= {batch["id"]: batch for batch in page["data"]}
        after, more = f"&after={page['last_id']}", page["has_more"]
    return found


def _check_results(wire: Wire, batch: Any) -> None:
    """Every row once, with the answer to its own question, in a file that is whole."""
    n = int(batch["metadata"]["streambatch"].split("/")[1])
    outputs, errors = wire.results(batch)
    assert (batch["status"], batch["request_counts"]["completed"], errors) == ("completed", ROWS, [])
    said = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"][:16] for line in outputs}
    assert len(outputs) == ROWS
    assert said == {f"row-{r}": xxh3_64_hexdigest(f"question {r}".encode()) for r in range(n * ROWS, (n + 1) * ROWS)}
    assert wire.content(batch["input_file_id"]) == chat(ROWS, first=n * ROWS)


@pytest.mark.process
def test_sigkill_under_load_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """Killed while uploads come in, files are validated, rows executed and results written; again and again."""
    draw, made, numbers = random.Random(23), dict[str, int](), itertools.count()
    for _ in range(5):
        with Process(tmp_path, "--speed", "1000", "--seed", "4") as server:
            feeder = threading.Thread(target=_feed, args=(server.wire, made, numbers))
            feeder.start()
            time.sleep(draw.uniform(0.2, 0.5))
            server.end(signal.SIGKILL)
            feeder.join()
    with Process(tmp_path, "--speed", "1000", "--seed", "4") as server:
        batches = {batch_id: server.wire.finish(batch_id, within_s=60) for batch_id in _all_batches(server.wire)}
        assert len(made) >= 5
        assert made.keys() <= batches.keys(), "what was answered is there"
        for batch in batches.values():
            _check_results(server.wire, batch)
        ledger, rows = server.wire.ledger("load"), server.wire.call("GET", "/control/ledger?run=load&rows=1").body
        stored = len(list((tmp_path / "data" / "contents").iterdir()))
        files = server.wire.call("GET", "/v1/files").json["data"]
        assert server.end()[0] == 0
    total = ROWS * len(batches)
    assert (ledger["rows_executed"], ledger["rows_executed_again"], ledger["batches"]) == (total, 0, len(batches))
    assert ledger["results_delivered"] == total
    told = [json.loads(line) for line in rows.split(b"\n")[:-1]]
    assert len(told) == total
    assert {(each["executed"], each["delivered"], each["lost"]) for each in told} == {(1, 1, 0)}
    assert stored == len(files), "nothing is left of uploads that never ended"
