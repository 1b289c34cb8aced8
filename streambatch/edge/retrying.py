"""RetryingApi: a BatchApi around a BatchApi that tries failed calls again, as `core.retry` decides.

A 429 holds back all callers until its time has passed. Any event loop; knows no HTTP.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from streambatch.core.retry import Retry, RetryPolicy, decide, may_repeat_create
from streambatch.core.wire import BatchInfo, BatchPage, FileInfo, FilePage
from streambatch.edge.client import BatchApi
from streambatch.edge.clock import Clock
from streambatch.errors import ApiError

T = TypeVar("T")
QUEUE_CODES = frozenset(
    {"token_limit_exceeded", "request_limit_exceeded"}
)  # about one model's queue, not about the pace of calls


class RetryingApi:
    """Calls `inner`, again where that can help; `random` gives numbers in [0, 1). Raises the last ApiError when it gives up."""

    def __init__(self, inner: BatchApi, policy: RetryPolicy, clock: Clock, random: Callable[[], float]) -> None:
        self._inner = inner
        self._policy = policy
        self._clock = clock
        self._random = random
        self._opens_at = float("-inf")  # monotonic: no call starts before

    async def upload(self, path: str, name: str) -> FileInfo:
        return await self._call(lambda: self._inner.upload(path, name))

    async def create_batch(self, file_id: str, endpoint: str, metadata: dict[str, str]) -> BatchInfo:
        return await self._call(lambda: self._inner.create_batch(file_id, endpoint, metadata), may_repeat_create)

    async def get_batch(self, batch_id: str) -> BatchInfo:
        return await self._call(lambda: self._inner.get_batch(batch_id))

    async def list_batches(self, after: str | None = None, limit: int = 100) -> BatchPage:
        return await self._call(lambda: self._inner.list_batches(after, limit))

    async def cancel_batch(self, batch_id: str) -> BatchInfo:
        return await self._call(lambda: self._inner.cancel_batch(batch_id))

    async def download(self, file_id: str, target: str) -> int:
        return await self._call(lambda: self._inner.download(file_id, target))

    async def file_info(self, file_id: str) -> FileInfo:
        return await self._call(lambda: self._inner.file_info(file_id))

    async def list_files(self, after: str | None = None, limit: int = 1000) -> FilePage:
        return await self._call(lambda: self._inner.list_files(after, limit))

    async def delete_file(self, file_id: str) -> bool:
        return await self._call(lambda: self._inner.delete_file(file_id))

    async def aclose(self) -> None:
        await self._inner.aclose()

    # -- one call

    async def _call(
        self, attempt_once: Callable[[], Awaitable[T]], may_repeat: Callable[[ApiError], bool] | None = None
    ) -> T:
        attempt = 0
        first_failure: float | None = None
        while True:
            await self._pass_gate()
            try:
                return await attempt_once()
            except ApiError as error:
                attempt += 1
                now = self._clock.monotonic()
                first_failure = now if first_failure is None else first_failure
                self._slow_down(error, now)
                decision = decide(error, attempt, self._random(), self._policy, now - first_failure)
                if not isinstance(decision, Retry) or (may_repeat is not None and not may_repeat(error)):
                    raise
            await self._clock.sleep(decision.after_s)

    async def _pass_gate(self) -> None:
        while (wait_s := self._opens_at - self._clock.monotonic()) > 0:
            await self._clock.sleep(wait_s)

    def _slow_down(self, error: ApiError, now: float) -> None:
        """A 429 that names a time closes the gate for all, unless it speaks of one model's queue."""
        if error.status == 429 and error.retryable and error.code not in QUEUE_CODES:
            wait_s = self._policy.first_wait_s if error.retry_after_s is None else error.retry_after_s
            self._opens_at = max(self._opens_at, now + min(wait_s, self._policy.max_elapsed_s))
