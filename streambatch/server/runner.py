"""One thread that moves every batch through its states: by time, a slice of work at a turn, in turn.

The database is the only truth: each turn reads a batch anew and commits what it did.
"""

import logging
import math
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from streambatch.server import rules
from streambatch.server.execution import Execution, chunk_rows, results_name
from streambatch.server.faults import Faults
from streambatch.server.records import LIVE, NEVER, Batch, File
from streambatch.server.script import Advance
from streambatch.server.settings import Settings
from streambatch.server.store import Store
from streambatch.server.told import full_queue, in_words_of, scripted
from streambatch.server.turns import Turns
from streambatch.server.validation import Told, Verdict
from streambatch.server.validations import Validations

RETRY_S = 1.0  # after a disk that failed
IDLE_S = 60.0
OUTPUT_EXPIRY_S = 2_592_000
ENDINGS = {rules.Expire: ("finalizing", "expired"), rules.CancelAt: ("cancelling", "cancelled")}
Rule = TypeVar("Rule", bound=rules.Batches)
log = logging.getLogger("streambatch.server")


class Runner:
    """Executes batches. `admit` and `cancelled` are called from other threads; all the rest happens in its own."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        execution: Execution,
        faults: Callable[[], Faults],
        ended: Callable[[], None],
    ) -> None:
        self._settings, self._store, self._execution, self._faults = settings, store, execution, faults
        self._contents = settings.data_dir / "contents"
        self._ended = ended
        self._turns = Turns()
        self._rules: dict[int, list[rules.BatchRule]] = {}
        self._stuck: set[tuple[int, str]] = set()
        self._looks: Counter[tuple[int, str]] = Counter()
        self._validations = Validations(self._contents, store, self._turns, faults, settings.service)
        self._thread = threading.Thread(target=self._run, name="streambatch-server-runner", daemon=True)
        self._steps: dict[str, Callable[[Batch], float | None]] = {
            "validating": self._validating,
            "in_progress": self._in_progress,
            "finalizing": self._finalizing,
            "cancelling": self._cancelling,
        }

    # ------------------------------------------------------------ from other threads

    def recover(self) -> None:
        """Plan for every batch that an earlier process left before its end."""
        for seq in self._store.live_batches():
            batch = self._store.batch(seq)
            metadata = {} if batch.metadata is None else msgspec.json.decode(batch.metadata)
            self.admit(batch, self._faults().batch(metadata.get("streambatch", "")))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the slice of work at hand."""
        self._turns.close()
        if self._thread.ident is not None:
            self._thread.join()
        self._validations.close()

    def admit(self, batch: Batch, met: list[rules.BatchRule]) -> None:
        """A batch to bring to its end, and the rules of the script that hit it."""
        self._rules[batch.key] = met
        if batch.status == "validating":
            self._validations.add(batch.key, self._pause("validating"))
        else:
            self._turns.plan(batch.key, self._pause(batch.status))

    def cancelled(self, batch: Batch) -> None:
        """The batch is now `cancelling`."""
        self._turns.plan(batch.key, self._pause("cancelling"))

    def looked(self, batch: Batch) -> None:
        """A client was shown the batch as it is; counts where the script advances batches by looks."""
        if batch.status not in LIVE or self._advance.by != "looks":
            return
        self._looks[batch.key, batch.status] += 1
        endless = [rule for rule in self._rules_of(batch, rules.Stuck) if rule.seconds is None]
        if batch.status not in [rule.state for rule in endless]:
            self._turns.plan_if_none(batch.key, 0.0)

    # ------------------------------------------------------------------- its own loop

    def _run(self) -> None:
        while not self._turns.closed:
            busy = self._validate()
            seq = self._turns.take()
            if seq is not None:
                self._turn(seq)
                time.sleep(0)  # let the threads that talk to clients have their turn
            elif not busy:
                self._turns.rest(IDLE_S)

    def _validate(self) -> bool:
        try:
            return self._validations.work()
        except Exception:  # whatever it is, the other batches go on
            log.exception("a validation failed")
            time.sleep(RETRY_S)
            return True

    def _turn(self, seq: int) -> None:
        """One step of one batch. Where that fails the batch stays as it is, and is tried again."""
        try:
            pause = self._step(seq)
        except (OSError, sqlite3.Error) as error:
            log.warning("batch %d waits: %s", seq, error)
            pause = RETRY_S
        except Exception:
            log.exception("batch %d waits", seq)
            pause = RETRY_S
        if pause is None:
            self._forget(seq)
        elif not math.isinf(pause):
            self._turns.plan_if_none(seq, pause)

    def _step(self, seq: int) -> float | None:
        """Seconds to the next step; infinite if somebody else will plan it, None at the end."""
        batch = self._store.batch(seq)
        if batch.status not in LIVE:
            return None
        held = self._held(batch)
        return held if held is not None else self._steps[batch.status](batch)

    def _forget(self, seq: int) -> None:
        self._rules.pop(seq, None)
        self._validations.forget(seq)
        for status in LIVE:
            self._stuck.discard((seq, status))
            self._looks.pop((seq, status), None)

    @property
    def _advance(self) -> Advance:
        return self._faults().script.advance

    @property
    def _event(self) -> int:
        """Whether somebody waits to be told of a batch's end, as the database has it."""
        return int(self._settings.webhook_url is not None)

    def _pause(self, status: str) -> float:
        given = self._settings
        durations = {
            "validating": given.validating_s, "finalizing": given.finalizing_s, "cancelling": given.cancelling_s,
        }  # fmt: skip
        return durations.get(status, 0.0) / given.speed if self._advance.by == "time" else 0.0

    def _unseen(self, batch: Batch) -> bool:
        """Whether the script wants the batch to be looked at more often before it leaves its state."""
        advance = self._advance
        return advance.by == "looks" and self._looks[batch.key, batch.status] < advance.n

    def _held(self, batch: Batch) -> float | None:
        """How long a script keeps the batch in its state; None if it doesn't, or did so already."""
        mark = (batch.key, batch.status)
        seconds = [_endless(rule.seconds) for rule in self._rules_of(batch, rules.Stuck) if rule.state == batch.status]
        if not seconds or mark in self._stuck:
            return None
        self._stuck.add(mark)
        return max(seconds)

    def _rules_of(self, batch: Batch, kind: type[Rule]) -> list[Rule]:
        return [rule for rule in self._rules.get(batch.key, []) if isinstance(rule, kind)]

    # ----------------------------------------------------------------- one step a state

    def _validating(self, batch: Batch) -> float | None:
        verdict = self._validations.verdict(batch.key)
        if verdict is None or self._unseen(batch):
            return math.inf
        now = int(time.time())
        told = self._refusals(batch, verdict)
        if told:
            errors = {"object": "list", "data": [in_words_of(self._settings.service, entry) for entry in told]}
            text = msgspec.json.encode(errors).decode()
            self._change(batch, status="failed", failed_at=now, errors=text, model=verdict.model, event_due=self._event)
            self._release(batch)
            self._ended()
            return None
        admitted = {"total": verdict.total, "model": verdict.model, "queued_tokens": verdict.tokens}
        self._change(batch, status="in_progress", in_progress_at=now, **admitted)
        return self._work_s(chunk_rows(verdict.total))

    def _refusals(self, batch: Batch, verdict: Verdict) -> tuple[Told, ...]:
        by_script = tuple(scripted(rule, verdict, self._settings.service) for rule in self._rules_of(batch, rules.Fail))
        if by_script or verdict.errors:
            return by_script + verdict.errors
        tokens, rows = self._store.queued(verdict.model)
        full = full_queue(verdict, batch.endpoint, self._settings, tokens, rows)
        return () if full is None else (full,)

    def _in_progress(self, batch: Batch) -> float | None:
        if time.time() >= batch.expires_at and self._settings.service.expires:
            return self._end(batch, "finalizing", "expired")
        rows = min(chunk_rows(batch.total), batch.total - batch.row)
        for rule in self._rules_of(batch, rules.Expire) + self._rules_of(batch, rules.CancelAt):
            rows = min(rows, math.floor(rule.at * batch.total) - batch.row)
            if rows <= 0:
                return self._end(batch, *ENDINGS[type(rule)])
        if rows <= 0:
            return self._end(batch, "finalizing", "")
        done = self._execution.execute(batch, rows, self._faults())
        self._store.update(batch.key, LIVE, **done)
        executed: int = done["row"] - batch.row
        return self._work_s(executed)

    def _work_s(self, rows: int) -> float:
        """How long so many rows take. The first are waited for before, too: a batch is seen in progress with none done."""
        return rows / (self._settings.rows_per_s * self._settings.speed) if self._advance.by == "time" else 0.0

    def _end(self, batch: Batch, status: str, ending: str) -> float:
        """No more rows are executed from here."""
        if self._unseen(batch):
            return math.inf
        self._change(batch, status=status, ending=ending, **{f"{status}_at": int(time.time())})
        return self._pause(status)

    def _finalizing(self, batch: Batch) -> float | None:
        return self._wind_up(batch, batch.ending) if batch.ending else self._finish(batch, "completed")

    def _cancelling(self, batch: Batch) -> float | None:
        return self._wind_up(batch, "cancelled")

    def _wind_up(self, batch: Batch, status: str) -> float | None:
        """Tell of the rows that were not executed, a chunk at a time, then end."""
        if batch.row >= batch.total or self._rules_of(batch, rules.LeaveOut):
            return self._finish(batch, status)
        self._store.update(batch.key, LIVE, **self._execution.leave(batch, chunk_rows(batch.total)))
        return 0.0

    def _change(self, batch: Batch, **columns: Any) -> None:
        """A change of state, unless a cancel came first."""
        self._store.update(batch.key, (batch.status,), **columns)

    # ------------------------------------------------------------------------ its end

    def _finish(self, batch: Batch, status: str) -> float | None:
        if self._unseen(batch):
            return math.inf
        now = int(time.time())
        sizes = [("output", batch.output_bytes, batch.output_rows), ("error", batch.error_bytes, batch.error_rows)]
        empty = (
            "error" if self._rules_of(batch, rules.EmptyErrorFile) or self._settings.service.always_error_file else None
        )
        files = {
            which: self._result_file(batch, which, size, rows, now)
            for which, size, rows in sizes
            if rows or which == empty
        }
        ids = {f"{which}_file_id": file.id for which, file in files.items()}
        columns = {"status": status, f"{status}_at": now, "event_due": self._event} | ids
        if not self._store.finish(batch.key, batch.status, list(files.values()), **columns):
            return 0.0  # it was cancelled this very moment
        self._release(batch)
        self._ended()
        return None

    def _result_file(self, batch: Batch, which: str, size: int, rows: int, now: int) -> File:
        late = [_endless(rule.seconds) for rule in self._rules_of(batch, rules.LateFiles)]
        gone = [rule.seconds for rule in self._rules_of(batch, rules.FilesGone) if not rule.input]
        bare = 1 if size and self._rules_of(batch, rules.NoNewline) else 0
        content = results_name(batch.key, which)
        (self._contents / content).touch(mode=0o600)
        expires_s = OUTPUT_EXPIRY_S if batch.output_expires_s is None else batch.output_expires_s
        return File(
            seq=None, id=self._settings.service.file_id(), filename=f"{batch.id}_{which}.jsonl", purpose="batch_output",
            bytes=size - bare, created_at=now, expires_at=now + expires_s, content=content, rows=rows, run=batch.run,
            visible_at=time.time() + max(late) if late else 0.0, gone_at=time.time() + min(gone) if gone else NEVER,
            extra_bytes=sum(rule.off for rule in self._rules_of(batch, rules.WrongBytes)),
        )  # fmt: skip

    def _release(self, batch: Batch) -> None:
        """An input that was deleted while it was read can go now."""
        if (
            batch.input_content
            and not self._store.is_kept(batch.input_content)
            and not self._store.is_read(batch.input_content)
        ):
            (self._contents / batch.input_content).unlink(missing_ok=True)


def _endless(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds
