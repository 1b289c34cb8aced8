"""Input files: are they there, of which kind, and reading plain ones in blocks; positions are byte offsets.

Opens and reads only; where to cut is `core.sharding`'s decision. Workers load it: it must stay light.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from stat import S_ISDIR, S_ISREG

import msgspec

from streambatch.core.models import InputFile
from streambatch.errors import ConfigError, SourceError

BLOCK_BYTES = 512 << 10
STDIN = "-"
GZIP_MAGIC = b"\x1f\x8b"
UNREAD = {b"(\xb5/\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"PK\x03\x04": "zip"}


def discover(names: Sequence[str]) -> tuple[InputFile, ...]:
    """The inputs as they are now; `-` is stdin. Raises SourceError for one that can't be read, ConfigError for two `-`."""
    if names.count(STDIN) > 1:
        raise ConfigError("The input - is named twice, but stdin can be read only once: leave one out.")
    return tuple(_look_at(name) for name in names)


def discover_plain(names: Sequence[str], command: str) -> tuple[InputFile, ...]:
    """The same for a command that reads its files in any order. Raises SourceError for a serial one too."""
    files = discover(names)
    for file in files:
        if file.serial:
            advice = "save it to a file" if file.stream else "unpack it"
            what = file.name if file.stream else f"{file.name} is compressed, and"
            raise SourceError(f"{what} can't be read by {command}: {advice} first.", path=file.name)
    return files


def _look_at(name: str) -> InputFile:
    if name == STDIN:
        return InputFile(name="stdin", path=STDIN, size=0, mtime_ns=0, kind="stdin")
    if not name:
        raise SourceError("The name of an input is empty: name a JSONL file.", path=name)
    path = text_path(name, "input")
    with open_input(path, name) as fd:
        state = os.fstat(fd)
        kind = _kind(os.pread(fd, 6, 0), name)
    return InputFile(name=name, path=path, size=state.st_size, mtime_ns=state.st_mtime_ns, kind=kind)


def text_path(name: str, what: str) -> str:
    """The absolute path of `name`. Raises ConfigError for one that is no text: journals keep paths as UTF-8."""
    path = os.path.abspath(name)
    if any("\ud800" <= letter <= "\udfff" for letter in path):
        raise ConfigError(
            f"The path of the {what} {name!a} is no text in this locale: give it a name in UTF-8, or set PYTHONUTF8=1"
            " where the locale is C."
        )
    return path


def _kind(head: bytes, name: str) -> str:
    if head.startswith(GZIP_MAGIC):
        return "gzip"
    for magic, format_name in UNREAD.items():
        if head.startswith(magic):
            raise SourceError(
                f"{name} is packed with {format_name}, which is not read: unpack it, or pipe its rows to -.", path=name
            )
    return "plain"


@contextmanager
def open_input(path: str, name: str) -> Iterator[int]:
    """A file descriptor for reading; what fails inside becomes a SourceError that shows `name`."""
    fd = -1
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe is refused, not waited for
        mode = os.fstat(fd).st_mode
        if not S_ISREG(mode):
            pipe = "no regular file: save its rows to one, or pipe them to -"
            kind = "a directory: name the files in it" if S_ISDIR(mode) else pipe
            raise SourceError(f"{name} is {kind}.", path=name)
        yield fd
    except OSError as error:
        raise SourceError(f"{name} can't be read: {error.strerror}.", path=name) from error
    finally:
        if fd >= 0:
            os.close(fd)


def read_at(fd: int, size: int, position: int, name: str) -> bytes:
    block = os.pread(fd, size, position)
    if len(block) < size:
        end = position + len(block)
        raise SourceError(f"{name} ends at byte {end}: it has become shorter while it was read.", path=name)
    return block


# -- lines of a byte range


class Chunk(msgspec.Struct, gc=False):
    """Consecutive bytes of a file and the whole lines in them.

    Of a line that is too long to be held, `data` is a part; where it ends, `long_bytes` is its length, and `long_blank`
    says that it was white space.
    """

    data: memoryview
    lines: list[bytes]
    ascii_only: bool = False
    long_bytes: int = 0
    long_blank: bool = False


def read_lines(
    path: str, name: str, start: int, end: int, *, max_line_bytes: int, block_bytes: int = BLOCK_BYTES
) -> Iterator[Chunk]:
    """The lines of a range that holds whole lines; a line longer than both sizes is not held. Raises SourceError."""
    with open_input(path, name) as fd:
        position = start
        while position < end:
            block = read_at(fd, min(block_bytes, end - position), position, name)
            lines = BytesIO(block).readlines()
            used = len(block)
            if position + used < end and not lines[-1].endswith(b"\n"):
                used -= len(lines.pop())
            if lines:
                yield Chunk(memoryview(block)[:used], lines, block.isascii())
                position += used
            else:
                yield from _long_line(fd, name, position, stop := _line_end(fd, name, position, end), max_line_bytes)
                position = stop


def _line_end(fd: int, name: str, start: int, end: int) -> int:
    """Where the line that begins at `start` ends, newline included."""
    position = start
    while position < end:
        block = read_at(fd, min(BLOCK_BYTES, end - position), position, name)
        newline = block.find(b"\n")
        if newline >= 0:
            return position + newline + 1
        position += len(block)
    return end


def _long_line(fd: int, name: str, start: int, end: int, max_line_bytes: int) -> Iterator[Chunk]:
    if end - start <= max_line_bytes:
        line = read_at(fd, end - start, start, name)
        yield Chunk(memoryview(line), [line], line.isascii())
        return
    blank = True
    for position in range(start, end, BLOCK_BYTES):
        block = read_at(fd, min(BLOCK_BYTES, end - position), position, name)
        blank = blank and block.isspace()
        over = position + len(block) == end
        yield Chunk(memoryview(block), [], long_bytes=end - start if over else 0, long_blank=over and blank)
