"""Each fault of the local server's script, driven through the engine: the right outcome, nothing lost, nothing bought twice."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from streambatch.core import events as e
from streambatch.core.retry import RetryPolicy
from streambatch.errors import ApiError, ConfigError
from tests.e2e import rig

pytestmark = pytest.mark.anyio

ROWS = 40
QUICK = RetryPolicy(first_wait_s=0.02, max_wait_s=0.2, max_elapsed_s=20.0)


def http(do: str, *on: str, times: int = 1, **more: Any) -> dict[str, Any]:
    return {"http": [{"do": do, "on": list(on), "times": times, **more}]}


EVERYWHERE = ("upload", "create", "list", "retrieve", "content", "file")

PASSING = {
    "429 with Retry-After": http(
        "answer", *EVERYWHERE, times=12, status=429, code="rate_limit_exceeded", retry_after_s=0.05
    ),
    "429 without": http("answer", *EVERYWHERE, times=12, status=429, code="slow_down"),
    "500": http("answer", *EVERYWHERE, times=8, status=500),
    "502 and 503": http("answer", "upload", "list", "content", times=6, status=503, code="server_is_overloaded"),
    "dropped before acting": http("drop", *EVERYWHERE, times=8),
    "lost upload response": http("act_and_drop", "upload", times=3),
    "lost create response": http("act_and_drop", "create", times=2),
    "garbled create response": http("garble", "create", times=2),
    "half an answer of a list": http("garble", "list", "retrieve", times=4),
    "create answers 500": http("answer", "create", times=3, status=500),
    "cut download": http("cut", "content", times=3, at=700),
    "short download": http("short", "content", times=1, at=700),
    "slow download": http("slow", "content", times=2, bytes_per_s=40_000),
    "list that lags": {"batches": [{"do": "hide", "seconds": 0.4}], **http("act_and_drop", "create", times=1)},
    "wrong bytes": {"batches": [{"do": "wrong_bytes", "times": 2}]},
    "no final newline": {"batches": [{"do": "no_final_newline"}]},
    "empty error file": {"batches": [{"do": "empty_error_file"}]},
    "duplicate results": {"rows": [{"do": "duplicate", "match": "[05]$"}]},
    "unknown results": {"rows": [{"do": "unknown", "match": "3$"}]},
    "bodies as text": {"rows": [{"do": "body_as_text", "match": "4$"}]},
    "huge result lines": {"rows": [{"do": "huge", "match": "-7$", "bytes": 3_000_000}]},
    "queue full": {"batches": [{"do": "fail", "code": "token_limit_exceeded", "times": 2}]},
}


@pytest.mark.parametrize("name", PASSING)
async def test_a_fault_that_passes_costs_nothing(tmp_path: Path, server: Any, name: str) -> None:
    """The run ends as if nothing had been, each row executed once."""
    server.set_faults(PASSING[name])
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key, retry=QUICK, adopt_grace_s=0.6)
    config = msgspec.structs.replace(config, max_batches=3)
    summary = await rig.run(config)
    assert (summary.state, summary.done, summary.failed) == ("finished", ROWS, 0)
    if name != "bodies as text":
        rig.check_results(config, rig.read_lines(source))
    rig.check_journal(config)
    ledger = server.ledger()
    assert (ledger["rows_executed"], ledger["rows_executed_again"]) == (ROWS, 0)
    assert any(any(hits) for hits in server.fault_hits().values()), "the fault never fired"


async def test_unknown_words_mean_not_finished(tmp_path: Path, server: Any) -> None:
    server.set_faults({"batches": [{"do": "view", "set": {"status": "pondering"}, "times": 1}]})
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key, once=True)
    while (summary := await rig.run(config)).done < ROWS - 10:
        assert summary.exit_code == 5
    assert (summary.state, summary.in_flight) == ("in_flight", 1)
    server.set_faults(None)


@pytest.mark.parametrize("do", ["answer", "timeout", "zero"])
async def test_rows_that_fail_are_tried_again_together(tmp_path: Path, server: Any, do: str) -> None:
    """Left rows of many shards make one remainder, and input order is kept."""
    server.set_faults({"rows": [{"do": do, "match": "[27]$", "times": 1}]})
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    summary = await rig.run(config)
    assert (summary.done, summary.failed, summary.retried, summary.batches) == (ROWS, 0, 8, 5)
    rig.check_results(config, rig.read_lines(source))
    rig.check_journal(config)


async def test_rows_that_keep_failing_end_in_an_error_that_says_why(tmp_path: Path, server: Any) -> None:
    server.set_faults({"rows": [{"do": "answer", "match": "-7$", "status": 503, "message": "too busy"}]})
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key, max_attempts=3)
    summary = await rig.run(config)
    assert (summary.exit_code, summary.done, summary.failed) == (6, ROWS - 1, 1)
    (error,) = rig.errors(config)
    assert (error["ordinal"], error["line"], error["class"], error["attempts"]) == (7, 8, "server_error", 3)
    assert error["custom_id"].endswith("-7")
    assert error["result"]["response"]["status_code"] == 503
    rig.check_results(config, rig.read_lines(source), without=[error["custom_id"]])
    assert server.ledger()["rows_executed"] == ROWS + 2


async def test_bad_requests_are_not_tried_again(tmp_path: Path, server: Any) -> None:
    server.set_faults({"rows": [{"do": "answer", "match": "[05]$", "status": 400, "code": "invalid_value"}]})
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    summary = await rig.run(config)
    assert (summary.done, summary.failed, summary.retried) == (32, 8, 0)
    assert {error["class"] for error in rig.errors(config)} == {"invalid_request"}
    assert server.ledger()["rows_executed"] == ROWS


async def test_all_rows_failing_leave_no_output_file_and_are_errors(tmp_path: Path, server: Any) -> None:
    server.set_faults({"rows": [{"do": "answer", "status": 400}]})
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    summary = await rig.run(config)
    assert (summary.done, summary.failed) == (0, ROWS)
    assert rig.read_lines(config.output) == []
    assert [error["ordinal"] for error in rig.errors(config)] == list(range(ROWS))


@pytest.mark.parametrize("leave_out", [False, True], ids=["listed", "left out"])
async def test_an_expired_batch_keeps_what_it_finished(tmp_path: Path, server: Any, leave_out: bool) -> None:
    batches: list[dict[str, Any]] = [{"do": "expire", "at": 0.6, "times": 2}]
    if leave_out:
        batches.append({"do": "leave_out"})
    server.set_faults({"batches": batches})
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    summary = await rig.run(config)
    assert (summary.done, summary.failed) == (ROWS, 0)
    assert 0 < summary.retried < 20
    rig.check_results(config, rig.read_lines(source))
    ledger = server.ledger()
    assert (ledger["rows_executed"], ledger["rows_executed_again"]) == (ROWS, 0)


async def test_a_batch_cancelled_by_someone_else_is_salvaged(tmp_path: Path, server: Any) -> None:
    server.set_faults({"batches": [{"do": "cancel", "at": 0.3, "times": 1}]})
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    summary = await rig.run(config)
    assert (summary.done, summary.failed) == (ROWS, 0)
    assert server.ledger()["rows_executed_again"] == 0
    rig.check_results(config, rig.read_lines(source))


async def test_lost_rows_are_retried_and_reported_apart(tmp_path: Path, server: Any) -> None:
    server.set_faults({"rows": [{"do": "lost", "match": "-(3|14)$", "times": 1}]})
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    summary = await rig.run(config)
    assert (summary.done, summary.possibly_billed, summary.retried) == (ROWS, 2, 2)
    assert server.ledger()["rows_lost"] == 2
    rig.check_results(config, rig.read_lines(source))


async def test_a_refused_line_loses_only_its_row(tmp_path: Path, server: Any) -> None:
    """The service names a line at validation: that row is final, the others go out again, unharmed."""
    server.set_faults(
        {"batches": [{"do": "fail", "code": "invalid_request", "param": "body.messages", "line": 4, "times": 1}]}
    )
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    summary = await rig.run(config)
    assert (summary.done, summary.failed) == (ROWS - 1, 1)
    (error,) = rig.errors(config)
    assert (error["class"], error["attempts"]) == ("refused", 0)
    assert server.ledger()["rows_executed"] == ROWS - 1


async def test_a_refusal_without_a_line_halves_the_shard(tmp_path: Path, server: Any) -> None:
    server.set_faults({"batches": [{"do": "fail", "code": "too_many_tasks", "times": 1}]})
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    assert (await rig.run(config)).done == ROWS
    log = rig.check_journal(config)
    (back,) = [x for x in log if isinstance(x, e.Returned)]
    assert back.max_rows == 5
    assert sorted(x.made.rows for x in log if isinstance(x, e.RemainderSealed)) == [5, 5]


async def test_an_input_file_that_is_gone_is_uploaded_again(tmp_path: Path, server: Any) -> None:
    message = "Cannot find file file-x, or organization org-x does not have access to it."
    fail = {"do": "fail", "code": "invalid_request", "param": "file_id", "message": message, "times": 1}
    server.set_faults({"batches": [fail]})
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    assert (await rig.run(config)).done == ROWS
    assert len([x for x in rig.check_journal(config) if isinstance(x, e.InputLost)]) == 1


async def test_a_model_that_is_refused_ends_the_run(tmp_path: Path, server: Any) -> None:
    server.set_faults({"models": ["gpt-4o"]})
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    with pytest.raises(ConfigError, match=r"gpt-4o-mini.*not supported"):
        await rig.run(config)
    assert server.ledger()["rows_executed"] == 0


@pytest.mark.parametrize("where", ["create", "validation"])
async def test_a_billing_refusal_pauses_and_burns_no_attempt(tmp_path: Path, server: Any, where: str) -> None:
    if where == "create":
        server.set_faults(
            http(
                "answer",
                "create",
                times=1000,
                after=2,
                status=429,
                code="insufficient_quota",
                type="insufficient_quota",
            )
        )
    else:
        server.set_faults({"batches": [{"do": "fail", "code": "billing_hard_limit_reached", "after": 2}]})
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    summary = await rig.run(config)
    assert (summary.state, summary.exit_code, summary.done) == ("paused", 4, 20)
    server.set_faults(None)
    summary = await rig.run(config)
    assert (summary.exit_code, summary.done, summary.retried) == (0, ROWS, 0)
    assert server.ledger()["rows_executed"] == ROWS


async def test_paid_output_that_is_gone_pauses_instead_of_buying_again(tmp_path: Path, server: Any) -> None:
    server.set_faults(http("answer", "content", times=1, status=404, code="not_found"))
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    summary = await rig.run(config)
    assert (summary.state, summary.exit_code) == ("paused", 4)
    assert "no longer has the result file" in summary.message
    assert (await rig.run(config)).done == ROWS
    assert server.ledger()["rows_executed"] == ROWS


async def test_a_wrong_key_is_one_sentence_before_anything_is_sent(tmp_path: Path) -> None:
    from streambatch.testing import local_server

    with local_server(seed=7) as server:
        server.set_faults(
            http(
                "answer",
                "list",
                times=100,
                status=401,
                code="invalid_api_key",
                message="Incorrect API key: sk-abc12345.",
            )
        )
        source = rig.write_requests(tmp_path / "in.jsonl", 5)
        config = rig.config(tmp_path, [source], server.url, server.api_key)
        with pytest.raises(ApiError, match="key") as caught:
            await rig.run(config)
        assert caught.value.exit_code == 2
        assert "sk-abc12345" not in str(caught.value)


async def test_an_unreachable_service_is_one_sentence(tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 5)
    policy = RetryPolicy(first_wait_s=0.01, max_elapsed_s=0.05, min_attempts=2)
    config = rig.config(tmp_path, [source], "http://127.0.0.1:9/v1", "sk-test-01234567", retry=policy)
    with pytest.raises(ApiError, match=r"127\.0\.0\.1:9") as caught:
        await rig.run(config)
    assert caught.value.exit_code == 3
