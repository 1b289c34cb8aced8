"""Async work for callers without `await`: in an event loop of its own, and in a thread of its own where one is running.

Knows nothing of runs. Whatever interrupts the caller cancels the work and waits for its end.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, wait
from typing import TypeVar

import anyio
import anyio.from_thread

from streambatch.errors import ConfigError

T = TypeVar("T")
LOOK_EVERY_S = 0.1


def own_loop(work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`, as if it had been awaited; context variables are the caller's."""
    if not _inside_a_loop():
        return anyio.run(work)
    with (
        anyio.from_thread.start_blocking_portal() as portal
    ):  # left by an exception it cancels the work and waits for its end
        return _result(portal.start_task_soon(work))


def need_asyncio(twins: str) -> None:
    """Refuse another event loop than asyncio's, before anything is sent. Raises ConfigError."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigError(
            f"This event loop is not asyncio's, by which services are reached; call {twins} instead."
        ) from None


def _inside_a_loop() -> bool:
    """Whether this thread runs an event loop: asyncio's, or another that anyio knows."""
    for look in (asyncio.get_running_loop, anyio.get_current_task):
        with contextlib.suppress(RuntimeError):  # how both say no
            look()
            return True
    return False


def _result(future: "Future[T]") -> T:
    """Wait for it. asyncio's own handler of Ctrl-C only marks a task of the loop that we block, so the mark is looked for."""
    before = _marks()
    while not wait([future], LOOK_EVERY_S).done:
        if _marks() > before:
            raise asyncio.CancelledError
    return future.result()


def _marks() -> int:
    """How often tasks of this thread's loop were asked to stop; it stands still, so only a signal can add one."""
    try:
        return sum(task.cancelling() for task in asyncio.all_tasks())
    except RuntimeError:  # another loop than asyncio's, whose handler raises
        return 0
