"""One seed, lived: visits of the command, each disturbed as planned, until the run is finished; then everything is checked."""

import fcntl
import gzip
import json
import shutil
import sqlite3
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec

from streambatch.edge.failpoints import EXIT_STATUS
from tests.chaos import plan as p
from tests.chaos import verify
from tests.chaos.processes import Ended, Engine, Server
from tests.e2e import rig

VISITS = 24
KILLED = (-9, 137)
STOPPED = (3, EXIT_STATUS, *KILLED)  # the disk or the service stopped it: the same command resumes
FINISHED = (0, 6)


class Life(msgspec.Struct, frozen=True):
    """What came of a seed."""

    seed: int
    fired: dict[str, int]
    rows: int
    visits: int
    bought_again: int
    rows_lost: int
    possibly_billed: int
    orphans: int
    peak_mib: float
    took_s: float


def write_input(path: Path, dataset: p.Dataset, rows: int = p.ROWS) -> list[bytes]:
    """The rows of a dataset, also returned."""
    if dataset.plain:
        made = [
            json.dumps({"id": f"row-{k}", "question": f"why {k}? \u2028é"}, ensure_ascii=k % 2 == 0).encode() + b"\n"
            for k in range(rows)
        ]
    else:
        models = ("gpt-4o-mini", "gpt-4o", "o4-mini")[: dataset.models]
        made = [rig.request_line(k, model=models[k % len(models)]) for k in range(rows)]
    data = b"".join(made)
    path.write_bytes(gzip.compress(data, 1) if dataset.gzip else data)
    return made


def command(source: Path, output: Path, url: str, dataset: p.Dataset, run_id: str, workers: int) -> list[str]:
    plain = [sys.executable, "-m", "streambatch", "run", str(source), "-o", str(output), "--base-url", url, "--quiet"]
    pace = ["--max-requests", str(p.MAX_REQUESTS), "--max-batches", "4", "--poll-interval", "0.05"]
    patience = [
        "--adopt-grace",
        str(p.GRACE_S),
        "--max-attempts",
        "9",
        "--max-errors",
        "100%",
        "--workers",
        str(workers),
    ]
    rows = ["--model", "gpt-4o-mini", "--prompt", "Answer: {{ question }}", "--id", "id"] if dataset.plain else []
    told = ["--run-id", run_id, "--summary-file", f"{output}.summary"]
    return [*plain, *pace, *patience, *rows, *told]


class Seed:
    """The places and processes of one seed."""

    def __init__(self, plan: p.Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self.source, self.output = folder / "in.jsonl", folder / "out.jsonl"
        self.run_dir = Path(f"{self.output}.run")
        self.fired: Counter[str] = Counter()
        self.visits: list[Ended] = []
        self.moments: list[tuple[str, int]] = []  # a disturbance, and how many events of shards had been before it

    def live(self) -> Life:
        """Until it is finished. Raises AssertionError."""
        began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = write_input(self.source, self.plan.dataset)
        wanted, calm_mib = undisturbed(self.plan.dataset, self.folder.parent)
        server = Server(self.folder / "server", self.plan.script)
        try:
            self._until_finished(server)
            hits = server.hits()
            self._count(hits)
            seen = verify.Seen(
                self.plan, self.source, self.output, rows, wanted, server.batches(), server.ledger(), server.deaths
            )
        finally:
            server.stop()
        found = verify.check(seen)
        peak = max(visit.peak_mib for visit in self.visits)
        assert peak < calm_mib * 1.4 + 32, f"a visit took {peak:.0f} MiB, undisturbed {calm_mib:.0f}"
        assert self.moments, "no disturbance came in the middle of the run"
        took = time.monotonic() - began
        return Life(self.plan.seed, dict(self.fired), len(rows), len(self.visits), *found, peak, took)

    def _until_finished(self, server: Server) -> None:
        planned = list(self.plan.disturbances)
        for _ in range(VISITS):
            disturbance = planned.pop(0) if planned else None
            ended = self._visit(server, disturbance)
            self.visits.append(ended)
            if ended.code in FINISHED:
                return
            assert ended.code in STOPPED, _odd(ended, disturbance)
            if disturbance is not None:
                if self._came(disturbance, ended):
                    self._note(disturbance.kind)
                if disturbance.delete and self.run_dir.exists() and not self.output.exists():
                    self._note(p.LOST)
                    shutil.rmtree(self.run_dir)
        raise AssertionError(f"not finished after {VISITS} visits: {self.visits[-1].said[-500:]}")

    def _visit(self, server: Server, disturbance: p.Disturbance | None) -> Ended:
        args = command(
            self.source, self.output, server.url, self.plan.dataset, f"chaos-{self.plan.seed}", self.plan.workers
        )
        variables = {}
        if disturbance is not None and disturbance.kind == p.GAP:
            variables = {"STREAMBATCH_FAILPOINT": disturbance.gap}
        if disturbance is not None and disturbance.kind in p.TRACED:
            args = [*_traced(disturbance, self.folder / "strace.log"), *args]
        engine = Engine(args, self.folder / f"visit{len(self.visits)}.log", **variables)
        try:
            return self._disturbed(engine, server, disturbance)
        finally:
            engine.end()

    def _disturbed(self, engine: Engine, server: Server, disturbance: p.Disturbance | None) -> Ended:
        if disturbance is None or disturbance.kind not in (p.KILL, p.SERVER):
            ended = engine.wait()
        elif (early := self._until(engine, disturbance)) is not None:
            return early
        elif disturbance.kind == p.KILL:
            ended = engine.kill()
        else:
            self._note(p.SERVER)
            server.kill()
            early = engine.wait(0.2)
            server.start()
            ended = early if early is not None else engine.wait()
        assert ended is not None
        return ended

    def _came(self, disturbance: p.Disturbance, ended: Ended) -> bool:
        """Whether it was this disturbance that ended the visit; the death of a server is noted when it comes."""
        if disturbance.kind == p.GAP:
            return ended.code == EXIT_STATUS
        if disturbance.kind == p.KILL:
            return ended.killed and ended.code in KILLED
        if disturbance.kind == p.KILL_FSYNC:
            return ended.code in KILLED
        return disturbance.kind in p.TRACED and "(INJECTED)" in (self.folder / "strace.log").read_text(errors="replace")

    def _until(self, engine: Engine, disturbance: p.Disturbance) -> Ended | None:
        """Wait for the moment of a disturbance, so many events of shards after the visit began; its end, if that comes before."""
        before = journal_state(self.run_dir)[0]
        while journal_state(self.run_dir)[0] < before + disturbance.after_events:
            if (ended := engine.wait(0.03)) is not None:
                return ended
        return engine.wait(disturbance.after_s)

    def _note(self, kind: str) -> None:
        """Remember that something happened to a run in its middle: it has shards, and is not finished."""
        events, published = journal_state(self.run_dir)
        if events and not published:
            self.moments.append((kind, events))

    def _count(self, hits: Counter[tuple[str, int]]) -> None:
        """What fired: events of shards followed each, in the journal that there is at the end."""
        last, published = journal_state(self.run_dir)
        assert published, "finished, and the journal does not say so"
        lost_at = max((k for k, (kind, _) in enumerate(self.moments) if kind == p.LOST), default=-1)
        self.moments = [(kind, n) for k, (kind, n) in enumerate(self.moments) if k <= lost_at or n < last]
        self.fired.update(kind for kind, _ in self.moments)
        places: Counter[str] = Counter()
        for rule in self.plan.rules:
            self.fired[rule.kind] += hits[rule.table, places[rule.table]]
            places[rule.table] += 1


def _odd(ended: Ended, disturbance: p.Disturbance | None) -> str:
    return f"exit {ended.code} of a visit with {disturbance}: {ended.said[-600:]}"


def _traced(disturbance: p.Disturbance, log: Path) -> list[str]:
    """The command runs under strace, which makes its N-th call of a kind (in one thread) fail or be its last."""
    calls, what = {
        p.KILL_FSYNC: ("fsync,fdatasync", "signal=SIGKILL"),
        p.EIO: ("fsync,fdatasync", "error=EIO"),
        p.ENOSPC: ("pwrite64", "error=ENOSPC"),
    }[disturbance.kind]
    return [
        "strace",
        "-f",
        "-qq",
        "-o",
        str(log),
        "-e",
        f"trace={calls}",
        "-e",
        f"inject={calls}:{what}:when={disturbance.at}",
    ]


def journal_state(run_dir: Path) -> tuple[int, bool]:
    """How many events of shards the journal has, and whether the run is published; (0, False) where there is none to read."""
    path = run_dir / "journal.sqlite"
    if not path.exists():
        return 0, False
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5) as db:
            told = db.execute("SELECT count(shard), sum(kind = 'Published') FROM events").fetchone()
        db.close()
    except sqlite3.Error:  # killed while the file was being made
        return 0, False
    return int(told[0]), bool(told[1])


def undisturbed(dataset: p.Dataset, folder: Path) -> tuple[list[bytes], float]:
    """The lines that an undisturbed run makes, and its peak memory; made once for each dataset."""
    place = folder / f"calm-{dataset.name}"
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "peak").exists():
            _run_undisturbed(dataset, place)
    return (place / "out.jsonl").read_bytes().split(b"\n")[:-1], float((place / "peak").read_text())


def _run_undisturbed(dataset: p.Dataset, place: Path) -> None:
    source, output = place / "in.jsonl", place / "out.jsonl"
    write_input(source, dataset)
    server = Server(place / "server", {})
    engine: Engine | None = None
    try:
        engine = Engine(command(source, output, server.url, dataset, "calm", 1), place / "visit.log")
        ended = engine.wait()
        batches = server.batches()
    finally:
        if engine is not None:
            engine.end()
        server.stop()
    assert ended is not None
    assert ended.code == 0, ended
    assert len(batches) >= 20, "too few batches for chaos"
    (place / "peak").write_text(str(ended.peak_mib))


def live(seed: int, folder: Path) -> Life | str:
    """A seed's life, or why it failed."""
    place = folder / f"seed-{seed}"
    shutil.rmtree(place, ignore_errors=True)
    try:
        found = Seed(p.plan(seed), place).live()
    except (AssertionError, OSError, ValueError, sqlite3.Error) as error:
        return f"seed {seed}: {type(error).__name__}: {error}"
    shutil.rmtree(place)
    return found
