"""A server as a process of its own: started by the command, killed or ended by signals."""

import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from tests.server.kit import Wire

KEY = "sk-test-of-the-process"


class Process:
    """`streambatch serve` on a free port; the context ends it."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.ready = folder / "ready"
        self.ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "streambatch", "serve", "--port", "0", "--data-dir", str(folder / "data")]
        self.process = subprocess.Popen(
            [*command, "--ready-file", str(self.ready), *flags],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Process":
        deadline = time.monotonic() + 20
        while not self.ready.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(self.end()[1])
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def wire(self) -> Wire:
        return Wire(self.ready.read_text().strip(), KEY)

    @property
    def resident_mib(self) -> float:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096 / 2**20

    def end(self, number: int = 15) -> tuple[int, str]:
        """Its exit code and what it said on stderr."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, said = self.process.communicate(timeout=20)
        return self.process.returncode, said
