"""`python -m tests.chaos --seeds N`: live N seeds and print what became of them; `--seed K` replays one."""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from tests.chaos import life, plan, simulate, table


def main(args: Sequence[str] | None = None) -> int:
    """The exit code: 0 when every seed held."""
    asked = _parse(args)
    seeds = [asked.seed] if asked.seed is not None else range(asked.first, asked.first + asked.seeds)
    folder = Path(asked.keep) if asked.keep else Path(tempfile.mkdtemp(prefix="chaos-"))
    began = time.monotonic()
    if asked.simulate is not None:
        return _simulate(
            [asked.seed] if asked.seed is not None else range(asked.first, asked.first + asked.simulate), asked.jobs
        )
    lives, failures = run(seeds, folder, asked.jobs)
    if lives:
        print(table.table(lives, table.kinds()))
        peak = max(one.peak_mib for one in lives)
        told = f"{len(lives)} seeds held, {len(failures)} failed, in {time.monotonic() - began:.0f} s"
        print(f"\n{told}; peak memory of an engine {peak:.0f} MiB.")
    if not failures and not asked.keep:
        shutil.rmtree(folder)
    return 1 if failures else 0


def _simulate(seeds: Sequence[int], jobs: int) -> int:
    began = time.monotonic()
    with ProcessPoolExecutor(jobs) as pool:
        found = list(pool.map(simulate.live, seeds, chunksize=8))
    lives = [one for one in found if isinstance(one, life.Life)]
    failures = [one for one in found if isinstance(one, str)]
    print(table.table(lives, simulate.kinds(lives)))
    for seed, one in zip(seeds, found, strict=True):
        if isinstance(one, str):
            print(f"{one}\n  again: python -m tests.chaos --simulate 1 --seed {seed}", file=sys.stderr)
    print(f"\n{len(lives)} schedules held, {len(failures)} failed, in {time.monotonic() - began:.0f} s.")
    return 1 if failures else 0


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--simulate", type=int, metavar="N", help="N schedules on twins under a virtual clock instead")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--keep", help="a folder for all files; those of a seed that failed stay there")
    return parser.parse_args(args)


def run(seeds: Sequence[int], folder: Path, jobs: int) -> tuple[list[life.Life], list[str]]:
    """The lives of the seeds that held, and why the others failed, each told at once."""
    lives, failures = [], []
    with ThreadPoolExecutor(jobs) as pool:
        for seed, found in zip(seeds, pool.map(lambda seed: life.live(seed, folder), seeds), strict=True):
            if isinstance(found, life.Life):
                lives.append(found)
                print(
                    f"seed {seed}: held after {found.visits} visits, {sum(found.fired.values())} faults, {found.took_s:.0f} s",
                    file=sys.stderr,
                )
            else:
                failures.append(found)
                print(
                    f"{found}\n  {plan.plan(seed).dataset} in {folder}/seed-{seed}\n  again: python -m tests.chaos --seed {seed}",
                    file=sys.stderr,
                )
            sys.stderr.flush()
    return lives, failures


if __name__ == "__main__":
    sys.exit(main())
