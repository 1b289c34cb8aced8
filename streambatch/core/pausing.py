"""When so many rows end in errors that no more are bought, and the sentence that says so. Pure.

Only rows that were sent count: a row that can't be sent costs nothing, and is known hours before its neighbours' answers.
"""

import shlex
from collections.abc import Iterable, Sequence

import msgspec

from streambatch.core.jobs import ErrorKind

ENOUGH = 1000  # outcomes, before a share of them says anything
OFF = 100.0  # percent
EXAMPLES = 3
PIPED = "... | "  # before the command of a run that reads stdin


class Example(msgspec.Struct, frozen=True):
    """A row in error: its ordinal, its file, and its line there, from 1."""

    row: int
    file: str
    line: int


def watches(done: int, errors: int, percent: float) -> bool:
    """Whether too little is known yet: until then a batch keeps its place until its outcomes are counted."""
    return percent < OFF and done + errors < ENOUGH


def too_many(done: int, errors: int, percent: float) -> bool:
    """Whether more than this share of the outcomes are errors, once there are enough."""
    return done + errors >= ENOUGH and errors * 100 > (done + errors) * percent


def commonest(told: Iterable[Sequence[ErrorKind]]) -> ErrorKind | None:
    """The most frequent kind of error in what several shards tell, with places from all of them."""
    merged: dict[tuple[str, str], ErrorKind] = {}
    for kind in (kind for kinds in told for kind in kinds):
        before = merged.get((kind.cls, kind.reason), msgspec.structs.replace(kind, rows=0, places=()))
        places = tuple(sorted({*before.places, *kind.places})[:EXAMPLES])
        merged[kind.cls, kind.reason] = msgspec.structs.replace(kind, rows=before.rows + kind.rows, places=places)
    return max(merged.values(), key=lambda kind: kind.rows, default=None)


def command_beyond(command: str, done: int, errors: int) -> str:
    """The command with a figure under which a run with these outcomes goes on."""
    figure = f"{min(OFF, errors * 10 // (done + errors) * 10 + 10):g}%"
    if not command.startswith(("streambatch ", PIPED)):
        return f"{command}, but with pause_on_errors={figure!r}"
    flag = f" --pause-on-errors {figure}"
    words = shlex.split(command)
    if "--" not in words:
        return f"{command}{flag}"
    piped = PIPED if command.startswith(PIPED) else ""
    words = shlex.split(command.removeprefix(piped))
    at = words.index("--")
    return f"{piped}{shlex.join(words[:at])}{flag} {shlex.join(words[at:])}"


def sentence(done: int, errors: int, percent: float, kind: ErrorKind | None, examples: Sequence[Example]) -> str:
    """Why the run pauses, and what to do."""
    what = "" if kind is None else f", most of them {kind.cls}: {kind.reason.rstrip('.')}"
    rows = "; ".join(f"row {x.row} ({x.file}, line {x.line})" for x in examples)
    such = f" [{rows}]" if rows else ""
    return (
        f"{errors} of the first {done + errors} outcomes are errors, more than --pause-on-errors {percent:g}% allows{what}{such};"
        " nothing more is bought: mend the input or the settings and start a new run with another -o, or go on with this one and"
        " a higher figure."
    )
