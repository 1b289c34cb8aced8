"""Plain rows: their fields, templates over them, and the request around it all.

Templates see the row's fields and nothing else: no files, no URLs, fuel for loops. A row's own `messages` pass as they
are.
"""

from collections.abc import Mapping
from typing import Any

import minijinja
import msgspec

from streambatch.core.bodies import MESSAGES, BodyWriter, messages_of
from streambatch.core.models import Shaping
from streambatch.core.rows import BadLineError, Request, Unfit, added_fields, check_utf8, json_fault, shown
from streambatch.errors import ConfigError

FUEL = 1_000_000  # instructions per template and row
_TEMPLATE_FAULTS = frozenset({"UnknownFilter", "UnknownTest", "UnknownFunction", "TemplateNotFound", "BadInclude"})
_encode = msgspec.json.Encoder().encode
_UNSET = msgspec.UNSET


class Template:
    """One compiled template: `flag` names it in messages, `fields` are the row's fields that it uses."""

    def __init__(self, flag: str, source: str) -> None:
        self._flag = flag
        self._environment = minijinja.Environment(
            undefined_behavior="strict", auto_escape_callback=lambda _: False, fuel=FUEL
        )
        try:
            self._environment.add_template(flag, source)
            names = self._environment.undeclared_variables_in_template(flag)
        except minijinja.TemplateError as error:
            detail = error.detail if error.detail else error.kind
            raise ConfigError(f"--{flag}, line {error.line}: {detail}.") from None
        self.fields = tuple(sorted(names))

    def render(self, row: Mapping[str, Any]) -> str:
        """Raises BadLineError."""
        try:
            return self._environment.render_template(self._flag, **row)
        except minijinja.TemplateError as error:
            raise self._fault(error) from None

    def _fault(self, error: minijinja.TemplateError) -> BadLineError:
        detail = error.detail if error.detail else error.kind
        if error.kind in _TEMPLATE_FAULTS:
            return BadLineError(f"--{self._flag}, line {error.line}: {detail}", hopeless=True)
        if error.kind == "OutOfFuel":
            return BadLineError(f"the {self._flag} runs too long")
        if error.kind == "UndefinedError":
            return BadLineError(f"the {self._flag} needs a field that is missing: {detail}")
        return BadLineError(f"the {self._flag} fails: {detail}")


class PlainRows:
    """Makes requests of plain rows. Raises ConfigError for a template that is none."""

    def __init__(self, shaping: Shaping) -> None:
        self._shaping = shaping
        self._model = "" if shaping.model is None else shaping.model
        self._system = None if shaping.system is None else Template("system", shaping.system)
        self._prompt = None if shaping.prompt is None else Template("prompt", shaping.prompt)
        used = [f for t in (self._system, self._prompt) if t is not None for f in t.fields]
        self._used = tuple(dict.fromkeys(used))
        self._fields = _FieldReader(self._used, shaping, passed=self._prompt is None)
        self._body = BodyWriter(shaping)
        self._head = b',"method":"POST","url":' + _encode(shaping.endpoint) + b',"body":'

    def shape(self, line: bytes, ordinal: int) -> Request | Unfit:
        """The request of a row, or why it has none."""
        custom_id = str(ordinal) if self._shaping.id_field is None else None
        try:
            row = self._fields.read(line)
            custom_id = self._custom_id(row, ordinal)
            body = self._shape_body(row)
        except BadLineError as bad:
            bad.unfit.custom_id = custom_id
            return bad.unfit
        request = b"".join((b'{"custom_id":', _encode(custom_id), self._head, body, b"}\n"))
        return Request(custom_id, self._model, request, len(body))

    def _shape_body(self, row: dict[str, Any]) -> bytes:
        for name in added_fields(self._shaping.column):
            if name in row:
                raise BadLineError(f"has a field {shown(name)} already: choose another --column")
        values = self._values(row)
        system = None if self._system is None else self._system.render(values)
        if self._prompt is None:
            return self._body.of_messages(messages_of(row), system)
        return self._body.of_prompt(self._prompt.render(values), system)

    def _values(self, row: dict[str, Any]) -> dict[str, Any]:
        values = {name: row[name] for name in self._used if name in row}
        for name, value in values.items():
            if value is None:
                values[name] = self._in_place_of_null(name)
        return values

    def _in_place_of_null(self, name: str) -> str:
        if self._shaping.null == "empty":
            return ""
        raise BadLineError(f"the field {shown(name)} is null", skipped=self._shaping.null == "skip")

    def _custom_id(self, row: dict[str, Any], ordinal: int) -> str:
        name = self._shaping.id_field
        if name is None:
            return str(ordinal)
        value = row.get(name, _UNSET)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        fault = "is missing" if value is _UNSET else "is empty" if value == "" else "is no string and no integer"
        raise BadLineError(f"the id field {shown(name)} {fault}")


class _FieldReader:
    """Reads the fields that are used, and no others, of a row that is a JSON object."""

    def __init__(self, used: tuple[str, ...], shaping: Shaping, *, passed: bool) -> None:
        names: dict[str, Any] = dict.fromkeys(used, Any)
        names.update((n, Any) for n in (shaping.id_field, *added_fields(shaping.column)) if n is not None)
        if passed:
            names.setdefault(MESSAGES, msgspec.Raw)
        self._names = tuple(names)
        fields = [(f"f{i}", kind | msgspec.UnsetType, _UNSET) for i, kind in enumerate(names.values())]
        rename = {f"f{i}": name for i, name in enumerate(names)}
        self._decode = msgspec.json.Decoder(msgspec.defstruct("Row", fields, rename=rename)).decode
        self._lenient = not passed

    def read(self, line: bytes) -> dict[str, Any]:
        """The used fields that the row has. Raises BadLineError."""
        check_utf8(line)
        try:
            values = msgspec.structs.astuple(self._decode(line))
        except (msgspec.DecodeError, RecursionError) as error:
            row = _with_nan(line) if self._lenient and b"NaN" in line else None
            if row is None:
                raise json_fault(line, error) from None
            return {name: row[name] for name in self._names if name in row}
        return {name: value for name, value in zip(self._names, values, strict=True) if value is not _UNSET}


def _with_nan(line: bytes) -> dict[str, Any] | None:
    """A row that pandas or numpy wrote: NaN, which JSON does not have, stands for null. Any other fault stays one."""
    import json

    def constant(name: str) -> None:
        if name != "NaN":
            raise ValueError(name)

    try:
        row = json.loads(line, parse_constant=constant)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
