"""The flight benchmark: it counts what it says, sees a breach of the rule, and a small flight works as a whole."""

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks import flight
from benchmarks.flying import Call


def calls(*routes: str, in_flight: int) -> list[Call]:
    """`LIST` begins a look at the list; others belong to it."""
    return [Call(float(k), route.lower(), in_flight, route == "LIST") for k, route in enumerate(routes)]


def test_calls_are_grouped_by_looks_at_the_list() -> None:
    seen = [
        *calls("list", "upload", "create", "LIST", "retrieve", in_flight=150),
        *calls("LIST", "list", "upload", "retrieve", "retrieve", in_flight=150),
    ]
    first, second = flight.ticks(seen)
    assert (first.pages, first.lookups, second.pages, second.lookups) == (1, 1, 2, 2)
    assert (first.in_flight, first.problem, second.problem) == (150, "", "")


@pytest.mark.parametrize(
    ("in_flight", "pages", "lookups", "ended", "wrong"),
    [
        (1000, 10, 50, 0, False),
        (1000, 11, 50, 0, True),
        (1000, 10, 51, 0, True),
        (1000, 10, 53, 3, False),
        (1000, 10, 54, 3, True),
        (1, 1, 2, 0, False),
        (1, 2, 0, 0, True),
        (101, 2, 5, 0, False),
    ],
)
def test_a_look_that_asks_too_much_is_told(in_flight: int, pages: int, lookups: int, ended: int, wrong: bool) -> None:
    assert bool(flight.Look(0.0, in_flight, pages, lookups, ended).problem) == wrong


def test_a_small_flight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The engine and the server in processes of their own; every batch in flight at once, and the figures of it."""
    words = ["--batches", "12", "--foreign", "150", "--rows", "3", "--hold", "1", "--poll-interval", "0.3", "--workdir"]
    assert bench.main(["flight", *words, str(tmp_path), "--json", str(tmp_path / "figures.json")]) == 0
    told = json.loads((tmp_path / "figures.json").read_bytes())["flight"]
    assert (told["batches"], told["foreign"], told["problems"]) == (12, 150, [])
    assert (told["total"]["upload"], told["total"]["create"], told["total"]["content"]) == (12, 12, 12)
    assert told["steady_s"] > 0.5
    assert told["most_pages_a_tick"] == 1
    assert told["steady_per_minute"]["list"] > 0
    assert 0 < told["lag_p50_ms"] <= told["lag_p99_ms"] <= told["lag_most_ms"]
    assert told["peak_mib"] > 10
    assert "12 batches of 3 rows at once among 150" in capsys.readouterr().out
    assert not (tmp_path / "flight").exists()
