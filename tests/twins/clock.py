"""A clock that shows the event loop's own time: under trio's MockClock it is virtual, and a day passes in no time."""

import anyio


class VirtualClock:
    """A `Clock` whose wall time is `epoch` plus the loop's time."""

    def __init__(self, epoch: float = 1_800_000_000.0) -> None:
        self._epoch = epoch

    def wall(self) -> float:
        return self._epoch + anyio.current_time()

    def monotonic(self) -> float:
        return anyio.current_time()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)
