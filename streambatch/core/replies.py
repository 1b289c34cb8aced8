"""The model's answer in a successful result line, as JSON text, and a user's row with it appended. Pure.

What is passed on stays as the service and the user wrote it: values are cut out, never written anew where that can be helped.
"""

import json
from collections.abc import Callable
from typing import Any

import msgspec

NULL = b"null"
NO_TEXT = "the service answered without a text"
NO_VECTOR = "the service answered without an embedding"
NO_RESULT = "the service answered without a moderation result"
NO_BODY = "the service's answer has not the shape of this endpoint"

Answer = tuple[bytes, str | None]  # JSON text of the value; why there is none


class _Message(msgspec.Struct, gc=False):
    content: msgspec.Raw = msgspec.Raw(NULL)
    refusal: Any = None  # of what explains an answer, an odd type must not cost the answer


class _Choice(msgspec.Struct, gc=False):
    message: _Message | None = None
    text: msgspec.Raw = msgspec.Raw(NULL)
    finish_reason: Any = None


class _Choices(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None


class _Part(msgspec.Struct, gc=False):
    type: str = ""
    text: str = ""
    refusal: Any = None


class _Item(msgspec.Struct, gc=False):
    type: str = ""
    content: list[_Part] | None = None


class _Output(msgspec.Struct, gc=False):
    output: list[_Item] | None = None


class _Embedding(msgspec.Struct, gc=False):
    embedding: msgspec.Raw = msgspec.Raw(NULL)


class _Data(msgspec.Struct, gc=False):
    data: list[_Embedding] | None = None


class _Results(msgspec.Struct, gc=False):
    results: msgspec.Raw = msgspec.Raw(NULL)


# -- the value in a body


def _chat(body: _Choices) -> Answer:
    choice = body.choices[0] if body.choices else _Choice()
    message = choice.message if choice.message is not None else _Message()
    return _value(bytes(message.content), message.refusal, choice.finish_reason)


def _completion(body: _Choices) -> Answer:
    choice = body.choices[0] if body.choices else _Choice()
    return _value(bytes(choice.text), None, choice.finish_reason)


def _value(raw: bytes, refusal: Any, finish_reason: Any) -> Answer:
    if raw != NULL:
        return raw if raw.isascii() else raw.decode(errors="replace").encode(), None
    if refusal and isinstance(refusal, str):
        return NULL, f"the model refused: {refusal}"
    return NULL, f"{NO_TEXT} (finish_reason {finish_reason})" if isinstance(finish_reason, str) else NO_TEXT


def _response(body: _Output) -> Answer:
    """All texts of all messages, as the official SDK's `output_text`."""
    parts = [part for item in body.output or () if item.type == "message" for part in item.content or ()]
    texts = [part.text for part in parts if part.type == "output_text"]
    if texts:
        return msgspec.json.encode("".join(texts)), None
    return _value(NULL, next((part.refusal for part in parts if part.refusal), None), None)


def _embedding(body: _Data) -> Answer:
    """The vector (or its base64 text); of a row with several inputs the list of them."""
    vectors = [bytes(entry.embedding) for entry in body.data or ()]
    if not vectors or NULL in vectors:
        return NULL, NO_VECTOR
    return (vectors[0] if len(vectors) == 1 else b"[" + b",".join(vectors) + b"]"), None


def _moderation(body: _Results) -> Answer:
    results = bytes(body.results)
    return (NULL, NO_RESULT) if results in (NULL, b"[]") else (results, None)


def _whole(body: msgspec.Raw) -> Answer:
    return bytes(body), None


_Reader = tuple[Any, Callable[[Any], Answer]]  # the type of a body; the answer in it

_READERS: dict[str, _Reader] = {
    "chat/completions": (_Choices, _chat),
    "responses": (_Output, _response),
    "completions": (_Choices, _completion),
    "embeddings": (_Data, _embedding),
    "moderations": (_Results, _moderation),
}


# -- whole lines and rows


class AnswerReader:
    """Reads answers of one endpoint, such as `/v1/chat/completions`; of an unknown one the answer is the whole body."""

    def __init__(self, endpoint: str) -> None:
        name = next((name for name in _READERS if endpoint.rstrip("/").endswith(f"/{name}")), None)
        reader: _Reader = (msgspec.Raw, _whole) if name is None else _READERS[name]
        self._type, self._read = reader
        self._line = msgspec.json.Decoder(_line_type(self._type))
        self._text_line = msgspec.json.Decoder(_line_type(str))

    def read(self, line: bytes) -> Answer:
        """The answer in a successful result line."""
        try:
            body = self._body(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            body = self._mended(line)
        if body is None:
            return NULL, NO_BODY
        return self._read(body)

    def _body(self, line: bytes) -> Any:
        try:
            return self._line.decode(line).response.body
        except msgspec.ValidationError:
            return msgspec.json.decode(self._text_line.decode(line).response.body, type=self._type)

    def _mended(self, line: bytes) -> Any:
        """The body of a line that holds half a surrogate pair, which only the tolerant decoder takes; None if that is not all."""
        try:
            text = json.dumps(json.loads(line), ensure_ascii=False)
            return self._body(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode())
        except (ValueError, RecursionError):
            return None


def _line_type(body: Any) -> Any:
    response = msgspec.defstruct("Response", [("body", body)], gc=False)
    return msgspec.defstruct("Line", [("response", response)], gc=False)


class AnswerColumn:
    """NAME and NAME_error, put before the last brace of the user's rows; what the row was stays as it is."""

    def __init__(self, name: str) -> None:
        self._names = frozenset((name, f"{name}_error"))
        self._name = msgspec.json.encode(name) + b": "
        self._error = b", " + msgspec.json.encode(f"{name}_error") + b": "

    def add(self, row: bytes, answer: bytes, error: str | None) -> bytes:
        """The row, a JSON object, with both fields and a newline."""
        inner = row.strip(b" \t\r\n")[:-1]
        comma = b", " if inner[1:] and not inner[1:].isspace() else b""
        told = NULL if error is None else msgspec.json.encode(error)
        return b"".join((inner, comma, self._name, answer, self._error, told, b"}\n"))

    def add_to_any(self, row: bytes, answer: bytes, error: str | None) -> bytes:
        """The same, of any row: one that is no object gives nothing, one that has such a field already stays as it is."""
        names = object_keys(row)
        if names is None:
            return b""
        return self.add(row, answer, error) if names.isdisjoint(self._names) else row.strip(b" \t\r\n") + b"\n"


def object_keys(row: bytes) -> frozenset[str] | None:
    """The names in a row that is a JSON object in valid UTF-8; None for any other row."""
    try:
        row.decode()
        return frozenset(msgspec.json.decode(row, type=dict[str, msgspec.Raw]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
