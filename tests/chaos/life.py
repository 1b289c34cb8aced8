"""One seed, lived: visits of the command, each disturbed as planned, until the run is finished; then everything is checked."""

import fcntl
import gzip
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from streambatch.edge.failpoints import EXIT_STATUS
from tests.chaos import firing, verify
from tests.chaos import plan as p
from tests.chaos.processes import Ended, Engine, Server
from tests.e2e import rig

VISITS = 24
KILLED = (-9, 137)
PAUSED = 4
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
    gaps: dict[str, int] = {}  # the failpoints where the engine died
    failure: str = ""  # why it did not hold


class Moment(msgspec.Struct, frozen=True):
    """A disturbance came, at this unix time, in the middle of a run; `gap` is the failpoint."""

    kind: str
    at: float
    gap: str = ""


def make_rows(dataset: p.Dataset, rows: int = p.ROWS) -> list[bytes]:
    if dataset.plain:
        return [
            json.dumps({"id": f"row-{k}", "question": f"why {k}? \u2028é"}, ensure_ascii=k % 2 == 0).encode() + b"\n"
            for k in range(rows)
        ]
    models = ("gpt-4o-mini", "gpt-4o", "o4-mini")[: dataset.models]
    return [rig.request_line(k, model=models[k % len(models)]) for k in range(rows)]


def write_input(path: Path, dataset: p.Dataset, rows: int = p.ROWS, added: int = 0) -> list[bytes]:
    """The rows of a dataset, without those that are added later; all are returned."""
    made = make_rows(dataset, rows)
    data = b"".join(made[: rows - added])
    path.write_bytes(gzip.compress(data, 1) if dataset.gzip else data)
    return made


def command(source: Path, output: Path, url: str, dataset: p.Dataset, run_id: str, *more: str) -> list[str]:
    plain = [sys.executable, "-m", "streambatch", "run", str(source), "-o", str(output), "--base-url", url, "--quiet"]
    pace = ["--max-requests", str(p.MAX_REQUESTS), "--max-batches", "4", "--poll-interval", "0.15"]
    patience = ["--adopt-grace", str(p.GRACE_S), "--max-attempts", "9", "--max-errors", "100%"]
    rows = ["--model", "gpt-4o-mini", "--prompt", "Answer: {{ question }}", "--id", "id"] if dataset.plain else []
    told = ["--run-id", run_id, "--summary-file", f"{output}.summary"]
    return [*plain, *pace, *patience, *rows, *told, *more]


class Seed:
    """The places and processes of one seed."""

    def __init__(self, plan: p.Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self.source, self.output = folder / "in.jsonl", folder / "out.jsonl"
        self.run_dir = Path(f"{self.output}.run")
        self.journal = firing.Journal()
        self.visits: list[Ended] = []
        self.moments: list[Moment] = []
        self.added = plan.added  # rows that are still to come

    def live(self) -> Life:
        """Until it is finished. What did not hold is told in `failure`."""
        began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = write_input(self.source, self.plan.dataset, added=self.plan.added)
        wanted, calm_mib = undisturbed(self.plan.dataset, self.folder.parent)
        server = Server(self.folder / "server", self.plan.script)
        problems: list[str] = []
        try:
            try:
                self._until_finished(server)
            except AssertionError as error:
                problems.append(str(error))
            log = server.log()
            batches = server.batches()
            named = verify_named(server, batches)
            ledger = server.ledger()
        finally:
            server.stop()
        seen = verify.Seen(self.plan, self.source, self.output, rows, wanted, batches, ledger, server.deaths, named)
        found = verify.check(seen)
        problems += () if problems else found.problems
        peak = max((visit.peak_mib for visit in self.visits), default=0.0)
        if peak >= calm_mib * 1.4 + 32:
            problems.append(f"a visit took {peak:.0f} MiB, undisturbed {calm_mib:.0f}")
        if not self.moments:
            problems.append("no disturbance came in the middle of the run")
        self.journal.look(self.run_dir)
        fired = firing.fired(self.plan, log, batches, self.journal.all()) + self._came_about()
        return Life(
            self.plan.seed, dict(fired), len(rows), len(self.visits), found.bought_again, found.rows_lost,
            found.possibly_billed, found.orphans, peak, time.monotonic() - began, dict(self._gaps()), "; ".join(problems),
        )  # fmt: skip

    def _until_finished(self, server: Server) -> None:
        planned = list(self.plan.disturbances)
        for _ in range(VISITS):
            while planned and planned[0].kind == p.CANCEL and not self._in_the_middle():
                planned.pop(0)
            disturbance = planned.pop(0) if planned else None
            ended = self._visit(server, disturbance)
            self.visits.append(ended)
            if ended.code in FINISHED and not self._cancels(disturbance):
                if not self.added:
                    return
                self._add()
                planned = [] if self.plan.again is None else [self.plan.again]
                continue
            assert ended.code in STOPPED or self._expected(ended, disturbance), _odd(ended, disturbance)
            if disturbance is not None and self._after(disturbance, ended):
                planned.insert(0, self.plan.spare)
        raise AssertionError(f"not finished after {VISITS} visits: {self.visits[-1].said[-500:]}")

    def _cancels(self, disturbance: p.Disturbance | None) -> bool:
        return disturbance is not None and disturbance.kind == p.CANCEL

    def _expected(self, ended: Ended, disturbance: p.Disturbance | None) -> bool:
        """Exit codes that only some plans may meet: a pause for a bill, the end of a cancel."""
        if self._cancels(disturbance):
            return ended.code == 0
        return ended.code == PAUSED and self.plan.has(p.BILLING) and "billing" in ended.said.lower()

    def _after(self, disturbance: p.Disturbance, ended: Ended) -> bool:
        """Note what it did, and what is done to the run directory then; whether remainders went with it."""
        if self._came(disturbance, ended):
            self._note(disturbance.kind, _reached(ended))
        if ended.killed and ended.code in KILLED:
            self._note(p.KILL)
        if not disturbance.delete or not self.run_dir.exists() or self.output.exists():
            return False
        kinds = {entry.kind for entry in firing.entries(self.run_dir)}
        self._note(p.LOST)
        if "RemainderSealed" in kinds:
            self._note(p.LOST_LEFT)
        self.journal.look(self.run_dir)
        self.journal.forget()
        shutil.rmtree(self.run_dir)
        return "RemainderSealed" in kinds

    def _add(self) -> None:
        """More rows at the end of the input of a run that is finished."""
        rows = make_rows(self.plan.dataset)
        with open(self.source, "ab") as file:
            file.writelines(rows[-self.added :])
        self.added = 0
        self.moments.append(Moment(p.ADD, time.time()))

    def _visit(self, server: Server, disturbance: p.Disturbance | None) -> Ended:
        kind = "" if disturbance is None else disturbance.kind
        args = self._cancel_command() if self._cancels(disturbance) else self._command(server, kind)
        variables = {}
        if disturbance is not None and disturbance.failpoints:
            variables = {"STREAMBATCH_FAILPOINT": disturbance.failpoints}
        if disturbance is not None and kind in p.TRACED and WITHOUT_STRACE is None:
            args = [*_traced(disturbance, self.folder / "strace.log"), *args]
        self.asked_before = self._cancels_asked()
        engine = Engine(args, self.folder / f"visit{len(self.visits)}.log", **variables)
        try:
            return self._disturbed(engine, server, disturbance)
        finally:
            engine.end()

    def _command(self, server: Server, kind: str) -> list[str]:
        workers = (
            0 if kind == p.ENOSPC_FILES else self.plan.workers
        )  # else a full disk would also fill the workers' pipes
        more = ["--workers", str(workers)]
        more += ["--remote-files", "keep"] if self.plan.has(p.BAD_LINE) else []  # the check reads them
        more += ["--stuck-after", str(p.STUCK_S)] if self.plan.has(p.STUCK) else []
        return command(self.source, self.output, server.url, self.plan.dataset, f"chaos-{self.plan.seed}", *more)

    def _cancel_command(self) -> list[str]:
        return [sys.executable, "-m", "streambatch", "cancel", str(self.output), "--poll-interval", "0.15", "--quiet"]

    def _disturbed(self, engine: Engine, server: Server, disturbance: p.Disturbance | None) -> Ended:
        if disturbance is None:
            return engine.last()
        if disturbance.kind in (p.KILL, p.SERVER):
            if (early := self._until(engine, disturbance.after_events, disturbance.after_s)) is not None:
                return early
            if disturbance.kind == p.KILL:
                return engine.kill()
            self._note(p.SERVER)
            server.kill()
            early = engine.wait(0.2)
            server.start()
            if early is not None:
                return early
        if not disturbance.most_events:
            return engine.last()
        early = self._until(engine, disturbance.most_events, 0.0)
        return engine.kill() if early is None else early

    def _came(self, disturbance: p.Disturbance, ended: Ended) -> bool:
        """Whether it was this disturbance that ended the visit; the death of a server is noted when it comes."""
        if ended.code == EXIT_STATUS:
            return True
        if disturbance.kind == p.KILL_FSYNC:
            return ended.code in KILLED and not ended.killed
        if disturbance.kind == p.CANCEL:
            return self._cancels_asked() > self.asked_before
        log = self.folder / "strace.log"
        return disturbance.kind in p.TRACED and log.exists() and "(INJECTED)" in log.read_text(errors="replace")

    def _cancels_asked(self) -> int:
        return sum(entry.kind == "CancelAsked" for entry in firing.entries(self.run_dir))

    def _until(self, engine: Engine, events: int, seconds: float) -> Ended | None:
        """Wait until so many more events of shards are journaled, and a while more; its end, if that comes before."""
        before = journal_state(self.run_dir)[0]
        while journal_state(self.run_dir)[0] < before + events:
            if (ended := engine.wait(0.03)) is not None:
                return ended
        return engine.wait(seconds)

    def _in_the_middle(self) -> bool:
        events, published = journal_state(self.run_dir)
        return bool(events) and not published

    def _note(self, kind: str, gap: str = "") -> None:
        """Remember that something happened to a run that has shards and is not finished, or in one of the run's own gaps."""
        if self._in_the_middle() or gap:
            self.moments.append(Moment(kind, time.time(), gap))

    def _followed(self) -> list[Moment]:
        """Those that an event of a shard followed; one of the run, where the gap is around an event of the run."""
        events = self.journal.all()
        after, last = firing.After(events), max((entry.at for entry in events), default=0.0)
        done = bool(self.visits) and self.visits[-1].code in FINISHED
        return [
            one
            for one in self.moments
            if after.of("", one.at) or (one.gap and one.at < last) or (one.gap == "after-Published" and done)
        ]

    def _came_about(self) -> Counter[str]:
        return Counter(one.kind for one in self._followed())

    def _gaps(self) -> Counter[str]:
        return Counter(one.gap for one in self._followed() if one.gap)


def verify_named(server: Server, batches: list[dict[str, Any]]) -> frozenset[str]:
    """The rows that the service named, by their line in the input file, as those for which a batch failed."""
    named = set()
    for batch in batches:
        lines = [one["line"] for one in (batch.get("errors") or {}).get("data", ()) if one.get("line")]
        if lines:
            rows = server.ask(f"/v1/files/{batch['input_file_id']}/content").split(b"\n")[:-1]
            named |= {json.loads(rows[line - 1])["custom_id"] for line in lines if line <= len(rows)}
    return frozenset(named)


def _reached(ended: Ended) -> str:
    """The failpoint that a visit died at."""
    found = re.search(r"The failpoint (\S+) was reached", ended.said) if ended.code == EXIT_STATUS else None
    return found[1] if found is not None else ""


def _odd(ended: Ended, disturbance: p.Disturbance | None) -> str:
    return f"exit {ended.code} of a visit with {disturbance}: {ended.said[-600:]}"


def _traced(disturbance: p.Disturbance, log: Path) -> list[str]:
    """The command runs under strace, which makes its N-th call of a kind (in one thread) fail or be its last."""
    calls, what = {
        p.KILL_FSYNC: ("fsync,fdatasync", "signal=SIGKILL"),
        p.EIO: ("fsync,fdatasync", "error=EIO"),
        p.ENOSPC: ("pwrite64", "error=ENOSPC"),
        p.ENOSPC_FILES: ("write,copy_file_range", "error=ENOSPC"),
    }[disturbance.kind]
    trace = ["-e", f"trace={calls}", "-e", f"inject={calls}:{what}:when={disturbance.at}"]
    quick = [] if disturbance.kind == p.KILL_FSYNC else ["--seccomp-bpf"]  # with it no signal is delivered
    return ["strace", "-f", *quick, "-qq", "-o", str(log), *trace]


def _without_strace() -> str | None:
    """Why there is no tracing here; None where there is."""
    path = shutil.which("strace")
    if path is None:
        return "strace is not installed"
    tried = subprocess.run([path, "-f", "--seccomp-bpf", "-o", "/dev/null", "true"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"strace can't trace here: {tried.stderr.strip()[:120]}"


WITHOUT_STRACE = _without_strace()


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
        engine = Engine(command(source, output, server.url, dataset, "calm", "--workers", "1"), place / "visit.log")
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


def live(seed: int, folder: Path) -> Life:
    """A seed's life; its files stay where it did not hold."""
    place = folder / f"seed-{seed}"
    shutil.rmtree(place, ignore_errors=True)
    try:
        found = Seed(p.plan(seed), place).live()
    except (AssertionError, OSError, ValueError, KeyError, sqlite3.Error) as error:
        return Life(seed, {}, 0, 0, 0, 0, 0, 0, 0.0, 0.0, {}, f"{type(error).__name__}: {error}")
    if not found.failure:
        shutil.rmtree(place)
    return found
