"""The provider's bytes <-> nouns: batch and file objects, lists, refusals. Knows no HTTP and no engine.

Reads tolerantly (unknown fields ignored, null, "" and absent ids alike, any case of status), writes exactly.
"""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import msgspec

from streambatch.core.wording import one_line
from streambatch.errors import ApiError


class FileInfo(msgspec.Struct, frozen=True):
    id: str
    bytes: int
    created_at: float  # the service's clock, unix seconds
    filename: str = ""
    expires_at: float | None = None  # where the service says so


class FilePage(msgspec.Struct, frozen=True):
    """One page of the list of files. `has_more` is the service's word or, without one, whether the page is as long as it may be."""

    data: tuple[FileInfo, ...]
    has_more: bool
    last_id: str | None


class BatchError(msgspec.Struct, frozen=True):
    """One entry of `errors.data`; `line` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchInfo(msgspec.Struct, frozen=True):
    """A batch as the service shows it. `status` is lower case; unknown words are kept and mean "not finished"."""

    id: str
    status: str
    input_file_id: str | None
    output_file_id: str | None
    error_file_id: str | None
    created_at: float
    expires_at: float | None
    total: int
    completed: int
    failed: int
    metadata: dict[str, str]
    errors: tuple[BatchError, ...] = ()
    endpoint: str | None = None

    @property
    def terminal(self) -> bool:
        return self.status in TERMINAL

    @property
    def ran(self) -> bool:
        """Whether it has results, or counts some beside the lines that it was refused for."""
        return bool(self.output_file_id or self.error_file_id or self.completed) or self.failed > len(self.errors)


class BatchPage(msgspec.Struct, frozen=True):
    """One page of the list, newest first. `server_date` is the Date header of the answer, unix seconds.

    `has_more` is the service's word or, without one, whether the page is as long as it may be. Batches of which the service does
    not say the id are in `nameless`.
    """

    data: tuple[BatchInfo, ...]
    has_more: bool
    last_id: str | None
    server_date: float | None = None
    nameless: tuple[BatchInfo, ...] = ()


class Refusal(Enum):
    """What a failed batch, or a refused create, asks of us."""

    QUEUE_FULL = "queue_full"  # not now: keep the uploaded file, come back later
    BILLING = "billing"  # the user must pay or raise a cap first
    FILE_GONE = "file_gone"  # the service can't find the input file
    TOO_LARGE = "too_large"  # cut it smaller
    ROWS = "rows"  # the named lines are at fault, the others are not
    UNNAMED = "unnamed"  # some line is at fault, and it isn't said which
    RUN = "run"  # every batch of this run would be refused the same way


TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
MOST_DIGITS = 12  # of a number that is written as a text
_SPELLINGS = {"canceled": "cancelled", "canceling": "cancelling"}


# -- objects


class _Batch(msgspec.Struct):
    """The fields that we read, in whatever type they come."""

    id: Any = None
    status: Any = None
    input_file_id: Any = None
    output_file_id: Any = None
    error_file_id: Any = None
    created_at: Any = None
    expires_at: Any = None
    request_counts: Any = None
    metadata: Any = None
    errors: Any = None
    endpoint: Any = None
    job: Any = None  # some services wrap the answer of a create


class _File(msgspec.Struct):
    id: Any = None
    bytes: Any = None
    created_at: Any = None
    filename: Any = None
    expires_at: Any = None


class _FilePage(msgspec.Struct):
    data: list[_File]
    has_more: Any = None
    last_id: Any = None


class _Page(msgspec.Struct):
    data: list[_Batch]
    has_more: Any = None
    last_id: Any = None


def decode_batch(data: bytes, asked_for: str | None = None) -> BatchInfo:
    """A batch object, or one wrapped as `{"job": ...}`; where it does not say its id, it is the one that was asked for.

    Raises ApiError (retryable, maybe done) where it is none.
    """
    seen = _decode(data, _Batch, "a batch")
    if seen.id is None and isinstance(seen.job, dict):
        seen = msgspec.convert(seen.job, _Batch)
    return _batch(seen, _id(seen.id, "a batch", asked_for), 0.0)


def decode_page(data: bytes, server_date: float | None, limit: int = 100) -> BatchPage:
    """A page of at most `limit` batches, or the bare array that some services send. Raises ApiError where it is neither."""
    page = _decode(data, _Page | list[_Batch], "a list of batches")
    if isinstance(page, list):
        page = _Page(page)
    listed = [_batch(seen, text_of(seen.id) or "", server_date) for seen in page.data]
    batches = tuple(batch for batch in listed if batch.id)
    last = text_of(page.last_id)
    if last is None and batches:
        last = batches[-1].id
    more = len(listed) >= limit if page.has_more is None else bool(page.has_more)
    return BatchPage(batches, more, last, server_date, tuple(batch for batch in listed if not batch.id))


def decode_file(data: bytes, asked_for: str | None = None) -> FileInfo:
    """A file object; where it does not say its id, it is the one that was asked for. Raises ApiError (retryable, maybe done)."""
    seen = _decode(data, _File, "a file")
    return _file(seen, _id(seen.id, "a file", asked_for))


def decode_file_page(data: bytes, limit: int) -> FilePage:
    """A page of at most `limit` files, or a bare array of them. Raises ApiError where it is neither."""
    page = _decode(data, _FilePage | list[_File], "a list of files")
    if isinstance(page, list):
        page = _FilePage(page)
    files = tuple(_file(seen, file_id) for seen in page.data if (file_id := text_of(seen.id)) is not None)
    last = text_of(page.last_id)
    if last is None and files:
        last = files[-1].id
    more = len(page.data) >= limit if page.has_more is None else bool(page.has_more)
    return FilePage(files, more, last)


def _file(seen: _File, file_id: str) -> FileInfo:
    created = _time(seen.created_at)
    name = text_of(seen.filename) or ""
    return FileInfo(file_id, _count(seen.bytes), 0.0 if created is None else created, name, _time(seen.expires_at))


def _decode(data: bytes, shape: Any, what: str) -> Any:
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(what) from error


def _malformed(what: str) -> ApiError:
    return ApiError(f"The service answered with something that is not {what}.", retryable=True, maybe_done=True)


def _batch(seen: _Batch, batch_id: str, born: float | None) -> BatchInfo:
    """`born` stands in for a missing `created_at`: in a list the answer's date, so that no batch looks older than it is."""
    created = _time(seen.created_at)
    if created is None:
        created = born
    if created is None:
        raise _malformed("a list of batches with times")
    counts = seen.request_counts if isinstance(seen.request_counts, dict) else {}
    return BatchInfo(
        id=batch_id,
        status=_status(seen.status),
        input_file_id=text_of(seen.input_file_id),
        output_file_id=text_of(seen.output_file_id),
        error_file_id=text_of(seen.error_file_id),
        created_at=created,
        expires_at=_time(seen.expires_at),
        total=_count(counts.get("total")),
        completed=_count(counts.get("completed")),
        failed=_count(counts.get("failed")),
        metadata=_metadata(seen.metadata),
        errors=_errors(seen.errors),
        endpoint=text_of(seen.endpoint),
    )


# -- fields


def _id(value: object, what: str, asked_for: str | None) -> str:
    told = text_of(value)
    text = asked_for if told is None else told
    if text is None:
        raise _malformed(f"{what} with an id")
    return text


def text_of(value: object) -> str | None:
    """A non-empty string; numbers as they are written; None for everything that stands for nothing."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return None


def _status(value: object) -> str:
    word = (text_of(value) or "unknown").strip().lower()
    return _SPELLINGS.get(word, word)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return 0
    return max(0, int(value))


def _time(value: object) -> float | None:
    """Unix seconds from a number, its text, or an ISO 8601 text (without a zone: UTC)."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)) or not value:
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return _iso_time(str(value))
    return seconds if math.isfinite(seconds) else None


def _iso_time(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {str(k): v if isinstance(v, str) else msgspec.json.encode(v).decode() for k, v in value.items()}


def _errors(value: object) -> tuple[BatchError, ...]:
    entries = value.get("data") if isinstance(value, dict) else value
    if not isinstance(entries, list):
        return ()
    return tuple(_error(entry) for entry in entries if isinstance(entry, dict))


def _error(entry: Mapping[str, object]) -> BatchError:
    line = text_of(entry.get("line"))
    number = int(line) if line and len(line) <= MOST_DIGITS and line.isascii() and line.isdigit() else 0
    message = one_line(text_of(entry.get("message")) or "")
    return BatchError(text_of(entry.get("code")) or "unknown", message, number or None, text_of(entry.get("param")))


# -- refusals: codes first, then words, then where the fault lies

CODES: dict[str, Refusal] = {
    # the queue is full, or the service can't just now
    "token_limit_exceeded": Refusal.QUEUE_FULL,
    "request_limit_exceeded": Refusal.QUEUE_FULL,
    "rate_limit_exceeded": Refusal.QUEUE_FULL,
    "slow_down": Refusal.QUEUE_FULL,
    "server_error": Refusal.QUEUE_FULL,
    "internal_error": Refusal.QUEUE_FULL,
    "server_is_overloaded": Refusal.QUEUE_FULL,
    "insufficient_quota": Refusal.BILLING,
    "credit_balance_exhausted": Refusal.BILLING,
    "organization_spend_limit_exceeded": Refusal.BILLING,
    "project_spend_limit_exceeded": Refusal.BILLING,
    "organization_usage_limit_exceeded": Refusal.BILLING,
    "billing_hard_limit_reached": Refusal.BILLING,
    "billing_not_active": Refusal.BILLING,
    "input_modified": Refusal.FILE_GONE,
    "too_many_tasks": Refusal.TOO_LARGE,
    "model_not_found": Refusal.RUN,
    "invalid_url": Refusal.RUN,
    "url_mismatch": Refusal.RUN,
    "invalid_method": Refusal.RUN,
    "invalid_endpoint": Refusal.RUN,
    "mismatched_model": Refusal.RUN,
    "model_mismatch": Refusal.RUN,
    "input_no_permissions": Refusal.RUN,
    "empty_file": Refusal.RUN,
    "invalid_json_line": Refusal.ROWS,
    "duplicate_custom_id": Refusal.ROWS,
    "missing_required_parameter": Refusal.ROWS,
    "streaming_unsupported": Refusal.ROWS,
}
_WORDS: tuple[tuple[str, Refusal], ...] = (
    ("cannot find file", Refusal.FILE_GONE),
    ("billing hard limit", Refusal.BILLING),
    ("current quota", Refusal.BILLING),
    ("enqueued", Refusal.QUEUE_FULL),
    ("try again", Refusal.QUEUE_FULL),
    ("too large", Refusal.TOO_LARGE),
    ("larger than the", Refusal.TOO_LARGE),
)
_STATUSES = {402: Refusal.BILLING, 413: Refusal.TOO_LARGE, 429: Refusal.QUEUE_FULL}
_FILE_PARAMS = frozenset({"file_id", "input_file_id"})
_NOBODYS = frozenset({401, 403, 407, 408})  # about who asks, or the way there: says nothing about the shard
_STRONGEST = (
    Refusal.RUN, Refusal.BILLING, Refusal.FILE_GONE, Refusal.TOO_LARGE, Refusal.ROWS, Refusal.UNNAMED, Refusal.QUEUE_FULL,
)  # fmt: skip


def refusal_of_batch(errors: Sequence[BatchError]) -> Refusal:
    """What a batch that failed at validation asks of us; of several errors the strongest word counts."""
    return min((_refusal_of_entry(e) for e in errors), key=_STRONGEST.index, default=Refusal.UNNAMED)


def _refusal_of_entry(error: BatchError) -> Refusal:
    named = _named(error.code, error.message, error.param)
    in_body = error.param is not None and error.param.split(".")[0] in ("body", "custom_id")
    if named is Refusal.ROWS or (named is None and (error.line is not None or in_body)):
        return Refusal.UNNAMED if error.line is None else Refusal.ROWS
    return Refusal.RUN if named is None else named


def refusal_of_error(error: ApiError) -> Refusal | None:
    """What the answer to a create asks of us; None where it is no word on this shard (no answer, 5xx, a refused key)."""
    if error.status is None or not 400 <= error.status < 500 or error.status in _NOBODYS:
        return None
    named = _named(error.code, str(error), error.param)
    if named is None:
        named = _STATUSES.get(error.status, Refusal.RUN)
    return Refusal.RUN if named is Refusal.ROWS else named  # a create has no lines: the fault is in how we asked


def _named(code: str | None, message: str, param: str | None) -> Refusal | None:
    if code in CODES:
        return CODES[code]
    if param in _FILE_PARAMS:
        return Refusal.FILE_GONE
    lower = message.lower()
    return next((refusal for words, refusal in _WORDS if words in lower), None)


_LIMIT = re.compile(
    r"\blimit(?: of)?:? ([0-9][0-9,]{0,30}(?:\.[0-9]{1,9})?) ?([KMBT]?)\b *([a-z]*) *([a-z]*)", re.IGNORECASE
)
_SCALE = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def token_limit(message: str) -> int | None:
    """The enqueued-token limit that a refusal names (`Limit: 1,350,000`, `limit of 30K`); a limit in requests is none."""
    found = _LIMIT.search(message)
    if found is None or "requests" in (found[3].lower(), found[4].lower()):
        return None
    return int(float(found[1].replace(",", "")) * _SCALE[found[2].upper()])
