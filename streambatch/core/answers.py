"""What an HTTP answer that is no success says, and how long it asks us to wait. Knows no sockets and no policy."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from streambatch.core.wire import CODES, Refusal, text_of
from streambatch.core.wording import one_line


class ErrorAnswer(msgspec.Struct, frozen=True):
    """What an answer that is no success says. `code` is the service's own code or, without one, its type."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None
    should_retry: bool | None = None


class _Envelope(msgspec.Struct):
    error: Any = None
    message: Any = None  # bare errors of gateways
    detail: Any = None


def decode_error(status: int, body: bytes, headers: Mapping[str, str]) -> ErrorAnswer:
    """What an unsuccessful answer says, however little it is. Header names are taken in lower case or any case-blind mapping."""
    try:
        envelope = msgspec.json.decode(body, type=_Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        envelope = _Envelope()
    error = envelope.error if isinstance(envelope.error, dict) else {}
    plain = next((t for t in (envelope.error, envelope.message, envelope.detail) if isinstance(t, str)), None)
    return ErrorAnswer(
        status=status,
        message=one_line(text_of(error.get("message")) or plain or ""),
        code=_error_code(text_of(error.get("type")), text_of(error.get("code"))),
        param=text_of(error.get("param")),
        retry_after_s=retry_after(headers),
        should_retry={"true": True, "false": False}.get(headers.get("x-should-retry", "").strip().lower()),
    )


def _error_code(kind: str | None, code: str | None) -> str | None:
    """A type that says more than the code (billing) wins; an absent code gives way to the type."""
    if code is None or (kind is not None and CODES.get(kind) is Refusal.BILLING and code not in CODES):
        return kind
    return code


def retry_after(headers: Mapping[str, str]) -> float | None:
    """How long the service asks to wait: `retry-after-ms`, else `retry-after` in seconds or as a date."""
    milliseconds = _seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    until = http_date(text)
    if until is None:
        return _seconds(text)
    now = http_date(headers.get("date"))
    return None if now is None else max(0.0, until - now)  # both by the service's clock


def _seconds(text: str | None) -> float | None:
    if text is None or not re.fullmatch(r"\s*[0-9]{1,9}(\.[0-9]{0,9})?\s*", text):
        return None
    return float(text)


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_HTTP_DATE = re.compile(
    r"\s*[a-z]{3}, ([0-9]{1,2}) ([a-z]{3}) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT\s*", re.IGNORECASE
)


def http_date(text: str | None) -> float | None:
    """Unix seconds of an HTTP date (RFC 9110), in no locale; None for anything else."""
    found = _HTTP_DATE.fullmatch(text) if text else None
    if found is None or found[2].lower() not in _MONTHS:
        return None
    month = _MONTHS.index(found[2].lower()) + 1
    try:
        day, year, hour, minute, second = (int(found[g]) for g in (1, 3, 4, 5, 6))
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
    except ValueError:
        return None
