"""Executes a chunk of a batch's rows: reads request lines, writes result lines and ledger hashes, and says how far it came.

Everything is written at the committed lengths, so what a killed process left behind them is written over. Commits nothing.
"""

import os
from array import array
from pathlib import Path
from typing import Any

import msgspec
from xxhash import xxh3_64_intdigest

from streambatch.server.accounts import IN_ERROR, IN_OUTPUT, NOWHERE, names_path
from streambatch.server.answers import Answer, Answerer, failed, name_in, unanswered
from streambatch.server.faults import Faults
from streambatch.server.ledger import HASH_BYTES, hashes_path
from streambatch.server.mishaps import MESSAGES, MISHAPS, Chunk
from streambatch.server.profiles import plain_endpoint
from streambatch.server.records import Batch
from streambatch.server.rowerrors import RowError
from streambatch.server.validation import MAX_LINE_BYTES

MOST_ROWS, MOST_BYTES, CHUNKS = 500, 4 << 20, 8

UNEXECUTED = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed because the batch was cancelled."),
}


class Named(msgspec.Struct):
    custom_id: str


def chunk_rows(total: int) -> int:
    """Rows executed at a time: a function of the batch alone, so that results always come in the same order."""
    return max(1, min(MOST_ROWS, -(-total // CHUNKS)))


class Execution:
    """The files of all batches below one folder."""

    def __init__(self, contents: Path, ledger: Path, answerer: Answerer, seed: int) -> None:
        self._contents = contents
        self._ledger = ledger
        self._answerer = answerer
        self._seed = seed
        self._name = msgspec.json.Decoder(Named).decode

    def execute(self, batch: Batch, rows: int, faults: Faults) -> dict[str, Any]:
        """Execute up to `rows` more rows; the columns of the batch that changed."""
        lines = self._read(batch, rows)
        bare = [line.rstrip(b"\r\n") for line in lines]
        chunk, names = self._answer_all(bare, batch, faults)
        marks = array("Q", map(xxh3_64_intdigest, bare))
        _write_at(hashes_path(self._ledger, batch.key), marks.tobytes(), HASH_BYTES * batch.executed)
        _write_at(names_path(self._ledger, batch.key), names, batch.names_bytes)
        done = self._store_results(batch, lines, chunk)
        return done | {
            "executed": batch.executed + len(lines),
            "completed": batch.completed + chunk.completed,
            "failed": batch.failed + chunk.failed,
            "lost": batch.lost + chunk.lost,
            "names_bytes": batch.names_bytes + len(names),
            "input_tokens": batch.input_tokens + chunk.input_tokens,
            "output_tokens": batch.output_tokens + chunk.output_tokens,
        }

    def _answer_all(self, lines: list[bytes], batch: Batch, faults: Faults) -> tuple[Chunk, bytes]:
        """What becomes of each line, and the ledger's list of them: where its result stands, and its custom_id."""
        chunk, endpoint = Chunk(), plain_endpoint(batch.endpoint)
        answers = [self._answer(endpoint, line) for line in lines]
        if not faults.has_rows:
            chunk.take_all(answers)
            wheres = [IN_OUTPUT if answer.ok else IN_ERROR for answer in answers]
        else:
            wheres = [self._meet(chunk, *each, batch.id, faults) for each in zip(lines, answers, strict=True)]
        names = [where + name_in(answer.line) + b"\n" for where, answer in zip(wheres, answers, strict=True)]
        return chunk, b"".join(names)

    def _meet(self, chunk: Chunk, line: bytes, answer: Answer, batch_id: str, faults: Faults) -> bytes:
        """Take one row's answer, or what the script makes of it; where its result stands."""
        errors, lost, custom_id = len(chunk.errors), chunk.lost, self._name(line).custom_id
        rule = faults.row(custom_id, batch_id)
        if rule is None:
            chunk.take(answer)
        else:
            MISHAPS[type(rule)](chunk, rule, custom_id, answer)
        if chunk.lost > lost:
            return NOWHERE
        return IN_ERROR if len(chunk.errors) > errors else IN_OUTPUT

    def leave(self, batch: Batch, rows: int) -> dict[str, Any]:
        """Put up to `rows` more rows into the error file as never executed; the columns that changed."""
        lines = self._read(batch, rows)
        code, message = UNEXECUTED[batch.ending]
        chunk = Chunk()
        chunk.errors = [unanswered(self._seed, self._name(line).custom_id, code, message) for line in lines]
        return self._store_results(batch, lines, chunk)

    def _read(self, batch: Batch, rows: int) -> list[bytes]:
        lines: list[bytes] = []
        size = 0
        with (self._contents / batch.input_content).open("rb", buffering=1 << 18) as file:
            file.seek(batch.offset)
            while len(lines) < rows and size < MOST_BYTES and (line := file.readline(MAX_LINE_BYTES)):
                lines.append(line)
                size += len(line)
        return lines

    def _store_results(self, batch: Batch, lines: list[bytes], chunk: Chunk) -> dict[str, Any]:
        """Write result lines, in an order that is not the input's but always the same."""
        output, error = b"".join(sorted(chunk.outputs)), b"".join(sorted(chunk.errors))
        _write_at(self._contents / results_name(batch.key, "output"), output, batch.output_bytes)
        _write_at(self._contents / results_name(batch.key, "error"), error, batch.error_bytes)
        return {
            "row": batch.row + len(lines),
            "offset": batch.offset + sum(map(len, lines)),
            "output_bytes": batch.output_bytes + len(output),
            "output_rows": batch.output_rows + len(chunk.outputs),
            "error_bytes": batch.error_bytes + len(error),
            "error_rows": batch.error_rows + len(chunk.errors),
        }

    def _answer(self, endpoint: str, line: bytes) -> Answer:
        try:
            return self._answerer.answer(endpoint, line)
        except Exception as error:  # noqa: BLE001  no request line may stop the server: it is that row's error
            told = RowError(f"{MESSAGES[500]} ({type(error).__name__})")
            return failed("0" * 32, self._name(line).custom_id, told)


def results_name(seq: int, which: str) -> str:
    """The name on disk of a batch's output or error file."""
    return f"batch{seq}.{which}"


def _write_at(path: Path, data: bytes, offset: int) -> None:
    if not data:
        return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        view = memoryview(data)
        while view:
            written = os.pwrite(fd, view, offset)
            view, offset = view[written:], offset + written
    finally:
        os.close(fd)
