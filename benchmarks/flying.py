"""One engine in this process, watched from inside: each call to the service, the lag of its event loop, its CPU and memory.

`python -m benchmarks.flying` is what `flight` starts and measures. Wraps the client; the engine does not know it is watched.
"""

import asyncio
import contextlib
import math
import os
import random
import resource
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec

from streambatch.config import Config
from streambatch.core import events as e
from streambatch.core.models import ShardLimits
from streambatch.core.wire import BatchInfo, BatchPage, FileInfo, FilePage
from streambatch.edge.client import BatchApi, HttpBatchApi
from streambatch.edge.clock import SystemClock
from streambatch.edge.retrying import RetryingApi
from streambatch.edge.service import Service
from streambatch.engine import run
from streambatch.testing import LocalServer

LAG_EVERY_S = 0.01


class Flight(msgspec.Struct, frozen=True):
    """What to fly: all of `source` in batches of `rows`, all at once. `poll_interval_s` None: as users have it."""

    source: str
    folder: str
    url: str
    key: str
    batches: int
    rows: int
    poll_interval_s: float | None = None


class Call(msgspec.Struct, frozen=True):
    """One attempt of a call: when, how many batches flew, and whether it was the first page of a look at the list.

    `ended` is how many of ours a page showed at their end: each is confirmed by id.
    """

    at_s: float
    route: str
    in_flight: int
    first: bool = False
    ended: int = 0


class Watched(msgspec.Struct, frozen=True):
    """What was seen. Times in seconds since the engine started; `lags` are (when, by how much late), seconds."""

    state: str
    done: int
    batches: int
    calls: list[Call]
    lags: list[tuple[float, float]]
    all_from_s: float  # when the last batch had been created ...
    all_until_s: float  # ... and when the first of them had ended
    cpu_all_s: float  # CPU between those two
    cpu_s: float
    wall_s: float
    peak_mib: float


class Watch:
    """Counts what flies by the journal's events, and keeps what it sees."""

    def __init__(self, batches: int) -> None:
        self._batches = batches
        self._began = time.perf_counter()
        self.in_flight = 0
        self.ours: set[str] = set()
        self.calls: list[Call] = []
        self.lags: list[tuple[float, float]] = []
        self.all_from_s = self.all_until_s = math.inf
        self._cpu_from_s = self.cpu_all_s = 0.0
        self.first_end = asyncio.Event()

    @property
    def now_s(self) -> float:
        return time.perf_counter() - self._began

    def hear(self, notice: object) -> None:
        """An event of the journal, or a look at the progress."""
        if isinstance(notice, e.Submitted):
            self.in_flight += 1
            self.ours.add(notice.batch_id)
            if self.in_flight == self._batches:
                self.all_from_s, self._cpu_from_s = self.now_s, time.process_time()
        elif isinstance(notice, e.BatchFinished | e.Refused | e.InputLost):
            if self.in_flight == self._batches:
                self.all_until_s = self.now_s
                self.cpu_all_s = time.process_time() - self._cpu_from_s
                self.first_end.set()
            self.in_flight -= 1

    async def time_the_loop(self) -> None:
        """How late the event loop wakes whoever sleeps."""
        while True:
            asked = time.perf_counter()
            await asyncio.sleep(LAG_EVERY_S)
            self.lags.append((self.now_s, time.perf_counter() - asked - LAG_EVERY_S))


class CountedApi:
    """A BatchApi that notes each call before it is made."""

    def __init__(self, api: BatchApi, watch: Watch) -> None:
        self._api = api
        self._watch = watch

    def _note(self, route: str, *, first: bool = False) -> None:
        self._watch.calls.append(Call(self._watch.now_s, route, self._watch.in_flight, first))

    async def upload(self, path: str, name: str) -> FileInfo:
        self._note("upload")
        return await self._api.upload(path, name)

    async def create_batch(self, file_id: str, endpoint: str, metadata: dict[str, str]) -> BatchInfo:
        self._note("create")
        return await self._api.create_batch(file_id, endpoint, metadata)

    async def get_batch(self, batch_id: str) -> BatchInfo:
        self._note("retrieve")
        return await self._api.get_batch(batch_id)

    async def list_batches(self, after: str | None = None, limit: int = 100) -> BatchPage:
        """A page that the run asks for before it begins is none of a look."""
        self._note("list", first=after is None and limit > 1)
        place = len(self._watch.calls) - 1
        page = await self._api.list_batches(after, limit)
        ended = sum(batch.terminal and batch.id in self._watch.ours for batch in page.data)
        self._watch.calls[place] = msgspec.structs.replace(self._watch.calls[place], ended=ended)
        return page

    async def cancel_batch(self, batch_id: str) -> BatchInfo:
        self._note("cancel")
        return await self._api.cancel_batch(batch_id)

    async def download(self, file_id: str, target: str) -> int:
        self._note("content")
        return await self._api.download(file_id, target)

    async def file_info(self, file_id: str) -> FileInfo:
        self._note("file")
        return await self._api.file_info(file_id)

    async def list_files(self, after: str | None = None, limit: int = 1000) -> FilePage:
        self._note("files")
        return await self._api.list_files(after, limit)

    async def delete_file(self, file_id: str) -> bool:
        self._note("delete")
        return await self._api.delete_file(file_id)

    async def aclose(self) -> None:
        await self._api.aclose()


async def fly(flight: Flight) -> Watched:
    """One visit of the engine, from nothing to its end. Raises StreambatchError."""
    watch = Watch(flight.batches)

    @contextlib.asynccontextmanager
    async def connect(config: Config) -> AsyncIterator[BatchApi]:
        counted = CountedApi(HttpBatchApi(config.service), watch)
        api = RetryingApi(counted, config.retry, SystemClock(), random.random)
        try:
            yield api
        finally:
            await api.aclose()

    began = time.process_time()
    beside = [asyncio.create_task(work) for work in (watch.time_the_loop(), _clear_the_list(flight, watch))]
    try:
        summary = await run(_config(flight), connect, watch.hear)
    finally:
        for task in beside:
            task.cancel()
    return Watched(
        state=summary.state,
        done=summary.done,
        batches=summary.batches,
        calls=watch.calls,
        lags=watch.lags,
        all_from_s=watch.all_from_s,
        all_until_s=watch.all_until_s,
        cpu_all_s=watch.cpu_all_s,
        cpu_s=time.process_time() - began,
        wall_s=watch.now_s,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1 << 20),
    )


async def _clear_the_list(flight: Flight, watch: Watch) -> None:
    """What was to be seen has been seen once the first batch has ended: the other people's batches go, and it ends soon."""
    await watch.first_end.wait()
    await asyncio.to_thread(LocalServer(flight.url, flight.key).set_faults, None)


def _config(flight: Flight) -> Config:
    output = os.path.join(flight.folder, "answers.jsonl")
    return Config(
        inputs=(flight.source,),
        output=output,
        run_dir=f"{output}.run",
        service=Service(base_url=flight.url, api_key=flight.key),
        command="the same command",
        limits=ShardLimits(max_requests=flight.rows),
        max_batches=flight.batches,
        poll_interval_s=flight.poll_interval_s,
    )


def main(words: Sequence[str]) -> int:
    """`flying FLIGHT.json WATCHED.json`"""
    asked, target = map(Path, words)
    watched = asyncio.run(fly(msgspec.json.decode(asked.read_bytes(), type=Flight)))
    target.write_bytes(msgspec.json.encode(watched))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
