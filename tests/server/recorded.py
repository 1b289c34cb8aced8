"""What was seen in recorded exchanges with the real service, in our own words: each object field by field, in its order.

A record gives for every key a literal, or a `Form` that says what may stand there. `unlike` holds an object against it.
"""

import string
from collections.abc import Callable
from typing import Any, NamedTuple

HEX = "0123456789abcdef"
BASE62 = string.digits + string.ascii_letters
DAY_S = 86_400
THIRTY_DAYS_S = 2_592_000


class Form(NamedTuple):
    """Anything that `holds` says yes to, given the value and the object it stands in."""

    words: str
    holds: Callable[[Any, Any], bool]


def an_id(prefix: str, letters: str, length: int) -> Form:
    """An id of so many letters behind a prefix."""

    def holds(value: Any, _: Any) -> bool:
        rest = value.removeprefix(prefix) if isinstance(value, str) else ""
        return len(rest) == length and value.startswith(prefix) and set(rest) <= set(letters)

    return Form(f"{prefix} and {length} of {letters}", holds)


def later(seconds: int) -> Form:
    """So many seconds after `created_at` of the same object."""
    return Form(f"created_at + {seconds}", lambda value, whole: value == whole["created_at"] + seconds)


def _is_time(value: Any, _: Any = None) -> bool:
    return type(value) is int and 1_577_836_800 < value < 4_102_444_800


TIME = Form("unix seconds, an integer", _is_time)
COUNT = Form("an integer from 0", lambda value, _: type(value) is int and value >= 0)
TEXT = Form("a text that is not empty", lambda value, _: isinstance(value, str) and value != "")
OBJECT = Form("an object", lambda value, _: isinstance(value, dict))
FILE_ID = an_id("file-", BASE62, 22)
BATCH_ID = an_id("batch_", HEX, 32)


def unlike(shown: Any, record: Any, where: str = "$") -> list[str]:
    """Where an object differs from a record: a key, an order, a type, a value. Nothing: it is as recorded."""
    if isinstance(record, Form):
        return []  # the caller asked it
    if isinstance(record, list) and isinstance(shown, list) and len(shown) == len(record):
        return [told for n, each in enumerate(record) for told in unlike(shown[n], each, f"{where}[{n}]")]
    if not isinstance(record, dict) or not isinstance(shown, dict):
        same = type(shown) is type(record) and shown == record
        return [] if same else [f"{where} is {shown!r}, was {record!r}"]
    if list(shown) != list(record):
        return [f"{where} has the keys {list(shown)}, had {list(record)}"]
    told = []
    for name, wanted in record.items():
        if isinstance(wanted, Form):
            told += (
                [] if wanted.holds(shown[name], shown) else [f"{where}.{name} is {shown[name]!r}, was {wanted.words}"]
            )
        else:
            told += unlike(shown[name], wanted, f"{where}.{name}")
    return told


# ------------------------------------------------------------------------------ files

UPLOADED = {
    "object": "file", "id": FILE_ID, "purpose": "batch", "filename": TEXT, "bytes": COUNT, "created_at": TIME, "expires_at": None,
    "status": "processed", "status_details": None,
}  # fmt: skip
LOOKED_UP = UPLOADED | {"expires_at": later(THIRTY_DAYS_S)}
RESULT_FILE = LOOKED_UP | {"purpose": "batch_output"}

# ---------------------------------------------------------------------------- batches

NOTHING = {
    "input_tokens": 0, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 0,
}  # fmt: skip
CREATED = {
    "id": BATCH_ID, "object": "batch", "endpoint": "/v1/chat/completions", "model": None, "errors": None,
    "input_file_id": FILE_ID, "completion_window": "24h", "status": "validating", "output_file_id": None, "error_file_id": None,
    "created_at": TIME, "in_progress_at": None, "expires_at": later(DAY_S), "finalizing_at": None, "completed_at": None,
    "failed_at": None, "expired_at": None, "cancelling_at": None, "cancelled_at": None,
    "request_counts": {"total": 0, "completed": 0, "failed": 0}, "usage": NOTHING, "metadata": None,
}  # fmt: skip
RUNNING = CREATED | {
    "model": TEXT, "status": "in_progress", "in_progress_at": TIME, "request_counts": OBJECT, "usage": OBJECT
}  # fmt: skip
FINALIZING = RUNNING | {"status": "finalizing", "finalizing_at": TIME}
COMPLETED = FINALIZING | {"status": "completed", "completed_at": TIME, "output_file_id": FILE_ID}
ONE_BAD_OF_THREE = COMPLETED | {
    "error_file_id": FILE_ID, "request_counts": {"total": 3, "completed": 2, "failed": 1}
}  # fmt: skip
ALL_BAD = COMPLETED | {
    "output_file_id": None, "error_file_id": FILE_ID, "request_counts": {"total": 3, "completed": 0, "failed": 3}
}  # fmt: skip
FAILED = CREATED | {"model": Form("a text or null", lambda value, _: value is None or isinstance(value, str)),
    "status": "failed", "failed_at": TIME, "errors": OBJECT}  # fmt: skip
CANCELLING = RUNNING | {"status": "cancelling", "cancelling_at": TIME}
CANCELLED = CANCELLING | {"status": "cancelled", "cancelled_at": TIME, "error_file_id": FILE_ID}
STATES = ("validating", "in_progress", "finalizing", "completed")

# ------------------------------------------------------------------------ result lines

ANSWERED = {
    "id": an_id("batch_req_", HEX, 32), "custom_id": TEXT,
    "response": {"status_code": 200, "request_id": an_id("", HEX, 32), "body": OBJECT}, "error": None,
}  # fmt: skip
REFUSED = ANSWERED | {
    "response": {
        "status_code": 400, "request_id": an_id("", HEX, 32),
        "body": {"error": {
            "message": TEXT, "type": "invalid_request_error",
            "param": Form("a text or null", lambda value, _: value is None or isinstance(value, str)),
            "code": Form("a text or null", lambda value, _: value is None or isinstance(value, str)),
        }},
    }
}  # fmt: skip

# ------------------------------------------------------------------------------- errors


def _told(message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


CREATE_REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no input": ({"input_file_id": None}, _told(
        "Missing required parameter: 'input_file_id'.", "input_file_id", "missing_required_parameter")),
    "no endpoint": ({"endpoint": None}, _told("Missing required parameter: 'endpoint'.", "endpoint", "missing_required_parameter")),
    "no window": ({"completion_window": None}, _told(
        "Missing required parameter: 'completion_window'.", "completion_window", "missing_required_parameter")),
    "endpoint": ({"endpoint": "/v1/poems"}, _told(
        "Invalid value: '/v1/poems'. Supported values are: '/v1/chat/completions', '/v1/completions', '/v1/responses', "
        "'/v1/embeddings', '/v1/moderations', '/v1/images/generations', '/v1/images/edits' and '/v1/videos'.",
        "endpoint", "invalid_value")),
    "window": ({"completion_window": "48h"}, _told(
        "Invalid value: '48h'. Supported values are: '24h'.", "completion_window", "invalid_value")),
    "metadata": ({"metadata": {"tags": ["a", "b"]}}, _told(
        "Invalid type for 'metadata.tags': expected a string, but got an array instead.", "metadata.tags", "invalid_type")),
}  # fmt: skip
CANCEL_REFUSAL = _told("Cannot cancel a batch with status 'completed'.")
TOO_LARGE_IN_2024 = _told("File is too large.")


def _entry(code: str, param: str | None, line: int | None, message: str) -> dict[str, Any]:
    return {"code": code, "line": line, "message": message, "param": param}


def _row(**changes: Any) -> dict[str, Any]:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
    whole = {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": body, **changes}
    return {name: value for name, value in whole.items() if value is not None}


# a second line, and what it makes of the batch
BAD_LINES: dict[str, tuple[dict[str, Any] | bytes, dict[str, Any]]] = {
    "no JSON": (b"this is no JSON", _entry("invalid_json_line", None, 2, "This line is not parseable as valid JSON.")),
    "no custom_id": (_row(custom_id=None), _entry(
        "missing_required_parameter", "custom_id", 2, "Missing required parameter: 'custom_id'.")),
    "no method": (_row(method=None), _entry("missing_required_parameter", "method", 2, "Missing required parameter: 'method'.")),
    "no url": (_row(url=None), _entry("missing_required_parameter", "url", 2, "Missing required parameter: 'url'.")),
    "no body": (_row(body=None), _entry("missing_required_parameter", "body", 2, "Missing required parameter: 'body'.")),
    "no model": (_row(body={"messages": []}), _entry("invalid_request", "body.model", 2, "Model parameter is required.")),
    "no messages": (_row(body={"model": "gpt-4o-mini"}), _entry(
        "invalid_request", "body.messages", 2, "Messages parameter is required.")),
    "another url": (_row(url="/v1/embeddings"), _entry(
        "invalid_url", "url", 2, "The URL provided for this request does not match the batch endpoint.")),
    "an url without its beginning": (_row(url="/chat/completions"), _entry(
        "invalid_url", "url", 2, "The URL provided for this request does not match the batch endpoint.")),
    "a stream": (_row(body={**_row()["body"], "stream": True}), _entry(
        "streaming_unsupported", "body.stream", 2, "Chat Completions: Streaming is not supported in the Batch API.")),
    "a duplicate": (_row(custom_id="a"), _entry(
        "duplicate_custom_id", "custom_id", 2, "The custom_id for this request is a duplicate of another request. "
        "The custom_id parameter must be unique for each request in a batch.")),
    "a second model": (_row(body={**_row()["body"], "model": "gpt-4"}), _entry(
        "mismatched_model", "body.model", 2, "The model 'gpt-4' for this request does not match the rest of the batch. "
        "Each batch must contain requests for a single model.")),
}  # fmt: skip
GOOD_LINE = _row(custom_id="a")
