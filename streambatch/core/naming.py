"""The names of rows and results: by which a row of the input and the line that came back for it find each other. Pure.

A name is the custom_id as UTF-8, however it was escaped. Blocks of lines that begin alike are named at once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from streambatch.core.columns import all_close, request_heads, success_heads
from streambatch.core.joins import RowNames
from streambatch.core.lines import is_blank
from streambatch.core.results import Verdict, decode_usual, read_line
from streambatch.core.rows import BadLineError, check_utf8, json_fault
from streambatch.core.settling import RowClass, class_of


class RowNamer:
    """Names rows of the input."""

    def __init__(self, names: RowNames) -> None:
        self._field = "custom_id" if names.ready_made else names.field
        self._type: Any = str if names.ready_made else str | int
        self._heads = None if self._field is None else request_heads(msgspec.json.encode(self._field))
        fields = [] if self._field is None else [("name", self._type)]
        row: Any = msgspec.defstruct("Row", fields, rename={"name": str(self._field)}, gc=False)
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(row).decode

    def alike(self, lines: Sequence[bytes]) -> list[bytes] | None:
        """The names of lines that begin alike, at once; None where they need a closer look."""
        return None if self._heads is None else self._heads.keys(lines)

    def names(self, lines: Sequence[bytes], first_ordinal: int = 0) -> list[bytes | None]:
        """The name of each line; None for a blank line, and for a row that has none."""
        keys = self.alike(lines)
        if keys is not None:
            return [*keys]
        return [self.name(line, ordinal) for ordinal, line in enumerate(lines, first_ordinal)]

    def name(self, line: bytes, ordinal: int) -> bytes | None:
        try:
            row = self._decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return b"%d" % ordinal if self._field is None else str(row.name).encode()

    def fault(self, line: bytes) -> str | None:
        """Why a line has no name; None for a blank one."""
        if is_blank(line):
            return None
        try:
            check_utf8(line)
            msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        except BadLineError as bad:
            return bad.unfit.reason
        except (msgspec.DecodeError, RecursionError) as error:
            return json_fault(line, error).unfit.reason
        kind = "string" if self._type is str else "string or integer"
        return f"no {kind} {self._field}"


class Named(msgspec.Struct, gc=False):
    """Result lines by columns: names (None: there is no id), and classes."""

    names: list[bytes | None]
    classes: bytes


class ResultNamer:
    """Names result lines, and classifies them."""

    def __init__(self) -> None:
        self._heads = success_heads()

    def successes(self, lines: Sequence[bytes]) -> list[bytes] | None:
        """The names if all of these lines are successes of one shape."""
        return self._heads.keys(lines) if all_close(lines) else None

    def named(self, lines: Sequence[bytes]) -> Named:
        """Any whole lines."""
        keys = self.successes(lines)
        if keys is not None:
            return Named([*keys], bytes(len(keys)))
        pairs = [*map(name_result, lines)]
        return Named([name for name, _ in pairs], bytes(row_class for _, row_class in pairs))


def name_result(line: bytes) -> tuple[bytes | None, RowClass]:
    """The name and the class of a line."""
    try:
        told = decode_usual(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return name_verdict(read_line(line))
    if 200 <= told.response.status_code < 300:
        return told.custom_id.encode(), RowClass.OK
    return name_verdict(read_line(line))


def name_verdict(verdict: Verdict | None) -> tuple[bytes | None, RowClass]:
    """The name and the class of what a line says."""
    if verdict is None:
        return None, RowClass.UNKNOWN
    return verdict.custom_id.encode(), class_of(verdict)
