"""The engine of the `shard` command: inputs in, `shard-000000.jsonl` and on, in the order of their rows.

A scan runs ahead of the workers, which write whole segments beside their final names. Blocking, without an event loop.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from types import TracebackType
from typing import Self

import msgspec

from streambatch.core.jobs import BadRow, Prepare, Prepared
from streambatch.core.models import InputFile, Segment, Shaping, ShardLimits
from streambatch.core.profiles import OPENAI, Profile, check_endpoint
from streambatch.core.rows import why_stop
from streambatch.core.shaping import Asked, resolve
from streambatch.core.sharding import CutPoint
from streambatch.edge import looking, sources
from streambatch.edge.crew import Answer, Crew
from streambatch.edge.heap import keep_heap
from streambatch.edge.jobs import storage_error
from streambatch.edge.jobs.appending import Files
from streambatch.edge.rawfiles import RawWriter, pieces_in
from streambatch.edge.scanning import Scan
from streambatch.edge.serial import Serials
from streambatch.errors import ConfigError, SourceError

ERRORS = "errors.jsonl"
SMALL_BYTES = 8 << 20  # inputs below this are cut without worker processes
AHEAD = 2  # segments per hand that are scanned and not yet in place
_bad_row = msgspec.json.Decoder(BadRow)
_encode = msgspec.json.Encoder().encode


class CutReport(msgspec.Struct, frozen=True):
    """What `cut` did. `errors` is the file of bad rows, if there are any; `existed`: `if_exists` said to leave it."""

    rows: int = 0
    good: int = 0
    bad: int = 0
    skipped: int = 0
    shards: int = 0
    bytes: int = 0
    errors: str | None = None
    first_bad: BadRow | None = None
    existed: bool = False


def cut(
    inputs: Sequence[str],
    out_dir: str,
    *,
    asked: Asked | None = None,
    limits: ShardLimits | None = None,
    workers: int = 2,
    if_exists: str = "fail",
    limit: int | None = None,
    on_bad_row: str = "skip",
    profile: Profile = OPENAI,
    on_progress: Callable[[CutReport], None] | None = None,
) -> CutReport:
    """Writes `DIR/shard-000000.jsonl` and on, and bad rows to `DIR/errors.jsonl`; removes what it made if it fails.

    Raises ConfigError, SourceError for inputs, StorageError for the folder. `on_progress` is called after each segment.
    """
    limits = ShardLimits() if limits is None else limits
    files = sources.discover(inputs)
    out_dir = os.path.abspath(out_dir)
    hands = 0 if _is_small(files) else workers  # of several, this process is one
    keep_heap()
    crew = Crew(hands - (hands > 1))  # they start while we look at the input
    with _Folder(out_dir) as folder, crew, closing(Serials()) as serials:
        first = looking.first_row(files, limits.max_line_bytes, serials)
        shaping, _ = resolve(first, Asked() if asked is None else asked)
        check_endpoint(profile, shaping.endpoint)
        if not _clear(out_dir, files, if_exists):
            return CutReport(existed=True)
        folder.create()
        cutting = _Cutting(files, shaping, limits, folder, crew, hands, on_bad_row == "stop", on_progress)
        if any(file.serial for file in files):  # of which nothing can be read a second time
            raw = RawWriter(folder.raw, f"{folder.prefix}raw", files)
            with closing(Scan(files, limits, limit=limit, serials=serials, raw=raw)) as scan:
                cutting.run(scan, guessed=False)
            return folder.finish()
        point = cutting.run(Scan(files, limits, limit=limit, no_blanks=True), guessed=True)
        if point is not None:
            cutting.run(Scan(files, limits, point=point, limit=limit), guessed=False)
        return folder.finish()


def _is_small(files: Sequence[InputFile]) -> bool:
    return not any(file.serial for file in files) and sum(file.size for file in files) < SMALL_BYTES


class _Cutting:
    """Gives segments to workers and takes their shards in order; the scan is only so far ahead."""

    def __init__(
        self,
        files: Sequence[InputFile],
        shaping: Shaping,
        limits: ShardLimits,
        folder: "_Folder",
        crew: Crew,
        hands: int,
        stop_on_bad: bool,
        on_progress: Callable[[CutReport], None] | None,
    ) -> None:
        self._files = files
        self._shaping = shaping
        self._limits = limits
        self._folder = folder
        self._crew = crew
        self._helps = hands > 1  # with one, this process has the scan to do
        self._ahead = AHEAD * hands
        self._stop_on_bad = stop_on_bad
        self._on_progress = on_progress
        self._waiting: deque[tuple[Segment, Prepare, Answer]] = deque()

    def run(self, scan: Iterable[Segment], *, guessed: bool) -> CutPoint | None:
        """All segments of a scan; or the point from where it was wrong, if it `guessed` that no line is blank."""
        for segment in scan:
            job = self._job(segment)
            self._waiting.append((segment, job, self._crew.submit(job)))
            if len(self._waiting) > self._ahead and (point := self._take(guessed)):
                return point
        while self._waiting:
            if point := self._take(guessed and len(self._waiting) > 1):
                return point
        return None

    def _take(self, guessed: bool) -> CutPoint | None:
        segment, job, answer = self._waiting.popleft()
        while self._helps and not answer.done and self._crew.help():
            pass
        made = answer.get()
        assert isinstance(made, Prepared)
        self._check_bad_rows(made)
        if guessed and made.rows < made.lines:  # of the last segment it makes no difference
            return self._stop_at(segment)
        self._folder.place(job, made, segment.index)
        if self._on_progress is not None:
            self._on_progress(self._folder.report)
        return None

    def _stop_at(self, segment: Segment) -> CutPoint:
        """Forget what was made from `segment` on."""
        self._crew.drain()
        while self._waiting:
            self._waiting.popleft()[2].wait()
        first = segment.slices[0]
        return CutPoint(
            input=first.input,
            offset=first.start,
            line=first.first_line,
            ordinal=segment.first_ordinal,
            index=segment.index,
            rows=self._folder.report.rows,
        )

    def _job(self, segment: Segment) -> Prepare:
        return Prepare(
            pieces=pieces_in(self._folder.raw, self._files, segment),
            first_ordinal=segment.first_ordinal,
            shaping=self._shaping,
            limits=self._limits,
            prefix=f"{self._folder.prefix}{segment.index:06d}",
            fsync=False,
            stop_on_bad=self._stop_on_bad,
            bare=True,
        )

    def _check_bad_rows(self, made: Prepared) -> None:
        bad = made.first_bad
        if bad is not None:
            leading_bad = 0 if self._folder.report.rows else made.leading_bad
            why = why_stop(bad, leading_bad, stop=self._stop_on_bad)
            if why is not None:
                raise SourceError(why, path=bad.file, line=bad.line)


# -- the folder


def _clear(out_dir: str, files: Sequence[InputFile], if_exists: str) -> bool:
    """Whether to go on: the folder holds no shards, or no longer. Raises ConfigError."""
    old = [os.path.join(out_dir, n) for n in _names(out_dir) if n == ERRORS or _is_shard(n)]
    if not old:
        return True
    if if_exists == "skip":
        return False
    if if_exists != "overwrite":
        raise ConfigError(f"{out_dir} holds shards already: choose another --output, or --if-exists overwrite or skip.")
    inputs = {os.path.realpath(file.path) for file in files}
    for path in old:
        if os.path.realpath(path) in inputs:
            raise ConfigError(f"{path} is an input and would be overwritten: choose another --output.")
    for path in old:
        os.unlink(path)
    return True


def _names(out_dir: str) -> list[str]:
    try:
        return sorted(os.listdir(out_dir))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{out_dir} is no folder to write to ({error.strerror}): choose another --output.") from error


def _is_shard(name: str) -> bool:
    return name.startswith("shard-") and name.endswith(".jsonl")


class _Folder:
    """The output folder: takes what workers made, in order, under its final names."""

    def __init__(self, out_dir: str) -> None:
        self.report = CutReport()
        self._out_dir = out_dir
        self._mark = f".cutting-{os.getpid()}-"
        self._files = Files(mode=0o666)
        self._errors = self._files.create(self.prefix + ERRORS)

    @property
    def prefix(self) -> str:
        """Of all names that are not final."""
        return os.path.join(self._out_dir, self._mark)

    def create(self) -> None:
        """Make it, if it is not there. Raises ConfigError."""
        try:
            os.makedirs(self._out_dir, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"The folder {self._out_dir} can't be made: {error.strerror}.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._files.__exit__(kind, error, at)
        if kind is not None:
            self._remove_all()
        if isinstance(error, OSError):
            raise storage_error(error) from error

    def raw(self, index: int) -> str:
        """The rows of a segment that came from serial inputs."""
        return f"{self.prefix}{index:06d}.raw"

    def place(self, job: Prepare, made: Prepared, index: int) -> None:
        """The next segment's shards and bad rows."""
        for number, shard in enumerate(made.shards, self.report.shards):
            os.rename(f"{shard.stem}.jsonl", self._shard(number))
        old = self.report
        self.report = CutReport(
            rows=old.rows + made.rows,
            good=old.good + made.rows - made.bad - made.skipped,
            bad=old.bad + made.bad,
            skipped=old.skipped + made.skipped,
            shards=old.shards + len(made.shards),
            bytes=old.bytes + sum(shard.bytes for shard in made.shards),
            first_bad=made.first_bad if old.first_bad is None else old.first_bad,
        )
        if made.bad or made.skipped:
            self._take_bad_rows(job)
        with contextlib.suppress(FileNotFoundError):  # most inputs are plain files
            os.unlink(self.raw(index))

    def finish(self) -> CutReport:
        """The errors file, if there are bad rows. Returns the final counts."""
        self._remove_leftovers()
        if not self.report.bad:
            return self.report
        self._errors.finish(fsync=False)
        path = os.path.join(self._out_dir, ERRORS)
        os.rename(self._errors.path, path)
        return msgspec.structs.replace(self.report, errors=path)

    def _take_bad_rows(self, job: Prepare) -> None:
        path = f"{job.prefix}.bad"
        with open(path, "rb") as lines:
            for line in lines:
                bad = _bad_row.decode(line)
                if not bad.skipped:
                    self._errors.append(_encode(_error_line(job.first_ordinal + bad.row, bad)) + b"\n")
        os.unlink(path)

    def _remove_all(self) -> None:
        with contextlib.suppress(OSError):  # the error on its way matters more
            self._remove_leftovers()
            for number in range(self.report.shards):
                os.unlink(self._shard(number))

    def _remove_leftovers(self) -> None:
        for name in _names(self._out_dir):
            if name.startswith(self._mark) and not name.endswith(ERRORS):
                os.unlink(os.path.join(self._out_dir, name))

    def _shard(self, number: int) -> str:
        return os.path.join(self._out_dir, f"shard-{number:06d}.jsonl")


def _error_line(ordinal: int, bad: BadRow) -> dict[str, object]:
    return {
        "ordinal": ordinal,
        "file": bad.file,
        "line": bad.line,
        "custom_id": bad.custom_id,
        "class": "bad_row",
        "reason": bad.reason,
        "attempts": 0,
        "result": None,
    }
