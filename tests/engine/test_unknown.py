"""What nobody knows yet is survived: fields, states, codes. One rule each, and a run that obeys it."""

import json
import random
from pathlib import Path

import msgspec
import pytest

import streambatch
from streambatch.core.report import Summary
from streambatch.core.wire import BatchError, BatchInfo, Refusal, refusal_of_batch, refusal_of_error
from streambatch.errors import ApiError, ConfigError
from streambatch.testing import local_server
from tests.e2e import rig
from tests.engine.test_virtual import ids
from tests.twins.api import Call, MemoryBatchApi
from tests.twins.clock import VirtualClock
from tests.twins.world import config, simulate, visit

ROWS = 20
NOVEL = {"novel": {"deep": [1, {"deeper": None}]}, "ünknown": "\u2028"}


# -- fields


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_unknown_fields_are_kept_where_rows_are_passed_on_and_ignored_elsewhere(tmp_path: Path) -> None:
    """In requests and in result lines byte for byte; in batches, files and lists they stand in nobody's way."""
    source = tmp_path / "in.jsonl"
    rows = [json.loads(rig.request_line(k)) for k in range(ROWS)]
    for row in rows:
        row["body"] |= {"new_knob": NOVEL}
    source.write_text("".join(json.dumps(row | NOVEL) + "\n" for row in rows), encoding="utf-8")
    assert await streambatch.preview(source, ROWS) == [line + b"\n" for line in rig.read_lines(source)]
    faults = {
        "batches": [{"do": "view", "set": NOVEL}],
        "rows": [{"do": "line", "set": NOVEL}],
    }
    with local_server(seed=7, speed=500, faults=faults) as server:
        asked = rig.config(tmp_path, [source], server.url, server.api_key)
        summary = await rig.run(asked)
    assert (summary.state, summary.done) == ("finished", ROWS)
    assert ids(tmp_path / "out.jsonl") == ids(source)
    for line in rig.read_lines(tmp_path / "out.jsonl"):
        assert {name: json.loads(line)[name] for name in NOVEL} == NOVEL


# -- states


@pytest.mark.parametrize("word", ["reticulating", "QUEUED_FOR_REVIEW", "", "completed?"])
def test_an_unknown_state_means_not_finished(tmp_path: Path, word: str) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)

    def view(batch: BatchInfo) -> BatchInfo:
        return batch if batch.terminal else msgspec.structs.replace(batch, status=word)

    async def main() -> tuple[Summary, int]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, view=view, duration_s=900.0)
        return await visit(config(tmp_path, source), api, clock, random.Random(1)), api.rows_executed_again

    summary, again = simulate(main, 1)
    assert (summary.state, summary.done, again) == ("finished", ROWS, 0)
    assert summary.elapsed_s > 900


# -- codes


@pytest.mark.parametrize("said", ["Please try again in a while.", "Enqueued frobs. Limit: 90,000 enqueued frobs."])
def test_an_unknown_code_with_these_words_is_waited_for(tmp_path: Path, said: str) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 10)
    assert refusal_of_batch([BatchError("frobnicated", said)]) is Refusal.QUEUE_FULL
    assert refusal_of_error(ApiError(said, status=400, code="frobnicated")) is Refusal.QUEUE_FULL

    async def not_now(call: Call) -> None:
        if call.name == "create_batch" and not call.after and call.number == 1:
            raise ApiError(said, status=400, code="frobnicated")

    async def main() -> tuple[Summary, int, int]:
        clock = VirtualClock()
        first = [BatchError("frobnicated", said)]
        api = MemoryBatchApi(clock, fault=not_now, refuse=lambda batch: first.pop() if first else None)
        summary = await visit(config(tmp_path, source), api, clock, random.Random(1))
        return summary, api.calls["upload"], len(api.batches)

    summary, uploads, batches = simulate(main, 1)
    assert (summary.state, summary.done, summary.retried) == ("finished", 10, 0)
    assert (uploads, batches) == (1, 2)


def test_an_unknown_code_without_them_ends_the_run(tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)

    async def main() -> None:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, refuse=lambda batch: BatchError("frobnicated", "No frobs here."))
        with pytest.raises(ConfigError, match=r"frobnicated: No frobs here.*start a new run"):
            await visit(config(tmp_path, source), api, clock, random.Random(1))

    simulate(main, 1)


def test_an_unknown_code_of_a_line_is_that_rows_fault(tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 10)

    async def main() -> Summary:
        clock = VirtualClock()
        first = [BatchError("frobnicated", "This line frobs.", 4, "body.frob")]
        api = MemoryBatchApi(clock, refuse=lambda batch: first.pop() if first else None)
        return await visit(config(tmp_path, source), api, clock, random.Random(1))

    summary = simulate(main, 1)
    assert (summary.done, summary.failed) == (9, 1)
