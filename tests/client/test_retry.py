"""When a call is made again: the decision, and the wrapper that obeys it, under a virtual clock on trio."""

from collections.abc import Awaitable, Callable

import anyio
import pytest
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from streambatch.core.retry import GiveUp, Retry, RetryPolicy, decide, may_repeat_create
from streambatch.core.wire import BatchInfo
from streambatch.edge.retrying import RetryingApi
from streambatch.errors import ApiError
from tests.twins.api import Call, MemoryBatchApi
from tests.twins.clock import VirtualClock

POLICY = RetryPolicy(first_wait_s=1.0, factor=2.0, max_wait_s=60.0, jitter=0.25, max_elapsed_s=900.0, min_attempts=5)


def failure(status: int | None = 503, **fields: object) -> ApiError:
    return ApiError("as scripted", status=status, **{"retryable": True, **fields})  # type: ignore[arg-type]  # fields of ApiError


# -- the decision


def test_waits_grow_to_their_cap() -> None:
    waits = [decide(failure(), attempt, 0.0, POLICY) for attempt in range(1, 9)]
    assert waits == [Retry(s) for s in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0)]


def test_chance_takes_a_part_off() -> None:
    assert decide(failure(), 3, 1.0, POLICY) == Retry(3.0)


def test_what_is_not_retryable_stands() -> None:
    assert decide(failure(400, retryable=False), 1, 0.5, POLICY) == GiveUp()


@settings(deadline=None)  # the machine may be busy
@given(st.floats(0, 800), st.floats(0, 0.99), st.integers(1, 10_000))
def test_a_wait_that_was_asked_for_is_never_cut_short(asked: float, random: float, attempt: int) -> None:
    decision = decide(failure(429, retry_after_s=asked), attempt, random, POLICY)
    assert isinstance(decision, Retry)
    assert decision.after_s >= max(asked, 0.75)


def test_a_wait_beyond_all_patience_ends_it_at_once() -> None:
    assert decide(failure(429, retry_after_s=86_400.0), 1, 0.0, POLICY) == GiveUp()


def test_both_bounds_must_be_reached() -> None:
    assert decide(failure(), 4, 0.0, POLICY, elapsed_s=10_000.0) == Retry(8.0)  # a slow transfer gets its five tries
    assert decide(failure(), 50, 0.0, POLICY, elapsed_s=800.0) == Retry(60.0)
    assert decide(failure(), 5, 0.0, POLICY, elapsed_s=890.0) == GiveUp()


@pytest.mark.parametrize(
    ("error", "may"),
    [
        (failure(None), True),  # refused before it was written
        (failure(409), True),
        (failure(503, maybe_done=True), False),
        (failure(None, maybe_done=True), False),
        (failure(429), False),
        (failure(400, retryable=False), False),
    ],
)
def test_which_creates_may_be_sent_again(error: ApiError, may: bool) -> None:
    assert may_repeat_create(error) is may


# -- the wrapper

VIRTUAL = [pytest.param(("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}), id="trio-virtual")]
pytestmark = pytest.mark.anyio


@pytest.fixture(params=VIRTUAL)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


class Failing:
    """A fault: the first `times` calls of a name fail, before or after their effect."""

    def __init__(self, name: str, times: int, error: Callable[[], ApiError], after: bool = False) -> None:
        self.seen: list[float] = []
        self._name, self._times, self._error, self._after = name, times, error, after

    async def __call__(self, call: Call) -> None:
        if call.name == self._name and call.after == self._after:
            self.seen.append(anyio.current_time())
            if len(self.seen) <= self._times:
                raise self._error()


def wrapped(
    fault: Callable[[Call], Awaitable[None]] | None, policy: RetryPolicy = POLICY
) -> tuple[RetryingApi, MemoryBatchApi]:
    clock = VirtualClock()
    twin = MemoryBatchApi(clock, fault=fault)
    return RetryingApi(twin, policy, clock, lambda: 0.0), twin


async def test_a_call_is_made_again_until_it_works() -> None:
    fault = Failing("list_batches", 3, failure)
    api, _ = wrapped(fault)
    began = anyio.current_time()
    assert (await api.list_batches()).data == ()
    assert [at - began for at in fault.seen] == pytest.approx([0.0, 1.0, 3.0, 7.0])


async def test_it_gives_up_after_a_quarter_of_an_hour() -> None:
    fault = Failing("list_batches", 10_000, failure)
    api, _ = wrapped(fault, RetryPolicy())
    with pytest.raises(ApiError, match="as scripted"):
        await api.list_batches()
    assert 800 < fault.seen[-1] - fault.seen[0] <= 900


async def test_what_is_final_is_not_repeated() -> None:
    api, twin = wrapped(None)
    with pytest.raises(ApiError) as caught:
        await api.get_batch("batch-none")
    assert (caught.value.status, twin.calls["get_batch"]) == (404, 1)


@pytest.mark.parametrize(
    ("error", "creates"),
    [
        (failure(None), 2),
        (failure(503, maybe_done=True), 1),
        (failure(429, retry_after_s=3.0), 1),
        (failure(400, retryable=False), 1),
    ],
)
async def test_creates(error: ApiError, creates: int) -> None:
    api, twin = wrapped(Failing("create_batch", 1, lambda: error))
    if creates == 2:
        assert isinstance(await api.create_batch("file-1", "/v1/x", {}), BatchInfo)
    else:
        with pytest.raises(ApiError) as caught:
            await api.create_batch("file-1", "/v1/x", {})
        assert caught.value is error
    assert twin.calls["create_batch"] == creates
    assert len(twin.batches) == creates - 1


async def test_a_lost_answer_of_a_create_is_never_repeated() -> None:
    api, twin = wrapped(Failing("create_batch", 1, lambda: failure(None, maybe_done=True), after=True))
    with pytest.raises(ApiError):
        await api.create_batch("file-1", "/v1/x", {})
    assert len(twin.batches) == 1


async def test_a_429_holds_back_everyone() -> None:
    fault = Failing("get_batch", 1, lambda: failure(429, retry_after_s=30.0))
    api, twin = wrapped(fault)
    batch = await api.create_batch("file-1", "/v1/x", {})
    began = anyio.current_time()
    ended: list[float] = []

    async def listing() -> None:
        await anyio.sleep(1.0)
        await api.list_batches()
        ended.append(anyio.current_time() - began)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(api.get_batch, batch.id)
        tasks.start_soon(listing)
    assert ended == pytest.approx([30.0])
    assert twin.calls["get_batch"] == 2


async def test_the_429_of_a_create_holds_back_the_others_but_not_if_it_is_about_the_queue() -> None:
    for code, waits in (("rate_limit_exceeded", 20.0), ("token_limit_exceeded", 0.0)):
        api, _ = wrapped(Failing("create_batch", 1, lambda code=code: failure(429, code=code, retry_after_s=20.0)))  # type: ignore[misc]
        began = anyio.current_time()
        with pytest.raises(ApiError):
            await api.create_batch("file-1", "/v1/x", {})
        assert anyio.current_time() - began == 0
        await api.list_batches()
        assert anyio.current_time() - began == pytest.approx(waits)


async def test_other_errors_hold_back_only_their_own_call() -> None:
    api, _ = wrapped(Failing("file_info", 4, failure))
    ended: list[float] = []

    async def listing() -> None:
        began = anyio.current_time()
        await api.list_batches()
        ended.append(anyio.current_time() - began)

    async def looking() -> None:
        with pytest.raises(ApiError, match="404"):
            await api.file_info("file-none")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(looking)
        tasks.start_soon(listing)
    assert ended == [0.0]


async def test_a_wait_can_be_cancelled() -> None:
    api, twin = wrapped(Failing("list_batches", 10, failure))
    with anyio.move_on_after(2.5) as scope:
        await api.list_batches()
    assert scope.cancelled_caught
    assert twin.calls["list_batches"] == 2
