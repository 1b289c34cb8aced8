"""Looking at a run from outside: while it stands still, after it was finished, and as somebody who may only read."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from streambatch import api
from streambatch.core import events as e
from streambatch.errors import ConfigError
from tests.e2e import rig

pytestmark = pytest.mark.anyio


async def test_in_flight_says_when_to_come_again(tmp_path: Path, server: Any) -> None:
    server.set_faults({"batches": [{"do": "stuck", "state": "in_progress", "seconds": 30}]})
    source = rig.write_requests(tmp_path / "in.jsonl", 5)
    summary = await rig.run(rig.config(tmp_path, [source], server.url, server.api_key, once=True))
    assert summary.exit_code == 5
    assert re.fullmatch(
        r"1 batch is in flight\. Come again at any time; the last of them ends by \d{4}-\d\d-\d\d \d\d:\d\d \(.+\) at the latest\.",
        summary.message,
    )


async def test_a_running_run_shows_the_time_since_its_start(tmp_path: Path, server: Any) -> None:
    server.set_faults({"batches": [{"do": "stuck", "state": "in_progress", "seconds": 1.5}]})
    source = rig.write_requests(tmp_path / "in.jsonl", 5)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    looks: list[float] = []

    def listen(notice: Any) -> None:
        if not isinstance(notice, e.Event):
            looks.append(api.status(config.run_dir).progress.elapsed_s)

    await rig.run(config, listen)
    assert max(looks) > 1.0, "nothing is journaled meanwhile"


async def test_a_finished_run_without_its_output_says_how_to_get_it_again(tmp_path: Path, server: Any) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 25)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    run_id = (await rig.run(config)).run_id
    Path(config.output).unlink()
    with pytest.raises(ConfigError, match=rf"--run-id {run_id} and an empty --run-dir"):
        await rig.run(config)
    again = rig.config(tmp_path, [source], server.url, server.api_key, output=tmp_path / "again.jsonl", run_id=run_id)
    assert (await rig.run(again)).done == 25
    rig.check_results(again, rig.read_lines(source))
    assert server.ledger()["rows_executed_again"] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_who_may_only_read_a_run_can_look_at_it(server: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:  # unlike the test's own folder, one that others can be let into
        here = Path(folder)
        source = rig.write_requests(here / "in.jsonl", 5)
        config = rig.config(here, [source], server.url, server.api_key)
        await rig.run(config)
        for path in (here, Path(config.run_dir), *Path(config.run_dir).rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        done = _as_somebody_else(
            f"print(inspect.status({config.run_dir!r}).state, len(inspect.peek({folder!r} + '/out.jsonl', 3)))"
        )
    assert (done.stdout.split(), done.stderr) == (["finished", "3"], "")


def _as_somebody_else(code: str) -> subprocess.CompletedProcess[str]:
    become = "import os; from streambatch.engine import inspect; os.setgroups([]); os.setgid(65534); os.setuid(65534); "
    return subprocess.run(
        [sys.executable, "-c", become + code], capture_output=True, text=True, timeout=60, check=False
    )
