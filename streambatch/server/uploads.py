"""The upload: a multipart body streamed to disk in blocks, under a name of ours, then looked at as the service looks at it.

Whatever is wrong further down than the first line fails the batch later, not the upload.
"""

import asyncio
import time
from pathlib import Path
from typing import IO

import msgspec
from aiohttp import BodyPartReader, web

from streambatch.server.door import SERVICE, RefusedError, answer
from streambatch.server.objects import NEVER, file_object
from streambatch.server.records import File, new_content_name, new_file_id
from streambatch.server.validation import MAX_BATCH_BYTES

MAX_FILE_BYTES = 512 << 20
BLOCK = 1 << 20
READ = 1 << 18
HEAD = 1 << 16
BATCH_EXPIRY_S = 2_592_000
SHORTEST_S, LONGEST_S = 3_600, 2_592_000
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
FIELD_BYTES = 1 << 12


class Upload:
    """A multipart body on its way to disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.size = 0
        self.head = b""

    async def read(self, request: web.Request) -> None:
        """Take all parts. Raises `RefusedError` for what is no upload, or too large."""
        try:
            reader = await request.multipart()
            while (part := await reader.next()) is not None:
                if not isinstance(part, BodyPartReader):
                    raise RefusedError(400, "Nested multipart bodies are not supported.")
                if part.name == "file" and self.filename is not None:
                    raise RefusedError(400, "Only one 'file' may be sent at a time.", param="file")
                if part.name == "file":
                    self.filename = part.filename if part.filename is not None else "upload"
                    await self._take_file(part)
                elif part.name is not None:
                    self.fields[part.name] = (await part.read_chunk(FIELD_BYTES)).decode("utf-8", "replace")
        except (ValueError, AssertionError) as error:
            raise RefusedError(400, "The request body is no complete multipart/form-data.") from error

    async def _take_file(self, part: BodyPartReader) -> None:
        with self.path.open("wb") as file:
            waiting: list[bytes] = []
            held = 0
            while chunk := await part.read_chunk(READ):
                waiting.append(chunk)
                held += len(chunk)
                if held >= BLOCK:
                    await self._write(file, waiting)
                    waiting, held = [], 0
            await self._write(file, waiting)

    async def _write(self, file: IO[bytes], blocks: list[bytes]) -> None:
        self.size += sum(map(len, blocks))
        if self.size > MAX_FILE_BYTES:
            raise RefusedError(413, f"File is too large: larger than the {MAX_FILE_BYTES} maximum.")
        if len(self.head) < HEAD and blocks:
            self.head = (self.head + b"".join(blocks)[:HEAD])[:HEAD]
        await asyncio.to_thread(file.writelines, blocks)


async def upload(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    content = new_content_name()
    taken = Upload(service.contents / content)
    try:
        await taken.read(request)
        _check(taken)
        file = service.store.add_file(_file(taken, content))
    except BaseException:
        taken.path.unlink(missing_ok=True)
        raise
    return answer(request, file_object(file, fresh="expires_after[seconds]" not in taken.fields))


def _file(taken: Upload, content: str) -> File:
    now = int(time.time())
    purpose, asked = taken.fields["purpose"], taken.fields.get("expires_after[seconds]")
    default = now + BATCH_EXPIRY_S if purpose == "batch" else NEVER
    assert taken.filename is not None, "checked"
    return File(
        seq=None, id=new_file_id(), filename=taken.filename, purpose=purpose, bytes=taken.size, created_at=now,
        expires_at=default if asked is None else now + int(asked), content=content,
    )  # fmt: skip


def _check(taken: Upload) -> None:
    """Refuse what the service refuses at upload; the rest of a bad file fails its batch."""
    if taken.filename is None:
        raise RefusedError(400, "Missing required parameter: 'file'.", param="file", code="missing_required_parameter")
    if "purpose" not in taken.fields:
        raise RefusedError(
            400, "Missing required parameter: 'purpose'.", param="purpose", code="missing_required_parameter"
        )
    purpose = taken.fields["purpose"]
    if purpose not in PURPOSES:
        known = ", ".join(f"'{name}'" for name in PURPOSES)
        raise RefusedError(
            400, f"Invalid value: '{purpose}'. Supported values are: {known}.", param="purpose", code="invalid_value"
        )
    _check_expiry(taken.fields)
    if purpose == "batch":
        _check_batch_input(taken)


def _check_expiry(fields: dict[str, str]) -> None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return
    if anchor != "created_at":
        raise RefusedError(
            400,
            "Invalid value for 'expires_after.anchor': expected 'created_at'.",
            param="expires_after.anchor",
            code="invalid_value",
        )
    if (
        seconds is None
        or not seconds.isascii()
        or not seconds.isdigit()
        or not SHORTEST_S <= int(seconds[:12]) <= LONGEST_S
    ):
        message = f"Invalid value for 'expires_after.seconds': expected an integer from {SHORTEST_S} to {LONGEST_S}."
        raise RefusedError(400, message, param="expires_after.seconds", code="invalid_value")


def _check_batch_input(taken: Upload) -> None:
    name = taken.filename if taken.filename is not None else ""
    if "." in name and not name.endswith(".jsonl"):
        raise RefusedError(400, "Invalid file format for Batch API. Must be .jsonl", param="file")
    if taken.size > MAX_BATCH_BYTES:
        raise RefusedError(
            413, f"File is too large: {taken.size} bytes is larger than the {MAX_BATCH_BYTES} maximum for a batch."
        )
    if not _starts_with_json(taken.head):
        raise RefusedError(
            400,
            "Invalid file format. Input file must be in .jsonl format, with a JSON object on each line.",
            param="file",
        )


def _starts_with_json(head: bytes) -> bool:
    """Whether the first line is JSON; of a line longer than what we kept, only that it begins as an object."""
    line, newline, _ = head.partition(b"\n")
    if not newline and len(head) >= HEAD:
        return line.lstrip().startswith(b"{")
    try:
        return isinstance(msgspec.json.decode(line), dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
