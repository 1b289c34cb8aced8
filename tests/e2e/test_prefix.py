"""What a visit that ends early leaves in the partial output: the longest complete prefix, believed by nobody, cut by the next."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streambatch.config import Mode
from streambatch.core import events as e
from streambatch.core.models import ShardLimits
from streambatch.core.report import Summary
from streambatch.core.shaping import Asked
from streambatch.edge.files import RunFiles
from streambatch.edge.journal import read_only
from streambatch.engine import inspect
from streambatch.errors import StreambatchError
from tests.e2e import rig
from tests.e2e.faults.scenario import batches, rows, script

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

ROWS = 60
SLOW = "gpt-4o"  # the model whose batch hangs
REFUSED = rows("answer", "-(4|26|55)$", status=400, code="invalid_value")  # before and behind what waits
MODELS, LEFT = "a shard hangs", "a row is left"


class Hanging:
    """A run of which one batch hangs until it is cancelled: of all rows of another model, or of one row's second try."""

    def __init__(
        self, tmp_path: Path, server: Any, kind: str, first: int, *, emit: str = "results", size: int = 100
    ) -> None:
        self.first = first  # the first row that waits
        self.source = tmp_path / "in.jsonl"
        self._kind = kind
        self.source.write_bytes(b"".join(self._lines()))
        self.config = rig.config(
            tmp_path,
            [self.source],
            server.url,
            server.api_key,
            asked=Asked(emit="rows", column="answer") if emit == "rows" else Asked(),
            limits=ShardLimits(max_requests=size),
            pool_wait_s=0.1,
        )
        busy = rows("answer", f"-{first}$", status=500, times=1)
        hanging = "/r" if kind == LEFT else f"-{int(first > 0)}/"
        self.hang = batches("stuck", match=hanging, state="in_progress", times=1)
        server.set_faults(script(REFUSED, *([busy] if kind == LEFT else []), self.hang))
        self.server = server

    def _lines(self) -> list[bytes]:
        """Requests with blank lines among them, and two lines that are none."""
        slow = range(self.first, ROWS, 3) if self._kind == MODELS else range(0)
        lines = [rig.request_line(k, model=SLOW if k in slow else "gpt-4o-mini") for k in range(ROWS)]
        for at, line in ((44, b"{no json\n"), (30, b" \n"), (9, b"{neither\n"), (3, b"\n")):
            lines.insert(at, line)
        return lines

    async def cancelled(self) -> Summary:
        """The run until nothing but the batch that hangs is left of it, and the user cancels it."""
        flying: set[str] = set()
        settled: set[str] = set()
        sealed: set[str] = set()

        def look(notice: Any) -> None:
            match notice:
                case e.SegmentSealed(shards=made):
                    sealed.update(shard.name for shard in made)
                case e.RemainderSealed(made=shard):
                    sealed.add(shard.name)
                case e.Submitted(shard=name):
                    flying.add(name)
                case e.Settled(shard=name):
                    settled.add(name)
            whole = self._kind == MODELS or any(name.startswith("r") for name in flying)
            if whole and flying == sealed and len(sealed - settled) == 1:
                RunFiles(self.config.run_dir).cancel.touch()

        summary = await rig.run(self.config, look)
        assert (summary.state, summary.in_flight) == ("cancelled", 0)
        return summary

    async def finish(self) -> Summary:
        """The rest of the run, and what is always true of it."""
        self.server.set_faults(script(REFUSED))
        summary = await rig.run(self.config)
        assert (summary.state, summary.done, summary.failed) == ("finished", ROWS - 3, 5)
        assert self.server.ledger()["rows_executed"] == ROWS + (self._kind == LEFT)
        rig.check_journal(self.config)
        return summary

    # -- files

    @property
    def partials(self) -> tuple[bytes, bytes]:
        folder = Path(self.config.run_dir)
        return (folder / "output.part").read_bytes(), (folder / "errors.part").read_bytes()

    @property
    def merged(self) -> tuple[int, int]:
        """The ends of the partials by the journal."""
        with read_only(f"{self.config.run_dir}/journal.sqlite") as store:
            last = store.last(e.Merged)
        return (0, 0) if last is None else (last.output_end, last.errors_end)

    def check_prefix(self, output: bytes, errors: bytes) -> None:
        """The partials that a visit left end just before the first row that waited, byte for byte as OUTPUT and its errors."""
        whole, failed = Path(self.config.output).read_bytes(), Path(f"{self.config.output}.errors").read_bytes()
        assert whole.startswith(output)
        assert failed.startswith(errors)
        assert json.loads(whole[len(output) :].split(b"\n")[0])["custom_id"].endswith(f"-{self.first}")
        waiting = next(n for n, line in enumerate(rig.read_lines(self.source)) if f'-{self.first}"'.encode() in line)
        places = [json.loads(line)["line"] - 1 for line in failed.split(b"\n")[:-1]]
        assert errors.count(b"\n") == sum(place < waiting for place in places)


@pytest.mark.parametrize("emit", ["results", "rows"])
@pytest.mark.parametrize(("kind", "size"), [(MODELS, 100), (LEFT, 100), (LEFT, 20)])
async def test_a_cancelled_run_leaves_its_longest_complete_prefix(
    tmp_path: Path, server: Any, kind: str, size: int, emit: str
) -> None:
    run = Hanging(tmp_path, server, kind, 31, emit=emit, size=size)
    await run.cancelled()
    output, errors = run.partials
    assert len(output) > run.merged[0]
    assert (run.merged[0] > 0) == (size < 31)
    assert not Path(run.config.output).exists()
    await run.finish()
    run.check_prefix(output, errors)


@pytest.mark.parametrize("emit", ["results", "rows"])
async def test_where_the_first_row_waits_nothing_is_left(tmp_path: Path, server: Any, emit: str) -> None:
    run = Hanging(tmp_path, server, MODELS, 0, emit=emit)
    await run.cancelled()
    assert run.partials == (b"", b"")
    await run.finish()
    run.check_prefix(b"", b"")


async def test_the_prefix_counts_nowhere(tmp_path: Path, server: Any) -> None:
    """Not in the summary, not in the status, and no row is shown twice."""
    run = Hanging(tmp_path, server, LEFT, 31, size=20)
    summary = await run.cancelled()
    seen = inspect.status(run.config.output).progress
    assert (summary.done, seen.done, seen.merged) == (ROWS - 4, ROWS - 4, 20)  # the first segment
    peeked = inspect.peek(run.config.output, 1000)
    assert len(peeked) == len(set(peeked)) == ROWS - 4
    again = await rig.run(run.config, mode=Mode.CANCEL)
    assert (again.state, again.done) == ("cancelled", ROWS - 4)
    output, errors = run.partials
    await run.finish()
    run.check_prefix(output, errors)


async def test_a_visit_that_leaves_for_now_leaves_the_prefix_too(tmp_path: Path, server: Any) -> None:
    run = Hanging(tmp_path, server, LEFT, 31)
    await run.cancelled()
    output, errors = run.partials
    server.set_faults(script(run.hang))
    summary = await rig.run(msgspec.structs.replace(run.config, once=True))
    assert (summary.state, summary.in_flight) == ("in_flight", 1)
    assert run.partials == (output, errors)
    assert (await rig.run(run.config, mode=Mode.CANCEL)).state == "cancelled"
    await run.finish()
    run.check_prefix(output, errors)


@pytest.mark.parametrize("after", ["nothing", "half a line", "output", "errors"])
async def test_killed_around_the_append(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """What was written then is cut off, whole or torn, and merged again."""
    run = Hanging(tmp_path, server, LEFT, 31, size=20)
    plain = RunFiles.append_sinks

    def die(self: RunFiles, output: str, errors: str, *ends: int) -> tuple[int, int]:
        if "000001" not in output:
            return plain(self, output, errors, *ends)
        if after == "half a line":
            Path(output).write_bytes(Path(output).read_bytes()[:-30])
        if after in ("half a line", "output"):
            Path(errors).write_bytes(b"")
        if after != "nothing":
            plain(self, output, errors, *ends)
        raise StreambatchError("The process would have died here.")

    monkeypatch.setattr(RunFiles, "append_sinks", die)
    with pytest.raises(StreambatchError, match="died here"):
        await run.cancelled()
    assert (len(run.partials[0]) > run.merged[0]) == (after != "nothing")
    monkeypatch.undo()
    assert (await rig.run(run.config, mode=Mode.CANCEL)).state == "cancelled"
    output, errors = run.partials
    assert list((Path(run.config.run_dir) / "spool").glob("*.tmp-*")) == []
    await run.finish()
    run.check_prefix(output, errors)


@pytest.mark.parametrize("gone", [True, False])
async def test_a_source_that_changed_is_no_reason_not_to_cancel(tmp_path: Path, server: Any, gone: bool) -> None:
    """Rows of a file that is another now can't be given back; they can once it is as it was."""
    run = Hanging(tmp_path, server, MODELS, 31, emit="rows")
    kept, kept_at = run.source.read_bytes(), run.source.stat()
    await run.cancelled()
    run.source.unlink()
    if not gone:
        run.source.write_bytes(kept.replace(b"question 59", b"Question 59"))
    assert (await rig.run(run.config, mode=Mode.CANCEL)).state == "cancelled"
    assert run.partials == (b"", b"")
    run.source.write_bytes(kept)
    os.utime(run.source, ns=(kept_at.st_atime_ns, kept_at.st_mtime_ns))
    await run.finish()
