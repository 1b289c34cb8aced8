"""The journal: durable order, state rows that equal the folded log, and a store that failed once stays shut."""

import sqlite3
from pathlib import Path

import pytest

from streambatch.core import events as e
from streambatch.core.jobs import SegmentCount
from streambatch.core.models import Segment, Shard, ShardState, Slice, Usage
from streambatch.edge.journal import PoolGroup, Store, read_only
from streambatch.edge.projection import USER_VERSION
from streambatch.errors import ConfigError, JournalError
from tests.e2e import rig


def segment(index: int, rows: int = 4) -> Segment:
    return Segment(index, (Slice(0, index * 100, index * 100 + 100, index * rows, 0),), index * rows, rows, 100)


def shard(name: str, index: int, rows: int = 4) -> Shard:
    return Shard(name, index, index, index, 0, "m", rows, 100, 25, f"hash-{name}")


def sealed(index: int) -> e.SegmentSealed:
    return e.SegmentSealed(segment(index), f"source-{index}", 4, 0, 0, None, (shard(f"{index:06d}-0", index),))


def life(name: str, index: int, *, done: int, errors: int, left: int) -> list[e.Event]:
    return [
        e.Uploaded(name, f"file-{name}", 10.0),
        e.Intended(name, 1),
        e.Submitted(name, f"batch-{name}", f"file-{name}", 1),
        e.BatchFinished(name, f"batch-{name}", "completed", "file-o", None, 4, done, errors),
        e.Admitted(name),
        e.Downloaded(name, True, False),
        e.Settled(
            name,
            done,
            errors,
            ((1, left),) if left else (),
            (SegmentCount(index, done, errors, left),),
            Usage(5, 0, 7),
            0,
            0,
            0,
        ),
    ]


def a_whole_log() -> list[e.Event]:
    remainder = Shard("r000000", None, 0, 0, 1, "m", 1, 25, 6, "hash-r")
    return [
        sealed(0),
        sealed(1),
        *life("000000-0", 0, done=3, errors=0, left=1),
        *life("000001-0", 1, done=4, errors=0, left=0),
        e.RemainderSealed(remainder, (e.PoolTake("000000-0", 1, 0, 1),), ((0, 1),)),
        e.Found("batch-x", "000009-0", 1, "file-x", "h", "36+4", "in_progress", 11.0),
        *life("r000000", 0, done=1, errors=0, left=0),
        e.Merged(0, 400, 0, 4, 0, 0, ()),
        e.Merged(1, 800, 20, 3, 1, 0, (("invalid_request", "bad", 1),)),
    ]


def test_folding_the_event_log_gives_the_state_rows(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "journal.sqlite"))
    for event in a_whole_log():
        store.append([event])
    folded = rig.fold(list(store.events()))
    assert folded == {name: store.shard(name) for name in folded}
    again = Store(":memory:")
    again.append(list(store.events()))
    assert again.dump() == store.dump()
    store.close()
    again.close()


def test_events_and_state_outlive_the_process(tmp_path: Path) -> None:
    path = str(tmp_path / "journal.sqlite")
    store = Store(path)
    store.append([sealed(0), e.Uploaded("000000-0", "file-1", 1.0)])
    store.close()
    again = Store(path)
    kept = again.shard("000000-0")
    assert kept is not None
    assert kept.state is ShardState.UPLOADED
    assert [type(x).__name__ for x in again.events()] == ["SegmentSealed", "Uploaded"]
    again.close()


def test_an_illegal_event_leaves_no_trace_and_shuts_the_store(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "journal.sqlite"))
    store.append([sealed(0)])
    with pytest.raises(JournalError, match="illegal"):
        store.append([e.Uploaded("000000-0", "file-1", 1.0), e.Settled("000000-0", 1, 0, (), (), Usage(), 0, 0, 0)])
    with pytest.raises(JournalError, match="takes no more"):
        store.append([e.Uploaded("000000-0", "file-1", 1.0)])
    store.close()
    with read_only(str(tmp_path / "journal.sqlite")) as seen:
        assert [type(x).__name__ for x in seen.events()] == ["SegmentSealed"]


def test_a_segment_is_complete_when_its_last_open_row_has_an_outcome() -> None:
    store = Store(":memory:")
    log = a_whole_log()
    store.append(log[:2])
    store.append(life("000000-0", 0, done=3, errors=0, left=1))
    row = store.next_to_merge()
    assert row is not None
    assert row.open_rows == 1
    assert store.pool() == [PoolGroup("m", 1, 0, 1, 0)]
    store.append(
        [
            e.RemainderSealed(
                Shard("r000000", None, 0, 0, 1, "m", 1, 25, 6, "h"), (e.PoolTake("000000-0", 1, 0, 1),), ((0, 1),)
            )
        ]
    )
    assert store.pool() == []
    store.append(life("r000000", 0, done=1, errors=0, left=0))
    row = store.next_to_merge()
    assert row is not None
    assert row.open_rows == 0
    assert [s.name for s in store.parts(0)] == ["000000-0", "r000000"]
    store.close()


def test_left_rows_are_taken_once() -> None:
    store = Store(":memory:")
    store.append([sealed(0), *life("000000-0", 0, done=3, errors=0, left=1)])
    remainder = Shard("r000000", None, 0, 0, 1, "m", 1, 25, 6, "h")
    store.append([e.RemainderSealed(remainder, (e.PoolTake("000000-0", 1, 0, 1),), ((0, 1),))])
    twin = Shard("r000001", None, 0, 0, 1, "m", 1, 25, 6, "h")
    with pytest.raises(JournalError, match="not in the pool"):
        store.append([e.RemainderSealed(twin, (e.PoolTake("000000-0", 1, 0, 1),), ((0, 1),))])
    store.close()


def test_a_newer_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    Store(str(path)).close()
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version={USER_VERSION + 1}")
    db.close()
    with pytest.raises(ConfigError, match="newer streambatch"):
        Store(str(path))


def test_a_damaged_journal_is_one_sentence_with_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"this is no database, whatever its name says. " * 100)
    with pytest.raises(JournalError, match=r"damaged.*--run-id"):
        Store(str(path))


def test_a_journal_without_shared_memory_works_and_keeps_others_out(tmp_path: Path) -> None:
    path = str(tmp_path / "journal.sqlite")
    store = Store(path, shared=False)
    store.append([sealed(0)])
    assert not (tmp_path / "journal.sqlite-shm").exists()
    store.close()
    again = Store(path, shared=False)
    assert again.shard("000000-0") is not None
    again.close()
