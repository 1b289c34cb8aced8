"""What one result line says, whole or cut, and whether an unfinished one is complete."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.heads import complete, pick
from streambatch.core.models import Usage
from streambatch.core.results import Verdict, decode_usual, read_ends, read_head, read_line, usage_of
from tests.merge.rig import encode, failure, success, unanswered

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=4), json_values, max_size=4)


@given(objects, st.booleans(), st.data())
def test_an_object_is_complete_at_its_end_only(value: dict[str, object], ascii_only: bool, data: st.DataObject) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    at = data.draw(st.integers(0, len(text)))
    assert complete((text[:at], text[at:]))
    assert complete((text, b" \r"))
    assert all(not complete((text[:at], text[at:end])) for end in range(at, len(text)))


@pytest.mark.parametrize("text", [b"", b" ", b"[]", b'"{}"', b"1}", b"{}1", b'{}"x"', b"{}]", b'{"a\\"}', b'{"a": [}'])
def test_other_texts_are_not_complete_objects(text: bytes) -> None:
    assert not complete((text,))


@given(st.text(max_size=8), objects, st.integers(0, 3))
def test_a_head_finds_the_named_scalars_wherever_it_is_cut(
    custom_id: str, noise: dict[str, object], place: int
) -> None:
    pairs = list({**noise, "custom_id": None, "response": None}.items())
    fields = dict(pairs[:place] + pairs[place:])
    line = {**fields, "custom_id": custom_id, "response": {"x": [1, {"custom_id": "no"}], "status_code": 207}}
    text = json.dumps(line).encode() + b"\n"
    names = {(b'"custom_id"',): "id", (b'"response"', b'"status_code"'): "status"}
    assert pick(text, names) == {"id": custom_id, "status": 207}
    for end in range(len(text)):
        assert pick(text[:end], names).items() <= {"id": custom_id, "status": 207}.items()


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        (success("a"), Verdict("a", 200, usage=Usage(7, 2, 3))),
        (failure("a", 400, "c", "m"), Verdict("a", 400, None, "c", "m")),
        (unanswered("a", "batch_expired", "m"), Verdict("a", None, "batch_expired", None, "m")),
        ({"custom_id": "a", "response": {"status_code": 200}}, Verdict("a", 200)),
        ({"custom_id": "a", "error": {"code": 500, "message": "m"}}, Verdict("a", None, "500", None, "m")),
        (
            {"custom_id": "a", "response": {"status_code": 0, "request_id": "", "body": {}}, "error": None},
            Verdict("a", 0),
        ),
        ({"custom_id": "a", "response": {"status_code": "503", "body": None}}, Verdict("a", 503)),
        ({"custom_id": "a", "response": None, "error": None}, Verdict("a", None)),
        ({"custom_id": "a", "response": {"body": {"x": 1}}}, Verdict("a", 0)),
        (
            {"custom_id": "a", "response": {"status_code": 200, "body": '{"usage": {"input_tokens": 4}}'}},
            Verdict("a", 200, usage=Usage(4)),
        ),
        ({"custom_id": 7, "response": {"status_code": 200}}, None),
        ({"response": {"status_code": 200}}, None),
    ],
)
def test_read_line(line: dict[str, object], verdict: Verdict | None) -> None:
    assert read_line(encode(line)) == verdict


def test_lines_that_decoders_refuse_count_while_their_structure_holds() -> None:
    half = encode(success("a", "half \ud83d"), ascii_only=True)
    latin = encode(success("a", "caf~")).replace(b"~", b"\xe9")
    assert read_line(half) == Verdict("a", 200)
    assert read_line(latin) == Verdict("a", 200)
    assert read_line(half[:-1]) == Verdict("a", None, malformed=True)
    assert read_line(b"garbage") is None


def test_a_line_that_breaks_off_says_whose_it_is() -> None:
    whole = encode(failure("a", 400))
    broken = Verdict("a", None, malformed=True)
    seen = [read_line(whole[:end]) for end in range(1, len(whole))]
    assert seen == sorted(seen, key=lambda verdict: verdict is not None)
    assert set(seen) == {None, broken}
    assert read_ends(whole[:80], b"x") == broken
    assert read_ends(whole, b"} \r") == read_line(whole)


def test_a_head_and_a_tail_tell_what_a_whole_line_tells() -> None:
    text = encode(success("a", 'x "usage": {"prompt_tokens": 900} ' * 9))
    assert read_head(text[:120], text[-200:]) == read_line(text) == Verdict("a", 200, usage=Usage(7, 2, 3))
    assert read_head(text[:120]) == Verdict("a", 200)
    assert read_head(text[:20]) is None


def test_the_usual_line_gives_its_usage_under_either_name() -> None:
    line = success("a")
    line["response"]["body"]["usage"] = {
        "input_tokens": 5,
        "output_tokens": 6,
        "input_tokens_details": {"cached_tokens": 1},
    }
    body = decode_usual(encode(line)).response.body
    assert body is not None
    assert body.usage is not None
    assert usage_of(body.usage) == Usage(5, 1, 6)
