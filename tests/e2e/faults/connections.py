"""Connections that break, stall or crawl, in both directions; answers that are no JSON, or never come."""

from typing import Any

from tests.e2e.faults.calls import EVERYWHERE, GOES_ON, RETRIES
from tests.e2e.faults.scenario import Scenario, Visit, http, script

TITLE = "Connections and answers that break"
LARGE: dict[str, Any] = {"rows": 4, "extra_bytes": 3 << 20}  # a shard of 12 MiB: more than buffers between sockets hold
DOUBTS = "Doubts the create, looks for the batch in the list, and"
ADOPTS = f"{DOUBTS} adopts it; nothing is bought twice."

DROPPED = (
    Scenario(
        name="connections dropped before acting",
        service="Closes 8 connections without an answer, before anything is done.",
        run=f"{RETRIES} {DOUBTS} creates again once it is proven absent.",
        script=script(http("drop", *EVERYWHERE, times=8)),
        least=8,
    ),
    Scenario(
        name="creates that are all dropped",
        service="Closes the connection of every create.",
        run="After three creates of a shard without an answer it stops; the same command goes on.",
        script=script(http("drop", "create")),
        visits=(
            Visit(
                state="stopped",
                code=3,
                says="The service left 3 creates of shard … without an answer; run the same command again when it answers.",
            ),
            GOES_ON,
        ),
        config={"adopt_grace_s": 0.1},
    ),
    Scenario(
        name="uploads cut in the middle",
        service="Reads 700 bytes of 2 uploads, then closes the connection.",
        run=RETRIES,
        script=script(http("cut", "upload", times=2, at=700)),
        least=2,
    ),
    Scenario(
        name="downloads cut at byte N",
        service="Closes 3 downloads after 700 bytes of what it promised.",
        run="Compares the length with what was promised, and downloads again.",
        script=script(http("cut", "content", times=3, at=700)),
        least=3,
    ),
    Scenario(
        name="a download that ends early, as if whole",
        service="Sends 700 bytes of a result file once, as if they were all.",
        run="Compares the length with the file's `bytes`, and downloads again.",
        script=script(http("short", "content", times=1, at=700)),
    ),
)

STALLED = (
    Scenario(
        name="an upload that the service stops reading",
        service="Reads 100,000 bytes of a 12 MiB upload, then nothing more, the connection open.",
        run="Gives up on a service that takes nothing for a minute, and uploads again.",
        script=script(http("hang", "upload", times=1, at=100_000)),
        stall_s=0.5,
        **LARGE,
    ),
    Scenario(
        name="an upload that stalls for a while",
        service="Stops reading an upload for 0.3 s.",
        run="Waits.",
        script=script(http("hang", "upload", times=1, at=100, seconds=0.3)),
    ),
    Scenario(
        name="uploads that are read slowly",
        service="Reads 2 uploads at 20,000 bytes a second.",
        run="Waits as long as bytes move.",
        script=script(http("slow", "upload", times=2, bytes_per_s=20_000)),
        stall_s=2.0,
        least=2,
    ),
    Scenario(
        name="a download that stalls",
        service="Sends 700 bytes of a result file, then nothing more, the connection open.",
        run="Gives up on a service that sends nothing for a minute, and downloads again.",
        script=script(http("hang", "content", times=1, at=700)),
        stall_s=0.3,
    ),
    Scenario(
        name="a download that stalls for a while",
        service="Stops sending a result file for 0.3 s.",
        run="Waits.",
        script=script(http("hang", "content", times=1, at=700, seconds=0.3)),
    ),
    Scenario(
        name="slow downloads",
        service="Sends 2 result files at 20,000 bytes a second.",
        run="Waits as long as bytes move.",
        script=script(http("slow", "content", times=2, bytes_per_s=20_000)),
        stall_s=2.0,
        least=2,
    ),
    Scenario(
        name="calls that hang",
        service="Does nothing with 3 calls, their connections open.",
        run=RETRIES,
        script=script(http("hang", "list", "retrieve", times=3)),
        stall_s=0.2,
        least=3,
    ),
    Scenario(
        name="a create that hangs",
        service="Does nothing with a create, the connection open.",
        run=f"{DOUBTS} creates again once it is proven absent.",
        script=script(http("hang", "create", times=1)),
        stall_s=0.2,
    ),
    Scenario(
        name="answers that are slow",
        service="Waits 0.2 s before it acts on 6 calls.",
        run="Waits.",
        script=script(http("delay", *EVERYWHERE, times=6, seconds=0.2)),
        least=6,
    ),
    Scenario(
        name="answers that come late",
        service="Acts on 4 calls, and answers 0.2 s later.",
        run="Waits.",
        script=script(http("late", *EVERYWHERE, times=4, seconds=0.2)),
        least=4,
    ),
    Scenario(
        name="a create whose answer never comes",
        service="Creates a batch, and never answers.",
        run=ADOPTS,
        script=script(http("late", "create", times=1)),
        stall_s=0.3,
    ),
)

GARBLED = (
    Scenario(
        name="malformed JSON of a list or a look-up",
        service="Answers 4 lists and look-ups with half of the JSON.",
        run=RETRIES,
        script=script(http("garble", "list", "retrieve", times=4)),
        least=4,
    ),
    Scenario(
        name="malformed JSON of a create",
        service="Creates 2 batches, and answers with half of the JSON.",
        run=ADOPTS,
        script=script(http("garble", "create", times=2)),
        least=2,
    ),
    Scenario(
        name="malformed JSON of an upload",
        service="Takes 2 files, and answers with half of the JSON.",
        run="Uploads again, which costs nothing.",
        script=script(http("garble", "upload", times=2)),
        least=2,
    ),
    Scenario(
        name="a page of a proxy instead of JSON",
        service="Answers 4 calls with 200 and an HTML page.",
        run=f"{RETRIES} {DOUBTS} creates again once it is proven absent.",
        script=script(http("answer", "create", "list", "retrieve", times=4, status=200, body="<html>Hello</html>")),
        least=4,
    ),
)

LOST = (
    Scenario(
        name="lost answers of uploads",
        service="Takes 3 files, and closes the connection without an answer.",
        run="Uploads again, which costs nothing.",
        script=script(http("act_and_drop", "upload", times=3)),
        least=3,
    ),
    Scenario(
        name="lost answers of creates",
        service="Creates 2 batches, and closes the connection without an answer.",
        run=ADOPTS,
        script=script(http("act_and_drop", "create", times=2)),
        least=2,
    ),
)

SCENARIOS = (*DROPPED, *STALLED, *GARBLED, *LOST)
