"""What comes back for single rows: errors, and lines that are odd, missing, double, huge or broken."""

from typing import Any

from streambatch.core.shaping import Asked
from tests.e2e.faults.scenario import ROWS, TOO_MANY, Ended, Scenario, Visit, http, rows, script

TITLE = "Results of rows"
AGAIN = "Sends those rows again, together in one batch."
FINAL = "Those rows end in an error; they are not tried again."
PASSES_ON = "Passes the line on, byte for byte."
WITH_ROWS = {"asked": Asked(emit="rows")}
MANY = "[27]$"  # 8 of 40 rows


def failing(count: int, row_class: str, reason: str) -> dict[str, Any]:
    """The figures of a scenario in which so many rows end in an error."""
    ended = Visit(code=6, says=TOO_MANY, done=ROWS - count)
    return {"visits": (ended,), "failed": (Ended(row_class, reason, count),)}


FOR_GOOD = tuple(
    Scenario(
        name=f"a row with status {status}{'' if code is None else f' `{code}`'}",
        service=f"Answers 8 rows with {status}.",
        run=FINAL,
        script=script(rows("answer", MANY, status=status, code=code)),
        least=8,
        **failing(8, row_class, reason),
    )
    for status, code, row_class, reason in (
        (400, "invalid_value", "invalid_request", "invalid_value: Invalid request."),
        (400, "content_policy_violation", "content_policy", "content_policy_violation: …"),
        (404, None, "invalid_request", "…"),
        (422, None, "invalid_request", "…"),
    )
)
PASSING = tuple(
    Scenario(
        name=f"a row with status {status}",
        service=f"Answers 8 rows with {status}, at their first try.",
        run=AGAIN,
        script=script(rows("answer", MANY, status=status, times=1)),
        again=8,
        least=8,
    )
    for status in (429, 500, 503)
)
NO_ANSWER = (
    Scenario(
        name="a row that timed out",
        service="Gives 8 rows no response, and the error `request_timeout`, at their first try.",
        run=AGAIN,
        script=script(rows("timeout", MANY, times=1)),
        again=8,
        least=8,
    ),
    Scenario(
        name="a row with status 0",
        service="Gives 8 rows `status_code` 0 and an empty body, at their first try; they are not counted as failed.",
        run=AGAIN,
        script=script(rows("zero", MANY, times=1)),
        again=8,
        least=8,
    ),
    Scenario(
        name="a row that keeps failing",
        service="Answers a row with 503, whenever it is tried.",
        run="Tries three times (`--max-attempts`), then the row ends in an error.",
        script=script(rows("answer", "-7$", status=503, message="too busy")),
        again=2,
        least=3,
        **failing(1, "server_error", "too busy"),
    ),
    Scenario(
        name="a row with an error code that nobody knows",
        service="Gives a row no response, and an error with the code `weather`.",
        run=FINAL,
        script=script(
            rows("line", "-7$", set={"response": None, "error": {"code": "weather", "message": "It rains."}})
        ),
        **failing(1, "unknown", "weather: It rains."),
    ),
    Scenario(
        name="a row with neither response nor error",
        service="Gives 8 rows a line that says nothing, at their first try.",
        run=AGAIN,
        script=script(rows("line", MANY, set={"response": None, "error": None}, times=1)),
        again=8,
        least=8,
    ),
)

COUNTED = (
    Scenario(
        name="missing rows",
        service="Executes 2 rows, and puts them in neither file.",
        run=f"{AGAIN} They are reported as possibly billed.",
        script=script(rows("lost", "-(3|14)$", times=1)),
        again=2,
        billed=2,
        least=2,
    ),
    Scenario(
        name="rows that are always missing",
        service="Puts a row in neither file, whenever it is tried.",
        run="Tries three times, then the row ends in an error; three executions are reported as possibly billed.",
        script=script(rows("lost", "-7$")),
        again=2,
        billed=3,
        least=3,
        **failing(1, "missing", "the service returned neither a result nor an error for this row"),
    ),
    Scenario(
        name="duplicate rows",
        service="Returns 8 results twice.",
        run="Keeps the first one.",
        script=script(rows("duplicate", MANY)),
        least=8,
    ),
    Scenario(
        name="unknown rows",
        service="Returns 4 results of rows that nobody sent.",
        run="Ignores them.",
        script=script(rows("unknown", "3$")),
        least=4,
    ),
    Scenario(
        name="a custom_id that is a number",
        service="Returns a result whose `custom_id` is no text, at the first try.",
        run="Can't tell whose it is: the row counts as missing, is sent again, and reported as possibly billed.",
        script=script(rows("line", "-7$", set={"custom_id": 7}, times=1)),
        again=1,
        billed=1,
    ),
    Scenario(
        name="results in any order",
        service="Returns results in another order than they were asked in, as it always does.",
        run="Merges them in input order.",
        script=script(http("delay", "content", seconds=0)),
        least=4,
    ),
)

ODD_LINES = (
    Scenario(
        name="`response.body` as a text",
        service="Gives 4 rows a body that is JSON inside a JSON string, and no `error` key.",
        run=PASSES_ON,
        script=script(rows("body_as_text", "4$")),
        least=4,
    ),
    Scenario(
        name="`response.body` as a text, with `--emit rows`",
        service="The same.",
        run="Takes the answer out of it.",
        script=script(rows("body_as_text", "4$")),
        least=4,
        config=WITH_ROWS,
    ),
    Scenario(
        name="a missing `error` key",
        service="Leaves `error` out of every line, and `id` is null.",
        run=PASSES_ON,
        script=script(rows("line", drop=["error"], set={"id": None})),
        least=40,
    ),
    Scenario(
        name="lines with fields that nobody knows",
        service="Adds fields to lines and to bodies.",
        run=PASSES_ON,
        script=script(
            rows("line", "[02468]$", set={"mood": {"today": ["fine"]}}),
            rows("body", set={"usage": "plenty", "x": None}),
        ),
        least=40,
    ),
    Scenario(
        name="a success without an answer",
        service="Answers 4 rows with 200 and a body without `choices`.",
        run=f"{PASSES_ON} On the wire it is a success, and paid.",
        script=script(rows("body", "4$", drop=["choices"])),
        silent="4$",
        least=4,
    ),
    Scenario(
        name="a success without an answer, with `--emit rows`",
        service="The same.",
        run="NAME is null, and NAME_error says that the service answered without a text.",
        script=script(rows("body", "4$", drop=["choices"])),
        silent="4$",
        least=4,
        config=WITH_ROWS,
    ),
    Scenario(
        name="a wrong answer",
        service="Gives a row an answer that is wrong.",
        run="Passes it on: nobody but the user can tell.",
        script=script(rows("wrong", "-7$")),
        odd="-7$",
    ),
)

MALFORMED = "the service's result for this row came back malformed"
BROKEN = (
    Scenario(
        name="malformed lines",
        service="Breaks the result lines of 8 rows off in the middle, at their first try.",
        run=f"{AGAIN} They are reported as possibly billed.",
        script=script(rows("malformed", MANY, times=1)),
        again=8,
        billed=8,
        least=8,
    ),
    Scenario(
        name="malformed lines that tell nothing",
        service="Breaks the result lines of 8 rows off before their `custom_id`, at their first try.",
        run=f"{AGAIN} They count as missing, and are reported as possibly billed.",
        script=script(rows("malformed", MANY, at=30, times=1)),
        again=8,
        billed=8,
        least=8,
    ),
    Scenario(
        name="a row whose line is always malformed",
        service="Breaks the result line of a row off in the middle, whenever it is tried.",
        run="Tries three times, then the row ends in an error, with what came of the line.",
        script=script(rows("malformed", "-7$")),
        again=2,
        billed=3,
        least=3,
        **failing(1, "malformed", MALFORMED),
    ),
    Scenario(
        name="result lines of 3 MB",
        service="Returns 4 result lines of 3 MB.",
        run=f"{PASSES_ON} No line is held in memory.",
        script=script(rows("huge", "3$", bytes=3_000_000)),
        least=4,
    ),
    Scenario(
        name="a result line of 80 MB",
        service="Returns a result line of 80 MB.",
        run=f"{PASSES_ON} No line is held in memory.",
        script=script(rows("huge", "-7$", bytes=80_000_000)),
    ),
)

SCENARIOS = (*FOR_GOOD, *PASSING, *NO_ANSWER, *COUNTED, *ODD_LINES, *BROKEN)
