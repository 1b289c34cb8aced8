"""Contenders take turns at one job; every turn is measured and its output checked. Pairs of one round are compared.

Decides nothing about the jobs: a contender brings its own way to perform.
"""

import statistics
import sys
from collections.abc import Callable, Iterable, Sequence

import msgspec

from benchmarks.measuring import Figures


class Turn(msgspec.Struct, frozen=True):
    """One performance. `problems` says in words what is wrong with it; `server` is what its service took, if apart."""

    figures: Figures
    problems: tuple[str, ...] = ()
    server: Figures | None = None


class Contender(msgspec.Struct, frozen=True):
    """Who takes part, with how many rows. `missing` says why it can't."""

    name: str
    rows: int
    command: tuple[str, ...]
    perform: Callable[[], Turn]
    ours: bool = True
    missing: str | None = None


class Record(msgspec.Struct):
    """What one contender did, round by round; the right turns first, at most one wrong one at the end."""

    name: str
    rows: int
    ours: bool
    command: tuple[str, ...]
    missing: str | None
    turns: list[Turn] = msgspec.field(default_factory=list)

    @property
    def right(self) -> list[Turn]:
        return [turn for turn in self.turns if not turn.problems]

    @property
    def problems(self) -> list[str]:
        return [problem for turn in self.turns for problem in turn.problems]

    def median(self, figure: Callable[[Turn], float | None]) -> float | None:
        """Of the right turns; None if there are none, or the figure is unknown."""
        known = [value for turn in self.right if (value := figure(turn)) is not None]
        return statistics.median(known) if known else None

    def cpu_us(self) -> float | None:
        """CPU per row, in microseconds: the median."""
        seconds = self.median(lambda turn: turn.figures.cpu_s)
        return None if seconds is None else seconds / self.rows * 1e6

    def peak_mib(self) -> float | None:
        """The highest of all right turns."""
        return max((p for turn in self.right if (p := turn.figures.peak_mib) is not None), default=None)


class Ratio(msgspec.Struct, frozen=True):
    """Wall time of ours over a peer's, a pair from each round."""

    ours: str
    peer: str
    pairs: tuple[float, ...]
    median: float


class Mark(msgspec.Struct, frozen=True):
    """A bound for a figure; `value` None if it was not measured. `applies`: the data has the size the bound is for.

    `goal`: wished for, not required.
    """

    text: str
    value: float | None
    at_most: float
    applies: bool = True
    goal: bool = False

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        if not self.applies:
            return "for another size"
        if self.value <= self.at_most:
            return "met"
        return "not yet" if self.goal else "MISSED"


class Section(msgspec.Struct, frozen=True):
    """One job's table."""

    name: str
    title: str
    rows: int
    bytes: int
    records: list[Record]
    ratios: list[Ratio] = []
    marks: list[Mark] = []
    notes: list[str] = []

    @property
    def problems(self) -> list[str]:
        """What is wrong with anything of ours; a peer that failed is only shown."""
        return [f"{r.name}: {problem}" for r in self.records if r.ours for problem in r.problems]


def compete(contenders: Sequence[Contender], runs: int) -> list[Record]:
    """Everyone once a round, forth and back by turns; who went wrong takes no further part.

    Once all of ours went wrong there is nothing left to compare, and the rounds end.
    """
    records = [Record(c.name, c.rows, c.ours, c.command, c.missing) for c in contenders]
    pairs = list(zip(contenders, records, strict=True))
    ours = [record for record in records if record.ours]
    for round_ in range(runs):
        if ours and all(record.problems for record in ours):
            break
        for contender, record in pairs if round_ % 2 == 0 else reversed(pairs):
            if contender.missing is None and not record.problems:
                record.turns.append(contender.perform())
                _tell(f"{record.name}, {round_ + 1} of {runs}", record.turns[-1])
    return records


def ratios(records: Iterable[Record]) -> list[Ratio]:
    """Each of ours against each peer."""
    known = [record for record in records if record.right]
    return [_ratio(ours, peer) for ours in known if ours.ours for peer in known if not peer.ours]


def _ratio(ours: Record, peer: Record) -> Ratio:
    pairs = tuple(a.figures.wall_s / b.figures.wall_s for a, b in zip(ours.right, peer.right, strict=False))
    return Ratio(ours.name, peer.name, pairs, statistics.median(pairs))


def _tell(what: str, turn: Turn) -> None:
    figures = turn.figures
    outcome = "; ".join(turn.problems) if turn.problems else f"{figures.wall_s:.2f} s, {figures.cpu_s:.2f} s of CPU"
    print(f"  {what}: {outcome}", file=sys.stderr, flush=True)
