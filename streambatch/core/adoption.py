"""Which of several batches that carry a shard's tag is the one to go on with. Pure."""

import msgspec

from streambatch.core import tags
from streambatch.core.events import Found
from streambatch.core.models import Shard, ShardState
from streambatch.core.wire import TERMINAL, BatchInfo, BatchPage

S = ShardState
PAST_VALIDATION = ("in_progress", "finalizing", "completed", "expired", "cancelled")


class Choice(msgspec.Struct, frozen=True):
    """`keep` is the batch to adopt (None: none can be), `create` the highest create number that was ever used."""

    keep: Found | None
    create: int


def found(batch: BatchInfo, run: str, owner: str | None) -> Found | None:
    """A listed batch as a find, if it is ours: by its tag, or because it runs a file of the shard `owner`."""
    tag = tags.parse_tag(batch.metadata)
    if tag is not None and tag.run != run:
        tag = None
    if tag is None and owner is None:
        return None
    return Found(
        batch_id=batch.id,
        shard=tag.shard if tag else str(owner),
        create=tag.create if tag else 0,
        file_id=batch.input_file_id,
        hash=batch.metadata.get(tags.HASH, ""),
        rows=batch.metadata.get(tags.ROWS, ""),
        status=_status(batch),
        created_at=batch.created_at,
        generation=tags.generation(batch.metadata),
    )


def unknowable(batch: BatchInfo) -> bool:
    """Whether a listed batch shows neither metadata nor input file: then absence from the list proves nothing."""
    return not batch.metadata and not batch.input_file_id


class Reading(msgspec.Struct, frozen=True):
    """How far a reading of the list has come: the batches of its last page, and the last one of each page before."""

    page: frozenset[str] = frozenset()
    ends: frozenset[str] = frozenset()


def stuck(reading: Reading, page: BatchPage) -> bool:
    """Whether a page brings nothing that is older than what was read: its service can't turn pages, or says that there are more
    and shows none."""
    last = page.data[-1].id if page.data else None
    return (page.has_more and last is None) or last in reading.page or last in reading.ends


def turned(reading: Reading, page: BatchPage) -> Reading:
    """The reading after this page."""
    ids = [batch.id for batch in page.data]
    return Reading(frozenset(ids), reading.ends | frozenset(ids[-1:]))


def of_content(batches: list[Found], shard: Shard) -> list[Found]:
    """Those that run what a shard holds; one that was found by its input file may have no tag to say so."""
    return [b for b in batches if b.hash in ("", shard.hash)]


def surplus(state: ShardState, word: str | None, finds: list[Found]) -> list[Found]:
    """Which batches of a shard need not run on, because another one runs it and is past validation, or has ended."""
    if state is ShardState.SUBMITTED and word not in PAST_VALIDATION:
        return []
    has_run = state in (S.SUBMITTED, S.FINISHED, S.ADMITTED, S.DOWNLOADED, S.SETTLED)
    return [b for b in finds if has_run and b.status not in (*TERMINAL, "cancelling")]


def choose(batches: list[Found]) -> Choice:
    """Finished ones first (they hold paid results), then the earliest live one; failed ones ran nothing."""
    usable = [b for b in batches if b.status != "failed"]
    best = min(usable, key=lambda b: (_rank(b.status), b.create, b.created_at), default=None)
    return Choice(best, max((b.create for b in batches), default=0))


def _rank(status: str) -> int:
    return {"completed": 0, "expired": 1, "cancelled": 2}.get(status, 3)


def _status(batch: BatchInfo) -> str:
    """A failed batch that ran something counts as finished work."""
    return "completed" if batch.status == "failed" and batch.ran else batch.status
