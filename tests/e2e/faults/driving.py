"""A scenario, driven through the engine: the real client, a local server of its own on loopback, and all that was seen.

Every promise that holds for all scenarios is checked here; what a scenario says of itself is compared by `mismatches`.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import msgspec
import pytest
import xxhash

from streambatch import api
from streambatch.config import Config, Mode
from streambatch.core.report import Progress
from streambatch.core.retry import RetryPolicy
from streambatch.core.shaping import ROWS as EMIT_ROWS
from streambatch.edge import content, http
from streambatch.edge.client import BatchApi, HttpBatchApi
from streambatch.edge.clock import SystemClock
from streambatch.edge.files import RunFiles
from streambatch.edge.journal import Store, read_only
from streambatch.edge.retrying import RetryingApi
from streambatch.engine import run as run_engine
from streambatch.engine.context import Listener, Notice
from streambatch.errors import StreambatchError
from streambatch.testing import LocalServer, local_server
from tests.e2e import rig
from tests.e2e.faults.scenario import SECRET, Ended, Scenario, Visit, told

QUICK = RetryPolicy(first_wait_s=0.02, max_wait_s=0.1, max_elapsed_s=20.0)
PATIENCE_S = 60.0  # of a test with one visit


class Seen(msgspec.Struct, frozen=True):
    """What came of a scenario."""

    visits: tuple[Visit, ...]
    failed: tuple[tuple[str, str, int], ...]
    again: int
    billed: int
    executed: int
    hits: tuple[int, ...]


def drive(scenario: Scenario, folder: Path) -> Seen:
    """Make all visits of a scenario. Raises AssertionError where a promise is broken."""
    with _impatient(scenario.stall_s):
        return anyio.run(_drive, scenario, folder)


async def _drive(scenario: Scenario, folder: Path) -> Seen:
    """The server ends before the loop does: a connection that it does not read from is closed with it."""
    with local_server(seed=7, speed=500, faults=scenario.script) as server:
        seen = await _Course(scenario, folder, server).run()
    if scenario.stall_s is not None:
        await anyio.sleep(0.02)
    return seen


@contextlib.contextmanager
def _impatient(stall_s: float | None) -> Iterator[None]:
    """The client's patience with a silent service, which no user can wait for in a test."""
    with pytest.MonkeyPatch.context() as patch:
        if stall_s is not None:
            quick = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=stall_s)
            patch.setattr(http, "JSON_CALL", quick)
            patch.setattr(content, "TIMEOUT", quick)
        yield


class _Course:
    """One scenario on its way."""

    def __init__(self, scenario: Scenario, folder: Path, server: LocalServer) -> None:
        self._scenario = scenario
        self._folder = folder
        self._server = server
        self._hits: Counter[int] = Counter()
        self._source = rig.write_requests(
            folder / "in.jsonl", scenario.rows, extra="x" * scenario.extra_bytes if scenario.extra_bytes else ""
        )
        changes = {"retry": QUICK, "poll_interval_s": 0.03, **scenario.config}
        config = rig.config(folder, [self._source], server.url, server.api_key, **changes)
        service = msgspec.structs.replace(config.service, api_key=_key_of(scenario.keys, server.api_key))
        self._config = msgspec.structs.replace(config, service=service)

    async def run(self) -> Seen:
        seen = []
        for visit in self._scenario.visits:
            if visit.mend:
                self._count_hits()
                self._server.set_faults(None)
            with anyio.fail_after(PATIENCE_S):
                seen.append(await self._visit(visit))
        self._count_hits()
        finished = seen[-1].state == "finished"
        self._check_files(finished=finished)
        ledger = self._server.ledger()
        return Seen(
            tuple(seen),
            tuple((*kind, count) for kind, count in sorted(self._failed(finished).items())),
            ledger["rows_executed_again"],
            self._totals().get("missing", 0),
            ledger["rows_executed"],
            tuple(self._hits[n] for n in sorted(self._hits)),
        )

    async def _visit(self, visit: Visit) -> Visit:
        """One call of the command: what it says, and what is true at that moment."""
        try:
            mode = Mode.CANCEL if visit.cancel else Mode.RUN
            summary = await run_engine(self._config, self._connect, self._listener(visit), mode=mode)
            state, code, says = summary.state, summary.exit_code, summary.message
        except StreambatchError as error:
            state, code, says = "error" if error.exit_code == 2 else "stopped", error.exit_code, str(error)
        done = self._totals().get("done", 0)
        _check_sentence(says)
        self._check_secrets(says)
        if (self._folder / "out.jsonl.run" / "journal.sqlite").exists():
            rig.check_journal(self._config)
        return Visit(state=state, code=code, says=says, done=done)

    def _listener(self, visit: Visit) -> Listener:
        """Nobody, or a user who asks for the cancel from outside, as the command `cancel` does."""

        def listen(notice: Notice) -> None:
            after_s = visit.cancel_after_s
            if after_s is not None and isinstance(notice, Progress) and notice.elapsed_s >= after_s:
                RunFiles(self._config.run_dir).cancel.touch()

        return listen

    @contextlib.asynccontextmanager
    async def _connect(self, config: Config) -> AsyncIterator[BatchApi]:
        """As the library connects, but for the patience."""
        stall_s = self._scenario.stall_s
        if stall_s is None:
            async with api.connect(config) as plain:
                yield plain
            return
        inner = RetryingApi(HttpBatchApi(config.service, stall_s=stall_s), config.retry, SystemClock(), lambda: 0.5)
        try:
            yield inner
        finally:
            await inner.aclose()

    def _count_hits(self) -> None:
        for n, hits in enumerate(hits for table in self._server.fault_hits().values() for hits in table):
            self._hits[n] += hits

    def _totals(self) -> dict[str, int]:
        if not (self._folder / "out.jsonl.run" / "journal.sqlite").exists():
            return {}
        with read_only(f"{self._config.run_dir}/journal.sqlite") as store:
            return Store.totals(store)

    # -- what holds for every scenario

    def _check_files(self, *, finished: bool) -> None:
        """Every row has exactly one outcome, in input order, made for its own question; of an unfinished run, those so far."""
        folder = Path(self._config.run_dir)
        output = Path(self._config.output) if finished else folder / "output.part"
        failed = [line["custom_id"] for line in self._errors(finished)]
        ids = list(self._questions)
        lines = rig.read_lines(output) if output.exists() else []
        answered = [self._check_answer(line, failed) for line in lines]
        with_rows = self._config.asked.emit == EMIT_ROWS
        wanted = [custom_id for custom_id in ids if with_rows or custom_id not in failed]
        assert answered == (wanted if finished else wanted[: len(answered)])
        assert failed == [custom_id for custom_id in ids if custom_id in failed]
        if not finished:
            assert not Path(self._config.output).exists(), "OUTPUT appears when the run is finished"

    def _check_answer(self, line: bytes, failed: list[str]) -> str:
        """Whose row a line of OUTPUT is, once its answer is the right one."""
        row = json.loads(line)
        custom_id: str = row["custom_id"]
        question = self._questions[custom_id]
        if self._config.asked.emit == EMIT_ROWS:
            text, why = row["answer"], row["answer_error"]
            assert (text is None) == (why is not None)
        else:
            body = row["response"]["body"]
            body = json.loads(body) if isinstance(body, str) else body
            choices = body.get("choices")
            text = choices[0]["message"]["content"] if choices else None
        silent = self._scenario.silent and re.search(self._scenario.silent, custom_id)
        if silent or custom_id in failed:
            assert text is None
        else:
            right = text.startswith(xxhash.xxh3_64_hexdigest(question.encode()))
            assert right == (not self._scenario.odd or re.search(self._scenario.odd, custom_id) is None), custom_id
        return custom_id

    @cached_property
    def _questions(self) -> dict[str, str]:
        requests = (json.loads(line) for line in rig.read_lines(self._source))
        return {request["custom_id"]: request["body"]["messages"][-1]["content"] for request in requests}

    def _errors(self, finished: bool) -> list[dict[str, Any]]:
        path = Path(f"{self._config.output}.errors") if finished else Path(self._config.run_dir, "errors.part")
        return [json.loads(line) for line in rig.read_lines(path)] if path.exists() else []

    def _failed(self, finished: bool) -> Counter[tuple[str, str]]:
        return Counter((line["class"], line["reason"]) for line in self._errors(finished))

    def _check_secrets(self, says: str) -> None:
        """No key, ours or one that the service tells, in what is said or kept."""
        folder = Path(self._config.run_dir)
        kept = [path.read_bytes() for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
        for secret in (self._server.api_key, SECRET):
            assert secret not in says
            assert not any(secret.encode() in data for data in kept)


def _check_sentence(says: str) -> None:
    assert says.endswith("."), says
    assert "\n" not in says
    assert "Traceback" not in says


def _key_of(keys: str, key: str) -> str | Callable[[], str]:
    if keys == "fixed":
        return key
    given = iter(["sk-expired-01234567"] if keys == "renewed" else [])
    return lambda: next(given, key)


# -- a scenario's own word


def mismatches(scenario: Scenario, seen: Seen) -> list[str]:
    """Where what was seen is not what the scenario says; nothing where all is as told."""
    found = [
        f"visit {n}: {got} is not {wanted}"
        for n, (wanted, got) in enumerate(zip(scenario.visits, seen.visits, strict=True), 1)
        if not _as_told(wanted, got)
    ]
    executed = scenario.rows + scenario.again if scenario.executed is None else scenario.executed
    figures = {"again": scenario.again, "billed": scenario.billed, "executed": executed}
    found += [f"{name}: {getattr(seen, name)} is not {n}" for name, n in figures.items() if getattr(seen, name) != n]
    if not _fail_as_told(scenario.failed, seen.failed):
        found.append(f"errors: {seen.failed} are not {scenario.failed}")
    if not all(seen.hits) or sum(seen.hits) < scenario.least:
        found.append(f"the fault did not fire: {seen.hits}")
    return found


def _as_told(wanted: Visit, got: Visit) -> bool:
    same = (wanted.state, wanted.code) == (got.state, got.code) and wanted.done in (None, got.done)
    return same and told(wanted.says).fullmatch(got.says) is not None


def _fail_as_told(wanted: tuple[Ended, ...], got: tuple[tuple[str, str, int], ...]) -> bool:
    """Every error is of one of the kinds that the scenario names, and of each there are as many as it says."""
    counts: Counter[Ended] = Counter()
    for row_class, reason, count in got:
        kind = next((x for x in wanted if x.row_class == row_class and told(x.reason).fullmatch(reason)), None)
        if kind is None:
            return False
        counts[kind] += count
    return counts == Counter({kind: kind.rows for kind in wanted})
