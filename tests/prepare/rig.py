"""Small inputs on disk, and jobs over them."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from streambatch.core.jobs import BadRow, Piece, Prepare
from streambatch.core.models import Segment, Shaping, ShardLimits
from streambatch.edge import scanning, sources

CHAT = "/v1/chat/completions"
READY = Shaping(ready_made=True)
PLAIN = Shaping(ready_made=False, model="m", prompt="{{ x }}")


def request(custom_id: Any, model: Any = "m", text: str = "hi") -> bytes:
    """A ready-made line."""
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    row = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def write(folder: Path, *texts: bytes) -> list[str]:
    """Input files `in-0.jsonl` and on."""
    paths = []
    for number, text in enumerate(texts):
        path = folder / f"in-{number}.jsonl"
        path.write_bytes(text)
        paths.append(str(path))
    return paths


def cut(paths: Sequence[str], limits: ShardLimits | None = None) -> list[Segment]:
    return list(scanning.scan(sources.discover(paths), ShardLimits() if limits is None else limits))


def job(paths: Sequence[str], segment: Segment, shaping: Shaping, prefix: Path, **settings: Any) -> Prepare:
    pieces = tuple(
        Piece(paths[s.input], Path(paths[s.input]).name, s.start, s.end, s.first_line, s.first_row)
        for s in segment.slices
    )
    return Prepare(
        pieces, segment.first_ordinal, shaping, settings.pop("limits", ShardLimits()), str(prefix), **settings
    )


def whole(paths: Sequence[str], shaping: Shaping, prefix: Path, **settings: Any) -> Prepare:
    """One job over all of the inputs, whatever the limits."""
    (segment,) = cut(paths, ShardLimits(max_requests=1 << 30, max_bytes=1 << 40))
    return job(paths, segment, shaping, prefix, **settings)


def ids_of(path: str) -> list[tuple[int, str]]:
    """What an ids sidecar holds."""
    data, at, ids = Path(path).read_bytes(), 0, []
    while at < len(data):
        row, size = struct.unpack_from("<II", data, at)
        at += 8 + size
        ids.append((row, data[at - size : at].decode()))
    return ids


def bad_rows(path: str) -> list[BadRow]:
    return [msgspec.json.decode(line, type=BadRow) for line in Path(path).read_bytes().split(b"\n")[:-1]]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
