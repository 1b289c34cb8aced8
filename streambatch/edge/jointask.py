"""What a join is given, and what it counts: shared by the fast way and the general one."""

import msgspec

from streambatch.core.joins import Form, RowNames, Span
from streambatch.core.merging import Reasons


class JoinReport(msgspec.Struct, frozen=True):
    """What `join` did. `errors` rows have no success, `missing` of them no result at all; `unknown` results have no row,
    `duplicate` ones repeat another, `nameless` lines carry no id, `torn` names files that end inside of a line."""

    rows: int = 0
    done: int = 0
    errors: int = 0
    missing: int = 0
    unknown: int = 0
    duplicate: int = 0
    nameless: int = 0
    torn: tuple[str, ...] = ()
    reasons: tuple[tuple[str, str, int], ...] = ()
    output_bytes: int = 0
    errors_path: str | None = None
    existed: bool = False


class Task(msgspec.Struct, frozen=True):
    """What is to be joined, and how."""

    inputs: tuple[Span, ...]
    results: tuple[Span, ...]
    names: RowNames
    form: Form


class Tally:
    """Counts while a join goes on."""

    def __init__(self) -> None:
        self.rows = self.done = self.errors = self.missing = 0
        self.unknown = self.duplicate = self.nameless = 0
        self.torn: dict[str, None] = {}
        self.reasons = Reasons()

    def report(self, output_bytes: int, errors_path: str | None) -> JoinReport:
        return JoinReport(
            rows=self.rows,
            done=self.done,
            errors=self.errors,
            missing=self.missing,
            unknown=self.unknown,
            duplicate=self.duplicate,
            nameless=self.nameless,
            torn=tuple(self.torn),
            reasons=self.reasons.top(),
            output_bytes=output_bytes,
            errors_path=errors_path,
        )
