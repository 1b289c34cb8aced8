"""Whatever the API answers: its readers give nouns or our own error, never another exception."""

import contextlib
import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.answers import decode_error, http_date, retry_after
from streambatch.core.retry import GiveUp, Retry, RetryPolicy, decide
from streambatch.core.wire import (
    BatchInfo,
    Refusal,
    decode_batch,
    decode_file,
    decode_page,
    refusal_of_batch,
    refusal_of_error,
    token_limit,
)
from streambatch.errors import ApiError
from tests.fuzz.bounds import bounded
from tests.fuzz.mutations import ODD_TEXTS, deepened, odd_bytes, odd_objects

ERROR = {
    "message": "Enqueued token limit reached. Limit: 1,350,000 enqueued tokens.",
    "type": "x",
    "param": None,
    "code": "c",
}
BATCH: dict[str, Any] = {
    "id": "batch_1", "object": "batch", "endpoint": "/v1/chat/completions", "status": "failed", "input_file_id": "file-1",
    "output_file_id": None, "error_file_id": "", "created_at": 1, "expires_at": "2026-01-02T03:04:05Z",
    "errors": {"object": "list", "data": [{"code": "invalid_json_line", "message": "no", "param": None, "line": 7}]},
    "request_counts": {"total": 3, "completed": 2, "failed": 1}, "metadata": {"streambatch": "run/1/1", "n": 5},
}  # fmt: skip
FILE = {"id": "file-1", "object": "file", "bytes": 5, "created_at": 1, "filename": "x.jsonl", "purpose": "batch"}
PAGE = {"object": "list", "data": [BATCH, {**BATCH, "id": "batch_2"}], "has_more": True, "last_id": "batch_2"}

objects = odd_objects(st.sampled_from([BATCH, {"job": BATCH}, FILE, PAGE, [BATCH], {"error": ERROR}, ERROR]))
plain = objects.map(lambda value: json.dumps(value).encode())
answers = st.one_of(plain, plain, odd_bytes(plain), plain.map(deepened), st.binary(max_size=30))


@bounded(300)
@given(body=answers)
def test_objects_are_read_or_refused_as_ours(body: bytes) -> None:
    with contextlib.suppress(ApiError):
        _check(decode_batch(body))
    with contextlib.suppress(ApiError):
        page = decode_page(body, 5.0)
        for batch in page.data:
            _check(batch)
    with contextlib.suppress(ApiError):
        file = decode_file(body)
        assert file.id
        assert file.bytes >= 0
        assert math.isfinite(file.created_at)


def _check(batch: BatchInfo) -> None:
    assert batch.id
    assert batch.status == batch.status.lower()
    assert min(batch.total, batch.completed, batch.failed) >= 0
    assert math.isfinite(batch.created_at)
    assert isinstance(refusal_of_batch(batch.errors), Refusal)
    for error in batch.errors:
        assert error.line is None or error.line > 0
        assert "\n" not in error.message
        token_limit(error.message)


HEADERS = st.sampled_from(["retry-after", "retry-after-ms", "date", "x-should-retry"])
DATES = st.sampled_from(
    ["Wed, 21 Oct 2026 07:28:00 GMT", "Wed, 31 Feb 2026 07:28:00 GMT", "Wed, 21 Oct 0000 99:99:99 GMT"]
)
told = st.one_of(
    st.text(max_size=20),
    DATES,
    st.sampled_from(ODD_TEXTS),
    st.integers().map(str),
    st.floats().map(str),
    st.just("true"),
)


@bounded(300)
@given(
    status=st.sampled_from([400, 401, 403, 404, 409, 413, 429, 500, 503, 599]),
    body=answers,
    headers=st.dictionaries(HEADERS, told),
    attempt=st.integers(1, 10_000),
)
def test_errors_are_read_whatever_they_are(status: int, body: bytes, headers: dict[str, str], attempt: int) -> None:
    said = decode_error(status, body, headers)
    assert said.status == status
    assert "\n" not in said.message
    wait = retry_after(headers)
    assert said.retry_after_s == wait
    assert wait is None or (math.isfinite(wait) and wait >= 0)
    error = ApiError(
        said.message, status=status, code=said.code, param=said.param, retryable=True, retry_after_s=said.retry_after_s
    )
    assert refusal_of_error(error) is None or isinstance(refusal_of_error(error), Refusal)
    decided = decide(error, attempt, 0.5, RetryPolicy())
    assert isinstance(decided, GiveUp) or (isinstance(decided, Retry) and math.isfinite(decided.after_s))


@bounded(200)
@given(text=st.one_of(told, st.from_regex(r"Limit: [0-9,.]{0,40} ?[KMBT]?( [a-z]*)?")))
def test_numbers_and_dates_in_words(text: str) -> None:
    limit, moment = token_limit(text), http_date(text)
    assert limit is None or limit >= 0
    assert moment is None or math.isfinite(moment)
