"""Events at the end of batches: signed as the official client checks it, sent again, kept over a restart."""

import base64
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest

from streambatch.errors import ConfigError
from streambatch.server.serving import ThreadedServer
from streambatch.server.settings import Settings
from tests.server.conftest import Start
from tests.server.kit import Wire, chat

SECRET = "whsec_" + base64.b64encode(b"a secret of the test").decode()


class Receiver:
    """A server of the user's own: keeps what comes, answers with the statuses given, then with 204."""

    def __init__(self) -> None:
        self.posts: list[tuple[bytes, dict[str, str]]] = []
        self.statuses: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.posts.append((body, {name.lower(): value for name, value in self.headers.items()}))
                self.send_response(outer.statuses.pop(0) if outer.statuses else 204)
                self.send_header("Location", f"{outer.url}/elsewhere")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's own name
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def wait(self, count: int, within_s: float = 10) -> None:
        deadline = time.monotonic() + within_s
        while len(self.posts) < count:
            assert time.monotonic() < deadline, self.posts
            time.sleep(0.01)

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def unwrapped(post: tuple[bytes, dict[str, str]]) -> Any:
    with openai.OpenAI(api_key="x", webhook_secret=SECRET) as client:
        return client.webhooks.unwrap(post[0], post[1])


def test_each_end_is_told_in_the_official_clients_terms(start: Start, receiver: Receiver) -> None:
    rules = [{"do": "expire", "after": 1, "times": 1}, {"do": "cancel", "after": 2, "times": 1}]
    wire = start({"batches": rules}, webhook_url=receiver.url + "/hook?a=b", webhook_secret=SECRET)
    ends = [wire.run(chat(2)) for _ in range(3)] + [wire.run(b'{"custom_id": "a"}\n')]
    receiver.wait(4)
    told = {event.data.id: event for event in map(unwrapped, receiver.posts)}
    for batch in ends:
        event = told[batch["id"]]
        assert (event.type, event.object) == (f"batch.{batch['status']}", "event")
        assert event.created_at == batch[f"{batch['status']}_at"]
    assert {batch["status"] for batch in ends} == {"completed", "expired", "cancelled", "failed"}
    time.sleep(0.1)
    assert len(receiver.posts) == 4


def test_a_changed_event_is_not_accepted(start: Start, receiver: Receiver) -> None:
    start(webhook_url=receiver.url, webhook_secret=SECRET).run(chat(1))
    receiver.wait(1)
    body, headers = receiver.posts[0]
    with pytest.raises(openai.InvalidWebhookSignatureError):
        unwrapped((body.replace(b"completed", b"cancelled"), headers))


@pytest.mark.parametrize(("status", "tries"), [(500, 5), (302, 5), (404, 5)])
def test_an_event_that_is_not_taken_comes_a_few_times(
    start: Start, receiver: Receiver, status: int, tries: int
) -> None:
    wire = start(webhook_url=receiver.url, webhook_secret=SECRET, speed=1e4)
    receiver.statuses = [status] * 100
    batch = wire.run(chat(1))
    receiver.wait(tries)
    time.sleep(0.1)
    assert len(receiver.posts) == tries
    assert len({headers["webhook-id"] for _, headers in receiver.posts}) == 1
    assert unwrapped(receiver.posts[-1]).data.id == batch["id"]
    receiver.statuses = []
    wire.run(chat(1))
    receiver.wait(tries + 1)


def test_a_success_ends_the_redelivery(start: Start, receiver: Receiver) -> None:
    wire = start(webhook_url=receiver.url, webhook_secret=SECRET, speed=1e4)
    receiver.statuses = [500, 503]
    wire.run(chat(1))
    receiver.wait(3)
    time.sleep(0.1)
    assert len(receiver.posts) == 3


def test_a_restart_forgets_no_event(tmp_path: Path, receiver: Receiver) -> None:
    def begun(url: str | None) -> ThreadedServer:
        secret = None if url is None else SECRET
        return ThreadedServer(
            Settings(data_dir=tmp_path, api_key="k", speed=100, webhook_url=url, webhook_secret=secret)
        )

    with begun(None) as server:
        Wire(server.url, "k").run(chat(1))  # nobody waits for this one
    receiver.statuses = [500] * 100
    with begun(receiver.url) as server:
        batch = Wire(server.url, "k").run(chat(1))
        receiver.wait(1)
    receiver.statuses, seen = [], len(receiver.posts)
    with begun(receiver.url):
        receiver.wait(seen + 1)
        time.sleep(0.1)
    assert {unwrapped(post).data.id for post in receiver.posts} == {batch["id"]}
    assert len(receiver.posts) == seen + 1


def test_a_receiver_that_is_not_there_disturbs_nobody(start: Start) -> None:
    wire = start(webhook_url="http://127.0.0.1:9", webhook_secret=SECRET)
    assert [wire.run(chat(1))["status"] for _ in range(3)] == ["completed"] * 3


@pytest.mark.parametrize(
    "given",
    [
        {"webhook_url": "http://h"}, {"webhook_secret": SECRET}, {"webhook_url": "ftp://h", "webhook_secret": SECRET},
        {"webhook_url": "http://", "webhook_secret": SECRET}, {"webhook_url": "http://h", "webhook_secret": "secret"},
        {"webhook_url": "http://h", "webhook_secret": "whsec_"}, {"webhook_url": "http://h", "webhook_secret": "whsec_%%"},
    ],
)  # fmt: skip
def test_webhooks_that_cannot_be(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        Settings(data_dir=tmp_path, **given)
    assert SECRET not in str(refused.value)
