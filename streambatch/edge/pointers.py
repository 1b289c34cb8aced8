"""Where a run lives: beside its output, or where a pointer says, OUTPUT.run being then a one-line file with a path.

Looks and refuses, before anything is made: a run that can't be seen where it was must not begin anew unasked and be bought again.
"""

import os

from streambatch.edge.files import RunFiles, write_atomic
from streambatch.edge.sources import text_path
from streambatch.errors import ConfigError

MOST_BYTES = 8192


def beside(output: str) -> str:
    return f"{output}.run"


def target(output: str) -> str | None:
    """The run directory that OUTPUT.run names, absolute; None where it is no file. Raises ConfigError for one of other content."""
    path = beside(output)
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            named, newline, rest = file.read(MOST_BYTES).decode().rstrip("\r\n").partition("\n")
    except OSError as error:
        raise ConfigError(f"{path}, which names the run directory, can't be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        named, newline, rest = "", "", ""
    if not named.strip() or newline or rest or "\0" in named:
        raise ConfigError(
            f"{path} is a file and names no run directory; move it away, or use another -o: the run's state would have that name."
        )
    return os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(path)), named))


def run_dir(output: str, given: str | None, run_id: str | None, if_exists: str) -> str:
    """The run directory of this visit, absolute. Raises ConfigError where another one is this output's."""
    if output == "-" or (if_exists == "skip" and os.path.exists(output)):
        return _wanted(output, given, None)
    named = target(output)
    wanted = _wanted(output, given, named)
    if os.path.islink(wanted) and not os.path.exists(wanted):
        raise ConfigError(
            f"The run directory {wanted} is a link to {os.path.realpath(wanted)}, which does not exist; mount its disk again, or"
            " make that folder, or remove the link."
        )
    if run_id is None and not _journal_of(wanted):
        _refuse_anew(output, wanted, named, if_exists)
    return wanted


def _wanted(output: str, given: str | None, named: str | None) -> str:
    if given is not None:
        return text_path(given, "run directory")
    return beside(output) if named is None else named


def _refuse_anew(output: str, wanted: str, named: str | None, if_exists: str) -> None:
    """A new run where the output has one already, as far as its pointer or its folder tells. Raises ConfigError."""
    if named is not None and _journal_of(named):
        raise ConfigError(
            f"The run of {output} is in {named}, as {beside(output)} says, not in {wanted}; leave --run-dir out to go on with it,"
            " or use another -o."
        )
    if named is not None:
        raise ConfigError(
            f"{beside(output)} says that the run of {output} is in {named}, where no run is now; mount its disk again, or restore"
            f" it, or find its batches again with its --run-id and an empty --run-dir; to start anew and pay again, remove"
            f" {beside(output)}."
        )
    if if_exists != "overwrite" and os.path.abspath(beside(output)) != wanted and _journal_of(beside(output)):
        raise ConfigError(
            f"The run of {output} is in {beside(output)}, not in {wanted}; leave --run-dir out to go on with it, or use another -o."
        )


def _journal_of(folder: str) -> bool:
    return RunFiles(folder).has_journal()


def point(output: str, folder: str) -> None:
    """Leave the pointer to a run that does not lie beside its output. Raises StorageError."""
    if output != "-" and os.path.abspath(beside(output)) != folder and not os.path.isdir(beside(output)):
        write_atomic(beside(output), f"{folder}\n".encode())
