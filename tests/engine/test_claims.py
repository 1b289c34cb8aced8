"""A shard's events are journaled by one holder at a time, whatever a list said a moment ago."""

from pathlib import Path

import pytest

from streambatch.core import events as e
from streambatch.core.models import Segment, Shard, ShardState, Slice
from streambatch.edge import files
from streambatch.edge.journal import Journal, Store
from streambatch.edge.workers import InlineExecutor
from streambatch.engine.context import Visit, World
from tests.twins.api import MemoryBatchApi
from tests.twins.clock import VirtualClock
from tests.twins.world import config, simulate


def a_visit(tmp_path: Path) -> Visit:
    clock = VirtualClock()
    store = Store(":memory:")
    shard = Shard("000000-0", 0, 0, 0, 0, "m", 1, 10, 1, "h")
    segment = Segment(0, (Slice(0, 0, 10, 0, 0),), 0, 1, 10)
    store.append([e.SegmentSealed(segment, "s", 1, 0, 0, None, (shard,))])
    run = files.RunFiles(str(tmp_path))
    journal = Journal(store, files.inline, lambda event: None)
    world = World(MemoryBatchApi(clock), InlineExecutor(), clock, files.inline)
    started = e.Started("id", None, (), 0.0, False)  # type: ignore[arg-type]  # settings play no part in claims
    return Visit(config(tmp_path, tmp_path / "in.jsonl"), started, run, journal, world)


@pytest.mark.parametrize("held", ["driven", "stuck", "in another state"])
def test_a_claim_is_refused_to_all_but_one(tmp_path: Path, held: str) -> None:
    async def main() -> Shard | None:
        visit = a_visit(tmp_path)
        if held == "driven":
            assert await visit.claim("000000-0", ShardState.SEALED) is not None
        elif held == "stuck":
            visit.stuck.add("000000-0")
        else:
            await visit.journal.append(e.Uploaded("000000-0", "file-1", 1.0))
        return await visit.claim("000000-0", ShardState.SEALED)

    assert simulate(main, 1) is None


def test_a_released_claim_can_be_taken_again(tmp_path: Path) -> None:
    async def main() -> Shard | None:
        visit = a_visit(tmp_path)
        assert await visit.claim("000000-0", ShardState.SEALED) is not None
        visit.release("000000-0")
        return await visit.claim("000000-0", ShardState.SEALED)

    assert simulate(main, 1) is not None
