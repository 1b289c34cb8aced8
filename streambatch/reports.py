"""Reports as JSON: one document, on stdout or in a file. Light, since `shard` and `merge` end here too."""

import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from streambatch.errors import StorageError


def document(report: object) -> bytes:
    """A report as one JSON document with a final newline."""
    try:
        data = msgspec.json.encode(report)
    except UnicodeEncodeError:  # a path that is no text in any encoding
        data = msgspec.json.encode(_as_text(msgspec.to_builtins(report)))
    return msgspec.json.format(data, indent=2) + b"\n"


def _as_text(value: Any) -> Any:
    """The same with the bytes of paths that are no text replaced."""
    if isinstance(value, dict):
        return {name: _as_text(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_text(part) for part in value]
    return value.encode(errors="surrogateescape").decode(errors="replace") if isinstance(value, str) else value


def tell(report: object, values: Mapping[str, Any]) -> None:
    """Put a report where the options want it: `summary_file`, replaced at once, and `json`. Raises StorageError."""
    if "summary_file" in values:
        from streambatch.edge.files import write_atomic  # brings the event loop along

        write_atomic(values["summary_file"], document(report))
    if values.get("json"):
        put_out(document(report))


def put_out(data: bytes) -> None:
    """Bytes to stdout. Raises StorageError; a reader that left is a BrokenPipeError, and no one's fault."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StorageError(f"Writing to stdout failed: {error.strerror}; mend that, then run it again.") from error
