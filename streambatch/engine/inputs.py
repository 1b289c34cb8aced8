"""The inputs of one visit: as they are now, the settings that their first row fixes, and what of them must be read.

Asks before anything is bought. What was cut of them is compared by `replaying`.
"""

from streambatch.config import Config
from streambatch.core import events as e
from streambatch.core.models import InputFile, Settings
from streambatch.core.report import Progress
from streambatch.edge.files import Blocking
from streambatch.edge.journal import Journal, Store
from streambatch.edge.serial import Serials
from streambatch.engine import opening, replaying
from streambatch.engine.context import Listener
from streambatch.engine.replaying import Reading


class Inputs:
    """`files`, `settings` and `reading` hold once they were looked at."""

    def __init__(
        self, config: Config, serials: Serials, store: Store, journal: Journal, blocking: Blocking, listen: Listener
    ) -> None:
        self.files: tuple[InputFile, ...] = ()
        self.settings: Settings
        self.reading = Reading.GO_ON
        self._config = config
        self._serials = serials
        self._store = store
        self._journal = journal
        self._blocking = blocking
        self._listen = listen

    async def look(self, started: e.Started | None) -> None:
        """What is there, and whether it agrees with the run so far. Raises ConfigError, SourceError."""
        self.files = await self._blocking(opening.inputs_of, self._config)
        if started is None:
            self.settings = opening.settings_of(self._config, await self._first_row())
            return
        self.reading = await self._what_to_read()
        given = self.reading is not Reading.OVER or not self._streams
        first = await self._first_row() if given else None
        if first is None and self._rows:
            first = opening.stand_in(started.settings)
        self.settings = opening.settings_of(self._config, first)
        opening.agree(self._config, started, self.settings, self.files)
        await self._check_files(started)

    async def compare(self) -> None:
        """Streams that are given again must bring what was cut of them, now. Raises SourceError."""
        if self.reading is Reading.COMPARE:
            await replaying.check_streams(self.files, self._serials, self._journal, self._blocking)
            self.reading = Reading.GO_ON

    async def grown(self) -> bool:
        """Whether there is more than what was cut; streams were compared before."""
        if self.reading is Reading.OVER:
            return False
        last, exhausted = self._store.last_segment(), self._store.last(e.Exhausted)
        ends = (0, 0) if last is None else last.segment.end
        known = () if exhausted is None else exhausted.inputs
        return await replaying.grown(self.files, known, ends, self._serials, self._blocking)

    @property
    def size_bytes(self) -> int:
        """Of all of them, as far as it is known before they are read."""
        if self.reading is Reading.OVER or not self.files:
            return self._store.totals().get("bytes_read", 0)
        return sum(self._serials.guess(index, file) for index, file in enumerate(self.files))

    @property
    def _streams(self) -> bool:
        return any(file.stream for file in self.files)

    @property
    def _rows(self) -> int:
        return self._store.totals().get("rows", 0)

    async def _first_row(self) -> bytes | None:
        return await opening.first_row(self._config, self.files, self._serials, self._blocking)

    async def _what_to_read(self) -> Reading:
        if not any(file.serial for file in self.files):
            return Reading.GO_ON
        over = replaying.read_to_end(self._store.last(e.Exhausted), self.files, self._config.limit, self._rows)
        if not self._streams:
            return Reading.OVER if over else Reading.GO_ON
        finished = self._store.last(e.Published) is not None
        if over and not await replaying.is_given(self.files, self._serials, self._blocking, finished=finished):
            return Reading.OVER
        return Reading.COMPARE

    async def _check_files(self, started: e.Started) -> None:
        opened = self._store.last(e.Opened)
        known = started.inputs if opened is None else opened.inputs
        packed = [self.files[k].name for k in replaying.changed_files(self.files, known) if self.files[k].serial]
        if packed:
            note = f"{packed[0]} has changed: comparing it with the rows that were cut before"
            self._listen(Progress(run_id=started.run_id, phase="starting", note=note))
        await replaying.check_files(self.files, known, self._serials, self._journal, self._blocking)
