"""What fails a batch, with code, field and line; and that no line, however odd, does worse than that."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.server.validation import Validation, Verdict
from tests.server.conftest import Start
from tests.server.kit import CHAT, Wire, chat, jsonl, row


def judge(path: Path, data: bytes, endpoint: str = CHAT, models: tuple[str, ...] | None = None) -> Verdict:
    path.write_bytes(data)
    validation = Validation(path, endpoint, models)
    while (verdict := validation.step(7)) is None:
        continue
    return verdict


def changed(**changes: Any) -> dict[str, Any]:
    """A request with a field replaced, or left out where the new value is None."""
    return {name: value for name, value in {**row(1), **changes}.items() if value is not None}


def body(**changes: Any) -> dict[str, Any]:
    return changed(body={name: value for name, value in {**row(1)["body"], **changes}.items() if value is not None})


CASES: list[tuple[Any, str, str | None, str]] = [
    (b"{", "invalid_json_line", None, "This line is not parseable as valid JSON."),
    (b"", "invalid_json_line", None, "This line is not parseable as valid JSON."),
    (b"[1]", "invalid_json_line", None, "This line is not parseable as valid JSON."),
    (b'{"custom_id": "\xff"}', "invalid_json_line", None, "This line is not parseable as valid JSON."),
    (b"[" * 100_000, "invalid_json_line", None, "This line is not parseable as valid JSON."),
    (changed(custom_id=None), "missing_required_parameter", "custom_id", "Missing required parameter: 'custom_id'."),
    (changed(method=None), "missing_required_parameter", "method", "Missing required parameter: 'method'."),
    (changed(url=None), "missing_required_parameter", "url", "Missing required parameter: 'url'."),
    (changed(body=None), "missing_required_parameter", "body", "Missing required parameter: 'body'."),
    (
        changed(custom_id=7),
        "invalid_type",
        "custom_id",
        "Invalid type for 'custom_id': expected a string, but got an integer instead.",
    ),
    (
        changed(body=[]),
        "invalid_type",
        "body",
        "Invalid type for 'body': expected an object, but got an array instead.",
    ),
    (body(model=None), "invalid_request", "body.model", "Model parameter is required."),
    (body(messages=None), "invalid_request", "body.messages", "Messages parameter is required."),
    (changed(method="GET"), "invalid_method", "method", "The HTTP method of this request is not supported."),
    (
        changed(url="/v1/embeddings"),
        "invalid_url",
        "url",
        "The URL provided for this request does not match the batch endpoint.",
    ),
    (
        body(stream=True),
        "streaming_unsupported",
        "body.stream",
        "Chat Completions: Streaming is not supported in the Batch API.",
    ),
    (row(0), "duplicate_custom_id", "custom_id", "The custom_id for this request is a duplicate of another request."),
    (
        body(model="gpt-4"),
        "mismatched_model",
        "body.model",
        "The model 'gpt-4' for this request does not match the rest of the batch.",
    ),
]


@pytest.mark.parametrize(("bad", "code", "param", "message"), CASES)
def test_a_bad_line_is_named(tmp_path: Path, bad: Any, code: str, param: str | None, message: str) -> None:
    line = bad if isinstance(bad, bytes) else json.dumps(bad).encode()
    verdict = judge(tmp_path / "input", chat(9) + line + b"\n" + chat(3, first=20))
    [told] = verdict.errors
    assert (told.code, told.param, told.line) == (code, param, 10)
    assert told.message.startswith(message)


def test_a_good_file_passes(tmp_path: Path) -> None:
    verdict = judge(tmp_path / "input", chat(40)[:-1])  # its last line has no newline
    assert (verdict.errors, verdict.total, verdict.model) == ((), 40, "gpt-4o-mini")
    assert verdict.tokens > 0


def test_an_empty_file(tmp_path: Path) -> None:
    [told] = judge(tmp_path / "input", b"").errors
    assert (told.code, told.param, told.line) == ("empty_file", None, None)


def test_fifty_thousand_requests_pass_and_one_more_does_not(tmp_path: Path) -> None:
    line = json.dumps(row("N")).replace("row-N", "%d")
    rows = "".join(line % n + "\n" for n in range(50_001)).encode()
    assert judge(tmp_path / "input", rows[: rows.rindex(b"\n", 0, -1) + 1]).errors == ()
    [told] = judge(tmp_path / "input", rows).errors
    assert (told.code, told.line) == ("too_many_tasks", None)


def test_embedding_inputs_are_counted(tmp_path: Path) -> None:
    def embed(n: int, given: Any) -> dict[str, Any]:
        return {**row(n), "url": "/v1/embeddings", "body": {"model": "text-embedding-3-small", "input": given}}

    full = [embed(0, ["x"] * 49_998), embed(1, [1, 2, 3]), embed(2, "text")]
    assert judge(tmp_path / "input", jsonl(full), "/v1/embeddings").errors == ()
    [told] = judge(tmp_path / "input", jsonl([*full, embed(3, "more")]), "/v1/embeddings").errors
    assert told.code == "too_many_tasks"


def test_many_bad_lines_are_told_up_to_a_hundred(tmp_path: Path) -> None:
    errors = judge(tmp_path / "input", b"{\n" * 1000).errors
    assert [told.line for told in errors] == list(range(1, 101))


def test_only_models_that_are_known(tmp_path: Path) -> None:
    [told] = judge(tmp_path / "input", chat(1), models=("gpt-5",)).errors
    assert (told.code, told.param) == ("model_not_found", "body.model")


def test_moderations_need_no_model(tmp_path: Path) -> None:
    line = {**row(1), "url": "/v1/moderations", "body": {"input": "text"}}
    assert judge(tmp_path / "input", jsonl([line]), "/v1/moderations").errors == ()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["custom_id", "method", "url", "body", "model", "x"]), inner)
    ),
    max_leaves=8,
)


@given(
    lines=st.lists(st.binary(max_size=30) | JSON.map(lambda value: json.dumps(value).encode()), min_size=1, max_size=5)
)
def test_no_line_does_worse_than_fail(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    verdict = judge(tmp_path_factory.getbasetemp() / "fuzz", b"\n".join(lines) + b"\n")
    assert verdict.errors


def test_a_failed_batch_tells_all_of_it(wire: Wire) -> None:
    batch = wire.run(chat(1) + b"{\n" + json.dumps(changed(body=None)).encode() + b"\n")
    assert (batch["status"], batch["request_counts"]["total"]) == ("failed", 0)
    assert (batch["output_file_id"], batch["error_file_id"], batch["in_progress_at"]) == (None, None, None)
    assert batch["errors"] == {
        "object": "list",
        "data": [
            {
                "code": "invalid_json_line",
                "line": 2,
                "message": "This line is not parseable as valid JSON.",
                "param": None,
            },
            {
                "code": "missing_required_parameter",
                "line": 3,
                "message": "Missing required parameter: 'body'.",
                "param": "body",
            },
        ],
    }


def test_a_tier_limits_what_may_be_enqueued(start: Start) -> None:
    wire = start(tier="1", speed=10)
    rows = [{**row(n), "body": {**row(n, "x" * 20_000)["body"], "model": "gpt-4o"}} for n in range(30)]
    one, two = wire.create(jsonl(rows[:15])), wire.create(jsonl(rows[15:]))  # about 75,000 tokens each, 90,000 fit
    assert wire.finish(two["id"])["status"] == "failed"
    [entry] = wire.batch(two["id"])["errors"]["data"]
    assert entry["code"] == "token_limit_exceeded"
    assert "reached for gpt-4o in organization" in entry["message"]
    assert "Limit: 90,000 enqueued tokens." in entry["message"]
    assert wire.finish(one["id"])["status"] == "completed"
    assert wire.run(jsonl(rows[15:]))["status"] == "completed"
