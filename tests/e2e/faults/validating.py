"""Batches that fail at validation: each code that is known, with and without a line, and codes that nobody knows."""

from tests.e2e.faults.calls import GOES_ON
from tests.e2e.faults.scenario import TOO_MANY, Ended, Scenario, Visit, batches, script

TITLE = "Failures at validation"
MODEL_REFUSED = (
    "The service refuses every batch of this run (model_not_found: The provided model 'gpt-4o-mini' is not supported by the Batch"
    " API.); change the model, the endpoint or the input, and start a new run."
)
CANNOT_FIND = "Cannot find file file-x, or organization org-x does not have access to it."
REQUESTS_FULL = (
    "Enqueued request limit reached for text-embedding-3-small in organization org-x. Limit: 1,000,000 enqueued requests. Please"
    " try again once some in_progress batches have been completed."
)

ROW_CODES = (
    ("invalid_json_line", None),
    ("missing_required_parameter", "custom_id"),
    ("missing_required_parameter", "method"),
    ("missing_required_parameter", "url"),
    ("missing_required_parameter", "body"),
    ("invalid_request", "body.model"),
    ("invalid_request", "body.messages"),
    ("streaming_unsupported", "body.stream"),
    ("duplicate_custom_id", "custom_id"),
    ("never_heard_of", None),
)


def _code(code: str, param: str | None) -> str:
    return f"`{code}`" if param is None else f"`{code}` ({param})"


NAMED = tuple(
    Scenario(
        name=f"{_code(code, param)} with a line number",
        service="Fails a batch for its fourth line.",
        run="That row ends in an error; the other nine go out again. None of them was executed.",
        script=script(batches("fail", code=code, param=param, line=4, times=1)),
        visits=(Visit(code=6, says=TOO_MANY, done=39),),
        failed=(Ended("refused", f"{code}: …", 1),),
        executed=39,
    )
    for code, param in ROW_CODES
)
UNNAMED = tuple(
    Scenario(
        name=f"{_code(code, param)} without a line number",
        service="Fails a batch, and does not say for which line.",
        run="Sends its rows again in two smaller batches.",
        script=script(batches("fail", code=code, param=param, times=1)),
    )
    for code, param in (("invalid_json_line", None), ("invalid_request", "body.messages"), ("too_many_tasks", None))
)
ONE_BAD_ROW = (
    Scenario(
        name="one bad line that is never named",
        service="Fails every batch that the run makes, and names no line.",
        run="Halves down to single rows; each that is still refused ends in an error.",
        script=script(batches("fail", code="invalid_json_line")),
        visits=(Visit(code=6, says=TOO_MANY, done=0),),
        failed=(Ended("refused", "invalid_json_line: …", 4),),
        rows=4,
        executed=0,
    ),
)

RUN_CODES = (
    "model_not_found",
    "invalid_url",
    "invalid_method",
    "mismatched_model",
    "empty_file",
    "url_mismatch",
    "model_mismatch",
    "input_no_permissions",
)
HALTED = tuple(
    Scenario(
        name=f"`{code}`",
        service="Fails every batch with a code that is about all of them.",
        run="Stops at once; nothing was executed.",
        script=script(batches("fail", code=code, line=1 if code != "empty_file" else None)),
        config={"max_batches": 1},
        visits=(
            Visit(
                state="error",
                code=2,
                says=f"The service refuses every batch of this run ({code}: …); change the model, the endpoint or the input,"
                " and start a new run.",
                done=0,
            ),
            GOES_ON,
        ),
    )
    for code in RUN_CODES
)
UNKNOWN_MODEL = (
    Scenario(
        name="a model that the service does not have",
        service="Knows other models only.",
        run="Stops at once; nothing was executed.",
        script=script(models=["gpt-4o"]),
        config={"max_batches": 1},
        visits=(
            Visit(
                state="error",
                code=2,
                says=MODEL_REFUSED,
                done=0,
            ),
            GOES_ON,
        ),
        least=0,
    ),
)

LEFT_BEHIND = (
    Scenario(
        name="refusals that an earlier visit left behind",
        service="Does not know the model, and says so of four batches, of three of them a little later.",
        run="Stops at the first; the same command, once the model is there, is not stopped by the other three.",
        script=script(
            batches("fail", code="model_not_found"),
            batches("stuck", state="validating", seconds=0.2, times=1),
            batches("stuck", state="validating", seconds=0.6, after=1),
        ),
        visits=(
            Visit(state="error", code=2, says=MODEL_REFUSED, done=0),
            GOES_ON,
        ),
        least=3,
    ),
)

LASTING = batches("stuck", state="in_progress", seconds=0.3, times=1)  # its end is what the refused one waits for
LATER = (
    Scenario(
        name="`token_limit_exceeded`",
        service="Fails a batch because the queue of the model is full.",
        run="Keeps the uploaded file, and creates again once something of that model has ended.",
        script=script(batches("fail", code="token_limit_exceeded", after=1, times=1), LASTING),
        least=2,
        config={"max_batches": 2},
    ),
    Scenario(
        name="a full queue of requests, with a code that nobody knows",
        service="Fails a batch of embeddings because too many requests are enqueued.",
        run="Goes by the words, and creates again once something of that model has ended.",
        script=script(batches("fail", code="unconfirmed", message=REQUESTS_FULL, after=1, times=1), LASTING),
        least=2,
        config={"max_batches": 2},
    ),
    Scenario(
        name="an unknown code with “try again”",
        service="Fails a batch, and asks to try again later.",
        run="Creates again once something of that model has ended.",
        script=script(batches("fail", code="odd", message="Please try again later.", after=1, times=1), LASTING),
        least=2,
        config={"max_batches": 2},
    ),
    Scenario(
        name="the input file can't be found",
        service="Fails a batch because it can't find the file that was just uploaded.",
        run="Uploads the file again, which costs nothing.",
        script=script(batches("fail", code="invalid_request", param="file_id", message=CANNOT_FIND, times=1)),
    ),
    Scenario(
        name="`input_modified`",
        service="Fails a batch because its input file changed.",
        run="Uploads the file again, which costs nothing.",
        script=script(batches("fail", code="input_modified", times=1)),
    ),
    Scenario(
        name="`billing_hard_limit_reached` at validation",
        service="Takes 2 batches, then fails each for billing reasons.",
        run="Pauses: collects what is in flight and buys no more; no attempt of any row is used up.",
        script=script(batches("fail", code="billing_hard_limit_reached", after=2)),
        visits=(
            Visit(
                state="paused",
                code=4,
                says="The service refuses to take more work for billing reasons (billing_hard_limit_reached: Billing hard limit"
                " has been reached); settle that there, then run the same command again.",
                done=20,
            ),
            GOES_ON,
        ),
    ),
)

SCENARIOS = (*NAMED, *UNNAMED, *ONE_BAD_ROW, *HALTED, *UNKNOWN_MODEL, *LEFT_BEHIND, *LATER)
