"""How a batch looks in other dialects: what the service of today would show, changed. Pure."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from streambatch.server.snapshots import resolved

Dialect = Callable[[dict[str, Any]], dict[str, Any]]
NEW_SINCE_2024 = ("model", "usage")


def as_it_is(shown: dict[str, Any]) -> dict[str, Any]:
    return shown


def as_today(shown: dict[str, Any]) -> dict[str, Any]:
    """With the snapshot that the model's name stands for."""
    return shown if shown["model"] is None else shown | {"model": resolved(shown["model"])}


def as_of_2024(shown: dict[str, Any]) -> dict[str, Any]:
    """Without what came later."""
    return {name: value for name, value in shown.items() if name not in NEW_SINCE_2024}


def as_azure(shown: dict[str, Any]) -> dict[str, Any]:
    """As its older versions are: capital letters, ISO times, counts of null until there are any."""
    counts = shown["request_counts"]
    if not counts["total"]:
        counts = dict.fromkeys(counts)
    return _with_iso_times(shown, "+00:00", "0") | {
        "status": shown["status"].capitalize(),
        "request_counts": counts,
    }


def as_together(shown: dict[str, Any]) -> dict[str, Any]:
    """Upper case, ISO times, and a percentage in place of counts."""
    counts = shown["request_counts"]
    done = 100 * (counts["completed"] + counts["failed"]) / counts["total"] if counts["total"] else 0.0
    rest = {name: value for name, value in _with_iso_times(shown, "Z", "").items() if name != "request_counts"}
    return rest | {"status": shown["status"].upper(), "progress": done, "model_id": shown["model"]}


def _with_iso_times(shown: dict[str, Any], zone: str, more_digits: str) -> dict[str, Any]:
    """`more_digits` follow the microseconds: one service writes seven."""
    return {
        name: _iso(value) + more_digits + zone if name.endswith("_at") and value is not None else value
        for name, value in shown.items()
    }


def _iso(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
