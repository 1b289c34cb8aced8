"""The run directory is deleted while the command works, again and again: its id alone finds everything, remainders included."""

import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from streambatch.testing import local_server
from tests.e2e import rig
from tests.e2e.test_processes import command, finish, start

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

ROWS = 120
FAULTS = {
    "rows": [{"match": "7$", "do": "answer", "status": 500, "times": 2}],
    "batches": [{"do": "expire", "at": 0.5, "after": 3, "times": 2}],
}


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_and_deleted_at_random_moments_and_no_row_is_bought_again(tmp_path: Path, seed: int) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    chance = random.Random(seed)
    output = tmp_path / "out.jsonl"
    with local_server(seed=7, speed=60, faults=FAULTS) as server:
        key = {"OPENAI_API_KEY": server.api_key}
        more = ("--run-id", f"lost-{seed}", "--remote-files", "keep", "--max-attempts", "9")
        args = command(source, output, server.url, *more)
        kills = 0
        for _ in range(12):
            process = start(args, **key)
            wanted = server.ledger()["batches"] + chance.randint(
                1, 4
            )  # then it is in the middle, however quick the machine
            while process.poll() is None and server.ledger()["batches"] < wanted:
                time.sleep(0.02)
            try:
                process.communicate(timeout=chance.uniform(0.01, 0.6) if kills else 0.01)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
            if chance.random() < 0.6 and not output.exists():
                shutil.rmtree(f"{output}.run", ignore_errors=True)
        code, err = finish(start(args, **key), timeout=120)
        assert code == 0, err
        ledger = server.ledger()
    failing = sum(line.split(b'"')[3].endswith(b"7") for line in rig.read_lines(source))
    assert kills
    assert [json.loads(line)["custom_id"] for line in rig.read_lines(output)] == [
        json.loads(line)["custom_id"] for line in rig.read_lines(source)
    ]
    assert ledger["rows_executed"] == ROWS + 2 * failing
