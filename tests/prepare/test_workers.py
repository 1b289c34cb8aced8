"""Executors: the same results everywhere, and worker processes that die, are cancelled, interrupted or orphaned."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest

from streambatch.core.jobs import Merge, Prepare, Prepared, Remainder, Settle
from streambatch.edge import processes
from streambatch.edge.jobs.prepare import prepare
from streambatch.edge.processes import Worker
from streambatch.edge.workers import OTHERS, RANKS, Executor, InlineExecutor, ProcessExecutor, ThreadExecutor, _Turns
from streambatch.errors import SourceError, StorageError, StreambatchError
from tests.prepare.rig import PLAIN, READY, contents, request, whole, write

pytestmark = [pytest.mark.process, pytest.mark.timeout(60)]
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])
PATIENCE_S = 20.0


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    (tmp_path / "spool").mkdir()
    return write(tmp_path, b"".join(request(f"r{i}") for i in range(500)) + b"{}\n")


@pytest.fixture
def job(tmp_path: Path, paths: list[str]) -> Prepare:
    return whole(paths, READY, tmp_path / "spool" / "000000", suffix=".tmp")


@asynccontextmanager
async def closing(executor: ProcessExecutor) -> AsyncIterator[ProcessExecutor]:
    try:
        yield executor
    finally:
        await executor.aclose()
        assert executor.pids == []


def until(true: Callable[[], Any]) -> Any:
    """What `true` says, once it says something."""
    end = time.monotonic() + PATIENCE_S
    while not (value := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
    return value


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def at_work(executor: ProcessExecutor | Worker, path: str, but: tuple[int, ...] = ()) -> int | None:
    """A process that has the input open."""
    pids = executor.pids if isinstance(executor, ProcessExecutor) else [executor.pid]
    for pid in pids:
        if pid is not None and pid not in but and path in _open_files(pid):
            return pid
    return None


def _open_files(pid: int) -> list[str]:
    try:
        return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return []


def hold(job: Prepare) -> str:
    """Keep whoever does the job in the middle of it: its output is a pipe that nobody reads."""
    pipe = f"{job.prefix}-0.jsonl{job.suffix}"
    os.mkfifo(pipe)
    return pipe


# -- the same everywhere


@backends
@pytest.mark.parametrize("make", [InlineExecutor, ThreadExecutor, lambda: ProcessExecutor(2)])
def test_every_executor_makes_the_same(
    tmp_path: Path, job: Prepare, make: Callable[[], Executor], backend: str
) -> None:
    expected = prepare(job)
    files = contents(tmp_path / "spool")

    async def main() -> None:
        executor = make()
        assert await executor.run(job) == expected
        assert await executor.run(job) == expected
        await executor.aclose()

    anyio.run(main, backend=backend)
    assert contents(tmp_path / "spool") == files


@pytest.mark.parametrize("make", [InlineExecutor, ThreadExecutor, lambda: ProcessExecutor(1)])
def test_errors_come_back_as_they_were_and_the_next_job_goes_on(
    tmp_path: Path, paths: list[str], job: Prepare, make: Callable[[], Executor]
) -> None:
    gone = msgspec.structs.replace(job, pieces=(msgspec.structs.replace(job.pieces[0], path="/nowhere"),))
    nowhere = msgspec.structs.replace(job, prefix=str(tmp_path / "nowhere" / "0"))
    bug = msgspec.structs.replace(job, prefix="\0")

    async def main() -> None:
        executor = make()
        with pytest.raises(SourceError, match=r"in-0\.jsonl can't be read") as caught:
            await executor.run(gone)
        assert caught.value.path == "in-0.jsonl"
        with pytest.raises(StorageError, match="No such file or directory"):
            await executor.run(nowhere)
        with pytest.raises((RuntimeError, ValueError), match="embedded null byte"):
            await executor.run(bug)
        assert isinstance(await executor.run(job), Prepared)
        await executor.aclose()

    anyio.run(main)


def test_many_jobs_in_few_processes(tmp_path: Path, paths: list[str]) -> None:
    jobs = [whole(paths, READY, tmp_path / "spool" / f"{n:06d}") for n in range(12)]

    async def main() -> None:
        async with closing(ProcessExecutor(2)) as executor, anyio.create_task_group() as tasks:
            for one in jobs:
                tasks.start_soon(executor.run, one)
            await anyio.lowlevel.checkpoint()
        assert len(executor.pids) <= 2

    anyio.run(main)
    assert len(contents(tmp_path / "spool")) == 12 * 3


# -- turns


def test_what_frees_the_spool_goes_first() -> None:
    assert sorted(RANKS, key=lambda kind: RANKS[kind]) == [Merge, Settle, Remainder, Prepare]
    assert max(RANKS.values()) < OTHERS


@backends
def test_waiting_jobs_take_turns_by_rank_then_by_arrival(backend: str) -> None:
    order: list[str] = []

    async def take(turns: _Turns, rank: int, name: str) -> None:
        async with turns.turn(rank):
            order.append(name)
            await anyio.lowlevel.checkpoint()

    async def main() -> None:
        turns = _Turns(1)
        async with anyio.create_task_group() as tasks, turns.turn(0):
            for rank, name in ((3, "d"), (1, "b"), (3, "e"), (0, "a"), (1, "c")):
                tasks.start_soon(take, turns, rank, name)
                await anyio.wait_all_tasks_blocked()

    anyio.run(main, backend=backend)
    assert order == ["a", "b", "c", "d", "e"]


@backends
def test_a_place_is_not_lost_with_a_cancelled_waiter(backend: str) -> None:
    async def take(turns: _Turns) -> None:
        async with turns.turn(0):
            await anyio.lowlevel.checkpoint()

    async def main() -> None:
        turns = _Turns(2)
        for cancel_first in (True, False):
            async with anyio.create_task_group() as tasks:
                async with turns.turn(0), turns.turn(0):
                    scope = anyio.CancelScope()

                    async def wait(scope: anyio.CancelScope = scope) -> None:
                        with scope:
                            await take(turns)

                    tasks.start_soon(wait)
                    await anyio.wait_all_tasks_blocked()
                    if cancel_first:
                        scope.cancel()
                scope.cancel()  # with its turn just given
        with anyio.fail_after(5):
            async with turns.turn(0), turns.turn(0):
                pass

    anyio.run(main, backend=backend)


# -- processes that come to harm


@linux
@backends
def test_a_process_that_dies_is_replaced_and_its_job_done_again(
    tmp_path: Path, paths: list[str], job: Prepare, backend: str
) -> None:
    pipe = hold(job)

    async def main() -> None:
        async with closing(ProcessExecutor(1)) as executor, anyio.create_task_group() as tasks:

            async def run() -> None:
                assert await executor.run(job) == expected

            tasks.start_soon(run)
            pid = await anyio.to_thread.run_sync(until, lambda: at_work(executor, paths[0]))
            os.unlink(pipe)
            os.kill(pid, signal.SIGKILL)

    expected = prepare(msgspec.structs.replace(job, suffix=".inline"))
    anyio.run(main, backend=backend)
    made = contents(tmp_path / "spool")
    assert made["000000-0.jsonl.tmp"] == made["000000-0.jsonl.inline"]


@linux
def test_a_job_that_kills_its_processes_ends(paths: list[str], job: Prepare) -> None:
    hold(job)
    worker = Worker()

    def murder() -> list[int]:
        killed: list[int] = []
        for _ in range(processes.ATTEMPTS):
            pid = until(lambda: at_work(worker, paths[0], tuple(killed)))
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)
        return killed

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, murder)
            with pytest.raises(StreambatchError, match=r"died 3 times at one job \(signal 9\)"):
                await anyio.to_thread.run_sync(worker.call, job)

    anyio.run(main)
    worker.close()


@linux
@backends
def test_a_cancelled_job_does_not_answer_the_next_one(
    tmp_path: Path, paths: list[str], job: Prepare, backend: str
) -> None:
    hold(job)
    other = whole(paths, READY, tmp_path / "spool" / "000001")

    async def main() -> None:
        async with closing(ProcessExecutor(1)) as executor:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(executor.run, job)
                pid = await anyio.to_thread.run_sync(until, lambda: at_work(executor, paths[0]))
                tasks.cancel_scope.cancel()
            made = await executor.run(other)
            assert isinstance(made, Prepared)
            assert made.shards[0].stem == other.prefix + "-0"
            await anyio.to_thread.run_sync(until, lambda: not alive(pid))

    anyio.run(main, backend=backend)


@linux
def test_closing_ends_a_process_in_the_middle_of_a_job(paths: list[str], job: Prepare) -> None:
    hold(job)

    async def main() -> None:
        executor = ProcessExecutor(1)
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                with pytest.raises(StreambatchError):
                    await executor.run(job)

            tasks.start_soon(run)
            pid = await anyio.to_thread.run_sync(until, lambda: at_work(executor, paths[0]))
            await executor.aclose()
            await anyio.to_thread.run_sync(until, lambda: not alive(pid))

    anyio.run(main)


@linux
def test_an_interrupt_is_the_parents_business(job: Prepare) -> None:
    worker = Worker()
    first = worker.call(job)
    pid = worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGINT)
    assert worker.call(job) == first
    assert worker.pid == pid
    worker.close()
    assert not alive(pid)


ORPHAN = """
import sys, time
from streambatch.core.jobs import Prepare
from streambatch.edge.processes import Worker
import msgspec
job = msgspec.json.decode(sys.argv[1], type=Prepare)
worker = Worker()
worker.start()
print(worker.pid, flush=True)
worker.call(job)
print("done", flush=True)
time.sleep(1000)
"""


@linux
@pytest.mark.parametrize("busy", [False, True])
def test_an_orphan_leaves(job: Prepare, busy: bool) -> None:
    pipe = hold(job) if busy else None
    command = [sys.executable, "-c", ORPHAN, msgspec.json.encode(job).decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if pipe is None:
            assert parent.stdout.readline() == b"done\n"
        else:
            until(lambda: job.pieces[0].path in _open_files(pid))
        parent.kill()
    if pipe is not None:
        assert alive(pid)
        with open(pipe, "rb") as reader:
            reader.read()
    until(lambda: not alive(pid))


# -- what a process gets, and costs


@linux
def test_a_process_gets_no_files_and_no_secrets(tmp_path: Path, job: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-0123456789")
    monkeypatch.setenv("MY_token", "sk-secret-0123456789")
    with open(tmp_path / "lock", "wb") as lock:
        os.set_inheritable(lock.fileno(), True)
        worker = Worker()
        worker.call(job)
        assert worker.pid is not None
        assert str(tmp_path / "lock") not in _open_files(worker.pid)
        assert b"sk-secret" not in Path(f"/proc/{worker.pid}/environ").read_bytes()
        assert b"sk-secret" not in Path(f"/proc/{worker.pid}/cmdline").read_bytes()
        worker.close()


@linux
def test_a_process_at_rest_is_small(job: Prepare) -> None:
    worker = Worker()
    worker.call(job)
    status = Path(f"/proc/{worker.pid}/status").read_text()
    worker.close()
    (resident,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")]
    assert resident < 20 << 10


HEAVY = {
    "asyncio",
    "anyio",
    "aiohttp",
    "aiofiles",
    "click",
    "rich",
    "sqlite3",
    "ssl",
    "http",
    "multiprocessing",
    "logging",
}
LOADED = """
import sys
sys.modules["typing_extensions"] = None
import msgspec
from streambatch.core.jobs import Prepare, Prepared
from streambatch.edge.jobs import serving
for text in sys.argv[1:]:
    reply = serving.answer(msgspec.json.decode(text, type=Prepare))
    assert isinstance(reply, Prepared), reply
    print(*sorted({name.partition(".")[0] for name, module in sys.modules.items() if module is not None}))
"""


def test_a_process_imports_only_what_its_jobs_need(tmp_path: Path, paths: list[str], job: Prepare) -> None:
    plain = whole(paths, PLAIN, tmp_path / "spool" / "1")
    jobs = [msgspec.json.encode(one).decode() for one in (job, plain)]
    code = processes.BOOT.partition("from streambatch")[0].replace("sys.argv[1:]", repr(processes._import_paths()))
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code + LOADED, *jobs], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ready_made, templated = (set(line.split()) for line in done.stdout.splitlines())
    assert not HEAVY & templated
    assert "minijinja" in templated
    assert "minijinja" not in ready_made


def test_the_last_words_of_a_process_are_not_lost(job: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = "import sys\nprint('x' * 1_000_000, file=sys.stderr, flush=True)"
    for code, expected in ((endless, "xxx"), ("raise SystemExit('no room for me')", "exit code 1: no room for me")):
        monkeypatch.setattr(processes, "BOOT", code)
        worker = Worker()
        with pytest.raises(StreambatchError) as caught:
            worker.call(job)
        assert expected in str(caught.value)
        assert len(str(caught.value)) < 400
        worker.close()


def test_without_an_interpreter_no_process_starts(job: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(StreambatchError, match="can't be started: No such file or directory"):
        Worker().call(job)
