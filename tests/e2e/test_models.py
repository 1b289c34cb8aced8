"""Several models in one input: a shard per model in each segment, order kept, and none held up by another's full queue."""

from pathlib import Path
from typing import Any

import pytest

from streambatch.config import Config
from streambatch.core import events as e
from streambatch.core.models import ShardLimits, ShardState
from streambatch.edge.journal import read_only
from tests.e2e import rig

pytestmark = pytest.mark.anyio

MODELS = ("gpt-4o-mini", "gpt-4o", "o4-mini")
ROWS, SEGMENT = 360, 12  # 30 segments; in all but the last each model has 4 rows, in the same order
FULL = "-1/"  # in the tag of each batch of the second model
NO_ROOM: dict[str, Any] = {"batches": [{"do": "fail", "code": "token_limit_exceeded", "match": FULL}]}


def interleaved(path: Path) -> Path:
    """Rows whose models take turns, but for the last segment, which has one model alone."""
    models = [MODELS[k % 3] if k < ROWS - SEGMENT else MODELS[2] for k in range(ROWS)]
    path.write_bytes(b"".join(rig.request_line(k, model=model) for k, model in enumerate(models)))
    return path


def asked(tmp: Path, source: Path, server: Any, **changes: Any) -> Config:
    return rig.config(tmp, [source], server.url, server.api_key, limits=ShardLimits(max_requests=SEGMENT), **changes)


def of_full_model(shard: str) -> bool:
    return shard.endswith("-1")


async def test_two_models_finish_while_the_queue_of_the_third_is_full(tmp_path: Path, server: Any) -> None:
    """More shards of the refused model wait than are sealed ahead, and still the others get their rows."""
    source = interleaved(tmp_path / "in.jsonl")
    server.set_faults(NO_ROOM)
    ended: list[str] = []
    others = 2 * 29 + 1

    def listen(notice: Any) -> None:
        if isinstance(notice, e.Settled):
            ended.append(notice.shard)
            if len(ended) == others:
                server.set_faults(None)  # room at last

    config = asked(tmp_path, source, server)
    summary = await rig.run(config, listen)
    assert (summary.state, summary.done, summary.failed) == ("finished", ROWS, 0)
    assert (summary.shards, len(ended)) == (3 * 29 + 1, 3 * 29 + 1)
    assert not any(map(of_full_model, ended[:others])), "nothing of the full queue ran meanwhile"
    assert all(map(of_full_model, ended[others:]))
    rig.check_results(config, rig.read_lines(source))
    log = rig.check_journal(config)
    refused = [x for x in log if isinstance(x, e.Refused)]
    assert refused
    assert all(of_full_model(x.shard) for x in refused)
    assert len(refused) < 29, "the full queue is not fought"
    ledger = server.ledger()
    assert (ledger["rows_executed"], ledger["rows_executed_again"]) == (ROWS, 0)


async def test_shards_hold_one_model_and_share_the_places(tmp_path: Path, server: Any) -> None:
    source = interleaved(tmp_path / "in.jsonl")
    order: list[str] = []

    def listen(notice: Any) -> None:
        if isinstance(notice, e.Intended):
            order.append(notice.shard)

    config = asked(tmp_path, source, server, max_batches=6)
    summary = await rig.run(config, listen)
    assert (summary.done, summary.batches) == (ROWS, 3 * 29 + 1)
    rig.check_results(config, rig.read_lines(source))
    with read_only(f"{config.run_dir}/journal.sqlite") as store:
        models = {name: store.shard(name).model for name in order}  # type: ignore[union-attr]
    for k, model in enumerate(MODELS):
        mine = [name for name in order if models[name] == model]
        assert all(name.endswith(f"-{k}") for name in mine if name < "000029"), "one model in each shard"
    early = {model: sum(models[name] == model for name in order[:45]) for model in MODELS}
    assert min(early.values()) >= 9, f"each gets its share from the start: {early}"


async def test_a_visit_once_submits_what_it_can_beside_a_model_that_waits(tmp_path: Path, server: Any) -> None:
    """It does not leave because one model must wait; what the service takes of the others is submitted first."""
    source = interleaved(tmp_path / "in.jsonl")
    server.set_faults(NO_ROOM)
    config = asked(tmp_path, source, server, once=True, max_batches=64)
    summary = await rig.run(config)
    assert (summary.state, summary.exit_code) == ("in_flight", 5)
    shards = rig.fold(rig.check_journal(config))
    assert len(shards) == 3 * 29 + 1
    waiting = (ShardState.SEALED, ShardState.UPLOADED, ShardState.INTENDED, ShardState.DOUBTED)
    assert [name for name, shard in shards.items() if not of_full_model(name) and shard.state in waiting] == []
    assert all(shard.state in waiting for name, shard in shards.items() if of_full_model(name))
    server.set_faults(None)
    while (summary := await rig.run(config)).exit_code == 5:
        pass
    assert (summary.state, summary.done) == ("finished", ROWS)
    rig.check_results(config, rig.read_lines(source))
    assert server.ledger()["rows_executed_again"] == 0
