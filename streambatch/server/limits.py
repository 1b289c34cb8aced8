"""Enqueued prompt tokens per model and usage tier: the figures of the model pages (2026; `free` as the 2024 article has it).

Numbers only. A model that no group names has no limit here.
"""

TIERS = ("free", "1", "2", "3", "4", "5")
K, M, B = 1_000, 1_000_000, 1_000_000_000
MAX_EMBEDDING_REQUESTS = 1_000_000  # enqueued, per embedding model

# Prefixes, longest match wins; limits of tiers 1 to 5.
_GROUPS: tuple[tuple[tuple[str, ...], tuple[int, int, int, int, int]], ...] = (
    (("gpt-6-astra", "gpt-5.6-sol", "gpt-5.6-terra", "gpt-5.5", "gpt-5.4", "gpt-5.2", "gpt-5.1", "gpt-5"),
     (1_500 * K, 3 * M, 100 * M, 200 * M, 15 * B)),
    (("gpt-6-luna", "gpt-5.6-luna", "gpt-5.4-mini", "gpt-5-mini", "gpt-5.1-codex-mini"), (5 * M, 20 * M, 40 * M, 1 * B, 15 * B)),
    (("gpt-5.4-nano", "gpt-5-nano", "gpt-4.1-mini", "gpt-4.1-nano", "gpt-4o-mini"), (2 * M, 20 * M, 40 * M, 1 * B, 15 * B)),
    (("gpt-4.1", "gpt-4o", "gpt-5-pro", "gpt-5.2-pro", "o3-pro"), (90 * K, 1_350 * K, 50 * M, 200 * M, 5 * B)),
    (("gpt-5-chat", "gpt-5.1-chat", "gpt-5.2-chat", "gpt-5.3-chat"), (50 * K, 1_350 * K, 100 * M, 200 * M, 15 * B)),
    (("gpt-5.4-pro",), (900 * K, 1_350 * K, 100 * M, 200 * M, 15 * B)),
    (("o3-mini", "o4-mini"), (1 * M, 2 * M, 40 * M, 1 * B, 15 * B)),
    (("o3-deep-research",), (200 * K, 300 * K, 500 * K, 2 * M, 10 * M)),
    (("o1",), (0, 0, 50 * M, 200 * M, 5 * B)),
    (("text-embedding-",), (3 * M, 20 * M, 100 * M, 500 * M, 4 * B)),
    (("gpt-4-turbo",), (90 * K, 1_350 * K, 40 * M, 80 * M, 300 * M)),
    (("gpt-3.5-turbo",), (2 * M, 5 * M, 50 * M, 1 * B, 10 * B)),
    (("gpt-4",), (100 * K, 200 * K, 5 * M, 30 * M, 45 * M)),
)  # fmt: skip
_BY_PREFIX = {prefix: limits for prefixes, limits in _GROUPS for prefix in prefixes}
_FREE = {"gpt-3.5-turbo": 200 * K}


_ROWS_2024 = {
    "gpt-3.5": (200 * K, 200 * K, 400 * K, 10 * M, 100 * M, 300 * M),
    "gpt-4": (0, 100 * K, 200 * K, 5 * M, 30 * M, 45 * M),
    "gpt-4-turbo": (0, 900 * K, 1_350 * K, 40 * M, 80 * M, 250 * M),
}
_TURBO_2024 = ("gpt-4-turbo", "gpt-4-1106", "gpt-4-0125", "gpt-4-vision")


def enqueued_tokens_2024(model: str, tier: str) -> int | None:
    """The same in 2024, for the families of that time."""
    family = "gpt-4-turbo" if model.startswith(_TURBO_2024) else model[: len("gpt-3.5")]
    row = _ROWS_2024.get(family, _ROWS_2024["gpt-4"] if model.startswith("gpt-4") else None)
    return None if row is None else row[TIERS.index(tier)]


def enqueued_tokens(model: str, tier: str) -> int | None:
    """The most prompt tokens that may be enqueued for a model; None where no limit is known."""
    name = model.removeprefix("ft:")
    known = max((prefix for prefix in _BY_PREFIX if name.startswith(prefix)), key=len, default=None)
    if known is None:
        return None
    return _FREE.get(known, 0) if tier == "free" else _BY_PREFIX[known][TIERS.index(tier) - 1]
