"""A disk that can lose its power: what was not synced may be gone, empty, half written, or there; what was synced is there.

It stands under the files of one folder by taking the place of `os.fsync` and `os.fdatasync`: a file is durable as it was when it
was synced, a name when its folder was. SQLite calls the system itself, so its files are copied at the end of each commit.
"""

import contextlib
import os
import random
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streambatch.edge import scratch
from streambatch.edge.journal import Store

LOG = ("-wal", "-journal")
THROUGH = ("sync", "sync_folder", "inline", "write_atomic")  # functions that sync for somebody else
Names = dict[int, dict[str, int]]


class PowerError(BaseException):
    """Nothing of this process comes after it."""


class Loss(msgspec.Struct, frozen=True):
    """What becomes of names and of contents that were not synced: `durable` is gone, `live` is there, else as chance wills."""

    names: str  # durable | live | mixed
    contents: str  # durable | zeros | torn | live | mixed


LOSSES = (
    Loss("durable", "durable"),
    Loss("live", "durable"),
    Loss("live", "zeros"),
    Loss("live", "torn"),
    Loss("durable", "live"),
    Loss("mixed", "mixed"),
)


class Moment(msgspec.Struct, frozen=True):
    """A sync or a commit: who asked for it, of what."""

    by: str
    of: str

    def __str__(self) -> str:
        return f"{self.by} {self.of}"


class _Tree(msgspec.Struct):
    """Folders by number, with the numbers behind their names; files by number, with what they hold."""

    names: Names
    data: dict[int, bytes]


class Disk:
    """The folder `root` and all below it. Power goes before moment `cut_at` is done (-1: it does not); moments whose name is in
    `deaf` are not done at all, though the caller believes it."""

    def __init__(self, root: Path, *, cut_at: int = -1, deaf: frozenset[str] = frozenset()) -> None:
        self.root = root
        self.cut_at = cut_at
        self.deaf = deaf
        self.moments: list[Moment] = []
        self.off = False
        self._held: dict[int, int] = {}  # an open descriptor by number: so that no number comes twice
        self._adopt()

    def close(self) -> None:
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()

    def _adopt(self) -> None:
        """All that is there now is durable."""
        self.close()
        self._durable = self._look()
        self._bases = {base: self._family(base) for base in self._find_bases()}

    # -- what happens to it

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        """Stand under the process."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", self.sync)
            patch.setattr(os, "fdatasync", self.sync)
            for name in ("append", "mark_swept", "close"):
                patch.setattr(Store, name, self._committing(getattr(Store, name), _path_of))
            patch.setattr(Store, "_open", self._committing(Store._open, _path_of))
            patch.setattr(scratch, "add", self._committing(scratch.add, str))
            yield

    def sync(self, fd: int) -> None:
        """In place of the system's."""
        number = os.fstat(fd).st_ino
        path = None if self.off else self._path(number)
        if path is None:
            return
        moment = Moment(_caller(sys._getframe(1)), _role(path))
        self._pass(moment)
        if str(moment) in self.deaf:
            return
        if path.is_dir():
            self._durable.names[number] = self._entries(str(path))
        else:
            self._hold(number, os.open(path, os.O_RDONLY))
            self._durable.data[number] = path.read_bytes()

    def _committing(self, function: Callable[..., Any], base_of: Callable[[Any], str]) -> Callable[..., Any]:
        def commit(first: Any, *args: Any) -> Any:
            base = "" if self.off else base_of(first)
            result = function(first, *args)
            if base.startswith(f"{self.root}/") and not self.off:
                self._pass(Moment(function.__name__, os.path.basename(base)))
                self._bases[base] = self._family(base)
            return result

        return commit

    def _pass(self, moment: Moment) -> None:
        if len(self.moments) == self.cut_at:
            self.cut()
            raise PowerError(str(moment))
        self.moments.append(moment)

    def cut(self) -> None:
        """The power goes. What the process does from now on is not part of the world."""
        self.off = True
        self._live = self._look()
        self._live_bases = {base: self._family(base) for base in {*self._bases, *self._find_bases()}}

    # -- looking

    def _path(self, number: int) -> Path | None:
        """Where a file or folder is; None where it is none of ours."""
        for folder, _, names in os.walk(self.root):
            for path in (folder, *(f"{folder}/{name}" for name in names)):
                if os.stat(path).st_ino == number:
                    return Path(path)
        return None

    def _look(self) -> _Tree:
        tree = _Tree({}, {})
        for folder, _, names in os.walk(self.root):
            entries = self._entries(folder)
            tree.names[os.stat(folder).st_ino] = entries
            tree.data |= {entries[n]: Path(folder, n).read_bytes() for n in names if n in entries}
        return tree

    def _entries(self, folder: str) -> dict[str, int]:
        """The numbers behind the names in a folder; files of databases are apart."""
        entries = {}
        for name in os.listdir(folder):
            if ".sqlite" in name:
                continue
            fd = os.open(f"{folder}/{name}", os.O_RDONLY)
            entries[name] = os.fstat(fd).st_ino
            self._hold(entries[name], fd)
        return entries

    def _hold(self, number: int, fd: int) -> None:
        if number in self._held:
            os.close(fd)
        else:
            self._held[number] = fd

    def _find_bases(self) -> list[str]:
        return [str(path) for path in self.root.rglob("*.sqlite")]

    def _family(self, base: str) -> dict[str, bytes]:
        paths = [Path(f"{base}{ending}") for ending in ("", *LOG)]
        return {path.name: path.read_bytes() for path in paths if path.exists()}

    # -- after it

    def restore(self, loss: Loss, chance: random.Random) -> None:
        """Power is back: the folder is what can be left of it, and all that is there is durable."""
        assert self.off
        remains = _Remains(self._durable, self._live, loss, chance)
        self._lay(str(self.root), self.root.stat().st_ino, remains)
        for base in {*self._bases, *self._live_bases}:
            if os.path.isdir(os.path.dirname(base)):
                family = self._remaining(base, loss, chance)
                for name, data in family.items():
                    Path(os.path.dirname(base), name).write_bytes(data)
        self.off, self.cut_at, self.moments = False, -1, []
        self._adopt()

    def _lay(self, folder: str, number: int, remains: "_Remains") -> None:
        """Make a folder what remains of it; a folder that stays keeps its number."""
        entries = remains.entries(number)
        for name in os.listdir(folder):
            path = f"{folder}/{name}"
            if not os.path.isdir(path):
                os.unlink(path)
            elif name not in entries:
                self._lay(path, -1, remains)
                os.rmdir(path)
        for name, entry in entries.items():
            path = f"{folder}/{name}"
            if remains.is_folder(entry):
                os.makedirs(path, mode=0o700, exist_ok=True)
                self._lay(path, entry, remains)
            else:
                Path(path).write_bytes(remains.content(entry))

    def _remaining(self, base: str, loss: Loss, chance: random.Random) -> dict[str, bytes]:
        """The files of a database: as of the last commit, or with a part of the log that was about to be synced."""
        durable, live = self._bases.get(base, {}), self._live_bases.get(base, {})
        name, log = os.path.basename(base), f"{os.path.basename(base)}-wal"
        if loss.contents == "durable" or not durable:
            return durable
        old, new = durable.get(log, b""), live.get(log, b"")
        if durable.get(name) != live.get(name) or not new.startswith(old):
            return chance.choice((durable, live))
        end = len(new) if loss.contents == "live" else chance.randint(len(old), len(new))
        tail = bytes(len(new) - end) if loss.contents == "zeros" else b""
        return {**durable, log: new[:end] + tail} if new else durable


class _Remains:
    """Works out what is left, from what is durable, what was there, and chance."""

    def __init__(self, durable: _Tree, live: _Tree, loss: Loss, chance: random.Random) -> None:
        self._durable, self._live, self._loss, self._chance = durable, live, loss, chance
        self._where = {number for names in live.names.values() for number in names.values()}

    def is_folder(self, number: int) -> bool:
        return number in self._live.names or number in self._durable.names

    def entries(self, number: int) -> dict[str, int]:
        """The names in a folder. A rename is whole: one of its two names is there."""
        old, new = self._durable.names.get(number, {}), self._live.names.get(number, {})
        if self._loss.names != "mixed":
            return old if self._loss.names == "durable" else new
        kept = {}
        for name in sorted({*old, *new}):
            one = self._chance.choice((old.get(name, 0), new.get(name, 0)))
            if one == 0 and name in old and name in new:
                one = new[name]
            if one == 0 and old.get(name, 0) in self._where:
                one = old[name]  # renamed since; it may stand under both names
            if one:
                kept[name] = one
        return kept

    def content(self, number: int) -> bytes:
        old = self._durable.data.get(number, b"")
        new = self._live.data.get(number, old)
        how = self._loss.contents
        if how == "mixed":
            how = self._chance.choice(("durable", "zeros", "torn", "live"))
        if how == "durable" or old == new:
            return old
        if how == "live":
            return new
        if how == "zeros":
            return old + bytes(len(new) - len(old)) if len(new) > len(old) else old
        at = self._chance.randint(0, max(len(old), len(new)))
        return new[:at] + old[at:]


def _path_of(store: Store) -> str:
    """The file of an open store."""
    with contextlib.suppress(sqlite3.ProgrammingError):  # closed
        return str(store._db.execute("PRAGMA database_list").fetchone()[2])
    return ""


def _role(path: Path) -> str:
    """What a file or folder is to a run."""
    if path.is_dir():
        return "spool" if path.name == "spool" else "run directory" if path.name.endswith(".run") else "folder"
    plain = path.name.partition(".tmp-")[0].removesuffix(".part")
    return os.path.splitext(plain)[1] if path.parent.name == "spool" else plain


def _caller(frame: Any) -> str:
    """The function that wants the sync."""
    while frame.f_code.co_name in THROUGH:
        frame = frame.f_back
    return str(frame.f_code.co_name)
