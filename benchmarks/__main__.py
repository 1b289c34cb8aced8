"""`make bench`: what the commands take, as whole processes, beside their peers in the same run.

Prints tables and writes the same as JSON. Exits 1 when something of ours failed or wrote wrong output, never for a slow figure.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import flight, machine, report
from benchmarks.contenders import Bench
from benchmarks.contest import Section
from benchmarks.jobs import JOBS

ROWS, RUNS, SEED = 1_000_000, 5, 7
FAST_ROWS, FAST_RUNS = 2_000, 1
USUAL = ("shard", "merge", "run")
BYTES_A_ROW = 7_000  # of disk: data, outputs and a run's spool at once
LOAD_BYTES_A_ROW = 300  # short rows, and the results of a tenth of them


def main(words: Sequence[str] | None = None) -> int:
    said = sys.argv[1:] if words is None else list(words)
    if said[:1] == ["flight"]:
        return flight.main(said[1:])
    asked = parser().parse_args(said)
    bench = _bench(asked)
    bench.folder.mkdir(parents=True, exist_ok=True)
    a_row = LOAD_BYTES_A_ROW if asked.only == ("load",) else BYTES_A_ROW
    free, needed = shutil.disk_usage(bench.folder).free, bench.rows * a_row
    if free < needed:
        _say(
            f"{bench.folder} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} are needed: choose --workdir or --rows."
        )
        return 2
    here = machine.describe()
    print(report.heading(here, bench), flush=True)
    try:
        sections = [_done(name, bench) for name in asked.only]
    finally:
        shutil.rmtree(bench.out, ignore_errors=True)
    target = bench.folder / "bench.json" if asked.json is None else asked.json
    report.write(target, report.document(here, bench, sections))
    print(f"\nall figures: {target}")
    wrong = [problem for section in sections for problem in section.problems]
    for problem in wrong:
        _say(f"WRONG: {problem}")
    return 1 if wrong else 0


def _done(name: str, bench: Bench) -> Section:
    _say(f"\n{name} ...")
    section = JOBS[name](bench)
    print(f"\n{report.shown(section)}", flush=True)
    return section


def parser() -> argparse.ArgumentParser:
    """The options, as docs/benchmarks.md lists them."""
    made = argparse.ArgumentParser("python -m benchmarks", description=__doc__.split("\n")[0] if __doc__ else None)
    made.add_argument("--rows", type=_count, help=f"how many rows of about 1 KB ({ROWS:,})")
    made.add_argument("--runs", type=_count, help=f"turns of each contender ({RUNS}; whole runs at most 3)")
    made.add_argument(
        "--only", type=_names, default=USUAL, metavar="NAMES", help=f"of {', '.join(JOBS)} ({','.join(USUAL)})"
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="the figures as JSON (WORKDIR/bench.json)")
    made.add_argument("--workdir", type=Path, default=Path(".bench"), help="generated data and outputs (.bench)")
    made.add_argument("--seed", type=int, default=SEED, help=f"of the generated data and the answers ({SEED})")
    made.add_argument("--fast", action="store_true", help=f"{FAST_ROWS:,} rows, {FAST_RUNS} turn: does it work at all")
    return made


def _bench(asked: argparse.Namespace) -> Bench:
    rows, runs = (FAST_ROWS, FAST_RUNS) if asked.fast else (ROWS, RUNS)
    return Bench(
        folder=asked.workdir.resolve(),
        rows=rows if asked.rows is None else asked.rows,
        runs=runs if asked.runs is None else asked.runs,
        seed=asked.seed,
    )


def _count(word: str) -> int:
    count = int(word.replace("_", "").replace(",", ""))
    if count < 1:
        raise argparse.ArgumentTypeError(f"{word} is below 1")
    return count


def _names(words: str) -> tuple[str, ...]:
    names = tuple(word.strip() for word in words.split(","))
    for name in names:
        if name not in JOBS:
            raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(JOBS)}")
    return names


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
