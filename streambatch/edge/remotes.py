"""Questions to the journal about files at the provider: which are there, whose they are, and what may still need them.

Deletes nothing and decides nothing.
"""

from collections.abc import Collection, Sequence
from itertools import product

import msgspec

from streambatch.core import events as e
from streambatch.core.models import Shard, ShardState
from streambatch.core.purging import Loose, Remote
from streambatch.edge.journal import Store

_shards = msgspec.json.Decoder(Shard)
_found = msgspec.json.Decoder(e.Found)
_FINAL = (ShardState.SETTLED.value, ShardState.RETURNED.value)
_SHARED = """EXISTS (SELECT 1 FROM spares p JOIN batches b ON b.batch_id = p.batch_id
               WHERE r.file_id IN (b.file_id, b.output_id, b.error_id))"""  # several remainders may read one spare


def disposable(store: Store, kinds: Sequence[str], limit: int, without: Collection[str] = ()) -> list[Remote]:
    """Files of shards whose every row is durably merged, and that no batch needs, as far as the journal knows; at most `limit`.

    Those of remainders and spares stay until the run is published: with the run directory lost, their input files say which rows
    they carry.
    """
    merged, published = store.totals().get("segments_merged", 0), store.last(e.Published) is not None
    query = f"""SELECT r.file_id, r.kind, r.shard FROM remote r JOIN shards s ON s.name = r.shard
               WHERE r.kind = ? AND r.shard >= ? AND r.shard < ?
               AND r.batch = '' AND s.state IN (?,?) AND s.last_segment < ?
               AND NOT EXISTS (SELECT 1 FROM batches b WHERE b.status = '' AND b.shard = r.shard)
               AND NOT EXISTS (SELECT 1 FROM batches b WHERE b.status = '' AND b.file_id = r.file_id)
               AND NOT EXISTS (SELECT 1 FROM events v WHERE v.shard = r.shard AND v.kind = 'GivenUp')
               AND NOT EXISTS (SELECT 1 FROM found f WHERE f.shard = r.shard)
               AND (? OR NOT {_SHARED})
               ORDER BY r.shard LIMIT ?"""
    found: list[Remote] = []
    for kind, (low, high) in product(kinds, _names(merged, published=published)):
        rows = store.ask(query, kind, low, high, *_FINAL, merged, published, limit - len(found) + len(without))
        found += [Remote(file_id, kind, shard) for file_id, kind, shard in rows if file_id not in without]
        if len(found) >= limit:
            break
    return found[:limit]


def _names(merged: int, *, published: bool) -> tuple[tuple[str, str], ...]:
    """Ranges of names in which the shards of merged segments are, so that those behind are not gone through: names of six digits
    have the order of their segments."""
    segments = ("0", f"{merged:06d}") if merged < 10**6 else ("0", ":")
    return (segments, ("r", "s")) if published else (segments,)


def every(store: Store) -> list[Remote]:
    """All files that the journal knows to be there, with what it says of their shards."""
    published = store.last(e.Published) is not None
    merged = store.totals().get("segments_merged", 0)
    query = f"""SELECT r.file_id, r.kind, r.shard, r.batch, s.body, {_SHARED} FROM remote r
               LEFT JOIN shards s ON s.name = r.shard ORDER BY r.shard, r.kind, r.file_id"""
    return [
        _remote(file_id, kind, shard, batch, body, merged if published or not (shared or shard[:1] == "r") else 0)
        for file_id, kind, shard, batch, body, shared in store.ask(query)
    ]


def _remote(file_id: str, kind: str, shard: str, batch: str, body: bytes | None, merged: int) -> Remote:
    if body is None or batch:
        return Remote(file_id, kind, shard, batch)
    return of_shard(file_id, kind, _shards.decode(body), merged)


def of_shard(file_id: str, kind: str, shard: Shard, merged: int) -> Remote:
    """A file of a shard; `merged` segments are."""
    whole = shard.last_segment < merged and shard.state.value in _FINAL
    return Remote(file_id, kind, shard.name, "", shard.state, shard.rows, whole)


def loose(store: Store) -> list[Loose]:
    """Batches that may need a file though no shard waits for them: not known to have ended, or found and never run."""
    query = """SELECT b.batch_id, b.shard, b.file_id, b.status = 'given_up' FROM batches b LEFT JOIN shards s ON s.name = b.shard
               WHERE b.status IN ('', 'given_up') AND (s.state IS NULL OR s.state != 'submitted') ORDER BY b.batch_id"""
    finds = (_found.decode(body) for (body,) in store.ask("SELECT body FROM found ORDER BY batch_id"))
    known = [Loose(batch, shard, file, bool(given_up)) for batch, shard, file, given_up in store.ask(query)]
    return known + [Loose(f.batch_id, f.shard, f.file_id) for f in finds]


def knows(store: Store, batch_id: str) -> bool:
    """Whether the journal has a batch, be it only found."""
    return store.knows_batch(batch_id) or bool(store.ask("SELECT 1 FROM found WHERE batch_id=?", batch_id))


def knows_file(store: Store, file_id: str) -> bool:
    """Whether a file stands among those that are there."""
    return bool(store.ask("SELECT 1 FROM remote WHERE file_id=?", file_id))


def deleted(store: Store) -> list[tuple[float, e.Deleted]]:
    """Files that were deleted, each with the time that the journal notes, oldest first."""
    query = "SELECT at, body FROM events WHERE kind='Deleted' ORDER BY seq"
    return [(at, msgspec.json.decode(body, type=e.Deleted)) for at, body in store.ask(query)]
