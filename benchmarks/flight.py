"""`python -m benchmarks flight`: many batches of one engine in flight at once, among many more of other people.

Says what the engine asks of the service and of this machine while all of them fly, and whether it keeps to its own rule:
per tick one list page per 100 batches in flight, and the paced look-ups by id. Exits 1 where it does not, or is wrong.
"""

import argparse
import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import checking, machine, report
from benchmarks.commands import KEY, ROOT, environment
from benchmarks.flying import Call, Flight, Watched
from benchmarks.measuring import Figures, measure
from benchmarks.serving import serving
from streambatch.testing import LocalServer

BATCHES, FOREIGN, ROWS, HOLD_S, SEED = 1_000, 5_000, 20, 90.0, 7
RAMP_S = 0.12  # at most, on a slow machine: to upload and create one batch
SPEED = 100.0
MOST_LAG_MS = 50.0
ROUTES = ("upload", "create", "list", "retrieve", "file", "content")


class Result(msgspec.Struct, frozen=True):
    """One flight's figures. Calls a minute while all batches flew, and over the whole run; `problems` in words."""

    batches: int
    foreign: int
    rows: int
    steady_s: float
    ticks: int
    steady_per_minute: dict[str, float]
    total: dict[str, int]
    most_pages_a_tick: int
    most_lookups_a_tick: int
    lag_p50_ms: float
    lag_p99_ms: float
    lag_most_ms: float
    steady_lag_p50_ms: float
    steady_lag_p99_ms: float
    steady_cpu_share: float  # of one core
    cpu_s: float
    wall_s: float
    peak_mib: float  # of the engine's own process
    tree_peak_mib: float | None  # with its workers
    server_cpu_s: float
    problems: tuple[str, ...]


def main(words: Sequence[str]) -> int:
    asked = parser().parse_args(words)
    batches, foreign, hold_s = (100, 500, 15.0) if asked.fast else (asked.batches, asked.foreign, asked.hold)
    folder = asked.workdir.resolve() / "flight"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        result = flight(folder, batches, foreign, asked.rows, hold_s, asked.poll_interval)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(shown(result), flush=True)
    if asked.json is not None:
        report.write(asked.json, {"machine": machine.describe(), "flight": result})
    for problem in result.problems:
        print(f"WRONG: {problem}", file=sys.stderr, flush=True)
    return 1 if result.problems else 0


def parser() -> argparse.ArgumentParser:
    """The options, as docs/benchmarks.md lists them."""
    made = argparse.ArgumentParser("python -m benchmarks flight", description="Many batches in flight at once.")
    made.add_argument("--batches", type=int, default=BATCHES, help=f"of ours, all in flight at once ({BATCHES:,})")
    made.add_argument("--foreign", type=int, default=FOREIGN, help=f"of other people, before ours ({FOREIGN:,})")
    made.add_argument("--rows", type=int, default=ROWS, help=f"of each batch ({ROWS})")
    made.add_argument("--hold", type=float, default=HOLD_S, help=f"seconds that all of them fly ({HOLD_S:g})")
    made.add_argument("--poll-interval", type=float, default=None, help="seconds between looks (adaptive, 5 to 60)")
    made.add_argument("--json", type=Path, default=None, metavar="FILE", help="the figures as JSON")
    made.add_argument("--workdir", type=Path, default=Path(".bench"), help="for a run's files; removed (.bench)")
    made.add_argument("--fast", action="store_true", help="100 batches among 500, for 15 s: does it work at all")
    return made


# -- flying


def flight(folder: Path, batches: int, foreign: int, rows: int, hold_s: float, poll_s: float | None) -> Result:
    """One run of our engine against a server, each in a process of its own."""
    source = folder / "in.jsonl"
    source.write_bytes(b"".join(request_lines(batches * rows)))
    with serving(folder / "server", SEED, SPEED) as server:
        held_s = hold_s + batches * RAMP_S
        LocalServer(server.url, KEY).set_faults(
            {"foreign": foreign, "batches": [{"do": "stuck", "state": "in_progress", "seconds": held_s}]}
        )
        asked = Flight(str(source), str(folder), server.url, KEY, batches, rows, poll_s)
        figures, watched = _fly(folder, asked)
        ledger = server.ledger()
        theirs = server.stop()
    problems = _wrong(figures, ledger, asked, source)
    if watched is None:
        raise RuntimeError(f"the engine failed: {figures.said[-2000:]}")
    return told(asked, foreign, watched, figures, theirs, problems)


def _fly(folder: Path, asked: Flight) -> tuple[Figures, Watched | None]:
    order, seen = folder / "flight.json", folder / "watched.json"
    order.write_bytes(msgspec.json.encode(asked))
    command = (sys.executable, "-m", "benchmarks.flying", str(order), str(seen))
    figures = measure(command, environment(asked.url), ROOT)
    watched = msgspec.json.decode(seen.read_bytes(), type=Watched) if seen.exists() else None
    return figures, watched


def request_lines(rows: int) -> Iterator[bytes]:
    """The shortest requests there are."""
    body = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}]}'
    for row in range(rows):
        yield b'{"custom_id":"r%d","method":"POST","url":"/v1/chat/completions","body":%b}\n' % (row, body)


def _wrong(figures: Figures, ledger: dict[str, int], asked: Flight, source: Path) -> list[str]:
    problems = [] if figures.exit_code == 0 else [f"exit code {figures.exit_code}"]
    rows = asked.batches * asked.rows
    if (ledger["rows_executed"], ledger["rows_executed_again"]) != (rows, 0):
        problems.append(f"the server executed {ledger['rows_executed']} rows for {rows}")
    if ledger["batches_at_once"] < asked.batches:
        problems.append(f"only {ledger['batches_at_once']} batches were in flight at once")
    return problems + checking.in_order(source, Path(asked.folder) / "answers.jsonl", checking.ID)


# -- what it comes to


def told(
    asked: Flight, foreign: int, watched: Watched, figures: Figures, theirs: Figures, problems: Sequence[str]
) -> Result:
    """The figures of what was seen."""
    first, last = watched.all_from_s, watched.all_until_s
    steady_s = max(0.0, last - first) if math.isfinite(last - first) else 0.0
    steady = [call for call in watched.calls if first <= call.at_s < last]
    minutes = steady_s / 60
    counts = Counter(call.route for call in steady)
    looks = list(ticks(watched.calls))
    lags = [lag for _, lag in watched.lags]
    steady_lags = [lag for at, lag in watched.lags if first <= at < last]
    return Result(
        batches=asked.batches,
        foreign=foreign,
        rows=asked.rows,
        steady_s=steady_s,
        ticks=sum(call.first for call in steady),
        steady_per_minute={route: counts[route] / minutes for route in ROUTES} if minutes else {},
        total=dict(Counter(call.route for call in watched.calls)),
        most_pages_a_tick=max((look.pages for look in looks), default=0),
        most_lookups_a_tick=max((look.lookups - look.ended for look in looks), default=0),
        lag_p50_ms=_part(lags, 0.5),
        lag_p99_ms=_part(lags, 0.99),
        lag_most_ms=_part(lags, 1.0),
        steady_lag_p50_ms=_part(steady_lags, 0.5),
        steady_lag_p99_ms=_part(steady_lags, 0.99),
        steady_cpu_share=watched.cpu_all_s / steady_s if steady_s else 0.0,
        cpu_s=watched.cpu_s,
        wall_s=watched.wall_s,
        peak_mib=watched.peak_mib,
        tree_peak_mib=figures.peak_mib,
        server_cpu_s=theirs.cpu_s,
        problems=(*problems, *(look.problem for look in looks if look.problem)),
    )


class Look(msgspec.Struct, frozen=True):
    """One tick of the poller: what it asked for, and what it may ask for."""

    at_s: float
    in_flight: int
    pages: int
    lookups: int
    ended: int

    @property
    def problem(self) -> str:
        """Where it went beyond one page per 100 batches and the paced look-ups (and one for each end that a page showed)."""
        pages, lookups = -(-self.in_flight // 100), max(2, self.in_flight // 20) + self.ended
        if self.pages <= pages and self.lookups <= lookups:
            return ""
        return (
            f"at {self.at_s:.1f} s, with {self.in_flight} in flight, a tick read {self.pages} list pages and looked up"
            f" {self.lookups} batches; {pages} and {lookups} are right"
        )


def ticks(calls: Sequence[Call]) -> Iterator[Look]:
    """Calls grouped by the first pages that were read."""
    starts = [place for place, call in enumerate(calls) if call.first]
    for start, end in zip(starts, [*starts[1:], len(calls)], strict=True):
        group = calls[start:end]
        routes = Counter(call.route for call in group)
        ended = sum(call.ended for call in group)
        yield Look(group[0].at_s, group[0].in_flight, routes["list"], routes["retrieve"], ended)


def _part(values: Sequence[float], share: float) -> float:
    """The value that this share of them does not exceed, in milliseconds."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000 if ordered else 0.0


def shown(result: Result) -> str:
    """For people."""
    steady = result.steady_per_minute
    calls = [("calls", "a minute, all in flight", "in the whole run")]
    calls += [(route, f"{steady.get(route, 0.0):.1f}", str(result.total.get(route, 0))) for route in ROUTES]
    calls.append(("together", f"{sum(steady.values()):.1f}", str(sum(result.total.values()))))
    figures: list[tuple[str, Any, str]] = [("", "measured", "at most")]
    pages, lookups = -(-result.batches // 100), max(2, result.batches // 20)
    tree = "n/a" if result.tree_peak_mib is None else f"{result.tree_peak_mib:.0f}"
    figures += [
        ("list pages a tick", str(result.most_pages_a_tick), str(pages)),
        ("paced look-ups by id a tick", str(result.most_lookups_a_tick), str(lookups)),
        ("event loop late, p50 ms, all in flight", f"{result.steady_lag_p50_ms:.2f}", "-"),
        ("event loop late, p99 ms, all in flight", f"{result.steady_lag_p99_ms:.2f}", f"{MOST_LAG_MS:g}"),
        ("event loop late, p50 ms, whole run", f"{result.lag_p50_ms:.2f}", "-"),
        ("event loop late, p99 ms, whole run", f"{result.lag_p99_ms:.2f}", f"{MOST_LAG_MS:g}"),
        ("event loop late, most ms, whole run", f"{result.lag_most_ms:.1f}", "-"),
        ("engine CPU, of a core, all in flight", f"{result.steady_cpu_share:.1%}", "-"),
        ("engine CPU s, whole run", f"{result.cpu_s:.1f}", "-"),
        ("engine peak MiB, without workers", f"{result.peak_mib:.0f}", "-"),
        ("engine peak MiB, with workers", tree, "-"),
        ("server CPU s", f"{result.server_cpu_s:.1f}", "-"),
    ]
    title = (
        f"flight: {result.batches:,} batches of {result.rows} rows at once among {result.foreign:,} of other people;"
        f" all in flight for {result.steady_s:.0f} s ({result.ticks} ticks) of {result.wall_s:.0f} s"
    )
    return "\n\n".join([title, report.columns(calls), report.columns(figures)])
