"""Many full batches queued on the local server at once: files in, batches made, polled to their end, results out; phase by phase.

Says what each phase took of the server's time and what a look at the queue costs meanwhile. Holds one file at a time.
"""

import contextlib
import http.client
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from benchmarks.commands import KEY
from benchmarks.contest import Turn
from benchmarks.measuring import Figures
from benchmarks.serving import Server, serving

SPEED = 1000.0
PAGE = 100
FIRST_TICK_S, TICK_S = 0.05, 1.0
BLOCK = 1 << 20
TIMEOUT_S = 300.0
MARK = b"b00000000"  # stands for the batch in the ids of the one file that all files are made from
T = TypeVar("T")
TERMINAL = ("completed", "failed", "expired", "cancelled")


class Load(msgspec.Struct, frozen=True):
    """So many batches of so many rows; `share` of each batch's rows are executed, then its window ends."""

    batches: int
    rows: int
    share: float = 1.0

    @property
    def executed(self) -> int:
        """Rows that are executed of all batches together."""
        return self.batches * int(self.share * self.rows)

    @property
    def script(self) -> dict[str, Any]:
        """What makes the server leave it at that share."""
        if self.share == 1:
            return {}
        return {"batches": [{"do": "expire", "at": self.share}, {"do": "leave_out"}]}


class Phase(msgspec.Struct, frozen=True):
    """What the server did in some stretch of time: how much of what, the bytes that went in or out, its memory at the end."""

    name: str
    count: int
    unit: str
    bytes: int
    wall_s: float
    cpu_s: float | None
    mib: float | None

    def told(self) -> str:
        parts = [f"{self.name} {self.count:,} {self.unit} in {self.wall_s:.1f} s ({self.count / self.wall_s:,.0f}/s"]
        parts.append(f", {self.bytes / self.wall_s / 1e6:,.0f} MB/s)" if self.bytes else ")")
        if self.cpu_s is not None:
            parts.append(f", the server's CPU {self.cpu_s:.1f} s: {self.cpu_s / max(1, self.count) * 1e6:,.2f} us each")
        if self.mib is not None:
            parts.append(f"; then {self.mib:.0f} MiB")
        return "".join(parts)


def request_lines(rows: int) -> bytes:
    """Short requests, whose ids begin with `MARK`."""
    line = (
        '{{"custom_id":"{mark}-{row:05d}","method":"POST","url":"/v1/chat/completions","body":{{"model":"gpt-4o-mini",'
        '"messages":[{{"role":"user","content":"question {row:05d}"}}]}}}}\n'
    )
    return "".join([line.format(mark=MARK.decode(), row=row) for row in range(rows)]).encode()


def queue(folder: Path, seed: int, load: Load, notes: list[str]) -> Turn:
    """All of it against a server of its own; its figures are the turn's, what a look costs is added to `notes`."""
    name = f"{load.batches:,} batches of {load.rows:,} rows"
    try:
        with serving(folder, seed, SPEED) as server:
            with contextlib.closing(Driver(server, load)) as driver:
                wrong = driver.drive()
            figures = server.stop()
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        return Turn(Figures(0.0, 0.0, None, 1), (f"the local server: {error!r}",))
    notes.extend(f"{name}: {told}" for told in driver.told())
    return Turn(figures, tuple(wrong))


class Driver:
    """One client of the server, which does one thing after the other."""

    def __init__(self, server: Server, load: Load) -> None:
        self._server, self._load = server, load
        parts = urlsplit(server.url)
        self._wire = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        self._phases: list[Phase] = []
        self._pages_s: list[float] = []
        self._looks_s: list[float] = []
        self._ledger_s = 0.0
        self._ledger_mib: float | None = None

    def close(self) -> None:
        self._wire.close()

    def drive(self) -> list[str]:
        """Everything from the first upload to the ledger; what was wrong."""
        self._call("POST", "/control/faults", self._load.script)
        rows = self._load.batches * self._load.rows
        files = self._phase("uploaded", rows, "rows", self._upload)
        ids = self._phase("created", self._load.batches, "batches", lambda: (self._create(files), 0))
        batches = self._phase("validated and executed", rows, "rows", lambda: (self._wait(set(ids)), 0))
        lines = self._phase("downloaded", self._load.executed, "result lines", lambda: self._download(batches))
        return self._wrong(batches, lines)

    def told(self) -> list[str]:
        """The phases and what a look cost, in words."""
        looks = [("a list page of 100", self._pages_s), ("a look at one batch", self._looks_s)]
        costs = [
            f"{what} while they were worked on: median {statistics.median(times) * 1e3:.1f} ms, most {max(times) * 1e3:.0f} ms "
            f"({len(times)} calls)"
            for what, times in looks
            if times
        ]
        return [*(phase.told() for phase in self._phases), *costs, self._told_of_ledger()]

    def _told_of_ledger(self) -> str:
        mib = self._ledger_mib
        return f"the ledger took {self._ledger_s:.2f} s{'' if mib is None else f'; then {mib:.0f} MiB'}"

    def _phase(self, name: str, count: int, unit: str, work: Callable[[], tuple[T, int]]) -> T:
        began, before = time.perf_counter(), self._server.cpu_s()
        result, size = work()
        wall, after = time.perf_counter() - began, self._server.cpu_s()
        used = None if before is None or after is None else after - before
        self._phases.append(Phase(name, count, unit, size, wall, used, self._server.mib()))
        return result

    # -- the phases

    def _upload(self) -> tuple[list[str], int]:
        lines = request_lines(self._load.rows)
        files = [self._upload_one(lines.replace(MARK, b"b%08d" % n)) for n in range(self._load.batches)]
        return files, len(lines) * self._load.batches

    def _upload_one(self, data: bytes) -> str:
        head = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n'
        head += b'Content-Disposition: form-data; name="file"; filename="load.jsonl"\r\n\r\n'
        tail = b"\r\n--b--\r\n"
        headers = {
            "Content-Type": "multipart/form-data; boundary=b",
            "Content-Length": str(len(head) + len(data) + len(tail)),
        }
        body = (head, *(data[at : at + BLOCK] for at in range(0, len(data), BLOCK)), tail)
        return str(json.loads(self._read("POST", "/v1/files", iter(body), headers))["id"])

    def _create(self, files: list[str]) -> list[str]:
        asked = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
        return [
            self._call("POST", "/v1/batches", asked | {"input_file_id": each, "metadata": {"streambatch": "load/1/1"}})[
                "id"
            ]
            for each in files
        ]

    def _wait(self, ids: set[str]) -> list[Any]:
        """Poll by list pages, and one batch by its id, until all are at their end; the batches."""
        tick_s = FIRST_TICK_S
        while True:
            seen = [batch for batch in self._list() if batch["id"] in ids]
            if all(batch["status"] in TERMINAL for batch in seen):
                return seen
            began = time.perf_counter()
            self._call("GET", f"/v1/batches/{seen[0]['id']}")
            self._looks_s.append(time.perf_counter() - began)
            time.sleep(tick_s)
            tick_s = min(TICK_S, tick_s * 1.5)

    def _list(self) -> Iterator[Any]:
        after, more = "", True
        while more:
            began = time.perf_counter()
            page = self._call("GET", f"/v1/batches?limit={PAGE}{after}")
            self._pages_s.append(time.perf_counter() - began)
            yield from page["data"]
            after, more = f"&after={page['last_id']}", page["has_more"]

    def _download(self, batches: list[Any]) -> tuple[dict[str, int], int]:
        """The number of result lines of each batch."""
        lines, size = dict.fromkeys([batch["id"] for batch in batches], 0), 0
        for batch in batches:
            self._send("GET", f"/v1/files/{batch['output_file_id']}/content")
            answer = self._wire.getresponse()
            while block := answer.read(BLOCK):
                lines[batch["id"]] += block.count(b"\n")
                size += len(block)
        return lines, size

    # -- what came of it

    def _wrong(self, batches: list[Any], lines: dict[str, int]) -> list[str]:
        each, status = self._load.executed // self._load.batches, "completed" if self._load.share == 1 else "expired"
        counts = {"total": self._load.rows, "completed": each, "failed": 0}
        wrong = [
            f"batch {batch['id']} is {batch['status']} with {batch['request_counts']} and {lines[batch['id']]} result lines"
            for batch in batches
            if (batch["status"], batch["request_counts"], lines[batch["id"]]) != (status, counts, each)
        ]
        began = time.perf_counter()
        ledger = self._server.ledger()
        self._ledger_s, self._ledger_mib = time.perf_counter() - began, self._server.mib()
        told = {name: ledger[name] for name in ("rows_executed", "rows_executed_again", "results_delivered", "batches")}
        right = {
            "rows_executed": self._load.executed,
            "rows_executed_again": 0,
            "results_delivered": self._load.executed,
        }
        if told != right | {"batches": self._load.batches}:
            wrong.append(f"the ledger says {told}")
        return wrong[:5]

    # -- calls

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        return json.loads(self._read(method, path, None if body is None else json.dumps(body).encode(), {}))

    def _read(self, method: str, path: str, body: Any, headers: dict[str, str]) -> bytes:
        self._send(method, path, body, headers)
        answer = self._wire.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path} was answered {answer.status}: {data[:300].decode(errors='replace')}")
        return data

    def _send(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> None:
        given = {} if headers is None else headers
        self._wire.request(method, path, body, {"Authorization": f"Bearer {KEY}", **given})
