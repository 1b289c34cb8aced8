"""Disks that fill up: the run stops before, and a write that finds no room leaves a run that goes on and buys nothing again."""

import builtins
import errno
import io
import os
import random
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from streambatch.core import spooling
from streambatch.core.report import Summary
from streambatch.edge.journal import Store
from streambatch.errors import JournalError, StorageError, StreambatchError
from tests.e2e import rig
from tests.engine.test_virtual import ids
from tests.twins.api import MemoryBatchApi
from tests.twins.clock import VirtualClock
from tests.twins.world import Weather, config, simulate, visit, world

ROWS = 12
STRIDE = 29  # of the writes of a run, one in so many is made to fail here; all of them were, by hand
ENOUGH = 1 << 40


# -- before it is full


def looks(tmp: Path, free: Any, api: MemoryBatchApi, clock: VirtualClock) -> Any:
    return visit(config(tmp, tmp / "in.jsonl"), api, clock, random.Random(1), free=free)


def test_a_run_stops_before_the_disk_is_full_and_goes_on_later(tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 60)
    asked: list[int] = []

    def fills_up(folder: str) -> int:
        asked.append(1)
        return ENOUGH if len(asked) < 4 else spooling.RESERVE_BYTES - 1

    async def main() -> Summary:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, duration_s=600.0)
        with pytest.raises(
            StorageError, match=r"nearly full: 63 MiB are free.*64 MiB.*run the same command again"
        ) as low:
            await looks(tmp_path, fills_up, api, clock)
        assert str(tmp_path / "out.jsonl.run") in str(low.value)
        assert low.value.exit_code == 3
        assert api.executed.total() < 60 or not (tmp_path / "out.jsonl").exists()
        summary: Summary = await looks(tmp_path, lambda folder: ENOUGH, api, clock)
        assert set(api.executed.values()) == {1}
        return summary

    assert simulate(main, 1).done == 60
    assert ids(tmp_path / "out.jsonl") == ids(source)


def test_nothing_is_sent_where_the_disk_is_full_from_the_start(tmp_path: Path) -> None:
    rig.write_requests(tmp_path / "in.jsonl", 20)

    async def main() -> MemoryBatchApi:
        clock = VirtualClock()
        api = MemoryBatchApi(clock)
        with pytest.raises(StorageError, match="nearly full"):
            await looks(tmp_path, lambda folder: 0, api, clock)
        return api

    api = simulate(main, 1)
    assert not api.calls["upload"]
    assert not list((tmp_path / "out.jsonl.run" / "spool").iterdir())


# -- when it is full


class Full:
    """A disk below one folder that takes no more from the N-th write on; 0: it never fills up."""

    def __init__(self, folder: Path, at: int) -> None:
        self._folder = f"{folder}{os.sep}"
        self._at = at
        self.writes = 0
        self.names: list[str] = []

    def write(self, place: int | str | os.PathLike[str]) -> None:
        """One write. Raises OSError."""
        name = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else str(place)
        if not str(name).startswith(self._folder):
            return
        self.writes += 1
        if self._at and self.writes >= self._at:
            self.names.append(str(name))
            raise OSError(errno.ENOSPC, "No space left on device", str(name) if isinstance(place, str) else None)

    def journal(self) -> None:
        self.writes += 1
        if self._at and self.writes >= self._at:
            self.names.append("journal")
            raise sqlite3.OperationalError("database or disk is full")


@contextmanager
def filling(full: Full) -> Iterator[None]:
    """The real file functions with this disk below them; SQLite's writes fail as SQLite says it."""
    opened, os_open, os_write, copy = builtins.open, os.open, os.write, os.copy_file_range
    transaction = Store._transaction

    class Raw(io.FileIO):
        def write(self, data: Any, /) -> int:
            full.write(self.fileno())
            return super().write(data)

    def opens(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
        if "b" not in mode or not set(mode) & set("wax+"):
            return opened(file, mode, *args, **more)
        full.write(file)
        raw = Raw(file, mode.replace("b", ""), opener=more.get("opener"))
        return raw if more.get("buffering") == 0 else (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)

    def opens_fd(path: Any, flags: int, *args: Any, **more: Any) -> int:
        if flags & os.O_CREAT:
            full.write(os.fspath(path))
        return os_open(path, flags, *args, **more)

    def writes(fd: int, data: Any) -> int:
        full.write(fd)
        return os_write(fd, data)

    def syncs(fd: int) -> None:
        full.write(fd)  # real syncs would take most of the time, and show nothing here

    def copies(source: int, target: int, *args: Any) -> int:
        full.write(target)
        return copy(source, target, *args)

    def transacts(self: Store, events: Any) -> None:
        full.journal()
        transaction(self, events)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", opens)
        for name, ours in (("open", opens_fd), ("write", writes), ("fsync", syncs), ("copy_file_range", copies)):
            patch.setattr(os, name, ours)
        patch.setattr(Store, "_transaction", transacts)
        yield


def fill_and_resume(folder: Path, at: int) -> Full:
    """A run whose disk is full from the N-th write on, then the same command with room again."""
    source = rig.write_requests(folder / "in.jsonl", ROWS)
    weather = Weather(3, failing=0.3, expiring=0.3)
    full = Full(folder, at)

    async def main() -> None:
        clock = VirtualClock()
        api = world(clock, weather, window_s=3600.0, duration_s=600.0)
        asked = config(folder, source, limits=limits_of(4), max_attempts=9)
        ended: BaseException | None = None
        try:
            with filling(full):
                await visit(asked, api, clock, random.Random(1))
        except Exception as error:  # noqa: BLE001 - looked at below
            ended = error
        if full.names:
            assert isinstance(ended, StorageError | JournalError), repr(ended)
            assert ended.exit_code == 3
            assert names_its_file(ended, full), f"{ended} of {full.names[:3]}"
            assert "run the same command again" in str(ended)
            with filling(Full(folder, 0)):
                await visit(asked, api, clock, random.Random(2))
        else:
            assert ended is None
        times = {custom_id: n for (custom_id, _), n in api.executed.items()}
        assert times == {custom_id: weather.executions_of(custom_id) for custom_id in ids(source)}, "bought again"

    simulate(main, 1)
    assert ids(folder / "out.jsonl") == ids(source)
    return full


def limits_of(rows: int) -> Any:
    from streambatch.core.models import ShardLimits

    return ShardLimits(max_requests=rows)


def names_its_file(error: StreambatchError, full: Full) -> bool:
    """Whether a message says what could not be written: one of the files, or the beginning of their names."""
    if "journal" in full.names:
        return "journal.sqlite" in str(error)
    said = re.findall(r"/[^ :]+", str(error))
    return any(name.startswith(part.rstrip(".,")) for name in full.names for part in said)


def total_writes(folder: Path) -> int:
    folder.mkdir()
    return fill_and_resume(folder, 0).writes


def test_a_full_disk_at_any_write_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    writes = total_writes(tmp_path / "free")
    assert writes > 60
    for at in range(1, writes + 1, STRIDE):
        folder = tmp_path / str(at)
        folder.mkdir()
        assert fill_and_resume(folder, at).names, f"the run did not come to write {at}"
