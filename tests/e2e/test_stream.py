"""stream(): every outcome once, in both orders; a slow reader holds the run; leaving early leaves a run to go on with."""

import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
import xxhash

from streambatch import api, streaming
from streambatch.core import events as e
from streambatch.edge.files import RunFiles
from streambatch.edge.locking import RunLock, is_locked
from streambatch.edge.service import Service
from streambatch.errors import ApiError, ConfigError, Paused, SourceError, StreambatchError
from streambatch.outcome import Outcome

pytestmark = pytest.mark.anyio

ROWS = 300


def options(server: Any, tmp_path: Path, **more: Any) -> dict[str, Any]:
    service = Service(base_url=server.url, api_key=server.api_key)
    small = {"max_requests": 20, "poll_interval": 0.05, "workers": 0, "adopt_grace": 0.2, "model": "gpt-4o-mini"}
    return {"service": service, "prompt": "say {{ n }}", "run_dir": tmp_path / "run", **small, **more}


def write_rows(path: Path, rows: int = ROWS) -> str:
    path.write_text("".join(json.dumps({"n": k, "tag": f"tag {k}"}) + "\n" for k in range(rows)))
    return str(path)


def check(outcomes: list[Outcome], rows: int = ROWS, failed: set[int] = frozenset()) -> None:  # type: ignore[assignment]
    """Each row has its one outcome, made of its own prompt, and carries the user's row."""
    assert sorted(o.ordinal for o in outcomes if o.ordinal is not None) == list(range(rows))
    for o in outcomes:
        assert o.ok == (o.ordinal not in failed), o
        if o.ok:
            assert o.row is not None
            assert (o.row["n"], o.row["tag"]) == (o.ordinal, f"tag {o.ordinal}")
            assert str(o.text).startswith(xxhash.xxh3_64_hexdigest(f"say {o.ordinal}".encode()))
            assert o.custom_id == str(o.ordinal)


@pytest.mark.parametrize("order", ["completion", "input"])
async def test_each_outcome_once(tmp_path: Path, server: Any, order: streaming.Order) -> None:
    """Rows that need another try come when they have ended; bad rows and failed ones too."""
    server.set_faults(
        {
            "rows": [
                {"do": "answer", "status": 500, "match": "^1?7$", "times": 1},
                {"do": "answer", "status": 400, "match": "^42$"},
            ]
        }
    )
    source = Path(write_rows(tmp_path / "in.jsonl"))
    source.write_bytes(source.read_bytes() + b"[not a row]\n\n")
    got: list[Outcome] = []
    async with streaming.stream(str(source), order=order, **options(server, tmp_path)) as results:
        async for outcome in results:
            got.append(outcome)
    check(got, ROWS + 1, {42, ROWS})
    assert results.summary is not None
    assert (results.summary.state, results.summary.done, results.summary.failed) == ("finished", ROWS - 1, 2)
    bad = next(o for o in got if o.ordinal == ROWS)
    assert (bad.row, bad.attempts, bad.raw) == (None, 0, b"")
    refused = next(o for o in got if o.ordinal == 42)
    assert refused.row == {"n": 42, "tag": "tag 42"}
    assert refused.raw
    if order == "input":
        assert [o.ordinal for o in got] == list(range(ROWS + 1))
    again = [o async for o in _all(str(source), order=order, **options(server, tmp_path))]
    assert sorted(again, key=_ordinal) == sorted(got, key=_ordinal), "a finished run is handed out again"


async def _all(source: Any, **more: Any) -> Any:
    async with streaming.stream(source, **more) as results:
        async for outcome in results:
            yield outcome


def _ordinal(outcome: Outcome) -> int:
    return -1 if outcome.ordinal is None else outcome.ordinal


@pytest.mark.parametrize("order", ["completion", "input"])
async def test_a_slow_reader_holds_the_run(tmp_path: Path, server: Any, order: streaming.Order) -> None:
    rows, most = 1200, 2
    source = write_rows(tmp_path / "in.jsonl", rows)
    bound = (
        2 * rows // 20 // 3
    )  # a held run stays far below: what waits, what is in flight, what was being fetched or merged
    async with streaming.stream(source, order=order, **options(server, tmp_path, max_batches=most)) as results:
        got = [await anext(results)]
        still = 0
        while still < 10:  # the run has come to rest, or gone on too far
            before = server.ledger()["batches"]
            await anyio.sleep(0.1)
            still = still + 1 if server.ledger()["batches"] == before else 0
            assert server.ledger()["batches"] <= bound
        assert server.ledger()["batches"] < rows // 20
        async for outcome in results:
            got.append(outcome)
    check(got, rows)


async def test_who_leaves_early_leaves_a_run_to_go_on_with(tmp_path: Path, server: Any) -> None:
    source = write_rows(tmp_path / "in.jsonl")
    given = options(server, tmp_path, max_batches=3)
    async with streaming.stream(source, **given) as results:
        async for outcome in results:
            assert outcome.ok
            break
    assert not is_locked(str(tmp_path / "run"))
    look = api.status(tmp_path / "run")
    assert (look.state, look.running) == ("stopped", False)
    batches = server.ledger()["batches"]
    assert batches < ROWS // 20, "leaving stops submitting"
    got = [o async for o in _all(source, **given)]
    check(got)
    ledger = server.ledger()
    assert (ledger["rows_executed"], ledger["rows_executed_again"]) == (ROWS, 0)


async def test_the_readers_own_failure_is_the_readers(tmp_path: Path, server: Any) -> None:
    source = write_rows(tmp_path / "in.jsonl")

    async def read() -> None:
        async with streaming.stream(source, **options(server, tmp_path)) as results:
            async for outcome in results:
                raise LookupError(outcome.custom_id)

    with pytest.raises(LookupError):
        await read()
    assert not is_locked(str(tmp_path / "run"))


async def test_what_stops_the_run_is_raised_to_the_reader(tmp_path: Path, server: Any) -> None:
    source = write_rows(tmp_path / "in.jsonl")
    wrong = options(server, tmp_path) | {"service": Service(base_url=server.url, api_key="wrong")}
    with pytest.raises((ApiError, ConfigError), match="key"):
        async with streaming.stream(source, **wrong) as results:
            await anext(results)


async def test_a_paused_run_hands_out_what_it_has_then_says_so(tmp_path: Path, server: Any) -> None:
    source = write_rows(tmp_path / "in.jsonl")
    heard: list[Any] = []

    def listen(notice: Any) -> None:
        heard.append(notice)
        if isinstance(notice, e.Settled) and sum(isinstance(n, e.Settled) for n in heard) == 1:
            server.set_faults(
                {
                    "http": [
                        {
                            "do": "answer",
                            "on": ["create"],
                            "status": 429,
                            "code": "insufficient_quota",
                            "type": "insufficient_quota",
                        }
                    ]
                }
            )

    got: list[Outcome] = []

    async def read() -> None:
        async with streaming.stream(source, on_event=listen, **options(server, tmp_path, max_batches=2)) as results:
            async for outcome in results:
                got.append(outcome)

    with pytest.raises(Paused, match="quota"):
        await read()
    assert 20 <= len(got) < ROWS
    server.set_faults(None)
    got = [o async for o in _all(source, **options(server, tmp_path))]
    check(got)
    assert server.ledger()["rows_executed_again"] == 0


async def test_a_temporary_run_directory_is_removed_when_all_was_handed_out(tmp_path: Path, server: Any) -> None:
    source = write_rows(tmp_path / "in.jsonl", 40)
    given = options(server, tmp_path)
    del given["run_dir"]
    async with streaming.stream(source, **given) as results:
        assert Path(results.run_dir).is_dir()
        got = [outcome async for outcome in results]
    check(got, 40)
    assert not Path(results.run_dir).exists()


async def test_a_run_whose_rows_left_the_spool_is_refused(tmp_path: Path, server: Any) -> None:
    source = write_rows(tmp_path / "in.jsonl", 40)
    given = options(server, tmp_path)
    await api.run(source, tmp_path / "run" / "output.jsonl", emit="results", **_made(given, tmp_path))
    with pytest.raises(ConfigError, match="keep_spool"):
        [o async for o in _all(source, **given)]


def _made(given: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "run").mkdir()
    return given


@pytest.mark.parametrize("name", ["emit", "column", "if_exists", "output"])
async def test_options_of_an_output_are_refused(tmp_path: Path, server: Any, name: str) -> None:
    with pytest.raises(StreambatchError, match=name):
        async with streaming.stream("in.jsonl", **options(server, tmp_path, **{name: "rows"})):
            pass


async def test_an_order_that_is_none_is_refused(tmp_path: Path, server: Any) -> None:
    with pytest.raises(StreambatchError, match="order: 'sideways' is none of completion, input"):
        async with streaming.stream("in.jsonl", order="sideways", **options(server, tmp_path)):  # type: ignore[arg-type]
            pass


# -- rows of a program


class Counted:
    """Rows, and how many of them were taken."""

    def __init__(self, rows: int) -> None:
        self.taken = 0
        self._rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for k in range(self._rows):
            self.taken += 1
            yield {"n": k, "tag": f"tag {k}", "long": "x" * 4000}

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        for row in self:
            yield row


class OnlyAsync:
    def __init__(self, rows: Counted) -> None:
        self._rows = rows

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self._rows.__aiter__()


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_rows_are_taken_as_they_are_needed_and_given_again_to_go_on(
    tmp_path: Path, server: Any, kind: str
) -> None:
    """Who stops reading stops the taking; the same rows again go on, and nothing is bought twice."""
    rows = 3000  # they are taken by blocks of half a MiB

    def source(counted: Counted) -> Any:
        return OnlyAsync(counted) if kind == "async" else counted

    given = options(server, tmp_path, max_batches=2)
    first = Counted(rows)
    async with streaming.stream(source(first), **given) as results:
        async for outcome in results:
            assert outcome.row is not None
            if outcome.ordinal == 30:
                break
    assert first.taken < rows, "the rows were taken without need"
    got = [o async for o in _all(source(Counted(rows)), **options(server, tmp_path))]
    check(got, rows)
    ledger = server.ledger()
    assert (ledger["rows_executed"], ledger["rows_executed_again"]) == (rows, 0)


# -- readers and others in the way


async def _rest(got: list[Outcome], results: streaming.Results) -> None:
    async for outcome in results:
        got.append(outcome)


async def _into(got: list[Outcome], stream: Any) -> None:
    async with stream as results:
        await _rest(got, results)


@pytest.mark.parametrize("order", ["completion", "input"])
async def test_a_reader_with_time_outs_loses_nothing(tmp_path: Path, server: Any, order: streaming.Order) -> None:
    """A wait that is cut short, at whatever moment, leaves its outcomes to the next one, and holds no place of the brake."""
    rows = 1000  # more units than may wait
    source = write_rows(tmp_path / "in.jsonl", rows)
    got: list[Outcome] = []
    cut = 0
    async with streaming.stream(source, order=order, **options(server, tmp_path)) as results:
        while True:
            with anyio.move_on_after(0.0002 * (cut % 9)) as wait:
                try:
                    got.append(await anext(results))
                except StopAsyncIteration:
                    break
            cut += wait.cancelled_caught
    check(got, rows)
    assert cut > 10
    assert results.complete


async def test_cancel_keeps_what_a_stream_hands_out(tmp_path: Path, server: Any) -> None:
    """`cancel` works on a stream's run as the stream does: what is merged stays, and nothing is bought twice."""
    source = write_rows(tmp_path / "in.jsonl")
    given = options(server, tmp_path, max_batches=2)
    async with streaming.stream(source, order="input", **given) as results:
        assert (await anext(results)).ordinal == 0
    summary = await api.cancel(tmp_path / "run", service=given["service"])
    assert summary.state == "cancelled"
    check([o async for o in _all(source, **given)])
    assert server.ledger()["rows_executed_again"] == 0


async def test_cancel_does_not_wait_for_the_reader_of_a_held_run(tmp_path: Path, server: Any) -> None:
    source = write_rows(tmp_path / "in.jsonl", 1000)
    given = options(server, tmp_path)
    async with streaming.stream(source, **given) as results:
        got = [await anext(results)]
        with anyio.fail_after(20):
            while api.status(tmp_path / "run").progress.done < 160:  # noqa: ASYNC110 - what eight shards hold
                await anyio.sleep(0.05)
            summary = await api.cancel(tmp_path / "run", service=given["service"])
        assert summary.in_flight == 0
        with pytest.raises(Paused, match="cancelled"):
            await _rest(got, results)
    assert len({o.ordinal for o in got}) == len(got) == server.ledger()["rows_executed"]


async def test_a_temporary_run_directory_in_which_nothing_was_begun_is_removed(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    given = options(server, tmp_path)
    del given["run_dir"]
    with pytest.raises(SourceError):
        await _into([], streaming.stream(str(tmp_path / "nothing.jsonl"), **given))
    with pytest.raises(ConfigError):
        async with streaming.stream(write_rows(tmp_path / "in.jsonl"), **given, max_bytes=10**12):
            pass
    assert list((tmp_path / "temporary").iterdir()) == []


async def test_rows_before_one_that_can_not_be_read_come_first(tmp_path: Path, server: Any) -> None:
    """And who goes on after the failure is told again: the others have not been handed out."""
    source = Path(write_rows(tmp_path / "in.jsonl", 40))
    given = options(server, tmp_path)
    check([o async for o in _all(str(source), **given)], 40)
    kept = source.stat()
    source.write_bytes(source.read_bytes().replace(b"tag 15", b"TAG 15"))
    os.utime(source, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    got: list[Outcome] = []
    async with streaming.stream(str(source), order="input", **given) as results:
        with pytest.raises(SourceError, match="changed"):
            await _rest(got, results)
        with pytest.raises(SourceError, match="changed"):
            await anext(results)
        assert not results.complete
    assert len(got) == 20


# -- used otherwise than meant


async def test_a_stream_that_is_not_entered_or_entered_twice(tmp_path: Path, server: Any) -> None:
    one = streaming.stream([{"n": 0}], **options(server, tmp_path))
    with pytest.raises(ConfigError, match="async with stream"):
        aiter(one)
    async with one as results:
        assert [outcome.ok async for outcome in results] == [True]
    with pytest.raises(ConfigError, match=r"call stream.. again"):
        async with one:
            raise AssertionError


async def test_two_visits_of_one_process_to_one_run(tmp_path: Path, server: Any) -> None:
    given = options(server, tmp_path)
    files = RunFiles(str(given["run_dir"]))
    files.create()
    lock = RunLock(files)
    lock.acquire()
    try:
        async with streaming.stream([{"n": 0}], **given) as results:
            with pytest.raises(ConfigError, match=r"This process has the run in .* already, in another call"):
                await anext(results)
    finally:
        lock.release()


def test_a_stream_under_another_loop() -> None:
    async def main() -> None:
        async with streaming.stream([{"n": 0}]):
            raise AssertionError

    with pytest.raises(ConfigError, match=r"call stream.. under asyncio, or run_sync"):
        trio.run(main)
