"""What end-to-end tests share: inputs, a quick run against a local server, and the checks that every run must pass."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from streambatch import api
from streambatch.config import Config, Mode
from streambatch.core import events as e
from streambatch.core import lifecycle
from streambatch.core.models import Shard, ShardLimits
from streambatch.core.report import Summary
from streambatch.core.shaping import Asked
from streambatch.edge.journal import Store, read_only
from streambatch.edge.service import Service
from streambatch.engine import run as run_engine

URL = "/v1/chat/completions"


def request_line(k: int, *, model: str = "gpt-4o-mini", extra: str = "") -> bytes:
    """One ready-made request; every seventh carries characters that careless splitters trip over."""
    odd = "\u2028\u0085 é 漢" if k % 7 == 0 else ""
    body = {"model": model, "messages": [{"role": "user", "content": f"question {k} {odd}{extra}"}], "max_tokens": 16}
    request = {"custom_id": f"row-{k * 7919 % 100_003}-{k}", "method": "POST", "url": URL, "body": body}
    return json.dumps(request, ensure_ascii=k % 2 == 0).encode() + b"\n"


def write_requests(path: Path, rows: int, **kw: Any) -> Path:
    """A file of ready-made requests."""
    path.write_bytes(b"".join(request_line(k, **kw) for k in range(rows)))
    return path


def config(tmp: Path, inputs: Sequence[Path], url: str, key: str, **changes: Any) -> Config:
    """A small, quick run."""
    output = changes.pop("output", tmp / "out.jsonl")
    plain = Config(
        inputs=tuple(map(str, inputs)),
        output=str(output),
        run_dir=f"{output}.run",
        service=Service(base_url=url, api_key=key),
        command="the same command",
        asked=changes.pop("asked", Asked()),
        limits=changes.pop("limits", ShardLimits(max_requests=10)),
        workers=0,
        poll_interval_s=0.05,
        adopt_grace_s=0.2,
        max_batches=8,
    )
    return msgspec.structs.replace(plain, **changes)


async def run(config: Config, listen: Callable[[Any], None] | None = None, mode: Mode = Mode.RUN) -> Summary:
    return await run_engine(config, api.connect, listen, mode=mode)


def read_lines(path: Path | str) -> list[bytes]:
    data = Path(path).read_bytes()
    assert not data or data.endswith(b"\n"), f"{path} ends in the middle of a line"
    return data.split(b"\n")[:-1]


def check_results(config: Config, lines: Sequence[bytes], *, without: Sequence[str] = ()) -> None:
    """OUTPUT holds one answer per input line, in input order, each made for its own question."""
    wanted = [json.loads(line) for line in lines]
    wanted = [row for row in wanted if row["custom_id"] not in without]
    got = [json.loads(line) for line in read_lines(config.output)]
    assert [row["custom_id"] for row in got] == [row["custom_id"] for row in wanted]
    for row, request in zip(got, wanted, strict=True):
        text = row["response"]["body"]["choices"][0]["message"]["content"]
        assert text.startswith(xxhash.xxh3_64_hexdigest(request["body"]["messages"][-1]["content"].encode()))


def errors(config: Config) -> list[dict[str, Any]]:
    """The errors file, parsed."""
    return [json.loads(line) for line in read_lines(f"{config.output}.errors")]


def fold(log: Sequence[e.Event]) -> dict[str, Shard]:
    """The shards as the events make them, by the pure machine alone."""
    shards: dict[str, Shard] = {}
    for event in log:
        match event:
            case e.SegmentSealed(shards=made):
                shards |= {shard.name: shard for shard in made}
            case e.RemainderSealed(made=shard):
                shards[shard.name] = shard
            case e.ShardEvent():
                shards[event.shard] = lifecycle.apply(shards[event.shard], event)
    return shards


def check_journal(config: Config) -> list[e.AnyEvent]:
    """Folding the event log gives the state rows; the log is returned."""
    with read_only(f"{config.run_dir}/journal.sqlite") as store:
        log = list(store.events())
        folded = fold(log)
        assert folded == {name: store.shard(name) for name in folded}
        again = Store(":memory:")
        again.append(log)
        mine, theirs = again.dump(), store.dump()
        again.close()
    for table in mine:
        if table != "shards":  # holds a mark of housekeeping beside the state
            assert mine[table] == theirs[table], table
    return log
