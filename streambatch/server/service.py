"""One server's parts on one data directory: database, runner, answerer, script. What the HTTP handlers act on."""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, Any

from streambatch.errors import ConfigError
from streambatch.server.accounts import sums
from streambatch.server.answers import Answerer
from streambatch.server.execution import Execution
from streambatch.server.faults import Faults
from streambatch.server.ledger import count_again
from streambatch.server.quota import Quota
from streambatch.server.runner import Runner
from streambatch.server.script import Script
from streambatch.server.settings import Settings
from streambatch.server.store import Store
from streambatch.server.webhooks import Webhooks

HOUR_S, MINUTE_S = 3_600.0, 60.0
Own = Callable[[dict[str, Any]], str | dict[str, Any]]


class Service:
    """Holds the data directory from `start` to `stop`. Raises `ConfigError` where it can't be used."""

    def __init__(self, settings: Settings, script: Script, own: Own | None) -> None:
        self.settings = settings
        self.faults = Faults(script)
        self.contents = settings.data_dir / "contents"
        self._ledger = settings.data_dir / "ledger"
        self._counting = threading.Lock()
        self._hold = _hold(settings.data_dir)
        try:
            for folder in (self.contents, self._ledger):
                folder.mkdir(mode=0o700, exist_ok=True)
            self.store = Store(settings.data_dir / "server.sqlite")
        except OSError as error:
            raise ConfigError(_unusable(settings.data_dir, error)) from error
        self.creates = Quota(settings.creates_per_hour, HOUR_S / settings.speed)
        self.uploads = Quota(settings.uploads_per_minute, MINUTE_S / settings.speed)
        self.webhooks = Webhooks(settings, self.store)
        execution = Execution(self.contents, self._ledger, Answerer(settings.seed, own), settings.seed)
        self.runner = Runner(settings, self.store, execution, lambda: self.faults, self.webhooks.nudge)

    def recover(self) -> None:
        """Clear what a killed process left, and plan to go on with its batches."""
        for upload_id in self.store.dead_uploads():
            self.store.drop_parts(upload_id)
        self._sweep()
        self.creates.remember(self.store.created_since(time.time() - self.creates.span_s))
        self.runner.recover()

    def stop(self) -> None:
        self.runner.stop()
        self.webhooks.stop()
        self.store.close()
        self._hold.close()

    def ledger(self, run: str | None) -> dict[str, int]:
        """The ledger's figures. Counting what came twice reads all hashes: one count at a time."""
        with self._counting:
            totals = self.store.totals(run)
            again = count_again(self._ledger, self.store.executed(run))
        return {"rows_executed": totals.pop("rows_executed"), "rows_executed_again": again} | totals

    def ledger_rows(self, run: str | None) -> Generator[bytes, None, None]:
        """The ledger row by row, as JSON lines. Reads all that was executed as it goes."""
        return sums(self._ledger, self.store.accounts(run))

    def forget_content(self, content: str) -> None:
        """Remove a deleted file's bytes, unless a batch still reads them."""
        if not self.store.is_read(content):
            (self.contents / content).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove uploads that never became files, and what has expired. Results of live batches stay."""
        with os.scandir(self.contents) as entries:
            for entry in entries:
                working = entry.name.startswith("batch")
                if not working and not self.store.is_kept(entry.name) and not self.store.is_read(entry.name):
                    os.unlink(entry)


def _hold(data_dir: Path) -> IO[bytes]:
    """Lock the data directory for this process, until the file is closed or the process ends."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (data_dir / "lock").open("ab")
    except OSError as error:
        raise ConfigError(_unusable(data_dir, error)) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ConfigError(f"The data directory {data_dir} is in use by another server.") from error
    return file


def _unusable(data_dir: Path, error: OSError) -> str:
    return f"The data directory {data_dir} can't be used: {error.strerror}."
