"""One visit to a run from the command line: the engine under a listener and under signals, then its report.

Shared by `run` and `cancel`. The first signal stops the engine, which closes its journal; the second leaves at once.
"""

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn

import anyio
import anyio.abc
import msgspec

from streambatch import endings, progress
from streambatch.cli import ending
from streambatch.core.report import Summary
from streambatch.errors import StreambatchError
from streambatch.reports import tell

PATIENCE_S = 9.0  # a stop that takes longer is cut short: what was journaled is safe
Engine = Callable[[progress.Listener], Awaitable[Summary]]


class Ended(msgspec.Struct):
    """How work ended: with a summary, by a signal, or by an error."""

    summary: Summary | None = None
    signum: signal.Signals | None = None
    error: Exception | None = None


class Place(NamedTuple):
    """Which run, and the command that goes on with it. `local`: its service is the embedded server."""

    output: str
    run_dir: str
    command: str
    local: bool

    def known(self, state: str, code: int, message: str) -> Summary:
        """The run's summary from its journal, with this ending."""
        return endings.as_far_as_known(state, code, message, self.output, self.run_dir, self.command)


def visit(place: Place, engine: Engine, values: dict[str, Any], interrupted: int | None = None) -> NoReturn:
    """Let the engine work, then report and leave with the exit code; `interrupted` is the code of a stop by a signal."""
    with progress.listener(quiet=values.get("quiet", False), log_format=values.get("log_format", "text")) as listener:
        end = anyio.run(until_signal, partial(engine, listener))
    if end.signum is not None and end.summary is None:
        code = 128 + end.signum if interrupted is None else interrupted
        report(place.known("interrupted", code, _SIGNALS[end.signum]), values, local=place.local)
    report(_summary(place, end), values, local=place.local)


_SIGNALS = {signal.SIGINT: "Interrupted.", signal.SIGTERM: "Stopped by SIGTERM."}


def _summary(place: Place, end: Ended) -> Summary:
    if isinstance(end.error, StreambatchError):
        return endings.of_error(end.error, place.output, place.run_dir, place.command)
    if end.error is not None:
        return place.known("error", ending.BUG, ending.bug_sentence(end.error, place.run_dir))
    assert end.summary is not None
    return end.summary


def report(summary: Summary, values: dict[str, Any], *, local: bool) -> NoReturn:
    """The summary, where it was asked for, and the process's end. What was refused has no figures of its own to show."""
    refused = summary.state == "error" and summary.next_command is None
    if summary.run_id and not refused and not values.get("quiet") and values.get("log_format") != "json":
        progress.put(sys.stderr, progress.summary_text(summary))
    tell(summary, values)
    ending.leave(summary.exit_code, progress.closing_sentence(summary, local=local) if summary.exit_code else "")


# -- signals


async def until_signal(work: Callable[[], Awaitable[Summary]]) -> Ended:
    """Work under SIGINT and SIGTERM. Errors come back as values, so that no group wraps them."""
    end = Ended()
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            await tasks.start(_watch, tasks, scope, end)
            try:
                end.summary = await work()
            except Exception as error:  # noqa: BLE001  told by the caller, whatever it is
                end.error = error
        tasks.cancel_scope.cancel()
    return end


async def _watch(
    tasks: anyio.abc.TaskGroup, scope: anyio.CancelScope, end: Ended, *, task_status: anyio.abc.TaskStatus[None]
) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for signum in signals:
            if end.signum is not None:
                os._exit(128 + signum)
            end.signum = signum
            scope.cancel()
            tasks.start_soon(_lose_patience, signum)


async def _lose_patience(signum: signal.Signals) -> None:
    await anyio.sleep(PATIENCE_S)
    ending.say("Stopped before the engine had closed everything; its journal is safe and the same command resumes.")
    os._exit(128 + signum)
