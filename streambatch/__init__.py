"""Stream a dataset of any size through a provider's batch API: paid once, merged in input order, constant memory.

The library's names, loaded when they are first used: a worker or `--help` pays for none of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streambatch.api import (
        Check,
        CheckOptions,
        Checks,
        Outcome,
        Progress,
        RunOptions,
        Service,
        ServiceOptions,
        ShapeOptions,
        Status,
        Summary,
        cancel,
        cancel_sync,
        check,
        check_sync,
        peek,
        preview,
        preview_sync,
        run,
        run_sync,
        status,
        watch,
        watch_sync,
    )
    from streambatch.errors import (
        ApiError,
        ConfigError,
        JournalError,
        Paused,
        SourceError,
        StorageError,
        StreambatchError,
    )
    from streambatch.purging import PurgedFile, Receipt, purge, purge_sync
    from streambatch.streaming import Results, stream

__all__ = [
    "ApiError",
    "Check",
    "CheckOptions",
    "Checks",
    "ConfigError",
    "JournalError",
    "Outcome",
    "Paused",
    "Progress",
    "PurgedFile",
    "Receipt",
    "Results",
    "RunOptions",
    "Service",
    "ServiceOptions",
    "ShapeOptions",
    "SourceError",
    "Status",
    "StorageError",
    "StreambatchError",
    "Summary",
    "cancel",
    "cancel_sync",
    "check",
    "check_sync",
    "peek",
    "preview",
    "preview_sync",
    "purge",
    "purge_sync",
    "run",
    "run_sync",
    "status",
    "stream",
    "watch",
    "watch_sync",
]


if not TYPE_CHECKING:  # a checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'streambatch' has no attribute {name!r}")
        purged = ("PurgedFile", "Receipt", "purge", "purge_sync")
        streamed = "streaming" if name in ("Results", "stream") else "purging" if name in purged else "api"
        home = "errors" if name == "Paused" or name.endswith("Error") else streamed
        return getattr(importlib.import_module(f"streambatch.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
