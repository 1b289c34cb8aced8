"""Results and rows of one partition, matched by name. First success wins; a success beats an error. Pure."""

from collections.abc import Sequence
from itertools import repeat

from streambatch.core.settling import RowClass

AGAIN = 0xFE  # the class of a row whose name an earlier row has too
NOWHERE = -1
REPEATED = -2


class Matcher:
    """All results of a partition by name, and which of them rows were found for."""

    def __init__(self) -> None:
        self.duplicate = 0
        self._index: dict[bytes, int] = {}
        self._files: list[int] = []
        self._offsets: list[int] = []
        self._lengths: list[int] = []
        self._classes: list[int] = []
        self._used = bytearray()

    def add(
        self, file: int, names: Sequence[bytes], offsets: Sequence[int], lengths: Sequence[int], classes: Sequence[int]
    ) -> None:
        """Result lines of one file, in its order; files in theirs."""
        first = len(self._files)
        self._files.extend([file] * len(names))
        self._offsets.extend(offsets)
        self._lengths.extend(lengths)
        self._classes.extend(classes)
        new = dict(zip(names, range(first, first + len(names)), strict=True))
        if len(new) == len(names) and self._index.keys().isdisjoint(new):
            self._index.update(new)
            return
        for entry, name in enumerate(names, first):
            if (old := self._index.setdefault(name, entry)) != entry:
                self.duplicate += 1
                if self._classes[old] != RowClass.OK and self._classes[entry] == RowClass.OK:
                    self._index[name] = entry

    def match(self, names: Sequence[bytes]) -> list[int]:
        """For each row its result, `NOWHERE`, or `REPEATED` where an earlier row took it; all results come before any rows."""
        if not self._used:
            self._used = bytearray(len(self._files))
        hits = [*map(self._index.get, names, repeat(NOWHERE))]
        used = self._used
        for k, hit in enumerate(hits):
            if hit >= 0:
                if used[hit]:
                    hits[k] = REPEATED
                used[hit] = 1
        return hits

    def columns(self, hits: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]]:
        """Classes, files, offsets and lengths of what was matched."""
        columns = (self._classes, self._files, self._offsets, self._lengths)
        if not hits or min(hits) >= 0:
            classes, files, offsets, lengths = ([*map(column.__getitem__, hits)] for column in columns)
            return classes, files, offsets, lengths
        lost = {NOWHERE: int(RowClass.MISSING), REPEATED: AGAIN}
        classes = [self._classes[hit] if hit >= 0 else lost[hit] for hit in hits]
        files, offsets, lengths = ([column[hit] if hit >= 0 else 0 for hit in hits] for column in columns[1:])
        return classes, files, offsets, lengths

    @property
    def unused(self) -> int:
        """Results for whose name there is no row."""
        return len(self._index) - self._used.count(1)
