"""The two clocks: monotonic for waits, wall for deadlines. Holds no policy; tests put a virtual one in its place."""

import time
from typing import Protocol

import anyio


class Clock(Protocol):
    """Where time comes from. All in seconds; `wall` is unix time."""

    def wall(self) -> float: ...

    def monotonic(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's own clocks."""

    def wall(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)
