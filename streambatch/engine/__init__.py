"""run(): the composition root. Takes the lock and the journal of a run, and lets one session work on it."""

import contextlib
import os
from collections.abc import Callable
from typing import cast

from streambatch.config import Config, Mode
from streambatch.core import events as e
from streambatch.core.report import Summary
from streambatch.edge import failpoints
from streambatch.edge.files import RunFiles
from streambatch.edge.journal import Journal, Store
from streambatch.edge.locking import RunLock
from streambatch.edge.serial import Serials
from streambatch.engine import inspect, opening
from streambatch.engine.context import Listener
from streambatch.engine.house import REAL, Connect, House
from streambatch.engine.session import Session

__all__ = ["REAL", "Connect", "House", "Listener", "Mode", "run"]


async def run(
    config: Config, connect: Connect, on_event: Listener | None = None, *, mode: Mode = Mode.RUN, house: House = REAL
) -> Summary:
    """One visit to one run: from where it stands to its end, or to where it must wait for someone.

    Raises StreambatchError (the exit code is its `exit_code`); what was journaled before is kept.
    """
    began = house.clock.monotonic()
    files = RunFiles(config.run_dir)
    if config.if_exists == "skip" and not files.has_journal() and os.path.exists(config.output):
        return _skipped(config)
    with contextlib.closing(Serials(config.rows, house.patient)) as serials:
        return await _run(config, connect, on_event, mode, house, files, serials, began)


async def _run(
    config: Config,
    connect: Connect,
    on_event: Listener | None,
    mode: Mode,
    house: House,
    files: RunFiles,
    serials: Serials,
    began: float,
) -> Summary:
    if not files.has_journal():
        opening.refuse_existing(config)
        await opening.check_first(config, serials, house.blocking)
    opening.prepare_folder(config, files)
    lock = RunLock(files)
    lock.acquire()
    try:
        files.forget_cancel()
        points = failpoints.from_environment(os.environ)
        store = house.store(files)
        listen: Listener = on_event if on_event is not None else _deaf
        journal = Journal(store, house.blocking, cast("Callable[[e.Event], None]", listen), points)
        if house.opened is not None:
            house.opened(journal)
        try:
            return await Session(config, connect, listen, mode, house, files, store, journal, began, serials).run()
        finally:
            await journal.aclose()
    finally:
        lock.release()


def _deaf(notice: object) -> None:
    """No one listens."""


def _skipped(config: Config) -> Summary:
    store = Store(":memory:")
    with contextlib.closing(store):
        return inspect.summary(
            store,
            output=config.output,
            run_dir=config.run_dir,
            state="finished",
            exit_code=0,
            message=f"{config.output} exists; skipped.",
            next_command=None,
            elapsed_s=0.0,
        )
