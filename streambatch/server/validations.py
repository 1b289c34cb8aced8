"""The queue of validations: one file at a time, a slice of lines at a turn; memory does not grow with the number of batches.

Used by the runner's thread; `add` by others too.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from streambatch.server.faults import Faults
from streambatch.server.profiles import Profile
from streambatch.server.store import Store
from streambatch.server.turns import Turns
from streambatch.server.validation import Validation, Verdict, cannot_find

SLICE_LINES = 500
log = logging.getLogger("streambatch.server")


class Validations:
    """Verdicts on new batches; plans a batch's turn once there is one, not before it is due."""

    def __init__(
        self, contents: Path, store: Store, turns: Turns, faults: Callable[[], Faults], profile: Profile
    ) -> None:
        self._contents, self._store, self._turns, self._faults = contents, store, turns, faults
        self._profile = profile
        self._waiting: deque[tuple[int, float]] = deque()
        self._now: tuple[int, float, Validation] | None = None
        self._verdicts: dict[int, Verdict] = {}

    def add(self, seq: int, least_s: float) -> None:
        """Validate this batch; its verdict counts from then."""
        self._waiting.append((seq, time.monotonic() + least_s))
        self._turns.nudge()

    def verdict(self, seq: int) -> Verdict | None:
        return self._verdicts.get(seq)

    def forget(self, seq: int) -> None:
        self._verdicts.pop(seq, None)

    def close(self) -> None:
        if self._now is not None:
            self._now[2].close()

    def work(self) -> bool:
        """Look at some more lines; whether there was anything to do."""
        if self._now is None:
            return self._begin()
        seq, due, validation = self._now
        try:
            verdict = validation.step(SLICE_LINES)
        except OSError as error:
            verdict = self._unreadable(seq, error)
        if verdict is not None:
            self._now = None
            self._judge(seq, due, verdict)
        return True

    def _begin(self) -> bool:
        if not self._waiting:
            return False
        seq, due = self._waiting[0]
        batch = self._store.batch(seq)
        file = self._store.file(batch.input_file_id)
        if batch.status != "validating" or file is None or file.purpose not in self._profile.batch_purposes:
            self._judge(seq, due, cannot_find(batch.input_file_id))
        elif self._store.update(seq, ("validating",), input_content=file.content):
            models = self._faults().script.models
            self._open(seq, due, Path(file.content), batch.endpoint, None if models is None else tuple(models))
        self._waiting.popleft()
        return True

    def _open(self, seq: int, due: float, content: Path, endpoint: str, models: tuple[str, ...] | None) -> None:
        try:
            self._now = (seq, due, Validation(self._contents / content, endpoint, models, self._profile))
        except OSError as error:
            self._judge(seq, due, self._unreadable(seq, error))

    def _unreadable(self, seq: int, error: OSError) -> Verdict:
        log.warning("batch %d: its input can't be read: %s", seq, error)
        return cannot_find(self._store.batch(seq).input_file_id)

    def _judge(self, seq: int, due: float, verdict: Verdict) -> None:
        self._verdicts[seq] = verdict
        self._turns.plan(seq, max(0.0, due - time.monotonic()))
