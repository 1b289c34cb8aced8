"""Calls that the service answers with an error: too fast, broken, not allowed, not paid."""

from streambatch.core.retry import RetryPolicy
from tests.e2e.faults.scenario import SECRET, Scenario, Visit, batches, http, script

TITLE = "Calls that are refused"
EVERYWHERE = ("upload", "create", "list", "retrieve", "content", "file")
RETRIES = "Tries the same call again, later each time."
GOES_ON = Visit(mend=True)
SHORT = {"retry": RetryPolicy(first_wait_s=0.02, max_wait_s=0.05, max_elapsed_s=0.2, min_attempts=2)}


QUEUE_FULL = (
    "Enqueued token limit reached for gpt-4o-mini in organization org-x. Limit: 1,350,000 enqueued tokens. Please try again once"
    " some in_progress batches have been completed."
)
SLOW_DOWN = "The service asks to slow down in the list of batches (429 rate_limit_exceeded): …."
KEY_REFUSED = "The service refused the key (401 invalid_api_key): …. Check the key, in its variable or its file."


def stopped(says: str, code: int = 3) -> tuple[Visit, ...]:
    """The run ends with an error, and the same command finishes it once the fault is over."""
    return Visit(state="stopped" if code == 3 else "error", code=code, says=says), GOES_ON


PACE = (
    Scenario(
        name="429 with Retry-After",
        service="Answers 12 calls of any kind with 429 `rate_limit_exceeded` and `Retry-After`.",
        run="Holds back all calls until the time has passed.",
        script=script(
            http("answer", *EVERYWHERE, times=12, status=429, code="rate_limit_exceeded", retry_after_s=0.05)
        ),
        least=12,
    ),
    Scenario(
        name="429 without Retry-After",
        service="Answers 6 calls with 429 `slow_down` and no word on when to come back.",
        run="Slows down by itself.",
        script=script(http("answer", *EVERYWHERE, times=6, status=429, code="slow_down")),
        least=6,
    ),
    Scenario(
        name="429 with retry-after-ms",
        service="Answers 6 calls with 429 and `retry-after-ms`.",
        run="Holds back all calls until the time has passed.",
        script=script(http("answer", *EVERYWHERE, times=6, status=429, headers={"retry-after-ms": "30"})),
        least=6,
    ),
    Scenario(
        name="429 that asks for an hour",
        service="Answers a list of batches with 429 and `Retry-After: 3600`.",
        run="Stops, since that is longer than its patience; the same command goes on.",
        script=script(http("answer", "list", after=3, status=429, code="rate_limit_exceeded", retry_after_s=3600)),
        visits=stopped(SLOW_DOWN),
        config={"retry": RetryPolicy(first_wait_s=0.02, max_wait_s=0.1, max_elapsed_s=2.0)},
    ),
    Scenario(
        name="429 that does not end",
        service="Answers every list of batches with 429, from the fourth on.",
        run="Stops once its patience (15 minutes) is over; the same command goes on.",
        script=script(http("answer", "list", after=3, status=429, code="rate_limit_exceeded")),
        visits=stopped(SLOW_DOWN),
        config=SHORT,
    ),
)

BROKEN = tuple(
    Scenario(
        name=f"{status}{'' if code is None else f' {code}'}",
        service=f"Answers 6 calls of any kind with {status}.",
        run=f"{RETRIES} A create is looked for in the list first, since it may have taken effect.",
        script=script(http("answer", *EVERYWHERE, times=6, status=status, code=code, body=body)),
        least=6,
    )
    for status, code, body in (
        (500, None, None),
        (502, None, "<html>Bad gateway</html>"),
        (503, "server_is_overloaded", None),
        (504, None, "upstream request timeout"),
    )
)

ENDLESS = (
    Scenario(
        name="500 that does not end",
        service="Answers every look-up of a file with 500.",
        run="Stops once its patience is over; the same command goes on.",
        script=script(http("answer", "file", status=500)),
        visits=stopped("The service failed in the look-up of file … (500 server_error): …."),
        config=SHORT,
    ),
    Scenario(
        name="500 on downloads that does not end",
        service="Answers every download with 500.",
        run="Stops once its patience is over; the same command collects what was bought.",
        script=script(http("answer", "content", status=500)),
        visits=stopped("The service failed in the download of file … (500 server_error): …."),
        config=SHORT,
    ),
    Scenario(
        name="408 on create",
        service="Gives up waiting in a create.",
        run="Doubts the create, and creates again once it is proven absent.",
        script=script(http("answer", "create", times=1, status=408)),
    ),
    Scenario(
        name="429 of a full queue on create",
        service="Refuses a create because too many tokens of that model are enqueued.",
        run="Keeps the uploaded file, and creates again once something of that model has ended.",
        script=script(
            http("answer", "create", after=1, times=1, status=429, code="token_limit_exceeded", message=QUEUE_FULL),
            batches("stuck", state="in_progress", seconds=0.3, times=1),
        ),
        config={"max_batches": 2},
        least=2,
    ),
    Scenario(
        name="500 on three creates",
        service="Answers the first 3 creates with 500, and creates nothing.",
        run="Doubts each create, finds in the list that it did not happen, and creates again.",
        script=script(http("answer", "create", times=3, status=500)),
        least=3,
    ),
    Scenario(
        name="413 on upload",
        service="Finds one input file too large.",
        run="Cuts its rows into two smaller batches.",
        script=script(http("answer", "upload", times=1, status=413)),
    ),
    Scenario(
        name="400 on create",
        service="Refuses each create with 400 and a code that nobody knows.",
        run="Stops at once: every batch would be refused the same way.",
        script=script(http("answer", "create", status=400, code="invalid_weather", message="It rains.")),
        visits=stopped(
            "The service refuses every batch of this run (The service refused the create of a batch (400 invalid_weather):"
            " It rains.); change the model, the endpoint or the input, and start a new run.",
            2,
        ),
    ),
)

KEYS = (
    Scenario(
        name="401 in the middle of a run",
        service="Refuses the key from the twelfth call on, and tells a part of it.",
        run="Stops, without the key in what it says; with the right key the same command goes on.",
        script=script(
            http(
                "answer",
                "*",
                after=11,
                status=401,
                code="invalid_api_key",
                message=f"Incorrect API key provided: {SECRET}.",
            )
        ),
        visits=stopped(KEY_REFUSED, 2),
    ),
    Scenario(
        name="401 after a key rotation",
        service="Refuses the key that was read at the start; the key file holds another one by now.",
        run="Reads the key again, and goes on with the new one.",
        script=script(http("delay", "*", seconds=0)),
        keys="renewed",
        least=10,
    ),
    Scenario(
        name="401 with a key file that has not changed",
        service="Refuses a key once that is still the one in the key file.",
        run="Stops: the key must be changed first.",
        script=script(http("answer", "*", after=11, times=1, status=401, code="invalid_api_key")),
        visits=stopped(KEY_REFUSED, 2),
        keys="same",
    ),
    Scenario(
        name="401 on downloads",
        service="Lets this key create batches, but not download results.",
        run="Stops; with the right key the same command collects what was bought.",
        script=script(http("answer", "content", status=401, code="invalid_api_key")),
        visits=stopped(KEY_REFUSED, 2),
    ),
    Scenario(
        name="403",
        service="Does not let this key create batches.",
        run="Stops, and says what to check.",
        script=script(http("answer", "create", status=403, code="insufficient_permissions")),
        visits=stopped(
            "The service does not allow this key to go on with the create of a batch (403 insufficient_permissions): …."
            " Check the key's permissions, organisation and project.",
            2,
        ),
    ),
)

UNPAID = (
    (None, "insufficient_quota"),
    ("insufficient_quota", "insufficient_quota"),
    ("credit_balance_exhausted", "insufficient_quota"),
    ("organization_spend_limit_exceeded", "insufficient_quota"),
    ("project_spend_limit_exceeded", "insufficient_quota"),
    ("organization_usage_limit_exceeded", "insufficient_quota"),
    ("billing_hard_limit_reached", "invalid_request_error"),
)
BILLING = tuple(
    Scenario(
        name=f"429 {f'of type {kind}' if code is None else code} on {where}",
        service=f"Takes 2 {where}s, then refuses each for billing reasons.",
        run="Pauses: collects what is in flight and buys no more; no attempt of any row is used up.",
        script=script(http("answer", where, after=2, status=429, code=code, type=kind)),
        visits=(
            Visit(
                state="paused",
                code=4,
                says="The service refuses to take more work for billing reasons (…); settle that there, then run the same"
                " command again.",
                done=20 if where == "create" else None,
            ),
            GOES_ON,
        ),
    )
    for code, kind in UNPAID
    for where in ("upload", "create")
)

SCENARIOS = (*PACE, *BROKEN, *ENDLESS, *KEYS, *BILLING)
