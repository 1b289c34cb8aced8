"""Query parameters of the list calls, checked in the service's words."""

from collections.abc import Callable, Mapping

from streambatch.server.door import RefusedError
from streambatch.server.records import Batch, File


def limit_of(query: Mapping[str, str], default: int, most: int) -> int:
    """How many entries a page may have."""
    text = query.get("limit")
    if text is None:
        return default
    if not text.removeprefix("-").isdecimal() or not text.isascii() or len(text) > 12:
        raise RefusedError(400, "Invalid type for 'limit': expected an integer.", param="limit", code="invalid_type")
    limit = int(text)
    if limit > most:
        message = f"Invalid 'limit': integer above maximum value. Expected a value <= {most}, but got {limit} instead."
        raise RefusedError(400, message, param="limit", code="integer_above_max_value")
    if limit < 1:
        message = f"Invalid 'limit': integer below minimum value. Expected a value >= 1, but got {limit} instead."
        raise RefusedError(400, message, param="limit", code="integer_below_min_value")
    return limit


def after_of(query: Mapping[str, str], find: Callable[[str], Batch | File | None]) -> int | None:
    """The place in the list after which a page begins."""
    after = query.get("after")
    if not after:
        return None
    found = find(after)
    if found is None:
        raise RefusedError(
            400, f"Invalid value: '{after}'. No entry of the list has this id.", param="after", code="invalid_value"
        )
    return found.seq
