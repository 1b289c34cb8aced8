"""The user's policies against the local server: its ledger says what they cost."""

from pathlib import Path
from typing import Any

import pytest

from streambatch.core.models import ShardLimits
from streambatch.testing import local_server
from tests.e2e import rig

pytestmark = pytest.mark.anyio

TYPO: dict[str, Any] = {"rows": [{"do": "answer", "status": 400, "code": "unknown_parameter"}]}


async def test_a_typo_does_not_bill_the_whole_input(tmp_path: Path) -> None:
    """What is in flight when the first answers come is all that is ever executed."""
    source = rig.write_requests(tmp_path / "in.jsonl", 12_000)
    with local_server(seed=7, speed=2000, faults=TYPO) as server:
        config = rig.config(
            tmp_path, [source], server.url, server.api_key, limits=ShardLimits(max_requests=500), max_batches=8
        )
        summary = await rig.run(config)
        assert (summary.state, summary.exit_code) == ("paused", 4)
        assert str(summary.next_command).startswith("the same command, but with pause_on_errors=")
        assert "invalid_request: unknown_parameter" in summary.message
        assert server.ledger()["rows_executed"] <= 4500
        again = await rig.run(config)
        assert again.exit_code == 4
        assert server.ledger()["rows_executed"] <= 4500
        assert server.ledger()["batches"] == again.batches
    rig.check_journal(config)
