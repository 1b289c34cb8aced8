"""Killed at any gap between the journal and the world, a run goes on to the same bytes, and no row is executed twice."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streambatch.core import events as e
from streambatch.edge.journal import Journal
from streambatch.errors import StreambatchError
from tests.e2e import rig

pytestmark = pytest.mark.anyio


class Struck(StreambatchError):  # noqa: N818 - it is no error of the run's
    """The process would have died here."""


class Striker:
    """Fails the N-th gap of a journal, before or after the write; counts gaps while it does not strike."""

    def __init__(self, at: int = -1) -> None:
        self.at = at
        self.passes = 0
        self.names: list[str] = []

    def hit(self, name: str) -> None:
        if self.passes == self.at:
            self.passes += 1
            raise Struck(name)
        self.passes += 1
        self.names.append(name)


@pytest.fixture
def striker(monkeypatch: pytest.MonkeyPatch) -> Striker:
    """In every journal that is opened from now on."""
    striker = Striker()
    plain = Journal.__init__

    def armed(self: Journal, *args: Any, **kw: Any) -> None:
        plain(self, *args, **kw)
        self._failpoints = striker  # type: ignore[assignment]

    monkeypatch.setattr(Journal, "__init__", armed)
    return striker


async def test_resume_after_a_stop_at_every_journal_boundary(tmp_path: Path, server: Any, striker: Striker) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 24)
    calm = rig.config(tmp_path, [source], server.url, server.api_key, output=tmp_path / "calm.jsonl", max_transfers=2)
    await rig.run(calm)
    wanted = Path(calm.output).read_bytes()
    kinds = {name.partition("-")[2] for name in striker.names}
    assert kinds >= {
        "SegmentSealed",
        "Uploaded",
        "Intended",
        "Submitted",
        "BatchFinished",
        "Settled",
        "Merged",
        "Published",
    }
    for at in range(len(striker.names)):
        before = server.ledger()["rows_executed"]
        config = rig.config(
            tmp_path, [source], server.url, server.api_key, output=tmp_path / f"{at}.jsonl", max_transfers=2
        )
        striker.at, striker.passes = at, 0
        with pytest.raises(Struck):
            await rig.run(config)
        striker.at = -1
        summary = await rig.run(config)
        assert (summary.state, summary.done) == ("finished", 24), striker.names[at]
        assert Path(config.output).read_bytes() == wanted, striker.names[at]
        assert server.ledger()["rows_executed"] - before == 24, striker.names[at]
        rig.check_journal(config)


async def test_a_lost_run_directory_is_found_again_by_its_id(tmp_path: Path, server: Any) -> None:
    """Without its journal, a run that is named again adopts all its batches and buys nothing."""
    source = rig.write_requests(tmp_path / "in.jsonl", 24)
    config = rig.config(tmp_path, [source], server.url, server.api_key, run_id="named")
    await rig.run(config)
    wanted = Path(config.output).read_bytes()
    Path(config.output).unlink()
    Path(f"{config.output}.errors").unlink()
    shutil.rmtree(config.run_dir)
    summary = await rig.run(config)
    assert (summary.done, summary.batches) == (24, 3)
    assert Path(config.output).read_bytes() == wanted
    assert server.ledger()["rows_executed"] == 24
    assert not {e.Intended, e.Uploaded} & {type(x) for x in rig.check_journal(config)}, (
        "adopted before anything is uploaded"
    )


async def test_batches_of_other_settings_under_the_same_id_stop_the_run(tmp_path: Path, server: Any) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 12)
    config = rig.config(tmp_path, [source], server.url, server.api_key, run_id="named")
    await rig.run(config)
    other = rig.config(
        tmp_path, [source], server.url, server.api_key, run_id="named", output=tmp_path / "b.jsonl", max_attempts=3
    )
    other = msgspec.structs.replace(other, limits=msgspec.structs.replace(other.limits, max_requests=7))
    with pytest.raises(StreambatchError, match=r"was made with --max-requests [0-9]+, not 7; use"):
        await rig.run(other)
    source.write_bytes(source.read_bytes().replace(b"question 3 ", b"question X "))
    third = rig.config(tmp_path, [source], server.url, server.api_key, run_id="named", output=tmp_path / "c.jsonl")
    with pytest.raises(StreambatchError, match="with other content"):
        await rig.run(third)
    assert server.ledger()["rows_executed"] == 12


@pytest.mark.parametrize("how", ["emptied", "deleted"])
async def test_a_lost_journal_never_starts_the_run_anew_unasked(tmp_path: Path, server: Any, how: str) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 24)
    config = rig.config(tmp_path, [source], server.url, server.api_key, if_exists="overwrite")
    run_id = (await rig.run(config)).run_id
    for path in Path(config.run_dir).glob("journal.sqlite*"):
        path.write_bytes(b"") if how == "emptied" else path.unlink()
    with pytest.raises(StreambatchError, match=f"--run-id {run_id} "):
        await rig.run(config)
    assert (await rig.run(msgspec.structs.replace(config, run_id=run_id))).done == 24
    assert server.ledger()["rows_executed"] == 24
