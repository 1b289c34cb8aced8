"""A fault script at work: which rules hit this call, this row, this batch. Counters live in memory and start anew with the process.

Chances of rows are a function of the script's seed and the `custom_id`; those of calls and batches a seeded sequence per rule.
"""

import re
import threading
import time
from collections import Counter, deque
from random import Random

import msgspec
from xxhash import xxh3_64_intdigest

from streambatch.server.rules import ENDING, BatchRule, HttpRule, RowRule, Rows, When
from streambatch.server.script import Script

WHOLE = 1 << 64
LOGGED = 10_000
Place = tuple[str, int]


class Hit(msgspec.Struct, frozen=True):
    """That a rule hit: its table and place there, the unix time, and what it hit: an id in the call's path, the `streambatch`
    metadata of a create or a batch, an upload's file name, a row's batch id; empty for calls that are of nothing alone."""

    table: str
    rule: int
    at: float
    what: str


class Faults:
    """One script and its counters; safe to call from any thread. A rule is known by its table and place."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.has_rows = bool(script.rows)
        self._lock = threading.Lock()
        self._seen: Counter[Place] = Counter()
        self._hits: Counter[Place] = Counter()
        self._log: deque[Hit] = deque(maxlen=LOGGED)
        self._chances: dict[Place, Random] = {}
        self._row_patterns = [_pattern(rule.match) for rule in script.rows]
        self._batch_patterns = [_pattern(rule.match) for rule in script.batches]
        self._ids = [_ids_of(rule) for rule in script.rows]
        self._executions: Counter[tuple[int, int]] = Counter()

    def http(self, route: str) -> list[HttpRule]:
        """The rules that hit this call of a route, in the script's order; those behind one that ends the call don't see it."""
        hit: list[HttpRule] = []
        with self._lock:
            for n, rule in enumerate(self.script.http):
                if route in rule.routes and self._fires(("http", n), rule):
                    hit.append(rule)
                    if isinstance(rule, ENDING):
                        break
        return hit

    def batch(self, tag: str) -> list[BatchRule]:
        """The rules that hit a new batch with this `streambatch` metadata."""
        with self._lock:
            rules = zip(enumerate(self.script.batches), self._batch_patterns, strict=True)
            met = [
                (n, rule) for (n, rule), pattern in rules if pattern.search(tag) and self._fires(("batches", n), rule)
            ]
            self._log += [Hit("batches", n, time.time(), tag) for n, _ in met]
            return [rule for _, rule in met]

    def row(self, custom_id: str, batch_id: str = "") -> RowRule | None:
        """The first rule that hits this execution of a row."""
        with self._lock:
            for n, rule in enumerate(self.script.rows):
                if self._concerns(n, rule, custom_id) and self._row_fires(n, rule, custom_id):
                    self._log.append(Hit("rows", n, time.time(), batch_id))
                    return rule
        return None

    def hits(self) -> dict[str, list[int]]:
        """How often each rule hit so far, by table and in the script's order."""
        sizes = {"http": len(self.script.http), "rows": len(self.script.rows), "batches": len(self.script.batches)}
        with self._lock:
            return {table: [self._hits[table, n] for n in range(size)] for table, size in sizes.items()}

    def note(self, met: list[HttpRule], what: str) -> None:
        """Log what rules of calls hit, which shows only after they were looked up."""
        with self._lock:
            for n, rule in enumerate(self.script.http):
                if any(rule is one for one in met):
                    self._log.append(Hit("http", n, time.time(), what))

    def log(self) -> list[Hit]:
        """The newest hits, oldest first."""
        with self._lock:
            return list(self._log)

    def _fires(self, place: Place, rule: When) -> bool:
        before = self._seen[place]
        self._seen[place] += 1
        if before < rule.after or (rule.times is not None and self._hits[place] >= rule.times):
            return False
        if rule.probability < 1 and self._chance(place) >= rule.probability:
            return False
        self._hits[place] += 1
        return True

    def _chance(self, place: Place) -> float:
        if place not in self._chances:
            self._chances[place] = Random(f"{self.script.seed} {place}")
        return self._chances[place].random()

    def _concerns(self, n: int, rule: Rows, custom_id: str) -> bool:
        ids = self._ids[n]
        if (ids is not None and custom_id not in ids) or not self._row_patterns[n].search(custom_id):
            return False
        return (
            rule.probability >= 1
            or xxh3_64_intdigest(custom_id.encode(), _mixed(self.script.seed, n)) < rule.probability * WHOLE
        )

    def _row_fires(self, n: int, rule: Rows, custom_id: str) -> bool:
        """Count this execution; kept by 8-byte hashes, and only where the rule counts at all."""
        if rule.after or rule.times is not None:
            key = (n, xxh3_64_intdigest(custom_id.encode()))
            before = self._executions[key]
            self._executions[key] += 1
            if before < rule.after or (rule.times is not None and before >= rule.after + rule.times):
                return False
        self._hits["rows", n] += 1
        return True


def _pattern(match: str | None) -> re.Pattern[str]:
    return re.compile("" if match is None else match)


def _ids_of(rule: Rows) -> frozenset[str] | None:
    if rule.custom_id is None:
        return None
    return frozenset([rule.custom_id] if isinstance(rule.custom_id, str) else rule.custom_id)


def _mixed(seed: int, n: int) -> int:
    return (seed * 1_000_003 + n) % WHOLE
