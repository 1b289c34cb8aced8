"""The dated snapshot that a model's short name stands for, where one is known. Names only; pure."""

_DATED = {
    "gpt-5": "2025-08-07", "gpt-5-mini": "2025-08-07", "gpt-5-nano": "2025-08-07",
    "gpt-4.1": "2025-04-14", "gpt-4.1-mini": "2025-04-14", "gpt-4.1-nano": "2025-04-14",
    "gpt-4o": "2024-08-06", "gpt-4o-mini": "2024-07-18", "gpt-4-turbo": "2024-04-09", "gpt-4": "0613", "gpt-3.5-turbo": "0125",
    "o1": "2024-12-17", "o3": "2025-04-16", "o3-mini": "2025-01-31", "o4-mini": "2025-04-16",
}  # fmt: skip


def resolved(model: str) -> str:
    """The snapshot behind a name; a name that has none, or is one, stays."""
    return f"{model}-{_DATED[model]}" if model in _DATED else model
