"""What the matrix has no column for: what stands in the errors file and in the journal, and services that can't be used at all."""

import json
from pathlib import Path
from typing import Any

import pytest

from streambatch.core import events as e
from streambatch.core.retry import RetryPolicy
from streambatch.errors import ApiError
from tests.e2e import rig
from tests.e2e.faults.scenario import ROWS, SECRET, batches, http, rows, script

pytestmark = pytest.mark.anyio


async def test_rows_that_fail_are_tried_again_together(tmp_path: Path, server: Any) -> None:
    """Left rows of many shards make one remainder, and input order is kept."""
    server.set_faults(script(rows("answer", "[27]$", times=1)))
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    summary = await rig.run(config)
    assert (summary.done, summary.failed, summary.retried, summary.batches) == (ROWS, 0, 8, 5)
    rig.check_results(config, rig.read_lines(source))


async def test_an_error_says_which_row_failed_why_and_how_often(tmp_path: Path, server: Any) -> None:
    server.set_faults(script(rows("answer", "-7$", status=503, message="too busy")))
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key, max_attempts=3)
    summary = await rig.run(config)
    assert (summary.exit_code, summary.done, summary.failed) == (6, ROWS - 1, 1)
    (error,) = rig.errors(config)
    assert (error["ordinal"], error["line"], error["class"], error["attempts"]) == (7, 8, "server_error", 3)
    assert error["custom_id"].endswith("-7")
    assert error["result"]["response"]["status_code"] == 503


async def test_a_refused_line_is_an_error_without_an_attempt(tmp_path: Path, server: Any) -> None:
    server.set_faults(script(batches("fail", code="invalid_request", param="body.messages", line=4, times=1)))
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    assert (await rig.run(config)).done == ROWS - 1
    (error,) = rig.errors(config)
    assert (error["class"], error["attempts"], error["result"]["code"]) == ("refused", 0, "invalid_request")


async def test_a_malformed_line_is_kept_as_it_came(tmp_path: Path, server: Any) -> None:
    server.set_faults(script(rows("malformed", "-7$")))
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    assert (await rig.run(config)).possibly_billed == 3
    (error,) = rig.errors(config)
    assert (error["class"], error["attempts"]) == ("malformed", 3)
    assert error["result"].startswith('{"id": "batch_req_')


async def test_a_refusal_without_a_line_halves_the_shard(tmp_path: Path, server: Any) -> None:
    server.set_faults(script(batches("fail", code="too_many_tasks", times=1)))
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    assert (await rig.run(config)).done == ROWS
    log = rig.check_journal(config)
    (back,) = [x for x in log if isinstance(x, e.Returned)]
    assert back.max_rows == 5
    assert sorted(x.made.rows for x in log if isinstance(x, e.RemainderSealed)) == [5, 5]


async def test_a_wrong_key_is_one_sentence_before_anything_is_sent(tmp_path: Path, server: Any) -> None:
    wrong = f"Incorrect API key: {SECRET}."
    server.set_faults(script(http("answer", "list", status=401, code="invalid_api_key", message=wrong)))
    source = rig.write_requests(tmp_path / "in.jsonl", 5)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    with pytest.raises(ApiError, match="key") as caught:
        await rig.run(config)
    assert caught.value.exit_code == 2
    assert SECRET not in str(caught.value)
    assert server.ledger()["batches"] == 0


async def test_an_unreachable_service_is_one_sentence(tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 5)
    policy = RetryPolicy(first_wait_s=0.01, max_elapsed_s=0.05, min_attempts=2)
    config = rig.config(tmp_path, [source], "http://127.0.0.1:9/v1", "sk-test-01234567", retry=policy)
    with pytest.raises(ApiError, match=r"127\.0\.0\.1:9") as caught:
        await rig.run(config)
    assert caught.value.exit_code == 3


async def test_results_come_in_another_order_than_they_leave_in(tmp_path: Path, server: Any) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key, keep_spool=True)
    assert (await rig.run(config)).done == ROWS
    wanted = [json.loads(line)["custom_id"] for line in rig.read_lines(source)]
    came = [
        [json.loads(line)["custom_id"] for line in rig.read_lines(path)]
        for path in sorted(Path(config.run_dir, "spool").glob("*.output"))
    ]
    assert [sorted(ids) for ids in came] == [sorted(wanted[k : k + 10]) for k in range(0, ROWS, 10)]
    assert any(ids != wanted[10 * k : 10 * k + 10] for k, ids in enumerate(came))
    rig.check_results(config, rig.read_lines(source))
