"""Messages over a pipe: their length, then so many bytes. Both ends are unbuffered."""

import struct
from typing import IO

HEAD = struct.Struct("<I")


def send(pipe: IO[bytes], message: bytes) -> None:
    """Write a whole message. Raises BrokenPipeError if the other end is gone."""
    rest = memoryview(HEAD.pack(len(message)) + message)
    while rest:
        rest = rest[pipe.write(rest) :]


def receive(pipe: IO[bytes]) -> bytes | None:
    """The next message; None if the other end is gone."""
    head = _exactly(pipe, HEAD.size)
    return None if head is None else _exactly(pipe, HEAD.unpack(head)[0])


def _exactly(pipe: IO[bytes], size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        part = pipe.read(size - len(data))
        if not part:
            return None
        data += part
    return bytes(data)
