"""The metadata pairs by which a run knows its batches again. Fixed from the first release: they are how lost state is found.

Metadata carries ids and hashes only, never file names or prompts.
"""

import re

import msgspec

from streambatch.core.models import Settings, Shard
from streambatch.core.shaping import shaping_hash

TAG = "streambatch"
HASH = "streambatch-hash"
ROWS = "streambatch-rows"
CUT = "streambatch-cut"
GENERATION = "streambatch-generation"
MOST_DIGITS = 15


class Tag(msgspec.Struct, frozen=True):
    """Which create of which shard of which run."""

    run: str
    shard: str
    create: int

    def __str__(self) -> str:
        return f"{self.run}/{self.shard}/{self.create}"


def parse_tag(metadata: dict[str, str]) -> Tag | None:
    """The tag in a batch's metadata; None where it has none of ours."""
    parts = metadata.get(TAG, "").split("/")
    if len(parts) != 3 or not _is_number(parts[2]):
        return None
    return Tag(parts[0], parts[1], int(parts[2]))


def metadata(run: str, shard: Shard, span: str, cut: str, labels: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """All pairs of one create. `span` is `first_ordinal+lines` of the shard's segment, `-` for a remainder."""
    pairs = {
        TAG: str(Tag(run, shard.name, shard.create)),
        HASH: shard.hash,
        ROWS: span,
        CUT: cut,
        GENERATION: str(shard.generation),
    }
    return {**dict(labels), **pairs}


def parse_span(text: str) -> tuple[int, int] | None:
    """(first ordinal, lines) of a `streambatch-rows` value; None for a remainder."""
    first, plus, lines = text.partition("+")
    if plus and _is_number(first) and _is_number(lines):
        return int(first), int(lines)
    return None


def _is_number(text: str) -> bool:
    """Metadata can be anybody's: no other digits, and not too many."""
    return text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS


def generation(metadata: dict[str, str]) -> int:
    """How often the rows of a batch had been executed before it, as its tag says."""
    said = metadata.get(GENERATION, "")
    return int(said) if _is_number(said) and len(said) <= 4 else 0


def remainder_number(name: str) -> int:
    """The number in a remainder's name; -1 where a tag that is not ours has some other word there."""
    return int(name[1:]) if name[:1] == "r" and _is_number(name[1:]) else -1


def cut_text(settings: Settings) -> str:
    """The value of `streambatch-cut`: how this run cuts and shapes its input."""
    limits = settings.limits
    return f"{limits.max_requests}/{limits.max_bytes}/0/{shaping_hash(settings.shaping, limits)}"


def upload_name(run: str, shard: Shard) -> str:
    """The name of an input file at the provider: run, shard and hash, so that orphans can be found by prefix."""
    return f"{run}.{shard.name}.{shard.hash[:16]}.jsonl"


_UPLOADED = re.compile(r"([A-Za-z0-9_-]{1,40})\.(\d{6,12}-\d{1,6}|r\d{6,12})\.([0-9a-f]{16})\.jsonl")


def parse_upload_name(name: str, run: str) -> tuple[str, str] | None:
    """(shard, first 16 digits of its hash) of a file that this run uploaded; None for any other name."""
    match = _UPLOADED.fullmatch(name)
    return (match[2], match[3]) if match is not None and match[1] == run else None
