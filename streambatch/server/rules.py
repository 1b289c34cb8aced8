"""The rules of a fault script: what may go wrong, when, and how. Data and its checks; what they do is done elsewhere.

Every rule is a `do` with its parameters, and the same few words for when it applies. New kinds of misbehaviour are new `do`s.
"""

import re
from typing import Any, Literal

import msgspec

from streambatch.server.records import LIVE

ROUTES = (
    "upload", "files", "file", "delete", "content", "upload_create", "part", "upload_complete", "upload_cancel",
    "create", "list", "retrieve", "cancel", "models", "model",
)  # fmt: skip


Count = Literal["total", "completed", "failed"]


class When(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", kw_only=True):
    """`after` calls (or batches) pass first, then at most `times` are hit (none: all), each with `probability`."""

    after: int = 0
    times: int | None = None
    probability: float = 1.0


class Http(When, frozen=True, kw_only=True):
    """A rule of `http`: `on` names routes, or is `*`."""

    on: list[str] | str = "*"

    def __post_init__(self) -> None:
        unknown = set(self.routes) - set(ROUTES)
        if unknown:
            raise ValueError(f"unknown route {min(unknown)!r}, known are {', '.join(ROUTES)}")
        _check_when(self)

    @property
    def routes(self) -> tuple[str, ...]:
        if self.on == "*":
            return ROUTES
        return (self.on,) if isinstance(self.on, str) else tuple(self.on)


class Answer(Http, frozen=True, kw_only=True, tag="answer"):
    """Answers an error (or anything) instead of acting; `body` replaces the envelope by raw text."""

    status: int = 500
    code: str | None = None
    message: str | None = None
    type: str | None = None
    param: str | None = None
    retry_after_s: float | None = None
    headers: dict[str, str] = {}
    body: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 200 <= self.status <= 599:
            raise ValueError("status lies between 200 and 599")


class Drop(Http, frozen=True, kw_only=True, tag="drop"):
    """Closes the connection before anything is done."""


class ActAndDrop(Http, frozen=True, kw_only=True, tag="act_and_drop"):
    """Does what was asked, then closes the connection without an answer."""


class Delay(Http, frozen=True, kw_only=True, tag="delay"):
    """Waits before acting; an upload's body is not read meanwhile."""

    seconds: float


class Late(Http, frozen=True, kw_only=True, tag="late"):
    """Acts, then answers only `seconds` later; without them never."""

    seconds: float | None = None


class Hang(Http, frozen=True, kw_only=True, tag="hang"):
    """Stalls for `seconds` (without them for ever), the connection open: on `upload` and `part` after reading `at` bytes of the
    body, on `content` after sending `at` bytes; elsewhere before acting."""

    at: int = 0
    seconds: float | None = None


class Cut(Http, frozen=True, kw_only=True, tag="cut"):
    """On `content`: promises the whole length, sends `at` bytes, closes. On `upload` and `part`: reads `at` bytes, closes."""

    at: int


class Short(Http, frozen=True, kw_only=True, tag="short"):
    """On `content`: sends `at` bytes as if they were all."""

    at: int


class Slow(Http, frozen=True, kw_only=True, tag="slow"):
    """On `content`: sends no faster than this. On `upload` and `part`: reads no faster."""

    bytes_per_s: int


class Garble(Http, frozen=True, kw_only=True, tag="garble"):
    """Acts, then answers with half of the JSON."""


class Rows(When, frozen=True, kw_only=True):
    """A rule of `rows`: by exact ids or a regular expression found in the id; each row is hit on its first `times` executions."""

    custom_id: list[str] | str | None = None
    match: str | None = None

    def __post_init__(self) -> None:
        _check_when(self)
        if self.match is not None:
            _check_pattern(self.match)


class RowAnswer(Rows, frozen=True, kw_only=True, tag="answer"):
    """The model's endpoint answers an error."""

    status: int = 500
    code: str | None = None
    message: str | None = None
    type: str | None = None
    param: str | None = None


class RowTimeout(Rows, frozen=True, kw_only=True, tag="timeout"):
    """The call to the model timed out: no response, error `request_timeout`."""


class RowZero(Rows, frozen=True, kw_only=True, tag="zero"):
    """In the error file with `status_code` 0, an empty request id and body, and not counted as failed."""


class RowLost(Rows, frozen=True, kw_only=True, tag="lost"):
    """Executed and counted, but in neither file."""


class RowDuplicate(Rows, frozen=True, kw_only=True, tag="duplicate"):
    """Its result comes twice."""


class RowUnknown(Rows, frozen=True, kw_only=True, tag="unknown"):
    """Its result, and one with a `custom_id` that nobody sent."""


class RowHuge(Rows, frozen=True, kw_only=True, tag="huge"):
    """A result line of at least `bytes` bytes."""

    bytes: int


class RowBodyText(Rows, frozen=True, kw_only=True, tag="body_as_text"):
    """`response.body` is a JSON string, and no `error` key (as OGX does)."""


class RowMalformed(Rows, frozen=True, kw_only=True, tag="malformed"):
    """Its result line is cut after `at` bytes (without them in half): no JSON."""

    at: int | None = None


class RowWrong(Rows, frozen=True, kw_only=True, tag="wrong"):
    """Gets an answer that is wrong: its texts and vectors are turned around."""


class RowLine(Rows, frozen=True, kw_only=True, tag="line"):
    """Its result line lies: `set` overrides fields of the line, `drop` leaves fields out (`error`, as some services do)."""

    set: dict[str, Any] = {}
    drop: list[str] = []


class RowBody(Rows, frozen=True, kw_only=True, tag="body"):
    """Its `response.body` lies: `set` overrides its fields, `drop` leaves fields out."""

    set: dict[str, Any] = {}
    drop: list[str] = []


class Batches(When, frozen=True, kw_only=True):
    """A rule of `batches`: `match` is a regular expression found in the `streambatch` metadata."""

    match: str | None = None

    def __post_init__(self) -> None:
        _check_when(self)
        if self.match is not None:
            _check_pattern(self.match)


class Fail(Batches, frozen=True, kw_only=True, tag="fail"):
    """Fails validation with one entry; known codes have their real message."""

    code: str
    message: str | None = None
    param: str | None = None
    line: int | None = None
    limit: int = 1_350_000


class Expire(Batches, frozen=True, kw_only=True, tag="expire"):
    """Its window ends when this fraction of its rows is executed."""

    at: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_fraction(self.at)


class CancelAt(Batches, frozen=True, kw_only=True, tag="cancel"):
    """Somebody else cancels it at this fraction."""

    at: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_fraction(self.at)


class Stuck(Batches, frozen=True, kw_only=True, tag="stuck"):
    """Stays in a state for `seconds` of real time; without them until it is cancelled."""

    state: str
    seconds: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.state not in LIVE:
            raise ValueError(f"unknown state {self.state!r}, known are {', '.join(LIVE)}")


class Hide(Batches, frozen=True, kw_only=True, tag="hide"):
    """The list shows it only `seconds` after its creation; `by_id`: a look-up by id answers 404 until then, too."""

    seconds: float
    by_id: bool = False


class View(Batches, frozen=True, kw_only=True, tag="view"):
    """Its object lies. `set` overrides fields of the batch (null, unknown status words), `drop` leaves fields out, `counts` is
    added to those of `request_counts`."""

    set: dict[str, Any] = {}
    drop: list[str] = []
    counts: dict[Count, int] = {}
    terminal_only: bool = False


class LateFiles(Batches, frozen=True, kw_only=True, tag="late_files"):
    """Its output and error files answer 404 for `seconds` after its end; without them for ever."""

    seconds: float | None = None


class FilesGone(Batches, frozen=True, kw_only=True, tag="files_gone"):
    """Its files are gone (404) `seconds` after its end; `input`: its input file, `seconds` after its creation."""

    seconds: float = 0.0
    input: bool = False


class NoNewline(Batches, frozen=True, kw_only=True, tag="no_final_newline"):
    """Its files end without a newline."""


class WrongBytes(Batches, frozen=True, kw_only=True, tag="wrong_bytes"):
    """`bytes` of its files is off by this."""

    off: int = 1


class LeaveOut(Batches, frozen=True, kw_only=True, tag="leave_out"):
    """Rows that were not executed are in neither file."""


class EmptyErrorFile(Batches, frozen=True, kw_only=True, tag="empty_error_file"):
    """Has an error file, of no bytes, also when no row failed."""


HttpRule = Answer | Drop | ActAndDrop | Delay | Late | Hang | Cut | Short | Slow | Garble
ENDING = (Answer, Drop, ActAndDrop)
RowRule = (
    RowAnswer
    | RowTimeout
    | RowZero
    | RowLost
    | RowDuplicate
    | RowUnknown
    | RowHuge
    | RowBodyText
    | RowMalformed
    | RowWrong
    | RowLine
    | RowBody
)
BatchRule = (
    Fail | Expire | CancelAt | Stuck | Hide | View | LateFiles | FilesGone | NoNewline | WrongBytes | LeaveOut | EmptyErrorFile
)  # fmt: skip


def _check_when(rule: When) -> None:
    if not 0 <= rule.probability <= 1:
        raise ValueError("probability lies between 0 and 1")
    if rule.after < 0 or (rule.times is not None and rule.times < 0):
        raise ValueError("after and times are not negative")


def _check_fraction(at: float) -> None:
    if not 0 <= at <= 1:
        raise ValueError("at lies between 0 and 1")


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"match {pattern!r} is no regular expression: {error}") from error
