"""A twin stands for the real thing only if both pass the same tests: clocks, blocking calls, executors."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import xxhash

from streambatch.core.jobs import Piece, Prepare, Prepared
from streambatch.core.models import Shaping, ShardLimits
from streambatch.edge.clock import Clock, SystemClock
from streambatch.edge.files import Blocking, in_thread, inline
from streambatch.edge.workers import Executor, InlineExecutor, ProcessExecutor, ThreadExecutor
from streambatch.errors import SourceError, StorageError
from tests.e2e import rig
from tests.twins.clock import VirtualClock
from tests.twins.world import simulate


def really(main: Callable[[], Any]) -> Any:
    """On asyncio, in real time."""
    return anyio.run(main)


def virtually(main: Callable[[], Any]) -> Any:
    """Under trio, in virtual time."""
    return simulate(main, 1)


@pytest.mark.parametrize(("world", "make"), [(really, SystemClock), (virtually, VirtualClock)])
def test_clocks(world: Callable[[Any], Any], make: Callable[[], Clock]) -> None:
    async def main() -> None:
        clock = make()
        wall, monotonic = clock.wall(), clock.monotonic()
        await clock.sleep(0.05)
        assert clock.monotonic() - monotonic >= 0.05
        assert clock.wall() - wall >= 0.04
        with anyio.move_on_after(0.05) as scope:
            await clock.sleep(3600)
        assert scope.cancelled_caught

    world(main)


@pytest.mark.parametrize(("world", "blocking"), [(really, in_thread), (virtually, inline)])
def test_blocking_calls(world: Callable[[Any], Any], blocking: Blocking) -> None:
    ended: list[str] = []

    def slow(what: str) -> str:
        time.sleep(0.05)
        ended.append(what)
        return what

    def failing() -> None:
        raise StorageError("full")

    async def main() -> None:
        assert await blocking(slow, "a") == "a"
        with pytest.raises(StorageError, match="full"):
            await blocking(failing)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(blocking, slow, "b")
                await anyio.lowlevel.checkpoint()
                await anyio.sleep(0.01)
                scope.cancel()
        assert ended == ["a", "b"], "a cancelled caller waits until the call has returned"

    world(main)


@pytest.mark.parametrize(
    ("world", "make"),
    [
        (virtually, InlineExecutor),
        (really, InlineExecutor),
        (really, ThreadExecutor),
        (really, lambda: ProcessExecutor(2)),
    ],
    ids=["inline, virtual", "inline", "thread", "processes"],
)
def test_executors(world: Callable[[Any], Any], make: Callable[[], Executor], tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 12)

    def job(name: str, path: Path) -> Prepare:
        piece = Piece(str(path), path.name, 0, source.stat().st_size, 0, 0)
        return Prepare((piece,), 0, Shaping(ready_made=True), ShardLimits(max_requests=5), str(tmp_path / name))

    async def main() -> None:
        executor = make()
        made = await executor.run(job("a", source))
        assert isinstance(made, Prepared)
        assert (made.rows, [shard.rows for shard in made.shards]) == (12, [5, 5, 2])
        written = b"".join(Path(f"{shard.stem}.jsonl").read_bytes() for shard in made.shards)
        assert written == source.read_bytes()
        assert made.source_hash == xxhash.xxh3_128_hexdigest(written)
        with pytest.raises(SourceError, match=r"gone\.jsonl"):
            await executor.run(job("b", tmp_path / "gone.jsonl"))
        async with anyio.create_task_group() as tasks:
            for k in range(4):
                tasks.start_soon(executor.run, job(f"c{k}", source))
        assert len(list(tmp_path.glob("c*.jsonl"))) == 12
        await executor.aclose()

    world(main)
