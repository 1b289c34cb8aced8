"""What the service checks before it runs a batch: line by line, in slices, in memory that does not depend on the file's size
beyond 8 bytes a row for duplicate ids. Says what it found in the service's words; changes nothing.
"""

from pathlib import Path
from typing import Any

import msgspec
from xxhash import xxh3_64_intdigest

from streambatch.server.profiles import OPENAI, UNABLE, Profile, plain_endpoint

MAX_EMBEDDING_INPUTS = 50_000
MAX_LINE_BYTES = 64 << 20
MAX_TOLD = 100  # errors listed; the rest only counts
BLOCK = 1 << 18
SLICE_BYTES = 4 << 20  # held at a time, and what is left of a line
ORGANIZATION = "org-streambatchlocal"

NEEDS = {
    "/v1/chat/completions": ("messages", "Messages parameter is required."),
    "/v1/embeddings": ("input", "Input parameter is required."),
    "/v1/moderations": ("input", "Input parameter is required."),
}
MODEL_OPTIONAL = {"/v1/moderations"}


class Told(msgspec.Struct, frozen=True):
    """One entry of `batch.errors.data`."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class Verdict(msgspec.Struct, frozen=True):
    """How a validation ended: what was wrong (nothing: it passed), and what the batch is made of."""

    errors: tuple[Told, ...]
    total: int = 0
    model: str | None = None
    tokens: int = 0


class Body(msgspec.Struct):
    model: str
    stream: bool | None = None
    messages: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()


class Request(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: Body


MISSING = {name: f"Missing required parameter: '{name}'." for name in ("custom_id", "method", "url", "body")}
DUPLICATE = (
    "The custom_id for this request is a duplicate of another request. "
    "The custom_id parameter must be unique for each request in a batch."
)
BAD_LINE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
KINDS: dict[type, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "a boolean",
    list: "an array",
    dict: "an object",
}


class Validation:
    """One file against one endpoint; `step` looks at some more lines."""

    def __init__(
        self, path: Path, endpoint: str, models: tuple[str, ...] | None = None, profile: Profile = OPENAI
    ) -> None:
        self._file = path.open("rb", buffering=BLOCK)
        self._endpoint = plain_endpoint(endpoint)
        self._models = () if endpoint in UNABLE else profile.models if models is None else models
        self._profile = profile
        self._decode = msgspec.json.Decoder(Request).decode
        self._ids: set[int] = set()
        self._told: list[Told] = []
        self._line = self._inputs = self._bytes = 0
        self._model: str | None = None

    def close(self) -> None:
        self._file.close()
        self._ids.clear()

    def step(self, lines: int) -> Verdict | None:
        """Look at up to `lines` more lines; the verdict once all were seen."""
        block = self._read(lines)
        if not block:
            return self._verdict()
        if self._take_usual(block):
            return None
        for line in block:
            self._line += 1
            if self._line > self._profile.max_requests:
                return self._verdict(_too_many("requests", self._profile.max_requests))
            told = self._look(line)
            if told is not None:
                self._told.append(told)
                if len(self._told) >= MAX_TOLD:
                    return self._verdict()
        return None

    def _read(self, lines: int) -> list[bytes]:
        block: list[bytes] = []
        size = 0
        while len(block) < lines and size < SLICE_BYTES and (line := self._file.readline(MAX_LINE_BYTES)):
            block.append(line)
            size += len(line)
        return block

    def _take_usual(self, block: list[bytes]) -> bool:
        """Take lines that are all right, at once; False, and none taken, where any must be looked at by itself."""
        try:
            b"".join(block).decode()
            rows = [*map(self._decode, block)]
        except BAD_LINE:
            return False
        bodies = [row.body for row in rows]
        sizes = self._sizes(bodies)
        models = {body.model for body in bodies}
        marks = {xxh3_64_intdigest(row.custom_id.encode()) for row in rows}
        if (
            self._line + len(block) > self._profile.max_requests
            or {row.method for row in rows} != {"POST"}
            or {row.url for row in rows} != {self._endpoint}
            or not {body.stream for body in bodies} <= {None, False}
            or min(sizes) == 0
            or not self._are_usual(models)
            or len(marks) < len(block)
            or not self._ids.isdisjoint(marks)
        ):
            return False
        self._line += len(block)
        self._bytes += sum(sizes)
        self._model = bodies[0].model if self._model is None else self._model
        self._ids |= marks
        return True

    def _sizes(self, bodies: list[Body]) -> list[int]:
        """What each body asks, in bytes; 0 where it must be looked at by itself."""
        if self._endpoint == "/v1/embeddings":
            return [0]
        if self._endpoint not in NEEDS:
            return [max(1, len(body.input)) for body in bodies]
        needed = NEEDS[self._endpoint][0]
        sizes = [len(getattr(body, needed)) for body in bodies]
        if min(sizes) <= len("null"):
            return [0]
        return (
            sizes
            if needed == "input"
            else [max(size, len(body.input)) for size, body in zip(sizes, bodies, strict=True)]
        )

    def _are_usual(self, models: set[str]) -> bool:
        if self._models is not None and not models.issubset(self._models):
            return False
        return not self._profile.one_model or models == {self._model if self._model is not None else min(models)}

    def _verdict(self, *last: Told) -> Verdict:
        told = [*self._told, *last]
        if not self._line:
            told.append(
                Told(
                    "empty_file", "The input file is empty. Please ensure that the batch contains at least one request."
                )
            )
        if self._inputs > MAX_EMBEDDING_INPUTS:
            told.append(_too_many("embedding inputs", MAX_EMBEDDING_INPUTS))
        self.close()
        model = self._model if self._profile.one_model else None
        return Verdict(tuple(told), self._line, model, self._bytes // 4)

    def _look(self, line: bytes) -> Told | None:
        """What is wrong with a line; None for nothing."""
        try:
            if not line.isascii():
                line.decode()
            row = self._decode(line)
        except BAD_LINE:
            fault = self._explain(line)
            if fault is not None:
                return fault
            row = _bare(line)
        return self._check(row)

    def _check(self, row: Request) -> Told | None:
        at, body = self._line, row.body
        if row.method != "POST":
            return Told(
                "invalid_method",
                "The HTTP method of this request is not supported. Only POST is supported.",
                "method",
                at,
            )
        if plain_endpoint(row.url) != self._endpoint or row.url not in (self._endpoint, *self._profile.endpoints):
            return Told(
                "invalid_url", "The URL provided for this request does not match the batch endpoint.", "url", at
            )
        needed, message = NEEDS.get(self._endpoint, ("", ""))
        given: bytes = bytes(getattr(body, needed)) if needed else b"-"
        if given in (b"", b"null"):
            return Told("invalid_request", message, f"body.{needed}", at)
        if body.stream:
            return Told(
                "streaming_unsupported",
                f"{self._label()}: Streaming is not supported in the Batch API.",
                "body.stream",
                at,
            )
        self._bytes += max(len(given), len(body.input))
        if self._endpoint == "/v1/embeddings":
            self._inputs += _embedding_inputs(given)
        return self._check_model(body.model, at) or self._check_id(row.custom_id, at)

    def _check_model(self, model: str, at: int) -> Told | None:
        if self._models is not None and model not in self._models:
            return Told(
                "model_not_found", f"The provided model '{model}' is not supported by the Batch API.", "body.model", at
            )
        if self._model is None:
            self._model = model
        if model != self._model and self._profile.one_model:
            message = (
                f"The model '{model}' for this request does not match the rest of the batch. "
                "Each batch must contain requests for a single model."
            )
            return Told("mismatched_model", message, "body.model", at)
        return None

    def _check_id(self, custom_id: str, at: int) -> Told | None:
        mark = xxh3_64_intdigest(custom_id.encode())
        if mark in self._ids:
            return Told("duplicate_custom_id", DUPLICATE, "custom_id", at)
        self._ids.add(mark)
        return None

    def _explain(self, line: bytes) -> Told | None:
        """Why a line is no request; None if only its model is absent where that is allowed."""
        at = self._line
        try:
            line.decode()
            row = msgspec.json.decode(line)
        except BAD_LINE:
            row = None
        if not isinstance(row, dict):
            return Told("invalid_json_line", "This line is not parseable as valid JSON.", None, at)
        for name, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
            if row.get(name) is None:
                return Told("missing_required_parameter", MISSING[name], name, at)
            if not isinstance(row[name], kind):
                return _wrong_type(name, kind, row[name], at)
        model, stream = row["body"].get("model"), row["body"].get("stream")
        if model is None:
            return (
                None
                if self._endpoint in MODEL_OPTIONAL
                else Told("invalid_request", "Model parameter is required.", "body.model", at)
            )
        return (
            _wrong_type("body.stream", bool, stream, at)
            if isinstance(model, str)
            else _wrong_type("body.model", str, model, at)
        )

    def _label(self) -> str:
        return {
            "/v1/chat/completions": "Chat Completions",
            "/v1/completions": "Completions",
            "/v1/responses": "Responses",
        }.get(self._endpoint, "This endpoint")


def cannot_find(file_id: str) -> Verdict:
    """The input file is not there."""
    message = f"Cannot find file {file_id}, or organization {ORGANIZATION} does not have access to it."
    return Verdict((Told("invalid_request", message, "file_id"),))


def _bare(line: bytes) -> Request:
    """A request without a model, where that is allowed."""
    row = msgspec.json.decode(line)
    row["body"] = {
        "model": "omni-moderation-latest",
        "input": row["body"].get("input"),
        "stream": bool(row["body"].get("stream")),
    }
    return msgspec.json.decode(msgspec.json.encode(row), type=Request)


def _embedding_inputs(given: bytes) -> int:
    inputs = msgspec.json.decode(given)
    return len(inputs) if isinstance(inputs, list) and not (inputs and isinstance(inputs[0], int)) else 1


def _too_many(what: str, limit: int) -> Told:
    return Told("too_many_tasks", f"The batch contains more {what} than the maximum of {limit:,} in one batch.")


def _wrong_type(name: str, kind: type, value: Any, at: int) -> Told:
    told = f"Invalid type for '{name}': expected {KINDS[kind]}, but got {KINDS.get(type(value), 'null')} instead."
    return Told("invalid_type", told, name, at)
