"""Batches of other people, as a script wants them in the list: made up from their number alone, stored nowhere.

All of them are finished and as young as can be, so whoever looks for a batch of its own must page past them.
"""

import time
from typing import Any

import msgspec

from streambatch.server.dialects import Dialect
from streambatch.server.objects import batch_object
from streambatch.server.records import Batch

PREFIX = "batch_" + "f0e1" * 6  # 24 of 32 digits; ours are random
DAY_S = 86_400


def place_of(batch_id: str, count: int) -> int | None:
    """Which of the `count` strangers an id names; None for none."""
    if not batch_id.startswith(PREFIX):
        return None
    digits = batch_id.removeprefix(PREFIX)
    if len(digits) != 8 or set(digits) - set("0123456789abcdef"):
        return None
    return place if (place := int(digits, 16)) < count else None


def foreign_object(place: int, dialect: Dialect) -> dict[str, Any]:
    """The stranger's batch at this place; every third is a run of this very engine, on another machine."""
    now = int(time.time())
    metadata = {"streambatch": f"somebody/{place:06d}-0/1"} if place % 3 == 0 else {"job": f"nightly-{place}"}
    return batch_object(
        Batch(
            seq=place, id=f"{PREFIX}{place:08x}", run="", endpoint="/v1/chat/completions", input_file_id=f"file-foreign{place}",
            completion_window="24h", status="completed", created_at=now, expires_at=now + DAY_S, in_progress_at=now,
            finalizing_at=now, completed_at=now, model="gpt-4o-mini", output_file_id=f"file-foreignoutput{place}", total=1,
            completed=1, metadata=msgspec.json.encode(metadata).decode(),
        ),
        dialect,
    )  # fmt: skip
