"""The run directory on disk: spool names, durable renames, and the sinks that are appended, cut and published.

The only place that moves or removes the run's files. Knows nothing of what they mean.
"""

import asyncio
import contextlib
import errno
import os
import shutil
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import anyio
import anyio.lowlevel
import xxhash

from streambatch.errors import ConfigError, StorageError

T = TypeVar("T")
BLOCK = 1 << 20


class Blocking(Protocol):
    """Runs a blocking function where it disturbs nobody; a cancelled caller waits until it has returned."""

    async def __call__(self, function: Callable[..., T], *args: object) -> T: ...


async def in_thread(function: Callable[..., T], *args: object) -> T:
    """`Blocking` on a thread of asyncio's."""
    return await to_the_end(asyncio.get_running_loop().run_in_executor(None, function, *args))


async def to_the_end(work: Awaitable[T]) -> T:
    """Await on asyncio; come back only when it is done, also when cancelled, by a scope or natively: no write lands later."""
    running = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        running.exception()  # its failure matters to nobody any more
        raise cancelled
    return running.result()


def private(path: str, flags: int) -> int:
    """An opener for files that only the user reads."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


async def inline(function: Callable[..., T], *args: object) -> T:
    """`Blocking` in place, for a virtual clock: yields once, then runs."""
    await anyio.lowlevel.checkpoint()
    return function(*args)


@contextmanager
def disk(what: str) -> Iterator[None]:
    """Map errors of the operating system to one sentence. Raises StorageError."""
    try:
        yield
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "Free some space" if full else "Mend that"
        raise StorageError(f"{what} failed: {why}. {advice}, then run the same command again.") from error


def segment_name(index: int) -> str:
    """The name of a segment's own spool files."""
    return f"{index:06d}"


class RunFiles:
    """Names and files of one run directory (mode 0700, files 0600)."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.spool = self.folder / "spool"
        self.journal = self.folder / "journal.sqlite"
        self.output = self.folder / "output.part"
        self.errors = self.folder / "errors.part"
        self.cancel = self.folder / "cancel"
        self.status = self.folder / "status.json"
        self.suffix = f".tmp-{os.getpid()}-{os.urandom(3).hex()}"

    def create(self) -> None:
        """Make the folders, durably: a run lost with its folder would be bought again. Raises ConfigError."""
        try:
            for folder in (*reversed(self.folder.parents), self.folder, self.spool):
                if not folder.exists():
                    folder.mkdir(mode=0o700 if folder in (self.folder, self.spool) else 0o777, exist_ok=True)
                    if folder != self.spool:  # its name is synced with those of the sinks, before anything is in it
                        sync_folder(folder.parent)
        except OSError as error:
            raise ConfigError(
                f"The run directory {self.folder} can't be made: {os.strerror(error.errno or 0)}."
            ) from error

    def has_journal(self) -> bool:
        """Whether a run was opened here. Raises ConfigError where the folder is closed to us."""
        try:
            return os.stat(self.journal).st_size >= 0
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise ConfigError(
                f"The run directory {self.folder} can't be looked into: {os.strerror(error.errno or 0)}; use another --run-dir."
            ) from error

    def forget_cancel(self) -> None:
        """Drop a request to cancel that an engine before this one left unanswered."""
        with disk(f"Removing {self.cancel}"):
            self.cancel.unlink(missing_ok=True)

    def stem(self, name: str) -> str:
        """The path without ending of a shard's (or segment's) spool files."""
        return str(self.spool / name)

    def path(self, name: str, ending: str) -> str:
        return f"{self.spool / name}{ending}"

    def raw(self, segment: int) -> str:
        """The rows of a segment that came from serial inputs."""
        return self.path(segment_name(segment), ".raw")

    # -- durable names

    def settle_names(self, names: Iterable[str]) -> None:
        """Rename each `NAME + suffix` that a job wrote to NAME, then sync the folder. Absent ones are skipped."""
        with disk(f"Renaming files in {self.spool}"):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # an optional file that the job had no need of
                    os.replace(name + self.suffix, name)
            sync_folder(self.spool)

    def sweep_temporaries(self) -> None:
        """Remove what killed processes left behind: temporary names, and downloads cut short."""
        with disk(f"Cleaning {self.spool}"), os.scandir(self.spool) as entries:
            for entry in entries:
                if ".tmp-" in entry.name or entry.name.endswith(".part"):
                    os.unlink(entry.path)

    def sweep_raw(self, merged: int, sealed: int) -> None:
        """Remove raw files of segments that are merged already (below `merged`), or not sealed (from `sealed` on)."""
        with disk(f"Cleaning {self.spool}"), os.scandir(self.spool) as entries:
            for entry in entries:
                stem, _, ending = entry.name.partition(".")
                if ending == "raw" and stem.isdecimal() and not merged <= int(stem) < sealed:
                    os.unlink(entry.path)

    def sync_raw(self, segment: int) -> None:
        """Make a raw file durable, where there is one; its name is, once the folder is synced."""
        with disk(f"Syncing {self.raw(segment)}"), contextlib.suppress(FileNotFoundError):
            fd = os.open(self.raw(segment), os.O_RDWR | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def remove(self, names: Iterable[str]) -> None:
        """Remove all spool files of these shards or segments."""
        with disk(f"Cleaning {self.spool}"):
            for name in names:
                for ending in ENDINGS:
                    Path(self.path(name, ending)).unlink(missing_ok=True)

    def remove_state(self, output: str) -> None:
        """Remove the run's state, and the folder if nothing else is in it. Answers that lie here stay: OUTPUT itself, and partial
        outputs that hold any."""
        with disk(f"Removing {self.folder}"):
            for part in (self.spool, self.folder / "local"):
                if part.is_dir():
                    shutil.rmtree(part)
            for partial in (self.output, self.errors):
                if partial.is_file() and not partial.stat().st_size:
                    partial.unlink()
            for name in (
                self.journal.name,
                f"{self.journal.name}-wal",
                f"{self.journal.name}-shm",
                "cancel",
                "status.json",
                "lock",
            ):
                (self.folder / name).unlink(missing_ok=True)
            pointer = Path(f"{output}.run")
            if pointer.is_file():
                pointer.unlink()
            if not any(self.folder.iterdir()):
                self.folder.rmdir()

    # -- sinks

    def cut_sinks(self, output_end: int, errors_end: int) -> None:
        """Cut both partials to their journaled ends. Raises StorageError where one is shorter: it is never extended."""
        for path, end in ((self.output, output_end), (self.errors, errors_end)):
            with disk(f"Opening {path}"):
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with contextlib.closing(os.fdopen(fd, "r+b")) as file, disk(f"Cutting {path}"):
                size = file.seek(0, os.SEEK_END)
                if size < end:
                    raise StorageError(
                        f"{path} holds {size} bytes where {end} were written: it was changed by someone else; restore it."
                    )
                file.truncate(end)
                os.fsync(file.fileno())
        with disk(f"Syncing {self.folder}"):
            sync_folder(self.folder)

    def append_sinks(self, output_piece: str, errors_piece: str, output_end: int, errors_end: int) -> tuple[int, int]:
        """Append one merged piece to each partial at its journaled end, sync both, remove the pieces; the new ends."""
        ends = (_append(self.output, output_end, output_piece), _append(self.errors, errors_end, errors_piece))
        for piece in (output_piece, errors_piece):
            with disk(f"Removing {piece}"):
                os.unlink(piece)
        return ends


ENDINGS = (".jsonl", ".ids", ".origins", ".output", ".error", ".notes", ".outcome", ".bad", ".raw")


def _append(sink: Path, end: int, piece: str) -> int:
    with disk(f"Writing {sink}"), open(piece, "rb") as source, open(sink, "r+b") as target:
        size = target.seek(0, os.SEEK_END)
        if size != end:
            raise StorageError(
                f"{sink} holds {size} bytes, not {end}: another process writes to it; stop that one first."
            )
        copied = copy_bytes(source.fileno(), target.fileno())
        os.fsync(target.fileno())
    return end + copied


def copy_bytes(source: int, target: int) -> int:
    """Copy from one file's position to another's until the end, in the kernel where it can; the bytes copied."""
    copied = 0
    while True:
        try:
            n = os.copy_file_range(source, target, 64 << 20)
        except (AttributeError, OSError) as error:
            if copied or not _unsupported(error):
                raise
            return _copy_blocks(source, target)
        if n == 0:
            return copied
        copied += n


def _unsupported(error: Exception) -> bool:
    kinds = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
    return not isinstance(error, OSError) or error.errno in kinds


def _copy_blocks(source: int, target: int) -> int:
    copied = 0
    while block := os.read(source, BLOCK):
        view = memoryview(block)
        while view:
            view = view[os.write(target, view) :]
        copied += len(block)
    return copied


# -- single files


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make names in a folder durable. Raises StorageError."""
    with disk(f"Syncing {os.fspath(folder)}"):
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_atomic(path: str | os.PathLike[str], data: bytes, *, sync: bool = True) -> None:
    """Replace a file's content at once: readers see the old or the new. Raises StorageError."""
    temporary = f"{os.fspath(path)}.tmp-{os.getpid()}"
    with disk(f"Writing {os.fspath(path)}"):
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if sync:
            sync_folder(os.path.dirname(os.path.abspath(path)))


def publish(partial: Path, final: str) -> None:
    """Give a durable partial its final name, across file systems too. Raises StorageError."""
    folder = os.path.dirname(final)
    with disk(f"Publishing {final}"):
        os.chmod(partial, 0o666 & ~_umask())
        try:
            os.replace(partial, final)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            copy_durably(partial, final)
            partial.unlink()
        sync_folder(folder)
        sync_folder(partial.parent)


def copy_durably(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy a file under a temporary name, sync, rename. Raises StorageError."""
    temporary = f"{os.fspath(target)}.tmp-{os.getpid()}"
    with disk(f"Copying {os.fspath(source)} to {os.fspath(target)}"):
        with open(source, "rb") as read, open(temporary, "wb") as write:
            copy_bytes(read.fileno(), write.fileno())
            os.fsync(write.fileno())
        os.replace(temporary, target)
        sync_folder(os.path.dirname(os.path.abspath(target)))


def send_to_stdout(path: Path) -> None:
    """Write a whole file to stdout. Raises StorageError."""
    with disk("Writing to stdout"), open(path, "rb") as read, os.fdopen(os.dup(1), "wb") as write:
        shutil.copyfileobj(read, write, BLOCK)


def hash_file(path: str | os.PathLike[str]) -> str:
    """xxh3-128, hex, of a whole file. Raises StorageError."""
    return hash_ranges([(os.fspath(path), 0, -1)])


def hash_ranges(ranges: Iterable[tuple[str, int, int]]) -> str:
    """xxh3-128, hex, over (path, start, end) ranges in turn; an `end` of -1 is the file's. Raises StorageError."""
    digest = xxhash.xxh3_128()
    for path, start, end in ranges:
        with disk(f"Reading {path}"), open(path, "rb") as file:
            left = (os.fstat(file.fileno()).st_size if end < 0 else end) - start
            file.seek(start)
            while left and (block := file.read(min(BLOCK, left))):
                digest.update(block)
                left -= len(block)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
