"""The jobs that are measured, each a section with its marks: cutting, merging, whole runs, memory over rows, the server under load.

Knows who takes part and what the figures are held against; how they take part is in `contenders`.
"""

from collections.abc import Callable

from benchmarks import checking, data
from benchmarks.contenders import MAX_REQUESTS, SPEED, Bench, copy, cut, embedded, join, join_by, loaded, served, split
from benchmarks.contest import Mark, Section, compete, ratios
from benchmarks.loading import Load, request_lines

FULL_ROWS = 1_000_000  # what the marks are for
FULL_LOAD_ROWS = 50_000_000  # 1,000 full batches
LOAD_SHARE = 0.1  # executed of each batch while very many are queued
RUN_PART, RUN_TURNS = 5, 3  # whole runs take a fifth of the rows and fewer turns: they are long
PROMPT = ("--model", "gpt-4o-mini", "--prompt", "Sum it up in a sentence: {{ text }}", "--id", "name")


def shard(bench: Bench) -> Section:
    """Cutting beside `split`, which looks at no JSON, and `cp`, the floor."""
    source = data.requests(bench.made, bench.rows, bench.seed)
    data.warm(source)
    records = compete(
        [cut(bench, source, 2), cut(bench, source, 1), split(bench, source), copy(bench, source)], bench.runs
    )
    found = ratios(records)
    wall = next((r.median for r in found if r.ours == records[0].name and r.peer == "split -C 200m"), None)
    marks = [Mark("shard, 2 workers / split -C 200m, wall", wall, 2.5, bench.rows >= FULL_ROWS)]
    return Section("shard", "cut request lines into shards", source.rows, source.bytes, records, found, marks)


def merge(bench: Bench) -> Section:
    """Merging results back into the input's order, beside programs for tables."""
    source = data.requests(bench.made, bench.rows, bench.seed)
    answers = data.results(bench.made, bench.rows, bench.seed)
    data.warm(source)
    data.warm(answers)
    peers = [("polars", "regex"), ("polars", "json"), ("duckdb", "regex")]
    contenders = [
        *(join(bench, source, answers, workers) for workers in (2, 1)),
        *(join_by(bench, source, answers, package, how) for package, how in peers),
    ]
    records = compete(contenders, bench.runs)
    found = ratios(records)
    # against the better of the two programs: the higher ratio
    wall = max((r.median for r in found if r.ours == records[0].name and "polars" in r.peer), default=None)
    full = bench.rows >= FULL_ROWS
    marks = [
        Mark("merge, 2 workers / polars at its best, wall", wall, 0.8, full),
        Mark("merge, 2 workers, peak MiB of all processes", records[0].peak_mib(), 100, full),
    ]
    size = source.bytes + answers.bytes
    return Section("merge", "merge results back into input order", source.rows, size, records, found, marks)


def run(bench: Bench) -> Section:
    """The whole engine: against a server in a process of its own, so that the engine's share shows, and with it inside."""
    rows = max(1, bench.rows // RUN_PART)
    ready, plain = (make(bench.made, rows, bench.seed) for make in (data.requests, data.plain_rows))
    data.warm(ready)
    data.warm(plain)
    contenders = [
        served(bench, "requests, server apart", ready, checking.ID),
        served(bench, "rows and a prompt, server apart", plain, checking.NAME, *PROMPT),
        embedded(bench, "requests, --local", ready, "--speed", f"{SPEED:g}"),
    ]
    records = compete(contenders, min(bench.runs, RUN_TURNS))
    marks = [
        Mark(f"goal: {record.name}, engine CPU us a row", record.cpu_us(), most, bench.rows >= FULL_ROWS, goal=True)
        for record, most in zip(records, (10, 14), strict=False)
    ]
    return Section("run", "whole runs", rows, ready.bytes, records, marks=marks)


def memory(bench: Bench) -> Section:
    """`run --local` on few and on many rows with all capacities full, and once on all rows in full shards."""
    few, many = max(1, bench.rows // 20), max(1, bench.rows * 2 // 5)
    small = ("--max-requests", str(max(100, bench.rows // 200)), "--max-batches", "4")
    contenders, size = [], 0
    for rows, how, words in [(few, "small", small), (many, "small", small), (bench.rows, "full", ())]:
        source = data.requests(bench.made, rows, bench.seed)
        data.warm(source)
        contenders.append(embedded(bench, f"{rows:,} rows, {how} shards", source, *words))
        size = source.bytes
    records = compete(contenders, 1)
    at_few, at_many, at_all = (record.peak_mib() for record in records)
    growth = at_many / at_few if at_few and at_many else None
    full = bench.rows >= FULL_ROWS
    marks = [
        Mark(f"peak at {many:,} rows / at {few:,} rows", growth, 1.15, full),
        Mark(f"peak MiB of all processes at {bench.rows:,} rows", at_all, 200, full),
    ]
    return Section("memory", "memory of run --local", bench.rows, size, records, marks=marks)


def load(bench: Bench) -> Section:
    """The local server with full batches of short rows queued, a tenth as many for comparison, and some served to their end."""
    each = min(MAX_REQUESTS, max(1, bench.rows // 20))
    many = bench.rows // each
    notes: list[str] = []
    loads = [Load(max(1, many // 10), each, LOAD_SHARE), Load(many, each, LOAD_SHARE), Load(max(1, many // 50), each)]
    records = compete([loaded(bench, one, notes) for one in loads], 1)
    at_few, at_many, _ = (record.peak_mib() for record in records)
    growth = at_many / at_few if at_few and at_many else None
    full = bench.rows >= FULL_LOAD_ROWS
    marks = [
        Mark(f"the server's peak with {many:,} batches / with {loads[0].batches:,}", growth, 1.15, full),
        Mark("goal: served to the end, the server's CPU us a row", records[2].cpu_us(), 12, full, goal=True),
    ]
    size = len(request_lines(each)) * many
    return Section(
        "load", "the local server, many batches queued", many * each, size, records, marks=marks, notes=notes
    )


JOBS: dict[str, Callable[[Bench], Section]] = {
    "shard": shard,
    "merge": merge,
    "run": run,
    "memory": memory,
    "load": load,
}
