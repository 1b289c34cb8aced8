"""Refused settings: the words that users type, and both values."""

from typing import Any

import msgspec
import pytest

from streambatch.core.agreeing import cut_difference, difference
from streambatch.core.models import Settings, Shaping, ShardLimits
from streambatch.core.tags import cut_text

PLAIN = Shaping(ready_made=False, model="m", prompt="say {{ word }}")
RUN = Settings("https://x.example/v1", None, None, "openai", PLAIN, ShardLimits(), "rows", "answer")


def other(**changes: Any) -> Settings:
    """The run's settings with some changed, wherever they are."""
    parts: dict[str, dict[str, Any]] = {"shaping": {}, "limits": {}}
    for name in list(changes):
        for part in parts:
            if name in getattr(RUN, part).__struct_fields__ and name not in RUN.__struct_fields__:
                parts[part][name] = changes.pop(name)
    within = {part: msgspec.structs.replace(getattr(RUN, part), **parts[part]) for part in parts}
    return msgspec.structs.replace(RUN, **within, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"emit": "results", "column": ""}, "with --emit rows, now it is run with --emit results"),
        ({"base_url": "local"}, "with --base-url https://x.example/v1, now it is run with --local"),
        ({"profile": "groq", "base_url": "https://y"}, "with --profile openai, now it is run with --profile groq"),
        ({"project": "p1"}, "without OPENAI_PROJECT_ID, now it is run with OPENAI_PROJECT_ID p1"),
        ({"id_field": "n"}, "without --id, now it is run with --id n"),
        ({"system": "Be brief"}, "without --system, now it is run with --system 'Be brief'"),
        ({"params": (("temperature", "1"),)}, "without --param temperature, now it is run with --param temperature=1"),
        ({"column": "reply"}, "with --column answer, now it is run with --column reply"),
        ({"max_requests": 7}, "with --max-requests 50000, now it is run with --max-requests 7"),
        ({"ready_made": True, "emit": "results"}, "with plain rows, now it is run with ready-made requests"),
    ],
)
def test_a_setting_that_differs(changes: dict[str, Any], said: str) -> None:
    told = difference(RUN, other(**changes))
    assert told == f"This run was started {said}; use the first, or start a new run with another -o."


def test_settings_that_agree() -> None:
    assert difference(RUN, other()) is None


def test_parameters_are_compared_one_by_one() -> None:
    before = other(params=(("a", "1"), ("b", "2")))
    assert "started with --param b=2, now it is run with --param b=3;" in str(
        difference(before, other(params=(("a", "1"), ("b", "3"))))
    )
    assert "with its --param in another order" in str(difference(before, other(params=(("b", "2"), ("a", "1")))))


def test_long_prompts_are_shown_where_they_differ() -> None:
    long = "x" * 500
    told = str(difference(other(prompt=f"{long} north {long}"), other(prompt=f"{long} south {long}")))
    assert "north" in told
    assert "south" in told
    assert len(told) < 400


def test_what_a_batch_tells_of_its_cut() -> None:
    now = cut_text(RUN)
    assert cut_difference(cut_text(other(max_requests=7)), now) == "with --max-requests 7, not 50000"
    assert cut_difference(cut_text(other(max_bytes=9)), now) == "with --max-bytes 9, not 209715200"
    assert "--prompt" in cut_difference(cut_text(other(prompt="other")), now)
    assert "--prompt" in cut_difference("foreign", now)
