"""Answers in the form that was asked for: JSON that fits a schema, tool calls that fit a function, and what is refused."""

import datetime
import json
import uuid
from typing import Any, Literal

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.server.schemas import Fitting
from tests.server.kit import CHAT, Wire, jsonl, row
from tests.server.test_answers import ask, said

QUESTION = [{"role": "user", "content": "some json, please"}]


class Address(pydantic.BaseModel):
    street: str = pydantic.Field(min_length=60, max_length=90)
    number: int = pydantic.Field(ge=3, lt=5)
    kind: Literal["home", "work"]


class Person(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    name: str
    code: str = pydantic.Field(max_length=4)
    age: int = pydantic.Field(gt=17, le=18)
    share: float = pydantic.Field(gt=0, lt=1)
    even: int = pydantic.Field(multiple_of=7, ge=50, le=60)
    below: int = pydantic.Field(le=-5)
    yes: bool
    nothing: None
    maybe: int | None
    born: datetime.date
    seen: datetime.datetime
    token: uuid.UUID
    tags: set[Literal["a", "b", "c"]] = pydantic.Field(min_length=3, max_length=3)
    addresses: list[Address] = pydantic.Field(min_length=2)
    pair: tuple[int, str]
    either: Address | list[int]
    boss: "Person | None" = None


class Tree(pydantic.BaseModel):
    label: str
    children: list["Tree"]


SCHEMAS: list[Any] = [Person, Address, Tree]


def form(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, **more}}


def content(**more: Any) -> Any:
    return json.loads(said(CHAT, {"model": "m", "messages": QUESTION, **more})["choices"][0]["message"]["content"])


@pytest.mark.parametrize("model", SCHEMAS)
@pytest.mark.parametrize("seed", range(25))
def test_a_value_fits_its_schema(model: Any, seed: int) -> None:
    schema = model.model_json_schema()
    value = Fitting(schema, str(seed), "digest some words").value()
    model.model_validate_json(json.dumps(value), strict=True)
    assert Fitting(schema, str(seed), "digest some words").value() == value


def test_values_differ_by_seed_and_hold_the_text() -> None:
    values = [json.dumps(Fitting(Person.model_json_schema(), str(n), "digest words").value()) for n in range(20)]
    assert len(set(values)) > 10
    assert all("digest words" in value for value in values)


def test_chat_answers_in_a_schema() -> None:
    schema = {**Address.model_json_schema(), "additionalProperties": False}
    Address.model_validate(content(response_format=form(schema, strict=True)), strict=True)
    assert content(response_format={"type": "json_object"})["answer"]
    assert said(CHAT, {"model": "m", "messages": QUESTION, "response_format": {"type": "text"}})["usage"][
        "total_tokens"
    ]


def test_responses_answer_in_a_schema() -> None:
    form = {"type": "json_schema", "name": "it", "schema": Address.model_json_schema()}
    body = said("/v1/responses", {"model": "m", "input": "x", "text": {"format": form}})
    Address.model_validate_json(body["output"][0]["content"][0]["text"], strict=True)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"type": "xml"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema.name"),
        ({"type": "json_schema", "json_schema": {"name": "it"}}, "response_format.json_schema.schema"),
        (form({"type": "array"}, strict=True), "response_format"),
        (form({"type": "object", "properties": {}}, strict=True), "response_format"),
        (
            form({"type": "object", "additionalProperties": False, "properties": {"a": {}}}, strict=True),
            "response_format",
        ),
    ],
)
def test_forms_that_are_refused(given: Any, param: str) -> None:
    response = ask(CHAT, {"model": "m", "messages": QUESTION, "response_format": given})
    assert (response["status_code"], response["body"]["error"]["param"]) == (400, param)


def test_json_must_be_spoken_of() -> None:
    messages = [{"role": "user", "content": "hello"}]
    response = ask(CHAT, {"model": "m", "messages": messages, "response_format": {"type": "json_object"}})
    assert (response["status_code"], response["body"]["error"]["param"]) == (400, "messages")


TOOLS = [
    {"type": "function", "function": {"name": f"tool{n}", "parameters": Address.model_json_schema()}} for n in range(2)
]


@pytest.mark.parametrize(
    ("choice", "reason"),
    [({}, "tool_calls"), ({"tool_choice": "required"}, "tool_calls"),
     ({"tool_choice": {"type": "function", "function": {"name": "tool1"}}}, "stop")],
)  # fmt: skip
def test_chat_calls_a_tool(choice: dict[str, Any], reason: str) -> None:
    [made] = said(CHAT, {"model": "m", "messages": QUESTION, "tools": TOOLS, **choice})["choices"]
    [call] = made["message"]["tool_calls"]
    assert (made["message"]["content"], made["finish_reason"], call["type"]) == (None, reason, "function")
    assert call["function"]["name"] in ("tool0", "tool1")[len(choice) and reason == "stop" :]
    Address.model_validate_json(call["function"]["arguments"], strict=True)


@pytest.mark.parametrize(
    "more",
    [{"tools": []}, {"tools": None}, {"tools": TOOLS, "tool_choice": "none"},
     {"tools": TOOLS, "messages": [*QUESTION, {"role": "tool", "tool_call_id": "x", "content": "42"}]}],
)  # fmt: skip
def test_text_where_no_tool_is_to_be_called(more: dict[str, Any]) -> None:
    [made] = said(CHAT, {"model": "m", "messages": QUESTION, **more})["choices"]
    assert made["message"]["content"]
    assert "tool_calls" not in made["message"]


def test_a_tool_that_is_not_there() -> None:
    choice = {"type": "function", "function": {"name": "nobody"}}
    response = ask(CHAT, {"model": "m", "messages": QUESTION, "tools": TOOLS, "tool_choice": choice})
    assert (response["status_code"], response["body"]["error"]["param"]) == (400, "tool_choice")


def test_responses_call_a_tool() -> None:
    tools = [{"type": "function", "name": "lookup", "parameters": Address.model_json_schema()}]
    body = said("/v1/responses", {"model": "m", "input": "x", "tools": tools})
    [item] = body["output"]
    assert (item["type"], item["name"], body["tools"]) == ("function_call", "lookup", tools)
    Address.model_validate_json(item["arguments"], strict=True)
    answered = [{"role": "user", "content": "x"}, {"type": "function_call_output", "call_id": "c", "output": "42"}]
    assert said("/v1/responses", {"model": "m", "input": answered, "tools": tools})["output"][0]["type"] == "message"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(
            ["type", "properties", "items", "enum", "anyOf", "allOf", "$ref", "minimum", "maximum", "multipleOf", "minItems",
             "minLength", "required", "prefixItems", "uniqueItems", "format", "$defs", "object", "array", "#/$defs/a", "a"]
        ), inner | st.sampled_from(["object", "array", "string", "integer", "number", "#/$defs/a", "#"]), max_size=4,
    ),
    max_leaves=15,
)  # fmt: skip


@given(schema=json_values)
def test_no_schema_however_odd_breaks_it(schema: Any) -> None:
    json.dumps(Fitting(schema, "seed", "text").value())


def test_a_batch_of_structured_rows(wire: Wire) -> None:
    rows = [row(n, response_format=form(Address.model_json_schema())) for n in range(10)]
    rows += [row(n, tools=TOOLS) for n in range(10, 20)]
    batch = wire.run(jsonl(rows))
    outputs, errors = wire.results(batch)
    assert (len(outputs), errors) == (20, [])
    assert batch["usage"]["output_tokens"] > 20


@pytest.mark.parametrize("endpoint", ["/v1/images/generations", "/v1/images/edits", "/v1/videos"])
def test_pictures_are_refused_as_by_a_model_that_cannot(wire: Wire, endpoint: str) -> None:
    rows = [{**row(n), "url": endpoint, "body": {"model": "gpt-image-1", "prompt": "a tree"}} for n in range(2)]
    batch = wire.run(jsonl(rows), endpoint)
    message = "The provided model 'gpt-image-1' is not supported by the Batch API."
    told = [(entry["code"], entry["message"], entry["line"]) for entry in batch["errors"]["data"]]
    assert (batch["status"], told) == ("failed", [("model_not_found", message, n) for n in (1, 2)])


def test_embeddings_of_many_inputs_and_parts_of_one() -> None:
    inputs = [f"text {n}" for n in range(2048)]
    body = said("/v1/embeddings", {"model": "m", "input": inputs, "encoding_format": "base64"})
    assert [entry["index"] for entry in body["data"]] == list(range(2048))
    assert ask("/v1/embeddings", {"model": "m", "input": [*inputs, "x"]})["status_code"] == 400
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    assert len(said("/v1/moderations", {"input": parts})["results"]) == 1
