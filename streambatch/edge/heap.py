"""One trick with the allocator, for processes that go through gigabytes in large blocks."""

HEAP_BYTES = 24 << 20


def keep_heap() -> None:
    """Freed once: from then on malloc keeps blocks below this size instead of giving them back to the system each time."""
    bytes(HEAP_BYTES)
