"""The database of files and batches: SQLite in WAL mode, one connection, one lock, short transactions.

Survives SIGKILL at any instant. Nothing is synced, contents neither: a power cut may cost the data directory.
"""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from streambatch.errors import ConfigError
from streambatch.server.accounts import Account
from streambatch.server.records import LIVE, Batch, File, Part, Upload

VERSION = 3
Row = TypeVar("Row", File, Upload, Part, Batch)
_LIVE = ", ".join(f"'{status}'" for status in LIVE)


def _columns(kind: type[msgspec.Struct]) -> str:
    return ", ".join(f'"{name}"' for name in kind.__struct_fields__)


def _schema() -> str:
    rest = {kind: _columns(kind).replace('"seq"', '"seq" INTEGER PRIMARY KEY AUTOINCREMENT') for kind in _TABLES}
    return f"""
        CREATE TABLE files ({rest[File]});
        CREATE UNIQUE INDEX files_id ON files (id);
        CREATE INDEX files_content ON files (content);
        CREATE INDEX files_purpose ON files (purpose, seq);
        CREATE INDEX files_run ON files (run, delivered, rows);
        CREATE TABLE uploads ({rest[Upload]});
        CREATE UNIQUE INDEX uploads_id ON uploads (id);
        CREATE TABLE parts ({rest[Part]});
        CREATE INDEX parts_upload ON parts (upload_id);
        CREATE INDEX parts_content ON parts (content);
        CREATE TABLE batches ({rest[Batch]});
        CREATE UNIQUE INDEX batches_id ON batches (id);
        CREATE INDEX batches_live ON batches (status) WHERE status IN ({_LIVE});
        CREATE INDEX batches_run ON batches (run, status, executed, lost);
        CREATE INDEX batches_due ON batches (seq) WHERE event_due = 1;
        CREATE TABLE peaks (run PRIMARY KEY, batches INTEGER NOT NULL);
        PRAGMA user_version = {VERSION};
    """


class Store:
    """All reads and writes of the database; safe to call from any thread."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = OFF")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._db.executescript(f"BEGIN; {_schema()} COMMIT;")
        except sqlite3.Error as error:
            raise ConfigError(f"The server's database {path} can't be opened: {error}.") from error
        if version not in (0, VERSION):
            raise ConfigError(f"The server's database {path} has version {version}, this streambatch knows {VERSION}.")

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _all(self, sql: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    # ------------------------------------------------------------------ files

    def add_file(self, file: File) -> File:
        with self._transaction() as db:
            return _insert(db, file)

    def file(self, file_id: str) -> File | None:
        """A file that a client may see: not deleted, not expired."""
        rows = self._all(f"SELECT {_columns(File)} FROM files WHERE id = ? AND NOT deleted", file_id)
        found = File(*rows[0]) if rows else None
        now = time.time()
        if found is None or found.expires_at <= now or found.gone_at <= now or found.visible_at > now:
            return None
        return found

    def files(self, purpose: str | None, limit: int, after: int | None, newest_first: bool) -> list[File]:
        """A page of files from the one after `after` (a seq) on."""
        where, values = ["NOT deleted", "min(expires_at, gone_at) > ?", "visible_at <= ?"], [time.time()] * 2
        if purpose is not None:
            where, values = [*where, "purpose = ?"], [*values, purpose]  # type: ignore[list-item]
        if after is not None:
            where, values = [*where, f"seq {'<' if newest_first else '>'} ?"], [*values, after]
        order = "DESC" if newest_first else "ASC"
        sql = f"SELECT {_columns(File)} FROM files WHERE {' AND '.join(where)} ORDER BY seq {order} LIMIT {limit:d}"
        return [File(*row) for row in self._all(sql, *values)]

    def delete_file(self, seq: int) -> None:
        with self._transaction() as db:
            db.execute("UPDATE files SET deleted = 1 WHERE seq = ?", (seq,))

    def lose_file(self, file_id: str, at: float) -> None:
        """From then on the file can't be seen any more."""
        with self._transaction() as db:
            db.execute("UPDATE files SET gone_at = ? WHERE id = ?", (at, file_id))

    def mark_delivered(self, seq: int) -> None:
        """This file was downloaded completely (once more)."""
        with self._transaction() as db:
            db.execute("UPDATE files SET delivered = 1 WHERE seq = ?", (seq,))

    def is_read(self, content: str) -> bool:
        """Whether a live batch reads this content."""
        return bool(
            self._all(f"SELECT 1 FROM batches WHERE status IN ({_LIVE}) AND input_content = ? LIMIT 1", content)
        )

    def is_kept(self, content: str) -> bool:
        """Whether a file that can still be seen has this content, or an upload that can still be completed."""
        sql = "SELECT 1 FROM files WHERE content = ?1 AND NOT deleted AND expires_at > ?2 UNION ALL "
        sql += "SELECT 1 FROM parts, uploads ON upload_id = uploads.id WHERE content = ?1 AND expires_at > ?2 LIMIT 1"
        return bool(self._all(sql, content, time.time()))

    # ---------------------------------------------------------------- uploads

    def add_upload(self, upload: Upload) -> Upload:
        with self._transaction() as db:
            return _insert(db, upload)

    def upload(self, upload_id: str) -> Upload | None:
        rows = self._all(f"SELECT {_columns(Upload)} FROM uploads WHERE id = ?", upload_id)
        return Upload(*rows[0]) if rows else None

    def add_part(self, part: Part) -> bool:
        """Keep a part, if its upload still waits for any."""
        waits = "SELECT 1 FROM uploads WHERE id = ? AND status = 'pending' AND expires_at > ?"
        with self._transaction() as db:
            pending = db.execute(waits, (part.upload_id, time.time())).fetchone() is not None
            if pending:
                _insert(db, part)
        return pending

    def parts(self, upload_id: str) -> list[Part]:
        return [Part(*row) for row in self._all(f"SELECT {_columns(Part)} FROM parts WHERE upload_id = ?", upload_id)]

    def drop_parts(self, upload_id: str) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM parts WHERE upload_id = ?", (upload_id,))

    def complete_upload(self, upload: Upload, file: File) -> File | None:
        """The upload's end and its file, seen together; None if it had ended already."""
        with self._transaction() as db:
            return _insert(db, file) if _end_upload(db, upload, "completed") else None

    def cancel_upload(self, upload: Upload) -> bool:
        with self._transaction() as db:
            return _end_upload(db, upload, "cancelled")

    def dead_uploads(self) -> list[str]:
        """Uploads that nobody can complete any more and that still have parts."""
        sql = "SELECT DISTINCT upload_id FROM parts, uploads ON upload_id = uploads.id WHERE status != 'pending' OR expires_at <= ?"
        return [upload_id for (upload_id,) in self._all(sql, time.time())]

    # ---------------------------------------------------------------- batches

    def add_batch(self, batch: Batch) -> Batch:
        with self._transaction() as db:
            added = _insert(db, batch)
            for run in {"", batch.run}:
                sql = f"SELECT count(*) FROM batches WHERE status IN ({_LIVE}) AND (? = '' OR run = ?)"
                live = db.execute(sql, (run, run)).fetchone()[0]
                db.execute(
                    "INSERT INTO peaks VALUES (?1, ?2) ON CONFLICT DO UPDATE SET batches = max(batches, ?2)",
                    (run, live),
                )
        return added

    def batch(self, seq: int) -> Batch:
        return Batch(*self._all(f"SELECT {_columns(Batch)} FROM batches WHERE seq = ?", seq)[0])

    def batch_by_id(self, batch_id: str) -> Batch | None:
        rows = self._all(f"SELECT {_columns(Batch)} FROM batches WHERE id = ?", batch_id)
        return Batch(*rows[0]) if rows else None

    def batches(self, limit: int, after: int | None) -> list[Batch]:
        """A page of what the list shows, newest first."""
        sql = f"SELECT {_columns(Batch)} FROM batches WHERE hidden_until <= ? AND seq < ? ORDER BY seq DESC LIMIT ?"
        return [Batch(*row) for row in self._all(sql, time.time(), 1 << 62 if after is None else after, limit)]

    def created_since(self, moment: float) -> list[float]:
        """When the newest batches were created, oldest first; at most 10,000 of them."""
        sql = "SELECT created_at FROM batches ORDER BY seq DESC LIMIT 10000"
        return [created for (created,) in self._all(sql) if created >= moment][::-1]

    def live_batches(self) -> list[int]:
        """Every batch that is not at its end, oldest first."""
        return [seq for (seq,) in self._all(f"SELECT seq FROM batches WHERE status IN ({_LIVE}) ORDER BY seq")]

    def due_events(self, limit: int) -> list[Batch]:
        """Batches whose end is yet to be told, oldest first."""
        terminal = f"event_due = 1 AND status NOT IN ({_LIVE})"
        return [
            Batch(*row)
            for row in self._all(f"SELECT {_columns(Batch)} FROM batches WHERE {terminal} ORDER BY seq LIMIT ?", limit)
        ]

    def settle_event(self, seq: int) -> None:
        with self._transaction() as db:
            db.execute("UPDATE batches SET event_due = 0 WHERE seq = ?", (seq,))

    def queued(self, model: str | None) -> tuple[int, int]:
        """(tokens, rows) enqueued for a model: of batches past validation and not at their end."""
        sql = f"SELECT total(queued_tokens), total(total) FROM batches WHERE status IN ({_LIVE}) AND model = ?"
        tokens, rows = self._all(sql, model)[0]
        return int(tokens), int(rows)

    def update(self, seq: int, was: tuple[str, ...], **columns: Any) -> bool:
        """Change a batch if it is still in one of these states; whether it was."""
        names = ", ".join(f'"{name}" = ?' for name in columns)
        sql = f"UPDATE batches SET {names} WHERE seq = ? AND status IN ({', '.join('?' * len(was))})"
        with self._transaction() as db:
            return db.execute(sql, (*columns.values(), seq, *was)).rowcount == 1

    def finish(self, seq: int, was: str, files: list[File], **columns: Any) -> bool:
        """A batch's end and its files, seen together; whether the batch was still in that state."""
        names = ", ".join(f'"{name}" = ?' for name in columns)
        with self._transaction() as db:
            cursor = db.execute(
                f"UPDATE batches SET {names} WHERE seq = ? AND status = ?", (*columns.values(), seq, was)
            )
            if cursor.rowcount == 1:
                for file in files:
                    _insert(db, file)
            return cursor.rowcount == 1

    # ----------------------------------------------------------------- ledger

    def totals(self, run: str | None) -> dict[str, int]:
        """The sums of the ledger that are cheap; of one run, or of all."""
        one, values = ("WHERE run = ?", (run,)) if run is not None else ("", ())
        batches = self._all(f"SELECT count(*), total(executed), total(lost) FROM batches {one}", *values)[0]
        given = "AND run = ?" if run is not None else ""
        delivered = self._all(f"SELECT total(rows) FROM files WHERE delivered = 1 {given}", *values)[0][0]
        peak = self._all("SELECT batches FROM peaks WHERE run = ?", "" if run is None else run)
        return {
            "rows_executed": int(batches[1]),
            "results_delivered": int(delivered),
            "rows_lost": int(batches[2]),
            "batches": batches[0],
            "batches_at_once": peak[0][0] if peak else 0,
        }

    def executed(self, run: str | None) -> list[tuple[int, int]]:
        """(seq, rows executed) of every batch that executed any, of one run or of all."""
        one, values = ("AND run = ?", (run,)) if run is not None else ("", ())
        return self._all(f"SELECT seq, executed FROM batches WHERE executed > 0 {one}", *values)

    def accounts(self, run: str | None) -> list[Account]:
        """The same batches, row by row."""
        one, values = ("AND batches.run = ?", (run,)) if run is not None else ("", ())
        sql = (
            "SELECT batches.run, batches.seq, names_bytes, ifnull(o.delivered, 0), ifnull(e.delivered, 0) FROM batches "
        )
        sql += "LEFT JOIN files AS o ON o.id = output_file_id LEFT JOIN files AS e ON e.id = error_file_id "
        return [Account(*row) for row in self._all(f"{sql} WHERE executed > 0 {one} ORDER BY batches.seq", *values)]


def _insert(db: sqlite3.Connection, row: Row) -> Row:
    values = msgspec.structs.astuple(row)
    cursor = db.execute(f"INSERT INTO {_TABLES[type(row)]} VALUES ({', '.join('?' * len(values))})", values)
    return msgspec.structs.replace(row, seq=cursor.lastrowid)


def _end_upload(db: sqlite3.Connection, upload: Upload, status: str) -> bool:
    sql = "UPDATE uploads SET status = ? WHERE seq = ? AND status = 'pending'"
    return db.execute(sql, (status, upload.seq)).rowcount == 1


_TABLES: dict[type, str] = {File: "files", Upload: "uploads", Part: "parts", Batch: "batches"}
