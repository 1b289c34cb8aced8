"""Which faults count as fired: those that hit a request of a run that was not finished, with an event of that shard after them.

Knows the server's log of hits and the journal's events; disturbs nothing.
"""

import bisect
import contextlib
import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from tests.chaos import plan as p


class Entry(msgspec.Struct, frozen=True):
    """An event: when (unix seconds), of which kind, and of which shard, "" where it is of none."""

    at: float
    kind: str
    shard: str


class Journal:
    """All events of a run, also those of run directories that were deleted."""

    def __init__(self) -> None:
        self._gone: list[Entry] = []
        self.now: list[Entry] = []

    def look(self, run_dir: Path) -> None:
        self.now = entries(run_dir)

    def forget(self) -> None:
        """The run directory is about to go."""
        self._gone += self.now
        self.now = []

    def all(self) -> list[Entry]:
        return [*self._gone, *self.now]


def entries(run_dir: Path) -> list[Entry]:
    """The events of a journal; none where there is none to read, as when it was killed while it was being made."""
    path = run_dir / "journal.sqlite"
    with contextlib.suppress(sqlite3.Error):
        if path.exists():
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as db:
                rows = db.execute("SELECT at, kind, shard, body FROM events ORDER BY seq").fetchall()
            return [Entry(at, kind, _shard(shard, body)) for at, kind, shard, body in rows]
    return []


def _shard(column: str | None, body: bytes) -> str:
    """A shard's name; events of found batches have it in their body."""
    if column is not None:
        return column
    told = json.loads(body)
    return str(told.get("shard", "")) or str(told.get("made", {}).get("name", ""))


class After:
    """Whether something followed a moment."""

    def __init__(self, events: Iterable[Entry]) -> None:
        self._times: defaultdict[str, list[float]] = defaultdict(list)
        self._any: list[float] = []
        for entry in events:
            if entry.shard:
                self._times[entry.shard].append(entry.at)
                self._any.append(entry.at)
        for times in (*self._times.values(), self._any):
            times.sort()

    def of(self, shard: str, at: float) -> bool:
        """An event of this shard, or of any where it is ""."""
        times = self._times.get(shard, []) if shard else self._any
        return bisect.bisect_right(times, at) < len(times)


def fired(
    plan: p.Plan, log: Iterable[dict[str, Any]], batches: Iterable[dict[str, Any]], events: Iterable[Entry]
) -> Counter[str]:
    """How often each kind of the script's rules fired."""
    shards, after, found = shards_by_id(batches), After(events), Counter[str]()
    kinds = kinds_by_place(plan)
    for hit in log:
        kind = kinds.get((hit["table"], hit["rule"]), "")
        shard = shard_of(hit["what"], shards)
        if kind and after.of(shard, hit["at"]):
            found[kind] += 1
    return found


def kinds_by_place(plan: p.Plan) -> dict[tuple[str, int], str]:
    """A rule's kind by its table and its place there."""
    found: dict[tuple[str, int], str] = {}
    places: Counter[str] = Counter()
    for rule in plan.rules:
        found[rule.table, places[rule.table]] = rule.kind
        places[rule.table] += 1
    return found


def shards_by_id(batches: Iterable[dict[str, Any]]) -> dict[str, str]:
    """The shard of each batch and each file of one."""
    found = {}
    for batch in batches:
        shard = batch["metadata"]["streambatch"].split("/")[1]
        for name in ("id", "input_file_id", "output_file_id", "error_file_id"):
            if batch.get(name):
                found[batch[name]] = shard
    return found


def shard_of(what: str, shards: dict[str, str]) -> str:
    """The shard that a hit was about: by an id, by a batch's tag, or by an uploaded file's name."""
    if what in shards:
        return shards[what]
    if what.count("/") == 2:
        return what.split("/")[1]
    return what.split(".")[1] if what.endswith(".jsonl") and what.count(".") == 3 else what
