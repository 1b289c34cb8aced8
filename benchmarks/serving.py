"""The local server as a process of its own, measured too, and asked afterwards what it executed."""

import contextlib
import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.commands import KEY, ROOT, environment, streambatch
from benchmarks.measuring import KNOWS_MEMORY, MIB, Figures, Started, resident, used_s

READY_S = 30.0
READY_POLL_S = 0.02
LEDGER_S = 300.0  # it reads all that was ever executed


class Server:
    """A server that runs; `figures` is there once it has ended."""

    def __init__(self, folder: Path, seed: int, speed: float) -> None:
        folder.mkdir(parents=True)
        ready = folder / "ready"
        words = ("serve", "--port", "0", "--ready-file", ready, "--data-dir", folder / "data")
        self.figures: Figures | None = None
        self._process = Started(
            streambatch(*words, "--seed", str(seed), "--speed", f"{speed:g}"), environment(), cwd=ROOT
        )
        self.url = self._url(ready)

    def ledger(self) -> dict[str, int]:
        """What it has executed, by its own account."""
        asked = urllib.request.Request(
            f"{self.url.removesuffix('/v1')}/control/ledger", headers={"Authorization": f"Bearer {KEY}"}
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=LEDGER_S) as answer:
            told: dict[str, int] = json.load(answer)
        return told

    def cpu_s(self) -> float | None:
        """CPU that it has used so far."""
        return used_s(self._process.pid)

    def mib(self) -> float | None:
        """Its resident memory now."""
        return resident(self._process.pid) / MIB if KNOWS_MEMORY else None

    def stop(self) -> Figures:
        self.figures = self._process.stop()
        return self.figures

    def _url(self, ready: Path) -> str:
        deadline = time.monotonic() + READY_S
        while not ready.exists():
            if time.monotonic() > deadline or not self._process.alive():
                said = self._process.stop().said
                raise RuntimeError(f"the local server does not start: {said[-300:]}")
            time.sleep(READY_POLL_S)
        return ready.read_text(encoding="utf-8").strip()


@contextlib.contextmanager
def serving(folder: Path, seed: int, speed: float) -> Iterator[Server]:
    """A server with its state in a new folder. Raises RuntimeError where it does not start."""
    server = Server(folder, seed, speed)
    try:
        yield server
    finally:
        if server.figures is None:
            server.stop()
