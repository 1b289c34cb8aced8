"""Many batches at once: they really fly together, and order is kept."""

import json
from pathlib import Path

import msgspec
import pytest

from streambatch.core.models import ShardLimits
from streambatch.testing import local_server
from tests.e2e import rig

pytestmark = pytest.mark.anyio

BATCHES, ROWS = 200, 500


async def test_two_hundred_batches_in_flight_at_once(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
    with open(source, "wb") as file:
        for k in range(BATCHES * ROWS):
            file.write(b'{"custom_id":"%d","method":"POST","url":"/v1/chat/completions","body":%b}\n' % (k, body))
    with local_server(seed=7, speed=0.25) as server:
        config = rig.config(tmp_path, [source], server.url, server.api_key, limits=ShardLimits(max_requests=ROWS))
        config = msgspec.structs.replace(config, max_batches=BATCHES, poll_interval_s=1.0, workers=2)
        summary = await rig.run(config)
        assert (summary.done, summary.batches) == (BATCHES * ROWS, BATCHES)
        assert server.ledger()["batches_at_once"] == BATCHES
        assert server.ledger()["rows_executed_again"] == 0
    with open(config.output, "rb") as file:
        assert [json.loads(line)["custom_id"] for line in file] == [str(k) for k in range(BATCHES * ROWS)]
