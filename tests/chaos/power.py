"""Power loss: the real engine on twins, above a disk that loses what was not synced, cut off at each moment in turn, then resumed.

`python -m tests.chaos.power --seeds N`: N random lives; without it, every moment of the small scenarios.
"""

import argparse
import gzip
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import msgspec
import pytest

from streambatch.config import Config
from streambatch.core.shaping import Asked
from streambatch.edge.mounts import VARIABLE
from streambatch.errors import ApiError
from tests.chaos import verify
from tests.chaos.disk import LOSSES, Disk, Loss, Moment, PowerError
from tests.e2e import rig
from tests.twins.api import Call, MemoryBatchApi, Row
from tests.twins.clock import VirtualClock
from tests.twins.world import config, simulate, visit

VISITS = 12
MAX_REQUESTS = 5
BAD = b"no request\n"
REFUSED = "3"  # rows whose names end so


class Scenario(msgspec.Struct, frozen=True):
    """A small run: an expired batch, a create without an answer, rows that fail once or are refused, a row that is none."""

    name: str
    rows: int
    gzip: bool = False
    deep: bool = False  # the run directory lies in folders that are made for it
    alone: bool = False  # the journal's other mode


PLAIN = Scenario("plain", 14)
GZIP = Scenario("gzip", 14, gzip=True)
ELSEWHERE = Scenario("elsewhere", 9, deep=True)
ALONE = Scenario("alone", 9, alone=True)
SCENARIOS = (PLAIN, GZIP, ELSEWHERE, ALONE)
SYNCS = {
    "create folder": ELSEWHERE,
    "cut_sinks run directory": PLAIN,
    "finish .jsonl": PLAIN,
    "finish .ids": PLAIN,
    "finish .bad": PLAIN,
    "finish .origins": PLAIN,
    "sync_raw .raw": GZIP,
    "settle_names spool": PLAIN,
    "_sync_download .output": PLAIN,
    "_sync_download .error": PLAIN,
    "_downloaded spool": PLAIN,
    "_write .outcome": PLAIN,
    "_append output": PLAIN,
    "_append errors": PLAIN,
    "publish folder": PLAIN,
}  # each sync that carries safety, and a scenario that shows it: without it the harness finds something lost
BESIDE = {
    "cut_sinks output",  # what was cut off is cut off again
    "cut_sinks errors",
    "publish run directory",  # a name that comes back is the same file, and is published again
    "point out.jsonl.run",  # the pointer is written by each visit
    "point folder",
}


class Cut(msgspec.Struct, frozen=True):
    """When the power goes in each visit (a moment's number), and what is left then. `deaf`: syncs that are left out."""

    at: tuple[int, ...]
    loss: Loss = LOSSES[0]
    seed: int = 0
    deaf: frozenset[str] = frozenset()


class Life:
    """One run from its first visit to its end, through power cuts."""

    def __init__(self, scenario: Scenario, cut: Cut, folder: Path) -> None:
        self.scenario, self.cut, self.folder = scenario, cut, folder
        self.chance = random.Random(f"power {cut.seed}")
        self.moments: list[Moment] = []  # of the last visit
        self.cuts = 0

    def live(self) -> "Life":
        """Until it is finished. Raises AssertionError, StreambatchError."""
        self.source = self._write_input()
        self.disk = Disk(self.folder, deaf=self.cut.deaf)
        try:
            with pytest.MonkeyPatch.context() as patch, self.disk.mounted():
                patch.setenv(VARIABLE, "exclusive" if self.scenario.alone else "shared")
                self.asked = self._config()
                simulate(self._visits, self.cut.seed)
        finally:
            self.disk.close()
        self._check()
        return self

    def _write_input(self) -> Path:
        path = self.folder / "in.jsonl"
        rows = [rig.request_line(k) for k in range(self.scenario.rows)]
        rows.insert(3, BAD)
        data = b"".join(rows)
        path.write_bytes(gzip.compress(data, mtime=0) if self.scenario.gzip else data)
        return path

    def _config(self) -> Config:
        plain = config(self.folder, self.source, max_attempts=5)
        limits = msgspec.structs.replace(plain.limits, max_requests=MAX_REQUESTS)
        run_dir = str(self.folder / "a" / "b" / "r.run") if self.scenario.deep else plain.run_dir
        asked = Asked(emit="rows" if self.scenario.gzip else None)
        return msgspec.structs.replace(plain, limits=limits, run_dir=run_dir, asked=asked, poll_interval_s=60.0)

    async def _visits(self) -> None:
        clock = VirtualClock()
        self.api = MemoryBatchApi(
            clock,
            fault=self._fault,
            status_of=_status_of,
            expire_at=lambda name: 0.6 if name.endswith("1") else None,
            window_s=900.0,
        )
        for number in range(VISITS):
            self.disk.cut_at = self.cut.at[number] if number < len(self.cut.at) else -1
            if await self._visit(clock):
                await self._orphans()
                return
        raise AssertionError(f"not finished after {VISITS} visits")

    async def _visit(self, clock: VirtualClock) -> bool:
        """Whether it ended the run."""
        try:
            summary = await visit(self.asked, self.api, clock, self.chance)
        except BaseException as error:
            if not self.disk.off or not _is_power(error):
                raise
            self.cuts += 1
            self.moments = self.disk.moments
            self.disk.restore(self.cut.loss, self.chance)
            return False
        self.moments = self.disk.moments
        assert summary.state == "finished", f"{summary.state}: {summary.message}"
        return True

    async def _fault(self, call: Call) -> None:
        if self.disk.off:
            raise PowerError(call.name)
        await anyio.sleep(self.chance.uniform(0.0, 2.0))
        if call.name == "create_batch" and call.after and call.number == 2:
            raise ApiError("The connection was cut.", retryable=True, maybe_done=True)
        if call.name == "download" and call.after:  # as the real client does
            self._sync_download()

    def _sync_download(self) -> None:
        for path in Path(self.asked.run_dir, "spool").glob("*.part"):
            fd = os.open(path, os.O_RDWR)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    # -- what must be true

    async def _orphans(self) -> None:
        spoken = verify.spoken(f"{self.asked.run_dir}/journal.sqlite")
        unknown = [batch.id for batch in self.api.batches if not verify.is_spoken_of(batch.id, spoken)]
        assert not unknown, f"orphans: {unknown}"

    def _check(self) -> None:
        rig.check_journal(self.asked)
        ids = [json.loads(rig.request_line(k))["custom_id"] for k in range(self.scenario.rows)]
        bought = {name: times for (name, _), times in self.api.executed.items()}
        wanted = {name: 2 if _fails_once(name) else 1 for name in ids}
        assert bought == wanted, f"executed: {dict(bought.items() - wanted.items())}"
        if not self.scenario.gzip:  # there, OUTPUT has rows, with and without an answer
            got = [json.loads(line)["custom_id"] for line in rig.read_lines(self.asked.output)]
            assert got == [name for name in ids if not name.endswith(REFUSED)], f"OUTPUT: {got}"
        self.output = Path(self.asked.output).read_bytes()
        errors = Path(f"{self.asked.output}.errors").read_bytes().replace(bytes(self.folder), b"")
        self.errors = re.sub(rb'"attempts":\d+', b"", errors)  # which batch expires hangs on the order of creates


def _fails_once(name: str) -> bool:
    return name.endswith("7")


def _status_of(row: Row) -> int:
    if row.custom_id.endswith(REFUSED):
        return 400
    return 500 if _fails_once(row.custom_id) and not row.executed else 200


def _is_power(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_power, error.exceptions))
    return isinstance(error, PowerError)


# -- many lives


def live(scenario: Scenario, cut: Cut) -> Life | str:
    """A life, or why it failed."""
    folder = Path(tempfile.mkdtemp(prefix="power-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        return Life(scenario, cut, folder).live()
    except Exception as error:  # noqa: BLE001 - whatever it is, this life failed
        return f"{scenario.name} {cut}: {type(error).__name__}: {error}"
    finally:
        shutil.rmtree(folder)


def calm(scenario: Scenario, deaf: frozenset[str] = frozenset()) -> Life:
    """The life without a cut: its moments and its output are the measure."""
    found = live(scenario, Cut((), deaf=deaf))
    assert isinstance(found, Life), found
    return found


def sweep(scenario: Scenario, losses: Callable[[int], tuple[Loss, ...]], every: int = 1) -> Iterator[Life | str]:
    """Cut at every moment in turn, or at every few."""
    measure = calm(scenario)
    for at in range(every // 2, len(measure.moments), every):
        for loss in losses(at):
            yield compared(measure, live(scenario, Cut((at,), loss, at)))


def compared(measure: Life, found: Life | str) -> Life | str:
    """A life whose files are not those of the calm one has failed, too."""
    if isinstance(found, Life) and (found.output, found.errors) != (measure.output, measure.errors):
        return f"{found.scenario.name} {found.cut}: the files are not those of the undisturbed run"
    return found


def without(name: str, seeds: int) -> str | None:
    """What is found within so many cuts when a sync is left out."""
    measure = calm(SYNCS[name])
    first = next(at for at, moment in enumerate(measure.moments) if str(moment) == name)
    chance = random.Random(name)
    for seed in range(seeds):
        at = chance.randrange(first + 1, len(measure.moments))
        found = live(measure.scenario, Cut((at,), LOSSES[seed % len(LOSSES)], seed, frozenset({name})))
        if isinstance(found := compared(measure, found), str):
            return found
    return None


def drawn(seed: int, moments: int, deaf: frozenset[str] = frozenset()) -> Cut:
    """Up to three cuts in one life, anywhere."""
    chance = random.Random(f"cuts {seed}")
    at = tuple(chance.randrange(moments) for _ in range(chance.choice((1, 1, 2, 3))))
    return Cut(at, chance.choice(LOSSES), seed, deaf)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.power", description=__doc__)
    parser.add_argument("--seeds", type=int, default=0, help="so many random lives; 0: every moment, every loss")
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args()
    began, failures, lives, cuts = time.monotonic(), 0, 0, 0
    for found in _asked(asked.first, asked.seeds):
        lives += 1
        cuts += found.cuts if isinstance(found, Life) else 0
        if isinstance(found, str):
            failures += 1
            print(found, file=sys.stderr)
    print(f"{lives} lives, {cuts} power cuts survived, {failures} failed, in {time.monotonic() - began:.0f} s.")
    return 1 if failures else 0


def _every_loss(at: int) -> tuple[Loss, ...]:
    return LOSSES


def _asked(first: int, seeds: int) -> Iterator[Life | str]:
    if not seeds:
        for scenario in SCENARIOS:
            yield from sweep(scenario, _every_loss)
        return
    measures = [calm(scenario) for scenario in SCENARIOS]
    for seed in range(first, first + seeds):
        measure = measures[seed % len(measures)]
        yield compared(measure, live(measure.scenario, drawn(seed, len(measure.moments))))


if __name__ == "__main__":
    sys.exit(main())
