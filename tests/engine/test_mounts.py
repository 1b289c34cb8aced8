"""Where a run directory lies: file systems told apart by what the system says of its mounts, and locks that a file system lacks."""

import errno
import fcntl
import os
import sqlite3
from pathlib import Path

import pytest

from streambatch.edge import database, mounts, scratch
from streambatch.edge.files import RunFiles
from streambatch.edge.journal import Store, read_only
from streambatch.edge.locking import RunLock, is_locked
from streambatch.edge.mounts import kind_of, parse_mount, parse_mountinfo
from streambatch.errors import ConfigError, StorageError

MOUNTINFO = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,discard
23 22 0:21 / /proc rw,nosuid shared:5 - proc proc rw
40 22 0:50 / /home rw,relatime shared:9 master:2 - nfs4 filer:/export/home rw,vers=4.2,addr=10.0.0.9
41 40 254:0 /home/eve /home/eve/local rw,relatime - ext4 /dev/vda1 rw
42 22 0:51 / /mnt/shared\040data rw,relatime - cifs //box/share rw,vers=3.1.1
43 22 0:52 / /mnt/ssh rw,nosuid,nodev - fuse.sshfs eve@host:/data rw,user_id=1000
44 22 0:53 / /var/lib/docker/merged rw - overlay overlay rw,lowerdir=/a,upperdir=/home/up - x
45 22 0:54 / /mnt/over rw - ext4 /dev/vdb rw
46 45 0:55 / /mnt/over rw - nfs filer:/over rw
47 22 0:56 / /mnt/c rw,noatime - 9p C:\134 rw,trans=fd
48 22 254:16 / /mnt/ntfs rw - fuseblk /dev/sdb1 rw
49 22 0:57 / /mnt/tab\011and\134slash rw - xfs /dev/sdc rw
broken line
"""
MOUNT = """/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)
/dev/disk3s5 on /System/Volumes/Data (apfs, local, journaled, nobrowse)
//eve@box._smb._tcp.local/share on /Volumes/share (1) (smbfs, nodev, nosuid, mounted by eve)
filer:/export on /Volumes/nfs (nfs, nodev, nosuid, mounted by eve)
map auto_home on /System/Volumes/Data/home (autofs, automounted, nobrowse)
"""


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [
        ("/", "ext4", False),
        ("/homes/eve", "ext4", False),
        ("/home", "nfs4", True),
        ("/home/eve/out.jsonl.run", "nfs4", True),
        ("/home/eve/local/run", "ext4", False),
        ("/mnt/shared data/run", "cifs", True),
        ("/mnt/ssh/run", "fuse.sshfs", True),
        ("/var/lib/docker/merged/run", "overlay", False),
        ("/mnt/over/run", "nfs", True),
        ("/mnt/c/run", "9p", True),
        ("/mnt/ntfs/run", "fuseblk", False),
        ("/mnt/tab\tand\\slash/run", "xfs", False),
    ],
)
def test_the_longest_and_newest_mount_point_tells(path: str, kind: str, network: bool) -> None:
    found = kind_of(path, list(parse_mountinfo(MOUNTINFO)))
    assert (found, mounts.is_network(found)) == (kind, network)


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [
        ("/System/Volumes/Data/x", "apfs", False),
        ("/Volumes/share (1)/x", "smbfs", True),
        ("/Volumes/nfs", "nfs", True),
    ],
)
def test_macos_prints_them(path: str, kind: str, network: bool) -> None:
    found = kind_of(path, list(parse_mount(MOUNT)))
    assert (found, mounts.is_network(found)) == (kind, network)


def test_what_nobody_tells_is_tried() -> None:
    assert kind_of("/x", []) == ""
    assert not mounts.is_network("")


def test_the_variable_overrules(tmp_path: Path) -> None:
    assert not mounts.may_share(tmp_path, {mounts.VARIABLE: "exclusive"})
    assert mounts.may_share(tmp_path, {mounts.VARIABLE: "shared"})
    with pytest.raises(ConfigError, match="STREAMBATCH_JOURNAL is 'wal'"):
        mounts.may_share(tmp_path, {mounts.VARIABLE: "wal"})


# -- the journal's two modes


def pragmas(store: Store) -> tuple[object, ...]:
    names = ("journal_mode", "locking_mode", "synchronous")
    return tuple(store.ask(f"PRAGMA {name}")[0][0] for name in names)


def test_each_commit_is_synced_in_both_modes(tmp_path: Path) -> None:
    for shared, mode in (
        (True, ("wal", "normal", 3)),
        (False, ("delete", "exclusive", 3)),
        (True, ("wal", "normal", 3)),
    ):
        store = Store(str(tmp_path / "journal.sqlite"), shared=shared)
        assert (store.shared, pragmas(store)) == (shared, mode)
        store.close()


def test_a_table_of_spares_survives_power_loss_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollback log whose removal is not synced would bring the state before back."""
    seen: list[str] = []
    plain = sqlite3.connect

    def traced(*args: object, **kw: object) -> sqlite3.Connection:
        db: sqlite3.Connection = plain(*args, **kw)  # type: ignore[call-overload]
        db.set_trace_callback(seen.append)
        return db

    monkeypatch.setattr(sqlite3, "connect", traced)
    scratch.add(str(tmp_path / "spares.sqlite"), 1, [b"k" * 16])
    assert seen.index("PRAGMA synchronous=EXTRA") < next(k for k, text in enumerate(seen) if text.startswith("INSERT"))


def test_without_shared_memory_the_journal_is_kept_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder where SQLite's shared memory can't be made: its name leads nowhere."""
    (tmp_path / "journal.sqlite-shm").symlink_to(tmp_path / "no" / "where")
    store = Store(str(tmp_path / "journal.sqlite"))
    assert not store.shared
    assert pragmas(store) == ("delete", "exclusive", 3)
    monkeypatch.setattr(database, "PATIENCE_S", 0.1)
    with pytest.raises(database.HeldError, match="in use"), read_only(str(tmp_path / "journal.sqlite")):
        pass
    store.close()


# -- locks


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ConfigError, match=r"can't lock files .* name a --run-dir on another disk"):
        RunLock(RunFiles(str(tmp_path))).acquire()
    assert not is_locked(tmp_path)


def test_a_broken_disk_is_not_another_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StorageError, match=r"Locking .* failed"):
        RunLock(RunFiles(str(tmp_path))).acquire()


def test_who_looks_does_not_need_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS locks a file exclusively only for those who opened it to write."""
    plain = fcntl.flock

    def flock(fd: int, how: int) -> None:
        writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        if how & fcntl.LOCK_EX and not writable:
            raise OSError(errno.EBADF, "as NFS has it")
        plain(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = RunLock(RunFiles(str(tmp_path)))
    lock.acquire()
    assert is_locked(tmp_path)
    with pytest.raises(ConfigError, match="already"):
        RunLock(RunFiles(str(tmp_path))).acquire()
    lock.release()
    assert not is_locked(tmp_path)
