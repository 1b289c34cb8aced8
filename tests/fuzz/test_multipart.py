"""A multipart body comes out as it went in, whatever pieces it arrives in."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.server.multipart import Multipart
from tests.fuzz.bounds import bounded

Parts = list[tuple[str, str | None, bytes]]
TYPE = "multipart/form-data; boundary=b0"
NEARLY = [
    b"\r\n--b0",
    b"\r\n--b",
    b"\r\n--",
    b"\r\n",
    b"\r",
    b"\n",
    b"--b0",
    b"-",
    b"b0",
    b"--",
    b"\r\n\r\n",
    b"x",
    b"\x00\xff",
]

contents = (
    st.lists(st.sampled_from(NEARLY[1:]), max_size=8).map(b"".join).filter(lambda data: NEARLY[0] not in b"\r\n" + data)
)
parts = st.tuples(st.sampled_from(["file", "purpose", "é"]), st.none() | st.sampled_from(["a.jsonl", "漢"]), contents)


def _body(told: Parts) -> bytes:
    whole = b""
    for name, filename, data in told:
        head = f'Content-Disposition: form-data; name="{name}"' + (
            "" if filename is None else f'; filename="{filename}"'
        )
        whole += b"--b0\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n"
    return whole + b"--b0--\r\n"


def _read(body: bytes, sizes: list[int], most: int) -> Parts:
    """What comes out of the body where it arrives in pieces of these sizes, by turns."""

    def pieces() -> Iterator[bytes]:
        at, n = 0, 0
        while at < len(body):
            yield body[at : at + sizes[n % len(sizes)]]
            at, n = at + sizes[n % len(sizes)], n + 1

    left = pieces()

    async def read(_: int) -> bytes:
        return next(left, b"")

    async def all_parts() -> Parts:
        reader, found = Multipart(TYPE, read, 100), Parts()
        while (part := await reader.next()) is not None:
            data = b""
            while some := await reader.read(most):
                assert len(some) <= most
                data += some
            found.append((str(part.name), part.filename, data))
        return found

    return asyncio.run(all_parts())


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@bounded(200)
@given(told=st.lists(parts, max_size=4), sizes=sizes, most=st.integers(1, 50))
def test_the_same_parts_come_out(told: Parts, sizes: list[int], most: int) -> None:
    assert _read(_body(told), sizes, most) == told


@bounded(200)
@given(
    body=st.lists(st.sampled_from([*NEARLY, b"Content-Disposition: form-data; name=f", b": "]), max_size=12),
    one=sizes,
    other=sizes,
)
def test_any_bytes_are_the_same_parts_or_none_in_any_pieces(
    body: list[bytes], one: list[int], other: list[int]
) -> None:
    ends: list[Parts | None] = []
    for given_sizes in (one, other):
        try:
            ends.append(_read(b"".join(body), given_sizes, 7))
        except ValueError:
            ends.append(None)
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    "told",
    ["", "text/plain", "multipart/form-data", 'multipart/form-data; boundary=""', "multipart/x; boundary=" + "b" * 71],
)
def test_a_type_without_a_boundary_is_none(told: str) -> None:
    async def nothing(_: int) -> bytes:
        return b""

    with pytest.raises(ValueError, match="boundary"):
        Multipart(told, nothing, 10)


def test_endless_headers_are_none() -> None:
    with pytest.raises(ValueError, match="too long"):
        _read(b"--b0\r\n" + b"X: y\r\n" * 10_000, [1000], 10)
