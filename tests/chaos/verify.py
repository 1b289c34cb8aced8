"""What must be true of a run at its end, whatever happened to it. Reads files and answers of the server; disturbs nothing."""

import contextlib
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from streambatch.errors import StreambatchError
from tests.chaos import plan as p
from tests.e2e import rig

TERMINAL = ("completed", "expired", "cancelled", "failed")


class Seen(msgspec.Struct, frozen=True):
    """All that is looked at."""

    plan: p.Plan
    source: Path
    output: Path
    rows: list[bytes]
    wanted: list[bytes]
    batches: list[dict[str, Any]]
    ledger: list[dict[str, Any]]
    deaths: int  # of the server: its counters start anew with each
    named: frozenset[str] = frozenset()  # rows that the service named as those for which a batch failed


class Outcome(msgspec.Struct, frozen=True):
    """The figures of a run, and what is wrong with it, in words."""

    bought_again: int
    rows_lost: int
    possibly_billed: int
    orphans: int
    problems: tuple[str, ...]


def check(seen: Seen) -> Outcome:
    """All checks, also where the first of them fails."""
    problems: list[str] = []

    def held(check: Callable[[], None]) -> None:
        try:
            check()
        except (AssertionError, OSError, ValueError, KeyError, sqlite3.Error, StreambatchError) as error:
            problems.append(f"{type(error).__name__}: {error}"[:800])

    held(lambda: check_output(seen))
    held(lambda: check_ledger(seen))
    held(lambda: check_batches(seen))
    held(lambda: check_journal(seen))
    held(lambda: check_summary(seen))
    orphans = len(orphan_batches(seen))
    return Outcome(
        sum(bought_again(seen).values()), missing(seen), possibly_billed(seen.output), orphans, tuple(problems)
    )


def custom_ids(seen: Seen) -> list[str]:
    name = "id" if seen.plan.dataset.plain else "custom_id"
    return [json.loads(row)[name] for row in seen.rows]


def refused(seen: Seen, ids: list[str]) -> set[str]:
    """The rows that the script answers with an error that is theirs."""
    patterns = [rule.rows for rule in seen.plan.rules if rule.kind == p.REFUSED]
    return {name for name in ids for pattern in patterns if pattern is not None and pattern.search(name)}


def check_output(seen: Seen) -> None:
    """Every row has one outcome, and the output is what the undisturbed run made, but for rows that the service refused."""
    ids = custom_ids(seen)
    bad = refused(seen, ids)
    failed = [json.loads(line)["custom_id"] for line in rig.read_lines(f"{seen.output}.errors")]
    bad |= seen.named & set(
        failed
    )  # one of a batch that is found only later may be sent again, since nothing of it ran
    assert failed == [name for name in ids if name in bad], (
        f"{len(failed)} rows in errors, {len(bad)} refused: {failed[:5]}"
    )
    got = rig.read_lines(seen.output)
    pairs = list(zip(ids, seen.wanted, strict=True))
    if seen.plan.dataset.plain:
        assert len(got) == len(ids), f"OUTPUT differs: {len(got)} lines for {len(ids)}"
        wanted = [_without_answer(line) if name in bad else line for name, line in pairs]
        got = [_without_answer(line) if name in bad else line for name, line in zip(ids, got, strict=True)]
    else:
        wanted = [line for name, line in pairs if name not in bad]
    gone = Counter(wanted) - Counter(got)
    assert got == wanted, (
        f"OUTPUT differs: {len(got)} lines for {len(wanted)}, {gone.total()} missing: {list(gone)[:1]}"
    )


def missing(seen: Seen) -> int:
    """Rows in neither file, whatever else is wrong: by id, from what is published or written so far."""
    name = "id" if seen.plan.dataset.plain else "custom_id"
    told: set[str] = set()
    for path in (f"{seen.output}", f"{seen.output}.errors"):
        if not Path(path).exists():
            return 0  # not finished: nothing is lost yet
        told |= {row.get("custom_id", row.get(name)) for row in map(json.loads, rig.read_lines(path))}
    return len(set(custom_ids(seen)) - told)


def _without_answer(line: bytes) -> bytes:
    row = json.loads(line)
    return json.dumps({name: row[name] for name in row if name not in ("answer", "answer_error")}).encode()


def check_ledger(seen: Seen) -> None:
    again = bought_again(seen)
    assert not again, f"bought again: {len(again)} rows: {dict(list(again.items())[:5])}"
    executed = {row["custom_id"] for row in seen.ledger}
    unexecuted = set(custom_ids(seen)) - executed - seen.named
    assert not unexecuted, f"{len(unexecuted)} rows were not executed: {sorted(unexecuted)[:5]}"
    assert executed <= set(custom_ids(seen)), "rows were executed that nobody asked for"


def bought_again(seen: Seen) -> dict[str, int]:
    """Executions of a row beyond its first that no failure of the script explains."""
    rules = [rule for rule in seen.plan.rules if rule.kind in p.FAILING]
    again = {}
    for row in seen.ledger:
        failures = sum(
            (seen.deaths + 1) for rule in rules if rule.rows is not None and rule.rows.search(row["custom_id"])
        )
        if row["executed"] > 1 + failures:
            again[row["custom_id"]] = row["executed"] - 1 - failures
    return again


def mine(seen: Seen) -> list[dict[str, Any]]:
    """The batches of this run."""
    return [batch for batch in seen.batches if batch["metadata"]["streambatch"].startswith(f"chaos-{seen.plan.seed}/")]


def check_batches(seen: Seen) -> None:
    orphans, number = orphan_batches(seen), len(mine(seen))
    assert not orphans, f"batches that the journal does not know, or that go on: {orphans[:3]}"
    assert number >= 20, f"only {number} batches"


def orphan_batches(seen: Seen) -> list[str]:
    """Batches of this run that are not at their end, unless they were given up, or that no event of the journal speaks of."""
    journal = f"{seen.output}.run/journal.sqlite"
    said, given_up = spoken(journal), spoken(journal, "GivenUp")
    return [
        batch["id"]
        for batch in mine(seen)
        if not is_spoken_of(batch["id"], said)
        or (batch["status"] not in TERMINAL and not is_spoken_of(batch["id"], given_up))
    ]


def spoken(journal: str, kind: str = "%") -> bytes:
    """The bodies of all events, or of those of a kind."""
    with contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as db:
        return b"\n".join(bytes(body) for (body,) in db.execute("SELECT body FROM events WHERE kind LIKE ?", (kind,)))


def is_spoken_of(batch_id: str, said: bytes) -> bool:
    return re.search(rb'"%b"' % re.escape(batch_id.encode()), said) is not None


def check_journal(seen: Seen) -> None:
    """Folding the events gives the state that the journal keeps."""
    rig.check_journal(
        rig.config(seen.output.parent, [seen.source], "http://127.0.0.1:1/v1", "none", output=seen.output)
    )


def check_summary(seen: Seen) -> None:
    """Only what the script made unclear is possibly billed."""
    unclear = (*p.FAILING, p.STUCK)
    billed = possibly_billed(seen.output)
    assert not billed or any(seen.plan.has(kind) for kind in unclear), f"{billed} rows possibly billed, for no reason"


def possibly_billed(output: Path) -> int:
    """As the summary of the last visit says."""
    path = Path(f"{output}.summary")
    return int(json.loads(path.read_bytes())["possibly_billed"]) if path.exists() else 0
