"""A multipart body, part by part, as it arrives: in whatever pieces it comes, the same parts come out. Knows no form, no file."""

from collections.abc import Awaitable, Callable
from email.message import Message
from email.parser import HeaderParser
from email.utils import collapse_rfc2231_value

HEAD_BYTES = 16 << 10  # of the headers of one part
MAX_BOUNDARY = 70


class Part:
    """What the headers of a part say."""

    def __init__(self, head: bytes) -> None:
        told = HeaderParser().parsestr(head.decode("utf-8", "replace"))
        self.name = _param(told, "name")
        self.filename = _param(told, "filename")
        self.nested = told.get_content_maintype() == "multipart"


class Multipart:
    """`next` gives the parts in their order, `read` the content of the one it gave last. Both raise ValueError for what is none."""

    def __init__(self, content_type: str, read: Callable[[int], Awaitable[bytes]], block: int) -> None:
        self._mark = b"\r\n--" + _boundary(content_type)
        self._read, self._block = read, block
        self._held = bytearray(b"\r\n")  # so that the first mark is one like the others
        self._inside = True

    async def next(self) -> Part | None:
        """The next part; None after the last."""
        while await self.read(self._block):
            pass
        while len(self._held) < 2:
            await self._more()
        if self._held.startswith(b"--"):
            return None
        while (end := self._held.find(b"\r\n\r\n")) < 0:
            if len(self._held) > HEAD_BYTES:
                raise ValueError("the headers of a part are too long")
            await self._more()
        padding, _, head = bytes(self._held[:end]).partition(b"\r\n")
        if padding.strip(b" \t") or end > HEAD_BYTES:
            raise ValueError("what follows a boundary is no part")
        del self._held[: end + 4]
        self._inside = True
        return Part(head)

    async def read(self, most: int) -> bytes:
        """Some more of the part's content, at most so many bytes; b"" at its end."""
        while self._inside:
            found = self._held.find(self._mark)
            if found == 0:
                del self._held[: len(self._mark)]
                self._inside = False
                break
            sure = found if found > 0 else len(self._held) - len(self._mark) + 1
            if sure > 0:
                some = bytes(self._held[: min(most, sure)])
                del self._held[: len(some)]
                return some
            await self._more()
        return b""

    async def _more(self) -> None:
        block = await self._read(self._block)
        if not block:
            raise ValueError("the body ends before its last boundary")
        self._held += block


def _boundary(content_type: str) -> bytes:
    told = Message()
    told["Content-Type"] = content_type
    boundary = told.get_boundary()
    if told.get_content_maintype() != "multipart" or not boundary or len(boundary) > MAX_BOUNDARY:
        raise ValueError("the content type names no boundary")
    return boundary.encode("utf-8", "surrogateescape")


def _param(told: Message, name: str) -> str | None:
    value = told.get_param(name, None, "content-disposition")
    return None if value is None else collapse_rfc2231_value(value)
