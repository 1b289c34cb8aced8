"""Ready-made request lines: they pass byte for byte, once every one is known to be a sound request.

Two ways that must agree: a whole block of lines at once, which only says yes, and one line at a time, which says why
not.
"""

from functools import lru_cache
from itertools import filterfalse
from typing import Annotated, Any, Literal

import msgspec

from streambatch.core.rows import BadLineError, Request, Unfit, added_fields, check_utf8, json_fault, shown

FIELDS = ("custom_id", "method", "url", "body")
METHOD = "POST"
_ABSENT = msgspec.Raw()
_Id = Annotated[str, msgspec.Meta(min_length=1)]
_text = msgspec.json.Decoder(str)


class _Body(msgspec.Struct, gc=False):
    model: msgspec.Raw = _ABSENT


_body = msgspec.json.Decoder(_Body)


class ReadyRows:
    """Checks lines one by one. `column`: a field that no row may have yet."""

    def __init__(self, endpoint: str, column: str | None) -> None:
        self._endpoint = endpoint
        self._added = added_fields(column)
        names = (*FIELDS, *self._added)
        fields = [(f"f{i}", msgspec.Raw, _ABSENT) for i in range(len(names))]
        rename = {f"f{i}": name for i, name in enumerate(names)}
        self._decode = msgspec.json.Decoder(msgspec.defstruct("Line", fields, rename=rename, gc=False)).decode

    def shape(self, line: bytes, ordinal: int) -> Request | Unfit:
        """The request, which is the line itself, or why it is none."""
        custom_id = None
        try:
            check_utf8(line)
            raw = self._fields(line)
            custom_id = _string(raw[0], "custom_id")
            if not custom_id:
                raise BadLineError("custom_id is empty")
            model = self._model(raw)
        except BadLineError as bad:
            return Unfit(bad.unfit.reason, custom_id if custom_id else None)
        return Request(custom_id, model, line if line.endswith(b"\n") else line + b"\n", len(raw[3]))

    def _fields(self, line: bytes) -> list[bytes]:
        try:
            row = self._decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise json_fault(line, error) from None
        return [bytes(field) for field in msgspec.structs.astuple(row)]

    def _model(self, raw: list[bytes]) -> str:
        method, url = _string(raw[1], "method"), _string(raw[2], "url")
        if method != METHOD:
            raise BadLineError(f"method is {shown(method)}, not {METHOD}")
        if url != self._endpoint:
            raise BadLineError(f"url is {shown(url)}, but this run's endpoint is {self._endpoint}")
        if not raw[3].startswith(b"{"):
            raise BadLineError("body is no object" if raw[3] else "no body")
        for name, value in zip(self._added, raw[len(FIELDS) :], strict=True):
            if value:
                raise BadLineError(f"has a field {shown(name)} already: choose another --column")
        model = _string(bytes(_body.decode(raw[3]).model), "model in the body")
        if not model:
            raise BadLineError("model in the body is empty")
        return model


class ReadyBlocks:
    """Checks a block at once: are all its lines sound requests for `model`?"""

    def __init__(self, endpoint: str, column: str | None, model: str) -> None:
        body = msgspec.defstruct("Body", [("model", Literal[model])], gc=False)
        fields: list[Any] = [
            ("custom_id", _Id),
            ("method", Literal[METHOD]),
            ("url", Literal[endpoint]),
            ("body", body),
        ]
        for name in added_fields(column):  # a field that is there fails: nothing has this type
            fields.append((name, msgspec.UnsetType, msgspec.UNSET))
        line: Any = msgspec.defstruct("Line", fields, gc=False)
        self._decode = msgspec.json.Decoder(line).decode

    def ids(self, lines: list[bytes], *, ascii_only: bool = False) -> list[str] | None:
        """Their `custom_id`s in order, or None where a line needs a closer look. `ascii_only`: all are known to be."""
        try:
            ids = [request.custom_id for request in map(self._decode, lines)]
            for line in () if ascii_only else filterfalse(bytes.isascii, lines):
                line.decode()
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return None
        return ids


@lru_cache(maxsize=8)
def ready_blocks(endpoint: str, column: str | None, model: str) -> ReadyBlocks:
    """A `ReadyBlocks`, made once: it compiles a decoder."""
    return ReadyBlocks(endpoint, column, model)


def _string(raw: bytes, name: str) -> str:
    if not raw:
        raise BadLineError(f"no {name}")
    if not raw.startswith(b'"'):
        raise BadLineError(f"{name} is no string")
    return _text.decode(raw)
