"""A multipart body on its way to disk: one file in blocks, under a name of ours, and the few fields beside it."""

import asyncio
from pathlib import Path
from typing import IO

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from streambatch.server import rules
from streambatch.server.door import RULES, SERVICE, RefusedError, hang_up, stall
from streambatch.server.multipart import Multipart, Part

BLOCK = 1 << 20
READ = 1 << 18
HEAD = 1 << 16
FIELD_BYTES = 1 << 12


class Meeting:
    """What a body meets on its way by the script: a pace, a stall, a hang-up."""

    def __init__(self, request: web.Request, met: list[rules.HttpRule]) -> None:
        paces = [rule.bytes_per_s for rule in met if isinstance(rule, rules.Slow)]
        self._pace = min(paces, default=0)
        self._request = request
        self._taken = 0
        self._ahead = [rule for rule in met if isinstance(rule, rules.Hang | rules.Cut)]
        self.block = min(READ, max(1, self._pace // 10)) if self._pace else READ

    async def after(self, size: int) -> None:
        """So many more bytes were read."""
        self._taken += size
        due = [rule for rule in self._ahead if rule.at <= self._taken]
        self._ahead = [rule for rule in self._ahead if rule.at > self._taken]
        for rule in due:
            if isinstance(rule, rules.Hang):
                await stall(rule.seconds)
            else:
                hang_up(self._request)
        if self._pace:
            await asyncio.sleep(size / self._pace)


class Incoming:
    """The file of the part `field`, of at most `most` bytes, and all other parts as text; `head` is the file's beginning."""

    def __init__(self, path: Path, field: str, most: int) -> None:
        self.path = path
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.size = 0
        self.head = b""
        self._field, self._most = field, most

    async def read(self, request: web.Request) -> None:
        """Take all parts. Raises `RefusedError` for what is no upload, or too large."""
        try:
            body = Multipart(request.headers.get("Content-Type", ""), request.content.read, READ)
            while (part := await body.next()) is not None:
                await self._take(request, body, part)
        except (ValueError, HttpProcessingError) as error:
            raise RefusedError(400, "The request body is no complete multipart/form-data.") from error

    async def _take(self, request: web.Request, body: Multipart, part: Part) -> None:
        if part.nested:
            raise RefusedError(400, "Nested multipart bodies are not supported.")
        if part.name == self._field and self.filename is not None:
            raise RefusedError(400, f"Only one '{self._field}' may be sent at a time.", param=self._field)
        if part.name == self._field:
            self.filename = part.filename if part.filename is not None else "upload"
            if "id" not in request.match_info:
                request.app[SERVICE].faults.note(RULES.get(), self.filename)
            await self._take_file(body, Meeting(request, RULES.get()))
        elif part.name is not None:
            self.fields[part.name] = await _text(body)

    async def _take_file(self, body: Multipart, meet: Meeting) -> None:
        with self.path.open("wb") as file:
            waiting: list[bytes] = []
            held = 0
            await meet.after(0)
            while chunk := await body.read(meet.block):
                waiting.append(chunk)
                held += len(chunk)
                if held >= BLOCK:
                    await self._write(file, waiting)
                    waiting, held = [], 0
                await meet.after(len(chunk))
            await self._write(file, waiting)

    async def _write(self, file: IO[bytes], blocks: list[bytes]) -> None:
        self.size += sum(map(len, blocks))
        if self.size > self._most:
            raise RefusedError(413, f"File is too large: larger than the {self._most} maximum.")
        if len(self.head) < HEAD and blocks:
            self.head = (self.head + b"".join(blocks)[:HEAD])[:HEAD]
        await asyncio.to_thread(file.writelines, blocks)


async def _text(body: Multipart) -> str:
    """The beginning of a field."""
    held = b""
    while len(held) < FIELD_BYTES and (chunk := await body.read(FIELD_BYTES)):
        held += chunk
    return held[:FIELD_BYTES].decode("utf-8", "replace")
