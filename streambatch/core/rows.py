"""What becomes of one row: a request line, or a reason why there is none; and the checks that all rows share.

Pure: bytes in, values out. A reason is a short clause that reads well after "file, line n: ".
"""

import msgspec

from streambatch.core.jobs import BadRow
from streambatch.core.lines import BOM

SHOWN_CHARACTERS = 60
LEADING_BAD_ROWS = 100  # a job whose first rows are all bad is stopped: the settings are wrong, not the rows


class Request(msgspec.Struct, gc=False):
    """A request line, newline included, as it is written and sent."""

    custom_id: str
    model: str
    line: bytes
    body_bytes: int


class Unfit(msgspec.Struct):
    """A row that can't be sent. `skipped` rows were asked to be left out and are no errors; `hopeless`: so is every row."""

    reason: str
    custom_id: str | None = None
    skipped: bool = False
    hopeless: bool = False


class BadLineError(Exception):
    """Why a row is unfit; never leaves core."""

    def __init__(self, reason: str, *, skipped: bool = False, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.unfit = Unfit(reason, skipped=skipped, hopeless=hopeless)


def check_utf8(line: bytes) -> None:
    """The whole line, also what no decoder looks at. Raises BadLineError."""
    if not line.isascii():
        try:
            line.decode()
        except UnicodeDecodeError as error:
            raise BadLineError(f"not valid UTF-8 at byte {error.start + 1}") from None


def json_fault(line: bytes, error: Exception) -> BadLineError:
    """What a decoder's refusal of a line means to its owner."""
    if isinstance(error, RecursionError):
        return BadLineError("nested too deeply")
    if isinstance(error, msgspec.ValidationError):
        return BadLineError("not a JSON object")
    if line.startswith(BOM):
        return BadLineError("not valid JSON: a byte order mark inside the file")
    return BadLineError(f"not valid JSON: {str(error).removeprefix('JSON is malformed: ').lower()}")


def shown(text: str) -> str:
    """A value of the data in a message: quoted, on one line, not too long."""
    cut = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
    return repr(cut)


def added_fields(column: str | None) -> tuple[str, ...]:
    """The fields that a row of the output has more than the user's: a row that has one already is a bad row."""
    return () if column is None else (column, f"{column}_error")


def why_stop(first_bad: BadRow, leading_bad: int, *, stop: bool) -> str | None:
    """Whether bad rows end the job, and the sentence for it. `leading_bad`: so many of the first rows, before a good one."""
    where = f"{first_bad.file}, line {first_bad.line}: {first_bad.reason}"
    if stop:
        return f"{where}; mend the row, or use --on-bad-row skip."
    if leading_bad >= LEADING_BAD_ROWS:
        return f"The first {leading_bad} rows are all bad ({where}); change the input or the settings."
    return None
