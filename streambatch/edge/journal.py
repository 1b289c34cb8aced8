"""The durable event log and its state rows: one SQLite file, one writer.

Each append stores the events and the rows they change in one transaction, synced before it returns. A journal that
failed once is closed for good. Decides nothing about what happens next.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import anyio
import msgspec

from streambatch.core import events as e
from streambatch.core import lifecycle, tags
from streambatch.core.models import Segment, Shard, ShardState
from streambatch.core.scheduling import Queue, by_model
from streambatch.edge import database, projection
from streambatch.edge.failpoints import Failpoints
from streambatch.edge.files import Blocking
from streambatch.errors import ConfigError, JournalError

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E", bound=e.Event)

_events = msgspec.json.Decoder(e.AnyEvent)
_shards = msgspec.json.Decoder(Shard)
_segments = msgspec.json.Decoder(Segment)
_found = msgspec.json.Decoder(e.Found)

_UNSETTLED = tuple(state.value for state in ShardState if state is not ShardState.SETTLED)
_MOVING = tuple(state.value for state in ShardState if state not in lifecycle.FINAL)


class SegmentRow(msgspec.Struct, frozen=True):
    """A segment as the journal believes it: complete when `open_rows` is 0."""

    segment: Segment
    source_hash: str
    open_rows: int
    merged: bool
    rows: int
    bad: int
    skipped: int


class PoolGroup(msgspec.Struct, frozen=True):
    """Left rows that may share a remainder: same model, generation and row limit (0: none)."""

    model: str
    generation: int
    max_rows: int
    rows: int
    first_segment: int


class PoolEntry(msgspec.Struct, frozen=True):
    """Rows of one parent that wait in the pool: those from `taken` on, of `rows`."""

    parent: Shard
    generation: int
    rows: int
    taken: int
    settled: bool
    seen: int = 0  # the highest number of a spare that its parent was asked for


class Store:
    """The tables, synchronously. Use from one thread at a time.

    `shared`: others may read while we write, which takes memory that processes share. Where that fails, the journal is kept to
    ourselves: a rollback log, and locked until it is closed.
    """

    def __init__(self, path: str, *, shared: bool = True, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._path = path
        self._broken: Exception | None = None
        with database.mapped(path):
            database.private(path)
            db = database.connect_shared(path) if shared else None
            self.shared = db is not None
            self._db = database.connect_alone(path) if db is None else db
            self._db.execute("PRAGMA synchronous=EXTRA")  # FULL, and a rollback log's removal is synced, too
            self._open(path)

    def _open(self, path: str) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > projection.USER_VERSION:
            raise ConfigError(f"The journal {path} was written by a newer streambatch; upgrade streambatch to go on.")
        if version == 0 or not self._db.execute("SELECT 1 FROM sqlite_master WHERE name='remote'").fetchone():
            tables = projection.ADDED if version else projection.SCHEMA + projection.ADDED
            self._db.executescript(f"BEGIN;{tables}PRAGMA user_version={projection.USER_VERSION};COMMIT;")

    def close(self) -> None:
        self._broken = JournalError("The journal is closed.")
        self._db.close()

    # -- writing

    def append(self, events: Sequence[e.Event]) -> None:
        """Store events and state rows durably. Raises JournalError; after a failed write every later call does."""
        if self._broken is not None:
            raise JournalError(f"The journal failed before and takes no more: {self._broken}")
        try:
            self._transaction(events)
        except Exception as error:
            self._broken = error
            if isinstance(error, sqlite3.Error):
                raise JournalError(
                    f"The journal {self._path} can't be written: {error}.", hint=database.HINT
                ) from error
            raise

    def _transaction(self, events: Sequence[e.Event]) -> None:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            for event in events:
                shard = event.shard if isinstance(event, e.ShardEvent) else None
                row = (self._now(), type(event).__name__, shard, msgspec.json.encode(event))
                db.execute("INSERT INTO events(at, kind, shard, body) VALUES(?,?,?,?)", row)
                projection.project(db, event)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    # -- reading: the run

    def last(self, kind: type[E]) -> E | None:
        """The newest run-level event of a kind, where it still holds."""
        row = self._db.execute("SELECT body FROM run WHERE name=?", (kind.__name__,)).fetchone()
        return None if row is None else msgspec.json.decode(row[0], type=kind)

    def events(self) -> Iterator[e.AnyEvent]:
        """The whole log, in order."""
        for (body,) in self._db.execute("SELECT body FROM events ORDER BY seq"):
            yield _events.decode(body)

    def span(self) -> tuple[float, float]:
        """When the first and the newest event were written, unix seconds."""
        ends = [
            self._db.execute(f"SELECT at FROM events ORDER BY seq {way} LIMIT 1").fetchone() for way in ("", "DESC")
        ]
        first, last = (0.0 if row is None else float(row[0]) for row in ends)
        return first, last

    def totals(self) -> dict[str, int]:
        return dict(self._db.execute("SELECT name, value FROM totals"))

    def states(self) -> dict[str, int]:
        """How many shards stand in each state. The settled ones, nearly all in the end, are not counted one by one."""
        marks = ",".join("?" * len(_UNSETTLED))
        query = f"SELECT state, COUNT(*) FROM shards WHERE state IN ({marks}) GROUP BY state"
        states = dict(self._db.execute(query, _UNSETTLED))
        settled = self.totals().get("shards", 0) - sum(states.values())
        return {**states, ShardState.SETTLED.value: settled} if settled else states

    def dump(self) -> dict[str, list[tuple[object, ...]]]:
        """All state rows, for comparing."""
        return {t: self._db.execute(f"SELECT * FROM {t} ORDER BY 1, 2").fetchall() for t in projection.TABLES}

    # -- reading: segments and shards

    def segment(self, index: int) -> SegmentRow | None:
        query = "SELECT body, source_hash, open_rows, merged, rows, bad, skipped FROM segments WHERE idx=?"
        row = self._db.execute(query, (index,)).fetchone()
        return None if row is None else SegmentRow(_segments.decode(row[0]), row[1], row[2], bool(row[3]), *row[4:])

    def last_segment(self) -> SegmentRow | None:
        row = self._db.execute("SELECT MAX(idx) FROM segments").fetchone()
        return None if row[0] is None else self.segment(row[0])

    def next_to_merge(self) -> SegmentRow | None:
        """The oldest segment that is not merged."""
        row = self._db.execute("SELECT value FROM totals WHERE name='segments_merged'").fetchone()
        return self.segment(0 if row is None else row[0])

    def shard(self, name: str) -> Shard | None:
        row = self._db.execute("SELECT body FROM shards WHERE name=?", (name,)).fetchone()
        return None if row is None else _shards.decode(row[0])

    def shards(self, states: Sequence[ShardState], limit: int = -1) -> list[Shard]:
        """Shards in these states, oldest segment first."""
        query = "SELECT first_segment, name, body FROM shards WHERE state=? ORDER BY first_segment, name LIMIT ?"
        rows = [row for state in states for row in self._db.execute(query, (state.value, limit))]
        rows.sort(key=lambda row: row[:2])
        return [_shards.decode(body) for _, _, body in (rows if limit < 0 else rows[:limit])]

    def count(self, *states: ShardState) -> int:
        marks = ",".join("?" * len(states))
        query = f"SELECT COUNT(*) FROM shards WHERE state IN ({marks})"
        return int(self._db.execute(query, [s.value for s in states]).fetchone()[0])

    def queues(self, uploading: Sequence[str]) -> list[Queue]:
        """What waits and what flies, by model; sealed shards with a name in `uploading` are told apart."""
        query = """SELECT model, state, COUNT(*), MIN(first_segment) FROM shards
                   WHERE state IN ('sealed','uploaded','intended','doubted','submitted') GROUP BY state, model"""
        rows = self._db.execute(query).fetchall()
        marks = ",".join("?" * len(uploading))
        query = f"SELECT model, COUNT(*) FROM shards WHERE name IN ({marks}) AND state='sealed' GROUP BY model"
        return by_model(rows, dict(self._db.execute(query, list(uploading))))

    def oldest(self, state: ShardState, model: str, limit: int) -> list[str]:
        """Names of the shards of a model in a state, oldest segment first."""
        query = "SELECT name FROM shards WHERE state=? AND model=? ORDER BY first_segment, name LIMIT ?"
        return [name for (name,) in self._db.execute(query, (state.value, model, limit))]

    def several_models(self) -> bool:
        """Whether the run has had shards of more than one model."""
        query = "SELECT (SELECT MIN(model) FROM shards WHERE state=?1), (SELECT MAX(model) FROM shards WHERE state=?1)"
        ends = [end for state in ShardState for end in self._db.execute(query, (state.value,)).fetchone()]
        return len(set(ends) - {None}) > 1

    def parts(self, segment: int) -> list[Shard]:
        """Settled shards that touch a segment, oldest generation first."""
        query = """SELECT s.body FROM touches t JOIN shards s ON s.name = t.shard
                   WHERE t.segment = ? AND s.state = 'settled' ORDER BY s.generation, s.name"""
        return [_shards.decode(b) for (b,) in self._db.execute(query, (segment,))]

    def swept(self, merged: int, limit: int = 200) -> list[Shard]:
        """Shards whose every segment is merged and whose spool files were not removed yet."""
        query = "SELECT body FROM shards WHERE swept=0 AND last_segment < ? AND state IN ('settled','returned') LIMIT ?"
        return [_shards.decode(b) for (b,) in self._db.execute(query, (merged, limit))]

    def unswept(self, limit: int) -> list[Shard]:
        """Settled shards whose files are still in the spool, oldest segment first."""
        query = "SELECT body FROM shards WHERE swept=0 AND state='settled' ORDER BY last_segment LIMIT ?"
        return [_shards.decode(b) for (b,) in self._db.execute(query, (limit,))]

    def mark_swept(self, names: Sequence[str]) -> None:
        """Note that the spool files of these shards are gone: housekeeping, no event."""
        marks = ",".join("?" * len(names))
        self._db.execute(f"UPDATE shards SET swept=1 WHERE name IN ({marks})", list(names))

    # -- reading: the pool

    def pool(self) -> list[PoolGroup]:
        query = """SELECT model, generation, max_rows, SUM(rows - taken), MIN(first_segment) FROM pool
                   WHERE taken < rows GROUP BY 1, 2, 3 ORDER BY 5"""
        return [PoolGroup(*row) for row in self._db.execute(query)]

    def pool_entries(self, group: PoolGroup, limit: int) -> list[PoolEntry]:
        """The oldest entries of a group."""
        query = """SELECT s.body, p.generation, p.rows, p.taken, p.settled, IFNULL(n.number, 0)
                   FROM pool p JOIN shards s ON s.name = p.parent LEFT JOIN seen n ON n.shard = p.parent
                   WHERE p.taken < p.rows AND p.model = ? AND p.generation = ? AND p.max_rows = ?
                   ORDER BY p.first_segment, p.parent LIMIT ?"""
        rows = self._db.execute(query, (group.model, group.generation, group.max_rows, limit))
        return [PoolEntry(_shards.decode(b), g, n, t, bool(s), seen) for b, g, n, t, s, seen in rows]

    def busy(self, model: str, generation: int) -> bool:
        """Whether a shard of this model and a lower or equal generation has not ended yet."""
        marks = ",".join("?" * len(_MOVING))
        query = f"SELECT 1 FROM shards WHERE state IN ({marks}) AND model = ? AND generation <= ? LIMIT 1"
        return self._db.execute(query, (*_MOVING, model, generation)).fetchone() is not None

    def ending(self, shard: str) -> e.BatchFinished | None:
        """How the batch of this shard ended, in the service's figures."""
        query = "SELECT body FROM events WHERE shard=? AND kind='BatchFinished' ORDER BY seq DESC LIMIT 1"
        row = self._db.execute(query, (shard,)).fetchone()
        return None if row is None else msgspec.json.decode(row[0], type=e.BatchFinished)

    # -- reading: batches

    def knows_batch(self, batch_id: str) -> bool:
        return self._db.execute("SELECT 1 FROM batches WHERE batch_id=?", (batch_id,)).fetchone() is not None

    def file_owner(self, file_id: str) -> str | None:
        row = self._db.execute("SELECT shard FROM files WHERE file_id=?", (file_id,)).fetchone()
        return None if row is None else str(row[0])

    def oldest_file(self, shard: str) -> float | None:
        """The service's clock when the first file of a shard came to be."""
        row = self._db.execute("SELECT MIN(created_at) FROM files WHERE shard=?", (shard,)).fetchone()
        return None if row[0] is None else float(row[0])

    def found(self, shard: str) -> list[e.Found]:
        """Batches of a shard that were found and run it not yet."""
        query = "SELECT body FROM found WHERE shard=? ORDER BY create_no"
        return [_found.decode(b) for (b,) in self._db.execute(query, (shard,))]

    def found_spans(self) -> dict[int, int]:
        """Lines by first ordinal of the segments of found batches."""
        spans = (tags.parse_span(_found.decode(b).rows) for (b,) in self._db.execute("SELECT body FROM found"))
        return dict(span for span in spans if span is not None)

    def findable(self, states: Sequence[ShardState]) -> list[str]:
        """Shards in these states for which a batch was found, oldest segment first."""
        marks = ",".join("?" * len(states))
        query = f"""SELECT name FROM shards s WHERE state IN ({marks})
                    AND EXISTS (SELECT 1 FROM found f WHERE f.shard = s.name) ORDER BY first_segment, name"""
        return [name for (name,) in self._db.execute(query, [s.value for s in states])]

    def ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of the tables, for questions that are asked in modules of their own."""
        return self._db.execute(query, values).fetchall()


@contextmanager
def read_only(path: str) -> Iterator[Store]:
    """A look from another process: opened, read, closed. Raises JournalError."""
    with database.mapped(path), closing(database.connect_to_read(path)) as db:
        store = Store.__new__(Store)
        store._db, store.shared = db, True
        store._broken = JournalError("opened for reading only")
        yield store


class Journal:
    """The store behind one lock, off the event loop. `listen` hears each event after it is durable."""

    def __init__(
        self, store: Store, blocking: Blocking, listen: Callable[[e.Event], None], failpoints: Failpoints | None = None
    ) -> None:
        self._store = store
        self._blocking = blocking
        self._listen = listen
        self._failpoints = Failpoints() if failpoints is None else failpoints
        self._lock = anyio.Lock()
        self.appended = 0  # events, by this process
        self.shared = store.shared

    async def append(self, *events: e.Event) -> None:
        """Make events durable; a cancelled caller still waits for the write. Raises JournalError."""
        with anyio.CancelScope(shield=True):
            self._pass("before", events)
            async with self._lock:
                await self._blocking(self._store.append, events)
            self.appended += len(events)
            self._pass("after", events)
            for event in events:
                self._listen(event)

    def _pass(self, when: str, events: Sequence[e.Event]) -> None:
        for event in events:
            self._failpoints.hit(f"{when}-{type(event).__name__}")

    async def read(self, query: Callable[Concatenate[Store, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Ask the store: `await journal.read(Store.shard, name)`. Raises JournalError."""
        async with self._lock:
            try:
                return await self._blocking(lambda: query(self._store, *args, **kwargs))
            except sqlite3.Error as error:
                raise JournalError(f"The journal can't be used: {error}.", hint=database.HINT) from error

    async def aclose(self) -> None:
        with anyio.CancelScope(shield=True):
            async with self._lock:
                await self._blocking(self._store.close)
