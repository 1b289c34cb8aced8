"""Each safety rule with a switch that turns it off in the simulation, and the promise that then breaks.

`python -m tests.chaos.switches` searches a seed that shows it for each, and writes the table of ARCHITECTURE.md.
"""

import multiprocessing
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streambatch.core import adoption as choice
from streambatch.core import events as e
from streambatch.core import lifecycle, patience, settling
from streambatch.core.models import Shard
from streambatch.core.patience import Told
from streambatch.edge import remotes, spares
from streambatch.edge.fetching import ERROR, OUTPUT, Results
from streambatch.edge.files import RunFiles
from streambatch.edge.journal import Journal
from streambatch.engine.adoption import Adoption
from streambatch.engine.context import Visit
from streambatch.errors import Paused
from streambatch.steps import Steps
from tests.chaos import simulate, storm

SEEDS = 300
ARCHITECTURE = Path(__file__).parents[2] / "ARCHITECTURE.md"
BEGIN, END = "<!-- rules: made by `python -m tests.chaos.switches`, and checked -->", "<!-- end of rules -->"

Patch = pytest.MonkeyPatch
Off = Callable[[Patch], None]


class Rule(msgspec.Struct, frozen=True):
    """A rule of "What carries safety": `name` is its switch, `climate` the seeds to search in, `violation` what must be found."""

    name: str
    says: str
    off: Off
    violation: str
    climate: str


# -- creates


def _doubt(patch: Patch) -> None:
    patch.setattr(Steps, "_doubted", lambda self, shard, reason: e.Refused(shard=shard.name, reason=reason))


def _adopt(patch: Patch) -> None:
    choose = choice.choose
    patch.setattr(choice, "choose", lambda finds: choice.Choice(None, choose(finds).create))


def _number(patch: Patch) -> None:
    """Every create of a shard has the number 1."""
    before = Adoption.before_create

    async def again(self: Adoption, shard: Shard) -> e.ShardEvent:
        event = await before(self, shard)
        return msgspec.structs.replace(event, create=1) if isinstance(event, e.Intended) else event

    patch.setattr(Adoption, "before_create", again)


def _pages(patch: Patch) -> None:
    async def first_page(self: Adoption, horizon: float | None) -> bool:
        page = await self._visit.world.api.list_batches(None, 100)
        await self.consider([*page.data, *page.nameless])
        return True

    patch.setattr(Adoption, "_read_list", first_page)


def _grace(patch: Patch) -> None:
    """One look at the list proves absence."""

    async def at_once(self: Adoption, shard: Shard) -> e.ShardEvent:
        await self._sweep(None, since=self._visit.world.clock.monotonic())
        adopted = await self.of_fresh(shard)
        return e.Absent(shard=shard.name, create=shard.create) if adopted is None else adopted

    patch.setattr(Adoption, "search", at_once)


# -- resumes


def _sweep(patch: Patch) -> None:
    async def open_gates(self: Adoption) -> None:
        self._visit.may_upload = self._visit.may_create = True
        self._visit.phase = "running"
        self._visit.bell.ring()

    patch.setattr(Adoption, "first_sweep", open_gates)


def _id_grace(patch: Patch) -> None:
    patch.setattr(Adoption, "_first_grace", lambda self, horizon, note: self._open_creates(swept=True))


def _elsewhere(patch: Patch) -> None:
    patch.setattr(spares, "trusted", spares.standing)


def _spares(patch: Patch) -> None:
    patch.setattr(spares, "unread", lambda store: [])


# -- results


def _reconcile(patch: Patch) -> None:
    """Only what completed has results."""
    plain = Steps._settle_job

    def job(self: Steps, shard: Shard, end: e.BatchFinished | None) -> Any:
        made = plain(self, shard, None if shard.status != "completed" else end)
        return made if shard.status == "completed" else msgspec.structs.replace(made, output=None, error=None)

    patch.setattr(Steps, "_settle_job", job)
    patch.setattr(patience, "gap", lambda counted, rows, found: 0)


def _both_files(patch: Patch) -> None:
    plain = Steps._settle_job
    patch.setattr(Steps, "_settle_job", lambda *args: msgspec.structs.replace(plain(*args), error=None))
    patch.setattr(patience, "gap", lambda counted, rows, found: 0)


def _counts(patch: Patch) -> None:
    patch.setattr(patience, "forbids", lambda hidden, rows: False)


def _look_again(patch: Patch) -> None:
    patch.setattr(patience, "LOOKS", 0)


def _gone(patch: Patch) -> None:
    """Results that are not there are bought again unasked."""
    fetch, downloaded = Results.fetch, Steps._downloaded

    async def anyhow(self: Results, shard: Shard, paths: Any) -> Told:
        try:
            return await fetch(self, shard, paths)
        except Paused:
            for ending in (OUTPUT, ERROR):
                Path(paths[ending]).write_bytes(b"")
            return Told(None, None, gone=True)

    async def rebought(self: Steps, shard: Shard, told: Told) -> e.Downloaded:
        return msgspec.structs.replace(await downloaded(self, shard, told), gone="rebuy" if told.gone else None)

    patch.setattr(Results, "fetch", anyhow)
    patch.setattr(Steps, "_downloaded", rebought)


def _classes(patch: Patch) -> None:
    patch.setattr(settling, "LEFTABLE", frozenset())


def _burnt(patch: Patch) -> None:
    patch.setattr(settling.Rules, "_counts", lambda self, row_class, found: True)


# -- states and clocks


def _exit(patch: Patch) -> None:
    patch.setattr(patience, "overdue", lambda *args: False)


def _clock(patch: Patch) -> None:
    patch.setattr(Visit, "now_there", lambda self: self.world.clock.wall())


def _claims(patch: Patch) -> None:
    """Whoever asks for a shard gets it."""
    claim, release = Visit.claim, Visit.release

    async def shared(self: Visit, name: str, *states: Any) -> Shard | None:
        self.driving.pop(name, None)
        return await claim(self, name, *states)

    def forgiving(self: Visit, name: str) -> None:
        self.driving.setdefault(name, lifecycle.Step)
        release(self, name)

    patch.setattr(Visit, "claim", shared)
    patch.setattr(Visit, "release", forgiving)


# -- files


def _cut_back(patch: Patch) -> None:
    def leave(self: RunFiles, output_end: int, errors_end: int) -> None:
        for path in (self.output, self.errors):
            path.touch()

    patch.setattr(RunFiles, "cut_sinks", leave)


def _publish(patch: Patch) -> None:
    append = Journal.append

    async def unsaid(self: Journal, *events: e.Event) -> None:
        await append(self, *(event for event in events if not isinstance(event, e.Publishing)))

    patch.setattr(Journal, "append", unsaid)


def _deleted(patch: Patch) -> None:
    def any_result(store: Any, kinds: Sequence[str], limit: int, without: Any = ()) -> list[Any]:
        return [file for file in remotes.every(store) if file.kind != "input"][:limit]

    patch.setattr(remotes, "disposable", any_result)


RULES = (
    Rule("doubt", "A create without a clear answer is in doubt, not refused", _doubt, simulate.BOUGHT, "doubts"),
    Rule("adopt", "Adopt before create: a found batch of a shard is its batch", _adopt, simulate.BOUGHT, "doubts"),
    Rule("number", "The create number rises and is never used again", _number, simulate.BROKEN, "doubts"),
    Rule("pages", "A sweep reads every page back to before the doubt", _pages, simulate.BOUGHT, "lost directory"),
    Rule("grace", "Grace: absence counts after a full grace and one more sweep", _grace, simulate.BOUGHT, "doubts"),
    Rule("sweep", "Every resume sweeps the list before its first create", _sweep, simulate.BOUGHT, "old copies"),
    Rule("id-grace", "A run known by its id alone waits a grace", _id_grace, simulate.BOUGHT, "lost directory"),
    Rule("elsewhere", "A run directory that stands elsewhere waits a grace", _elsewhere, simulate.BOUGHT, "old copies"),
    Rule(
        "spares", "What found batches ran is asked before rows are bought", _spares, simulate.BOUGHT, "lost directory"
    ),
    Rule("reconcile", "Results are read at every terminal state", _reconcile, simulate.BOUGHT, "half done"),
    Rule("both-files", "Both result files are read", _both_files, simulate.BOUGHT, "refusals"),
    Rule("counts", "Counted rows that no file holds forbid to buy", _counts, simulate.BOUGHT, "slow results"),
    Rule("look-again", "Files that hold less than is counted are read again", _look_again, simulate.BOUGHT, "mixed"),
    Rule("gone", "Gone is not free: results that vanished pause the run", _gone, simulate.BOUGHT, "slow results"),
    Rule(
        "classes", "429, 5xx, expired, cancelled and missing rows are tried again", _classes, simulate.LOST, "half done"
    ),
    Rule("burnt", "What did not run burns no attempt", _burnt, simulate.LOST, "refusals"),
    Rule("exit", "Every state has an exit", _exit, simulate.UNFINISHED, "stuck"),
    Rule("clock", "Deadlines of the service go by its own clock", _clock, simulate.LOST, "stuck"),
    Rule("claims", "One holder at a time journals a shard's events", _claims, simulate.BROKEN, "mixed"),
    Rule(
        "cut-back",
        "The partial output is cut back to what the journal knows",
        _cut_back,
        simulate.BROKEN,
        "broken disk",
    ),
    Rule(
        "publish",
        "What will be published is journaled before the first rename",
        _publish,
        simulate.BROKEN,
        "broken disk",
    ),
    Rule("deleted", "Merged before deleted", _deleted, simulate.UNFINISHED, "broken disk"),
)


class Elsewhere(msgspec.Struct, frozen=True):
    """A rule that the simulation can't show, and the test that fails without it."""

    says: str
    why: str
    test: str


ELSEWHERE = (
    Elsewhere(
        "An intent goes before every create",
        "60 seeds did not show it",
        "tests/engine/test_lifecycle.py::test_an_intent_goes_before_every_create",
    ),
    Elsewhere(
        "A batch of other content is none of the shard's",
        "new remainders take names that no lost one had",
        "tests/engine/test_adoption.py::test_a_batch_of_other_content_is_none_of_the_shards",
    ),
    Elsewhere(
        "Of two live batches of a shard one goes on",
        "the other rules leave no two",
        "tests/engine/test_adoption.py::test_of_two_live_batches_of_a_shard_the_earlier_goes_on_and_the_other_is_cancelled",
    ),
    Elsewhere(
        "Poison: a journal that failed once takes nothing more",
        "nothing of a visit goes on behind its first error",
        "tests/engine/test_journal.py::test_an_illegal_event_leaves_no_trace_and_shuts_the_store",
    ),
    Elsewhere(
        "Watched errors: a run of errors stops buying",
        "1,000 outcomes are needed",
        "tests/engine/test_policies.py::test_a_run_of_errors_stops_buying",
    ),
    Elsewhere(
        "A billing refusal pauses the run",
        "going on asking loses nothing",
        "tests/engine/test_found.py::test_a_billing_refusal_of_an_upload_pauses_too",
    ),
    Elsewhere(
        "One writer: a lock holds the run directory",
        "one process at a time",
        "tests/cli/test_runs.py::test_a_second_engine_is_refused",
    ),
    Elsewhere(
        "What is believed is synced",
        "nothing loses power",
        "tests/chaos/test_power.py::test_a_sync_that_is_left_out_is_found",
    ),
)


# -- the search


def life(rule: Rule, seed: int, *, off: bool) -> str | None:
    """How a schedule broke; None where it held."""
    with pytest.MonkeyPatch.context() as patch:
        if off:
            rule.off(patch)
        found = simulate.live(seed)
    return found if isinstance(found, str) else None


def find(rule: Rule, hint: int | None = None, most: int = SEEDS) -> int | None:
    """The first seed that shows the violation with the rule off, and holds with it on; `hint` is tried first."""
    simulate.calm_lines()
    seeds = storm.seeds(rule.climate, most)
    for seed in ([] if hint is None else [hint]) + seeds:
        said = life(rule, seed, off=True)
        if said is not None and rule.violation in said:
            return seed if life(rule, seed, off=False) is None else None
    return None


def _found(name: str, hint: int | None) -> int | None:
    return find(next(rule for rule in RULES if rule.name == name), hint)


def search(hints: dict[str, int], jobs: int) -> dict[str, int | None]:
    """A seed for each rule, in so many processes whose sets have the order that seeds replay with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONHASHSEED", "0")
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            names = [rule.name for rule in RULES]
            return dict(zip(names, pool.map(_found, names, [hints.get(name) for name in names]), strict=True))


# -- the table


def table(seeds: dict[str, int | None]) -> str:
    head = "| rule | switch | without it | climate, seed |\n|---|---|---|---|\n"
    rows = [
        f"| {rule.says} | `{rule.name}` | {rule.violation} | {rule.climate}, {seeds.get(rule.name)} |\n"
        for rule in RULES
    ]
    others = "".join(f"| {one.says} | {one.why} | `{one.test}` |\n" for one in ELSEWHERE)
    more = "\nWhat the simulation can't show:\n\n| rule | why | test that fails without it |\n|---|---|---|\n"
    return head + "".join(rows) + more + others


def written() -> tuple[str, dict[str, int]]:
    """The table that ARCHITECTURE.md has, and the seeds in it."""
    text = ARCHITECTURE.read_text(encoding="utf-8")
    if BEGIN not in text:
        return "", {}
    inside = text.partition(BEGIN)[2].partition(END)[0].strip() + "\n"
    return inside, {
        name: int(seed) for name, seed in re.findall(r"\| `([a-z-]+)` \|.*, (\d+) \|$", inside, re.MULTILINE)
    }


def main() -> int:
    """Search, and write the table; 1 where a rule was not shown."""
    seeds = search(written()[1], jobs=2)
    for name, seed in seeds.items():
        print(f"{name}: {seed}")
    text = ARCHITECTURE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    ARCHITECTURE.write_text(f"{before}{BEGIN}\n\n{table(seeds)}\n{END}{after}", encoding="utf-8")
    return 1 if None in seeds.values() else 0


if __name__ == "__main__":
    sys.exit(main())
