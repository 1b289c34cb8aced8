"""Whole runs through a forward proxy, to a service whose certificate a private authority signed; no proxy sees loopback."""

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import streambatch
from streambatch.errors import ApiError, StreambatchError
from streambatch.testing import LocalServer, local_server
from tests.client.stage import listening
from tests.e2e import rig
from tests.e2e.front import gateway

pytestmark = pytest.mark.anyio
HOST = "api.batch.test"  # a name that no name server knows
OPENSSL = shutil.which("openssl")
ROWS = 30
QUICK: dict[str, Any] = {"max_requests": 10, "workers": 0, "poll_interval": 0.05, "adopt_grace": 0.3}
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
AUTHORITY = """
[req]
distinguished_name = name
prompt = no
[name]
CN = A private authority of these tests
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[service]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:{host}
"""


# -- a private authority


def openssl(folder: Path, *words: str) -> None:
    subprocess.run([str(OPENSSL), *words], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ca.pem`, the authority's certificate, and `service.crt`, `service.key` for the host."""
    if OPENSSL is None:
        pytest.skip("makes certificates with the openssl command, which is not here")
    folder = tmp_path_factory.mktemp("authority")
    (folder / "all.cnf").write_text(AUTHORITY.format(host=HOST), encoding="ascii")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-config", "all.cnf")
    openssl(
        folder, "req", "-x509", *key, "-extensions", "authority", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem"
    )
    openssl(folder, "req", *key, "-subj", f"/CN={HOST}", "-keyout", "service.key", "-out", "service.csr")
    signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "all.cnf", "-extensions", "service")
    openssl(folder, "x509", "-req", "-in", "service.csr", *signing, "-days", "2", "-out", "service.crt")
    return folder


# -- the way there


class Proxy:
    """A forward proxy: it knows where HOST is, and writes down what it was asked for."""

    def __init__(self, target: int | None) -> None:
        self.asked: list[bytes] = []
        self._target = target

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head)
        if self._target is None or not head.startswith(f"CONNECT {HOST}:443 ".encode()):
            writer.write(b"HTTP/1.1 502 Not from here\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_pipe(reader, far_writer), _pipe(far_reader, writer))

    @property
    def ends(self) -> set[bytes]:
        return {head.split(b" ")[1] for head in self.asked}


async def _pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.closing(target):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()


@contextlib.asynccontextmanager
async def behind_tls(server: LocalServer, authority: Path) -> AsyncIterator[int]:
    """The local server behind TLS, as HOST; its port."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(authority / "service.crt", authority / "service.key")
    async with gateway(server, tls) as url:
        yield int(url.rsplit(":", 1)[1].removesuffix("/v1"))


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with local_server(seed=7, speed=500) as running:
        yield running


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def known_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """HOST is this machine, for whoever looks it up in this process."""
    look_up = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: look_up("127.0.0.1" if host == HOST else host, *rest, **more)
    )


# -- through the proxy


async def test_a_run_of_the_library(
    tmp_path: Path, server: LocalServer, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    monkeypatch.setenv("OPENAI_API_KEY", server.api_key)
    async with behind_tls(server, authority) as target:
        proxy = Proxy(target)
        async with listening(proxy.handle) as port:
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
            summary = await streambatch.run(
                source, tmp_path / "out.jsonl", base_url=f"https://{HOST}/v1", ca_bundle=authority / "ca.pem", **QUICK
            )
    assert (summary.exit_code, summary.done) == (0, ROWS)
    assert proxy.ends == {f"{HOST}:443".encode()}
    assert not any(server.api_key.encode() in head for head in proxy.asked)
    assert server.ledger()["rows_executed"] == ROWS


async def command(environ: dict[str, str], *words: str) -> tuple[int, str]:
    """A command line of ours in a process of its own: exit code and stderr."""
    kept = {name: text for name, text in os.environ.items() if name.upper() not in PROXIES}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "streambatch",
        *words,
        env={**kept, **environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    _, told = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, told.decode()


@pytest.mark.process
async def test_a_run_of_the_command_line(tmp_path: Path, server: LocalServer, authority: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    words = ["run", str(source), "-o", str(tmp_path / "out.jsonl"), "--base-url", f"https://{HOST}/v1"]
    words += ["--max-requests", "10", "--poll-interval", "0.05", "--workers", "0"]
    async with behind_tls(server, authority) as target:
        proxy = Proxy(target)
        async with listening(proxy.handle) as port:
            environ = {"OPENAI_API_KEY": server.api_key, "HTTPS_PROXY": f"http://127.0.0.1:{port}"}
            code, told = await command(environ, *words, "--ca-bundle", str(authority / "ca.pem"))
            assert code == 0, told
            other = [word.replace("out.jsonl", "other.jsonl") for word in words]
            code, told = await command(environ, *other, "--quiet")
    assert code == 2
    assert told.count("\n") == 1
    assert "--ca-bundle" in told
    assert HOST in told
    assert len(rig.read_lines(tmp_path / "out.jsonl")) == ROWS
    assert proxy.ends == {f"{HOST}:443".encode()}


async def test_without_the_authoritys_certificate_it_is_one_sentence(
    tmp_path: Path, server: LocalServer, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    monkeypatch.setenv("OPENAI_API_KEY", server.api_key)
    async with behind_tls(server, authority) as target:
        proxy = Proxy(target)
        async with listening(proxy.handle) as port:
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
            with pytest.raises(ApiError) as caught:
                await streambatch.run(source, tmp_path / "out.jsonl", base_url=f"https://{HOST}/v1", **QUICK)
    said = str(caught.value)
    assert said.startswith(f"The certificate of {HOST}:443 can't be trusted (")
    assert said.endswith("; give your authority's certificates with --ca-bundle.")
    assert caught.value.exit_code == 2
    assert len(proxy.asked) == 1, "it is not asked again and again"
    assert server.ledger()["batches"] == 0


async def test_a_proxy_that_is_gone_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    monkeypatch.setattr("streambatch.api.KNOCK_S", 0.1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ApiError, match=r"The proxy 127\.0\.0\.1:\d+ on the way to api\.batch\.test:443") as caught:
            await streambatch.run(source, tmp_path / "out.jsonl", base_url=f"https://{HOST}/v1", **QUICK)
    assert caught.value.exit_code == 3


# -- past the proxy


@pytest.mark.parametrize("no_proxy", [HOST, ".batch.test", "other.test, api.batch.test", "*"])
@pytest.mark.usefixtures("known_host")
async def test_no_proxy_is_honoured(
    tmp_path: Path, server: LocalServer, authority: Path, monkeypatch: pytest.MonkeyPatch, no_proxy: str
) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    monkeypatch.setenv("OPENAI_API_KEY", server.api_key)
    proxy = Proxy(None)
    async with behind_tls(server, authority) as port, listening(proxy.handle) as proxy_port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy_port}")
        monkeypatch.setenv("NO_PROXY", no_proxy)
        url = f"https://{HOST}:{port}/v1"
        summary = await streambatch.run(
            source, tmp_path / "out.jsonl", base_url=url, ca_bundle=authority / "ca.pem", **QUICK
        )
        assert summary.done == ROWS
        assert proxy.asked == []
        monkeypatch.setenv("NO_PROXY", "else.test")
        monkeypatch.setattr("streambatch.api.KNOCK_S", 0.1)
        with pytest.raises(StreambatchError, match="The proxy"):
            await streambatch.run(
                source, tmp_path / "other.jsonl", base_url=url, ca_bundle=authority / "ca.pem", **QUICK
            )
        assert proxy.asked != []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "local"])
async def test_loopback_is_never_sent_to_a_proxy(
    tmp_path: Path, server: LocalServer, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    monkeypatch.setenv("OPENAI_API_KEY", server.api_key)
    where: dict[str, Any] = {"base_url": server.url.replace("127.0.0.1", host)}
    if host == "local":
        where = {"local": True, "speed": 500}
    proxy = Proxy(None)
    async with listening(proxy.handle) as port:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        summary = await streambatch.run(source, tmp_path / "out.jsonl", **where, **QUICK)
    assert (summary.exit_code, summary.done) == (0, ROWS)
    assert proxy.asked == []


@pytest.mark.process
async def test_the_embedded_server_is_never_sent_to_a_proxy_by_the_command_line(tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    words = ["run", str(source), "-o", str(tmp_path / "out.jsonl"), "--local", "--speed", "500", "--workers", "0"]
    proxy = Proxy(None)
    async with listening(proxy.handle) as port:
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        code, told = await command(dict.fromkeys(names, f"http://127.0.0.1:{port}"), *words)
    assert code == 0, told
    assert proxy.asked == []
