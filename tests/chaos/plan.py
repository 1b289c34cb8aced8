"""What a seed means: which input, which misbehaviour of the service, and which disturbances, one a visit. Decides, does nothing."""

import random
import re
import shutil
from typing import Any

import msgspec

from streambatch.core import events as e

ROWS = 2000
MAX_REQUESTS = 100
GRACE_S = 1.0
EVENTS = (
    "Started", "Opened", "SegmentSealed", "Uploaded", "Intended", "Submitted", "BatchFinished", "Admitted", "Downloaded",
    "Settled", "Merged", "Swept", "Exhausted", "Doubted", "Found", "RemainderSealed", "Deleted", "Publishing", "Published",
)  # fmt: skip
GAPS = tuple(f"{when}-{kind}" for kind in EVENTS for when in ("before", "after"))
ONCE = ("Started", "Opened", "Swept", "Exhausted", "Doubted", "Found", "RemainderSealed", "Publishing", "Published")

# kinds of disturbance, as the table names them
KILL = "engine: SIGKILL at a random instant"
GAP = "engine: dies in a gap around an event"
KILL_FSYNC = "engine: SIGKILL at an fsync"
EIO = "engine: EIO on fsync"
ENOSPC = "engine: ENOSPC on write"
LOST = "run directory deleted"
SERVER = "server: SIGKILL and restart"
TRACED = (KILL_FSYNC, EIO, ENOSPC)


class Dataset(msgspec.Struct, frozen=True):
    """The input of a run; seeds share a few of them, so that the undisturbed run is made once for each."""

    plain: bool  # rows that a prompt makes requests of, instead of ready-made requests
    models: int
    gzip: bool

    @property
    def name(self) -> str:
        return f"{'plain' if self.plain else 'ready'}-{self.models}{'-gz' if self.gzip else ''}"


class Rule(msgspec.Struct, frozen=True):
    """One rule of the service's script, and the kind that the table counts it under."""

    kind: str
    table: str
    rule: dict[str, Any]

    @property
    def rows(self) -> re.Pattern[str] | None:
        return re.compile(self.rule["match"]) if self.table == "rows" else None


class Disturbance(msgspec.Struct, frozen=True):
    """What happens during one visit."""

    kind: str
    after_events: int = 0  # of shards
    after_s: float = 0.0  # then
    gap: str = ""
    at: int = 0
    delete: bool = False  # the run directory, afterwards


class Plan(msgspec.Struct, frozen=True):
    """Everything that a seed decides."""

    seed: int
    dataset: Dataset
    rules: tuple[Rule, ...]
    disturbances: tuple[Disturbance, ...]
    lost: bool
    workers: int

    @property
    def script(self) -> dict[str, Any]:
        tables: dict[str, Any] = {"seed": self.seed}
        for rule in self.rules:
            tables.setdefault(rule.table, []).append(rule.rule)
        return tables


def plan(seed: int) -> Plan:
    """The plan of a seed, the same each time."""
    chance = random.Random(f"chaos {seed}")
    plain = chance.random() < 0.4
    dataset = Dataset(plain, 1 if plain else chance.choice((1, 2, 3)), chance.random() < 0.3)
    lost = seed % 3 == 2
    offered = (*_calls(chance), *_listed(chance), *(() if lost else (*_batches(chance), *_rows(chance))))
    rules = tuple(rule for rule in offered if chance.random() < 0.55)
    return Plan(seed, dataset, rules, _disturbances(seed, chance, lost), lost, workers=chance.choice((0, 0, 1)))


def _calls(chance: random.Random) -> tuple[Rule, ...]:
    """What calls meet. Rules that answer or drop are looked at first."""
    some = ["upload", "create", "list", "retrieve", "content", "file"]

    def http(kind: str, do: str, on: Any, **more: Any) -> Rule:
        return Rule(kind, "http", {"do": do, "on": on, **more})

    return (
        http("create: response lost", "act_and_drop", "create", after=chance.randrange(9), times=chance.randint(1, 3)),
        http("upload: response lost", "act_and_drop", "upload", after=chance.randrange(9), times=chance.randint(1, 2)),
        http("connection cut", "drop", some, probability=0.06, times=5),
        http("503", "answer", some[:4], status=503, probability=0.05, times=5),
        http("answer garbled", "garble", ["list", "retrieve"], after=chance.randrange(4), times=2),
        http("download cut", "cut", "content", at=chance.randrange(4000), after=chance.randrange(6), times=2),
        http("download truncated", "short", "content", at=chance.randrange(4000), after=chance.randrange(6), times=1),
        http("download corrupted", "answer", "content", status=200, body="<html>Log in</html>", after=2, times=1),
    )


def _listed(chance: random.Random) -> tuple[Rule, ...]:
    late, hidden = chance.uniform(0.1, 0.3), chance.uniform(0.1, GRACE_S / 2)
    return (
        Rule("list lags", "batches", {"do": "hide", "seconds": hidden, "probability": 0.3}),
        Rule("files late", "batches", {"do": "late_files", "seconds": late, "probability": 0.2}),
    )


def _batches(chance: random.Random) -> tuple[Rule, ...]:
    def some(kind: str, do: str, **more: Any) -> Rule:
        return Rule(kind, "batches", {"do": do, "after": chance.randrange(12), "times": chance.randint(1, 3), **more})

    return (
        some("batch expires half done", "expire", at=chance.uniform(0.1, 0.9)),
        some("batch cancelled half done", "cancel", at=chance.uniform(0.1, 0.9)),
        some("batch fails: a queue that is full", "fail", code="token_limit_exceeded"),
    )


def _rows(chance: random.Random) -> tuple[Rule, ...]:
    """Each has rows of its own: ids end with the row's number."""
    digit = chance.randrange(10)
    return (
        Rule("row: 500, then an answer", "rows", {"do": "answer", "match": f"1{digit}$", "status": 500, "times": 1}),
        Rule("row: 400", "rows", {"do": "answer", "match": f"2{digit}$", "status": 400, "code": "invalid_value"}),
        Rule("row: executed, in neither file", "rows", {"do": "lost", "match": f"[05]3{digit}$", "times": 1}),
        Rule("row: result line corrupted", "rows", {"do": "malformed", "match": f"[05]4{digit}$", "times": 1}),
    )


def _disturbances(seed: int, chance: random.Random, lost: bool) -> tuple[Disturbance, ...]:
    """Each gap has its turn, seed after seed; traced ones only where strace is."""
    gap = GAPS[seed * 5 % len(GAPS)]
    made = [
        _in_gap(gap, chance),
        _in_gap(chance.choice(GAPS), chance),
        Disturbance(KILL, after_events=chance.randint(1, 60), after_s=chance.uniform(0.0, 0.2)),
    ]
    if chance.random() < 0.6:
        made.append(Disturbance(SERVER, after_events=chance.randint(1, 60), after_s=chance.uniform(0.0, 0.2)))
    if shutil.which("strace") is not None:
        made.append(Disturbance(TRACED[seed % len(TRACED)], at=chance.randint(1, 25)))
    chance.shuffle(made)
    made.insert(0, Disturbance(KILL, after_events=chance.randint(1, 60), after_s=chance.uniform(0.0, 0.2)))
    made.sort(key=_turn)
    deleted = set(chance.sample(range(len(made)), 2)) if lost else set()
    return tuple(msgspec.structs.replace(one, delete=k in deleted) for k, one in enumerate(made))


def _turn(one: Disturbance) -> int:
    """A gap that only a first visit has comes first, one that only the last has comes last."""
    return -1 if "Started" in one.gap else int("ublish" in one.gap)


def _in_gap(gap: str, chance: random.Random) -> Disturbance:
    at = 1 if gap.split("-")[1] in ONCE else chance.randint(1, 7)
    return Disturbance(GAP, gap=f"{gap}:{at}=exit")


def check_names() -> None:
    """The gaps are those of the journal."""
    for kind in EVENTS:
        if not issubclass(getattr(e, kind), e.Event):
            raise AssertionError(kind)
