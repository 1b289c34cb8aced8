"""The objects of the wire as the service shows them: every key present, nulls where there is nothing. Pure."""

from typing import Any

import msgspec
import orjson

from streambatch.server.dialects import Dialect, as_it_is
from streambatch.server.records import NEVER, TERMINAL, Batch, File, Part, Upload

COUNTS = ("total", "completed", "failed")
MODELS = (
    "gpt-6-astra", "gpt-6-sol", "gpt-6-luna", "gpt-5.5", "gpt-5.4", "gpt-5.4-mini", "gpt-5.4-nano", "gpt-5", "gpt-5-mini",
    "gpt-5-nano",
    "gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano", "gpt-4o", "gpt-4o-mini", "gpt-4-turbo", "gpt-4", "gpt-3.5-turbo", "o3", "o3-mini",
    "o4-mini", "o1", "text-embedding-3-large", "text-embedding-3-small", "text-embedding-ada-002", "omni-moderation-latest",
)  # fmt: skip
MODEL_CREATED = 1735689600


def dumped(value: Any, compact: bool = False) -> bytes:
    """As the service prints JSON: with two spaces, or compact."""
    return orjson.dumps(value, option=None if compact else orjson.OPT_INDENT_2)


def file_object(file: File, fresh: bool = False) -> dict[str, Any]:
    """A file. The answer to an upload has no expiry yet, unless the client asked for one."""
    return {
        "object": "file", "id": file.id, "purpose": file.purpose, "filename": file.filename, "bytes": file.bytes + file.extra_bytes,
        "created_at": file.created_at, "expires_at": None if fresh or file.expires_at >= NEVER else file.expires_at,
        "status": "processed", "status_details": None,
    }  # fmt: skip


def upload_object(upload: Upload, file: File | None) -> dict[str, Any]:
    """An upload; completed, it shows its file."""
    return {
        "id": upload.id, "object": "upload", "bytes": upload.bytes, "created_at": upload.created_at, "filename": upload.filename,
        "purpose": upload.purpose, "status": upload.status, "expires_at": upload.expires_at,
        "file": None if file is None else file_object(file, fresh=upload.file_expires_s is None),
    }  # fmt: skip


def part_object(part: Part) -> dict[str, Any]:
    return {"id": part.id, "object": "upload.part", "created_at": part.created_at, "upload_id": part.upload_id}


def batch_object(batch: Batch, dialect: Dialect = as_it_is) -> dict[str, Any]:
    """A batch in the words of a service, with whatever a script makes it lie about."""
    view = msgspec.json.decode(batch.view)
    shown: dict[str, Any] = {
        "id": batch.id, "object": "batch", "endpoint": batch.endpoint, "model": batch.model,
        "errors": _value(batch.errors), "input_file_id": batch.input_file_id, "completion_window": batch.completion_window,
        "status": batch.status, "output_file_id": batch.output_file_id, "error_file_id": batch.error_file_id,
        "created_at": batch.created_at, "in_progress_at": batch.in_progress_at, "expires_at": batch.expires_at,
        "finalizing_at": batch.finalizing_at, "completed_at": batch.completed_at, "failed_at": batch.failed_at,
        "expired_at": batch.expired_at, "cancelling_at": batch.cancelling_at, "cancelled_at": batch.cancelled_at,
        "request_counts": {name: getattr(batch, name) for name in COUNTS},
        "usage": {
            "input_tokens": batch.input_tokens, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": batch.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": batch.input_tokens + batch.output_tokens,
        },
        "metadata": _value(batch.metadata),
    }  # fmt: skip
    if not view or (view["terminal_only"] and batch.status not in TERMINAL):
        return dialect(shown)
    for name, off in view["counts"].items():
        shown["request_counts"][name] += off
    shown = dialect(shown)
    return {name: value for name, value in (shown | view["set"]).items() if name not in view["drop"]}


def model_object(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": MODEL_CREATED, "owned_by": "streambatch"}


def page(data: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A page of a list."""
    first, last = (data[0].get("id"), data[-1].get("id")) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}


def envelope(
    message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The body of every error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _value(text: str | None) -> Any:
    return None if text is None else orjson.loads(text)
