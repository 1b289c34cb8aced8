"""Inputs that are given again: whether they still hold what was cut of them, whether there is more, and what must be read.

Serial inputs are compared while they pass, so that what comes behind can be cut. Journals nothing.
"""

from collections.abc import Callable, Sequence
from enum import Enum

import xxhash

from streambatch.core import events as e
from streambatch.core.models import InputFile, Segment, Slice
from streambatch.edge import sources
from streambatch.edge.files import Blocking
from streambatch.edge.journal import Journal, Store
from streambatch.edge.serial import Serials, at_terminal
from streambatch.errors import ConfigError, SourceError

RESTORE = "restore them, or start a new run with another -o."
AGAIN = "give it the same rows again, from the first on, or start a new run with another -o."


class Reading(Enum):
    """What a visit does with its inputs."""

    COMPARE = "compare"  # a stream is given again: first hold it against what was cut
    GO_ON = "go on"
    OVER = "over"  # an earlier visit read them to the end


def same(a: InputFile, b: InputFile) -> bool:
    """Whether a file is what it was when last looked at; a stream can't be looked at."""
    return (a.size, a.mtime_ns, a.kind) == (b.size, b.mtime_ns, b.kind)


def read_to_end(exhausted: e.Exhausted | None, inputs: Sequence[InputFile], limit: int | None, rows: int) -> bool:
    """Whether earlier visits read these inputs as far as this one would."""
    if exhausted is None or len(exhausted.inputs) != len(inputs):
        return False
    if exhausted.limited and (limit is None or limit > rows):
        return False
    return all(same(a, b) for a, b in zip(inputs, exhausted.inputs, strict=True))


# -- what was cut must still be there


async def check_files(
    inputs: Sequence[InputFile], known: Sequence[InputFile], serials: Serials, journal: Journal, blocking: Blocking
) -> None:
    """Files that changed since they were last seen must still hold every sealed segment. Raises SourceError, and ConfigError where
    another file is given."""
    changed = changed_files(inputs, known)

    def wanted(segment: Segment) -> bool:
        return any(s.input in changed for s in segment.slices) and not of_stream(inputs, segment)

    if changed:
        try:
            await _check(inputs, serials, journal, blocking, wanted)
        except SourceError as error:
            _refuse_others(inputs, known, changed, error)
            raise


def _refuse_others(
    inputs: Sequence[InputFile], known: Sequence[InputFile], changed: frozenset[int], error: SourceError
) -> None:
    """What does not hold the run's rows did not change where it is another file. Raises ConfigError."""
    for index in sorted(changed):
        given, then = inputs[index], known[index]
        if given.path != then.path and given.name == error.path:
            name = then.name if then.name != given.name else then.path
            raise ConfigError(
                f"This run was started with {name}, and {given.name}, which is given now, holds other rows; give the first, or"
                " start a new run with another -o."
            ) from error


def changed_files(inputs: Sequence[InputFile], known: Sequence[InputFile]) -> frozenset[int]:
    """Those that are not what they were."""
    return frozenset(k for k, (a, b) in enumerate(zip(inputs, known, strict=True)) if not same(a, b))


async def check_streams(inputs: Sequence[InputFile], serials: Serials, journal: Journal, blocking: Blocking) -> None:
    """Streams must bring what was sealed of them once more. Raises SourceError."""
    await _check(inputs, serials, journal, blocking, lambda segment: of_stream(inputs, segment))


def of_stream(inputs: Sequence[InputFile], segment: Segment) -> bool:
    """Whether rows of it came from a stream."""
    return any(inputs[s.input].stream for s in segment.slices)


async def _check(
    inputs: Sequence[InputFile],
    serials: Serials,
    journal: Journal,
    blocking: Blocking,
    wanted: Callable[[Segment], bool],
) -> None:
    index = 0
    while (row := await journal.read(Store.segment, index)) is not None:
        if wanted(row.segment):
            digest = xxhash.xxh3_128()
            for part in row.segment.slices:
                file = inputs[part.input]
                size = await _add(digest, part, file, serials, blocking)
                if size < part.end - part.start:
                    raise _short(file, row.segment)
            if digest.hexdigest() != row.source_hash:
                raise _changed(inputs, row.segment)
        index += 1


async def _add(digest: xxhash.xxh3_128, part: Slice, file: InputFile, serials: Serials, blocking: Blocking) -> int:
    """Add a slice to the digest; the bytes that were there."""
    if not file.serial:
        return 0 if file.size < part.end else await blocking(_add_plain, digest, part, file)
    size = 0
    async for block in serials.at(part.input, file, part.start).take(part.start, part.end, blocking):
        digest.update(block)
        size += len(block)
    return size


def _add_plain(digest: xxhash.xxh3_128, part: Slice, file: InputFile) -> int:
    with sources.open_input(file.path, file.name) as fd:
        for position in range(part.start, part.end, sources.BLOCK_BYTES):
            size = min(sources.BLOCK_BYTES, part.end - position)
            digest.update(sources.read_at(fd, size, position, file.name))
    return part.end - part.start


def _rows(segment: Segment) -> str:
    return f"rows {segment.first_ordinal + 1} to {segment.first_ordinal + segment.lines} of the input"


def _short(file: InputFile, segment: Segment) -> SourceError:
    advice = AGAIN if file.stream else RESTORE
    return SourceError(
        f"{file.name} ends before the end of what this run has already cut of it ({_rows(segment)}); {advice}",
        path=file.name,
    )


def _changed(inputs: Sequence[InputFile], segment: Segment) -> SourceError:
    names = list(dict.fromkeys(inputs[s.input].name for s in segment.slices))
    advice = AGAIN if of_stream(inputs, segment) else RESTORE
    return SourceError(
        f"{' or '.join(names)} changed in rows that this run has already cut ({_rows(segment)}); {advice}",
        path=names[0],
    )


# -- what is behind it


async def grown(
    inputs: Sequence[InputFile],
    known: Sequence[InputFile],
    ends: tuple[int, int],
    serials: Serials,
    blocking: Blocking,
) -> bool:
    """Whether there is anything behind `ends`, (input, offset); serial inputs that may have more are read to find out."""
    for index in range(ends[0], len(inputs)):
        file, offset = inputs[index], ends[1] if index == ends[0] else 0
        if not file.serial:
            found = file.size > offset
        elif not file.stream and index < len(known) and same(file, known[index]):
            found = False
        else:
            found = await _goes_on(index, file, offset, serials, blocking)
        if found:
            return True
    return False


async def _goes_on(index: int, file: InputFile, offset: int, serials: Serials, blocking: Blocking) -> bool:
    serial = serials.at(index, file, offset)
    async for _ in serial.take(offset, offset, blocking):
        """Nothing comes of what lies before."""
    if not serial.head:
        await serial.look_ahead_async(blocking)
    return bool(serial.head)


# -- what must be read


async def is_given(inputs: Sequence[InputFile], serials: Serials, blocking: Blocking, *, finished: bool) -> bool:
    """Whether a stream that nobody needs any more was given all the same: not a terminal, and (unless finished) not empty."""
    for index, file in enumerate(inputs):
        if file.kind == "stdin" and at_terminal():
            return False
        if file.stream and not finished:
            stream = serials.at(index, file)
            await stream.look_ahead_async(blocking)
            return bool(stream.head)
    return True


def note(inputs: Sequence[InputFile], at: tuple[int, int], reading: Reading) -> str:
    """What takes its time before the first row that is new, for people; "" where nothing does."""
    index, offset = at
    if reading is Reading.COMPARE:
        names = [file.name for file in inputs if file.stream]
        return f"comparing {names[0]} with the rows that were cut before"
    if reading is Reading.GO_ON and offset and inputs[index].kind == "gzip":
        return f"reading {inputs[index].name} again from its start"
    return ""
