"""What a second hostile review found, each as it was reproduced."""

from pathlib import Path

import msgspec
import pytest

from streambatch.configure import GRACE_S, configure, resume
from streambatch.core import events as e
from streambatch.edge.files import RunFiles
from streambatch.engine import opening
from streambatch.errors import ConfigError
from tests.marks import fixed

pytestmark = fixed


@pytest.mark.parametrize(
    "key", ["sk-proj-0123456789abcdef", "gsk_0123456789abcdef", "0123456789abcdef0123456789abcdef"]
)
def test_a_key_in_place_of_its_variable_is_not_repeated(key: str) -> None:
    with pytest.raises(ConfigError, match="There is no key") as caught:
        configure(["in.jsonl"], {"output": "out.jsonl", "api_key_env": key}, {}, "the command")
    assert key not in str(caught.value)


def test_the_variable_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="the variable MY_KEY is not set"):
        configure(["in.jsonl"], {"output": "out.jsonl", "api_key_env": "MY_KEY"}, {}, "the command")


def test_cancel_goes_on_as_the_run_was_told_to(tmp_path: Path) -> None:
    """With a shorter grace than the user's a batch that shows late would be bought again."""
    values = {"output": str(tmp_path / "out.jsonl"), "adopt_grace": 600.0, "max_attempts": 9, "keep_spool": True}
    environ = {"OPENAI_API_KEY": "sk-0123456789"}
    asked = configure([str(tmp_path / "in.jsonl")], values, environ, "the command")
    settings = opening.settings_of(asked, b'{"url":"/v1/chat/completions","body":{"model":"m","messages":[]}}')
    started = e.Started(run_id="r", settings=settings, inputs=(), server_date=0.0, known_id=False)
    opened = opening.opened(asked, RunFiles(str(tmp_path)), ())
    again = resume(started, opened, asked.run_dir, {}, environ)
    assert (again.adopt_grace_s, again.max_attempts, again.keep_spool) == (600.0, 9, True)
    old = msgspec.structs.replace(opened, options="{}")
    assert resume(started, old, asked.run_dir, {}, environ).adopt_grace_s == GRACE_S
