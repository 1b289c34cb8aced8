"""The witness: what was executed, what twice, what was delivered; of all batches and of one run's."""

import json
import random
import socket
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.server.accounts import Account, names_path, sums
from streambatch.server.ledger import count_again, hashes_path
from tests.server.conftest import Start
from tests.server.kit import Wire, chat, jsonl, row

NOTHING = {
    "rows_executed": 0, "rows_executed_again": 0, "results_delivered": 0, "rows_lost": 0, "batches": 0, "batches_at_once": 0,
}  # fmt: skip


def test_a_new_server_has_done_nothing(start: Start) -> None:
    assert start().ledger() == NOTHING


def test_rows_are_counted_once_and_again(start: Start) -> None:
    wire = start()
    wire.run(chat(300))
    wire.run(chat(100, first=250))  # 50 of them are new
    ledger = wire.ledger()
    assert (ledger["rows_executed"], ledger["rows_executed_again"], ledger["batches"]) == (400, 50, 2)


def test_a_run_is_counted_by_its_metadata(start: Start) -> None:
    wire = start()
    wire.run(chat(10), metadata={"streambatch": "one/000000-0/1"})
    wire.run(chat(10), metadata={"streambatch": "two/000000-0/1"})
    wire.run(chat(10), metadata={"streambatch": "two/r000000/2"})
    wire.run(chat(7))
    assert wire.ledger("one") == {**NOTHING, "rows_executed": 10, "batches": 1, "batches_at_once": 1}
    two = wire.ledger("two")
    assert (two["rows_executed"], two["rows_executed_again"], two["batches"]) == (20, 10, 2)
    assert wire.ledger("tw") == NOTHING
    assert (wire.ledger()["rows_executed"], wire.ledger()["rows_executed_again"]) == (37, 27)


def test_a_result_is_delivered_once_and_only_whole(start: Start) -> None:
    wire = start(ranges=True)
    batch = wire.run(chat(12_000), metadata={"streambatch": "one/000000-0/1"})
    path = f"/v1/files/{batch['output_file_id']}/content"
    _leave_after_some(wire, path)
    assert wire.ledger()["results_delivered"] == 0
    wire.call("GET", path, headers={"Range": "bytes=0-100"})
    assert wire.ledger()["results_delivered"] == 0
    wire.content(batch["output_file_id"])
    wire.content(batch["output_file_id"])
    wire.content(batch["input_file_id"])
    assert wire.ledger("one")["results_delivered"] == wire.ledger()["results_delivered"] == 12_000
    wire.call("DELETE", f"/v1/files/{batch['output_file_id']}")
    assert wire.ledger()["results_delivered"] == 12_000


def _leave_after_some(wire: Wire, path: str) -> None:
    """Ask for a download and hang up at its beginning."""
    with socket.create_connection((wire.host, wire.port), timeout=10) as connection:
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {wire.key}\r\n\r\n"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_batches_at_once_is_a_high_mark(start: Start) -> None:
    wire = start(speed=20)
    metadata = {"streambatch": "one/000000-0/1"}
    ids = [wire.create(chat(1), metadata=metadata if n else None)["id"] for n in range(4)]
    for batch_id in ids:
        wire.finish(batch_id)
    wire.run(chat(1))
    assert (wire.ledger()["batches_at_once"], wire.ledger("one")["batches_at_once"]) == (4, 3)


@given(hashes=st.lists(st.lists(st.integers(0, 40), max_size=60), max_size=6), at_once=st.sampled_from([3, 10, 1000]))
def test_counting_in_bounded_memory_agrees_with_counting_at_once(
    tmp_path_factory: pytest.TempPathFactory, hashes: list[list[int]], at_once: int
) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    executed = _written(folder, hashes)
    flat = [mark for batch in hashes for mark in batch]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streambatch.server.ledger.AT_ONCE", at_once)
        assert count_again(folder, executed) == len(flat) - len(set(flat))
    assert {path.suffix for path in folder.iterdir()} <= {".hashes"}


def test_hashes_beyond_what_was_committed_do_not_count(tmp_path: Path) -> None:
    _written(tmp_path, [[1, 2, 3, 1, 1]])
    assert count_again(tmp_path, [(0, 3)]) == 0


def test_many_hashes(tmp_path: Path) -> None:
    draw = random.Random(1)
    hashes = [[draw.getrandbits(64) for _ in range(60_000)] for _ in range(3)]
    executed = _written(tmp_path, [*hashes, hashes[1][:777]])
    assert count_again(tmp_path, executed) == 777


def _written(folder: Path, hashes: list[list[int]]) -> list[tuple[int, int]]:
    for seq, marks in enumerate(hashes):
        hashes_path(folder, seq).write_bytes(array("Q", marks).tobytes())
    return [(seq, len(marks)) for seq, marks in enumerate(hashes)]


# -- row by row


def rows_told(wire: Wire, query: str = "") -> dict[tuple[str, str], tuple[int, int, int]]:
    said = wire.call("GET", f"/control/ledger?rows=1{query}")
    assert (said.status, said.headers["content-type"]) == (200, "application/jsonl")
    told = [json.loads(line) for line in said.body.split(b"\n")[:-1]]
    found = {(each["run"], each["custom_id"]): (each["executed"], each["delivered"], each["lost"]) for each in told}
    assert len(found) == len(told), "a row of a run stands there once"
    return found


def test_each_row_of_each_run_has_its_account(start: Start) -> None:
    rules = [
        {"do": "lost", "custom_id": "row-1", "times": 1},
        {"do": "answer", "custom_id": "row-2"},
        {"do": "duplicate", "custom_id": "row-3"},
        {"do": "unknown", "custom_id": "row-4"},
    ]
    wire = start(faults={"rows": rules})
    one = wire.run(chat(5), metadata={"streambatch": "one/000000-0/1"})
    wire.run(chat(2), metadata={"streambatch": "one/r000000/1"})
    wire.run(chat(1), metadata={"streambatch": "two/000000-0/1"})
    wire.content(one["output_file_id"])
    assert rows_told(wire, "&run=one") == {
        ("one", "row-0"): (2, 1, 0),
        ("one", "row-1"): (2, 0, 1),
        ("one", "row-2"): (1, 0, 0),  # in the error file
        ("one", "row-3"): (1, 1, 0),
        ("one", "row-4"): (1, 1, 0),
    }
    wire.content(one["error_file_id"])
    told = rows_told(wire)
    assert (told["one", "row-2"], told["two", "row-0"], len(told)) == ((1, 1, 0), (1, 0, 0), 6)
    assert rows_told(wire, "&run=three") == {}
    assert wire.call("GET", "/control/ledger?rows=yes").status == 400


@pytest.mark.parametrize("name", ["", 'a "quote" \\', '", "response": ', "漢\u2028\x00\n", "x" * 3000])
def test_any_custom_id_has_its_account_under_any_run(start: Start, name: str) -> None:
    wire = start()
    wire.run(jsonl([{**row(0), "custom_id": name}, row(1)]), metadata={"streambatch": f'{name[:99]}" "{name[:99]}'})
    wire.run(jsonl([{**row(0), "custom_id": name}]))
    run = f'{name[:99]}" "{name[:99]}'
    assert rows_told(wire) == {(run, name): (1, 0, 0), (run, "row-1"): (1, 0, 0), ("", name): (1, 0, 0)}


def test_accounts_outlive_their_files(start: Start) -> None:
    wire = start()
    batch = wire.run(chat(3))
    wire.content(batch["output_file_id"])
    for file_id in (batch["input_file_id"], batch["output_file_id"]):
        wire.call("DELETE", f"/v1/files/{file_id}")
    assert rows_told(wire) == {("", f"row-{n}"): (1, 1, 0) for n in range(3)}


@given(
    lists=st.lists(st.lists(st.tuples(st.sampled_from("oe-"), st.integers(0, 9)), max_size=30), max_size=6),
    at_once=st.sampled_from([20, 100, 1 << 20]),
)
def test_accounts_in_bounded_memory_agree_with_counting_at_once(
    tmp_path_factory: pytest.TempPathFactory, lists: list[list[tuple[str, int]]], at_once: int
) -> None:
    folder, accounts = tmp_path_factory.mktemp("ledger"), list[Account]()
    right: dict[tuple[str, str], list[int]] = {}
    for seq, rows in enumerate(lists):
        data = b"".join(b'%s"row-%d"\n' % (where.encode(), n) for where, n in rows)
        names_path(folder, seq).write_bytes(data + b"torn")
        given_out, given_error, run = seq % 2, seq // 2 % 2, f"run {seq % 3}"
        accounts.append(Account(run, seq, len(data), given_out, given_error))
        for where, n in rows:
            count = right.setdefault((run, f"row-{n}"), [0, 0, 0])
            count[0] += 1
            count[1] += {"o": given_out, "e": given_error, "-": 0}[where]
            count[2] += where == "-"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streambatch.server.accounts.BYTES_AT_ONCE", at_once)
        told = [json.loads(line) for line in sums(folder, accounts)]
    found = {(each["run"], each["custom_id"]): [each["executed"], each["delivered"], each["lost"]] for each in told}
    assert (found, len(told)) == (right, len(right))
    assert {path.suffix for path in folder.iterdir()} <= {".rows"}
