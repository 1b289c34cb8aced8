"""Rows of a program as blocks of JSON lines: any iterable, or async iterable, of mappings or lines.

Rows are gathered into blocks, bounded by bytes and by time; an iterable is advanced on one thread of its own.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, TypeVar

import orjson

from streambatch.core.wording import one_line
from streambatch.edge.files import Blocking
from streambatch.errors import ConfigError, SourceError

T = TypeVar("T")
Row = Mapping[str, Any] | str | bytes
Rows = Iterable[Row] | AsyncIterable[Row]
NAME = "rows"
BLOCK_BYTES = 512 << 10
BLOCK_S = 0.1  # a slow source is not waited for longer than that, once there is a row
_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY


def row_blocks(rows: Rows, patient: Callable[[], Blocking] | None = None) -> "RowBlocks | AsyncRowBlocks":
    """`patient` makes the place where an iterable may take its time; by default a thread of its own."""
    if isinstance(rows, AsyncIterable):
        return AsyncRowBlocks(rows)
    return RowBlocks(rows, OwnThread() if patient is None else patient())


class _Lines:
    """Rows on their way to a block."""

    def __init__(self) -> None:
        self._block = bytearray()  # rows are freed one by one: a list of them costs four times as much
        self._rows = 0
        self._until = 0.0
        self._error: SourceError | None = None

    def add(self, row: object) -> bool:
        """True where the block is full. Raises SourceError for what is no row."""
        self._rows += 1
        line = _line(row, self._rows)
        if not self._block:  # the first row is all that is needed to begin
            self._until = time.monotonic() + (BLOCK_S if self._rows > 1 else 0.0)
        self._block += line
        return len(self._block) >= BLOCK_BYTES or time.monotonic() >= self._until

    def failed(self, error: Exception) -> None:
        """What the source raised. It is raised once the rows before it are out."""
        self._error = error if isinstance(error, SourceError) else self._mapped(error)

    def block(self) -> bytes:
        """The rows so far; b"" where there are none. Raises SourceError."""
        if not self._block and self._error is not None:
            raise self._error
        block = bytes(self._block)
        self._block.clear()
        return block

    @property
    def broken(self) -> bool:
        return self._error is not None

    def _mapped(self, error: Exception) -> SourceError:
        number = self._rows + 1
        why = f"{type(error).__name__}: {one_line(str(error))[:200]}".rstrip(": .")
        mapped = SourceError(f"{NAME}, row {number}: the source of the rows failed ({why}).", path=NAME, line=number)
        mapped.__cause__ = error
        return mapped


class RowBlocks:
    """Of an iterable. `read` may take as long as its next row does."""

    def __init__(self, rows: Iterable[Row], patient: Blocking) -> None:
        self._source = rows
        self._rows: Any = None
        self._patient = patient
        self._lines = _Lines()

    def read(self) -> bytes:
        if not self._lines.broken:
            try:
                self._gather()
            except Exception as error:  # noqa: BLE001 - the source is anybody's code
                self._lines.failed(error)
        return self._lines.block()

    async def fetch(self, blocking: Blocking) -> bytes:
        return await self._patient(self.read)

    def close(self) -> None:
        if isinstance(self._patient, OwnThread):
            self._patient.close()

    def _gather(self) -> None:
        self._rows = iter(self._source) if self._rows is None else self._rows
        for row in self._rows:
            if self._lines.add(row):
                return


class AsyncRowBlocks:
    """Of an async iterable, advanced in the event loop by one task from its first row to its last: it may hold time-outs open."""

    def __init__(self, rows: AsyncIterable[Row]) -> None:
        self._source = rows
        self._lines = _Lines()
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self._some = asyncio.Event()  # there is a row, or nothing more comes
        self._full = asyncio.Event()  # there is a block, or nothing more comes
        self._go_on = asyncio.Event()  # a block is wanted

    def read(self) -> bytes:
        raise SourceError(f"{NAME}: an async iterable needs an event loop; use the async function.", path=NAME)

    async def fetch(self, blocking: Blocking) -> bytes:
        """A full block, or what is there a moment after its first row."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._gather())
        if not self._full.is_set():
            self._go_on.set()
        await self._some.wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._full.wait(), BLOCK_S)
        if not self._over:
            self._some.clear()
            self._full.clear()
        return self._lines.block()

    def close(self) -> None:
        """Its owner closes the iterable."""
        if self._task is not None:
            self._task.cancel()

    async def _gather(self) -> None:
        try:
            async for row in self._source:
                full = self._lines.add(row)
                self._some.set()
                if full:
                    self._go_on.clear()
                    self._full.set()
                    await self._go_on.wait()
        except Exception as error:  # noqa: BLE001 - the source is anybody's code
            self._lines.failed(error)
        self._over = True
        self._some.set()
        self._full.set()


# -- one row


def _line(row: object, number: int) -> bytes:
    """One JSON line, newline included. Raises SourceError."""
    if type(row) is not dict:
        return _other_line(row, number)
    try:
        return orjson.dumps(row, _plain, _OPTIONS)
    except TypeError as error:
        why = one_line(str(error))[:200].rstrip(".")
        raise _unfit(number, f"has no form in JSON ({why}); make it of text, numbers, lists and mappings") from error


def _other_line(row: object, number: int) -> bytes:
    """Of a line, or of a mapping that is no plain dict."""
    if isinstance(row, str | bytes):
        line = row if isinstance(row, bytes) else row.encode(errors="surrogatepass")
        if b"\n" in line[:-1]:
            raise _unfit(number, "is text with a newline inside; a line of JSON has none")
        return line if line.endswith(b"\n") else line + b"\n"
    if not isinstance(row, Mapping):
        raise _unfit(number, f"is a {type(row).__name__}; give mappings, or lines of JSON")
    return _line(dict(row), number)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is nothing that JSON has")


def _unfit(number: int, why: str) -> SourceError:
    return SourceError(f"{NAME}, row {number} {why}.", path=NAME, line=number)


# -- sources


def split_source(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Rows,
) -> tuple[list[str], Rows | None]:
    """The paths of a source, or its rows. Raises ConfigError for what is neither."""
    if isinstance(source, str | os.PathLike):
        return [os.fspath(source)], None
    if isinstance(source, bytes | bytearray | Mapping) or hasattr(source, "__dataframe__"):
        raise _unusable(source, "give an iterable of its rows as mappings, such as frame.to_dict('records')")
    if isinstance(source, Sequence) and all(isinstance(path, str | os.PathLike) for path in source):
        if not source:
            raise _unusable(source, "it is empty, and holds no paths: give the path of a JSONL file, or several")
        return [os.fspath(path) for path in source if isinstance(path, str | os.PathLike)], None
    if not isinstance(source, Iterable | AsyncIterable):
        raise _unusable(source, "give the path of a JSONL file, several, or an iterable of rows")
    return [], source  # type: ignore[return-value]  # a sequence of rows, whatever it holds


def _unusable(source: object, advice: str) -> ConfigError:
    return ConfigError(f"The source is a {type(source).__name__}; {advice}.")


# -- a thread for code that may not come back


class OwnThread:
    """`Blocking` on one thread, always the same; a cancelled caller leaves it behind, and no exit waits for it."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def __call__(self, function: Callable[..., T], *args: object) -> T:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="streambatch rows", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._jobs.put(lambda: _answer(loop, answer, function, args))
        return await answer

    def close(self) -> None:
        """Let it end once it comes back."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def _answer(
    loop: asyncio.AbstractEventLoop, answer: "asyncio.Future[T]", function: Callable[..., T], args: tuple[object, ...]
) -> None:
    try:
        made, error = function(*args), None
    except BaseException as caught:  # noqa: BLE001 - raised where the answer is awaited
        made, error = None, caught
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(_give, answer, made, error)


def _give(answer: "asyncio.Future[Any]", made: object, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(made)
    else:
        answer.set_exception(error)
