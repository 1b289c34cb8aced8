"""The provider's bytes as nouns: every spelling that was seen, and what is none."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streambatch.core.answers import decode_error, http_date, retry_after
from streambatch.core.tags import Tag, parse_span, parse_tag
from streambatch.core.wire import (
    BatchError,
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


def batch(**fields: object) -> BatchInfo:
    return decode_batch(msgspec.json.encode({"id": "batch_1", "status": "in_progress", "created_at": 10, **fields}))


def page(*batches: object, **fields: object) -> bytes:
    return msgspec.json.encode({"object": "list", "data": batches, **fields})


# -- batches


def test_a_batch_as_documented() -> None:
    seen = batch(
        object="batch", endpoint="/v1/chat/completions", input_file_id="file-1", output_file_id="file-2", error_file_id="file-3",
        status="completed", expires_at=86_410, request_counts={"total": 3, "completed": 2, "failed": 1}, metadata={"a": "b"},
        errors=None, usage={"input_tokens": 5}, something_new={"x": [1]},
    )  # fmt: skip
    assert seen == BatchInfo(
        id="batch_1", status="completed", input_file_id="file-1", output_file_id="file-2", error_file_id="file-3", created_at=10.0,
        expires_at=86_410.0, total=3, completed=2, failed=1, metadata={"a": "b"}, endpoint="/v1/chat/completions",
    )  # fmt: skip
    assert seen.terminal


@pytest.mark.parametrize("nothing", [None, ""])
def test_empty_ids_are_no_ids(nothing: str | None) -> None:
    seen = batch(output_file_id=nothing, error_file_id=nothing, input_file_id=nothing)
    assert (seen.output_file_id, seen.error_file_id, seen.input_file_id) == (None, None, None)


@pytest.mark.parametrize(
    ("word", "status", "terminal"),
    [
        ("COMPLETED", "completed", True),
        ("Cancelled", "cancelled", True),
        ("canceled", "cancelled", True),
        ("In_Progress", "in_progress", False),
        ("scheduling", "scheduling", False),
        (None, "unknown", False),
    ],
)
def test_status_words(word: str | None, status: str, terminal: bool) -> None:
    seen = batch(status=word)
    assert (seen.status, seen.terminal) == (status, terminal)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (1_700_000_000, 1_700_000_000.0),
        ("1700000000", 1_700_000_000.0),
        ("2023-11-14T22:13:20Z", 1_700_000_000.0),
        ("2023-11-14T22:13:20.000000000Z", 1_700_000_000.0),
        ("2023-11-14T23:13:20+01:00", 1_700_000_000.0),
        ("2023-11-14T22:13:20", 1_700_000_000.0),
        (None, None),
        ("", None),
        ("soon", None),
        ("inf", None),
        (10**400, None),
        (True, None),
        ([], None),
    ],
)
def test_times(written: object, seconds: float | None) -> None:
    assert batch(expires_at=written).expires_at == seconds


@pytest.mark.parametrize("counts", [None, {}, {"total": None, "completed": None}, {"total": "3"}, {"total": -1}, 7])
def test_counts_that_say_nothing_are_nought(counts: object) -> None:
    seen = batch(request_counts=counts)
    assert (seen.total, seen.completed, seen.failed) == (0, 0, 0)


def test_metadata_of_any_type() -> None:
    assert batch(metadata={"a": 1, "b": [1, "x"], "c": "text", "d": None}).metadata == {
        "a": "1",
        "b": '[1,"x"]',
        "c": "text",
        "d": "null",
    }
    assert batch(metadata=None).metadata == batch(metadata=[1]).metadata == batch().metadata == {}


def test_errors_in_both_forms() -> None:
    entry = {"code": "invalid_json_line", "line": 3, "message": "bad\x1b[31m\nline", "param": None}
    expected = (BatchError("invalid_json_line", "bad [31m line", 3, None),)
    assert batch(errors={"object": "list", "data": [entry]}).errors == batch(errors=[entry]).errors == expected
    assert batch(errors={"data": [{"code": None, "line": 0}, "text"]}).errors == (BatchError("unknown", ""),)


def test_a_wrapped_create() -> None:
    seen = decode_batch(
        b'{"job": {"id": "b1", "status": "VALIDATING", "created_at": "2023-11-14T22:13:20Z"}, "warning": ""}'
    )
    assert (seen.id, seen.status, seen.created_at) == ("b1", "validating", 1_700_000_000.0)


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"{}", b'{"id": ""}', b'{"id": null}', b"[]", b"\xff", b'{"job": {}}', b'"x"']
)
def test_what_is_no_batch_leaves_doubt(data: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        decode_batch(data)
    assert caught.value.retryable
    assert caught.value.maybe_done


# -- lists and files


def test_a_page() -> None:
    seen = decode_page(
        page({"id": "b2", "created_at": 2}, {"id": "b1", "created_at": 1}, has_more=True, last_id="b1"), 5.0
    )
    assert ([b.id for b in seen.data], seen.has_more, seen.last_id, seen.server_date) == (["b2", "b1"], True, "b1", 5.0)


def test_a_bare_array_is_the_whole_list() -> None:
    seen = decode_page(b'[{"id": "b2", "created_at": 2}, {"id": "b1", "created_at": 1}]', None)
    assert ([b.id for b in seen.data], seen.has_more, seen.last_id) == (["b2", "b1"], False, "b1")


@pytest.mark.parametrize(("count", "more"), [(0, False), (2, False), (3, True), (4, True)])
def test_a_list_that_does_not_say_whether_there_is_more(count: int, more: bool) -> None:
    """A page as long as it may be is not taken for the last one."""
    batches = [{"id": f"b{k}", "created_at": 1} for k in range(count)]
    assert decode_page(msgspec.json.encode(batches), None, 3).has_more is more
    assert decode_page(page(*batches), None, 3).has_more is more
    assert decode_page(page(*batches, has_more=False), None, 3).has_more is False


@pytest.mark.parametrize("nothing", [{}, {"id": None}, {"id": ""}])
def test_a_batch_that_does_not_say_its_id(nothing: dict[str, object]) -> None:
    """In a list it stands apart; of a look-up it is known, and a create without one leaves doubt."""
    seen = decode_page(page({"id": "b1", "created_at": 1}, {"created_at": 2, **nothing}, has_more=False), 1.0)
    assert ([b.id for b in seen.data], [b.created_at for b in seen.nameless], seen.last_id) == (["b1"], [2.0], "b1")
    data = msgspec.json.encode({"status": "completed", "created_at": 1, **nothing})
    assert decode_batch(data, "b7").id == "b7"
    with pytest.raises(ApiError, match="an id"):
        decode_batch(data)
    assert decode_file(msgspec.json.encode({"bytes": 3, **nothing}), "f7").id == "f7"


def test_numbers_of_any_length_break_nothing() -> None:
    entry = {"code": "x", "line": "9" * 5000, "message": "m"}
    assert batch(errors=[entry]).errors == (BatchError("x", "m"),)
    assert parse_tag({"streambatch": f"r/s/{'9' * 5000}"}) is None
    assert parse_span(f"1+{'9' * 5000}") is None
    assert (parse_tag({"streambatch": "r/s/7"}), parse_span("3+4")) == (Tag("r", "s", 7), (3, 4))


def test_a_batch_without_a_time_looks_as_young_as_the_answer() -> None:
    assert decode_page(page({"id": "b1"}), 77.0).data[0].created_at == 77.0
    with pytest.raises(ApiError, match="times"):
        decode_page(page({"id": "b1"}), None)


def test_an_empty_page() -> None:
    assert decode_page(page(first_id=None, last_id=None, has_more=False), 1.0).last_id is None


@pytest.mark.parametrize("data", [b"", b"{}", b'{"data": null}', b'{"data": [1]}'])
def test_what_is_no_page(data: bytes) -> None:
    with pytest.raises(ApiError):
        decode_page(data, 1.0)


def test_a_file() -> None:
    seen = decode_file(
        b'{"id": "file-1", "bytes": 5, "created_at": 7, "filename": "a.jsonl", "status": null, "expires_at": null}'
    )
    assert (seen.id, seen.bytes, seen.created_at, seen.filename) == ("file-1", 5, 7.0, "a.jsonl")
    assert decode_file(b'{"id": "f", "bytes": null, "created_at": null, "filename": null}').bytes == 0


@settings(deadline=None)  # the machine may be busy
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_no_field_breaks_the_decoder(value: object) -> None:
    names = ("status", "request_counts", "metadata", "errors", "expires_at", "output_file_id", "endpoint", "job")
    for name in names:
        assert batch(**{name: value}).id == "batch_1"


# -- errors over HTTP


def test_the_envelope() -> None:
    body = b'{"error": {"message": "Bad\\u001b value", "type": "t", "param": "endpoint", "code": "invalid_value"}}'
    seen = decode_error(400, body, {})
    assert (seen.message, seen.code, seen.param) == ("Bad value", "invalid_value", "endpoint")


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b"<html>Bad gateway</html>", "", None),
        (b"", "", None),
        (b"\xff\xfe", "", None),
        (b'{"error": "plain"}', "plain", None),
        (b'{"message": "gateway"}', "gateway", None),
        (b'{"detail": "Not Found"}', "Not Found", None),
        (b'{"error": null}', "", None),
        (b'{"error": {"message": null, "type": "server_error", "code": null}}', "", "server_error"),
        (
            b'{"error": {"message": "m", "type": "insufficient_quota", "code": "some_new_code"}}',
            "m",
            "insufficient_quota",
        ),
        (b'{"error": {"message": "m", "type": "requests", "code": "rate_limit_exceeded"}}', "m", "rate_limit_exceeded"),
        (b'{"error": {"message": "m", "code": 429}}', "m", "429"),
    ],
)
def test_other_envelopes(body: bytes, message: str, code: str | None) -> None:
    seen = decode_error(500, body, {})
    assert (seen.message, seen.code) == (message, code)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-4"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:50 GMT", "date": "Tue, 14 Nov 2023 22:13:20 GMT"}, 30.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:00 GMT", "date": "Tue, 14 Nov 2023 22:13:20 GMT"}, 0.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:50 GMT"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_http_dates() -> None:
    assert http_date("Tue, 14 Nov 2023 22:13:20 GMT") == 1_700_000_000.0
    assert [
        http_date(t) for t in (None, "", "Tue, 31 Feb 2023 22:13:20 GMT", "Tue, 14 Foo 2023 22:13:20 GMT", "7")
    ] == [None] * 5


# -- refusals

ORG = "in organization org-1"
ENQUEUED = f"Enqueued token limit reached for gpt-4o {ORG}. Limit: 1,350,000 enqueued tokens. Please try again later."
REQUESTS = f"Enqueued request limit reached for e {ORG}. Limit: 1,000,000 enqueued requests. Please try again later."


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (BatchError("token_limit_exceeded", ENQUEUED), Refusal.QUEUE_FULL),
        (BatchError("request_limit_exceeded", REQUESTS), Refusal.QUEUE_FULL),
        (BatchError("a_new_code", REQUESTS), Refusal.QUEUE_FULL),
        (BatchError("a_new_code", "Something went wrong, please try again."), Refusal.QUEUE_FULL),
        (BatchError("billing_hard_limit_reached", "Billing hard limit has been reached"), Refusal.BILLING),
        (BatchError("insufficient_quota", "You exceeded your current quota"), Refusal.BILLING),
        (BatchError("invalid_json_line", "not JSON", 7), Refusal.ROWS),
        (BatchError("invalid_json_line", "not JSON"), Refusal.UNNAMED),
        (BatchError("duplicate_custom_id", "duplicate", 2, "custom_id"), Refusal.ROWS),
        (BatchError("missing_required_parameter", "Missing", 2, "url"), Refusal.ROWS),
        (BatchError("invalid_request", "Model parameter is required.", 1, "body.model"), Refusal.ROWS),
        (BatchError("invalid_request", "Messages parameter is required.", None, "body.messages"), Refusal.UNNAMED),
        (BatchError("streaming_unsupported", "Streaming", 4, "body.stream"), Refusal.ROWS),
        (BatchError("a_new_code", "this line is odd", 4), Refusal.ROWS),
        (BatchError("invalid_request", "Cannot find file file-1, or organization", None, "file_id"), Refusal.FILE_GONE),
        (BatchError("invalid_request", "Cannot find file file-1, or organization"), Refusal.FILE_GONE),
        (BatchError("too_many_tasks", "too many"), Refusal.TOO_LARGE),
        (BatchError("model_not_found", "not supported", 1, "body.model"), Refusal.RUN),
        (BatchError("invalid_url", "does not match", 1, "url"), Refusal.RUN),
        (BatchError("mismatched_model", "does not match", 9, "body.model"), Refusal.RUN),
        (BatchError("invalid_method", "?", 1, "method"), Refusal.RUN),
        (BatchError("a_new_code", "no words of ours"), Refusal.RUN),
    ],
)
def test_one_error_of_a_batch(error: BatchError, refusal: Refusal) -> None:
    assert refusal_of_batch([error]) is refusal


def test_what_stops_the_run_wins_over_rows() -> None:
    row = BatchError("invalid_json_line", "not JSON", 1)
    model = BatchError("model_not_found", "not supported", 2, "body.model")
    assert refusal_of_batch([row, model]) is refusal_of_batch([model, row]) is Refusal.RUN


def test_named_rows_win_over_unnamed_ones() -> None:
    """The named ones are taken out, the rest is sent again: that is progress."""
    assert (
        refusal_of_batch([BatchError("invalid_json_line", "?"), BatchError("invalid_json_line", "?", 3)])
        is Refusal.ROWS
    )


def test_no_reason_at_all_is_an_unnamed_row() -> None:
    assert refusal_of_batch([]) is Refusal.UNNAMED


@pytest.mark.parametrize(
    ("status", "code", "param", "message", "refusal"),
    [
        (429, "rate_limit_exceeded", None, "slow", Refusal.QUEUE_FULL),
        (429, None, None, "", Refusal.QUEUE_FULL),
        (429, "token_limit_exceeded", None, ENQUEUED, Refusal.QUEUE_FULL),
        (429, "insufficient_quota", None, "pay", Refusal.BILLING),
        (429, None, None, "You exceeded your current quota", Refusal.BILLING),
        (402, None, None, "pay", Refusal.BILLING),
        (413, None, None, "", Refusal.TOO_LARGE),
        (400, None, None, "File is too large.", Refusal.TOO_LARGE),
        (400, "invalid_value", "endpoint", "Invalid value", Refusal.RUN),
        (400, "missing_required_parameter", "endpoint", "Missing", Refusal.RUN),
        (404, None, "input_file_id", "No such File object", Refusal.FILE_GONE),
        (400, "token_limit_exceeded", None, ENQUEUED, Refusal.QUEUE_FULL),
        (401, "invalid_api_key", None, "wrong", None),
        (500, "server_error", None, "Please try again", None),
        (None, None, None, "unreachable", None),
    ],
)
def test_a_refused_create(
    status: int | None, code: str | None, param: str | None, message: str, refusal: Refusal | None
) -> None:
    assert refusal_of_error(ApiError(message, status=status, code=code, param=param)) is refusal


@pytest.mark.parametrize(
    ("message", "limit"),
    [
        (ENQUEUED, 1_350_000),
        ("The number of enqueued tokens has surpassed the configured limit of 30K for the deployment.", 30_000),
        ("Limit: 5B", 5_000_000_000),
        ("limit: 1.35M enqueued tokens", 1_350_000),
        ("Limit: 200", 200),
        (REQUESTS, None),
        ("limit reached for gpt-4", None),
        ("", None),
        ("Limit: " + "9" * 5000, None),
    ],
)
def test_token_limits(message: str, limit: int | None) -> None:
    assert token_limit(message) == limit


@settings(deadline=None)  # the machine may be busy
@given(st.text())
def test_any_text_has_a_limit_or_none(text: str) -> None:
    assert token_limit(f"Limit: {text}") is None or token_limit(f"Limit: {text}") >= 0  # type: ignore[operator]  # not None there
