"""What a failed batch or a refused create means: the event, and whether the run pauses, halts or goes on."""

import pytest

from streambatch.core import events as e
from streambatch.core import verdicts
from streambatch.core.models import Shard, ShardState
from streambatch.core.wire import BatchError, BatchInfo
from streambatch.errors import ApiError

SHARD = Shard("s", 0, 0, 0, 0, "m", 4, 100, 25, "h", state=ShardState.SUBMITTED, file_id="f", create=1, batch_id="b")


def a_batch(status: str, *errors: BatchError, output: str | None = None) -> BatchInfo:
    return BatchInfo("b", status, "f", output, None, 1.0, None, 4, 0, 0, {}, errors)


@pytest.mark.parametrize("status", ["validating", "in_progress", "finalizing", "cancelling", "pondering", ""])
def test_what_is_not_finished_means_nothing_yet(status: str) -> None:
    assert verdicts.of_batch(SHARD, a_batch(status)) is None


@pytest.mark.parametrize("status", ["completed", "expired", "cancelled"])
def test_every_terminal_state_is_read(status: str) -> None:
    verdict = verdicts.of_batch(SHARD, a_batch(status))
    assert verdict is not None
    assert isinstance(verdict.event, e.BatchFinished)


def test_a_failed_batch_with_results_is_read_too() -> None:
    verdict = verdicts.of_batch(SHARD, a_batch("failed", output="o"))
    assert verdict is not None
    assert isinstance(verdict.event, e.BatchFinished)


FULL = "Enqueued token limit reached for m in organization org. Limit: 1,350,000 enqueued tokens. Please try again once some"


@pytest.mark.parametrize(
    ("error", "kind", "sign"),
    [
        (BatchError("token_limit_exceeded", FULL), e.Refused, None),
        (BatchError("billing_hard_limit_reached", "Billing hard limit has been reached"), e.Refused, "pause"),
        (BatchError("invalid_request", "Cannot find file f.", None, "file_id"), e.InputLost, None),
        (BatchError("model_not_found", "The provided model 'm' is not supported.", 1, "body.model"), e.Refused, "halt"),
        (BatchError("mismatched_model", "does not match the rest of the batch", 2, "body.model"), e.Refused, "halt"),
        (BatchError("invalid_json_line", "This line is not parseable as valid JSON.", 3), e.BatchFinished, None),
        (BatchError("invalid_json_line", "This line is not parseable as valid JSON.", 9), e.Returned, None),
        (BatchError("too_many_tasks", "more than the allowed number of requests"), e.Returned, None),
    ],
)
def test_a_batch_that_failed_at_validation(error: BatchError, kind: type[e.Event], sign: str | None) -> None:
    verdict = verdicts.of_batch(SHARD, a_batch("failed", error))
    assert verdict is not None
    assert type(verdict.event) is kind
    assert (verdict.pause is not None, verdict.halt is not None) == (sign == "pause", sign == "halt")
    if isinstance(verdict.event, e.Refused) and sign is None:
        assert verdict.event.limit == 1_350_000
    if isinstance(verdict.event, e.Returned):
        assert verdict.event.max_rows == 2


def test_one_row_that_is_refused_without_a_line_is_at_fault_itself() -> None:
    alone = Shard("s", 0, 0, 0, 0, "m", 1, 100, 25, "h", state=ShardState.SUBMITTED, batch_id="b")
    verdict = verdicts.of_batch(alone, a_batch("failed", BatchError("too_many_tasks", "too many")))
    assert verdict is not None
    assert isinstance(verdict.event, e.BatchFinished)
    assert [line.line for line in verdict.event.refused] == [1]


@pytest.mark.parametrize(
    ("status", "code", "kind", "sign"),
    [
        (429, "rate_limit_exceeded", e.Refused, None),
        (429, "insufficient_quota", e.Refused, "pause"),
        (413, None, e.Returned, None),
        (400, "invalid_value", e.Refused, "halt"),
    ],
)
def test_a_refused_create(status: int, code: str | None, kind: type[e.Event], sign: str | None) -> None:
    verdict = verdicts.of_refused_create(SHARD, ApiError("as said", status=status, code=code, param="endpoint"))
    assert verdict is not None
    assert type(verdict.event) is kind
    assert (verdict.pause is not None, verdict.halt is not None) == (sign == "pause", sign == "halt")
