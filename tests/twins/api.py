"""MemoryBatchApi: a provider in memory, for simulations under a virtual clock.

Batches live by the clock alone: what has become of one is worked out whenever somebody looks. Every call yields, and a
fault may delay it, fail it, or lose its answer.
"""

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio.lowlevel
import msgspec

from streambatch.core.wire import BatchError, BatchInfo, BatchPage, FileInfo, FilePage
from streambatch.edge.clock import Clock
from streambatch.errors import ApiError

EXPIRED = ("batch_expired", "This request could not be executed before the completion window expired.")
CANCELLED = ("batch_cancelled", "This request was not executed because the batch was cancelled.")


class Row(msgspec.Struct, frozen=True):
    """One request line. Hooks see how often it was executed before."""

    custom_id: str
    body: bytes
    executed: int


class Call(msgspec.Struct, frozen=True):
    """One call, as a fault sees it: before its effect, then `after` it. `subject` is the first argument."""

    name: str
    subject: str
    after: bool
    number: int  # of this name, from 1


class _Request(msgspec.Struct, frozen=True):
    custom_id: str | None = None
    url: str | None = None
    body: msgspec.Raw = msgspec.Raw()


class _Batch(msgspec.Struct):
    """What a batch was created with, when its states end (clock seconds), and what it left."""

    id: str
    file_id: str
    endpoint: str
    metadata: dict[str, str]
    created: float
    requests: list[_Request]
    errors: tuple[BatchError, ...]
    starts: float = 0.0
    finalizes: float = 0.0
    ends: float = math.inf
    ending: str = "completed"
    executes: int = 0
    held: float | None = None  # the part of its rows that is executed while it is stuck
    deaf: bool = False  # a cancel is taken, and nothing comes of it
    done: bool = False
    output_id: str | None = None
    error_id: str | None = None
    failed: int = 0


T = TypeVar("T")
Fault = Callable[[Call], Awaitable[None]]


class MemoryBatchApi:
    """A `BatchApi`. Times in seconds of `clock`; hooks decide per batch or row and must be pure.

    `status_of(row)` is the HTTP status of an executed row; None loses the row: executed, and in neither file.
    `refuse(batch)` gives the error a batch fails with at validation; `expire_at(batch id)` the part of the rows that is
    executed when its window ends (None: it is not held up), `cancelled_at(batch id)` the part after which somebody else cancels
    it, `stuck(batch id)` the part after which it neither moves nor ends (and whether a cancel helps as little); `view(batch)` is
    what a look shows of it. `wrong(custom_id)` is what is wrong with a request line, `line_of(row, line)` what becomes of a
    result line, `content(call, file, data)` what a call sees of a file. Without `turns_pages` every page of the list is its
    first; none has more than `page_rows`. Files are gone after `file_life_s`.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        validation_s: float = 3.0,
        duration_s: Callable[[BatchInfo], float] | float = 60.0,
        finalizing_s: float = 1.0,
        cancelling_s: float = 0.0,
        window_s: float = 86_400.0,
        list_lag_s: float = 0.0,
        latency_s: float = 0.0,
        fault: Fault | None = None,
        status_of: Callable[[Row], int | None] | None = None,
        refuse: Callable[[BatchInfo], BatchError | None] | None = None,
        expire_at: Callable[[str], float | None] | None = None,
        cancelled_at: Callable[[str], float | None] | None = None,
        stuck: Callable[[str], tuple[float, bool] | None] | None = None,
        view: Callable[[BatchInfo], BatchInfo] | None = None,
        wrong: Callable[[str], BatchError | None] | None = None,
        line_of: Callable[[Row, bytes], bytes] | None = None,
        content: Callable[[str, FileInfo, bytes], bytes] | None = None,
        turns_pages: bool = True,
        page_rows: int = 1000,
        file_life_s: float | None = None,
    ) -> None:
        self._clock = clock
        self._validation_s = validation_s
        self._duration_s = duration_s
        self._finalizing_s = finalizing_s
        self._cancelling_s = cancelling_s
        self._window_s = window_s
        self._list_lag_s = list_lag_s
        self._latency_s = latency_s
        self._status_of = status_of
        self._refuse = refuse
        self._expire_at = expire_at
        self._view = view
        self._cancelled_at = cancelled_at
        self._stuck = stuck
        self._wrong = wrong
        self._line_of = line_of
        self._content = content
        self._turns_pages = turns_pages
        self._page_rows = page_rows
        self._file_life_s = file_life_s
        self._files: dict[str, tuple[FileInfo, bytes]] = {}
        self._batches: dict[str, _Batch] = {}
        self._executed: Counter[tuple[str, str]] = Counter()
        self._ids: Counter[str] = Counter()
        self._flying: dict[str, float] = {}  # batch id -> its end
        self._ends: list[tuple[float, str]] = []
        self.fault = fault
        self.calls: Counter[str] = Counter()
        self.most_in_flight = 0

    # -- the witness

    @property
    def executed(self) -> Counter[tuple[str, str]]:
        """How often each (custom_id, hash of the body) was executed, in batches that have ended by now."""
        for batch in self._batches.values():
            self._advance(batch)
        return self._executed

    @property
    def rows_executed_again(self) -> int:
        return sum(times - 1 for times in self.executed.values())

    @property
    def batches(self) -> list[BatchInfo]:
        """All batches ever created, oldest first."""
        return [self._shown(batch) for batch in self._batches.values()]

    @property
    def files(self) -> list[FileInfo]:
        """All files that are there, oldest first."""
        return [info for info, _ in self._files.values()]

    def lose_file(self, file_id: str) -> None:
        """A file goes before its time."""
        del self._files[file_id]

    # -- calls

    async def upload(self, path: str, name: str) -> FileInfo:
        return await self._do("upload", name, lambda: self._keep(Path(path).read_bytes(), name))

    async def file_info(self, file_id: str) -> FileInfo:
        return await self._do("file_info", file_id, lambda: self._info(file_id))

    async def download(self, file_id: str, target: str) -> int:
        return await self._do("download", file_id, lambda: Path(target).write_bytes(self._bytes("download", file_id)))

    async def delete_file(self, file_id: str) -> bool:
        return await self._do("delete_file", file_id, lambda: self._files.pop(file_id, None) is not None)

    async def list_files(self, after: str | None = None, limit: int = 1000) -> FilePage:
        return await self._do("list_files", "" if after is None else after, lambda: self._file_page(after, limit))

    async def create_batch(self, file_id: str, endpoint: str, metadata: dict[str, str]) -> BatchInfo:
        return await self._do("create_batch", file_id, lambda: self._create(file_id, endpoint, dict(metadata)))

    async def get_batch(self, batch_id: str) -> BatchInfo:
        return await self._do("get_batch", batch_id, lambda: self._told(self._batch(batch_id)))

    async def list_batches(self, after: str | None = None, limit: int = 100) -> BatchPage:
        return await self._do("list_batches", "" if after is None else after, lambda: self._page(after, limit))

    async def cancel_batch(self, batch_id: str) -> BatchInfo:
        return await self._do("cancel_batch", batch_id, lambda: self._cancel(self._batch(batch_id)))

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def _do(self, name: str, subject: str, effect: Callable[[], T]) -> T:
        """One call: a moment on the way there, the effect all at once, a moment on the way back."""
        self.calls[name] += 1
        number = self.calls[name]
        await self._moment(Call(name, subject, False, number))
        result = effect()
        await self._moment(Call(name, subject, True, number))
        return result

    async def _moment(self, call: Call) -> None:
        await anyio.lowlevel.checkpoint()
        if self._latency_s:
            await self._clock.sleep(self._latency_s / 2)
        if self.fault is not None:
            await self.fault(call)

    # -- what is kept

    def _keep(self, data: bytes, name: str) -> FileInfo:
        now = float(int(self._clock.wall()))
        until = None if self._file_life_s is None else now + self._file_life_s
        info = FileInfo(self._next("file"), len(data), now, name, until)
        self._files[info.id] = (info, data)
        return info

    def _next(self, kind: str) -> str:
        self._ids[kind] += 1
        return f"{kind}-{self._ids[kind]:06}"

    def _file_page(self, after: str | None, limit: int) -> FilePage:
        """Input files alone, as a list by purpose shows them."""
        results = {file_id for batch in self._batches.values() for file_id in (batch.output_id, batch.error_id)}
        newest_first = [info for info, _ in reversed(self._files.values()) if info.id not in results]
        start = 0
        if after is not None and self._turns_pages:
            start = 1 + next((i for i, info in enumerate(newest_first) if info.id == after), len(newest_first))
        chosen = newest_first[start : start + limit]
        return FilePage(tuple(chosen), start + limit < len(newest_first), chosen[-1].id if chosen else None)

    def _has(self, file_id: str) -> bool:
        kept = self._files.get(file_id)
        return kept is not None and (kept[0].expires_at is None or self._clock.wall() < kept[0].expires_at)

    def _file(self, file_id: str) -> tuple[FileInfo, bytes]:
        if not self._has(file_id):
            raise ApiError(f"The service does not know the file {file_id} (404).", status=404)
        return self._files[file_id]

    def _info(self, file_id: str) -> FileInfo:
        info = self._file(file_id)[0]
        return msgspec.structs.replace(info, bytes=len(self._bytes("file_info", file_id)))

    def _bytes(self, call: str, file_id: str) -> bytes:
        """What a call sees of it."""
        info, data = self._file(file_id)
        return data if self._content is None else self._content(call, info, data)

    def _batch(self, batch_id: str) -> _Batch:
        if batch_id not in self._batches:
            raise ApiError(f"The service does not know the batch {batch_id} (404).", status=404)
        return self._batches[batch_id]

    def _page(self, after: str | None, limit: int) -> BatchPage:
        now = self._clock.wall()
        newest_first = [b for b in reversed(self._batches.values()) if b.created + self._list_lag_s <= now]
        start, limit = 0, min(limit, self._page_rows)
        if after is not None and self._turns_pages:
            start = 1 + next((i for i, b in enumerate(newest_first) if b.id == after), len(newest_first))
        chosen = newest_first[start : start + limit]
        last = chosen[-1].id if chosen else None
        told = [self._told(batch) for batch in chosen]
        named, nameless = (tuple(b for b in told if bool(b.id) is has) for has in (True, False))
        return BatchPage(named, start + limit < len(newest_first), last, float(int(now)), nameless)

    # -- the life of a batch

    def _create(self, file_id: str, endpoint: str, metadata: dict[str, str]) -> BatchInfo:
        requests, errors = self._validate(file_id, endpoint)
        batch = _Batch(self._next("batch"), file_id, endpoint, metadata, self._clock.wall(), requests, errors)
        self._batches[batch.id] = batch
        if self._refuse is not None and not errors and (refused := self._refuse(self._seen(batch))) is not None:
            batch.errors = (refused,)
        self._plan(batch)
        self._watch(batch)
        return self._shown(batch)

    def _watch(self, batch: _Batch) -> None:
        """Count a batch as in flight until it ends; a heap entry whose end was moved is stale."""
        self._flying[batch.id] = batch.ends
        heapq.heappush(self._ends, (batch.ends, batch.id))
        now = self._clock.wall()
        while self._ends and self._ends[0][0] <= now:
            end, batch_id = heapq.heappop(self._ends)
            if self._flying.get(batch_id) == end:
                del self._flying[batch_id]
        self.most_in_flight = max(self.most_in_flight, len(self._flying))

    def _validate(self, file_id: str, endpoint: str) -> tuple[list[_Request], tuple[BatchError, ...]]:
        if not self._has(file_id):
            return [], (BatchError("invalid_request", f"Cannot find file {file_id}.", None, "file_id"),)
        requests: list[_Request] = []
        errors: list[BatchError] = []
        seen: set[str] = set()
        for number, line in enumerate(self._files[file_id][1].split(b"\n")[:-1], 1):
            try:
                request = msgspec.json.decode(line, type=_Request)
            except msgspec.DecodeError:
                errors.append(BatchError("invalid_json_line", "This line is not parseable as valid JSON.", number))
                continue
            errors.extend(_wrong(request, number, endpoint, seen))
            if self._wrong is not None and (wrong := self._wrong(str(request.custom_id))) is not None:
                errors.append(msgspec.structs.replace(wrong, line=number))
            seen.add(str(request.custom_id))
            requests.append(request)
        return requests, tuple(errors)

    def _plan(self, batch: _Batch) -> None:
        """When each state of a batch will end, unless it is cancelled before."""
        rows = len(batch.requests)
        batch.starts = batch.finalizes = batch.ends = batch.created + self._validation_s
        if batch.errors:
            batch.ending = "failed"
            return
        duration = (
            self._duration_s if isinstance(self._duration_s, (int, float)) else self._duration_s(self._seen(batch))
        )
        batch.finalizes = batch.starts + duration
        batch.ends = batch.finalizes + self._finalizing_s
        batch.executes = rows
        deadline = batch.created + self._window_s
        if self._stuck is not None and (stuck := self._stuck(batch.id)) is not None:
            batch.held, batch.deaf = stuck
            batch.finalizes = batch.ends = math.inf
            return
        if self._cancelled_at is not None and (part := self._cancelled_at(batch.id)) is not None:
            batch.executes, batch.ending = int(rows * part), "cancelled"
            batch.finalizes = batch.starts + duration * part
            batch.ends = batch.finalizes + self._cancelling_s
            return
        held = self._expire_at(batch.id) if self._expire_at is not None else None
        if held is not None or batch.ends > deadline:
            batch.executes = int(rows * held) if held is not None else self._by(batch, deadline)
            batch.finalizes = batch.ends = deadline
            batch.ending = "expired"

    def _by(self, batch: _Batch, moment: float) -> int:
        """How many rows are executed by a moment."""
        if batch.held is not None:
            return int(len(batch.requests) * batch.held)
        span = batch.finalizes - batch.starts
        part = 1.0 if moment >= batch.finalizes else max(0.0, moment - batch.starts) / span
        return min(batch.executes, int(len(batch.requests) * part))

    def _cancel(self, batch: _Batch) -> BatchInfo:
        now = self._clock.wall()
        self._advance(batch)
        if not batch.done and not (batch.ending == "cancelled" and now >= batch.finalizes):
            batch.executes = self._by(batch, now)
            batch.ending = "cancelled"
            batch.finalizes = now
            batch.ends = math.inf if batch.deaf else now + self._cancelling_s
            self._watch(batch)
        return self._shown(batch)

    def _advance(self, batch: _Batch) -> None:
        """Let the end of a batch happen, if its time has come: rows are executed, files appear."""
        if batch.done or self._clock.wall() < batch.ends:
            return
        batch.done = True
        if batch.ending == "failed":
            return
        output: list[bytes] = []
        errors: list[bytes] = []
        for index, request in enumerate(batch.requests):
            line, good = self._result(batch, request, index < batch.executes)
            batch.failed += not good
            if line is not None:
                (output if good else errors).append(line)
        batch.output_id = self._keep(_shuffled(output), f"{batch.id}_output.jsonl").id if output else None
        batch.error_id = self._keep(_shuffled(errors), f"{batch.id}_error.jsonl").id if errors else None

    def _result(self, batch: _Batch, request: _Request, executed: bool) -> tuple[bytes | None, bool]:
        """A row's line (None: lost), and whether it is a success."""
        custom_id, body = str(request.custom_id), bytes(request.body)
        if not executed:
            code, message = EXPIRED if batch.ending == "expired" else CANCELLED
            return _line(custom_id, None, {"code": code, "message": message}), False
        key = (custom_id, _digest(body))
        status = 200 if self._status_of is None else self._status_of(Row(custom_id, body, self._executed[key]))
        self._executed[key] += 1
        if status is None:
            return None, True
        answer = (
            answer_to(custom_id, body)
            if status == 200
            else {"error": {"message": "as scripted", "type": "server_error"}}
        )
        line = _line(custom_id, {"status_code": status, "request_id": f"req-{key[1]}", "body": answer}, None)
        if self._line_of is not None:
            line = self._line_of(Row(custom_id, body, self._executed[key] - 1), line)
        return line, status == 200

    def _told(self, batch: _Batch) -> BatchInfo:
        """What a look at it shows."""
        return self._shown(batch) if self._view is None else self._view(self._shown(batch))

    def _shown(self, batch: _Batch) -> BatchInfo:
        self._advance(batch)
        return self._seen(batch)

    def _seen(self, batch: _Batch) -> BatchInfo:
        """As it is, without letting its end happen: hooks are asked before the end is known."""
        status = self._status(batch)
        started = status not in ("validating", "failed")
        total = len(batch.requests) if started else 0
        return BatchInfo(
            id=batch.id,
            status=status,
            input_file_id=batch.file_id,
            output_file_id=batch.output_id,
            error_file_id=batch.error_id,
            created_at=float(int(batch.created)),
            expires_at=float(int(batch.created + self._window_s)),
            total=total,
            completed=total - batch.failed if batch.done else 0,
            failed=batch.failed,
            metadata=batch.metadata,
            errors=batch.errors if status == "failed" else (),
            endpoint=batch.endpoint,
        )

    def _status(self, batch: _Batch) -> str:
        now = self._clock.wall()
        if batch.done:
            return batch.ending
        if batch.ending == "cancelled" and now >= batch.finalizes:
            return "cancelling"
        if now < batch.starts or (batch.ends == math.inf and batch.held is None):
            return "validating"
        return "in_progress" if now < batch.finalizes else "finalizing"


def answer_to(custom_id: str, body: bytes) -> dict[str, object]:
    """What the twin's model answers: it depends on the row, so that a wrong join shows."""
    message = {"role": "assistant", "content": f"answer to {custom_id} {_digest(body)}"}
    usage = {"prompt_tokens": len(body) // 4, "completion_tokens": 5, "total_tokens": len(body) // 4 + 5}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message}], "usage": usage}


def _wrong(request: _Request, number: int, endpoint: str, seen: set[str]) -> list[BatchError]:
    if not request.custom_id:
        return [
            BatchError("missing_required_parameter", "Missing required parameter: 'custom_id'.", number, "custom_id")
        ]
    if request.url != endpoint:
        return [
            BatchError(
                "invalid_url", "The URL provided for this request does not match the batch endpoint.", number, "url"
            )
        ]
    if request.custom_id in seen:
        return [
            BatchError("duplicate_custom_id", "The custom_id for this request is a duplicate.", number, "custom_id")
        ]
    return []


def _line(custom_id: str, response: dict[str, object] | None, error: dict[str, str] | None) -> bytes:
    digest = _digest(custom_id.encode())
    return (
        msgspec.json.encode({"id": f"batch_req_{digest}", "custom_id": custom_id, "response": response, "error": error})
        + b"\n"
    )


def _shuffled(lines: list[bytes]) -> bytes:
    """In an order that is not the input's, and always the same."""
    return b"".join(sorted(lines, key=lambda line: hashlib.md5(line).digest()))


def _digest(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()[:16]
