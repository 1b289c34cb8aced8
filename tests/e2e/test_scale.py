"""Many batches at once: they really fly together, order is kept, and the service is asked no more than the plan says."""

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import flight, flying
from streambatch.testing import local_server

pytestmark = pytest.mark.anyio

BATCHES, ROWS = 200, 20


async def test_two_hundred_in_flight_among_a_thousand_of_others_ask_no_more_than_the_plan(tmp_path: Path) -> None:
    """Over real HTTP, with the list full of other people's newer batches: what `benchmarks flight` does with 1,000."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"".join(flight.request_lines(BATCHES * ROWS)))
    stuck = {"do": "stuck", "state": "in_progress", "seconds": 18.0}
    with local_server(seed=7, faults={"foreign": 1000, "batches": [stuck]}) as server:
        asked = flying.Flight(str(source), str(tmp_path), server.url, server.api_key, BATCHES, ROWS, 0.5)
        seen = await flying.fly(asked)
        assert (seen.state, seen.done, seen.batches) == ("finished", BATCHES * ROWS, BATCHES)
        assert (server.ledger()["batches_at_once"], server.ledger()["rows_executed_again"]) == (BATCHES, 0)
    looks = list(flight.ticks(seen.calls))
    assert [look.problem for look in looks if look.problem] == []
    steady = [look for look in looks if look.in_flight == BATCHES and look.at_s < seen.all_until_s]
    assert steady
    assert {(look.pages, look.lookups) for look in steady[:-1]} <= {(2, 10)}
    routes = Counter(call.route for call in seen.calls)
    assert (routes["upload"], routes["create"], routes["content"], routes["file"]) == (BATCHES,) * 4
    with open(tmp_path / "answers.jsonl", "rb") as file:
        assert [json.loads(line)["custom_id"] for line in file] == [f"r{k}" for k in range(BATCHES * ROWS)]
