"""What must be true of a run at its end, whatever happened to it. Reads files and answers of the server; disturbs nothing."""

import contextlib
import json
import re
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from tests.chaos import plan as p
from tests.e2e import rig

TERMINAL = ("completed", "expired", "cancelled", "failed")
REFUSED = "row: 400"
FAILING = ("row: 500, then an answer", "row: executed, in neither file", "row: result line corrupted")


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


def check(seen: Seen) -> tuple[int, int, int, int]:
    """Delivered results bought again, rows lost, rows possibly billed, orphans: all but the third are 0. Raises AssertionError."""
    lost = rows_lost(seen)
    again = bought_again(seen)
    orphans = orphan_batches(seen)
    assert not orphans, f"batches that the journal does not know: {orphans[:3]}"
    assert not again, f"bought again: {dict(list(again.items())[:5])}"
    check_journal(seen)
    summary = json.loads(Path(f"{seen.output}.summary").read_bytes())
    return sum(again.values()), lost, int(summary["possibly_billed"]), len(orphans)


def custom_ids(seen: Seen) -> list[str]:
    name = "id" if seen.plan.dataset.plain else "custom_id"
    return [json.loads(row)[name] for row in seen.rows]


def refused(seen: Seen, ids: list[str]) -> set[str]:
    """The rows that the script answers with an error that is theirs."""
    patterns = [rule.rows for rule in seen.plan.rules if rule.kind == REFUSED]
    return {name for name in ids for pattern in patterns if pattern is not None and pattern.search(name)}


def rows_lost(seen: Seen) -> int:
    """Every row has one outcome, and the output is what the undisturbed run made, but for rows that the script refused."""
    ids = custom_ids(seen)
    bad = refused(seen, ids)
    failed = [json.loads(line)["custom_id"] for line in rig.read_lines(f"{seen.output}.errors")]
    assert failed == [name for name in ids if name in bad], (
        f"{len(failed)} rows in errors, {len(bad)} refused: {failed[:5]}"
    )
    got = rig.read_lines(seen.output)
    if seen.plan.dataset.plain:
        pairs = list(zip(ids, seen.wanted, strict=True))
        wanted = [_without_answer(line) if name in bad else line for name, line in pairs]
        got = [_without_answer(line) if name in bad else line for name, line in zip(ids, got, strict=True)]
    else:
        wanted = [line for name, line in zip(ids, seen.wanted, strict=True) if name not in bad]
    missing = Counter(wanted) - Counter(got)
    assert got == wanted, (
        f"OUTPUT differs: {len(got)} lines for {len(wanted)}, {missing.total()} missing: {list(missing)[:1]}"
    )
    return missing.total()


def _without_answer(line: bytes) -> bytes:
    row = json.loads(line)
    return json.dumps({name: row[name] for name in row if name not in ("answer", "answer_error")}).encode()


def bought_again(seen: Seen) -> dict[str, int]:
    """Executions of a row beyond its first that no failure of the script explains. Rows are executed at all, too."""
    rules = [rule for rule in seen.plan.rules if rule.kind in FAILING]
    again = {}
    for row in seen.ledger:
        failures = sum(
            (seen.deaths + 1) for rule in rules if rule.rows is not None and rule.rows.search(row["custom_id"])
        )
        if row["executed"] > 1 + failures:
            again[row["custom_id"]] = row["executed"] - 1 - failures
    assert {row["custom_id"] for row in seen.ledger} == set(custom_ids(seen)), "not each row was executed"
    return again


def orphan_batches(seen: Seen) -> list[str]:
    """Batches of this run that are not at their end, or that no event of the journal speaks of."""
    said = spoken(f"{seen.output}.run/journal.sqlite")
    mine = [batch for batch in seen.batches if batch["metadata"]["streambatch"].startswith(f"chaos-{seen.plan.seed}/")]
    assert len(mine) >= 20, f"only {len(mine)} batches"
    unknown = [batch["id"] for batch in mine if not is_spoken_of(batch["id"], said)]
    return unknown + [batch["id"] for batch in mine if batch["status"] not in TERMINAL]


def spoken(journal: str) -> bytes:
    """The bodies of all events."""
    with contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as db:
        return b"\n".join(bytes(body) for (body,) in db.execute("SELECT body FROM events"))


def is_spoken_of(batch_id: str, said: bytes) -> bool:
    return re.search(rb'"%b"' % re.escape(batch_id.encode()), said) is not None


def check_journal(seen: Seen) -> None:
    """Folding the events gives the state that the journal keeps."""
    rig.check_journal(
        rig.config(seen.output.parent, [seen.source], "http://127.0.0.1:1/v1", "none", output=seen.output)
    )
