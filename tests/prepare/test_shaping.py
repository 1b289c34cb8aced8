"""What the first row fixes, what rows become, and why some become nothing."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.models import Shaping, ShardLimits
from streambatch.core.ready import ReadyBlocks, ReadyRows
from streambatch.core.rows import Request, Unfit
from streambatch.core.seen import SeenIds
from streambatch.core.shaping import Asked, make_shaper, resolve, shaping_hash
from streambatch.errors import ConfigError

CHAT = "/v1/chat/completions"
READY = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}\n'


def ready(**changes: Any) -> bytes:
    row = json.loads(READY) | changes
    return json.dumps({name: value for name, value in row.items() if value is not ...}).encode() + b"\n"


def shape(asked: Asked, row: Any, ordinal: int = 0, first: Any = None) -> Request | Unfit:
    line = row if isinstance(row, bytes) else json.dumps(row).encode()
    first_row = line if first is None else json.dumps(first).encode()
    return make_shaper(resolve(first_row, asked)[0]).shape(line, ordinal)


def body(shaped: Request | Unfit) -> Any:
    assert isinstance(shaped, Request), shaped
    assert shaped.line.endswith(b"}\n")
    assert shaped.line.count(b"\n") == 1
    line = json.loads(shaped.line)
    assert list(line) == ["custom_id", "method", "url", "body"]
    assert (line["custom_id"], line["method"]) == (shaped.custom_id, "POST")
    assert (
        len(msgspec.json.decode(shaped.line, type=dict[str, msgspec.Raw])["body"].__reduce__()[1][0])
        == shaped.body_bytes
    )
    return line["body"]


def reason(shaped: Request | Unfit) -> str:
    assert isinstance(shaped, Unfit), shaped
    return shaped.reason


# -- what the first row fixes


def test_a_row_with_body_and_url_makes_the_run_ready_made() -> None:
    shaping, emit = resolve(ready(url="/v1/embeddings"), Asked())
    assert (shaping, emit) == (Shaping(ready_made=True, endpoint="/v1/embeddings"), "results")


def test_the_endpoint_that_was_asked_for_wins() -> None:
    assert resolve(ready(url="/v1/embeddings"), Asked(endpoint=CHAT))[0].endpoint == CHAT


def test_with_a_prompt_any_row_is_plain() -> None:
    shaping, emit = resolve(READY, Asked(model="m", prompt="{{ custom_id }}"))
    assert not shaping.ready_made
    assert (emit, shaping.column) == ("rows", "answer")


def test_emit_decides_whether_the_column_must_be_free() -> None:
    assert resolve(READY, Asked(emit="rows"))[0].column == "answer"
    assert resolve(b'{"x":1}', Asked(model="m", prompt="p", emit="results"))[0].column is None


@pytest.mark.parametrize(
    ("asked", "ready_made"), [(Asked(), True), (Asked(model="m"), False), (Asked(model="m", prompt="{{ x }}"), False)]
)
def test_without_rows_there_is_nothing_to_refuse(asked: Asked, ready_made: bool) -> None:
    assert resolve(None, asked)[0].ready_made is ready_made


@pytest.mark.parametrize(
    ("row", "asked", "words"),
    [
        (b'{"x":1}', Asked(), "--model"),
        (b'{"x":1}', Asked(prompt="p"), "--model"),
        (b'{"x":1}', Asked(model="m"), "add --prompt"),
        (b"nonsense", Asked(model="m"), "no JSON object: add --prompt"),
        (b'{"x":1}', Asked(model="m", prompt="a\n{% if x %}"), "--prompt, line 2"),
        (b'{"x":1}', Asked(model="m", system="{{ x", prompt="p"), "--system, line 1"),
        (b'{"x":1}', Asked(model="m", prompt="{{ x | nosuch }}"), "--prompt, line 1: filter nosuch is unknown"),
        (b'{"x":1}', Asked(model="m", prompt="{% include 'file' %}"), "--prompt, line 1"),
        (b'{"x":1}', Asked(model="m", prompt="p", system="s", endpoint="/v1/embeddings"), "leave --system out"),
        (b'{"messages":[]}', Asked(model="m", endpoint="/v1/embeddings"), "need --prompt"),
        (b'{"x":1}', Asked(model="m", prompt="p", params=(("messages", "[]"),)), "--param messages"),
        (b'{"x":1}', Asked(model="m", prompt="p", params=(("n", "1"), ("n", "2"))), "--param n is given twice"),
        (b'{"x":1}', Asked(model="m", prompt="p", params=(("model", '"k"'),)), "--param model is given twice"),
        (b'{"x":1}', Asked(model="m", prompt="p", params=(("stop", "END"),)), "--param stop needs a JSON value"),
        (b'{"x":1}', Asked(model="m", prompt="p", params=(("stream", "true"),)), "stream"),
        (READY, Asked(model="m"), "leave --model out"),
        (READY, Asked(params=(("n", "1"),)), "leave --param out"),
        (READY, Asked(emit="rows", column="body"), "--column"),
        (READY, Asked(null="maybe"), "--null"),
        (READY, Asked(emit="both"), "--emit"),
        (READY, Asked(endpoint="v1"), "--endpoint"),
        (READY, Asked(column=""), "--column"),
    ],
)
def test_what_can_never_work_is_refused_in_one_sentence(row: bytes, asked: Asked, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(row, asked)
    assert words in str(caught.value)
    assert str(caught.value).endswith(".")


def test_the_hash_tells_shapings_and_limits_apart() -> None:
    one = Shaping(ready_made=False, model="m", prompt="p")
    hashes = {
        shaping_hash(one, ShardLimits()),
        shaping_hash(msgspec.structs.replace(one, prompt="q"), ShardLimits()),
        shaping_hash(msgspec.structs.replace(one, column="answer"), ShardLimits()),
        shaping_hash(one, ShardLimits(max_requests=10)),
    }
    assert len(hashes) == 4
    assert shaping_hash(one, ShardLimits()) == shaping_hash(
        Shaping(ready_made=False, model="m", prompt="p"), ShardLimits()
    )


# -- plain rows


def test_a_chat_request_of_templates() -> None:
    asked = Asked(model="m", system="Be {{ how }}.", prompt="Say {{ word }}", params=(("temperature", "0.50"),))
    shaped = shape(asked, {"how": "brief", "word": '"é\u2028"'}, 41)
    assert body(shaped) == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": 'Say "é\u2028"'}],
        "temperature": 0.5,
    }
    assert isinstance(shaped, Request)
    assert (shaped.custom_id, shaped.model) == ("41", "m")
    assert b'"temperature":0.50}' in shaped.line  # as the user wrote it


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("/v1/embeddings", {"input": "hi"}),
        ("/v1/moderations", {"input": "hi"}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/images/generations", {"prompt": "hi"}),
        ("/v1/responses", {"input": "hi"}),
        ("/v4/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
    ],
)
def test_the_prompt_goes_where_the_endpoint_wants_it(endpoint: str, expected: dict[str, Any]) -> None:
    shaped = shape(Asked(model="m", prompt="{{ x }}", endpoint=endpoint), {"x": "hi"})
    assert body(shaped) == {"model": "m"} | expected
    assert isinstance(shaped, Request)
    assert json.loads(shaped.line)["url"] == endpoint


def test_system_of_a_response_is_its_instructions() -> None:
    asked = Asked(model="m", system="S", prompt="P", endpoint="/v1/responses")
    assert body(shape(asked, {})) == {"model": "m", "instructions": "S", "input": "P"}


def test_messages_pass_as_they_are() -> None:
    row = b'{"messages": [ {"role":"user","content":"\\u00e9", "n": 1.50} ], "other": 1}\n'
    shaped = shape(Asked(model="m"), row)
    assert isinstance(shaped, Request)
    assert b'"messages":[ {"role":"user","content":"\\u00e9", "n": 1.50} ]}' in shaped.line
    with_system = shape(Asked(model="m", system="S"), row)
    assert [message["role"] for message in body(with_system)["messages"]] == ["system", "user"]
    response = shape(Asked(model="m", system="S", endpoint="/v1/responses"), row)
    assert body(response)["instructions"] == "S"
    assert [message["role"] for message in body(response)["input"]] == ["user"]


def test_a_param_can_name_the_model() -> None:
    assert body(shape(Asked(prompt="p", params=(("model", '"k"'), ("n", "2"))), {})) == {
        "model": "k",
        "messages": [{"role": "user", "content": "p"}],
        "n": 2,
    }


def test_a_params_json_is_put_on_one_line() -> None:
    shaped = shape(Asked(model="m", prompt="p", params=(("response_format", '{\n  "type": "text"\n}'),)), {})
    assert body(shaped)["response_format"] == {"type": "text"}


@pytest.mark.parametrize(("value", "expected"), [("x-1", "x-1"), (7, "7"), (-3, "-3"), (10**30, str(10**30))])
def test_the_id_field_names_the_row(value: Any, expected: str) -> None:
    shaped = shape(Asked(model="m", prompt="p", id_field="key"), {"key": value}, 5)
    assert isinstance(shaped, Request)
    assert shaped.custom_id == expected


@pytest.mark.parametrize("row", [{}, {"key": None}, {"key": True}, {"key": 1.5}, {"key": ""}, {"key": ["a"]}])
def test_what_is_no_id(row: dict[str, Any]) -> None:
    assert "'key'" in reason(shape(Asked(model="m", prompt="p", id_field="key"), row, first={"key": "a"}))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b'{"x":1} {"x":2}', "not valid JSON"),
        (b'{"x":"\xff"}', "not valid UTF-8 at byte 7"),
        (b'{"x":"a","y":"\xc3"}', "not valid UTF-8"),
        (b'\xef\xbb\xbf{"x":1}', "byte order mark"),
        (b'{"x":"\\ud800"}', "not valid JSON"),
        (b'{"x":1,"y":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"y":1}', "the prompt needs a field that is missing: `x` is undefined"),
        (b'{"x":null}', "the field 'x' is null"),
        (b'{"x":NaN}', "the field 'x' is null"),
        (b'{"x":Infinity}', "not valid JSON"),
        (b'{"x":1,"answer":null}', "'answer' already"),
    ],
)
def test_a_plain_row_that_is_unfit_says_why(row: bytes, words: str) -> None:
    unfit = shape(Asked(model="m", prompt="{{ x }}"), row, 8, first={"x": 1})
    assert words in reason(unfit)
    assert isinstance(unfit, Unfit)
    assert (unfit.custom_id, unfit.skipped) == ("8", False)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, "no messages"),
        ({"messages": None}, "messages is no array"),
        ({"messages": "hello"}, "messages is no array"),
        ({"messages": []}, "messages is empty"),
        (b'{"messages":[{"content":NaN}]}', "not valid JSON"),
    ],
)
def test_messages_that_are_none(row: Any, words: str) -> None:
    assert words in reason(shape(Asked(model="m"), row, first={"messages": [1]}))


def test_nulls_are_errors_or_empty_or_skipped() -> None:
    def with_null(null: str, row: bytes) -> Request | Unfit:
        return shape(Asked(model="m", prompt="<{{ x }}>", null=null), row, first={"x": 1})

    for row in (b'{"x":null}', b'{"x": NaN}'):
        assert "null" in reason(with_null("error", row))
        assert body(with_null("empty", row))["messages"][0]["content"] == "<>"
        skipped = with_null("skip", row)
        assert isinstance(skipped, Unfit)
        assert skipped.skipped
    missing = with_null("skip", b"{}")
    assert isinstance(missing, Unfit)
    assert not missing.skipped


def test_nulls_in_fields_that_no_template_uses_do_no_harm() -> None:
    assert body(shape(Asked(model="m", prompt="{{ x }}"), {"x": 1, "y": None}))


def test_templates_get_values_as_they_are_and_no_escapes() -> None:
    row = {"text": "<&>\"'{{ secret }}", "list": [1, "two"], "number": 1.5, "yes": True, "deep": {"a": {"b": "c"}}}
    prompt = "{{ text }}|{{ list[1] }}|{{ number }}|{{ deep.a.b }}|{% if yes %}y{% endif %}"
    content = body(shape(Asked(model="m", prompt=prompt), row))["messages"][0]["content"]
    assert content == "<&>\"'{{ secret }}|two|1.5|c|y"


def test_a_template_that_runs_too_long_is_stopped() -> None:
    loop = "{% for a in range(50000) %}{% for b in range(50000) %}{% endfor %}{% endfor %}"
    assert reason(shape(Asked(model="m", prompt=loop), {})) == "the prompt runs too long"


def test_a_template_reads_no_file_and_no_attribute_of_python() -> None:
    unfit = shape(Asked(model="m", prompt="{{ x.__class__ }}"), {"x": "a"})
    assert "`x.__class__` is undefined" in reason(unfit)


@pytest.mark.parametrize("name", ["class", "range", "template_name", "f0", "__dict__", "custom_id"])
def test_any_identifier_can_be_a_field(name: str) -> None:
    content = body(shape(Asked(model="m", prompt="{{ " + name + " }}"), {name: "v"}))["messages"][0]["content"]
    assert content == "v"


@given(st.dictionaries(st.text(max_size=5), st.text(), max_size=4), st.text(), st.text())
def test_whatever_the_text_the_line_is_one_json_line(row: dict[str, str], text: str, system: str) -> None:
    text = text.encode(errors="replace").decode()
    row = {k.encode(errors="replace").decode(): v.encode(errors="replace").decode() for k, v in row.items()}
    asked = Asked(model="m", prompt="{{ x }}", system="{{ y }}", emit="results")
    made = body(shape(asked, row | {"x": text, "y": system.encode(errors="replace").decode()}))
    assert made["messages"][1]["content"] == text


# -- ready-made requests


def test_a_ready_made_line_passes_byte_for_byte() -> None:
    line = b' {"extra":1,"custom_id":"a\\u0062","body":{"model":"m"},"url":"/v1/chat/completions","method":"POST"} \r\n'
    shaped = ReadyRows(CHAT, None).shape(line, 0)
    assert isinstance(shaped, Request)
    assert (shaped.line, shaped.custom_id, shaped.model, shaped.body_bytes) == (line, "ab", "m", 13)


def test_a_last_line_gets_its_newline() -> None:
    shaped = ReadyRows(CHAT, None).shape(READY.rstrip(b"\n"), 0)
    assert isinstance(shaped, Request)
    assert shaped.line == READY


BAD_READY = [
    (b"{}\n", "no custom_id"),
    (b"nonsense\n", "not valid JSON"),
    (b"[]\n", "not a JSON object"),
    (READY + READY, "not valid JSON"),
    (b"\xef\xbb\xbf" + READY, "byte order mark"),
    (ready(custom_id=...), "no custom_id"),
    (ready(custom_id=1), "custom_id is no string"),
    (ready(custom_id=None), "custom_id is no string"),
    (ready(custom_id=""), "custom_id is empty"),
    (ready(method=...), "no method"),
    (ready(method="GET"), "method is 'GET'"),
    (ready(url=...), "no url"),
    (ready(url="/v1/embeddings"), "url is '/v1/embeddings'"),
    (ready(url=3), "url is no string"),
    (ready(body=...), "no body"),
    (ready(body=None), "body is no object"),
    (ready(body=[]), "body is no object"),
    (ready(body="{}"), "body is no object"),
    (ready(body={}), "no model in the body"),
    (ready(body={"model": 1}), "model in the body is no string"),
    (ready(body={"model": ""}), "model in the body is empty"),
    (READY.replace(b"[]", b'["\xff"]'), "not valid UTF-8"),
    (READY.replace(b"[]", b'["\xed\xa0\x80"]'), "not valid UTF-8"),
    (READY.replace(b"[]", b'["\\ud83d"]'), "not valid JSON"),
    (READY.replace(b"[]", b'["\\x"]'), "not valid JSON"),
    (READY.replace(b"[]", b"[NaN]"), "not valid JSON"),
    (READY.replace(b"[]", b"[1,]"), "not valid JSON"),
    (READY.replace(b"[]", b"[" * 100_000 + b"]" * 100_000), "nested too deeply"),
    (READY[:-20] + b"\n", "not valid JSON"),
    (ready(answer=None), "'answer' already"),
]


@pytest.mark.parametrize(("line", "words"), BAD_READY)
def test_a_ready_made_row_that_is_unfit_says_why_and_is_seen_in_a_block(line: bytes, words: str) -> None:
    unfit = ReadyRows(CHAT, "answer").shape(line, 3)
    assert words in reason(unfit)
    assert ReadyBlocks(CHAT, "answer", "m").ids([READY, line]) is None


def test_an_unfit_row_keeps_the_id_that_it_has() -> None:
    unfit = ReadyRows(CHAT, None).shape(ready(body=[]), 3)
    assert isinstance(unfit, Unfit)
    assert unfit.custom_id == "a"


@pytest.mark.parametrize(
    "value",
    ["[1e999]", "[" + "9" * 400 + "]", '["\\ud83d\\ude00"]', '["\u2028\u0085"]', "{}", "null", '[{"a":{"b":[]}}]'],
)
def test_any_legal_json_passes_both_ways(value: str) -> None:
    line = READY.replace(b"[]", value.encode())
    assert isinstance(ReadyRows(CHAT, None).shape(line, 0), Request)
    assert ReadyBlocks(CHAT, None, "m").ids([line]) == ["a"]


MUTATIONS = st.lists(st.tuples(st.integers(0, len(READY) - 2), st.binary(min_size=1, max_size=2)), max_size=3)


@given(MUTATIONS)
def test_blocks_and_lines_agree(mutations: list[tuple[int, bytes]]) -> None:
    line = READY
    for at, data in mutations:
        line = line[:at] + data.replace(b"\n", b" ") + line[at + len(data) :]
    if not line.endswith(b"\n"):
        line += b"\n"
    shaped = ReadyRows(CHAT, "answer").shape(line, 0)
    good = isinstance(shaped, Request) and shaped.model == "m"
    ids = ReadyBlocks(CHAT, "answer", "m").ids([line])
    assert (ids is not None) == good
    if isinstance(shaped, Request) and ids is not None:
        assert ids == [shaped.custom_id]


def test_a_block_of_another_model_wants_a_closer_look() -> None:
    assert ReadyBlocks(CHAT, None, "m").ids([READY, ready(body={"model": "k"})]) is None


# -- ids


@given(st.lists(st.one_of(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4), st.sampled_from("abcdefgh"))))
def test_seen_ids_takes_all_or_none(steps: list[list[str] | str]) -> None:
    seen, model = SeenIds(), set[str]()
    for step in steps:
        ids = [step] if isinstance(step, str) else step
        new = len(set(ids)) == len(ids) and model.isdisjoint(ids)
        assert (seen.add(step) if isinstance(step, str) else seen.add_all(step)) is new
        if new:
            model.update(ids)
