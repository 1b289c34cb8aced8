"""`streambatch check`: what each fault on the way to a service looks like, that nothing is made there, and no secret is shown."""

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import streambatch
from streambatch import checking
from streambatch.cli import main
from streambatch.testing import LocalServer, local_server

from ..client.stage import KEY, PEM, Handler, answering, listening, server_tls, serving
from .tools import call

LIST = {"object": "list", "data": [], "has_more": False}
REFUSED = {
    "error": {
        "message": f"Incorrect API key provided: {KEY}.",
        "type": "invalid_request_error",
        "code": "invalid_api_key",
    }
}
pytestmark = pytest.mark.anyio
NO_ROUTE = {"error": {"message": "Invalid URL", "type": "invalid_request_error", "code": None}}
UNKNOWN = {"error": {"message": "No such model", "type": "invalid_request_error", "code": "model_not_found"}}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "STREAMBATCH_")) or name.lower() in (
            "http_proxy",
            "https_proxy",
            "all_proxy",
            "no_proxy",
        ):
            monkeypatch.delenv(name)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with local_server(speed=1e5) as running:
        yield running


def states(found: streambatch.Checks) -> dict[str, str]:
    return {check.name: check.state for check in found.checks}


def said(found: streambatch.Checks, name: str) -> str:
    return next(check.message for check in found.checks if check.name == name)


async def look(url: str, **more: Any) -> streambatch.Checks:
    """A check with the tests' key."""
    settings = {name: more.pop(name) for name in ("api_key", "ca_bundle", "allow_http", "trust_env") if name in more}
    service = streambatch.Service(base_url=url, **{"api_key": KEY, **settings})
    found = await streambatch.check(service=service, **more)
    assert KEY not in str(found.to_dict())
    assert all(check.message.endswith(".") and check.message.isprintable() for check in found.checks)
    assert [check.name for check in found.checks] == [*checking.NAMES, "versions"]
    return found


def routes(**by_tail: Any) -> Handler:
    """A handler that answers by the last part of the path, with 404 for others. A value is a document, or (status, document)."""

    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.method == "GET"
        told = by_tail.get(request.path.rpartition("/")[2], (404, NO_ROUTE))
        status, body = told if isinstance(told, tuple) else (200, told)
        return web.Response(text=body) if isinstance(body, str) else web.json_response(body, status=status)

    return handler


# -- the command


def test_all_works_on_the_local_server(server: LocalServer) -> None:
    env = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": server.api_key}
    told = call(main, ["check", "--model", "gpt-4o-mini"], env=env)
    assert (told.exit_code, told.stderr) == (0, "")
    lines = told.stdout.split("\n")[:-1]
    assert [line.split()[:2] for line in lines] == [
        ["ok", "address"], ["ok", "proxy"], ["ok", "connection"], ["skipped", "certificate"], ["ok", "key"],
        ["ok", "batches"], ["ok", "files"], ["ok", "model"], ["ok", "clock"], ["ok", "versions"],
    ]  # fmt: skip
    assert "from the variable OPENAI_BASE_URL" in lines[0]
    assert "comes from the variable OPENAI_API_KEY" in lines[4]
    assert server.api_key not in told.stdout
    assert server.ledger()["batches"] == 0


def test_one_document(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(server.api_key + "\n", encoding="utf-8")
    (tmp_path / "job.toml").write_text(f'base_url = "{server.url}"\nprompt = "of run alone"\n', encoding="utf-8")
    words = ["check", "--json", "--job", str(tmp_path / "job.toml"), "--api-key-file", str(tmp_path / "key")]
    told = call(main, words)
    document = json.loads(told.stdout)
    assert (told.exit_code, document["exit_code"], document["schema_version"]) == (0, 0, 1)
    assert document["base_url"] == server.url
    assert [check["name"] for check in document["checks"]] == [*checking.NAMES, "versions"]
    assert f"the file {tmp_path / 'key'}" in told.stdout


def test_one_document_of_what_failed(server: LocalServer) -> None:
    words = ["check", "--json", "--base-url", server.url, "--model", "no-such-model"]
    told = call(main, words, env={"OPENAI_API_KEY": server.api_key, "STREAMBATCH_MODEL": "overridden"})
    document = json.loads(told.stdout)
    assert (told.exit_code, document["exit_code"]) == (2, 2)
    assert document["message"] == "Not everything works from here: model; nothing was sent."
    failed = [check for check in document["checks"] if check["state"] == "failed"]
    assert [(check["name"], check["exit_code"]) for check in failed] == [("model", 2)]
    assert "'no-such-model'" in failed[0]["message"]


@pytest.mark.parametrize("profile", ["openai", "openai-2024", "azure", "together", "groq"])
def test_the_embedded_server_needs_nothing(profile: str) -> None:
    told = call(main, ["check", "--local", "--profile", profile])
    assert (told.exit_code, told.stderr) == (0, "")
    assert "the embedded server" in told.stdout


def test_a_wrong_key(server: LocalServer) -> None:
    told = call(main, ["check", "--api-key-env", "MINE", "--base-url", server.url], env={"MINE": "sk-wrong-key-01234"})
    assert told.exit_code == 2
    assert told.stderr == "Not everything works from here: key; nothing was sent.\n"
    assert "failed   key          From the variable MINE: The service refused the key (401" in told.stdout
    assert "skipped  batches      Not tried: it needs a key" in told.stdout
    assert "sk-wrong" not in told.stdout


@pytest.mark.parametrize(
    ("words", "name", "sentence"),
    [
        (["--base-url", "ftp://x"], "address", "is no http or https address"),
        (["--base-url", "http://service.test/v1"], "address", "clear text"),
        (["--profile", "none-such"], "profile", "none-such"),
        (["--header", "X-A=env:NONE"], "address", "the variable NONE, which is not set"),
        (["--ca-bundle", "none.pem"], "certificate", "none.pem can't be read"),
    ],
)
def test_what_is_wrong_before_anything_is_asked(words: list[str], name: str, sentence: str) -> None:
    told = call(main, ["check", *words], env={"OPENAI_API_KEY": KEY})
    assert told.exit_code == 2
    failed = [line for line in told.stdout.split("\n") if line.startswith("failed")]
    assert len(failed) == 1
    assert failed[0].split()[1] == name
    assert sentence in failed[0]
    assert told.stdout.count("skipped") == len({*checking.NAMES, name}) - 1
    assert KEY not in told.stdout


def test_local_and_another_service() -> None:
    told = call(main, ["check", "--local", "--base-url", "https://x"])
    assert (told.exit_code, told.stdout) == (2, "")
    assert "Both local and another service" in told.stderr


# -- the key


@pytest.mark.parametrize(
    ("words", "env", "sentence"),
    [
        ([], {}, "the variable OPENAI_API_KEY is not set"),
        (["--api-key-file", "none"], {}, "The key file none can't be read"),
        (["--api-key-file", "none", "--api-key-env", "X"], {}, "Both api_key_env and api_key_file"),
        ([], {"OPENAI_API_KEY": f"{KEY} {KEY}"}, "copy it again"),
    ],
)
def test_no_key_still_shows_the_way(server: LocalServer, words: list[str], env: dict[str, str], sentence: str) -> None:
    told = call(main, ["check", "--base-url", server.url, *words], env=env)
    assert told.exit_code == 2
    assert sentence in told.stdout
    assert "ok       connection" in told.stdout
    assert "skipped  batches" in told.stdout
    assert KEY not in told.stdout


async def test_a_service_given_without_a_key(server: LocalServer) -> None:
    found = await look(server.url, api_key="")
    assert (found.exit_code, states(found)["key"]) == (2, "failed")
    found = await look(server.url, api_key=lambda: server.api_key)
    assert (found.exit_code, said(found, "key")) == (0, "Accepted; it comes from the function that was given.")


# -- the way there


async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        found = await look(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", model="m")
    assert found.exit_code == 3
    assert [name for name, state in states(found).items() if state == "failed"] == ["connection"]
    assert "connection refused" in said(found, "connection")
    assert (
        states(found)["batches"]
        == states(found)["files"]
        == states(found)["model"]
        == states(found)["key"]
        == "skipped"
    )


async def test_a_service_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "CALL_S", 0.2)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(silent) as port:
        found = await look(f"http://127.0.0.1:{port}/v1")
    assert (found.exit_code, states(found)["connection"]) == (3, "failed")
    assert "did not answer within" in said(found, "connection")


async def test_the_certificate_of_a_private_authority() -> None:
    async with serving(routes(batches=LIST, files=LIST), server_tls()) as url:
        untrusted = await look(url)
        trusted = await look(url, ca_bundle=PEM)
    assert (untrusted.exit_code, states(untrusted)["connection"], states(untrusted)["certificate"]) == (
        2,
        "ok",
        "failed",
    )
    assert "--ca-bundle" in said(untrusted, "certificate")
    assert states(untrusted)["key"] == states(untrusted)["batches"] == "skipped"
    assert (trusted.exit_code, said(trusted, "certificate")) == (0, f"Trusted by the certificates in {PEM}.")


async def test_https_of_a_server_that_speaks_http() -> None:
    async with serving(answering(LIST)) as url:
        found = await look(url.replace("http:", "https:"))
    assert (found.exit_code, states(found)["certificate"]) == (3, "failed")
    assert "No secure connection" in said(found, "certificate")


async def test_a_proxy_is_named_and_loopback_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    async def proxy(request: web.Request) -> web.Response:
        seen.append(request.raw_path)
        return web.json_response(LIST)

    async with serving(proxy) as proxy_url, serving(routes(batches=LIST, files=LIST)) as url:
        port = proxy_url.rpartition(":")[2].removesuffix("/v1")
        monkeypatch.setenv("HTTP_PROXY", f"http://user:word@127.0.0.1:{port}")
        through = await look("http://service.test/v1", allow_http=True)
        direct = await look(url)
    assert through.exit_code == direct.exit_code == 0
    assert said(through, "proxy") == f"Through 127.0.0.1:{port}, as the environment says."
    assert "this machine itself" in said(direct, "proxy")
    assert seen == ["http://service.test/v1/batches?limit=1", "http://service.test/v1/files?limit=1"]
    assert "word" not in str(through.to_dict())


@pytest.mark.parametrize("answer", [None, "HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n"])
async def test_a_proxy_that_does_not_lead_there(monkeypatch: pytest.MonkeyPatch, answer: str | None) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write((answer or "").encode())
        await writer.drain()

    async with listening(refuse) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:word@127.0.0.1:{port}")
        found = await look("https://service.test/v1")
    assert states(found)["proxy"] == "failed"
    assert states(found)["connection"] == states(found)["certificate"] == "skipped"
    assert "word" not in str(found.to_dict())


async def test_a_proxy_that_can_not_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://user:word@127.0.0.1:1")
    found = await look("https://service.test/v1")
    assert (found.exit_code, states(found)["proxy"], states(found)["connection"]) == (2, "failed", "skipped")
    assert "word" not in str(found.to_dict())


# -- what the service says


@pytest.mark.parametrize(
    ("answers", "code", "changed"),
    [
        ({"batches": LIST, "files": LIST}, 0, {"key": "ok", "batches": "ok", "files": "ok", "model": "skipped"}),
        ({"batches": LIST}, 0, {"files": "skipped", "model": "skipped"}),
        ({"batches": [], "files": []}, 0, {"batches": "ok", "files": "ok"}),  # bare arrays
        ({}, 2, {"batches": "failed", "files": "failed", "key": "skipped"}),
        ({"batches": "<html>", "files": "<html>"}, 2, {"batches": "failed", "files": "failed", "connection": "ok"}),
        ({"batches": (401, REFUSED)}, 2, {"key": "failed", "batches": "skipped", "files": "skipped", "model": "skipped"}),
        ({"batches": (403, REFUSED), "files": LIST}, 2, {"key": "ok", "batches": "failed", "files": "ok"}),
        ({"batches": (503, {}), "files": (503, {})}, 3, {"key": "skipped", "batches": "failed", "files": "failed"}),
        ({"batches": LIST, "files": (500, {})}, 3, {"key": "ok", "batches": "ok", "files": "failed"}),
        ({"batches": LIST, "files": LIST, "m": {"id": "m"}}, 0, {"model": "ok"}),
        ({"batches": LIST, "files": LIST, "m": (404, UNKNOWN)}, 2, {"model": "failed"}),
        ({"batches": LIST, "files": LIST, "m": (403, UNKNOWN)}, 2, {"model": "failed"}),
        ({"batches": LIST, "files": LIST, "m": (403, {})}, 0, {"model": "skipped"}),
        ({"batches": LIST, "files": LIST, "m": (500, {})}, 3, {"model": "failed"}),
        ({"batches": LIST, "files": LIST, "m": "<html>"}, 0, {"model": "skipped"}),
        ({"batches": LIST, "files": LIST, "models": {"data": [{"id": "m"}]}}, 0, {"model": "ok"}),
        ({"batches": LIST, "files": LIST, "models": [{"id": "other"}]}, 2, {"model": "failed"}),
    ],
)  # fmt: skip
async def test_answers(answers: dict[str, Any], code: int, changed: dict[str, str]) -> None:
    async with serving(routes(**answers)) as url:
        found = await look(url, model="m")
    assert {name: states(found)[name] for name in changed} == changed
    assert found.exit_code == code, found


@pytest.mark.parametrize(
    ("offset", "state", "words"),
    [(0, "ok", "Within 60 s"), (3600, "warning", "behind"), (-3600, "warning", "ahead of")],
)
async def test_the_clock(offset: int, state: str, words: str) -> None:
    from email.utils import formatdate
    from time import time

    async with serving(answering(LIST, headers={"Date": formatdate(time() + offset, usegmt=True)})) as url:
        found = await look(url)
    assert (found.exit_code, states(found)["clock"]) == (0, state)
    assert words in said(found, "clock")


async def test_a_model_by_any_name_is_asked_for_safely() -> None:
    asked: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(request.raw_path)
        return web.json_response(LIST)

    async with serving(handler) as url:
        await look(url, model="meta/llama 3?x=1")
    assert asked[2] == "/v1/models/meta%2Fllama%203%3Fx%3D1"


def test_the_twin(server: LocalServer) -> None:
    service = streambatch.Service(base_url=server.url, api_key=server.api_key)
    assert streambatch.check_sync(service=service, model="gpt-4o").ok
    with pytest.raises(streambatch.ConfigError, match="no option"):
        streambatch.check_sync(service=service, modle="gpt-4o")  # type: ignore[call-arg]
