"""What a seed means: which input, which misbehaviour of the service, and which disturbances, one a visit. Decides, does nothing."""

import random
import re
from typing import Any, get_args

import msgspec

from streambatch.core import events as e

ROWS = 2000
ADDED = 230  # rows that a seed may add to an input whose run is finished
MAX_REQUESTS = 100
GRACE_S = 1.0
STUCK_S = 20.0

# events that each run has, and those that it has in some weathers only
USUAL = (
    "Started", "Opened", "Swept", "SegmentSealed", "Uploaded", "Intended", "Submitted", "BatchFinished", "Admitted", "Downloaded",
    "Settled", "Merged", "Exhausted", "Publishing", "Published", "Deleted",
)  # fmt: skip
RARE = (
    "RemainderSealed", "Doubted", "Absent", "Found", "Refused", "Returned", "InputLost", "CancelAsked", "GivenUp", "Reopened",
    "SpareRead", "SpareEnded",
)  # fmt: skip
NEVER = (
    "SurplusCancelled",
)  # takes two live batches of one shard, which a list that lags less than the grace never allows
ONCE = ("Started", "Opened", "Swept", "Exhausted", "Publishing", "Published", "Deleted")
LAST = ("Exhausted", "Publishing", "Published", "Deleted")  # gaps at the end of a run
EARLY = ("Doubted", "Found", "Reopened")  # rare ones that come early in a visit: it would seldom die anywhere else
EARLY_SHARE = 0.15


def gaps(kinds: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{when}-{kind}" for kind in kinds for when in ("before", "after"))


USUAL_GAPS, RARE_GAPS = gaps(USUAL), gaps(RARE)
GAPS = USUAL_GAPS + RARE_GAPS
MIDDLE_GAPS = gaps((*(kind for kind in USUAL if kind not in LAST), "Merged", "Merged", "SegmentSealed"))

# kinds of disturbance, as the table names them
KILL = "engine: SIGKILL at a random instant"
GAP = "engine: dies in a gap around an event"
KILL_FSYNC = "engine: SIGKILL at an fsync"
EIO = "engine: EIO on fsync"
ENOSPC = "engine: ENOSPC on write, journal"
ENOSPC_FILES = "engine: ENOSPC on write, spool and sinks"
LOST = "run directory deleted"
LOST_LEFT = "run directory deleted, with remainders"
SERVER = "server: SIGKILL and restart"
CANCEL = "run cancelled by the user"
ADD = "rows added to a finished run"
TRACED = (KILL_FSYNC, EIO, ENOSPC, ENOSPC_FILES)
DISTURBANCES = (KILL, GAP, *TRACED, SERVER, LOST, LOST_LEFT, CANCEL, ADD)

# rules that what is checked depends on
REFUSED = "row: 400"
FAILING = ("row: 500, then an answer", "row: executed, in neither file", "row: result line corrupted")
BAD_LINE = "batch fails: one bad line named"
BILLING = "batch fails: billing limit"
STUCK = "batch stuck, given up"


class Dataset(msgspec.Struct, frozen=True):
    """The input of a run; seeds share a few of them, so that the undisturbed run is made once for each."""

    plain: bool  # rows that a prompt makes requests of, instead of ready-made requests
    models: int
    gzip: bool

    @property
    def name(self) -> str:
        return f"{'plain' if self.plain else 'ready'}-{self.models}{'-gz' if self.gzip else ''}"


class Rule(msgspec.Struct, frozen=True):
    """One rule of the service's script, and the kind that the table counts it under (none: it only helps another)."""

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
    failpoints: str = ""
    most_events: int = 0  # of shards, until the engine is killed all the same, so that there is a next visit
    at: int = 0  # which call of a thread
    delete: bool = False  # the run directory, afterwards


class Plan(msgspec.Struct, frozen=True):
    """Everything that a seed decides."""

    seed: int
    dataset: Dataset
    rules: tuple[Rule, ...]
    disturbances: tuple[Disturbance, ...]
    lost: bool
    workers: int
    added: int  # so many rows come only when the others are published
    again: Disturbance | None  # in the visit that finds the added rows
    spare: Disturbance  # in the visit after a run directory with remainders is gone

    @property
    def script(self) -> dict[str, Any]:
        tables: dict[str, Any] = {"seed": self.seed}
        for rule in self.rules:
            tables.setdefault(rule.table, []).append(rule.rule)
        return tables

    def has(self, kind: str) -> bool:
        return any(rule.kind == kind for rule in self.rules)


def plan(seed: int) -> Plan:
    """The plan of a seed, the same each time."""
    chance = random.Random(f"chaos {seed}")
    plain = chance.random() < 0.4
    dataset = Dataset(plain, 1 if plain else chance.choice((1, 2, 3)), chance.random() < 0.3)
    lost = seed % 3 == 2
    rules = (*_calls(chance), *_listed(chance), *_batches(chance), *_failed(chance), *_rows(chance))
    stuck = not lost and chance.random() < 0.3
    rules += _stuck(chance) if stuck else ()
    rules += _slow(chance, lost) if chance.random() < 0.4 else ()
    added = ADDED if not dataset.gzip and chance.random() < 0.35 else 0
    again = _in_gap(chance.choice(gaps(("Reopened",))), chance) if added else None
    made, workers = _disturbances(seed, chance, lost, stuck), chance.choice((0, 0, 1))
    return Plan(seed, dataset, rules, made, lost, workers, added, again, _spare(chance))


def kinds() -> list[str]:
    """Every kind that a plan can have, whether it has it or not."""
    found = {rule.kind for seed in range(200) for rule in plan(seed).rules if rule.kind}
    return [*DISTURBANCES, *sorted(found)]


def _some(chance: random.Random, offered: tuple[Rule, ...], share: float) -> tuple[Rule, ...]:
    return tuple(rule for rule in offered if chance.random() < share)


def _calls(chance: random.Random) -> tuple[Rule, ...]:
    """What calls meet. Rules that answer or drop are looked at first."""
    some = ["upload", "create", "list", "retrieve", "content", "file"]

    def http(kind: str, do: str, on: Any, **more: Any) -> Rule:
        return Rule(kind, "http", {"do": do, "on": on, **more})

    offered = (
        http("create: response lost", "act_and_drop", "create", after=chance.randrange(9), times=chance.randint(1, 3)),
        http(
            "create: cut before it was read", "drop", "create", after=chance.randrange(15), times=chance.randint(1, 2)
        ),
        http("upload: response lost", "act_and_drop", "upload", after=chance.randrange(9), times=chance.randint(1, 2)),
        http("connection cut", "drop", some, probability=0.06, times=5),
        http("503", "answer", some[:4], status=503, probability=0.05, times=5),
        http("answer garbled", "garble", ["list", "retrieve"], after=chance.randrange(4), times=2),
        http("download cut", "cut", "content", at=chance.randrange(4000), after=chance.randrange(6), times=2),
        http("download truncated", "short", "content", at=chance.randrange(4000), after=chance.randrange(6), times=1),
        http("download corrupted", "answer", "content", status=200, body="<html>Log in</html>", after=2, times=1),
    )
    return _some(chance, offered, 0.5)


def _listed(chance: random.Random) -> tuple[Rule, ...]:
    late, hidden = chance.uniform(0.1, 0.3), chance.uniform(0.1, GRACE_S / 2)
    offered = (
        Rule("list lags", "batches", {"do": "hide", "seconds": hidden, "probability": 0.3}),
        Rule("files late", "batches", {"do": "late_files", "seconds": late, "probability": 0.2}),
    )
    return _some(chance, offered, 0.5)


def _batch(chance: random.Random, kind: str, do: str, most: int = 3, **more: Any) -> Rule:
    return Rule(kind, "batches", {"do": do, "after": chance.randrange(12), "times": chance.randint(1, most), **more})


def _batches(chance: random.Random) -> tuple[Rule, ...]:
    offered = (
        _batch(chance, "batch expires half done", "expire", at=chance.uniform(0.1, 0.9)),
        _batch(chance, "batch cancelled half done", "cancel", at=chance.uniform(0.1, 0.9)),
    )
    return _some(chance, offered, 0.45)


def _failed(chance: random.Random) -> tuple[Rule, ...]:
    """Batches that the service refuses, for each of the reasons that mean different things."""
    missing = {"code": "invalid_request", "message": "Cannot find file.", "param": "file_id"}
    offered = (
        _batch(chance, "batch fails: a queue that is full", "fail", code="token_limit_exceeded"),
        _batch(chance, BAD_LINE, "fail", code="invalid_json_line", line=chance.randint(1, 40)),
        _batch(chance, "batch fails: no line named", "fail", most=2, code="duplicate_custom_id"),
        _batch(chance, "batch fails: input file not found", "fail", most=1, **missing),
        _batch(chance, BILLING, "fail", most=1, code="billing_hard_limit_reached"),
    )
    return _some(chance, offered, 0.3)


def _stuck(chance: random.Random) -> tuple[Rule, ...]:
    """A batch past its end that neither ends nor lets itself be cancelled; none of it is executed."""
    match = f"/{chance.randrange(3, 12):06d}-0/"
    return (
        Rule(STUCK, "batches", {"do": "stuck", "match": match, "state": "validating"}),
        Rule("", "batches", {"do": "stuck", "match": match, "state": "cancelling"}),
        Rule("", "batches", {"do": "view", "match": match, "set": {"expires_at": 1}}),
    )


def _slow(chance: random.Random, lost: bool) -> tuple[Rule, ...]:
    """Batches that are still in flight when something happens; those of remainders, where the run directory goes."""
    which = {"match": "/r"} if lost else {"after": chance.randrange(12)}
    return (
        Rule("batch slow", "batches", {"do": "stuck", "state": "in_progress", "seconds": 1.5, "times": 4, **which}),
    )


def _rows(chance: random.Random) -> tuple[Rule, ...]:
    """Each has rows of its own: ids end with the row's number."""
    digit = chance.randrange(10)
    offered = (
        Rule(FAILING[0], "rows", {"do": "answer", "match": f"1{digit}$", "status": 500, "times": 1}),
        Rule(REFUSED, "rows", {"do": "answer", "match": f"2{digit}$", "status": 400, "code": "invalid_value"}),
        Rule(FAILING[1], "rows", {"do": "lost", "match": f"[05]3{digit}$", "times": 1}),
        Rule(FAILING[2], "rows", {"do": "malformed", "match": f"[05]4{digit}$", "times": 1}),
    )
    return _some(chance, offered, 0.4)


def _disturbances(seed: int, chance: random.Random, lost: bool, stuck: bool) -> tuple[Disturbance, ...]:
    """The usual gaps and the kinds of traced calls have their turn, seed after seed."""
    turn = USUAL_GAPS[seed * 5 % len(USUAL_GAPS)]
    made = [_in_gap(turn, chance), *(_in_gap(chance.choice(MIDDLE_GAPS), chance) for _ in range(2))]
    made += [_in_gap(chance.choice(gaps(LAST)), chance)]
    traced = 1 + (chance.random() < 0.3)
    made += [_traced(TRACED[(seed + k) % len(TRACED)], chance) for k in range(traced)]
    made += [_at_random(SERVER, chance)] if chance.random() < 0.6 else []
    made += [_cancel(chance)] if chance.random() < 0.35 and not stuck else []  # it would wait for what is stuck
    chance.shuffle(made)
    made.insert(0, _at_random(KILL, chance))
    made.sort(key=_turn)
    deleted = set(chance.sample(range(len(made) // 2 - 1, len(made)), 2)) if lost else set()
    return tuple(msgspec.structs.replace(one, delete=k in deleted) for k, one in enumerate(made))


def _turn(one: Disturbance) -> int:
    """A gap that only a first visit has comes first, one that only the last has comes last."""
    first = one.failpoints.partition(":")[0].partition("-")[2]
    return -2 if first == "Started" else -1 if first in ("Opened", "Swept") else int(first in LAST)


def _at_random(kind: str, chance: random.Random) -> Disturbance:
    return Disturbance(
        kind, after_events=chance.randint(1, 30), after_s=chance.uniform(0.0, 0.2), most_events=_most(chance)
    )


def _most(chance: random.Random) -> int:
    return chance.randint(10, 40)


def _spare(chance: random.Random) -> Disturbance:
    gap = chance.choice(gaps(("SpareRead", "SpareEnded", "SpareEnded")))
    return Disturbance(GAP, failpoints=f"{gap}:1=exit", most_events=60 + _most(chance))


def _cancel(chance: random.Random) -> Disturbance:
    gap = chance.choice(("", *gaps(("CancelAsked",))))
    return Disturbance(CANCEL, failpoints=f"{gap}:1=exit" if gap else "")


def _traced(kind: str, chance: random.Random) -> Disturbance:
    """Each thread counts for itself; an undisturbed run makes some 100 fsyncs, 800 pwrites and 80 writes in its busiest."""
    most = {KILL_FSYNC: 12, EIO: 12, ENOSPC: 120, ENOSPC_FILES: 10}[kind]
    return Disturbance(kind, at=chance.randint(2, most), most_events=_most(chance))


def _in_gap(gap: str, chance: random.Random) -> Disturbance:
    at = 1 if gap.split("-")[1] in (*ONCE, *RARE, "Merged") else chance.randint(1, 3)
    others = [
        f"{chance.choice(gaps((kind,)))}:1=exit" for kind in RARE if kind not in EARLY or chance.random() < EARLY_SHARE
    ]
    if gap.split("-")[1] in LAST:  # else it would hardly come to that
        return Disturbance(GAP, failpoints=f"{gap}:{at}=exit")
    return Disturbance(GAP, failpoints=",".join((f"{gap}:{at}=exit", *others)), most_events=30 + _most(chance))


def check_names() -> None:
    """The gaps are those of the journal, all of them."""
    known = {kind.__name__ for kind in get_args(e.AnyEvent)}
    if known != {*USUAL, *RARE, *NEVER}:
        raise AssertionError(known ^ {*USUAL, *RARE, *NEVER})
