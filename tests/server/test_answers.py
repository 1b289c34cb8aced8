"""What the built-in answerer says at each endpoint, and an answerer of the user's own."""

import base64
import json
import struct
from typing import Any

import pytest
from xxhash import xxh3_64_hexdigest

from streambatch.server.answers import Answerer
from streambatch.testing import AnswerError
from tests.server.conftest import Start
from tests.server.kit import CHAT, Wire, chat, jsonl, row


def ask(endpoint: str, body: dict[str, Any], seed: int = 3) -> Any:
    line = json.dumps({"custom_id": "a", "method": "POST", "url": endpoint, "body": body}).encode()
    return json.loads(Answerer(seed).answer(endpoint, line).line)["response"]


def said(endpoint: str, body: dict[str, Any]) -> Any:
    response = ask(endpoint, body)
    assert response["status_code"] == 200, response
    return response["body"]


def test_the_digest_is_of_the_last_user_message() -> None:
    messages = [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "one"}, {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"}, {"role": "assistant", "content": "2"},
    ]  # fmt: skip
    body = said(CHAT, {"model": "m", "messages": messages})
    assert body["choices"][0]["message"]["content"].startswith(xxh3_64_hexdigest(b"two") + " ")
    assert body["object"] == "chat.completion"


def test_text_parts_are_joined_and_others_ignored() -> None:
    parts = [
        {"type": "text", "text": "a "},
        {"type": "image_url", "image_url": {"url": "data:,"}},
        {"type": "text", "text": "b"},
    ]
    body = said(CHAT, {"model": "m", "messages": [{"role": "user", "content": parts}]})
    assert body["choices"][0]["message"]["content"].startswith(xxh3_64_hexdigest(b"a b") + " ")


def test_several_choices() -> None:
    body = said(CHAT, {"model": "m", "messages": [{"role": "user", "content": "x"}], "n": 3})
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert ask(CHAT, {"model": "m", "messages": [{"role": "user", "content": "x"}], "n": 0})["status_code"] == 400


def test_odd_shapes_are_answered_the_slow_way() -> None:
    body = said(CHAT, {"model": "m", "messages": [{"role": "user", "content": "x"}], "n": "2"})
    assert body["choices"][0]["message"]["content"].startswith(xxh3_64_hexdigest(b"x") + " ")


def test_completions_and_responses() -> None:
    digest = xxh3_64_hexdigest(b"hello")
    assert said("/v1/completions", {"model": "m", "prompt": "hello"})["choices"][0]["text"].startswith(digest)
    for given in (
        "hello",
        [{"role": "user", "content": "hello"}],
        [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}],
    ):
        body = said("/v1/responses", {"model": "m", "input": given})
        assert body["output"][0]["content"][0]["text"].startswith(digest)
        assert body["usage"]["total_tokens"] == body["usage"]["input_tokens"] + body["usage"]["output_tokens"]


def test_embeddings() -> None:
    one = said("/v1/embeddings", {"model": "m", "input": "hello"})
    assert [len(entry["embedding"]) for entry in one["data"]] == [8]
    several = said("/v1/embeddings", {"model": "m", "input": ["hello", "world"], "dimensions": 30})
    assert [(entry["index"], len(entry["embedding"])) for entry in several["data"]] == [(0, 30), (1, 30)]
    assert abs(sum(x * x for x in several["data"][1]["embedding"]) - 1) < 1e-5
    packed = said("/v1/embeddings", {"model": "m", "input": "hello", "encoding_format": "base64"})
    numbers = struct.unpack("<8f", base64.b64decode(packed["data"][0]["embedding"]))
    assert numbers == pytest.approx(one["data"][0]["embedding"], abs=1e-6)
    assert said("/v1/embeddings", {"model": "m", "input": [1, 2, 3]})["usage"]["prompt_tokens"] == 3
    assert ask("/v1/embeddings", {"model": "m", "input": ""})["status_code"] == 400


def test_moderations() -> None:
    body = said("/v1/moderations", {"input": ["a", "b"]})
    assert [entry["flagged"] for entry in body["results"]] == [False, False]
    assert body["results"][0]["categories"].keys() == body["results"][0]["category_scores"].keys()


@pytest.mark.parametrize("endpoint", ["/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/moderations"])
def test_every_endpoint_runs_as_a_batch(wire: Wire, endpoint: str) -> None:
    rows = [
        {**row(n), "url": endpoint, "body": {"model": "m", "input": f"text {n}", "prompt": f"text {n}"}}
        for n in range(20)
    ]
    batch = wire.run(jsonl(rows), endpoint)
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 20)


def test_an_answerer_of_ones_own(start: Start) -> None:
    def answer(body: dict[str, Any]) -> str | dict[str, Any]:
        text = body["messages"][0]["content"]
        if text == "question 1":
            raise AnswerError("no", status=422, code="unwilling")
        if text == "question 2":
            raise RuntimeError("broken")
        return {"own": True} if text == "question 3" else text.upper()

    wire = start(answer=answer)
    batch = wire.run(chat(5))
    outputs, errors = wire.results(batch)
    bodies = {line["custom_id"]: line["response"]["body"] for line in outputs}
    refused = {line["custom_id"]: line["response"] for line in errors}
    assert bodies["row-0"]["choices"][0]["message"]["content"] == "QUESTION 0"
    assert bodies["row-3"] == {"own": True}
    assert batch["request_counts"] == {"total": 5, "completed": 3, "failed": 2}
    assert (refused["row-1"]["status_code"], refused["row-1"]["body"]["error"]["code"]) == (422, "unwilling")
    assert (refused["row-2"]["status_code"], refused["row-2"]["body"]["error"]["message"]) == (500, "broken")
