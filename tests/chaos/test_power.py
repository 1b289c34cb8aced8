"""Power loss at every moment of a small run: it ends with the same bytes and buys nothing twice; a sync left out is found."""

import os
from pathlib import Path

import anyio
import pytest

from streambatch.edge.client import HttpBatchApi
from streambatch.edge.service import Service
from streambatch.testing import local_server
from tests.chaos import power
from tests.chaos.disk import LOSSES, Loss
from tests.e2e import rig

CUTS = 60


def _one_loss(at: int) -> tuple[Loss, ...]:
    return (LOSSES[at % len(LOSSES)],)


@pytest.mark.parametrize(
    ("scenario", "every"),
    [(power.ELSEWHERE, 1), (power.PLAIN, 5), (power.GZIP, 5), (power.ALONE, 5)],
    ids=lambda x: str(getattr(x, "name", x)),
)
def test_the_power_goes_at_every_moment(scenario: power.Scenario, every: int) -> None:
    lives = list(power.sweep(scenario, _one_loss, every))
    failures = [one for one in lives if isinstance(one, str)]
    assert not failures, f"{len(failures)} of {len(lives)}: {failures[0]}"
    assert all(one.cuts == 1 for one in lives if isinstance(one, power.Life)), "a cut that did not come"
    assert len(lives) >= 90 // every


def test_the_power_goes_again_and_again() -> None:
    measures = [power.calm(scenario) for scenario in power.SCENARIOS]
    cuts = 0
    for seed in range(12):
        measure = measures[seed % len(measures)]
        found = power.compared(measure, power.live(measure.scenario, power.drawn(seed, len(measure.moments))))
        assert isinstance(found, power.Life), found
        cuts += found.cuts
    assert cuts > 12


@pytest.mark.parametrize("name", power.SYNCS)
def test_a_sync_that_is_left_out_is_found(name: str) -> None:
    assert power.without(name, CUTS) is not None, f"nothing is lost without {name}"


def test_every_sync_of_a_run_is_looked_at() -> None:
    """A new one is either named, with what shows that it is needed, or is one of those that are not."""
    seen = {str(moment) for scenario in power.SCENARIOS for moment in power.calm(scenario).moments}
    assert {name for name in seen if ".sqlite" not in name} == {*power.SYNCS, *power.BESIDE}


def test_the_real_client_syncs_what_it_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin's downloads are synced by the harness; here is what it stands for."""
    data, source, target = rig.request_line(1), tmp_path / "in.jsonl", tmp_path / "got"
    source.write_bytes(data)
    synced: list[int] = []

    async def fetch() -> None:
        api = HttpBatchApi(Service(base_url=server.url, api_key=server.api_key))
        info = await api.upload(str(source), "in.jsonl")
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
        assert await api.download(info.id, str(target)) == len(data)
        await api.aclose()

    with local_server() as server:
        anyio.run(fetch)
    assert target.stat().st_ino in synced
