"""Outcome: the final word on one row as the library hands it out, read from a result line or from a row with its answer."""

import json
from functools import lru_cache
from typing import Any

import msgspec

from streambatch.core.replies import AnswerReader
from streambatch.edge.readout import Ended
from streambatch.errors import StreambatchError


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One row's result or error. What a source does not tell is None; `raw` is the line that it was read from."""

    raw: bytes
    row: dict[str, Any] | None = None
    ordinal: int | None = None
    custom_id: str | None = None
    model: str | None = None
    value: Any = None
    error: str | None = None
    usage: dict[str, Any] | None = None
    finish_reason: str | None = None
    attempts: int | None = None

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def text(self) -> str | None:
        """The answer, where it is a text."""
        return self.value if isinstance(self.value, str) else None

    def unwrap(self) -> Any:
        """The value. Raises StreambatchError where the row ended in an error."""
        if self.error is not None:
            raise StreambatchError(f"Row {self.custom_id} has no answer: {self.error}.")
        return self.value

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, same names, without `raw`."""
        return {name: getattr(self, name) for name in (*self.__struct_fields__[1:], "text", "ok")}


def of_row(line: bytes, column: str) -> Outcome:
    """The outcome in a user's row that carries its answer."""
    row = _object(_loads(line))
    return Outcome(raw=line, value=row.pop(column, None), error=row.pop(f"{column}_error", None), row=row)


def of_end(end: Ended, endpoint: str) -> Outcome:
    """The outcome of a row that a run has brought to its end."""
    known = Outcome(raw=b"") if end.result is None else of_result(end.result, endpoint)
    row = None if end.row is None else _loads(end.row)
    return msgspec.structs.replace(
        known,
        row=row if isinstance(row, dict) else None,
        ordinal=end.ordinal,
        custom_id=end.custom_id,
        attempts=end.attempts,
        value=known.value if end.reason is None else None,
        error=known.error if end.reason is None else end.reason,
    )


def of_result(line: bytes, endpoint: str) -> Outcome:
    """The outcome in a service's result line, whatever the service made of it."""
    result = _object(_loads(line))
    body = _object(result.get("response")).get("body")
    body = _object(_loads(body) if isinstance(body, str) else body)
    choices = body.get("choices")
    first = _object(choices[0]) if isinstance(choices, list) and choices else {}
    value, error = _reader(endpoint).read(line)
    return Outcome(
        raw=line,
        custom_id=result.get("custom_id"),
        model=body.get("model"),
        value=_loads(value),
        error=error,
        usage=body.get("usage"),
        finish_reason=first.get("finish_reason"),
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _loads(data: bytes | str) -> Any:
    """JSON, by the quick decoder or the tolerant one; None for what is none."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            return None


@lru_cache(maxsize=8)
def _reader(endpoint: str) -> AnswerReader:
    """Making one takes longer than reading with it."""
    return AnswerReader(endpoint)


def is_result(line: bytes) -> bool:
    """Whether a line is a service's, and not a user's row."""
    row = json.loads(line)
    return isinstance(row, dict) and "custom_id" in row and "response" in row and "error" in row
