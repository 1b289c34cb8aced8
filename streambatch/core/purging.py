"""Which files of a run may be deleted at the provider, and why others must stay. Pure.

By what the journal says of a file, or by the exact name of an upload; never by age, and never by a listing alone.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from streambatch.core.models import ShardState

INPUT, OUTPUT, ERROR = "input", "output", "error"
KINDS: dict[str, tuple[str, ...]] = {"inputs": (INPUT,), "delete": (INPUT, OUTPUT, ERROR)}  # of `--remote-files`
LIVE = frozenset({ShardState.INTENDED, ShardState.DOUBTED, ShardState.SUBMITTED})
UNREAD = frozenset({ShardState.FINISHED, ShardState.ADMITTED})  # paid results that are at the provider alone


class Remote(msgspec.Struct, frozen=True):
    """A file at the provider. `batch`: of a batch that no shard of ours runs. `state`, `rows` and `merged` are its shard's;
    without a state the journal does not know the shard."""

    file_id: str
    kind: str
    shard: str
    batch: str = ""
    state: ShardState | None = None
    rows: int = 0
    merged: bool = False


class Loose(msgspec.Struct, frozen=True):
    """A batch that has not ended, as far as the journal knows, or one that was found and is not run by a shard."""

    batch_id: str
    shard: str
    file_id: str | None
    given_up: bool = False  # by the user's word, and maybe not by the service


class Facts(msgspec.Struct, frozen=True):
    """What is known beside the journal's rows: whether all is `published`; shards and files that live batches need, and shards
    with a batch that was never collected, each with that batch."""

    published: bool
    live_shards: dict[str, str]
    live_files: dict[str, str]
    uncollected: dict[str, str] = {}


def why_kept(file: Remote, facts: Facts, *, everything: bool) -> str:
    """Why a file must stay; "" where it may go."""
    batch = facts.live_files.get(file.file_id, facts.live_shards.get(file.shard))
    if batch is not None:
        return f"batch {batch} needs it or may still run its shard"
    if file.state in LIVE:
        return "a batch of its shard is in flight or in doubt"
    if file.merged or facts.published:
        return ""
    if file.batch or file.state is None:
        return "it belongs to a batch or a shard that this run has not come to yet"
    if file.shard in facts.uncollected:
        return f"batch {facts.uncollected[file.shard]} of its shard has not been collected"
    return "" if everything else "its rows are not merged yet"


def rows_lost(files: list[Remote]) -> int:
    """Rows whose paid results would be gone with these files: results that were not fetched yet."""
    unread = {
        file.shard: file.rows for file in files if file.state in UNREAD and file.kind != INPUT and not file.merged
    }
    return sum(unread.values())


# -- what is told


class PurgedFile(msgspec.Struct, frozen=True):
    """One file of a receipt. `state`: deleted | gone (the provider no longer had it) | kept (`why`) | would_delete. `deleted_at`
    in unix seconds; `earlier`: by an earlier purge, or by the run itself."""

    id: str
    kind: str
    shard: str
    state: str
    deleted_at: float | None = None
    why: str = ""
    earlier: bool = False


class Receipt(msgspec.Struct, frozen=True):
    """What a purge did: counts, and one entry per file. `exit_code` is the command's, `message` a sentence or two.

    `rows_lost` counts rows whose paid results went (or would go) without having been collected.
    """

    schema_version: int
    run_id: str
    run_dir: str
    dry_run: bool
    exit_code: int
    message: str
    deleted: int
    gone: int
    kept: int
    earlier: int
    rows_lost: int
    local_removed: bool
    files: tuple[PurgedFile, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, same names."""
        return dict(msgspec.to_builtins(self))


def sentence(entries: Sequence[PurgedFile], *, dry_run: bool, lost: int, failed: int) -> str:
    """What was done (or would be), what stays and why, what is lost, and what to do about it."""
    now = [entry for entry in entries if not entry.earlier]
    done = sum(entry.state in ("deleted", "gone", "would_delete") for entry in now)
    gone = sum(entry.state == "gone" for entry in now)
    words = [_done(done, gone, len(entries) - len(now), dry_run=dry_run)]
    if lost:
        words.append(
            f"{_counted(lost, 'row')} had paid results that are not in the output: they {'would be' if dry_run else 'are'} lost."
        )
    reasons = Counter(entry.why for entry in now if entry.state == "kept")
    if reasons:
        why, files = reasons.most_common(1)[0]
        more = "" if len(reasons) == 1 else f" ({files} of them; the receipt has the others' reasons)"
        words.append(
            f"{_counted(reasons.total(), 'file')} stay{'s' if reasons.total() == 1 else ''}: {why.rstrip('.')}{more}."
        )
    if failed:
        words.append("Run the same command again to go on.")
    return " ".join(words)


def _done(done: int, gone: int, earlier: int, *, dry_run: bool) -> str:
    if dry_run:
        return f"{_counted(done, 'file')} would be deleted." if done else "There is nothing to delete."
    if not done:
        return "Nothing to delete" + (f": {_counted(earlier, 'file')} were deleted before." if earlier else ".")
    already = f", of which the service no longer had {gone}" if gone else ""
    return f"Deleted {_counted(done, 'file')}{already}."


def _counted(count: int, one: str) -> str:
    return f"{count:,} {one}{'' if count == 1 else 's'}"
