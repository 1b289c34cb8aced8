"""Who takes part and how: our commands and the peers' programs, each in an empty folder, measured, checked, cleared away.

Where a contender needs a service it gets a server of its own, with nothing in it, and its ledger is read.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks import checking
from benchmarks.commands import ROOT, absent, environment, gnu_split, peer, streambatch
from benchmarks.contest import Contender, Turn
from benchmarks.data import Made
from benchmarks.loading import Load, queue
from benchmarks.measuring import Figures, measure
from benchmarks.serving import serving

Check = Callable[[], list[str]]

MAX_REQUESTS, MAX_BYTES = 50_000, 200 << 20
SPEED = 1000.0  # of a server apart: its own durations then hardly count, and the engine's share shows


class Bench(msgspec.Struct, frozen=True):
    """What every job needs: where to work, how large, how often."""

    folder: Path
    rows: int
    runs: int
    seed: int

    @property
    def made(self) -> Path:
        """The generated data; kept."""
        return self.folder / "data"

    @property
    def out(self) -> Path:
        """What a contender writes; emptied before and after each."""
        return self.folder / "out"


# -- cutting


def cut(bench: Bench, source: Made, workers: int) -> Contender:
    """`shard` with so many workers; its shards, in the order of their names, must be the input, within the limits."""
    folder = bench.out / "shards"

    def check() -> list[str]:
        paths = sorted(folder.glob("shard-*.jsonl"))
        return checking.same_lines(paths, source) + checking.within_limits(paths, MAX_REQUESTS, MAX_BYTES)

    command = streambatch("shard", source.paths[0], "-o", folder, "--quiet", "--workers", str(workers))
    return _plain(bench, f"shard, {_workers(workers)}", source.rows, command, check)


def split(bench: Bench, source: Made) -> Contender:
    """GNU split: lines under a number of bytes, no JSON looked at."""
    program = gnu_split()
    if program is None:
        return _absent("split -C 200m", "no GNU split on this machine")
    command = (program, "-C", "200m", source.paths[0], str(bench.out / "x"))
    return _peer(
        bench, "split -C 200m", source.rows, command, lambda: checking.same_lines(sorted(bench.out.iterdir()), source)
    )


def copy(bench: Bench, source: Made) -> Contender:
    """cp: the floor."""
    target = bench.out / "copy"
    return _peer(
        bench, "cp", source.rows, ("cp", source.paths[0], str(target)), lambda: checking.same_lines([target], source)
    )


# -- merging


def join(bench: Bench, source: Made, answers: Made, workers: int) -> Contender:
    """`merge` with so many workers."""
    output = bench.out / "merged.jsonl"
    files = (source.paths[0], *answers.paths)
    command = streambatch("merge", *files, "-o", output, "--quiet", "--workers", str(workers))
    return _plain(
        bench, f"merge, {_workers(workers)}", source.rows, command, lambda: checking.same_lines([output], answers)
    )


def join_by(bench: Bench, source: Made, answers: Made, package: str, how: str) -> Contender:
    """A program of `benchmarks.peers`; absent where its package is not installed."""
    name, why = f"{package}, {how}", absent(package)
    if why is not None:
        return _absent(name, why)
    output = bench.out / "merged.jsonl"
    command = peer(f"{package}-{how}", source.paths[0], os.path.dirname(answers.paths[0]), output)
    return _peer(bench, name, source.rows, command, lambda: checking.same_lines([output], answers))


# -- whole runs


def embedded(bench: Bench, name: str, source: Made, *words: str) -> Contender:
    """A run with the server inside its own process."""
    command, output = _run(bench, source, "--local", "--seed", str(bench.seed), *words)
    return _plain(
        bench, name, source.rows, command, lambda: checking.in_order(Path(source.paths[0]), output, checking.ID)
    )


def served(bench: Bench, name: str, source: Made, key: re.Pattern[bytes], *words: str) -> Contender:
    """A run against a server in another process, which must have executed every row once."""
    command, output = _run(bench, source, *words)

    def perform() -> Turn:
        _empty(bench.out)
        try:
            with serving(bench.out / "server", bench.seed, SPEED) as server:
                figures = measure(command, environment(server.url), ROOT)
                wrong = _failed(figures) or _bought_otherwise(server.ledger(), source.rows)
                theirs = server.stop()
        except (OSError, RuntimeError) as error:
            return Turn(Figures(0.0, 0.0, None, 1), (f"the local server: {error}",))
        wrong = wrong or checking.in_order(Path(source.paths[0]), output, key)
        _empty(bench.out)
        return Turn(figures, tuple(wrong), theirs)

    return Contender(name, source.rows, command, perform)


def loaded(bench: Bench, load: Load, notes: list[str]) -> Contender:
    """The local server by itself with so many batches queued; the figures are its own."""

    def perform() -> Turn:
        _empty(bench.out)
        turn = queue(bench.out / "server", bench.seed, load, notes)
        _empty(bench.out)
        return turn

    part = "to the end" if load.share == 1 else f"{load.share:.0%} of each executed"
    name = f"{load.batches:,} batches of {load.rows:,} rows, {part}"
    return Contender(name, load.batches * load.rows, streambatch("serve"), perform)


def _run(bench: Bench, source: Made, *words: str) -> tuple[tuple[str, ...], Path]:
    output = bench.out / "answers.jsonl"
    return streambatch("run", source.paths[0], "-o", output, "--quiet", "--poll-interval", "0.1", *words), output


def _bought_otherwise(ledger: dict[str, int], rows: int) -> list[str]:
    done, again = ledger["rows_executed"], ledger["rows_executed_again"]
    return [] if (done, again) == (rows, 0) else [f"the server executed {done} rows, {again} of them again, for {rows}"]


# -- a turn


def _plain(bench: Bench, name: str, rows: int, command: tuple[str, ...], check: Check) -> Contender:
    return Contender(name, rows, command, lambda: _turn(bench, command, check))


def _peer(bench: Bench, name: str, rows: int, command: tuple[str, ...], check: Check) -> Contender:
    return Contender(name, rows, command, lambda: _turn(bench, command, check), ours=False)


def _absent(name: str, why: str) -> Contender:
    return Contender(name, 0, (), lambda: Turn(Figures(0.0, 0.0, None, 1), (why,)), ours=False, missing=why)


def _turn(bench: Bench, command: tuple[str, ...], check: Check) -> Turn:
    _empty(bench.out)
    figures = measure(command, environment(), ROOT)
    wrong = _failed(figures) or check()
    _empty(bench.out)
    return Turn(figures, tuple(wrong))


def _failed(figures: Figures) -> list[str]:
    if figures.exit_code == 0:
        return []
    last = figures.said.split("\n")[-1]
    return [f"exit code {figures.exit_code}{': ' if last else ''}{last[-300:]}"]


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"
