"""Looks around at a steady pace: progress to the listener, the status file, a request to cancel, the time to stop."""

import anyio
import msgspec

from streambatch.core.report import Progress
from streambatch.edge import files as disk
from streambatch.engine import inspect
from streambatch.engine.context import Listener, Visit

STATUS_EVERY_S = 2.0
STALE_S = 5.0  # a look that found nothing new is taken again after this


class Ticker:
    """Tells others; decides nothing but to end a visit on time."""

    def __init__(self, visit: Visit, listen: Listener, every_s: float) -> None:
        self._visit = visit
        self._listen = listen
        self._every_s = every_s
        self._written = float("-inf")
        self._taken = float("-inf")
        self._appended = -1
        self._seen = Progress(run_id=visit.started.run_id, phase=visit.phase)

    async def run(self) -> None:
        visit = self._visit
        while True:
            self._listen(await self._look())
            if await visit.world.blocking(visit.files.cancel.exists):
                visit.cancel()
            self._stop_in_time()
            await anyio.sleep(self._every_s)

    async def last(self) -> None:
        """The final look, whatever the pace."""
        self._written = self._taken = float("-inf")
        self._listen(await self._look())
        await self._visit.world.blocking(lambda: self._visit.files.cancel.unlink(missing_ok=True))

    def _stop_in_time(self) -> None:
        visit = self._visit
        after = visit.config.stop_after_s
        if after is not None and visit.world.clock.monotonic() - visit.began >= after and not visit.once:
            visit.once = True
            visit.bell.ring()

    async def _look(self) -> Progress:
        visit = self._visit
        now = visit.world.clock.monotonic()
        elapsed = now - visit.began
        if self._appended != visit.journal.appended or now - self._taken >= STALE_S:
            self._appended, self._taken = visit.journal.appended, now
            self._seen = await visit.journal.read(
                inspect.progress, phase=visit.phase, elapsed_s=elapsed, note=visit.note
            )
        look = msgspec.structs.replace(self._seen, phase=visit.phase, elapsed_s=elapsed, note=visit.note)
        if now - self._written >= STATUS_EVERY_S:
            self._written = now
            data = await visit.journal.read(inspect.snapshot, look)
            await visit.world.blocking(lambda: disk.write_atomic(visit.files.status, data, sync=False))
        return look
