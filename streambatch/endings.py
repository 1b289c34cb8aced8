"""The summary of a visit that did not bring one back: interrupted, stopped by an error, or never begun.

Reads what the run's journal says, if there is one; shared by the library and the command line.
"""

import contextlib
import os

import msgspec

from streambatch.core.models import Usage
from streambatch.core.report import Summary
from streambatch.edge.journal import read_only
from streambatch.engine import inspect
from streambatch.errors import ConfigError, JournalError, Paused, SourceError, StreambatchError


def of_error(error: StreambatchError, output: str, run_dir: str, command: str | None) -> Summary:
    """The summary of a visit that ended with this error."""
    state = (
        "paused"
        if isinstance(error, Paused)
        else "error"
        if isinstance(error, ConfigError | SourceError)
        else "stopped"
    )
    goes_on = None if isinstance(error, ConfigError) else command  # after a ConfigError another command is needed
    summary = as_far_as_known(state, error.exit_code, str(error), output, run_dir, goes_on)
    begun = summary.run_id or not isinstance(error, JournalError | SourceError)
    return summary if begun else msgspec.structs.replace(summary, next_command=None)  # the error says what to do


def as_far_as_known(state: str, code: int, message: str, output: str, run_dir: str, command: str | None) -> Summary:
    """What the journal says of a run, with this ending; zeroes where there is no journal, or none that can be read."""
    journal = os.path.join(run_dir, "journal.sqlite")
    if os.path.isfile(journal):
        with (
            contextlib.suppress(StreambatchError),
            read_only(journal) as store,
        ):  # the ending to tell of is the first one
            began, now = store.span()
            return inspect.summary(
                store,
                output=output,
                run_dir=run_dir,
                state=state,
                exit_code=code,
                message=message,
                next_command=command,
                elapsed_s=now - began,
            )
    return _nothing(state, code, message, output, run_dir, command)


def _nothing(state: str, code: int, message: str, output: str, run_dir: str, command: str | None) -> Summary:
    return Summary(
        schema_version=inspect.SCHEMA_VERSION,
        run_id="",
        state=state,
        exit_code=code,
        message=message,
        next_command=command,
        output=output,
        errors=None,
        run_dir=run_dir,
        rows=0,
        done=0,
        failed=0,
        skipped=0,
        left=0,
        retried=0,
        possibly_billed=0,
        reasons=(),
        segments=0,
        shards=0,
        batches=0,
        in_flight=0,
        usage=Usage(),
        elapsed_s=0.0,
    )
