"""Publishing writes over nothing that the run did not make, whenever it came to be; the answers are kept meanwhile."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streambatch.core import events as e
from streambatch.edge.service import Service
from streambatch.errors import ConfigError, StreambatchError
from tests.e2e import rig

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.errors"])
async def test_a_file_that_came_while_the_run_worked_is_not_written_over(
    tmp_path: Path, server: Any, name: str
) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 25)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    theirs = tmp_path / name

    def listen(notice: Any) -> None:
        if isinstance(notice, e.Exhausted):
            theirs.write_text("mine\n")

    with pytest.raises(ConfigError, match="came to be while this run worked"):
        await rig.run(config, listen)
    assert theirs.read_text() == "mine\n"
    with pytest.raises(ConfigError, match=f"{name} came to be"):
        await rig.run(config)
    theirs.rename(tmp_path / "moved")
    assert (await rig.run(config)).state == "finished"
    rig.check_results(config, rig.read_lines(source))
    assert server.ledger()["rows_executed_again"] == 0


async def test_overwrite_is_the_users_word(tmp_path: Path, server: Any) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 25)
    config = rig.config(tmp_path, [source], server.url, server.api_key, if_exists="overwrite")
    await rig.run(config, lambda notice: _write(tmp_path / "out.jsonl", notice))
    rig.check_results(config, rig.read_lines(source))


def _write(path: Path, notice: Any) -> None:
    if isinstance(notice, e.Exhausted):
        path.write_text("mine\n")


async def test_a_reopened_run_writes_over_what_it_published_and_over_nothing_else(tmp_path: Path, server: Any) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 25)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    await rig.run(config)
    rig.write_requests(source, 35)
    with pytest.raises(ConfigError, match="came to be"):
        await rig.run(config, lambda notice: _write(tmp_path / "out.jsonl", notice))
    (tmp_path / "out.jsonl").unlink()
    assert (await rig.run(config)).done == 35
    rig.write_requests(source, 45)
    assert (await rig.run(config)).done == 45
    rig.check_results(config, rig.read_lines(source))


async def test_a_first_visit_that_failed_leaves_no_leave_to_write_over(tmp_path: Path, server: Any) -> None:
    """A wrong key ended it before the run began; then an output came to be."""
    source = rig.write_requests(tmp_path / "in.jsonl", 5)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    wrong = Service(base_url=server.url, api_key="wrong")
    with pytest.raises(StreambatchError, match="key"):
        await rig.run(msgspec.structs.replace(config, service=wrong))
    (tmp_path / "out.jsonl").write_text("mine\n")
    with pytest.raises(ConfigError, match="exists and was not made by this run"):
        await rig.run(config)
    skipped = await rig.run(msgspec.structs.replace(config, if_exists="skip"))
    assert (skipped.exit_code, skipped.done) == (0, 0)
    assert server.ledger()["batches"] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_run_directory_of_somebody_else_is_one_sentence(tmp_path: Path) -> None:
    """Asked by a process that may not look into it."""
    run_dir = tmp_path / "out.jsonl.run"
    run_dir.mkdir(mode=0o700)
    code = (
        "import os; from streambatch.edge.files import RunFiles; os.setuid(65534); "
        f"RunFiles({str(run_dir)!r}).has_journal()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip().endswith("can't be looked into: Permission denied; use another --run-dir.")
