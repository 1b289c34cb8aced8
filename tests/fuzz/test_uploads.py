"""Whatever is uploaded, in whatever pieces: the server answers, stays up, and brings the batch to an end that adds up."""

import contextlib
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp.http_exceptions import HttpProcessingError
from hypothesis import given
from hypothesis import strategies as st

from streambatch.server.serving import ThreadedServer
from streambatch.server.settings import Settings
from tests.fuzz.bounds import bounded
from tests.fuzz.mutations import deepened, odd_bytes, odd_objects, values
from tests.server.kit import CHAT, TERMINAL, Wire, multipart, row
from tests.server.process import Process

TIMEOUT_S = 10.0
ENDPOINTS = (CHAT, "/v1/embeddings", "/v1/responses", "/v1/completions", "/v1/moderations")


class Failures(logging.Handler):
    """What a server says that went wrong inside it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is not None and isinstance(record.exc_info[1], HttpProcessingError):
            return  # a request that is no HTTP: answered with 400
        self.said.append(f"{record.getMessage()} {record.exc_info}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    """A server where nothing takes time; at the end nothing may have failed inside it."""
    failures = Failures()
    loggers = [logging.getLogger(name) for name in ("streambatch.server", "aiohttp.server", "asyncio")]
    for logger in loggers:
        logger.addHandler(failures)
    with ThreadedServer(
        Settings(data_dir=tmp_path_factory.mktemp("data"), speed=1e6, creates_per_hour=None)
    ) as running:
        yield Wire(running.url, running.api_key)
    for logger in loggers:
        logger.removeHandler(failures)
    assert failures.said == []


# -- raw calls


class Answer(NamedTuple):
    status: int | None  # None: the connection was closed without a word
    body: bytes

    @property
    def told(self) -> Any:
        return json.loads(self.body)


def raw(wire: Wire, pieces: list[bytes]) -> Answer:
    """Send these bytes in these pieces, and read until the server closes. A server that hangs is a failure."""
    with socket.create_connection((wire.host, wire.port), timeout=TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        said = bytearray()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it had heard enough
            for piece in pieces:
                connection.sendall(piece)
            while block := connection.recv(1 << 16):
                said += block
    head, _, body = bytes(said).partition(b"\r\n\r\n")
    if not head:
        return Answer(None, b"")
    if b"chunked" in head.lower():
        body = _unchunked(body)
    return Answer(int(head.split(b" ", 2)[1]), body)


def _unchunked(body: bytes) -> bytes:
    whole, rest = b"", body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        whole, rest = whole + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return whole


def head_of(wire: Wire, content_type: str, *more: str) -> bytes:
    lines = [
        "POST /v1/files HTTP/1.1", f"Host: {wire.host}:{wire.port}", f"Authorization: Bearer {wire.key}", "Connection: close",
        f"Content-Type: {content_type}", *more,
    ]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """The data in pieces of about these sizes, by turns."""
    pieces, at = list[bytes](), 0
    step = max(1, len(data) // 50)  # not more than some hundred pieces
    while at < len(data):
        size = max(step, sizes[len(pieces) % len(sizes)])
        pieces.append(data[at : at + size])
        at += size
    return pieces


def upload(wire: Wire, data: bytes, sizes: list[int], chunked: bool) -> Answer:
    body, headers = multipart(data, "input.jsonl", {"purpose": "batch"})
    pieces = cut(body, sizes)
    if chunked:
        head = head_of(wire, headers["Content-Type"], "Transfer-Encoding: chunked")
        return raw(wire, [head, *(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces), b"0\r\n\r\n"])
    return raw(wire, [*cut(head_of(wire, headers["Content-Type"], f"Content-Length: {len(body)}"), sizes), *pieces])


# -- what is uploaded


def _request(endpoint: str, n: int) -> dict[str, Any]:
    if endpoint == CHAT:
        return row(n)
    given = {"prompt": "x"} if endpoint == "/v1/completions" else {"input": f"text {n}"}
    return {"custom_id": f"row-{n}", "method": "POST", "url": endpoint, "body": {"model": "gpt-4o-mini", **given}}


class Job(NamedTuple):
    endpoint: str
    data: bytes


FIELDS = (
    "messages", "input", "prompt", "n", "tools", "tool_choice", "response_format", "text", "dimensions", "encoding_format", "model",
    "instructions", "max_output_tokens",
)  # fmt: skip


@st.composite
def lines(draw: st.DrawFn, endpoint: str, n: int) -> bytes:
    """A line as it should be, one whose body asks for anything at all, or one that has gone wrong."""
    request = _request(endpoint, n)
    kind = draw(st.sampled_from(["good", "good", "good", "body", "body", "object", "bytes", "deep", "anything"]))
    if kind == "anything":
        return draw(st.binary(max_size=30))
    if kind == "body":
        request["body"] |= draw(st.dictionaries(st.sampled_from(FIELDS), values, max_size=2))
    if kind == "object":
        request = draw(odd_objects(st.just(request)))
    line = json.dumps(request).encode()
    if kind == "deep":
        return deepened(line)
    return draw(odd_bytes(st.just(line))) if kind == "bytes" else line


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Lines of one endpoint."""
    endpoint = draw(st.sampled_from(ENDPOINTS))
    made = [draw(lines(endpoint, n)) for n in range(draw(st.integers(0, 4)))]
    made += made[: draw(st.sampled_from([0, 0, 0, 0, 1]))]  # a line that stands there twice
    end: bytes = draw(st.sampled_from([b"\n", b"\n", b"\r\n"]))
    ended: bool = draw(st.booleans())
    mark: bytes = draw(st.sampled_from([b"", b"", b"", b"", b"\xef\xbb\xbf"]))
    return Job(endpoint, mark + end.join(made) + (end if ended else b""))


sizes = st.lists(st.sampled_from([1, 2, 3, 7, 64, 1000, 1 << 16]), min_size=1, max_size=4)


def _ended(wire: Wire, file_id: str, endpoint: str) -> Any:
    said = wire.call(
        "POST", "/v1/batches", {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h"}
    )
    assert said.status == 200, said
    return wire.finish(said.json["id"], within_s=TIMEOUT_S)


def _check_end(wire: Wire, batch: Any, data: bytes) -> None:
    """The counts are those of the files and of the input, and each line's result stands in one place."""
    assert batch["status"] in TERMINAL
    counts, outputs, errors = batch["request_counts"], *wire.results(batch)
    if batch["status"] == "failed":
        assert batch["errors"]["data"]
        assert (counts, outputs, errors) == ({"total": 0, "completed": 0, "failed": 0}, [], [])
        lines = [entry["line"] for entry in batch["errors"]["data"] if entry["line"] is not None]
        assert lines == sorted(lines)
        assert all(1 <= line <= data.count(b"\n") + 1 for line in lines)
        return
    asked = [json.loads(line)["custom_id"] for line in data.removesuffix(b"\n").split(b"\n")]
    assert batch["status"] == "completed"
    assert counts == {"total": len(asked), "completed": len(outputs), "failed": len(errors)}
    assert sorted(line["custom_id"] for line in outputs + errors) == sorted(asked)


@bounded(120)
@given(job=jobs(), one=sizes, other=sizes, chunked=st.booleans())
def test_any_file_in_any_pieces_ends_the_same_way(
    server: Wire, job: Job, one: list[int], other: list[int], chunked: bool
) -> None:
    first, second = upload(server, job.data, one, False), upload(server, job.data, other, chunked)
    assert first.status == second.status
    assert first.status in (200, 400)
    if first.status != 200:
        assert first.body == second.body
        return
    assert first.told["bytes"] == second.told["bytes"] == len(job.data)
    assert server.content(second.told["id"]) == job.data
    ends = [_ended(server, said.told["id"], job.endpoint) for said in (first, second)]
    assert ends[0]["errors"] == ends[1]["errors"]
    assert ends[0]["request_counts"] == ends[1]["request_counts"]
    _check_end(server, ends[0], job.data)


@bounded(60)
@given(data=st.binary(max_size=200), sizes=sizes)
def test_any_bytes_are_kept_as_they_are_or_refused(server: Wire, data: bytes, sizes: list[int]) -> None:
    body, headers = multipart(data, "any.bin", {"purpose": "user_data"})
    said = raw(server, [head_of(server, headers["Content-Type"], f"Content-Length: {len(body)}"), *cut(body, sizes)])
    if b"\r\n--b" in b"\r\n" + data:  # what looks like the boundary is one
        assert said.status in (200, 400)
    else:
        assert (said.status, server.content(said.told["id"])) == (200, data)


@pytest.mark.parametrize("lines", [1, 3])
def test_very_long_lines_end_too(server: Wire, lines: int) -> None:
    data = b"".join(json.dumps(row(n, "x" * 3_000_000)).encode() + b"\n" for n in range(lines))
    said = upload(server, data, [1 << 16], True)
    _check_end(server, _ended(server, said.told["id"], CHAT), data)


# -- the frame around it


def _part(disposition: bytes, data: bytes, *headers: bytes) -> bytes:
    return b"--b\r\n" + b"\r\n".join([b"Content-Disposition: " + disposition, *headers, b"", data]) + b"\r\n"


PURPOSE = _part(b'form-data; name="purpose"', b"batch")
FILE = _part(b'form-data; name="file"; filename="a.jsonl"', json.dumps(row(1)).encode())
END = b"--b--\r\n"
BODIES = (
    PURPOSE + FILE + END, PURPOSE + FILE, PURPOSE + END, FILE + END, END, b"", b"--b", b"--b\r\n", b"\r\n\r\n", b"--b--",
    b"garbage",
    PURPOSE + FILE + FILE + END, PURPOSE + PURPOSE + FILE + END, PURPOSE + FILE[:40], PURPOSE + FILE.replace(b"--b", b"--c") + END,
    PURPOSE + _part(b'form-data; name="file"; filename="../../etc/x.jsonl"', b"{}") + END,
    PURPOSE + _part(b'form-data; name="file"; filename="\x00\xff.jsonl"', b"{}") + END,
    PURPOSE + _part(b"form-data", b"{}") + END, PURPOSE + _part(b"", b"{}") + END, PURPOSE + _part(b"\xff\xfe;;;=", b"{}") + END,
    PURPOSE + _part(b'form-data; name="file"', b"{}", b"Content-Transfer-Encoding: base64") + END,
    PURPOSE + _part(b'form-data; name="file"', b"e30", b"Content-Transfer-Encoding: base64") + END,
    PURPOSE + _part(b'form-data; name="file"', b"=ZZ=3", b"Content-Transfer-Encoding: quoted-printable") + END,
    PURPOSE + _part(b'form-data; name="file"', b"{}", b"Content-Transfer-Encoding: nonsense") + END,
    PURPOSE + _part(b'form-data; name="file"', b"{}", b"Content-Encoding: gzip") + END,
    PURPOSE + _part(b'form-data; name="file"', b"{}", b"Content-Encoding: nonsense") + END,
    PURPOSE + _part(b'form-data; name="file"', b"{}", b"Content-Length: 999999999999") + END,
    PURPOSE + _part(b'form-data; name="file"', b"{}", b"Content-Length: -1") + END,
    PURPOSE + _part(b'form-data; name="file"', b"{}", b"Content-Length: x") + END,
    PURPOSE + _part(b'form-data; name="file"', b"{}", b"Content-Type: multipart/mixed; boundary=c") + END,
    PURPOSE + _part(b'form-data; name="file"; filename="' + b"x" * 100_000 + b'"', b"{}") + END,
    PURPOSE + _part(b'form-data; name="file"', b"{}", *[b"X-%d: y" % n for n in range(3_000)]) + END,
    _part(b'form-data; name="purpose"', b"batch" * 5_000) + FILE + END,
    _part(b'form-data; name="purpose"', b"\xff\x00") + FILE + END,
    b"".join(_part(b'form-data; name="f%d"' % n, b"x") for n in range(300)) + PURPOSE + FILE + END,
)  # fmt: skip
TYPES = (
    "multipart/form-data; boundary=b", "multipart/form-data; boundary=b", "multipart/form-data; boundary=b", "multipart/form-data",
    'multipart/form-data; boundary=""', "multipart/form-data; boundary=" + "b" * 500, "multipart/form-data; boundary=é",
    "multipart/mixed; boundary=b", "application/json", "text/plain; charset=nonsense", "", "\t", "multipart/form-data; boundary=c",
)  # fmt: skip


@st.composite
def frames(draw: st.DrawFn) -> tuple[str, tuple[str, ...], bytes]:
    """A content type, the header that says how long the body is, and the body in its transfer form."""
    body: bytes = draw(st.one_of(st.sampled_from(BODIES), odd_bytes(st.sampled_from(BODIES[:16]))))
    size = len(body)
    lengths = (size, size, size, size - 1, size + 1, 0, -1, 10**30, "x", "")
    how = draw(st.sampled_from(["length", "length", "chunked", "both", "bad chunks", "neither"]))
    if how == "length":
        return draw(st.sampled_from(TYPES)), (f"Content-Length: {draw(st.sampled_from(lengths))}",), body
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body) if size else b"0\r\n\r\n"
    if how == "bad chunks":
        chunks = draw(st.sampled_from([b"zz\r\n", b"-1\r\n", b"f" * 40 + b"\r\n", b"5;x=\r\nab", b"\r\n"])) + chunks
    headers = {"neither": (), "both": ("Transfer-Encoding: chunked", f"Content-Length: {size}")}
    return draw(st.sampled_from(TYPES)), headers.get(how, ("Transfer-Encoding: chunked",)), chunks


def _until_answered(wire: Wire, pieces: list[bytes]) -> Answer:
    """As `raw`, of a call that may promise more than it sends: then the client hangs up."""
    with socket.create_connection((wire.host, wire.port), timeout=TIMEOUT_S) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
            connection.settimeout(0.05)
            said = connection.recv(1 << 16)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            said = b""
    return Answer(int(said.split(b" ", 2)[1]), b"") if said.startswith(b"HTTP/1.1 ") else Answer(None, b"")


@bounded(150)
@given(frame=frames(), sizes=sizes)
def test_a_broken_frame_is_refused_and_the_server_lives(
    server: Wire, frame: tuple[str, tuple[str, ...], bytes], sizes: list[int]
) -> None:
    content_type, headers, body = frame
    said = _until_answered(server, [head_of(server, content_type, *headers), *cut(body, sizes)])
    assert said.status is None or said.status == 200 or 400 <= said.status < 500, said
    assert server.call("GET", "/v1/models").status == 200


@pytest.mark.parametrize(
    "header", ["X-Long: " + "y" * 1_000_000, "\r\n".join(f"X-{n}: y" for n in range(100_000)), "no colon"]
)
def test_absurd_headers_are_refused(server: Wire, header: str) -> None:
    said = raw(server, [head_of(server, "multipart/form-data; boundary=b", "Content-Length: 0", header)])
    assert said.status is None or 400 <= said.status < 500
    assert server.call("GET", "/v1/models").status == 200


def test_nothing_is_left_of_uploads_that_were_refused(tmp_path: Path) -> None:
    with ThreadedServer(Settings(data_dir=tmp_path)) as running:
        wire = Wire(running.url, running.api_key)
        for body in BODIES[1:]:
            said = raw(wire, [head_of(wire, TYPES[0], f"Content-Length: {len(body)}"), body])
            assert said.status in (200, 400), body[:200]
        kept = len(wire.call("GET", "/v1/files").json["data"])
    assert len(list((tmp_path / "contents").iterdir())) == kept


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_what_is_refused(tmp_path: Path) -> None:
    """Broken frames, broken lines and long lines, again and again."""
    broken = json.dumps(row(1, "x" * 300_000)).encode()[:-1] + b"\n"
    with Process(tmp_path, "--speed", "100000") as process:
        wire = process.wire

        def work(rounds: int) -> float:
            for n in range(rounds):
                for body in BODIES:
                    raw(wire, [head_of(wire, TYPES[0], f"Content-Length: {len(body)}"), body])
                file_id = wire.upload(json.dumps(row(n)).encode() + b"\n" + broken * 4).json["id"]
                assert _ended(wire, file_id, CHAT)["status"] == "failed"
                wire.call("DELETE", f"/v1/files/{file_id}")
            return process.resident_mib

        before = work(2)
        assert work(6) < before + 6
