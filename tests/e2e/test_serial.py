"""Serial sources end to end: gzip, stdin and rows of a program give the very bytes of the plain file, also after a stop."""

import gzip
import json
import random
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from streambatch.config import Config
from streambatch.core import events as e
from streambatch.core.models import ShardLimits
from streambatch.core.report import Progress
from streambatch.core.shaping import Asked
from streambatch.edge import feeds, serial
from streambatch.errors import ConfigError, SourceError
from tests.e2e import rig
from tests.e2e.test_resume import Striker, Struck
from tests.e2e.test_resume import striker as striker
from tests.twins.clock import VirtualClock
from tests.twins.world import Weather, simulate, visit, world
from tests.twins.world import config as twin_config

pytestmark = pytest.mark.anyio
PLAIN = Asked(model="gpt-4o-mini", prompt="Say {{ name }}", params=(("max_tokens", "9"),))


def pack(path: Path, data: bytes, member: int = 0) -> Path:
    """A gzip file; with `member`, in members of so many bytes."""
    size = member if member else max(1, len(data))
    path.write_bytes(b"".join(gzip.compress(data[k : k + size], 1) for k in range(0, max(1, len(data)), size)))
    return path


def lines(rows: int) -> list[bytes]:
    return [rig.request_line(k) for k in range(rows)]


async def plain_output(tmp: Path, server: Any, data: bytes, **changes: Any) -> tuple[bytes, bytes]:
    """What the plain file gives: OUTPUT and errors, of which only the file's name may differ."""
    source = tmp / "plain.jsonl"
    source.write_bytes(data)
    config = rig.config(tmp, [source], server.url, server.api_key, output=tmp / "plain.out", **changes)
    await rig.run(config)
    errors = Path(f"{config.output}.errors").read_bytes().replace(str(source).encode(), b"NAME")
    return Path(config.output).read_bytes(), errors


def output_of(config: Config, name: str) -> tuple[bytes, bytes]:
    errors = Path(f"{config.output}.errors").read_bytes().replace(name.encode(), b"NAME")
    return Path(config.output).read_bytes(), errors


# -- ways to give the same bytes


class Given:
    """One kind of source, given as often as a test wants to."""

    def __init__(self, kind: str, tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kind = kind
        self._tmp = tmp
        self._monkeypatch = monkeypatch
        self.name = {"gzip": str(tmp / "in.gz"), "stdin": "stdin"}.get(kind, "rows")

    def __call__(self, config: Config, data: bytes, terminal: bool = False) -> Config:
        if self.kind == "gzip":
            path = self._tmp / "in.gz"
            pack(path, data, 700)
            return msgspec.structs.replace(config, inputs=(str(path),))
        if self.kind == "stdin":
            self._monkeypatch.setattr(serial, "StdinBlocks", lambda: Fed(data))
            self._monkeypatch.setattr("streambatch.engine.replaying.at_terminal", lambda: terminal)
            return msgspec.structs.replace(config, inputs=("-",))
        rows = [*data.split(b"\n")[:-1], *([rest] if (rest := data.split(b"\n")[-1]) else [])]
        given: Any = iter(rows) if self.kind == "rows" else drip(rows)
        return msgspec.structs.replace(config, inputs=(), rows=given)


class Fed:
    """Blocks of a pipe, of any size."""

    def __init__(self, data: bytes) -> None:
        self._blocks = iter([data[k : k + 333] for k in range(0, len(data), 333)])

    def read(self) -> bytes:
        return next(self._blocks, b"")

    async def fetch(self, blocking: Any) -> bytes:
        return self.read()

    def close(self) -> None:
        """Nothing to close."""


async def drip(rows: Iterable[Any]) -> AsyncIterator[Any]:
    for row in rows:
        yield row


@pytest.fixture(params=["gzip", "stdin", "rows", "async"])
def given(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    return Given(request.param, tmp_path, monkeypatch)


@pytest.fixture(params=["stdin", "rows", "async"])
def stream(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    return Given(request.param, tmp_path, monkeypatch)


# -- the same bytes


async def test_ready_made_requests_give_the_output_of_the_plain_file(tmp_path: Path, server: Any, given: Given) -> None:
    data = b"".join(lines(47))
    wanted = await plain_output(tmp_path, server, data)
    config = given(rig.config(tmp_path, [], server.url, server.api_key), data)
    summary = await rig.run(config)
    assert (summary.state, summary.done, summary.batches) == ("finished", 47, 5)
    assert output_of(config, given.name) == wanted
    assert list((Path(config.run_dir) / "spool").iterdir()) == []
    rig.check_journal(config)


async def test_plain_rows_keep_their_bytes_and_bad_rows_their_lines(tmp_path: Path, server: Any, given: Given) -> None:
    rows = [b'{"name": "a", "n": 1.50}', b"  ", b'{"n":2,"name":"x\xe2\x80\xa8y"}', b"{broken", b'{"name": null}']
    data = b"\n".join(rows * 7)
    asked = {"asked": PLAIN, "limits": ShardLimits(max_requests=6)}
    wanted = await plain_output(tmp_path, server, data, **asked)
    config = given(rig.config(tmp_path, [], server.url, server.api_key, **asked), data)
    summary = await rig.run(config)
    assert (summary.rows, summary.done, summary.failed, summary.exit_code) == (28, 14, 14, 6)
    assert output_of(config, given.name) == wanted
    assert [(x["file"], x["line"]) for x in rig.errors(config)][:3] == [(given.name, n) for n in (4, 5, 9)]


async def test_an_empty_stream_gives_an_empty_output(tmp_path: Path, server: Any, given: Given) -> None:
    config = given(rig.config(tmp_path, [], server.url, server.api_key, asked=PLAIN), b"\n\n")
    assert (await rig.run(config)).rows == 0
    assert rig.read_lines(config.output) == []


async def test_a_segment_may_span_plain_and_packed_inputs(tmp_path: Path, server: Any) -> None:
    rows = [json.dumps({"name": f"n{k}"}).encode() + b"\n" for k in range(34)]
    wanted = await plain_output(tmp_path, server, b"".join(rows), asked=PLAIN)
    first, second = tmp_path / "a.jsonl", tmp_path / "d.jsonl"
    first.write_bytes(b"".join(rows[:3])[:-1])
    packed = pack(tmp_path / "b.anything", b"\xef\xbb\xbf" + b"".join(rows[3:25])[:-1], 50)
    more = pack(tmp_path / "c.gz", b"".join(rows[25:27]))
    second.write_bytes(b"".join(rows[27:]))
    config = rig.config(tmp_path, [first, packed, more, second], server.url, server.api_key, asked=PLAIN)
    assert (await rig.run(config)).done == 34
    got = [json.loads(line) for line in rig.read_lines(config.output)]
    assert got == [json.loads(line) for line in wanted[0].split(b"\n")[:-1]]


# -- after a stop


@pytest.mark.parametrize("given", ["gzip", "rows"], indirect=True)
async def test_resume_after_a_stop_at_the_journal_boundaries_of_reading(
    tmp_path: Path,
    server: Any,
    striker: Striker,
    given: Given,
) -> None:
    data = b"".join(json.dumps({"name": f"n{k}"}).encode() + b"\n" for k in range(24))
    wanted, _ = await plain_output(tmp_path, server, data, asked=PLAIN, max_transfers=2)
    names = list(striker.names)
    kinds = {"Started", "Opened", "SegmentSealed", "Exhausted", "Merged", "Publishing", "Published"}
    last = {name: at for at, name in enumerate(names)}
    for at in sorted(at for name, at in last.items() if name.partition("-")[2] in kinds):
        before = server.ledger()["rows_executed"]
        config = rig.config(
            tmp_path, [], server.url, server.api_key, output=tmp_path / f"{at}.out", max_transfers=2, asked=PLAIN
        )
        striker.at, striker.passes = at, 0
        with pytest.raises(Struck):
            await rig.run(given(config, data))
        striker.at = -1
        summary = await rig.run(given(config, data))
        assert (summary.state, summary.done) == ("finished", 24), names[at]
        assert Path(config.output).read_bytes() == wanted, names[at]
        assert server.ledger()["rows_executed"] - before == 24, names[at]
        assert list((Path(config.run_dir) / "spool").glob("*.raw*")) == [], names[at]
        rig.check_journal(config)


async def struck(config: Config, striker: Striker, name: str, nth: int = 1) -> None:
    """Let a run die at the n-th pass through a gap."""
    passes = 0

    def hit(gap: str) -> None:
        nonlocal passes
        passes += gap == name
        if gap == name and passes == nth:
            raise Struck(gap)

    plain, striker.hit = striker.hit, hit  # type: ignore[method-assign, assignment]
    try:
        with pytest.raises(Struck):
            await rig.run(config)
    finally:
        striker.hit = plain  # type: ignore[method-assign]


async def test_another_stream_is_refused_on_resume(
    tmp_path: Path,
    server: Any,
    striker: Striker,
    stream: Given,
) -> None:
    rows = lines(35)
    config = rig.config(tmp_path, [], server.url, server.api_key)
    await struck(stream(config, b"".join(rows)), striker, "before-SegmentSealed", 3)
    executed = server.ledger()["rows_executed"]
    other = [*rows[:15], rig.request_line(99), *rows[16:]]
    with pytest.raises(
        SourceError, match=r"changed in rows .* \(rows 11 to 20 of the input\); give it the same rows again"
    ):
        await rig.run(stream(config, b"".join(other)))
    with pytest.raises(SourceError, match=r"ends before the end .* \(rows 11 to 20"):
        await rig.run(stream(config, b"".join(rows[:15])))
    with pytest.raises(SourceError, match=r"ends before the end .* \(rows 1 to 10"):
        await rig.run(stream(config, b""))
    assert server.ledger()["rows_executed"] - executed <= 20, "only what was sealed may have been bought"
    assert (await rig.run(stream(config, b"".join(rows)))).done == 35
    rig.check_results(config, rows)
    assert server.ledger()["rows_executed"] == 35


@pytest.mark.parametrize("gap", ["after-Exhausted", "after-Publishing"])
async def test_what_is_sealed_is_finished_without_the_stream(
    tmp_path: Path,
    server: Any,
    striker: Striker,
    stream: Given,
    gap: str,
) -> None:
    rows = [json.dumps({"name": f"n{k}"}).encode() + b"\n" for k in range(25)]
    config = rig.config(tmp_path, [], server.url, server.api_key, asked=PLAIN)
    await struck(stream(config, b"".join(rows)), striker, gap)
    with pytest.raises(SourceError, match="changed in rows"):
        await rig.run(stream(config, b"".join(reversed(rows))))
    other = msgspec.structs.replace(config, asked=msgspec.structs.replace(PLAIN, prompt="Sing {{ name }}"))
    with pytest.raises(ConfigError, match=r"was started with --prompt '.*', now it is run with --prompt 'Sing"):
        await rig.run(stream(other, b""))
    summary = await rig.run(stream(config, b"", terminal=True))
    assert (summary.state, summary.done) == ("finished", 25)
    assert [json.loads(line)["name"] for line in rig.read_lines(config.output)] == [f"n{k}" for k in range(25)]
    assert server.ledger()["rows_executed"] == 25


async def test_a_finished_run_is_compared_and_reopened(tmp_path: Path, server: Any, given: Given) -> None:
    rows = lines(31)
    config = rig.config(tmp_path, [], server.url, server.api_key)
    assert (await rig.run(given(config, b"".join(rows[:21])))).done == 21
    before = Path(config.output).read_bytes()
    again = await rig.run(given(config, b"".join(rows[:21])))
    assert again.message.startswith("Nothing to do")
    for other in (b"".join([*rows[:4], *rows[5:21]]), b"".join(rows[:20]), rows[0]):
        with pytest.raises(SourceError, match=r"changed in rows|ends before"):
            await rig.run(given(config, other))
    assert Path(config.output).read_bytes() == before
    assert (await rig.run(given(config, b"".join(rows)))).done == 31
    rig.check_results(config, rows)
    assert server.ledger()["rows_executed"] == 31


async def test_a_finished_run_and_no_stream(tmp_path: Path, server: Any, stream: Given) -> None:
    config = rig.config(tmp_path, [], server.url, server.api_key)
    await rig.run(stream(config, b"".join(lines(12))))
    with pytest.raises(SourceError, match="ends before the end"):
        await rig.run(stream(config, b""))
    if stream.kind == "stdin":
        assert (await rig.run(stream(config, b"", terminal=True))).message.startswith("Nothing to do")


async def test_a_limit_ends_reading_and_is_lifted_later(tmp_path: Path, server: Any, given: Given) -> None:
    rows = lines(45)
    config = rig.config(tmp_path, [], server.url, server.api_key, limit=17)
    assert (await rig.run(given(config, b"".join(rows)))).done == 17
    assert (await rig.run(given(config, b"".join(rows)))).message.startswith("Nothing to do")
    unlimited = msgspec.structs.replace(config, limit=None)
    assert (await rig.run(given(unlimited, b"".join(rows)))).done == 45
    rig.check_results(config, rows)
    assert server.ledger()["rows_executed_again"] == 0


async def test_a_lost_run_directory_is_found_again(tmp_path: Path, server: Any, given: Given) -> None:
    rows = lines(24)
    config = rig.config(tmp_path, [], server.url, server.api_key, run_id="named")
    await rig.run(given(config, b"".join(rows)))
    wanted = Path(config.output).read_bytes()
    Path(config.output).unlink()
    Path(f"{config.output}.errors").unlink()
    shutil.rmtree(config.run_dir)
    assert (await rig.run(given(config, b"".join(rows)))).done == 24
    assert Path(config.output).read_bytes() == wanted
    assert server.ledger()["rows_executed"] == 24
    assert not {e.Intended, e.Uploaded} & {type(x) for x in rig.check_journal(config)}


async def test_reading_a_packed_file_again_is_said(
    tmp_path: Path,
    server: Any,
    striker: Striker,
) -> None:
    source = pack(tmp_path / "in.gz", b"".join(lines(45)))
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    await struck(config, striker, "after-SegmentSealed", 2)
    notes: set[str] = set()
    slow = serial.GzipBlocks.fetch

    async def listen_between(self: Any, blocking: Any) -> bytes:
        await anyio.sleep(0.6)  # longer than between two looks
        return await slow(self, blocking)

    def listen(notice: Any) -> None:
        if isinstance(notice, Progress):
            notes.add(notice.note)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serial.GzipBlocks, "fetch", listen_between)
        assert (await rig.run(config, listen)).done == 45
    assert f"reading {source} again from its start" in notes
    assert server.ledger()["rows_executed"] == 45


async def test_a_packed_file_may_change_behind_what_is_sealed_and_be_packed_anew(
    tmp_path: Path,
    server: Any,
    striker: Striker,
) -> None:
    rows = lines(35)
    source = pack(tmp_path / "in.gz", b"".join(rows))
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    await struck(config, striker, "before-SegmentSealed", 3)
    pack(source, b"".join([*rows[:5], *rows[6:]]))
    with pytest.raises(SourceError, match=r"in\.gz changed in rows .* \(rows 1 to 10 of the input\); restore them"):
        await rig.run(config)
    more = [*rows[:30], *(rig.request_line(k) for k in range(60, 75))]
    pack(source, b"".join(more), 999)
    assert (await rig.run(config)).done == 45
    rig.check_results(config, more)
    assert server.ledger()["rows_executed"] == 45


# -- what breaks


async def test_a_truncated_file_keeps_what_was_sealed(tmp_path: Path, server: Any) -> None:
    rows = lines(40)
    whole = pack(tmp_path / "in.gz", b"".join(rows), 4000).read_bytes()
    source = tmp_path / "in.gz"
    source.write_bytes(whole[:-20])
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    with pytest.raises(SourceError, match=r"in\.gz ends in the middle, near byte \d+ of the file"):
        await rig.run(config)
    source.write_bytes(whole)
    assert (await rig.run(config)).done == 40
    rig.check_results(config, rows)
    assert server.ledger()["rows_executed"] == 40


async def test_a_generator_that_raises_names_its_row_and_is_gone_on_with(tmp_path: Path, server: Any) -> None:
    rows = lines(40)

    def failing() -> Iterator[bytes]:
        yield from rows[:33]
        raise ValueError("the cursor is closed")

    config = rig.config(tmp_path, [], server.url, server.api_key)
    with pytest.raises(SourceError, match=r"rows, row 34: .*\(ValueError: the cursor is closed\)") as caught:
        await rig.run(msgspec.structs.replace(config, inputs=(), rows=failing()))
    assert isinstance(caught.value.__cause__, ValueError)
    assert (await rig.run(msgspec.structs.replace(config, inputs=(), rows=rows))).done == 40
    rig.check_results(config, rows)
    assert server.ledger()["rows_executed"] == 40


async def test_kinds_do_not_mix(tmp_path: Path, server: Any) -> None:
    rows = lines(12)
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"".join(rows))
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    await rig.run(config)
    pack(source, b"".join(rows))
    with pytest.raises(ConfigError, match=r"as a plain file, now .* as a gzip file is given"):
        await rig.run(config)
    with pytest.raises(ConfigError, match="as a plain file, now rows is given"):
        await rig.run(msgspec.structs.replace(config, inputs=(), rows=rows))


async def test_rows_may_be_mappings_of_any_kind(tmp_path: Path, server: Any) -> None:
    from types import MappingProxyType

    rows: list[Any] = [
        {"name": "a", "x": float("nan")},
        MappingProxyType({"name": "b"}),
        '{"name": "c"}\n',
        b'{"name": "d"}',
    ]
    config = rig.config(tmp_path, [], server.url, server.api_key, asked=PLAIN)
    assert (await rig.run(msgspec.structs.replace(config, rows=rows))).done == 4
    got = [json.loads(line) for line in rig.read_lines(config.output)]
    assert [(row["name"], row.get("x")) for row in got] == [("a", None), ("b", None), ("c", None), ("d", None)]


@pytest.mark.parametrize("look", [lambda tmp: tmp / "x.jsonl", lambda tmp: tmp / "nothing.gz"])
async def test_missing_files_leave_no_folder(tmp_path: Path, server: Any, look: Callable[[Path], Path]) -> None:
    config = rig.config(tmp_path, [look(tmp_path)], server.url, server.api_key)
    with pytest.raises(SourceError, match="can't be read"):
        await rig.run(config)
    assert not Path(config.run_dir).exists()


# -- rows that do not come


async def test_the_time_is_up_while_rows_are_awaited(tmp_path: Path, server: Any) -> None:
    rows = lines(25)

    async def late() -> AsyncIterator[bytes]:
        for row in rows[:22]:
            yield row
        await anyio.sleep(2 * feeds.BLOCK_S)
        yield rows[22]
        await anyio.sleep_forever()

    config = rig.config(tmp_path, [], server.url, server.api_key, stop_after_s=1.5)
    with anyio.fail_after(20):
        summary = await rig.run(msgspec.structs.replace(config, rows=late()))
    assert (summary.state, summary.exit_code, summary.done) == ("in_flight", 5, 20)
    assert (await rig.run(msgspec.structs.replace(config, rows=rows))).done == 25
    rig.check_results(config, rows)
    assert server.ledger()["rows_executed"] == 25


async def test_a_generator_that_does_not_come_back_is_left_behind(tmp_path: Path, server: Any) -> None:
    rows, gate = lines(25), threading.Event()

    def stuck() -> Iterator[bytes]:
        yield from rows[:22]
        gate.wait(60)

    config = rig.config(tmp_path, [], server.url, server.api_key)
    began = anyio.current_time()
    with anyio.move_on_after(2):
        await rig.run(msgspec.structs.replace(config, rows=stuck()))
    assert anyio.current_time() - began < 8
    gate.set()
    assert (await rig.run(msgspec.structs.replace(config, rows=rows))).done == 25
    rig.check_results(config, rows)
    assert server.ledger()["rows_executed"] == 25


async def test_no_more_rows_are_taken_than_there_is_room_for(tmp_path: Path, server: Any) -> None:
    """Back-pressure: while segments wait to be sealed, a generator without end stands still."""
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            yield rig.request_line(taken, extra="x" * 10_000)
            taken += 1

    server.set_faults({"batches": [{"do": "stuck", "state": "in_progress"}]})
    config = rig.config(tmp_path, [], server.url, server.api_key, sealed_ahead=2, max_batches=1)
    with anyio.move_on_after(2.5):
        await rig.run(msgspec.structs.replace(config, rows=endless()))
    assert taken < 1000


# -- in bad weather


@pytest.mark.parametrize("kind", ["gzip", "rows"])
@pytest.mark.parametrize("seed", range(2))
def test_no_row_is_bought_twice_in_any_weather(tmp_path: Path, kind: str, seed: int) -> None:
    """Killed at random virtual moments, under the virtual clock: the source is given again each time."""
    rows, weather = lines(60), Weather(seed, lost=0.05, refused=0.05, failing=0.15, expiring=0.2)
    source = pack(tmp_path / "in.gz", b"".join(rows), 5000)
    chance = random.Random(seed)

    async def main() -> str:
        clock = VirtualClock()
        api = world(clock, weather, list_lag_s=30.0, window_s=3600.0, duration_s=300.0)
        state = ""
        for _ in range(400):
            plain = twin_config(tmp_path, source, max_attempts=9)
            config = plain if kind == "gzip" else msgspec.structs.replace(plain, inputs=(), rows=iter(rows))
            with anyio.move_on_after(chance.expovariate(1 / 300.0)):
                state = (await visit(config, api, clock, chance)).state
            if state == "finished":
                break
        times = {custom_id: n for (custom_id, _), n in api.executed.items()}
        assert times == {
            json.loads(row)["custom_id"]: weather.executions_of(json.loads(row)["custom_id"]) for row in rows
        }
        return state

    assert simulate(main, seed) == "finished"
    got = [json.loads(line)["custom_id"] for line in rig.read_lines(tmp_path / "out.jsonl")]
    assert got == [json.loads(row)["custom_id"] for row in rows]
