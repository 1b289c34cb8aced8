"""`python -m tests.chaos --seeds N`: live N seeds and print what became of them; `--seed K` replays one."""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.chaos import life, plan, simulate, table


def main(args: Sequence[str] | None = None) -> int:
    """The exit code: 0 when every seed held."""
    asked = _parse(args)
    seeds = [asked.seed] if asked.seed is not None else range(asked.first, asked.first + asked.seeds)
    folder = Path(asked.keep) if asked.keep else Path(tempfile.mkdtemp(prefix="chaos-"))
    began = time.monotonic()
    if asked.simulate is not None:
        return simulate.main(
            [asked.seed] if asked.seed is not None else range(asked.first, asked.first + asked.simulate), asked.jobs
        )
    lives = run(seeds, folder, asked.jobs)
    failed = sum(bool(one.failure) for one in lives)
    print(f"{table.table(lives, plan.kinds())}\n\n{table.gaps(lives)}")
    if life.WITHOUT_STRACE is not None:
        print(f"\nWithout {', '.join(plan.TRACED)}: {life.WITHOUT_STRACE}.")
    told = f"{len(lives) - failed} seeds held, {failed} failed, in {time.monotonic() - began:.0f} s"
    print(f"\n{told}; peak memory of an engine {max(one.peak_mib for one in lives):.0f} MiB.")
    if not failed and not asked.keep:
        shutil.rmtree(folder)
    return 1 if failed else 0


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--simulate", type=int, metavar="N", help="N schedules on twins under a virtual clock instead")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--keep", help="a folder for all files; those of a seed that failed stay there")
    return parser.parse_args(args)


def run(seeds: Sequence[int], folder: Path, jobs: int) -> list[life.Life]:
    """The lives of the seeds, each told at once."""
    lives = []
    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(life.live, seed, folder) for seed in seeds]):
            one = done.result()
            lives.append(one)
            told = f"{one.visits} visits, {sum(one.fired.values())} faults, {one.took_s:.0f} s"
            if one.failure:
                again = f"  files in {folder}/seed-{one.seed}\n  again: python -m tests.chaos --seed {one.seed}"
                print(f"seed {one.seed} FAILED after {told}: {one.failure}\n{again}", file=sys.stderr, flush=True)
            else:
                print(f"seed {one.seed}: held after {told}", file=sys.stderr, flush=True)
    return sorted(lives, key=lambda one: one.seed)


if __name__ == "__main__":
    sys.exit(main())
