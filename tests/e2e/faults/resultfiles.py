"""Result files and input files: late, gone, of another length than told, or not quite whole."""

from streambatch.core.models import ShardLimits
from tests.e2e.faults.calls import GOES_ON
from tests.e2e.faults.scenario import Scenario, Visit, batches, http, script

TITLE = "Files"
GONE = (
    "The service no longer has the result file … of batch …: 10 rows of shard … were paid and are gone there; nothing is bought"
    " again without your word: --accept-gone error, or --accept-gone rebuy."
)
PAUSES = "Pauses: paid results are not bought again unasked. All others are collected."

SCENARIOS = (
    Scenario(
        name="files without a final newline",
        service="Ends every result file without a newline.",
        run="Takes the last line all the same.",
        script=script(batches("no_final_newline")),
        least=4,
    ),
    Scenario(
        name="an empty error file",
        service="Has an error file of no bytes for every batch.",
        run="Reads it.",
        script=script(batches("empty_error_file")),
        least=4,
    ),
    Scenario(
        name="`bytes` that is wrong by one",
        service="Tells one byte more than 2 files have.",
        run="Downloads them twice; what is the same length twice is taken.",
        script=script(batches("wrong_bytes", times=2)),
        least=2,
    ),
    Scenario(
        name="`bytes` that is too low",
        service="Tells 1,000 bytes less than 2 files have.",
        run="Downloads them twice; what is the same length twice is taken.",
        script=script(batches("wrong_bytes", off=-1000, times=2)),
        least=2,
    ),
    Scenario(
        name="`bytes` that is absent",
        service="Tells nothing of a file but its id.",
        run="Downloads it twice; what is the same length twice is taken.",
        script=script(http("answer", "file", status=200, body='{"id": "file-x"}')),
        least=4,
    ),
    Scenario(
        name="an error file that nobody knows",
        service="Names an error file that it does not have.",
        run=PAUSES,
        script=script(batches("view", set={"error_file_id": "file-nobodys"}, terminal_only=True, times=1)),
        visits=(
            Visit(state="paused", code=4, says=GONE, done=30),
            Visit(state="paused", code=4, says=GONE, done=30, mend=True),
        ),
    ),
    Scenario(
        name="a page of a proxy instead of a result file",
        service="Answers a download twice with 200 and an HTML page; the batch counts 20 rows, the page holds none.",
        run="Reads the batch and its files again before it believes that so many rows are lost.",
        script=script(http("answer", "content", times=2, status=200, body="<html>Log in</html>")),
        config={"limits": ShardLimits(max_requests=20), "max_transfers": 1, "adopt_grace_s": 0.1},
        least=2,
    ),
    Scenario(
        name="a result file that is cut at byte N, twice",
        service="Sends 2,000 bytes of one result file as if they were all, at the first 2 downloads.",
        run="Takes it after the second time; then reads it again, because the batch counts more rows than it holds.",
        script=script(http("short", "content", at=2_000, times=2)),
        config={"max_transfers": 1},
        least=2,
    ),
    Scenario(
        name="a result file that is always cut at byte N",
        service="Sends 2,000 bytes of one result file as if they were all, each time it is asked for.",
        run="Reads it again three times. The rows that are not in it are few: they are sent again, reported as possibly billed.",
        script=script(http("short", "content", at=2_000, times=8)),
        config={"max_transfers": 1, "max_batches": 1},
        again=8,
        billed=8,
        least=8,
    ),
    Scenario(
        name="`completed` before its files are visible",
        service="Answers 404 for the files of 2 batches, for 0.3 s after their end.",
        run="Asks again for a while.",
        script=script(batches("late_files", seconds=0.3, times=2)),
        config={"adopt_grace_s": 2.0},
        least=2,
    ),
    Scenario(
        name="404 for a result file, once",
        service="Answers a download with 404.",
        run="Asks again for a while.",
        script=script(http("answer", "content", times=1, status=404, code="not_found")),
        config={"adopt_grace_s": 2.0},
    ),
    Scenario(
        name="404 for result files that are there",
        service="Answers every download with 404.",
        run=f"{PAUSES} The same command goes on once they show.",
        script=script(http("answer", "content", status=404, code="not_found")),
        visits=(Visit(state="paused", code=4, says=GONE, done=0), GOES_ON),
    ),
    Scenario(
        name="result files that never come",
        service="Completes a batch, and answers 404 for its file for ever.",
        run=PAUSES,
        script=script(batches("late_files", times=1)),
        visits=(
            Visit(state="paused", code=4, says=GONE, done=30),
            Visit(state="paused", code=4, says=GONE, done=30, mend=True),
        ),
    ),
    Scenario(
        name="result files gone early",
        service="Deletes the result file of a batch at its end.",
        run=PAUSES,
        script=script(batches("files_gone", times=1)),
        visits=(
            Visit(state="paused", code=4, says=GONE, done=30),
            Visit(state="paused", code=4, says=GONE, done=30, mend=True),
        ),
    ),
    Scenario(
        name="an input file gone early",
        service="Loses the input file of 2 batches before it is read: both fail.",
        run="Uploads the files again, which costs nothing.",
        script=script(batches("files_gone", input=True, times=2)),
        least=2,
    ),
    Scenario(
        name="an input file gone while its batch runs",
        service="Loses the input file of 2 batches after it was read.",
        run="Collects the results.",
        script=script(
            batches("files_gone", input=True, seconds=0.2, times=2),
            batches("stuck", state="finalizing", seconds=0.3, times=2),
        ),
        least=4,
    ),
)
