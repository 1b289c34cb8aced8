"""Questions to the event log about what was: asked seldom, by the policies. Knows no policy."""

import msgspec

from streambatch.core import events as e
from streambatch.edge.journal import Store


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
