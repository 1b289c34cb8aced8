"""The two processes: a server that can be killed and come back, and visits of the command. Knows nothing of plans."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parents[2]
KEY = "sk-chaos-0123456789abcdef"
START_S = 60.0
PATIENCE_S = 150.0


def environment(**more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "OPENAI_API_KEY": KEY, "PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT), **more}


def toml(script: dict[str, Any]) -> str:
    """A script as the server reads it; JSON's texts, numbers and lists are TOML's too."""
    lines = [f"seed = {script['seed']}"] if "seed" in script else []
    for table, rules in script.items():
        for rule in rules if isinstance(rules, list) else ():
            lines += [f"[[{table}]]", *(f"{name} = {_value(value)}" for name, value in rule.items())]
    return "\n".join([*lines, ""])


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name} = {_value(each)}' for name, each in value.items())}}}"
    return json.dumps(value)


class Server:
    """`streambatch serve`; what its rules hit is kept over its deaths."""

    def __init__(self, folder: Path, script: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._port = "0"
        self._before: list[dict[str, Any]] = []
        self.deaths = 0
        (folder / "faults.toml").write_text(toml(script))
        self.start()

    def start(self) -> None:
        ready = self._folder / "ready"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "streambatch", "serve", "--port", self._port, "--ready-file", str(ready)]
        command += ["--data-dir", str(self._folder / "data"), "--faults", str(self._folder / "faults.toml")]
        with open(self._folder / "serve.log", "ab") as log:
            self._process = subprocess.Popen(
                [*command, "--speed", "100", "--seed", "7"], stdout=log, stderr=log, cwd=ROOT, env=environment()
            )
        deadline = time.monotonic() + START_S
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the server did not start: {(self._folder / 'serve.log').read_text()[-500:]}")
            time.sleep(0.02)
        self.url = ready.read_text().strip()
        self._port = self.url.split(":")[2].split("/")[0]

    def kill(self) -> None:
        with contextlib.suppress(OSError):  # it may be dead already
            self._before += self._log()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(START_S)
        self.deaths += 1

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(START_S)

    def ask(self, path: str, method: str = "GET") -> bytes:
        request = urllib.request.Request(
            f"{self.url.removesuffix('/v1')}{path}", headers={"Authorization": f"Bearer {KEY}"}, method=method
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    def log(self) -> list[dict[str, Any]]:
        """Each hit of a rule, since the first start."""
        return self._before + self._log()

    def _log(self) -> list[dict[str, Any]]:
        return list(json.loads(self.ask("/control/faults?log=1"))["log"])

    def batches(self) -> list[dict[str, Any]]:
        """All of them, once nothing misbehaves any more."""
        self.ask("/control/faults", "DELETE")
        found: list[dict[str, Any]] = []
        page: dict[str, Any] = {"has_more": True}
        while page["has_more"]:
            after = f"&after={found[-1]['id']}" if found else ""
            page = json.loads(self.ask(f"/v1/batches?limit=100{after}"))
            found += page["data"]
        return found

    def ledger(self) -> list[dict[str, Any]]:
        """Row by row."""
        return [json.loads(line) for line in self.ask("/control/ledger?rows=1").split(b"\n")[:-1]]


class Ended(msgspec.Struct, frozen=True):
    """How a visit ended. A negative code is a signal."""

    code: int
    said: str
    peak_mib: float
    killed: bool


class Engine:
    """One visit of the command, in a process of its own."""

    def __init__(self, command: list[str], log: Path, **variables: str) -> None:
        self._log = log
        with open(log, "wb") as out:
            self._process = subprocess.Popen(
                command, stdout=out, stderr=out, cwd=ROOT, env=environment(**variables), start_new_session=True
            )
        self._deadline = time.monotonic() + PATIENCE_S
        self._killed = False

    def wait(self, seconds: float = PATIENCE_S) -> Ended | None:
        """Its end, or None if it still runs then; one that takes for ever is killed."""
        until = min(self._deadline, time.monotonic() + seconds)
        while True:
            pid, status, used = os.wait4(self._process.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self._process.returncode = code
                return Ended(code, self._log.read_text(errors="replace"), used.ru_maxrss / 1024, self._killed)
            if time.monotonic() >= until:
                break
            time.sleep(0.01)
        if until >= self._deadline:
            self.end()
            raise AssertionError(
                f"a visit took more than {PATIENCE_S:.0f} s: {self._log.read_text(errors='replace')[-800:]}"
            )
        return None

    def end(self) -> None:
        """Make sure that nothing of it runs any more."""
        with contextlib.suppress(ProcessLookupError):  # all of it has ended
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.returncode is None:
            self._process.wait(START_S)

    def last(self) -> Ended:
        """Its end, however long it takes; one that takes for ever is killed."""
        ended = self.wait()
        if ended is None:
            raise AssertionError("a visit did not end")
        return ended

    def kill(self) -> Ended:
        """SIGKILL, with its workers, as when the machine goes."""
        self._killed = True
        with contextlib.suppress(ProcessLookupError):  # it may have ended on its own
            os.killpg(self._process.pid, signal.SIGKILL)
        self._deadline = time.monotonic() + START_S
        return self.last()
