"""purge(): the library's function, and its twin without an event loop: arguments -> Config -> engine -> receipt.

What may be deleted is decided in `core.purging`.
"""

import os
from functools import partial
from typing import Unpack

import anyio

from streambatch.api import Path, ReachOptions, connect
from streambatch.configure import check_folder, resume
from streambatch.core.purging import PurgedFile, Receipt
from streambatch.edge.files import write_atomic
from streambatch.edge.service import Service
from streambatch.engine import inspect
from streambatch.engine.purging import Asked
from streambatch.engine.purging import purge as purge_run
from streambatch.options import parse_all
from streambatch.reports import document
from streambatch.syncing import need_asyncio, own_loop


async def purge(
    run: Path,
    *,
    local: bool = False,
    dry_run: bool = False,
    all: bool = False,  # noqa: A002  the flag's name
    receipt: Path | None = None,
    service: Service | None = None,
    **options: Unpack[ReachOptions],
) -> Receipt:
    """Delete a run's files at the service: input, output and error files of rows that are merged.

    `run` is a run directory or an output. `all` takes also what is not merged: results that were not collected are then lost.
    `local` removes the run's own state afterwards (never the output), where nothing is left at the service and the run is
    finished, or with `all`. `dry_run` deletes nothing and tells what would be deleted. `receipt` is a file that gets the
    receipt as JSON. Files that batches in flight need always stay. Where the service stopped half-way, the receipt's
    `exit_code` is 3: the same call goes on.

    Raises ConfigError where another process has the run, ApiError, JournalError or StorageError.
    """
    need_asyncio("purge_sync")
    if receipt is not None:
        check_folder(os.fspath(receipt), "receipt")
    folder = inspect.find_run_dir(os.fspath(run))
    config = resume(*inspect.started(folder), folder, parse_all(options), os.environ, service)
    made = await purge_run(config, connect, Asked(dry_run=dry_run, everything=all, local=local))
    if receipt is not None:
        await anyio.to_thread.run_sync(write_atomic, os.fspath(receipt), document(made))
    return made


def purge_sync(
    run: Path,
    *,
    local: bool = False,
    dry_run: bool = False,
    all: bool = False,  # noqa: A002  the flag's name
    receipt: Path | None = None,
    service: Service | None = None,
    **options: Unpack[ReachOptions],
) -> Receipt:
    """`purge` without an event loop."""
    return own_loop(
        partial(purge, run, local=local, dry_run=dry_run, all=all, receipt=receipt, service=service, **options)
    )


__all__ = ["PurgedFile", "Receipt", "purge", "purge_sync"]
