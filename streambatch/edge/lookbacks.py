"""Questions to the journal about what was: asked seldom, or once per entry. Knows no policy."""

import msgspec

from streambatch.core import events as e
from streambatch.core.models import Shard
from streambatch.edge.journal import Store

_events = msgspec.json.Decoder(e.AnyEvent)


def next_event(store: Store, after: int, *kinds: type[e.Event]) -> tuple[int, e.AnyEvent | None]:
    """The first event of these kinds behind entry `after`, with its entry; where there is none, the newest entry and None."""
    [(newest,)] = store.ask("SELECT MAX(seq) FROM events")
    marks = ",".join("?" * len(kinds))
    query = f"SELECT seq, body FROM events WHERE seq > ? AND kind IN ({marks}) ORDER BY seq LIMIT 1"
    for seq, body in store.ask(query, after, *(kind.__name__ for kind in kinds)):
        return seq, _events.decode(body)
    return (after if newest is None else max(after, newest)), None


def published_before(store: Store) -> e.Publishing | None:
    """What this run published last, though it may have been opened again since."""
    query = """SELECT body FROM events WHERE kind='Publishing'
               AND seq < (SELECT MAX(seq) FROM events WHERE kind='Published') ORDER BY seq DESC LIMIT 1"""
    rows = store.ask(query)
    return msgspec.json.decode(rows[0][0], type=e.Publishing) if rows else None


def never_published(store: Store) -> bool:
    """Whether this run has not even meant to publish."""
    return not store.ask("SELECT 1 FROM events WHERE kind='Publishing' LIMIT 1")


def flown_since(store: Store) -> float | None:
    """When the newest batch that is in flight was created, unix seconds; None where there is none."""
    query = """SELECT MAX(e.at) FROM shards s JOIN events e ON e.shard = s.name
               WHERE s.state = 'submitted' AND e.kind = 'Submitted'"""
    [(at,)] = store.ask(query)
    return None if at is None else float(at)


def any_swept(store: Store) -> bool:
    """Whether files of a settled shard have left the spool."""
    return bool(store.ask("SELECT 1 FROM shards WHERE swept=1 AND state='settled' LIMIT 1"))


def awaited(store: Store, segment: int) -> list[Shard]:
    """The first shards of a segment's rows, those that are not settled."""
    query = """SELECT s.body FROM touches t JOIN shards s ON s.name = t.shard
               WHERE t.segment=? AND s.state <> 'settled' ORDER BY s.name"""
    shards = [msgspec.json.decode(body, type=Shard) for (body,) in store.ask(query, segment)]
    return [shard for shard in shards if shard.segment is not None]


def touched(store: Store, shard: str) -> list[int]:
    """The segments that a shard has rows of, ascending."""
    return [index for (index,) in store.ask("SELECT segment FROM touches WHERE shard=? ORDER BY segment", shard)]


def settled_last(store: Store, limit: int) -> list[e.Settled]:
    """What the shards that were settled last came to, newest first."""
    rows = store.ask("SELECT body FROM events WHERE kind='Settled' ORDER BY seq DESC LIMIT ?", limit)
    return [msgspec.json.decode(body, type=e.Settled) for (body,) in rows]


def refused_since(store: Store, shard: str) -> float | None:
    """When a shard was first refused with nothing of ours in the queue, unix seconds of this machine."""
    rows = store.ask("SELECT at, body FROM events WHERE shard=? AND kind='Refused' ORDER BY seq", shard)
    alone = (at for at, body in rows if msgspec.json.decode(body, type=e.Refused).alone)
    return next(alone, None)


def cancel_asked(store: Store, shard: str) -> float | None:
    """When the service was last asked to cancel the batch of a shard, unix seconds of this machine."""
    [(at,)] = store.ask("SELECT MAX(at) FROM events WHERE shard=? AND kind='CancelAsked'", shard)
    return None if at is None else float(at)
