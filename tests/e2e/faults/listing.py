"""What the list and the look-ups show of our batches, or hide."""

import json

from tests.e2e.faults.calls import GOES_ON
from tests.e2e.faults.connections import ADOPTS
from tests.e2e.faults.scenario import Scenario, Visit, batches, http, script

TITLE = "The list and the look-ups"
LOST_CREATE = http("act_and_drop", "create", times=1)
UNKNOWN_BATCH = (
    "The service at … no longer knows batch …, which runs … rows of shard …; they may have been paid: nothing is bought again"
    " without your word: --accept-gone error, or --accept-gone rebuy."
)
NAMELESS = (
    "The service's list shows a batch of this run without saying its id, so what it runs can't be collected; nothing more is"
    " bought without your word: --accept-gone error,"
    " or --accept-gone rebuy."
)
ENDLESS = (
    "The service's list does not go on behind its first pages, so a batch further back can't be told from one that was never"
    " created; nothing more is bought without your word: --accept-gone error,"
    " or --accept-gone rebuy."
)
SAME_PAGE = json.dumps(
    {
        "object": "list",
        "data": [
            {
                "id": "batch_x", "object": "batch", "status": "completed", "created_at": 4_000_000_000, "input_file_id": "file-x",
                "metadata": {"job": "nightly"},
            }
        ],
        "has_more": True,
        "last_id": "batch_x",
    }
)  # fmt: skip
UNKNOWABLE = (
    "The service's list shows batches without metadata and without input file, so a batch that hides can't be told from one"
    " that was never created; nothing more is bought without your word: --accept-gone error,"
    " or --accept-gone rebuy."
)

SCENARIOS = (
    Scenario(
        name="a list that lags",
        service="Shows each batch in the list only 0.4 s after its creation.",
        run="Looks batches up by id that no page shows.",
        script=script(batches("hide", seconds=0.4)),
    ),
    Scenario(
        name="a lost create and a list that lags",
        service="Loses the answer of a create, and shows that batch only 0.4 s later.",
        run="Searches until the grace (2 minutes) is over, and adopts the batch; nothing is bought twice.",
        script=script(batches("hide", seconds=0.4), LOST_CREATE),
        config={"adopt_grace_s": 0.8},
    ),
    Scenario(
        name="404 for a batch that exists, for a while",
        service="Denies each batch for 0.4 s, in the list and by id.",
        run="Gives a young batch the grace to appear.",
        script=script(batches("hide", seconds=0.4, by_id=True)),
        config={"adopt_grace_s": 0.8},
    ),
    Scenario(
        name="404 for a batch that exists, now and then",
        service="Answers 3 look-ups of a batch with 404.",
        run="Looks again.",
        script=script(http("answer", "retrieve", times=3, status=404, code="not_found")),
        least=3,
    ),
    Scenario(
        name="404 for a batch that exists, for ever",
        service="Answers every look-up of a batch with 404.",
        run="Pauses: what may have been paid is not bought again. The same command goes on once the batch shows.",
        script=script(http("answer", "retrieve", status=404, code="not_found")),
        visits=(Visit(state="paused", code=4, says=UNKNOWN_BATCH, done=0), GOES_ON),
        least=5,
    ),
    Scenario(
        name="a list without metadata",
        service="Shows no metadata, and loses the answer of a create.",
        run="Knows the batch by its input file, and adopts it.",
        script=script(batches("view", set={"metadata": None}), LOST_CREATE),
    ),
    Scenario(
        name="a list without metadata and input files",
        service="Shows neither metadata nor input file of any batch, and loses the answer of a create.",
        run="Pauses: absence from such a list proves nothing. What is known to run is collected.",
        script=script(batches("view", set={"metadata": None}, drop=["input_file_id"]), LOST_CREATE),
        config={"adopt_grace_s": 1.0},  # time enough for all others to be created
        visits=(
            Visit(state="paused", code=4, says=UNKNOWABLE, done=30),
            Visit(state="paused", code=4, says=UNKNOWABLE, done=30, mend=True),
        ),
        executed=40,
    ),
    Scenario(
        name="a lost create, and its batch has no id",
        service="Loses the answer of a create, and shows that batch without an id.",
        run="Pauses: it can't be followed, and may have been paid. What is known to run is collected.",
        script=script(batches("view", set={"id": None}, times=1), LOST_CREATE),
        config={"adopt_grace_s": 1.0},  # time enough for all others to be created
        visits=(
            Visit(state="paused", code=4, says=NAMELESS, done=30),
            Visit(state="paused", code=4, says=NAMELESS, done=30, mend=True),
        ),
        executed=40,
        least=2,
    ),
    Scenario(
        name="a list that does not go on",
        service="Answers every page of the list with the same batch and `has_more`, and loses the answer of a create.",
        run="Pauses: absence from such a list proves nothing. What is known to run is collected.",
        script=script(LOST_CREATE, http("answer", "list", after=2, status=200, body=SAME_PAGE)),
        config={"adopt_grace_s": 1.0},  # time enough for all others to be created
        visits=(Visit(state="paused", code=4, says=ENDLESS, done=30), GOES_ON),
        least=2,
    ),
    Scenario(
        name="a list full of other people's batches",
        service="Puts 250 batches of other people before ours, and loses the answer of a create.",
        run="Reads on, page by page, until it finds its own. " + ADOPTS,
        script=script(LOST_CREATE, http("delay", "list", seconds=0), foreign=250),
        least=5,
    ),
)
