"""Who we are and where the service is: what is refused, what is shown, which proxy is taken."""

import io
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from streambatch.edge.service import Proxy, Service, current_key, host_port, is_loopback, proxy_for, redact
from streambatch.errors import ConfigError

SECRET = "very-secret-0123456789"


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1",
        "https://api.openai.com/v1/",
        "http://127.0.0.1:8377/v1",
        "http://[::1]:8377/v1",
        "http://localhost/v1",
        "local",
    ],
)
def test_addresses_that_can_work(url: str) -> None:
    assert Service(base_url=url).base_url == url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://api.example.com/v1", "clear text"),
        ("http://127.0.0.1.example.com/v1", "clear text"),
        ("ftp://api.example.com", "no http or https"),
        ("api.openai.com/v1", "no http or https"),
        ("https://", "no http or https"),
        ("https://host:99999/v1", "no http or https"),
        ("https://[::1/v1", "no http or https"),
        ("", "no http or https"),
        ("https://api.example.com/v1?x=1", "without"),
        ("https://api.example.com/v1#x", "without"),
        (f"https://user:{SECRET}@api.example.com/v1", "user name or a password"),
        ("https://api.example.com/v 1", "space"),
        ("https://api.example.com/\nv1", "control character"),
    ],
)
def test_addresses_that_are_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Service(base_url=url)
    assert SECRET not in str(caught.value)
    assert str(caught.value).isprintable()


def test_clear_text_can_be_allowed() -> None:
    assert Service(base_url="http://intranet/v1", allow_http=True).allow_http


@pytest.mark.parametrize("key", [f"{SECRET}\n", f"Bearer {SECRET}", f"{SECRET}é", "\x00"])
def test_a_key_that_no_header_can_carry(key: str) -> None:
    with pytest.raises(ConfigError, match="copy it again") as caught:
        Service(api_key=key)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "pair",
    [
        ("bad name", "x"),
        ("", "x"),
        ("X-A\r\nX-B", "x"),
        ("X-A", f"{SECRET}\r\nX-B: y"),
        ("X-A", "é"),
        ("Host", "x"),
        ("content-length", "5"),
    ],
)
def test_headers_that_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Service(headers=(pair,))
    assert SECRET not in str(caught.value)


def test_headers_as_a_mapping_or_as_pairs() -> None:
    assert (
        Service(headers={"X-A": "b"}).header_pairs == Service(headers=(("X-A", "b"),)).header_pairs == (("X-A", "b"),)
    )


def test_it_shows_no_secret() -> None:
    service = Service(api_key=SECRET, headers={"X-Gateway": SECRET + "-2"})
    drawn = io.StringIO()
    Console(file=drawn, width=200).print(service)
    for shown in (repr(service), str(service), f"{service}", f"{[service]}", drawn.getvalue()):
        assert "very-secret" not in shown
        assert "X-Gateway" in shown
    assert "<function>" in repr(Service(api_key=lambda: SECRET))


# -- the key


@pytest.mark.anyio
async def test_the_key_from_every_source() -> None:
    async def later() -> str:
        return "from-a-coroutine"

    assert await current_key(Service(api_key="plain")) == "plain"
    assert await current_key(Service(api_key=lambda: "from-a-function")) == "from-a-function"
    assert await current_key(Service(api_key=later)) == "from-a-coroutine"


@pytest.mark.anyio
@pytest.mark.parametrize("value", [None, b"bytes", f"{SECRET}\n"])
async def test_a_source_that_gives_no_key(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        await current_key(Service(api_key=lambda: value))
    assert SECRET not in str(caught.value)


# -- what may be said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Incorrect API key provided: sk-abcd1234efgh. You can", "Incorrect API key provided: [redacted] You can"),
        ("Incorrect API key provided: wrong-ke******-key.", "Incorrect API key provided: [redacted]"),
        ("sk-proj-aB_9-cdefghijk is wrong", "[redacted] is wrong"),
        ("got Bearer abc.def", "got [redacted]"),
        (f"the key {SECRET} is wrong", "the key [redacted] is wrong"),
        ("red \x1b[31mtext\x1b[0m\r\nand\u2028more\u202e", "red [31mtext [0m and more"),
        ("The task-force limit: 5,000 ** 2", "The task-force limit: 5,000 ** 2"),
    ],
)
def test_redaction(text: str, said: str) -> None:
    assert redact(text, [SECRET, "", "ab"]) == said


@settings(deadline=None)  # the machine may be busy
@given(st.text(), st.text(alphabet=st.characters(categories=("Lu", "Ll", "Nd"), max_codepoint=127), min_size=8))
def test_redacted_text_is_one_short_line_without_the_secret(text: str, secret: str) -> None:
    shown = redact(f"{text}{secret}{text}", [secret])
    assert secret not in shown or secret in "[redacted]"
    assert not shown or shown.isprintable()
    assert len(redact(text * 100)) <= 601


# -- the way there


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("a.localhost", True), ("LOCALHOST.", True),
        ("10.0.0.1", False), ("0.0.0.0", False), ("localhost.example.com", False), ("example.com", False), ("", False),
    ],
)  # fmt: skip
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_host_and_port() -> None:
    names = [host_port(u) for u in ("https://a.example/v1", "http://a.example/v1", "http://[::1]:8/v1")]
    assert names == ["a.example:443", "a.example:80", "[::1]:8"]


@pytest.fixture
def _proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:{SECRET}%40@secure.example:3128")
    monkeypatch.setenv("NO_PROXY", "internal.example,other.example:8443")


@pytest.mark.usefixtures("_proxied")
@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://api.openai.com/v1", "http://secure.example:3128"),
        ("http://intranet/v1", "http://proxy.example:3128"),
        ("https://a.internal.example/v1", None),
        ("https://other.example:8443/v1", None),
        ("http://127.0.0.1:8377/v1", None),
        ("https://localhost/v1", None),
        ("http://[::1]:8377/v1", None),
    ],
)
def test_the_proxy_of_the_environment(url: str, proxy: str | None) -> None:
    found = proxy_for(url, trust_env=True)
    assert (None if found is None else found.url) == proxy
    assert proxy_for(url, trust_env=False) is None


@pytest.mark.usefixtures("_proxied")
def test_what_a_proxy_wants_to_know_is_not_shown() -> None:
    found = proxy_for("https://api.openai.com/v1", trust_env=True)
    assert found == Proxy("http://secure.example:3128", "user", SECRET + "@")
    assert SECRET not in repr(found)


@pytest.mark.parametrize("named", ["socks5://user:very-secret-0123456789@host:1080", "http://", "http://[::1"])
def test_a_proxy_that_can_not_be_used(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", named)
    with pytest.raises(ConfigError, match="proxy") as caught:
        proxy_for("https://api.openai.com/v1", trust_env=True)
    assert SECRET not in str(caught.value)


def test_replacing_a_field_is_checked_too() -> None:
    with pytest.raises(ConfigError):
        msgspec.structs.replace(Service(), base_url="http://example.com")


def test_only_whoever_connects_loads_the_transport() -> None:
    code = "import sys, streambatch.edge.client, streambatch.edge.retrying; print('aiohttp' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.strip() == "False"
