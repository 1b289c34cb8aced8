"""Questions to the journal about spares: found batches that no shard runs, whose results are taken before rows are bought again.

A spare has a number; what was asked up to a number need not ask there again. Decides nothing.
"""

import msgspec

from streambatch.core import events as e
from streambatch.core import tags
from streambatch.core.models import Shard
from streambatch.core.wire import TERMINAL
from streambatch.edge.journal import Store

GIVEN_UP = "given_up"  # how a spare ended that nobody waits for any more
_found = msgspec.json.Decoder(e.Found)
_shards = msgspec.json.Decoder(Shard)


class Spare(msgspec.Struct, frozen=True):
    """A spare, and what it left, once it has ended. `cancelled`: by us."""

    find: e.Found
    status: str
    output_id: str | None
    error_id: str | None
    cancelled: bool


class Place(msgspec.Struct, frozen=True):
    """Where a run directory stands."""

    host: str
    inode: int


def unread(store: Store) -> list[e.Found]:
    """Finds that may hold rows which would be bought, oldest first: batches of lost remainders, and more than one batch of a
    shard that has rows in the pool."""
    query = """SELECT f.body, s.body FROM found f LEFT JOIN shards s ON s.name = f.shard WHERE f.shard GLOB 'r[0-9]*'"""
    finds = {find.batch_id: find for find in (_lost(*row) for row in store.ask(query)) if find is not None}
    query = "SELECT DISTINCT f.body FROM pool p JOIN found f ON f.shard = p.parent WHERE p.taken < p.rows"
    for (body,) in store.ask(query):
        find = _found.decode(body)
        finds[find.batch_id] = find
    query = """SELECT f.body FROM shards s CROSS JOIN found f ON f.shard = s.name WHERE s.state = 'submitted'
               AND NOT EXISTS(SELECT 1 FROM surplus x WHERE x.batch_id = f.batch_id)"""
    late = """SELECT f.body FROM batches b CROSS JOIN found f ON f.batch_id = b.batch_id CROSS JOIN shards s ON s.name = f.shard
               WHERE b.status = 'given_up' AND s.swept = 0"""
    for (body,) in [*store.ask(query), *store.ask(late)]:
        find = _found.decode(body)
        if find.status in TERMINAL:
            finds[find.batch_id] = find
    ran = (find for find in finds.values() if find.status != "failed")
    return sorted(ran, key=lambda find: (find.created_at, find.create, find.batch_id))


def _lost(body: bytes, shard: bytes | None) -> e.Found | None:
    """A batch of a remainder that the journal does not know, be it that another one has its name."""
    find = _found.decode(body)
    return find if shard is None or find.hash not in ("", _shards.decode(shard).hash) else None


def given_up(store: Store) -> list[str]:
    """Batches that were given up and whose rows may still wait for an outcome."""
    query = """SELECT DISTINCT b.batch_id FROM batches b CROSS JOIN shards s ON s.name = b.shard JOIN touches t ON t.shard = b.shard
               JOIN segments g ON g.idx = t.segment WHERE b.status = 'given_up' AND s.swept = 0 AND g.open_rows > 0
               AND NOT EXISTS(SELECT 1 FROM found f WHERE f.batch_id = b.batch_id)"""
    return [batch_id for (batch_id,) in store.ask(query)]


def rivals(store: Store, above: int) -> list[tuple[int, Shard]]:
    """Spares numbered above one that ended with answers, each with a shard in flight that has rows of the same segments."""
    query = """SELECT p.number, s.body FROM spares p JOIN batches b ON b.batch_id = p.batch_id JOIN touches t ON t.shard = p.shard
               JOIN touches u ON u.segment = t.segment JOIN shards s ON s.name = u.shard LEFT JOIN seen n ON n.shard = s.name
               WHERE p.number > ? AND p.ended = 1 AND b.output_id IS NOT NULL AND s.state = 'submitted'
               AND p.number > IFNULL(n.number, 0) ORDER BY p.number, s.name"""
    return [(number, _shards.decode(body)) for number, body in store.ask(query, above)]


def live(store: Store) -> list[e.Found]:
    """Spares that have not ended, as far as the journal knows."""
    return [_found.decode(body) for (body,) in store.ask("SELECT body FROM spares WHERE ended = 0 ORDER BY number")]


def highest(store: Store) -> int:
    """The number of the newest spare; 0 where there is none."""
    return int(store.ask("SELECT IFNULL(MAX(number), 0) FROM spares")[0][0])


def highest_ended(store: Store) -> int:
    """The number up to which all spares have ended."""
    lowest = store.ask("SELECT MIN(number) FROM spares WHERE ended = 0")[0][0]
    return highest(store) if lowest is None else int(lowest) - 1


def seen(store: Store, shard: str) -> int:
    """The highest number that the rows of a shard were asked for when it was made."""
    rows = store.ask("SELECT number FROM seen WHERE shard=?", shard)
    return int(rows[0][0]) if rows else 0


def spare(store: Store, number: int) -> Spare:
    query = """SELECT s.body, b.status, b.output_id, b.error_id, EXISTS(SELECT 1 FROM surplus x WHERE x.batch_id = s.batch_id)
               FROM spares s JOIN batches b ON b.batch_id = s.batch_id WHERE s.number = ?"""
    body, status, output_id, error_id, cancelled = store.ask(query, number)[0]
    return Spare(_found.decode(body), status, output_id, error_id, bool(cancelled))


def next_remainder(store: Store) -> int:
    """A number for a remainder that no remainder has had, ours or a found one."""
    query = " UNION ALL ".join(
        f"SELECT * FROM (SELECT {name} FROM {table} WHERE {name} GLOB 'r[0-9]*' ORDER BY {name} DESC LIMIT 1)"
        for name, table in (("name", "shards"), ("shard", "found"), ("shard", "spares"))
    )
    used = max((tags.remainder_number(name) for (name,) in store.ask(query)), default=-1)
    return max(used + 1, store.totals().get("remainders", 0))


def crowded(store: Store) -> list[str]:
    """Known shards of which other batches were found than the one they have or had."""
    query = "SELECT DISTINCT f.shard FROM found f JOIN shards s ON s.name = f.shard ORDER BY f.shard"
    return [name for (name,) in store.ask(query)]


def all_live(store: Store) -> list[e.Found]:
    """Every batch that was found, runs no shard, and has not ended as far as the journal knows."""
    finds = (_found.decode(body) for (body,) in store.ask("SELECT body FROM found ORDER BY batch_id"))
    return [*(find for find in finds if find.status not in TERMINAL), *live(store)]


def cancelled(store: Store, batch_id: str) -> bool:
    """Whether we asked to cancel a find."""
    return bool(store.ask("SELECT 1 FROM surplus WHERE batch_id=?", batch_id))


# -- where the run stands


def trusted(store: Store) -> Place | None:
    """Where the run directory stood when absence was last proven, or else when the run began."""
    swept = store.last(e.Swept)
    if swept is not None and swept.inode:
        return Place(swept.host, swept.inode)
    rows = store.ask("SELECT body FROM events WHERE kind='Opened' ORDER BY seq LIMIT 1")
    return _place(msgspec.json.decode(rows[0][0], type=e.Opened)) if rows else None


def standing(store: Store) -> Place | None:
    """Where it stands now."""
    opened = store.last(e.Opened)
    return None if opened is None else _place(opened)


def _place(opened: e.Opened) -> Place:
    return Place(opened.host, opened.inode)
