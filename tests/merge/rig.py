"""Result lines and spool files for the tests of settling and merging, and slow models to hold them against."""

import json
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streambatch.core.settling import RECORD, Kind, RowClass

Line = dict[str, Any]


def success(custom_id: str, text: str = "fine", *, status: int = 200) -> Line:
    body = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}},
    }
    return {
        "id": "batch_req_1",
        "custom_id": custom_id,
        "response": {"status_code": status, "body": body},
        "error": None,
    }


def failure(custom_id: str, status: int, code: str | None = None, message: str = "no") -> Line:
    body = {"error": {"message": message, "type": "some_error", "param": None, "code": code}}
    return {
        "id": "batch_req_2",
        "custom_id": custom_id,
        "response": {"status_code": status, "body": body},
        "error": None,
    }


def unanswered(custom_id: str, code: str, message: str = "not executed") -> Line:
    return {"id": "batch_req_3", "custom_id": custom_id, "response": None, "error": {"code": code, "message": message}}


def encode(line: Line, *, ascii_only: bool = False) -> bytes:
    return json.dumps(line, ensure_ascii=ascii_only).encode()


def write_ids(stem: Path, ids: Sequence[str], rows: Sequence[int] | None = None) -> None:
    places = range(len(ids)) if rows is None else rows
    texts = [text.encode() for text in ids]
    data = b"".join(struct.pack("<II", row, len(t)) + t for row, t in zip(places, texts, strict=True))
    Path(f"{stem}.ids").write_bytes(data)


def write_origins(stem: Path, origins: Sequence[tuple[int, int]]) -> None:
    Path(f"{stem}.origins").write_bytes(b"".join(struct.pack("<II", *origin) for origin in origins))


def records(stem: Path) -> list[tuple[int, int, int, int, int, int]]:
    return list(RECORD.iter_unpack(Path(f"{stem}.outcome").read_bytes()))


# -- the obvious model of settling

CODES = {
    "batch_expired": RowClass.EXPIRED,
    "batch_cancelled": RowClass.CANCELLED,
    "request_timeout": RowClass.SERVER_ERROR,
}
RETRIED = (
    RowClass.RATE_LIMITED, RowClass.SERVER_ERROR, RowClass.EXPIRED, RowClass.CANCELLED, RowClass.MISSING, RowClass.MALFORMED,
)  # fmt: skip


def model_class(line: Line) -> RowClass:
    if "malformed" in line:
        return RowClass.MALFORMED
    response = line.get("response")
    if response is None:
        error = line.get("error")
        return CODES.get(error["code"], RowClass.UNKNOWN) if error else RowClass.SERVER_ERROR
    status = response["status_code"]
    body = json.loads(response["body"]) if isinstance(response["body"], str) else response["body"]
    if 200 <= status < 300:
        return RowClass.OK
    if (body.get("error") or {}).get("code") == "content_policy_violation":
        return RowClass.CONTENT_POLICY
    if status == 429:
        return RowClass.RATE_LIMITED
    return RowClass.INVALID_REQUEST if 400 <= status < 500 else RowClass.SERVER_ERROR


class Settled:
    """What settling must find, from the bytes of both files, held in memory and read in the obvious way."""

    def __init__(
        self, ids: Sequence[str], output: bytes, error: bytes, *, generation: int = 0, max_attempts: int = 3
    ) -> None:
        self.unknown = self.duplicate = 0
        self.torn = False
        self.found: dict[str, tuple[RowClass, int, int, int]] = {}
        for file, data in enumerate((output, error)):
            self._read(set(ids), file, data)
        self.rows = [self._row(i, generation, max_attempts) for i in ids]
        self.missing = sum(
            self.found.get(i, (RowClass.MISSING,))[0] in (RowClass.MISSING, RowClass.MALFORMED) for i in ids
        )

    def _read(self, ids: set[str], file: int, data: bytes) -> None:
        offset = 0
        lines = data.split(b"\n")
        for n, raw in enumerate(lines):
            if raw.strip():
                try:
                    line = json.loads(raw)
                except ValueError:
                    line = None
                if (
                    line is None
                    and n < len(lines) - 1
                    and (cut := re.search(rb'"custom_id": ("(?:[^"\\]|\\.)*")', raw))
                ):
                    line = {"custom_id": json.loads(cut[1]), "malformed": True}
                self._line(ids, line, file, offset, len(raw), last=n == len(lines) - 1)
            offset += len(raw) + 1

    def _line(self, ids: set[str], line: Line | None, file: int, offset: int, length: int, *, last: bool) -> None:
        if line is None and last:
            self.torn = True
        elif line is None or line["custom_id"] not in ids:
            self.unknown += 1
        else:
            new = (model_class(line), file, offset, length)
            old = self.found.get(line["custom_id"])
            self.duplicate += old is not None
            if old is None or (new[0] is RowClass.OK and old[0] is not RowClass.OK):
                self.found[line["custom_id"]] = new

    def _row(self, custom_id: str, generation: int, max_attempts: int) -> tuple[int, int, int, int, int, int]:
        row_class, file, offset, length = self.found.get(custom_id, (RowClass.MISSING, 0, 0, 0))
        attempts = generation + 1
        left = row_class in RETRIED and attempts < max_attempts
        kind = Kind.DONE if row_class is RowClass.OK else Kind.LEFT if left else Kind.ERROR
        return kind, row_class, attempts, file, offset, length
