"""What the figures look like: a table for people and a document for programs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.contenders import Bench
from benchmarks.contest import Mark, Ratio, Record, Section, Turn
from benchmarks.machine import Machine

SCHEMA_VERSION = 1
HEAD = ("", "wall s", "min..max", "CPU s", "peak MiB", "server CPU s", "us CPU/row", "others' CPU", "")


# -- for people


def heading(machine: Machine, bench: Bench) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    memory = "" if machine.memory_mib is None else f", {machine.memory_mib / 1024:.0f} GiB"
    return (
        f"{machine.cores} cores ({machine.processor}){memory}, {machine.system}, {machine.python}, load {machine.load:.2f}\n"
        f"{versions}{'' if machine.commit is None else f'; commit {machine.commit}'}\n"
        f"{bench.rows:,} rows, seed {bench.seed}; medians; peak memory: the highest, summed over all processes; others: of one core"
    )


def shown(section: Section) -> str:
    """A section as text: contenders, ratios, marks, notes."""
    title = f"{section.name}: {section.title} ({section.rows:,} rows, {section.bytes / 1e6:,.0f} MB)"
    parts = [title, columns([HEAD, *map(_record_row, section.records)])]
    if section.ratios:
        parts.append(columns([("wall, pair by pair", "median", "min..max"), *map(_ratio_row, section.ratios)]))
    if section.marks:
        parts.append(columns([("mark", "at most", "measured", ""), *map(_mark_row, section.marks)]))
    if section.notes:
        parts.append("\n".join(f"  {note}" for note in section.notes))
    return "\n\n".join(parts)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Aligned text: names and remarks to the left, figures to the right; a column that says nothing is left out."""
    kept = [i for i, title in enumerate(rows[0]) if i == 0 or any(row[i] not in ("", "-") for row in rows[1:])]
    widths = [max(len(row[i]) for row in rows) for i in kept]
    aligned = [str.ljust if i == 0 or not rows[0][i] else str.rjust for i in kept]
    lines = ("  ".join(a(row[i], w) for i, w, a in zip(kept, widths, aligned, strict=True)) for row in rows)
    return "\n".join(f"  {line}".rstrip() for line in lines)


def _record_row(record: Record) -> tuple[str, ...]:
    said = record.missing if record.missing is not None else "; ".join(record.problems)
    note = f"skipped: {said}" if record.missing is not None else f"WRONG: {said}" if said else ""
    walls = [turn.figures.wall_s for turn in record.right]
    server = record.median(lambda turn: None if turn.server is None else turn.server.cpu_s)
    peak = "n/a" if walls and record.peak_mib() is None else _figure(record.peak_mib(), ".0f")
    return (
        record.name,
        _figure(record.median(lambda turn: turn.figures.wall_s), ".2f"),
        f"{min(walls):.2f}..{max(walls):.2f}" if walls else "-",
        _figure(record.median(_cpu), ".2f"),
        peak,
        _figure(server, ".2f"),
        _figure(record.cpu_us(), ".2f"),
        _figure(record.median(_others), ".0%"),
        note,
    )


def _cpu(turn: Turn) -> float:
    return turn.figures.cpu_s


def _others(turn: Turn) -> float | None:
    """Cores' worth of other work meanwhile; a server apart is not other work."""
    others = turn.figures.others_cpu_s
    ours = 0.0 if turn.server is None else turn.server.cpu_s
    return None if others is None else max(0.0, others - ours) / turn.figures.wall_s


def _ratio_row(ratio: Ratio) -> tuple[str, ...]:
    return f"{ratio.ours} / {ratio.peer}", f"{ratio.median:.2f}", f"{min(ratio.pairs):.2f}..{max(ratio.pairs):.2f}"


def _mark_row(mark: Mark) -> tuple[str, ...]:
    return mark.text, f"{mark.at_most:g}", _figure(mark.value, ".2f"), mark.verdict


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


# -- for programs


def document(machine: Machine, bench: Bench, sections: Sequence[Section]) -> dict[str, Any]:
    """Everything that was measured, turn by turn. Times in seconds, memory in MiB."""
    return {
        "schema_version": SCHEMA_VERSION,
        "machine": msgspec.to_builtins(machine),
        "rows": bench.rows,
        "runs": bench.runs,
        "seed": bench.seed,
        "sections": [_section(section) for section in sections],
    }


def _section(section: Section) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(section)
    for mark, verdict in zip(told["marks"], section.marks, strict=True):
        mark["verdict"] = verdict.verdict
    for record, of in zip(told["records"], section.records, strict=True):
        record["median_wall_s"] = of.median(lambda turn: turn.figures.wall_s)
        record["median_cpu_s"] = of.median(_cpu)
        record["peak_mib"] = of.peak_mib()
    return told


def write(path: Path, told: dict[str, Any]) -> None:
    """The document under its name at once, or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n")
    part.rename(path)
