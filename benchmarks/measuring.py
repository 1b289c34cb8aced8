"""Starts a process, waits for it, and says what it took: wall, CPU, peak memory of its whole tree, exit code.

Memory is sampled from /proc; where there is none the peak is unknown. Knows nothing of what it measures.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

MIB = 2**20
SAMPLE_S = 0.01
TIMEOUT_S = 1800.0
STOP_S = 10.0  # between SIGTERM and SIGKILL
TAIL_BYTES = 2000
KNOWS_MEMORY = Path("/proc/self/statm").exists()


class Figures(msgspec.Struct, frozen=True):
    """One process and all that it started. `peak_mib`, and the CPU that others took meanwhile, are None without /proc.

    `said` is the end of its stderr.
    """

    wall_s: float
    cpu_s: float
    peak_mib: float | None
    exit_code: int
    said: str = ""
    others_cpu_s: float | None = None


class Started:
    """A process under measurement, in a process group of its own, with no input; its output is dropped."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed when the process is reaped
        self._busy = busy_s()
        self._began = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            env=env,
            cwd=cwd,
            process_group=0,
        )
        self._peak, self._deadline = 0, float("inf")
        self._reaped = threading.Event()
        self._watch = threading.Thread(target=self._look, name="memory", daemon=True)
        self._watch.start()

    def wait(self, timeout_s: float = TIMEOUT_S) -> Figures:
        """The figures once it has ended; past the time-out it is killed, with all of its group."""
        self._deadline = time.perf_counter() + timeout_s
        try:
            _, status, used = os.wait4(self._process.pid, 0)
        except BaseException:
            self._signal(signal.SIGKILL)
            raise
        wall = time.perf_counter() - self._began
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._reaped.set()
        self._watch.join()
        return Figures(
            wall_s=wall,
            cpu_s=used.ru_utime + used.ru_stime,
            peak_mib=self._peak / MIB if KNOWS_MEMORY else None,
            exit_code=self._process.returncode,
            said=self._last_words(),
            others_cpu_s=self._others(used.ru_utime + used.ru_stime),
        )

    def stop(self) -> Figures:
        """Ask it to end, and reap it."""
        self._signal(signal.SIGTERM)
        return self.wait(STOP_S)

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        """Whether it still runs; asks without reaping it."""
        return resident(self._process.pid) > 0 if KNOWS_MEMORY else True

    def _look(self) -> None:
        while not self._reaped.wait(SAMPLE_S):
            if KNOWS_MEMORY:
                self._peak = max(self._peak, sum(map(resident, tree(self._process.pid))))
            if time.perf_counter() > self._deadline:
                self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it ended in this moment
            os.killpg(self._process.pid, number)

    def _others(self, cpu_s: float) -> float | None:
        before, now = self._busy, busy_s()
        return None if before is None or now is None else max(0.0, now - before - cpu_s)

    def _last_words(self) -> str:
        with self._stderr as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read().decode(errors="replace").strip()


def measure(command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Figures:
    """Run a command to its end."""
    return Started(command, env, cwd).wait()


def tree(pid: int) -> Iterator[int]:
    """A process and its descendants, as /proc has them now."""
    yield pid
    with contextlib.suppress(OSError):  # it ended while we looked
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as children:
                for child in children.read().split():
                    yield from tree(int(child))


def resident(pid: int) -> int:
    """Bytes of resident memory; 0 for a process that has ended."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def used_s(pid: int) -> float | None:
    """CPU that a running process has used so far, without its children; None where that is unknown."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        user, system = stat.read().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return None


def busy_s() -> float | None:
    """Seconds that all cores together have worked since the start, other machines' share included; None without /proc."""
    with contextlib.suppress(OSError), open("/proc/stat", encoding="ascii") as stat:
        user, nice, system, _, _, irq, softirq, steal = map(int, stat.readline().split()[1:9])
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return None
