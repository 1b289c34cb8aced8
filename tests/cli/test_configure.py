"""Options -> Config: defaults, the service's own variables, the key, and what refuses."""

from pathlib import Path
from typing import Any

import pytest

from streambatch.config import Config
from streambatch.configure import configure, resume
from streambatch.core.events import Opened, Started
from streambatch.core.models import InputFile, Settings, Shaping, ShardLimits
from streambatch.edge.service import LOCAL, Service
from streambatch.errors import ConfigError
from streambatch.options import parse_all

KEY = {"OPENAI_API_KEY": "sk-1"}


def made(tmp_path: Path, environ: dict[str, str], *, service: Service | None = None, **given: Any) -> Config:
    values = parse_all({"output": tmp_path / "out.jsonl", **given})
    return configure(["in.jsonl"], values, environ, "the command", service)


def test_defaults(tmp_path: Path) -> None:
    config = made(tmp_path, KEY)
    assert config.output == str(tmp_path / "out.jsonl")
    assert config.run_dir == str(tmp_path / "out.jsonl.run")
    assert config.service == Service(api_key="sk-1")
    assert config.service.base_url == "https://api.openai.com/v1"
    assert (config.max_batches, config.max_transfers, config.max_attempts) == (64, 4, 3)
    assert (config.adopt_grace_s, config.poll_interval_s, config.limit) == (120.0, None, None)
    assert config.limits == ShardLimits(50_000, 209_715_200, 32 << 20)
    assert config.workers in (1, 2)


def test_every_flag_reaches_the_config(tmp_path: Path) -> None:
    config = made(
        tmp_path, KEY, run_dir=tmp_path / "r", run_id="a-1", label={"team": "x"}, endpoint="/v1/responses", model="m", system="s",
        prompt="p", param={"n": 1}, id="key", null="skip", emit="results", column="c", max_requests=7, max_bytes="1MB",
        max_line_bytes="1KiB", max_batches=3, max_transfers=2, workers=0, limit=9, poll_interval="1s", adopt_grace=5, once=True,
        stop_after="1h", max_attempts=1, on_bad_row="stop", max_errors="5%", if_exists="overwrite",
    )  # fmt: skip
    asked = config.asked
    assert (asked.endpoint, asked.model, asked.system, asked.prompt, asked.params) == (
        "/v1/responses",
        "m",
        "s",
        "p",
        (("n", "1"),),
    )
    assert (asked.id_field, asked.null, asked.emit, asked.column) == ("key", "skip", "results", "c")
    assert config.limits == ShardLimits(7, 1_000_000, 1024)
    assert (config.run_dir, config.run_id, config.labels) == (str(tmp_path / "r"), "a-1", (("team", "x"),))
    assert (config.max_batches, config.max_transfers, config.workers, config.limit) == (3, 2, 0, 9)
    assert (config.poll_interval_s, config.adopt_grace_s, config.once, config.stop_after_s) == (1.0, 5.0, True, 3600.0)
    assert (config.max_attempts, config.on_bad_row, config.if_exists, config.max_errors.percent) == (
        1,
        "stop",
        "overwrite",
        5.0,
    )


def test_variables_of_the_official_sdk(tmp_path: Path) -> None:
    environ = {**KEY, "OPENAI_BASE_URL": "https://x.example/v1/", "OPENAI_ORG_ID": "o", "OPENAI_PROJECT_ID": "p"}
    service = made(tmp_path, environ).service
    assert (service.base_url, service.organization, service.project) == ("https://x.example/v1", "o", "p")
    assert made(tmp_path, environ, base_url="https://y.example").service.base_url == "https://y.example"
    assert made(tmp_path, {**environ, "OPENAI_BASE_URL": ""}).service.base_url == "https://api.openai.com/v1"


def test_where_the_key_comes_from(tmp_path: Path) -> None:
    assert made(tmp_path, {"MINE": " sk-2\n"}, api_key_env="MINE").service.api_key == "sk-2"
    file = tmp_path / "key"
    file.write_text("sk-3\n", encoding="utf-8")
    read = made(tmp_path, KEY, api_key_file=file).service.api_key
    assert callable(read)
    assert read() == "sk-3"
    file.write_text("sk-4", encoding="utf-8")
    assert read() == "sk-4"


def test_headers_take_their_values_from_variables(tmp_path: Path) -> None:
    service = made(tmp_path, {**KEY, "TEAM": "blue"}, header={"X-Team": "env:TEAM"}).service
    assert service.headers == (("X-Team", "blue"),)
    assert "blue" not in repr(service)


def test_local_needs_no_key_and_waits_a_second(tmp_path: Path) -> None:
    config = made(tmp_path, {"OPENAI_BASE_URL": "https://x.example"}, local=True, speed=3, seed=4)
    assert (config.local, config.service.base_url, config.adopt_grace_s) == (True, LOCAL, 1.0)
    assert (config.local_speed, config.local_seed) == (3.0, 4)
    assert made(tmp_path, {}, local=True, adopt_grace=7).adopt_grace_s == 7.0


def test_a_service_made_by_hand(tmp_path: Path) -> None:
    mine = Service(base_url="https://x.example", api_key="sk-9")
    assert made(tmp_path, {}, service=mine).service is mine
    with pytest.raises(ConfigError, match="Both service and base_url"):
        made(tmp_path, {}, service=mine, base_url="https://y.example")
    with pytest.raises(ConfigError, match="Both local and another service"):
        made(tmp_path, {}, service=mine, local=True)


def test_a_prompt_file_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes("\ufeffsay {{ word }}\r\n  é\n".encode())
    assert made(tmp_path, KEY, prompt_file=file).asked.prompt == "say {{ word }}\r\n  é"
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        made(tmp_path, KEY, prompt_file=file)


@pytest.mark.parametrize("base_url", ["local", "LOCAL", "ftp://x", "x.example", "https://user:pw@x.example"])
def test_an_address_that_is_none(tmp_path: Path, base_url: str) -> None:
    with pytest.raises(ConfigError) as told:
        made(tmp_path, KEY, base_url=base_url)
    assert "pw" not in str(told.value)


def started(base_url: str) -> tuple[Started, Opened]:
    shaping = Shaping(ready_made=False, model="m", prompt="p", params=(("n", "1"),), column="c")
    settings = Settings(base_url, None, None, "openai", shaping, ShardLimits(5), "rows", "c")
    file = InputFile("in.jsonl", "/d/in.jsonl", 3, 0)
    began = Started(run_id="r1", settings=settings, inputs=(file,), server_date=0.0, known_id=False)
    return began, Opened(
        host="h", boot_id="", inode=1, options="{}", inputs=(file,), output="/d/out", command="the command"
    )


def test_another_command_goes_on_with_a_run() -> None:
    config = resume(*started("https://x.example"), "/d/out.run", {}, KEY)
    assert (config.service.base_url, config.service.api_key) == ("https://x.example", "sk-1")
    assert (config.inputs, config.output, config.run_id, config.command) == (
        ("/d/in.jsonl",),
        "/d/out",
        "r1",
        "the command",
    )
    assert (config.asked.prompt, config.asked.emit, config.asked.column, config.limits) == (
        "p",
        "rows",
        "c",
        ShardLimits(5),
    )
    assert resume(*started(LOCAL), "/d/out.run", {}, {}).local
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        resume(*started("https://x.example"), "/d/out.run", {}, {})


@pytest.mark.parametrize("name", ["output", "run_dir"])
def test_a_path_that_is_no_text_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\\udcff' is no text in this locale: give it a name in UTF-8"):
        made(tmp_path, KEY, model="m", prompt="x", **{name: f"{tmp_path}/o\udcff"})  # type: ignore[arg-type]  # one of the options, by its name
