"""The `*_sync` twins: in plain code, in a running loop of asyncio and of trio, interrupted, and with the caller's context."""

import asyncio
import contextvars
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import streambatch
from streambatch.syncing import own_loop
from streambatch.testing import LocalServer, local_server

ROWS = 30
OPTIONS: dict[str, Any] = {
    "model": "m",
    "prompt": "say {{ word }}",
    "max_requests": 10,
    "poll_interval": 0.1,
    "workers": 0,
}
NAME: contextvars.ContextVar[str] = contextvars.ContextVar("name")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rows.jsonl, and in it."""
    lines = [json.dumps({"word": f"w{k}"}) for k in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("OPENAI_", "STREAMBATCH_"))]:
        monkeypatch.delenv(name)
    return tmp_path


def service_of(server: LocalServer) -> streambatch.Service:
    return streambatch.Service(base_url=server.url, api_key=server.api_key)


def test_every_async_function_has_a_twin() -> None:
    for name in streambatch.__all__:
        function = getattr(streambatch, name)
        if not (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)):
            continue
        twin = getattr(streambatch, f"{name}_sync")
        assert not inspect.iscoroutinefunction(twin), name
        assert inspect.signature(twin).parameters == inspect.signature(function).parameters, name


def all_of_them(server: LocalServer) -> None:
    """Each twin once, on one run."""
    service = service_of(server)
    assert streambatch.check_sync(service=service).ok
    assert len(streambatch.preview_sync("rows.jsonl", 2, prompt="{{ word }}", model="m")) == 2
    seen: list[object] = []
    summary = streambatch.run_sync("rows.jsonl", "out.jsonl", service=service, on_event=seen.append, **OPTIONS)
    assert (summary.state, summary.done) == ("finished", ROWS)
    assert any(isinstance(notice, streambatch.Progress) for notice in seen)
    assert [look.state for look in streambatch.watch_sync("out.jsonl")] == ["finished"]
    assert streambatch.status("out.jsonl").progress.done == ROWS
    assert len(streambatch.peek("out.jsonl", 3)) == 3
    assert streambatch.cancel_sync("out.jsonl", service=service).exit_code == 0


@pytest.mark.usefixtures("here")
def test_in_plain_code(streambatch_server: LocalServer) -> None:
    all_of_them(streambatch_server)


@pytest.mark.usefixtures("here")
def test_in_a_loop_of_asyncio(streambatch_server: LocalServer) -> None:
    async def cell() -> None:
        all_of_them(streambatch_server)
        with pytest.raises(streambatch.SourceError):
            streambatch.run_sync("absent.jsonl", "other.jsonl", service=service_of(streambatch_server), **OPTIONS)

    asyncio.run(cell())


@pytest.mark.usefixtures("here")
def test_under_trio(streambatch_server: LocalServer) -> None:
    async def cell() -> None:
        all_of_them(streambatch_server)
        again = partial(
            streambatch.run_sync, "rows.jsonl", "out.jsonl", service=service_of(streambatch_server), **OPTIONS
        )
        assert (await trio.to_thread.run_sync(again)).state == "finished"
        with pytest.raises(streambatch.ConfigError, match="run_sync"):
            await streambatch.run("rows.jsonl", "other.jsonl", service=service_of(streambatch_server), **OPTIONS)
        with pytest.raises(streambatch.ConfigError, match="check_sync"):
            await streambatch.check(service=service_of(streambatch_server))

    trio.run(cell)


@pytest.mark.usefixtures("here")
def test_in_a_thread_beside_a_running_loop(streambatch_server: LocalServer) -> None:
    async def cell() -> None:
        await asyncio.to_thread(all_of_them, streambatch_server)

    asyncio.run(cell())


async def some_rows(n: int) -> AsyncIterator[dict[str, int]]:
    for k in range(n):
        await asyncio.sleep(0)
        yield {"word": k}


@pytest.mark.usefixtures("here")
def test_rows_from_an_async_iterable(streambatch_server: LocalServer) -> None:
    def both() -> None:
        assert len(streambatch.preview_sync(some_rows(5), 2, prompt="{{ word }}", model="m")) == 2
        with tempfile.TemporaryDirectory() as folder:
            options = {**OPTIONS, "service": service_of(streambatch_server)}
            assert streambatch.run_sync(some_rows(5), Path(folder, "out.jsonl"), **options).done == 5

    async def cell() -> None:
        both()

    both()
    asyncio.run(cell())


def test_context_variables_are_the_callers() -> None:
    async def work() -> str:
        await asyncio.sleep(0)
        return NAME.get()

    async def cell() -> str:
        NAME.set("inside")
        return own_loop(work)

    async def trio_cell() -> str:
        NAME.set("under trio")
        return own_loop(work)

    NAME.set("outside")
    assert own_loop(work) == "outside"
    assert asyncio.run(cell()) == "inside"
    assert trio.run(trio_cell) == "under trio"


def test_an_error_of_the_work_is_the_callers() -> None:
    async def work() -> None:
        raise TimeoutError("of its own")

    async def cell() -> None:
        own_loop(work)

    with pytest.raises(TimeoutError, match="of its own"):
        own_loop(work)
    with pytest.raises(TimeoutError, match="of its own"):
        asyncio.run(cell())


def test_work_in_a_loop_leaves_no_thread() -> None:
    async def work() -> int:
        return threading.get_ident()

    async def cell() -> int:
        return own_loop(work)

    before = threading.active_count()
    assert asyncio.run(cell()) != threading.get_ident()
    assert threading.active_count() == before


# -- Ctrl-C

WAYS = {
    "plain": "go()",
    "asyncio": "async def cell():\n    go()\nasyncio.run(cell())",
    "group": (
        "async def cell():\n    async with asyncio.TaskGroup() as tasks:\n        tasks.create_task(step())\n"
        "async def step():\n    go()\nasyncio.run(cell())"
    ),
    "notebook": (  # a loop whose host has left Python's own handler of Ctrl-C in place, as notebooks do
        "async def cell():\n    signal.signal(signal.SIGINT, signal.default_int_handler)\n    go()\nasyncio.run(cell())"
    ),
    "trio": "async def cell():\n    go()\ntrio.run(cell)",
}
PROGRAM = """
import asyncio, signal, sys, trio
import streambatch

signal.signal(signal.SIGINT, signal.default_int_handler)  # as if started by hand: a shell's background job ignores Ctrl-C
service = streambatch.Service(base_url=sys.argv[1], api_key=sys.argv[2])

def heard(notice):
    if isinstance(notice, streambatch.Progress) and notice.in_flight:
        print("in flight", flush=True)

def go():
    streambatch.run_sync(
        "rows.jsonl", "out.jsonl", service=service, on_event=heard,
        model="m", prompt="say {{ word }}", max_requests=10, poll_interval=0.1, workers=0,
    )

try:
{way}
except KeyboardInterrupt:
    print("interrupted", streambatch.status("out.jsonl").state, flush=True)
"""


@pytest.mark.process
@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_stops_the_run_and_it_can_go_on(here: Path, way: str) -> None:
    code = PROGRAM.replace("{way}", textwrap.indent(WAYS[way], "    "))
    with local_server(speed=3) as server:  # a batch takes more than a second: the stop comes first
        words = [sys.executable, "-c", code, server.url, server.api_key]
        with subprocess.Popen(words, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "in flight\n", process.stderr.read()
            process.send_signal(signal.SIGINT)
            told, errors = process.communicate(timeout=30)
        assert told.split("\n")[-2] == "interrupted stopped", errors  # the lock is free: the engine has left
        assert (process.returncode, errors) == (0, "")
        assert not (here / "out.jsonl").exists()
        resumed = streambatch.run_sync("rows.jsonl", "out.jsonl", service=service_of(server), **OPTIONS)
        assert (resumed.state, resumed.done) == ("finished", ROWS)
        assert (server.ledger()["rows_executed"], server.ledger()["batches"]) == (ROWS, 3)
