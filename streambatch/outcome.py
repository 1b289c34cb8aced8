"""Outcome: the final word on one row as the library hands it out, read from a result line or from a row with its answer."""

import json
from typing import Any

import msgspec

from streambatch.core.replies import AnswerReader
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
    row = json.loads(line)
    return Outcome(raw=line, value=row.pop(column, None), error=row.pop(f"{column}_error", None), row=row)


def of_result(line: bytes, endpoint: str) -> Outcome:
    """The outcome in a service's result line."""
    result = json.loads(line)
    body = (result.get("response") or {}).get("body")
    body = json.loads(body) if isinstance(body, str) else body
    body = body if isinstance(body, dict) else {}
    value, error = AnswerReader(endpoint).read(line)
    choices = body.get("choices")
    return Outcome(
        raw=line,
        custom_id=result.get("custom_id"),
        model=body.get("model"),
        value=json.loads(value),
        error=error,
        usage=body.get("usage"),
        finish_reason=choices[0].get("finish_reason") if choices else None,
    )


def is_result(line: bytes) -> bool:
    """Whether a line is a service's, and not a user's row."""
    row = json.loads(line)
    return isinstance(row, dict) and "custom_id" in row and "response" in row and "error" in row
