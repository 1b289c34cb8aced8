"""The main job, end to end: rows in, one answer per row out, in input order; the server's ledger is the witness."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streambatch.core import events as e
from streambatch.core.models import ShardLimits
from streambatch.core.report import Progress
from streambatch.core.shaping import Asked
from streambatch.errors import ConfigError, SourceError
from tests.e2e import rig

pytestmark = pytest.mark.anyio


async def test_ready_made_requests_come_back_in_input_order(tmp_path: Path, server: Any) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 95)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    summary = await rig.run(config)
    assert (summary.state, summary.exit_code, summary.done, summary.failed) == ("finished", 0, 95, 0)
    rig.check_results(config, rig.read_lines(source))
    assert rig.read_lines(f"{config.output}.errors") == []
    ledger = server.ledger()
    assert (ledger["rows_executed"], ledger["rows_executed_again"], ledger["batches"]) == (95, 0, 10)
    rig.check_journal(config)
    assert list((Path(config.run_dir) / "spool").iterdir()) == []


async def test_plain_rows_keep_their_bytes_and_gain_an_answer(tmp_path: Path, server: Any) -> None:
    source = tmp_path / "in.jsonl"
    rows = [
        b'{"name": "caf\\u00e9", "n": 1.50}',
        b"  ",
        b'{"n":2,"name":"x\xe2\x80\xa8y"}',
        b"{broken",
        b'{"name": null}',
    ]
    source.write_bytes(b"\r\n".join(rows))
    asked = Asked(model="gpt-4o-mini", prompt="Say {{ name }}", params=(("max_tokens", "9"),))
    config = rig.config(tmp_path, [source], server.url, server.api_key, asked=asked)
    summary = await rig.run(config)
    assert (summary.rows, summary.done, summary.failed, summary.exit_code) == (4, 2, 2, 6)
    out = rig.read_lines(config.output)
    assert [line.split(b', "answer"')[0].split(b',"answer"')[0] for line in out] == [
        rows[0][:-1],
        rows[2][:-1],
        rows[4][:-1],
    ]
    parsed = [json.loads(line) for line in out]
    assert parsed[0]["answer"]
    assert parsed[0]["answer_error"] is None
    assert parsed[2]["answer"] is None
    assert "name" in parsed[2]["answer_error"]
    assert [(x["ordinal"], x["line"], x["class"]) for x in rig.errors(config)] == [(3, 4, "bad_row"), (4, 5, "bad_row")]


async def test_several_inputs_are_one_dataset(tmp_path: Path, server: Any) -> None:
    lines = [rig.request_line(k) for k in range(37)]
    first, second, third = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.jsonl"
    first.write_bytes(b"\xef\xbb\xbf" + b"".join(lines[:13])[:-1])  # a BOM, and no newline at the end
    second.write_bytes(b"")
    third.write_bytes(b"".join(lines[13:]))
    config = rig.config(tmp_path, [first, second, third], server.url, server.api_key)
    assert (await rig.run(config)).done == 37
    rig.check_results(config, lines)


async def test_an_empty_input_gives_an_empty_output(tmp_path: Path, server: Any) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n \n")
    config = rig.config(tmp_path, [source], server.url, server.api_key, asked=Asked(model="m", prompt="x"))
    summary = await rig.run(config)
    assert (summary.exit_code, summary.rows) == (0, 0)
    assert rig.read_lines(config.output) == []
    assert server.ledger()["batches"] == 0


async def test_several_models_in_one_input(tmp_path: Path, server: Any) -> None:
    source = tmp_path / "in.jsonl"
    lines = [rig.request_line(k, model="gpt-4o" if k % 3 else "gpt-4o-mini") for k in range(40)]
    source.write_bytes(b"".join(lines))
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    assert (await rig.run(config)).done == 40
    rig.check_results(config, lines)


async def test_a_finished_run_repeated_is_a_no_op(tmp_path: Path, server: Any) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 12)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    await rig.run(config)
    before = Path(config.output).read_bytes()
    summary = await rig.run(config)
    assert summary.exit_code == 0
    assert Path(config.output).read_bytes() == before
    assert server.ledger()["rows_executed"] == 12


async def test_a_limit_is_lifted_by_a_later_run(tmp_path: Path, server: Any) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 45)
    config = rig.config(tmp_path, [source], server.url, server.api_key, limit=17)
    assert (await rig.run(config)).done == 17
    rig.check_results(config, rig.read_lines(source)[:17])
    summary = await rig.run(msgspec.structs.replace(config, limit=None))
    assert summary.done == 45
    rig.check_results(config, rig.read_lines(source))
    assert server.ledger()["rows_executed_again"] == 0


async def test_rows_added_at_the_end_reopen_a_finished_run(tmp_path: Path, server: Any) -> None:
    lines = [rig.request_line(k) for k in range(33)]
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"".join(lines[:21])[:-1])
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    await rig.run(config)
    source.write_bytes(b"".join(lines))
    assert (await rig.run(config)).done == 33
    rig.check_results(config, lines)
    assert server.ledger()["rows_executed"] == 33


async def test_once_leaves_and_comes_again(tmp_path: Path) -> None:
    from streambatch.testing import local_server

    source = rig.write_requests(tmp_path / "in.jsonl", 25)
    with local_server(seed=7, speed=4) as slow:
        config = rig.config(tmp_path, [source], slow.url, slow.api_key, once=True)
        summary = await rig.run(config)
        assert (summary.state, summary.exit_code, summary.in_flight) == ("in_flight", 5, 3)
        for _ in range(100):
            summary = await rig.run(config)
            if summary.exit_code == 0:
                break
        rig.check_results(config, rig.read_lines(source))
        assert slow.ledger()["batches"] == 3


async def test_progress_and_every_event_are_heard(tmp_path: Path, server: Any) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 20)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    heard: list[Any] = []
    await rig.run(config, heard.append)
    looks = [x for x in heard if isinstance(x, Progress)]
    assert looks[-1].done == 20
    assert [x for x in heard if isinstance(x, e.Event)] == rig.check_journal(config)


# -- refusals: one sentence, nothing bought


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"limits": ShardLimits(max_requests=11)}, "--max-requests 10, now it is run with --max-requests 11"),
        ({"asked": Asked(endpoint="/v1/responses")}, "endpoint"),
        ({"run_id": "another"}, "holds run"),
    ],
)
async def test_a_run_of_other_settings_is_refused(
    tmp_path: Path, server: Any, change: dict[str, Any], sentence: str
) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 12)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    await rig.run(config)
    with pytest.raises(ConfigError, match=sentence):
        await rig.run(msgspec.structs.replace(config, **change))


async def test_an_input_that_changed_in_sealed_rows_is_refused(tmp_path: Path, server: Any) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 30)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    await rig.run(config)
    data = source.read_bytes()
    source.write_bytes(data.replace(b"question 13 ", b"question XX "))
    with pytest.raises(SourceError, match="rows 11 to 20"):
        await rig.run(config)


async def test_an_output_of_someone_else_is_not_overwritten(tmp_path: Path, server: Any) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 5)
    config = rig.config(tmp_path, [source], server.url, server.api_key)
    Path(config.output).write_bytes(b"precious\n")
    with pytest.raises(ConfigError, match="exists and was not made by this run"):
        await rig.run(config)
    assert (await rig.run(msgspec.structs.replace(config, if_exists="skip"))).exit_code == 0
    assert Path(config.output).read_bytes() == b"precious\n"
    assert (await rig.run(msgspec.structs.replace(config, if_exists="overwrite"))).done == 5


async def test_the_first_hundred_rows_all_bad_stop_the_run(tmp_path: Path, server: Any) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"custom_id": 1, "url": "/v1/chat/completions", "body": {}}\n' * 150)
    config = rig.config(tmp_path, [source], server.url, server.api_key, limits=ShardLimits(max_requests=1000))
    with pytest.raises(SourceError, match="first 150 rows are all bad"):
        await rig.run(config)
    assert server.ledger()["batches"] == 0


async def test_on_bad_row_stop_names_file_and_line(tmp_path: Path, server: Any) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(rig.request_line(0) + b"oops\n" + rig.request_line(1))
    config = rig.config(tmp_path, [source], server.url, server.api_key, on_bad_row="stop")
    with pytest.raises(SourceError, match=r"in\.jsonl, line 2"):
        await rig.run(config)
    source.write_bytes(rig.request_line(0) + rig.request_line(1))
    assert (await rig.run(config)).done == 2


@pytest.mark.parametrize("taken", ["answer", "answer_error"])
async def test_a_row_that_has_an_output_field_already_is_a_bad_row(tmp_path: Path, server: Any, taken: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"q": "a"}\n{"q": "b", "%b": "old"}\n' % taken.encode())
    asked = Asked(model="gpt-4o-mini", prompt="{{ q }}")
    config = rig.config(tmp_path, [source], server.url, server.api_key, asked=asked)
    summary = await rig.run(config)
    assert (summary.done, summary.failed) == (1, 1)
    assert rig.read_lines(config.output)[1] == b'{"q": "b", "%b": "old"}' % taken.encode()
    assert taken in rig.errors(config)[0]["reason"]


async def test_leading_bad_rows_are_counted_over_small_segments(tmp_path: Path, server: Any) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"custom_id": 1, "url": "/v1/chat/completions", "body": {}}\n' * 150)
    config = rig.config(tmp_path, [source], server.url, server.api_key, limits=ShardLimits(max_requests=30))
    with pytest.raises(SourceError, match="first 120 rows are all bad"):
        await rig.run(config)


async def test_a_run_that_is_refused_at_once_leaves_nothing_behind(tmp_path: Path, server: Any) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"q": "a"}\n')
    config = rig.config(tmp_path, [source], server.url, server.api_key, asked=Asked(model="m", prompt="{{ q "))
    with pytest.raises(ConfigError):
        await rig.run(config)
    missing = rig.config(tmp_path, [tmp_path / "gone.jsonl"], server.url, server.api_key, output=tmp_path / "b.jsonl")
    with pytest.raises(SourceError, match=r"gone\.jsonl"):
        await rig.run(missing)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
