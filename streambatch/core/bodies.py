"""The body of a plain row's request: the model, the input where the endpoint wants it, the parameters. Raw JSON pieces."""

from typing import Any

import msgspec

from streambatch.core.models import Shaping
from streambatch.core.rows import BadLineError

MESSAGES = "messages"
_encode = msgspec.json.Encoder().encode


def input_field(endpoint: str) -> str:
    """The body's field that takes the prompt."""
    if endpoint.endswith("/chat/completions"):
        return MESSAGES
    if endpoint.endswith(("/responses", "/embeddings", "/moderations")):
        return "input"
    if endpoint.endswith(("/completions", "/images/generations", "/images/edits", "/videos")):
        return "prompt"
    return MESSAGES


class BodyWriter:
    """Writes the body of a plain row's request; the input goes where the endpoint wants it."""

    def __init__(self, shaping: Shaping) -> None:
        self._field = input_field(shaping.endpoint)
        self._instructions = shaping.endpoint.endswith("/responses")
        self._head = b'{"model":' + _encode(shaping.model)
        self._tail = b"".join(b"," + _encode(name) + b":" + text.encode() for name, text in shaping.params) + b"}"

    def of_prompt(self, prompt: str, system: str | None) -> bytes:
        """The body around a rendered prompt."""
        if self._field != MESSAGES:
            return self._write(_encode(prompt), system)
        return self._write(b'[{"role":"user","content":' + _encode(prompt) + b"}]", system)

    def of_messages(self, messages: bytes, system: str | None) -> bytes:
        """The body around the row's own messages, an array as JSON."""
        return self._write(messages, system)

    def _write(self, value: bytes, system: str | None) -> bytes:
        parts = [self._head, b',"', self._field.encode(), b'":', value, self._tail]
        if system is not None and self._instructions:
            parts[1:1] = [b',"instructions":', _encode(system)]
        elif system is not None:
            parts[4:5] = [b'[{"role":"system","content":', _encode(system), b"},", value[1:]]
        return b"".join(parts)


def messages_of(row: dict[str, Any]) -> bytes:
    """The row's own messages, as JSON. Raises BadLineError."""
    value = row.get(MESSAGES)
    if value is None:
        raise BadLineError(f"no {MESSAGES}")
    messages = bytes(value) if isinstance(value, msgspec.Raw) else _encode(value)
    if not messages.startswith(b"["):
        raise BadLineError(f"{MESSAGES} is no array")
    if not messages[1:-1].strip():
        raise BadLineError(f"{MESSAGES} is empty")
    return messages
