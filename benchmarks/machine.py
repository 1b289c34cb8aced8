"""What the figures were measured on: they mean nothing without it."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import msgspec

from benchmarks.commands import ROOT, gnu_split

PACKAGES = ("streambatch-engine", "aiohttp", "msgspec", "orjson", "polars", "duckdb")


class Machine(msgspec.Struct, frozen=True):
    """`memory_mib` and `commit` are None where the system or git doesn't tell; `load` is the average of one minute."""

    cores: int
    processor: str
    memory_mib: int | None
    system: str
    python: str
    load: float
    commit: str | None
    versions: dict[str, str]


def describe() -> Machine:
    """This machine, now."""
    return Machine(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        processor=_field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        memory_mib=_memory_mib(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        load=round(os.getloadavg()[0], 2),
        commit=_commit(),
        versions=dict(_versions()),
    )


def _memory_mib() -> int | None:
    told = _field("/proc/meminfo", "MemTotal")
    return None if told is None else int(told.split()[0]) // 1024


def _field(path: str, name: str) -> str | None:
    """The first such field of a file in /proc; None without one."""
    with contextlib.suppress(OSError):  # another system
        for line in Path(path).read_text(encoding="utf-8", errors="replace").split("\n"):
            if line.startswith(name) and ":" in line:
                return line.split(":", 1)[1].strip()
    return None


def _commit() -> str | None:
    return _first_line(["git", "--no-optional-locks", "-C", str(ROOT), "describe", "--always", "--dirty"])


def _versions() -> list[tuple[str, str]]:
    known = []
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # an optional peer
            known.append((package, importlib.metadata.version(package)))
    split = gnu_split()
    told = None if split is None else _first_line([split, "--version"])
    return known if told is None else [*known, ("split", told.split()[-1])]


def _first_line(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.split("\n", 1)[0].strip() if done.returncode == 0 else None
