"""What each event does to the journal's state rows. Runs inside the transaction that stores the event.

Knows the tables and the lifecycle; decides nothing, and replaying all events into empty tables gives the same rows.
"""

import sqlite3

import msgspec

from streambatch.core import events as e
from streambatch.core import lifecycle
from streambatch.core.models import Segment, Shard
from streambatch.errors import JournalError

SCHEMA = """
CREATE TABLE events(seq INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, shard TEXT, body BLOB NOT NULL);
CREATE INDEX events_by_shard ON events(shard, kind) WHERE shard IS NOT NULL;
CREATE TABLE run(name TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE totals(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE segments(
    idx INTEGER PRIMARY KEY, open_rows INTEGER NOT NULL, merged INTEGER NOT NULL, source_hash TEXT NOT NULL,
    rows INTEGER NOT NULL, bad INTEGER NOT NULL, skipped INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE shards(
    name TEXT PRIMARY KEY, state TEXT NOT NULL, model TEXT NOT NULL, generation INTEGER NOT NULL,
    first_segment INTEGER NOT NULL, last_segment INTEGER NOT NULL, swept INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX shards_by_state ON shards(state, first_segment, name);
CREATE INDEX shards_by_end ON shards(swept, last_segment);
CREATE TABLE touches(segment INTEGER, shard TEXT, rows INTEGER NOT NULL, PRIMARY KEY(segment, shard)) WITHOUT ROWID;
CREATE TABLE files(file_id TEXT PRIMARY KEY, shard TEXT NOT NULL, created_at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX files_by_shard ON files(shard, created_at);
CREATE TABLE batches(
    batch_id TEXT PRIMARY KEY, shard TEXT NOT NULL, create_no INTEGER NOT NULL, file_id TEXT, status TEXT NOT NULL,
    output_id TEXT, error_id TEXT) WITHOUT ROWID;
CREATE TABLE found(
    batch_id TEXT PRIMARY KEY, shard TEXT NOT NULL, create_no INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX found_by_shard ON found(shard);
CREATE TABLE pool(
    parent TEXT, generation INTEGER, model TEXT NOT NULL, max_rows INTEGER NOT NULL, first_segment INTEGER NOT NULL,
    rows INTEGER NOT NULL, taken INTEGER NOT NULL, settled INTEGER NOT NULL, PRIMARY KEY(parent, generation)) WITHOUT ROWID;
CREATE INDEX pool_open ON pool(model, generation, max_rows, first_segment) WHERE taken < rows;
"""
ADDED = """
CREATE TABLE IF NOT EXISTS spares(
    number INTEGER PRIMARY KEY, batch_id TEXT NOT NULL, shard TEXT NOT NULL, ended INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS spares_live ON spares(number) WHERE ended = 0;
CREATE INDEX IF NOT EXISTS spares_by_batch ON spares(batch_id);
CREATE TABLE IF NOT EXISTS seen(shard TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS surplus(batch_id TEXT PRIMARY KEY, shard TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS remote(
    file_id TEXT PRIMARY KEY, kind TEXT NOT NULL, shard TEXT NOT NULL, batch TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS remote_by_kind ON remote(kind, shard);
CREATE INDEX IF NOT EXISTS shards_by_model ON shards(state, model, first_segment, name);
CREATE INDEX IF NOT EXISTS batches_open ON batches(shard) WHERE status = '';
CREATE INDEX IF NOT EXISTS batches_given_up ON batches(batch_id) WHERE status = 'given_up';
CREATE INDEX IF NOT EXISTS batches_open_file ON batches(file_id) WHERE status = '';
INSERT OR IGNORE INTO remote SELECT file_id, 'input', shard, '' FROM files;
INSERT OR IGNORE INTO remote SELECT file_id, 'input', shard, '' FROM batches WHERE file_id IS NOT NULL;
INSERT OR IGNORE INTO remote SELECT output_id, 'output', shard, '' FROM batches WHERE output_id IS NOT NULL;
INSERT OR IGNORE INTO remote SELECT error_id, 'error', shard, '' FROM batches WHERE error_id IS NOT NULL;
"""  # what the first journals did not have
USER_VERSION = 1
REASON = "reason\n"
MAX_REASONS = 200
TABLES = (
    "run", "totals", "segments", "shards", "touches", "files", "batches", "found", "pool", "spares", "seen", "surplus", "remote",
)  # fmt: skip

_shards = msgspec.json.Decoder(Shard)


def project(db: sqlite3.Connection, event: e.Event) -> None:
    """Bring the state rows up to date with one event. Raises JournalError where the event is illegal."""
    _remote(db, event)
    match event:
        case e.ShardEvent():
            _shard_event(db, event)
        case e.SegmentSealed():
            _segment_sealed(db, event)
        case e.RemainderSealed():
            _remainder_sealed(db, event)
        case e.Merged():
            _merged(db, event)
        case e.Found():
            body = msgspec.json.encode(event)
            db.execute(
                "INSERT OR REPLACE INTO found VALUES(?,?,?,?)", (event.batch_id, event.shard, event.create, body)
            )
        case e.SpareRead():
            _spare_read(db, event)
        case e.SpareEnded():
            db.execute("UPDATE spares SET ended=1 WHERE batch_id=?", (event.batch_id,))
            _ended(db, event.batch_id, event.status, event.output_id, event.error_id)
        case e.SurplusCancelled():
            db.execute("INSERT OR IGNORE INTO surplus VALUES(?,?)", (event.batch_id, event.shard))
        case e.Deleted():
            add(db, files_deleted=1)
        case e.Reopened():
            db.execute("DELETE FROM run WHERE name IN ('Publishing', 'Published', 'Exhausted')")
        case _:
            _keep(db, event)


def _keep(db: sqlite3.Connection, event: e.Event) -> None:
    body = msgspec.json.encode(event)
    db.execute("INSERT OR REPLACE INTO run VALUES(?,?)", (type(event).__name__, body))


def add(db: sqlite3.Connection, **amounts: int) -> None:
    """Raise the named totals."""
    for name, amount in amounts.items():
        db.execute(
            "INSERT INTO totals VALUES(?,?) ON CONFLICT DO UPDATE SET value = value + excluded.value", (name, amount)
        )


# -- files at the provider


def _remote(db: sqlite3.Connection, event: e.Event) -> None:
    """Files of this run that are at the provider, until they are deleted. `batch`: of a batch that no shard of ours runs."""
    match event:
        case e.Uploaded(file_id=file_id, shard=shard) | e.Submitted(file_id=str(file_id), shard=shard):
            db.execute("INSERT OR REPLACE INTO remote VALUES(?,'input',?,'')", (file_id, shard))
        case e.BatchFinished(shard=shard) | e.Downloaded(shard=shard):
            _results(db, event.output_id, event.error_id, shard, "")
        case e.Found(file_id=str(file_id), shard=shard, batch_id=batch):
            db.execute("INSERT OR IGNORE INTO remote VALUES(?,'input',?,?)", (file_id, shard, batch))
        case e.SpareEnded(batch_id=batch):
            row = db.execute("SELECT shard FROM spares WHERE batch_id=?", (batch,)).fetchone()
            _results(db, event.output_id, event.error_id, "" if row is None else row[0], batch)
        case e.Deleted(file_id=file_id):
            db.execute("DELETE FROM remote WHERE file_id=?", (file_id,))


def _results(db: sqlite3.Connection, output_id: str | None, error_id: str | None, shard: str, batch: str) -> None:
    for kind, file_id in (("output", output_id), ("error", error_id)):
        if file_id:
            db.execute("INSERT OR REPLACE INTO remote VALUES(?,?,?,?)", (file_id, kind, shard, batch))


def _insert_shard(db: sqlite3.Connection, shard: Shard, segments: tuple[tuple[int, int], ...]) -> None:
    row = (shard.name, shard.state.value, shard.model, shard.generation, shard.first_segment, shard.last_segment)
    db.execute("INSERT INTO shards VALUES(?,?,?,?,?,?,0,?)", (*row, msgspec.json.encode(shard)))
    db.executemany("INSERT INTO touches VALUES(?,?,?)", [(s, shard.name, n) for s, n in segments])


def _segment_sealed(db: sqlite3.Connection, event: e.SegmentSealed) -> None:
    segment: Segment = event.segment
    open_rows = event.rows - event.bad - event.skipped
    counts = (event.source_hash, event.rows, event.bad, event.skipped)
    db.execute(
        "INSERT INTO segments VALUES(?,?,0,?,?,?,?,?)",
        (segment.index, open_rows, *counts, msgspec.json.encode(segment)),
    )
    for shard in event.shards:
        _insert_shard(db, shard, ((segment.index, shard.rows),))
    add(
        db,
        rows=event.rows,
        bad=event.bad,
        skipped=event.skipped,
        segments=1,
        shards=len(event.shards),
        bytes_read=segment.bytes,
    )


def _remainder_sealed(db: sqlite3.Connection, event: e.RemainderSealed) -> None:
    _insert_shard(db, event.made, event.segments)
    for take in event.takes:
        found = db.execute(
            "SELECT taken FROM pool WHERE parent=? AND generation=?", (take.parent, take.generation)
        ).fetchone()
        if found is None or found[0] != take.first:
            raise JournalError(f"remainder {event.made.name} takes rows of {take.parent} that are not in the pool.")
        db.execute("UPDATE pool SET taken=? WHERE parent=? AND generation=?", (take.last, take.parent, take.generation))
    if event.seen:
        db.execute("INSERT INTO seen VALUES(?,?)", (event.made.name, event.seen))
    add(db, shards=1, remainders=1, retried=event.made.rows, left=-event.made.rows)


def _spare_read(db: sqlite3.Connection, event: e.SpareRead) -> None:
    """A find becomes a spare: known, and asked for rows before they are bought."""
    row = db.execute("SELECT body FROM found WHERE batch_id=?", (event.batch_id,)).fetchone()
    if row is None:
        raise JournalError(f"batch {event.batch_id} was read as a spare, but the journal has not found it.")
    find = msgspec.json.decode(row[0], type=e.Found)
    db.execute("INSERT INTO spares VALUES(?,?,?,0,?)", (event.number, find.batch_id, find.shard, row[0]))
    known = (find.batch_id, find.shard, find.create, find.file_id)
    db.execute("INSERT OR REPLACE INTO batches VALUES(?,?,?,?,'',NULL,NULL)", known)
    db.execute("DELETE FROM found WHERE batch_id=?", (find.batch_id,))
    if event.missing:
        add(db, missing=event.missing)


def _ended(db: sqlite3.Connection, batch_id: str, status: str, output_id: str | None, error_id: str | None) -> None:
    ends = (status, output_id, error_id, batch_id)
    db.execute("UPDATE batches SET status=?, output_id=?, error_id=? WHERE batch_id=?", ends)


def _merged(db: sqlite3.Connection, event: e.Merged) -> None:
    db.execute("UPDATE segments SET merged=1 WHERE idx=?", (event.segment,))
    _keep(db, event)
    add(db, segments_merged=1, merged=event.done, merged_errors=event.errors, merged_skipped=event.skipped)
    for cls, reason, rows in event.reasons:
        add(db, **{_reason_name(db, cls, reason): rows})


def _reason_name(db: sqlite3.Connection, cls: str, reason: str) -> str:
    """The total that counts a reason; past `MAX_REASONS` distinct ones, new ones share a line per class."""
    name = f"{REASON}{cls}\n{reason}"
    known = db.execute("SELECT 1 FROM totals WHERE name=?", (name,)).fetchone()
    count = db.execute("SELECT COUNT(*) FROM totals WHERE name LIKE 'reason%'").fetchone()[0]
    return name if known or count < MAX_REASONS else f"{REASON}{cls}\nother reasons"


# -- shards


def _shard_event(db: sqlite3.Connection, event: e.ShardEvent) -> None:
    row = db.execute("SELECT body FROM shards WHERE name=?", (event.shard,)).fetchone()
    if row is None:
        raise JournalError(f"{type(event).__name__} of shard {event.shard}, which the journal does not know.")
    before = _shards.decode(row[0])
    after = lifecycle.apply(before, event)
    db.execute(
        "UPDATE shards SET state=?, body=? WHERE name=?", (after.state.value, msgspec.json.encode(after), after.name)
    )
    _beside(db, event, before)


def _beside(db: sqlite3.Connection, event: e.ShardEvent, shard: Shard) -> None:
    match event:
        case e.Uploaded(file_id=file_id, created_at=created_at):
            db.execute("INSERT OR REPLACE INTO files VALUES(?,?,?)", (file_id, shard.name, created_at))
        case e.Submitted(batch_id=batch_id, create=create, file_id=file_id):
            db.execute(
                "INSERT OR REPLACE INTO batches VALUES(?,?,?,?,'',NULL,NULL)", (batch_id, shard.name, create, file_id)
            )
            db.execute("DELETE FROM found WHERE batch_id=?", (batch_id,))
            add(db, batches=1)
        case e.BatchFinished(batch_id=batch_id, status=status, output_id=output_id, error_id=error_id):
            _ended(db, batch_id, status, output_id, error_id)
        case e.Refused() | e.InputLost() | e.Returned():
            db.execute("UPDATE batches SET status='failed' WHERE batch_id=?", (shard.batch_id,))
            if isinstance(event, e.Returned):
                _to_pool(db, shard, shard.generation, shard.rows, event.max_rows, settled=False)
        case e.GivenUp():
            db.execute("UPDATE batches SET status='given_up' WHERE batch_id=?", (shard.batch_id,))
        case e.Settled():
            _settled(db, event, shard)


def _settled(db: sqlite3.Connection, event: e.Settled, shard: Shard) -> None:
    for count in event.segments:
        db.execute(
            "UPDATE segments SET open_rows = open_rows - ? WHERE idx=?", (count.done + count.errors, count.segment)
        )
    for generation, rows in event.left:
        _to_pool(db, shard, generation, rows, 0, settled=True)
    usage = event.usage
    add(
        db,
        done=event.done,
        failed=event.errors,
        missing=event.missing,
        unknown=event.unknown,
        duplicate=event.duplicate,
    )
    add(db, input_tokens=usage.input_tokens, cached_tokens=usage.cached_tokens, output_tokens=usage.output_tokens)


def _to_pool(db: sqlite3.Connection, shard: Shard, generation: int, rows: int, max_rows: int, *, settled: bool) -> None:
    row = (shard.name, generation, shard.model, max_rows, shard.first_segment, rows, settled)
    db.execute("INSERT INTO pool VALUES(?,?,?,?,?,?,0,?)", row)
    add(db, left=rows)
