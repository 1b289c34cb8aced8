"""Batches that end early, stand still, or describe themselves in an odd way."""

from typing import Any

from streambatch.core.models import ShardLimits
from tests.e2e.faults.calls import GOES_ON, SHORT
from tests.e2e.faults.scenario import TOO_MANY, Ended, Scenario, Visit, batches, http, rows, script

TITLE = "The life of a batch"
STATES = ("validating", "in_progress", "finalizing", "cancelling")
IN_FLIGHT = Visit(state="in_flight", code=5, says="1 batch is in flight.…", done=30)
STILL_IN_FLIGHT = Visit(state="in_flight", code=5, says="1 batch is in flight.…", done=30, mend=True)
CANCEL: dict[str, Any] = {
    "state": "cancelled",
    "code": 4,
    "says": "The run was cancelled; rows that had finished are kept.",
}
SALVAGES = "Keeps the results that are there, and sends the other rows again, together in one batch."

EARLY = tuple(
    Scenario(
        name=f"{name} {when}",
        service=f"{how} when {share} of its rows are executed.",
        run=SALVAGES if at < 1 else "Keeps the results.",
        script=script(batches(do, at=at, times=2)),
        least=2,
    )
    for do, name, how in (
        ("expire", "a window that expires", "Ends the window of 2 batches"),
        ("cancel", "a cancel by someone else", "Has 2 batches cancelled by somebody else"),
    )
    for at, when, share in (
        (0, "before the first row", "none"),
        (0.5, "in the middle", "half"),
        (1, "after the last row", "all"),
    )
)
LEFT_OUT = tuple(
    Scenario(
        name=f"{name}, with rows in neither file",
        service="Ends 2 batches in the middle, and tells nothing of the rows that were not executed.",
        run=f"{SALVAGES} Nobody knows whether those rows were executed, so they are reported as possibly billed.",
        script=script(batches(do, at=0.5, times=2), batches("leave_out", times=2)),
        billed=10,
        least=4,
    )
    for do, name in (("expire", "a window that expires"), ("cancel", "a cancel by someone else"))
)
ALWAYS = (
    Scenario(
        name="windows that always expire",
        service="Ends the window of every batch before its first row.",
        run="Tries each row three times (`--max-attempts`), then ends it in an error.",
        script=script(batches("expire", at=0)),
        visits=(Visit(code=6, says=TOO_MANY, done=0),),
        failed=(Ended("expired", "batch_expired: …", 40),),
        executed=0,
    ),
    Scenario(
        name="a failed batch that has results",
        service="Says `failed` of a batch that was executed and has its result file.",
        run="Keeps the results.",
        script=script(batches("view", set={"status": "failed"}, terminal_only=True, times=1)),
    ),
)

STUCK_FOR_A_WHILE = tuple(
    Scenario(
        name=f"a batch that stays `{state}` for a while",
        service=f"Keeps a batch in `{state}` for 0.4 s.",
        run="Waits.",
        script=script(
            *([batches("cancel", at=0.5, times=1)] if state == "cancelling" else []),
            batches("stuck", state=state, seconds=0.4, times=1),
        ),
    )
    for state in STATES
)
STUCK = tuple(
    Scenario(
        name=f"a batch that stays `{state}`",
        service=f"Keeps a batch in `{state}` until it is cancelled.",
        run="Collects the others and leaves when it is told to (`--stop-after`); after `cancel` the same command finishes.",
        script=script(batches("stuck", state=state, times=1)),
        visits=(IN_FLIGHT, Visit(cancel=True, done=done, **CANCEL), GOES_ON),
        config={"stop_after_s": 0.8},
    )
    for state, done in (("in_progress", 30), ("finalizing", 40))
)
NEVER_VALIDATED = (
    Scenario(
        name="a batch that stays `validating`",
        service="Keeps a batch in `validating` until it is cancelled.",
        run="Waits for it; the user cancels the run, and the same command finishes it.",
        script=script(batches("stuck", state="validating", times=1)),
        visits=(Visit(cancel_after_s=0.8, done=30, **CANCEL), GOES_ON),
    ),
)
CANCELLING = (
    Scenario(
        name="a cancel that fails at first",
        service="Keeps a batch in `in_progress`, and answers 2 calls to cancel it with 500.",
        run="Asks again until it is taken; the same command finishes the run.",
        script=script(batches("stuck", state="in_progress", times=1), http("answer", "cancel", status=500, times=2)),
        visits=(Visit(cancel_after_s=0.8, done=30, **CANCEL), GOES_ON),
        least=3,
    ),
    Scenario(
        name="a batch that stays `cancelling`",
        service="Has a batch cancelled by somebody else, and keeps it in `cancelling` for ever.",
        run="Collects the others and leaves when it is told to (`--stop-after`); the batch may still end.",
        script=script(batches("cancel", at=0.5, times=1), batches("stuck", state="cancelling", times=1)),
        visits=(IN_FLIGHT, STILL_IN_FLIGHT),
        executed=35,
        config={"stop_after_s": 0.8},
        least=2,
    ),
)

HIDDEN = (
    "The service counts 20 results of batch … (shard …) and names no file that has them; nothing is bought again without your"
    " word: --accept-gone error, or --accept-gone rebuy."
)
UNKNOWN_WORD = (
    Scenario(
        name="a status word that nobody knows",
        service="Says of a batch that it is `pondering`, for ever.",
        run="Takes it as not finished: collects the others, and leaves when it is told to (`--stop-after`).",
        script=script(batches("view", set={"status": "pondering"}, times=1)),
        visits=(IN_FLIGHT, STILL_IN_FLIGHT),
        executed=40,
        config={"stop_after_s": 0.8},
    ),
)


NO_ID = tuple(
    Scenario(
        name=f"a create that is answered with an id that is {how}",
        service=f"Creates nothing, and answers a create with 200 and an id that is {how}.",
        run="Doubts the create, looks for the batch in the list, and creates again once it is proven absent.",
        script=script(http("answer", "create", times=1, status=200, body=body)),
    )
    for how, body in (
        ("null", '{"id": null, "object": "batch", "status": "validating"}'),
        ("empty", '{"id": "", "object": "batch", "status": "validating"}'),
        ("absent", '{"object": "batch", "status": "validating"}'),
    )
)
ID_LOST = tuple(
    Scenario(
        name=f"a batch whose id is {how}",
        service=f"Shows a finished batch with an id that is {how}, in the list and by id.",
        run="Knows it by the id that it asked for, and collects the results.",
        script=script(batches("view", terminal_only=True, times=1, **view)),
        config=SHORT,
    )
    for how, view in (("null", {"set": {"id": None}}), ("empty", {"set": {"id": ""}}), ("absent", {"drop": ["id"]}))
)


def _odd(name: str, service: str, run: str = "Reads it all the same.", **view: Any) -> Scenario:
    return Scenario(
        name=name,
        service=service,
        run=run,
        script=script(batches("view", terminal_only=True, times=2, **view)),
        least=2,
    )


OBJECTS = (
    _odd("other spellings of a status", "Says `COMPLETED` of 2 batches.", set={"status": "COMPLETED"}),
    _odd("an error file that is null", "Says null where 2 batches have no error file.", set={"error_file_id": None}),
    _odd("an error file that is empty text", 'Says "" where 2 batches have no error file.', set={"error_file_id": ""}),
    _odd("an error file that is absent", "Says nothing of the error file of 2 batches.", drop=["error_file_id"]),
    _odd("metadata that is null", "Shows no metadata of 2 batches.", set={"metadata": None}),
    _odd(
        "fields that are absent", "Leaves out counts, usage and times.", drop=["request_counts", "usage", "expires_at"]
    ),
    _odd("counts that are null", "Says null for all counts.", set={"request_counts": None}),
    _odd(
        "counts that are too low", "Counts 3 rows less than there are.", "Goes by the files.", counts={"completed": -3}
    ),
    _odd(
        "counts that are too high", "Counts 3 rows more than there are.", "Goes by the files.", counts={"completed": 3}
    ),
    _odd(
        "fields that nobody knows",
        "Adds fields, in 2 batches.",
        "Ignores them.",
        set={"mood": {"today": "fine"}, "errors": [], "object": "job"},
    ),
)
OUTPUT = (
    Scenario(
        name="an output file that is null",
        service="Completes batches in which every row failed: there is an error file alone.",
        run="Every row ends in an error; OUTPUT is empty.",
        script=script(rows("answer", status=400, code="invalid_value")),
        visits=(Visit(code=6, says=TOO_MANY, done=0),),
        failed=(Ended("invalid_request", "invalid_value: …", 40),),
        least=40,
    ),
    Scenario(
        name="an output file that should be there and is null",
        service="Completes a batch, and names no result file at all.",
        run="Its rows may have been executed and nobody can get at them: they are bought again, and reported as possibly billed.",
        script=script(batches("view", set={"output_file_id": None}, terminal_only=True, times=1)),
        again=10,
        billed=10,
    ),
    Scenario(
        name="an output file that should be there and is null, of more than ten rows",
        service="Completes a batch of 20 rows, counts them, and names no result file at all.",
        run="Pauses: so many results that nobody can get at are not bought again unasked. All others are collected.",
        script=script(batches("view", set={"output_file_id": None}, terminal_only=True, times=1)),
        visits=(
            Visit(state="paused", code=4, says=HIDDEN, done=20),
            Visit(state="paused", code=4, says=HIDDEN, done=20, mend=True),
        ),
        executed=40,
        config={"limits": ShardLimits(max_requests=20), "adopt_grace_s": 0.1},
    ),
)

ADVANCE = (
    Scenario(
        name="states that advance at once",
        service="Has every batch finished the moment it is created.",
        run="Collects the results.",
        script=script(http("delay", "create", seconds=0), advance={"by": "once"}),
        least=4,
    ),
    Scenario(
        name="states that advance by looks",
        service="Lets a batch leave each state only after it was looked at 3 times.",
        run="Keeps looking.",
        script=script(http("delay", "list", "retrieve", seconds=0), advance={"by": "looks", "n": 3}),
        least=10,
    ),
    Scenario(
        name="states that advance by time",
        service="Keeps each batch 0.1 s in each of its states.",
        run="Waits.",
        script=script(
            batches("stuck", state="validating", seconds=0.1),
            batches("stuck", state="in_progress", seconds=0.1),
            batches("stuck", state="finalizing", seconds=0.1),
            advance={"by": "time"},
        ),
        least=12,
    ),
)

SCENARIOS = (
    *EARLY,
    *LEFT_OUT,
    *ALWAYS,
    *STUCK_FOR_A_WHILE,
    *STUCK,
    *NEVER_VALIDATED,
    *CANCELLING,
    *UNKNOWN_WORD,
    *NO_ID,
    *ID_LOST,
    *OBJECTS,
    *OUTPUT,
    *ADVANCE,
)
